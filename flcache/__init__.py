"""Encode your videos once, train world models on the latents."""

from pathlib import Path

__version__ = "0.1.0"

_HERE = Path(__file__).parent
if not (_HERE / "pipelines").is_dir():  # a checkout, where `flcache.pipelines` is the folder beside this one
    __path__.append(str(_HERE.parent))
