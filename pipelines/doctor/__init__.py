"""flcache doctor [--config C] [KEY=VALUE ...] [--json]: what this machine lacks, before it is missed."""

from .stage import run

__all__ = ["run"]
