"""python tests/benchmarks/object_storage.py [--rounds N] [--clips N] [--mib-s N]: the loader on a bucket, as ratios.

A cache of noise lies in a folder and in a bucket of moto's server, a process of this machine. Each round measures, in
turns: epochs from the folder and from the disk cache that holds all of the bucket's, medians of ten; and an epoch
with an empty disk cache beside bare parallel GETs of the same tars, by s3fs and by http.client, which keep nothing.
Medians over the rounds. Server and client share the machine: where its cores are busy, CPU time counts that a network
hides. With `--mib-s` a process between them lets no more through than that, as a network does.
"""

from __future__ import annotations

import argparse
import http.client
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing import Pipe, Process
from pathlib import Path
from statistics import median
from typing import Any

import fsspec
import numpy as np

from flcache.cache import CacheWriter, ClipInfo, LatentCache, LatentLoader
from flcache.cache.storage import Store, open_store
from flcache.remote import RemoteFiles, digest_of
from flcache.remote.ahead import THREADS

SERVER = "from moto.server import main; main()"
CREDENTIAL = "Credential=any/20260101/us-east-1/s3/aws4_request"
SIGNED = {"Authorization": f"AWS4-HMAC-SHA256 {CREDENTIAL}, SignedHeaders=host, Signature=0"}
"""Moto wants a signature, and looks at none."""
SHAPE = (8, 16, 16, 1024)
"""4 MiB a clip as float16, as for the other benchmarks."""
SHARD_BYTES = 64 * 2**20
BATCH_SIZE = 8


@contextmanager
def server() -> Iterator[int]:
    """The port of an S3 server with the bucket `latents`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    command = [sys.executable, "-c", SERVER, "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while request(port, "PUT", "/latents") != 0:
            time.sleep(0.1)
        yield port
    finally:
        process.kill()
        process.wait()


@contextmanager
def road(port: int, mib_s: float | None) -> Iterator[int]:
    """The port of a proxy to `port` that gives `mib_s` to all answers together; `port` itself without that."""
    if mib_s is None:
        yield port
        return
    receiver, sender = Pipe(duplex=False)
    process = Process(target=let_through, args=(sender, port, mib_s), daemon=True)
    process.start()
    try:
        yield receiver.recv()
    finally:
        process.kill()
        process.join()


def let_through(sender: Any, port: int, mib_s: float) -> None:
    lock, free_s = threading.Lock(), time.monotonic()

    class Proxy(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def pass_on(self) -> None:
            sent = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            there = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
            there.request(self.command, self.path, sent or None, dict(self.headers.items()))
            answer = there.getresponse()
            self.send_response_only(answer.status)
            for name, value in answer.getheaders():
                if name.lower() != "connection":
                    self.send_header(name, value)
            self.end_headers()
            while block := answer.read(2**18):
                self.wait_for(len(block))
                self.wfile.write(block)
            there.close()

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = pass_on  # noqa: N815

        def wait_for(self, num_bytes: int) -> None:
            nonlocal free_s
            with lock:
                free_s = max(free_s, time.monotonic()) + num_bytes / 2**20 / mib_s
                until_s = free_s
            time.sleep(max(0, until_s - time.monotonic()))

    proxy = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    sender.send(proxy.server_address[1])
    proxy.serve_forever()


def request(port: int, method: str, path: str) -> int:
    """Bytes of the answer; -1 while there is no server."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        connection.request(method, path, headers=SIGNED)
        num_bytes = 0
        answer = connection.getresponse()
        while block := answer.read(2**20):
            num_bytes += len(block)
        return num_bytes
    except ConnectionRefusedError:
        return -1
    finally:
        connection.close()


def make_cache(folder: Path, num_clips: int) -> LatentCache:
    latents = np.random.default_rng(0).normal(size=(num_clips, *SHAPE)).astype(np.float32)
    clips = [ClipInfo(f"clip-{number}") for number in range(num_clips)]
    CacheWriter(folder, SHAPE, shard_bytes=SHARD_BYTES, context="step").write("train", clips, latents)
    return LatentCache(folder, "train")


