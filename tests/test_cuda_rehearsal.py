"""Encoding, training, reading and evaluation on a CUDA device without memory: a tensor on the wrong device is red.

What it cannot show: numbers, backward passes, streams, speed.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from forked import run_forked
from rehearsal import rehearse
from torch.utils import cpp_extension

from flcache.cache import CODECS
from flcache.predictor import PREDICTORS

GUARD = """
#include <c10/core/impl/DeviceGuardImplInterface.h>
struct Guard : c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::CUDA> {
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
};
C10_REGISTER_GUARD_IMPL(CUDA, Guard);
"""
"""Tells torch that there is a CUDA device."""
PARTS = [
    ("encoding",),
    ("training_from_videos",),
    *(("predicting", kind) for kind in PREDICTORS),
    *(("reading", codec) for codec in CODECS),
    *(("storing", codec) for codec in ("float16", "int8")),
    *(("evaluating", kind) for kind in ("causal", "flow_matching")),
]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++ to build a CUDA device without memory")
    if torch.cuda.is_available():
        pytest.skip("there is a real CUDA device")
    folder = tmp_path_factory.mktemp("guard")
    (folder / "guard.cpp").write_text(GUARD, encoding="utf-8")
    search = [f"-I{path}" for path in cpp_extension.include_paths()] + [
        f"-L{path}" for path in cpp_extension.library_paths()
    ]
    flags = ["-std=c++20", "-shared", "-fPIC", f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"]
    command = [compiler, *flags, str(folder / "guard.cpp"), "-o", str(folder / "guard.so"), *search, "-lc10"]
    subprocess.run(command, check=True, timeout=300)
    return folder / "guard.so"


@pytest.mark.parametrize("part", PARTS, ids="-".join)
def test_everything_is_on_the_device(library: Path, part: tuple[str, ...]) -> None:
    result = run_forked(rehearse, library, *part)
    assert (result.returncode, result.stdout) == (0, "rehearsed\n"), result.stderr


def test_a_tensor_on_the_wrong_device_is_seen(library: Path) -> None:
    result = run_forked(rehearse, library, "misplacing")
    assert result.returncode == 1 and "FakeTensorDeviceMismatchError" in result.stderr
