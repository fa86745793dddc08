"""A cache by clip number, by filter, and as batches."""
