"""Verifying, repairing and summarising a cache."""
