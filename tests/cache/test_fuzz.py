"""A few of the mutations that `tests/cache/fuzz.py` makes by the ten thousand."""

from __future__ import annotations

from pathlib import Path

import pytest
from fuzz import fuzz
from small_cache import make_cache


@pytest.mark.parametrize("codec", ["float16", "int8"])
def test_every_mutation_is_harmless_or_an_error_of_ours(tmp_path: Path, codec: str) -> None:
    cache_dir = make_cache(tmp_path / "cache", codec=codec, num_train=5, num_val=2)
    assert not fuzz(cache_dir, count=150, seed=0)
