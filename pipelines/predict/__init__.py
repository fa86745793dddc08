"""flcache predict: what an exported model makes of videos."""

from .stage import run

__all__ = ["run"]
