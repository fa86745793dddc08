"""Checks of the Python packages, and of the device that torch computes on."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import platform
import shutil
import subprocess
import sys

from flcache.config import Config

from .finding import Finding

_IMPORT_S = 120


def python() -> Finding:
    return Finding("python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}")


def torch() -> Finding:
    importlib.import_module("torch")
    return Finding("torch", "ok", importlib.metadata.version("torch"))


def torchvision() -> Finding:
    """Imported in a process of its own: flcache declares operators that a torchvision of another torch cannot load."""
    installed, version = importlib.metadata.version("torch"), _version("torchvision")
    mend = f"install torch and torchvision {_fitting(installed)} from one index, see https://pytorch.org/get-started"
    if version is None:
        return Finding("torchvision", "wrong", "not installed: the processors of transformers need it", mend, True)
    raw = _import_alone("import torchvision")
    if raw is None:
        return Finding("torchvision", "ok", f"{version}, beside torch {installed}")
    if _import_alone("from flcache.encoder.torchvision_ops import ensure_torchvision; ensure_torchvision()") is None:
        found = f"{version} is built for another torch than {installed}; flcache needs none of its compiled operators"
        return Finding("torchvision", "note", found, mend)
    return Finding("torchvision", "wrong", f"{version} does not load beside torch {installed}: {raw}", mend, True)


def transformers() -> Finding:
    from flcache.encoder.torchvision_ops import import_transformers

    return Finding("transformers", "ok", str(import_transformers().__version__))


def gpu(config: Config) -> Finding:
    """The GPU that torch sees, or why it sees none."""
    import torch

    wanted = [str(device) for device in (config.encode.device, config.training.device)]
    needed = any(device.startswith("cuda") for device in wanted)
    if torch.cuda.is_available():
        count, memory = torch.cuda.device_count(), torch.cuda.get_device_properties(0).total_memory
        found = f"{count} x {torch.cuda.get_device_name(0)}, {memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"
        return Finding("GPU", "ok", f"{found}, driver {_driver() or 'unknown'}")
    if (driver := _driver()) is None:
        mps = torch.backends.mps.is_available()
        found = "Apple's MPS" if mps else "none: the CPU computes"
        if needed:
            return Finding("GPU", "wrong", found, "set encode.device=auto and training.device=auto", True)
        return Finding("GPU", "ok", found)
    if torch.version.cuda is None:
        found = f"there is one (driver {driver}), but torch {torch.__version__} is built for CPUs alone"
        return Finding("GPU", "wrong", found, "install a torch for CUDA, see https://pytorch.org/get-started", needed)
    found = f"torch for CUDA {torch.version.cuda} cannot use the one of driver {driver}"
    return Finding("GPU", "wrong", found, "update the driver, or install a torch for the CUDA it supports", needed)


def bfloat16(config: Config) -> Finding:
    """What `auto` takes for encoding and training, and whether bfloat16 can be asked for."""
    import torch

    from flcache.encoder import has_bfloat16

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if has_bfloat16(device):
        return Finding("bfloat16", "ok", "the GPU has it: auto takes it")
    if device == "cuda" and (config.encoder.dtype == "bfloat16" or config.training.precision == "bf16"):
        mend = "set encoder.dtype=auto and training.precision=auto"
        return Finding("bfloat16", "note", "this GPU only emulates it, which is slow", mend)
    return Finding("bfloat16", "ok", f"not on this {'GPU' if device == 'cuda' else 'CPU'}: auto is float32")


def ray() -> Finding:
    if (version := _version("ray")) is None:
        return Finding("Ray", "ok", 'not installed; only --engine ray needs it: pip install "flcache[ray]"')
    importlib.import_module("ray")
    return Finding("Ray", "ok", version)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _fitting(torch_version: str) -> str:
    """The torchvision of a torch: 0.23 of 2.8, 0.24 of 2.9, and so on."""
    minor = int(torch_version.split(".")[1])
    return f"0.{minor + 15}.*"


def _import_alone(statement: str) -> str | None:
    """None where a fresh interpreter runs it, else the last line of what it says."""
    done = subprocess.run(
        [sys.executable, "-c", statement], capture_output=True, text=True, check=False, timeout=_IMPORT_S
    )
    return None if done.returncode == 0 else (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]


def _driver() -> str | None:
    """The version of NVIDIA's driver; None where there is none."""
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    return done.stdout.split("\n")[0].strip() or None if done.returncode == 0 else None
