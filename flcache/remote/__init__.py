"""Files at a URL: listed, read, written and checked; and a disk cache of them that the processes of a node share."""

from flcache.remote.ahead import fetch_soon
from flcache.remote.digest import Digest, digest_of, digest_stream
from flcache.remote.disk import DEFAULT_BYTES, TOUCH_S, DiskCache, RemoteFile, default_folder
from flcache.remote.files import Entry, RemoteFiles, is_url

__all__ = [
    "DEFAULT_BYTES",
    "TOUCH_S",
    "Digest",
    "DiskCache",
    "Entry",
    "RemoteFile",
    "RemoteFiles",
    "default_folder",
    "digest_of",
    "digest_stream",
    "fetch_soon",
    "is_url",
]
