"""Format `flc1`: spec, plan, commits, index, tar and statistics, as they lie on disk."""
