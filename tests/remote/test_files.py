"""What stores answer, and what `RemoteFiles` makes of it."""

from __future__ import annotations

import errno
from typing import Any

import pytest
from botocore.exceptions import ClientError
from fsspec.implementations.memory import MemoryFileSystem

from flcache.remote import RemoteFiles


def test_who_writes_second_is_told_so_by_any_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ceph's radosgw says 412 without naming the condition, of which s3fs makes an error like any other."""

    def refused(*_: Any, **__: Any) -> None:
        answer = {"Error": {"Code": "PreconditionFailed"}, "ResponseMetadata": {"HTTPStatusCode": 412}}
        raise OSError(errno.EINVAL, "") from ClientError(answer, "PutObject")  # type: ignore[arg-type]

    files = RemoteFiles("memory://somewhere")
    monkeypatch.setattr(MemoryFileSystem, "pipe_file", refused)
    assert files.write_new("commit.json", b"second") is False
