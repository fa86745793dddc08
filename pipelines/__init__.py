"""What you run: one stage a file, read top to bottom."""
