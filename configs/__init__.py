"""Shipped configurations; find them by path with `flcache.config`."""
