"""Where in a tar its members lie. Nothing is unpacked: headers are read, contents are jumped over."""

from __future__ import annotations

import tarfile
from pathlib import Path, PurePosixPath

from flcache.errors import DataError
from flcache.videos.remote_path import Place, RemotePath
from flcache.videos.video_file import TarMember, at_hand, carrier


def read_tar_index(tar: Place) -> dict[str, TarMember]:
    """The regular members of a tar by name, in its order. Raises DataError for a tar that is damaged or compressed."""
    try:
        whole = tar.listed() if isinstance(tar, RemotePath) else tar
        with at_hand(whole) as here:
            places = _members(tar, carrier(here))
        beside = {name: places.get(str(PurePosixPath(name).with_suffix(".npz"))) for name in places}
        return {name: TarMember(whole, name, *place, beside[name]) for name, place in places.items()}
    except FileNotFoundError:
        raise DataError(f"{tar}: no such tar; mend dataset.train or dataset.root") from None
    except OSError as error:
        raise DataError(f"{tar}: cannot be read: {error.strerror}") from None
    except (tarfile.TarError, ValueError, OverflowError, RecursionError, MemoryError) as error:
        words = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{tar}: not a whole tar without compression ({words}); fetch it again, or unzip it") from None


def _members(tar: Place, path: Path) -> dict[str, tuple[int, int]]:
    """Where each member of `tar`, which lies at `path`, begins, and its bytes."""
    members: dict[str, tuple[int, int]] = {}
    reached = -1
    with tarfile.open(path, "r:") as archive:
        for info in archive:
            if info.offset <= reached:  # a negative size would be read again and again
                raise tarfile.ReadError("a member lies before its predecessor")
            reached = info.offset
            archive.members = []  # type: ignore[attr-defined]  # else every header is kept
            if info.isreg() and not info.issparse():
                name = info.name.removeprefix("./")
                if name in members:
                    raise DataError(f"{tar}: {name[:200]!r} is in it twice; write the tar anew")
                members[name] = info.offset_data, info.size
        _check_end(path, archive.offset)
    return members


def _check_end(tar: Path, offset: int) -> None:
    """Raise unless the block of zeros that ends a tar is here: tarfile takes a header that is cut or damaged for it."""
    with tar.open("rb") as stream:
        stream.seek(offset)
        if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError(f"no header and no end at byte {offset}")
