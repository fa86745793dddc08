"""The random number generators of a process as JSON, and back: Python's, numpy's, torch's, and the device's."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flcache.training.checkpoint import whole_number

_WORDS = 624
"""Of the state of a Mersenne twister, which Python and numpy share."""


@dataclass(frozen=True)
class RandomState:
    """The state of every generator of a process, each accepted by a generator of its kind."""

    python: tuple[Any, ...]
    numpy: tuple[Any, ...]
    torch: Tensor
    device: Tensor | None
    """None where the device is the CPU."""

    def __post_init__(self) -> None:
        """Raises ValueError, TypeError or RuntimeError for what no generator can have been in."""
        version, words, gauss = self.python
        whole_number(version, 3, 3)
        _check_twister(words[:-1], words[-1])
        random.Random().setstate((version, words, None if gauss is None else float(gauss)))
        kind, words, position, has_gauss, gauss = self.numpy
        _check_twister(words.tolist(), position)
        np.random.RandomState().set_state((kind, words, position, whole_number(has_gauss, 0, 1), float(gauss)))
        torch.Generator().set_state(self.torch)

    def to_json(self) -> dict[str, Any]:
        kind, words, position, has_gauss, gauss = self.numpy
        return {
            "python": self.python,
            "numpy": [kind, words.tolist(), position, has_gauss, gauss],
            "torch": _hex(self.torch),
            "device": None if self.device is None else _hex(self.device),
        }

    @staticmethod
    def from_json(content: dict[str, Any]) -> RandomState:
        """What `to_json` made. Raises what taking apart other content raises; call it in `Checkpoint.reading`."""
        version, state, gauss = content["python"]
        kind, words, *rest = content["numpy"]
        device = content["device"]
        return RandomState(
            python=(version, tuple(state), gauss),
            numpy=(kind, np.array(words, dtype=np.uint32), *rest),
            torch=_unhex(content["torch"]),
            device=None if device is None else _unhex(device),
        )


def random_state(device: torch.device) -> RandomState:
    """The present state of this process."""
    on_device = None if device.type == "cpu" else _generator_module(device).get_rng_state(*_which(device))
    numpy_state: Any = np.random.get_state()
    return RandomState(random.getstate(), numpy_state, torch.get_rng_state(), on_device)


def set_random_state(state: RandomState, device: torch.device) -> None:
    """Go on as the process whose state it was. A device's own state is kept where `state` has none of it."""
    random.setstate(state.python)
    np.random.set_state(state.numpy)
    torch.set_rng_state(state.torch)
    if state.device is not None and device.type != "cpu":
        _generator_module(device).set_rng_state(state.device, *_which(device))


def _check_twister(words: Any, position: Any) -> None:
    """numpy takes any position, and would read beyond the words."""
    if len(words) != _WORDS or not 0 <= whole_number(position) <= _WORDS:
        raise ValueError("not the state of a random number generator")
    for word in words:
        whole_number(word, 0, 2**32 - 1)


def _generator_module(device: torch.device) -> Any:
    return torch.get_device_module(device)


def _which(device: torch.device) -> tuple[torch.device, ...]:
    """mps has one device, and its functions take none."""
    return () if device.type == "mps" else (device,)


def _hex(state: Tensor) -> str:
    words: NDArray[np.uint8] = state.cpu().numpy()
    return words.tobytes().hex()


def _unhex(text: str) -> Tensor:
    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)
