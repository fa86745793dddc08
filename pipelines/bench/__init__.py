"""flcache bench: how fast this machine is, stage by stage."""

from typing import TYPE_CHECKING

from flcache.lazy import load_on_demand

if TYPE_CHECKING:
    from .loader import run
else:
    __getattr__ = load_on_demand(__name__, __file__)  # each loader is measured in a process that loads little else

__all__ = ["run"]
