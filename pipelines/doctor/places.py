"""Checks of where data lies and comes from: the disk of the cache, buckets, shared memory, the hub."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from rich.filesize import decimal

from flcache.config import Config
from flcache.errors import FlcacheError
from flcache.remote import RemoteFiles, is_url
from flcache.sealed import one_line

from ..setup.clips import disk_cache
from .finding import Finding

_WRITTEN_BYTES = 64 * 2**20
_ASK_S = 5.0
_ASK_STORE_S = 20.0  # in which its library tries again


def disk(config: Config) -> Finding:
    """Write and read speed of the folder of the cache, past the system's own cache, and what is free there."""
    folder = nearest(_local_folder(config))
    needed = config.cache.dir is not None
    try:
        written_s, read_s = _written_and_read_s(folder)
    except OSError as error:
        mend = "free some of it" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "make it writable"
        mend += f", or choose another cache.{'local_dir' if is_url(config.cache.dir) else 'dir'}"
        return Finding("disk", "wrong", f"{folder}: {error.strerror}", mend, needed)
    speeds = [f"{_WRITTEN_BYTES / 2**20 / seconds:,.0f} MiB/s" for seconds in (written_s, read_s)]
    free = decimal(shutil.disk_usage(folder).free)
    return Finding("disk", "ok", f"{folder}: writes {speeds[0]}, reads {speeds[1]}, {free} free")


def bucket(config: Config) -> Iterator[Finding]:
    """Whether a cache at a URL can be written and read; nothing for one in a folder."""
    url = config.cache.dir
    if not is_url(url):
        return
    name, content = f".flcache-doctor-{os.getpid()}", b"flcache doctor"
    try:
        files = RemoteFiles(str(url), attempts=1)
        files.write(name, content)
        files.read(name, len(content))
        files.remove(name)
    except FlcacheError as error:
        mend = "check cache.dir, and the credentials as its library finds them, such as by: aws configure"
        yield Finding("bucket", "wrong", one_line(error), mend, True)
        return
    yield Finding("bucket", "ok", f"{url}: can be written and read")


def dataset_bucket(config: Config) -> Iterator[Finding]:
    """Whether videos and lists at URLs can be reached; nothing where they are in folders."""
    name = "bucket, dataset"
    urls = {key: url for key in ("root", "train", "val", "labels") if is_url(url := getattr(config.dataset, key))}
    for key, url in urls.items():
        folder = url.partition("{")[0].rpartition("/")[0] if "{" in url else url
        try:
            found = None if RemoteFiles(folder).is_there(_ASK_STORE_S) else "nothing is there"
            mend = f"check dataset.{key}"
        except Exception as error:  # of whichever library it asks with
            found = one_line(error).removeprefix(f"{folder}: ")
            mend = f"check the network, dataset.{key}, and the credentials as its library finds them"
        if found is not None:
            yield Finding(name, "wrong", f"{url}: {found}", mend, True)
            return
    if urls:
        yield Finding(name, "ok", f"{', '.join(urls.values())}: can be reached")


def _local_folder(config: Config) -> Path:
    """Where files of the cache lie on this machine."""
    if is_url(config.cache.dir):
        return disk_cache(config).folder
    return Path(config.cache.dir or ".")


def nearest(folder: Path) -> Path:
    """`folder`, or the nearest one above it that exists."""
    folder = folder.absolute()
    return next(place for place in (folder, *folder.parents) if place.is_dir())


def shared_memory() -> Finding:
    """Decoded frames reach the encoder through memory that two processes share."""
    if not hasattr(os, "memfd_create"):
        return Finding("shared memory", "ok", "not by this system: frames come through a socket")
    descriptor = os.memfd_create("flcache-doctor")
    try:
        os.write(descriptor, bytes(2**20))
    finally:
        os.close(descriptor)
    return Finding("shared memory", "ok", "frames come without a copy")


def hub(config: Config) -> Finding:
    """Whether the encoder that the configuration names is here, or can be fetched."""
    from huggingface_hub import HfApi, constants, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError

    name = config.encoder.name
    if name is None:
        return Finding("encoder", "ok", "stated by its architecture: nothing is fetched")
    if Path(name).is_dir():
        return Finding("encoder", "ok", f"{name}: a folder")
    if isinstance(try_to_load_from_cache(name, "config.json", revision=config.encoder.revision), str):
        return Finding("encoder", "ok", f"{name}: in {constants.HF_HUB_CACHE}")
    mend = f"where there is a network: hf download {name} --local-dir DIR; then encoder.name=DIR"
    if constants.HF_HUB_OFFLINE:
        return Finding("encoder", "wrong", f"{name}: not here, and HF_HUB_OFFLINE is set", mend, True)
    try:
        HfApi().model_info(name, revision=config.encoder.revision, timeout=_ASK_S)
    except HfHubHTTPError as error:
        found = f"{name}: {constants.ENDPOINT} answers: {one_line(error)}"
        return Finding("encoder", "wrong", found, "check encoder.name; for a private one: hf auth login", True)
    except Exception as error:  # of whichever library it asks with
        found = f"{name}: {constants.ENDPOINT} cannot be reached: {one_line(error)}"
        return Finding("encoder", "wrong", found, mend, True)
    return Finding("encoder", "ok", f"{name}: can be fetched from {constants.ENDPOINT}")


def _written_and_read_s(folder: Path) -> tuple[float, float]:
    block = os.urandom(2**20)
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".flcache-doctor-") as file:
        started_s = time.perf_counter()
        for _ in range(_WRITTEN_BYTES // len(block)):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
        written_s = time.perf_counter() - started_s
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        file.seek(0)
        started_s = time.perf_counter()
        while file.read(len(block)):
            pass
        return written_s, time.perf_counter() - started_s
