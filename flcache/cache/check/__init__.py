"""A cache as a whole: every byte proven, damage set aside and mended, a summary."""
