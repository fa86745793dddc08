"""Writing shards and caches."""
