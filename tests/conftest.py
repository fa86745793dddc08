"""Fixtures shared by all tests: real videos and a real browser, where they are at hand, and a real S3 server."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from bad_road import bad_road
from selenium.webdriver import Chrome, ChromeOptions, ChromeService

os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is imported; tests run side by side, and so do their processes
os.environ["HF_HUB_OFFLINE"] = "1"  # a checkpoint that is nowhere: not looked for on a network for 20 s

IN_MEMORY = Path("/dev/shm")
if IN_MEMORY.is_dir() and shutil.disk_usage(IN_MEMORY).free > 4 * 2**30:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(IN_MEMORY))  # on a disk, to write a file again takes 3 ms

SERVER = "from moto.server import main; main()"
REPOSITORY = Path(__file__).resolve().parent.parent
BROWSER_FLAGS = (
    "headless",
    "no-sandbox",
    "disable-gpu",
    "disable-quic",
    "no-first-run",
    "disable-background-networking",
    "disable-component-update",
    "disable-sync",
)


@pytest.fixture(scope="session")
def shared_videos() -> Path:
    """Real good, odd and bad videos with Kinetics annotations; skips where the folder is absent."""
    folder = REPOSITORY.parent / "shared" / "videos"
    if not folder.is_dir():
        pytest.skip("no ../shared/videos beside the checkout")
    return folder


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    """A headless Chromium that keeps its console and what it asks the network for; skips where there is none."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("no chromium and chromedriver on this machine (Debian: chromium, chromium-driver)")
    options = ChromeOptions()
    options.binary_location = chromium
    for flag in BROWSER_FLAGS:
        options.add_argument(f"--{flag}")
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('chromium')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    session = Chrome(options=options, service=ChromeService(driver))
    yield session
    session.quit()


@pytest.fixture(scope="session", autouse=True)
def heeded_interrupts() -> Iterator[None]:
    """SIGINT raises here and in what tests start, also where a shell runs them in the background and ignores it."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)


@pytest.fixture(scope="session")
def server() -> Iterator[int]:
    """The port of an S3 server on localhost."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    command = [sys.executable, "-c", SERVER, "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert process.poll() is None
            time.sleep(0.1)
        yield port
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def bucket(server: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """A URL of a fresh folder, reached over a road that loses, cuts and spoils."""
    for name, value in {"ACCESS_KEY_ID": "any", "SECRET_ACCESS_KEY": "any", "DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    with socket.create_connection(("127.0.0.1", server)) as ready:
        ready.sendall(b"PUT /latents HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        assert b"HTTP/1.1 " in ready.recv(4096)
    with bad_road(server, fail=0.05, cut=0.03, flip=0.03) as port:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        yield f"s3://latents/{random.randrange(2**60)}"
