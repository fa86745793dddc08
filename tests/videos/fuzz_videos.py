"""Mutations of good videos, decoded: `python tests/videos/fuzz_videos.py [--count 2000] [--seed 0] VIDEO...`

Bytes flipped, ends cut, sizes of boxes rewritten, containers spliced. Every clip that comes back must have the pixels
that PyAV alone gives for the times it states; everything else must be a failure with a reason. No worker may outlive
its deadline or hold more memory than its limit, and none may open another file or a socket of its own.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import av
import numpy as np

from flcache.errors import DecodeError
from flcache.videos import ClipRequest, DecodedClip, DecodePool

DEADLINE_S = 10.0
MAX_BYTES = 256 * 2**20
MEMORY_LIMIT = 3 * MAX_BYTES + 3 * 2**30
"""What a worker may map: its libraries, and what DecodePool allows beside them."""
_BOXES = (b"moov", b"trak", b"mdia", b"stbl", b"stsz", b"stco", b"stts", b"ctts", b"stss", b"stsc", b"tkhd", b"avc1")
_OF_PYTHON = (
    *(".so", ".py", "pyvenv.cfg", "/dev/null", "/dev/urandom", "/proc/", "/sys/", "/usr/", "/lib/", "/openssl.cnf"),
    "/etc/locale.alias",
)
_LATER_S = 0.5
"""Between two clips of a file: the second is read on from the first."""
_OWN_MEMORY = "/memfd:flcache-frames"
"""Frames on their way to this process."""


def mutate(content: bytes, others: Sequence[bytes], rng: np.random.Generator) -> bytes:
    """One or a few changes of one kind."""
    data = bytearray(content)
    kind = rng.choice(["flip", "flip_head", "cut", "box", "size", "splice", "insert", "prefix"])
    if kind in ("flip", "flip_head"):
        end = len(data) if kind == "flip" else min(len(data), 2000)
        for position in rng.integers(0, end, int(rng.integers(1, 20))):
            data[position] = int(rng.integers(256))
    elif kind == "cut":
        del data[int(rng.integers(1, len(data))) :]
    elif kind in ("box", "size"):
        _rewrite_box(data, rng, only_size=kind == "size")
    elif kind == "splice":
        other = others[int(rng.integers(len(others)))]
        data[int(rng.integers(len(data))) :] = other[int(rng.integers(len(other))) :]
    elif kind == "insert":
        position = int(rng.integers(len(data)))
        data[position:position] = rng.bytes(int(rng.integers(1, 300)))
    else:
        data[:0] = others[int(rng.integers(len(others)))][: int(rng.integers(1, 3000))]
    return bytes(data)


def _rewrite_box(data: bytearray, rng: np.random.Generator, *, only_size: bool) -> None:
    """Overwrite the size, or some of what follows the name, of a box of an MP4; of any place in another container."""
    places = [data.find(name) for name in _BOXES]
    places = [place for place in places if place >= 4] or [int(rng.integers(4, len(data) - 32))]
    place = places[int(rng.integers(len(places)))]
    first = place - 4 if only_size else place + 4 + int(rng.integers(0, 60))
    value = int(rng.choice([0, 1, 7, 8, 2**16, 2**31 - 1, 2**31, 2**32 - 1, int(rng.integers(2**32))]))
    data[first : first + 4] = value.to_bytes(4, "big")


def pixels_by_pyav(path: Path, clip: DecodedClip) -> bool:
    """Whether plain decoding from the start of the file gives these pictures at these times."""
    from flcache.videos import pyav_reader
    from flcache.videos.frame_table import read_frame_table

    table = read_frame_table(path)
    wanted = np.flatnonzero(np.isin(table.seconds, clip.timestamps))  # several, where the file repeats a time
    exact, seconds = pyav_reader.read_frames(path, table, wanted, max_pixels=MAX_BYTES), table.seconds[wanted]
    return all(
        any(np.array_equal(frame, picture) for picture in exact[seconds == second])
        for frame, second in zip(clip.frames, clip.timestamps, strict=True)
    )


@dataclass
class Watch:
    """What the workers of a pool open and map, looked at a few hundred times a second."""

    pool: DecodePool
    allowed: Path
    largest: int = 0
    foreign: set[str] = field(default_factory=set)
    _ended: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Watch:
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._ended.wait(0.003):
            for pid in self.pool.worker_pids:
                try:
                    self._look_at(pid)
                except OSError:  # it ends while we look
                    continue

    def _look_at(self, pid: int) -> None:
        mapped = int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        self.largest = max(self.largest, mapped)
        sockets = 0
        for link in Path(f"/proc/{pid}/fd").iterdir():
            if int(link.name) < 3:  # inherited until the worker closes them
                continue
            target = str(link.readlink())
            sockets += target.startswith("socket:")
            if target.startswith(str(self.allowed)) or target.startswith(("socket:", "pipe:", "anon_inode:")):
                continue
            if (
                not any(part in target for part in (*_OF_PYTHON, _OWN_MEMORY)) and not Path(target).is_dir()
            ):  # Python lists sys.path
                self.foreign.add(target)
        if sockets > 1:
            self.foreign.add(f"{sockets} sockets")


@dataclass
class Findings:
    """What came of the mutations."""

    outcomes: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    """What must never happen, each with the file that was kept."""


def fuzz(videos: Sequence[Path], folder: Path, count: int, seed: int, *, workers: int = 2) -> Findings:
    """Decode two clips, one after the other, of `count` mutations of `videos`, written to `folder`; mutations that
    something is wrong with stay there."""
    findings, rng = Findings(), np.random.default_rng(seed)
    contents = [path.read_bytes() for path in videos]
    av.logging.set_level(av.logging.PANIC)

    def items() -> list[tuple[bool, Path, ClipRequest]]:
        made: list[tuple[bool, Path, ClipRequest]] = []
        for number in range(count):
            chosen = int(rng.integers(len(videos)))
            path = folder / f"{number}{videos[chosen].suffix}"
            path.write_bytes(mutate(contents[chosen], contents, rng))
            first = _request(rng)
            later = replace(first, timestamps=tuple(second + _LATER_S for second in first.timestamps or ()))
            made += [(False, path, first), (True, path, later)]
        return made

    with DecodePool(workers, DEADLINE_S, max_bytes=MAX_BYTES) as pool, Watch(pool, folder.resolve()) as watch:
        started = time.monotonic()
        made = items()
        for (last, result), (_, path, _) in zip(pool.decode(made), made, strict=True):
            _judge(path, result, findings)
            if last and not any(str(path) in wrong for wrong in findings.wrong):
                path.unlink()
            waited, started = time.monotonic() - started, time.monotonic()
            if waited > 3 * DEADLINE_S:
                findings.wrong.append(f"{path}: took {waited:.1f} s")
    if watch.largest > MEMORY_LIMIT:
        findings.wrong.append(f"a worker mapped {watch.largest / 2**20:.0f} MiB")
    findings.wrong += [f"a worker opened {target}" for target in sorted(watch.foreign)]
    return findings


def _request(rng: np.random.Generator) -> ClipRequest:
    start_s = float(rng.choice([0.0, 0.0, 0.3, 1.0]))
    times = tuple(start_s + i / 8 for i in range(6))
    return ClipRequest(6, start_s, times, None, "pad")


def _judge(path: Path, result: DecodedClip | DecodeError, findings: Findings) -> None:
    keep = True
    if isinstance(result, DecodeError):
        findings.outcomes[f"failed: {result.reason}"] += 1
        keep = result.reason in ("our own error", "unknown") or "\n" in str(result)
        words = f"failed without a reason: {result}"
    else:
        findings.outcomes[f"clip by {result.decoder}"] += 1
        words = f"other pixels than by PyAV ({result.decoder})"
        try:
            keep = not pixels_by_pyav(path, result)
        except DecodeError as error:
            words = f"a clip by {result.decoder} where PyAV says {error}"
    if keep:
        findings.wrong.append(f"{path}: {words}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", nargs="+", type=Path)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    findings = fuzz(arguments.videos, Path(tempfile.mkdtemp()), arguments.count, arguments.seed)
    for outcome, times in findings.outcomes.most_common():
        print(f"{times:6d} {outcome}")
    print(*findings.wrong, sep="\n")
    return int(bool(findings.wrong))


if __name__ == "__main__":
    sys.exit(main())
