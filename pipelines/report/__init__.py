"""flcache report: a run as one HTML page."""

from .stage import run

__all__ = ["run"]
