"""What was pushed to a URL: sizes and digests of its files. Its own file is written last."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Literal

from flcache.errors import CacheError
from flcache.remote import Digest, RemoteFiles
from flcache.sealed import check_seal, sealed

MANIFEST = "manifest.json"
MAX_MANIFEST_BYTES = 2**30
FORMAT = "flcache-push-1"
Kind = Literal["cache", "model"]


@dataclass
class Manifest:
    kind: Kind
    identity: str
    """The fingerprint of a cache, the digest of the cards of a model: two with the same are of one origin."""
    files: dict[str, Digest] = field(default_factory=dict)
    """By name, relative to the URL and to the folder, in the order in which they are pushed."""
    complete: bool = False

    def text(self) -> str:
        files = {name: [digest.bytes, digest.xxh3_64] for name, digest in self.files.items()}
        content = {"kind": self.kind, "identity": self.identity, "files": files, "complete": self.complete}
        return sealed({"format": FORMAT, **content})

    @classmethod
    def parse(cls, raw: bytes, where: str) -> Manifest:
        """Raises CacheError for what is no manifest, is damaged, or names files outside of a folder."""
        try:
            content = json.loads(raw)
            check_seal(content)
            if content["format"] != FORMAT:
                raise ValueError(f"of the format {content['format']!r}, and this flcache reads {FORMAT}")
            files = {_inside(name): Digest(int(size), str(digest)) for name, (size, digest) in content["files"].items()}
            return cls(content["kind"], str(content["identity"]), files, bool(content["complete"]))
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
            raise CacheError(f"{where}: not a manifest of flcache push ({error}); remove it, and push again") from None


def _inside(name: Any) -> str:
    path = PurePosixPath(name)
    if path.is_absolute() or not path.parts or ".." in path.parts or "\\" in name or "\0" in name or str(path) != name:
        raise ValueError(f"{name!r} leads out of the folder")
    return str(name)


def manifest_at(files: RemoteFiles) -> Manifest | None:
    """Of what was pushed there; None where nothing was."""
    try:
        raw = files.read(MANIFEST, MAX_MANIFEST_BYTES)
    except FileNotFoundError:
        return None
    return Manifest.parse(raw, f"{files.url}/{MANIFEST}")
