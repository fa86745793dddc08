"""Fixtures shared by all tests: real videos and a real browser, where they are at hand."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium.webdriver import Chrome, ChromeOptions, ChromeService

os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is imported; tests run side by side, and so do their processes
os.environ["HF_HUB_OFFLINE"] = "1"  # a checkpoint that is nowhere: not looked for on a network for 20 s

IN_MEMORY = Path("/dev/shm")
if IN_MEMORY.is_dir() and shutil.disk_usage(IN_MEMORY).free > 4 * 2**30:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(IN_MEMORY))  # on a disk, to write a file again takes 3 ms

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
