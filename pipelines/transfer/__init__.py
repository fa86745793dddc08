"""flcache push DIR URL, flcache pull URL DIR: a cache or an exported model to and from any store that fsspec knows."""

from .pull import pull
from .push import push

__all__ = ["pull", "push"]