def send(folder: Path, url: str) -> None:
    files = RemoteFiles(url)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            files.put_checked(path, path.relative_to(folder).as_posix(), digest_of(path))


def share_memory(kept: Path, folder: Path) -> None:
    """Have the disk cache's files in `folder`: how pages lie in memory makes reading them 20 % faster or slower."""
    found = {digest_of(path): path for path in kept.iterdir() if path.suffix == ".tar"}
    for path in folder.rglob("*.tar"):
        twin = found[digest_of(path)]
        path.unlink()
        path.hardlink_to(twin)


def epoch_s(loader: LatentLoader) -> float:
    started_s = time.perf_counter()
    for batch in loader:
        assert len(batch.latents) == BATCH_SIZE
    return time.perf_counter() - started_s


def in_turns(one: LatentLoader, other: LatentLoader) -> tuple[float, float]:
    """Median seconds of an epoch of each. Who comes first changes: the second of two equal loaders takes 3 % longer."""
    found: dict[LatentLoader, list[float]] = {one: [], other: []}
    for turn in range(10):
        for loader in (one, other) if turn % 2 else (other, one):
            found[loader].append(epoch_s(loader))
    return median(found[one]), median(found[other])


def open_loader(location: Store | Path) -> LatentLoader:
    return LatentLoader(LatentCache(location, "train"), batch_size=BATCH_SIZE, context_steps=4, standardise=False)


def seconds(run: Callable[[], object]) -> float:
    started_s = time.perf_counter()
    run()
    return time.perf_counter() - started_s


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--clips", type=int, default=128)
    parser.add_argument("--mib-s", type=float)
    options = parser.parse_args()
    names = {"ACCESS_KEY_ID": "any", "SECRET_ACCESS_KEY": "any", "DEFAULT_REGION": "us-east-1"}
    os.environ |= {f"AWS_{name}": value for name, value in names.items()}
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name, server() as there, road(there, options.mib_s) as port:
        os.environ["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{port}"
        folder, url = Path(name), "s3://latents/cache"
        cache = make_cache(folder / "cache", options.clips)
        send(folder / "cache", url)
        tars, num_bytes = [commit.files.tar for commit in cache.commits], sum(each.tar_bytes for each in cache.commits)
        files, _ = fsspec.core.url_to_fs(url)

        def get_all(get: Callable[[str], int]) -> None:
            with ThreadPoolExecutor(THREADS) as threads:
                assert sum(threads.map(get, tars)) == num_bytes

        def by_s3fs(name: str) -> int:
            return len(files.cat_file(f"latents/cache/{name}", max_concurrency=1))

        def by_http(name: str) -> int:
            return request(port, "GET", f"/latents/cache/{name}")

        warm = open_store(url, local_dir=f"{folder}/warm")
        loaders = open_loader(folder / "cache"), open_loader(warm)
        epoch_s(loaders[1])  # fetches
        share_memory(folder / "warm", folder / "cache")
        for loader in loaders:  # checks every clip
            epoch_s(loader)
        found: dict[str, list[float]] = {"warm disk cache / folder": [], "cold / s3fs": [], "cold / http.client": []}
        for _ in range(options.rounds):
            local_s, warm_s = in_turns(*loaders)
            cold = open_loader(open_store(url, local_dir=f"{folder}/cold"))
            s3fs_s, http_s = (seconds(partial(get_all, get)) for get in (by_s3fs, by_http))
            cold_s = epoch_s(cold)
            shutil.rmtree(folder / "cold")
            speeds = [num_bytes / 2**20 / each for each in (local_s, warm_s, s3fs_s, http_s, cold_s)]
            text = "MiB/s: folder {:,.0f}, warm {:,.0f}; GETs by s3fs {:,.0f}, by http.client {:,.0f}, cold {:,.0f}"
            print(text.format(*speeds), flush=True)
            for ratios, ratio in zip(found.values(), (local_s / warm_s, s3fs_s / cold_s, http_s / cold_s), strict=True):
                ratios.append(ratio)
        print(", ".join(f"{name} {median(ratios):.3f}" for name, ratios in found.items()))


if __name__ == "__main__":
    main()
