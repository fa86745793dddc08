"""Shards and whole caches, written."""
