"""`flcache doctor` on this machine, and on environments that are broken on purpose."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flcache.config import load_config
from flcache.pipelines.doctor.decoding import CODECS, REQUEST, SAMPLES
from flcache.pipelines.doctor.packages import gpu
from flcache.pipelines.doctor.places import bucket, disk
from flcache.pipelines.doctor.stage import findings
from flcache.videos import decode_clip
from flcache.videos.synthetic import draw_frames

MAIN = "from flcache.pipelines.cli import main; main()"
BREAK_TORCHVISION = 'raise RuntimeError("Couldn\'t load custom C++ ops")\n'
NO_HUB = "import os; os.environ |= {'HF_ENDPOINT': 'http://127.0.0.1:9', 'HF_HUB_OFFLINE': '0'}"
ASK_HUB = """
import dataclasses, json
from flcache.config import load_config
from flcache.pipelines.doctor.places import hub
print(json.dumps(dataclasses.asdict(hub(load_config(None, ["encoder.name=someone/private"])))))
"""
NO_DECORD = """
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "decord" else find(name, *rest)
"""
SMALL_FILES = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
"""


def doctor(*arguments: str, before: str = "", hide: Path | None = None) -> tuple[int, dict[str, Any], str]:
    """Exit code, findings by name and stderr; `hide` is a folder whose modules come before all others."""
    command = [sys.executable, "-c", f"{before}\n{MAIN}", "doctor", "--json", *arguments]
    path = [str(hide)] if hide else []
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*path, os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=300)
    return done.returncode, {found["name"]: found for found in json.loads(done.stdout)}, done.stderr


@pytest.mark.parametrize("codec", CODECS)
def test_the_samples_show_what_they_say(codec: str) -> None:
    frames = decode_clip(SAMPLES / CODECS[codec], REQUEST, decoder="pyav").frames
    drawn = draw_frames(0, frames=8, size=64, fps=8)
    assert np.abs(frames.astype(float) - drawn).mean() < 12


def test_a_machine_that_works(tmp_path: Path) -> None:
    found = {finding.name: finding for finding in findings(load_config(None, [f"cache.dir={tmp_path}/not/yet/there"]))}
    assert not [finding for finding in found.values() if finding.state == "wrong"]
    assert {f"PyAV, {codec}" for codec in CODECS} <= set(found) and "8 frames" in found["decord, H.264"].found
    assert str(tmp_path) in found["disk"].found and list(tmp_path.iterdir()) == []


def test_a_broken_environment_is_named_with_its_mend(tmp_path: Path) -> None:
    """A torchvision of another torch, no decord, a disk that takes no file of 64 MiB, and no hub."""
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(BREAK_TORCHVISION, encoding="utf-8")
    code, found, stderr = doctor(
        f"cache.dir={tmp_path}",
        f"encoder.name={tmp_path.name}/no-such-model",
        before="\n".join((NO_HUB, NO_DECORD, SMALL_FILES)),
        hide=tmp_path,
    )
    wrong = {name for name, finding in found.items() if finding["state"] == "wrong"}
    assert code == 1 and {"torchvision", "disk", "encoder"} <= wrong
    assert all(finding["mend"] for finding in found.values() if finding["state"] != "ok")
    assert "C++ ops" in found["torchvision"]["found"] and "one index" in found["torchvision"]["mend"]
    assert found["decord"]["state"] == "note" and "pip install" in found["decord"]["mend"]
    assert "PyAV, H.264" in found and "decord, H.264" not in found
    assert "File too large" in found["disk"]["found"] and "cache.dir" in found["disk"]["mend"]
    assert "cannot be reached" in found["encoder"]["found"] and "hf download" in found["encoder"]["mend"]
    assert stderr.splitlines()[-1].startswith("Error: this configuration needs what does not work here: torchvision")


def test_a_hub_that_says_no() -> None:
    class Hub(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(401)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *arguments: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            address = f"http://127.0.0.1:{server.server_address[1]}"
            environment = {**os.environ, "HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0"}
            done = subprocess.run([sys.executable, "-c", ASK_HUB], capture_output=True, env=environment, check=True)
        finally:
            server.shutdown()
            thread.join()
    found = json.loads(done.stdout)
    assert found["state"] == "wrong" and found["needed"] and "401" in found["found"]
    assert "hf auth login" in found["mend"]


def test_a_folder_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/sys")
    found = disk(load_config(None, []))
    assert found.state == "wrong" and not found.needed and "choose another cache.dir" in (found.mend or "")
    assert disk(load_config(None, ["cache.dir=/sys/cache"])).needed
    found = disk(load_config(None, ["cache.dir=s3://bucket/cache", "cache.local_dir=/sys/copies"]))
    assert found.needed and "choose another cache.local_dir" in (found.mend or "")


def test_a_bucket_is_tried(tmp_path: Path) -> None:
    assert not list(bucket(load_config(None, [f"cache.dir={tmp_path}"])))
    (found,) = bucket(load_config(None, [f"cache.dir=file://{tmp_path}"]))
    assert found.state == "ok" and list(tmp_path.iterdir()) == []
    (found,) = bucket(load_config(None, ["cache.dir=file:///sys/cache"]))
    assert found.state == "wrong" and found.needed and "check cache.dir" in (found.mend or "")


def test_a_gpu_is_needed_only_where_one_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert gpu(load_config(None, [])).state == "ok"
    found = gpu(load_config(None, ["encode.device=cuda"]))
    assert found.state == "wrong" and found.needed and "encode.device=auto" in (found.mend or "")
