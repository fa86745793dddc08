"""Encode your videos once, train world models on the latents.

What most users need is here, and loaded when it is first used: importing flcache loads no torch.
"""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flcache.cache import LatentCache, LatentLoader
    from flcache.config import load_config
    from flcache.encoder import LatentVideoModel
    from flcache.predictor import load_predictor
else:
    from flcache.lazy import load_on_demand

    __getattr__ = load_on_demand(__name__, __file__)

__all__ = ["LatentCache", "LatentLoader", "LatentVideoModel", "load_config", "load_predictor"]
__version__ = "0.1.0"

_HERE = Path(__file__).parent
if not (_HERE / "pipelines").is_dir():  # a checkout, where `flcache.pipelines` is the folder beside this one
    __path__.append(str(_HERE.parent))
