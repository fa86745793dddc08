"""Caches of the first specs, which stated only some fields of an encoder, against runs that state them all."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from small_cache import hard_spec
from trees import tree

from flcache.cache import CacheSpec, create_or_check, latent_differences, make_spec
from flcache.errors import SpecMismatch

FIRST: dict[str, Any] = hard_spec() | {
    "encoder": {"architecture": {"act": "gelu", "sizes": [8, 8]}, "dtype": "float32", "weights": "0" * 64},
    "processor": {"class": "Processor", "size": {"height": 32, "width": 32}},
}


def now(**architecture: Any) -> dict[str, Any]:
    """The same latents as a run states them today."""
    hard = copy.deepcopy(FIRST)
    hard["encoder"]["fields"] = "non-default"
    hard["encoder"]["architecture"] |= {"bias": None, "kernel": "sdpa", **architecture}
    hard["processor"]["pad"] = True
    return hard


def leaves(hard: dict[str, Any], path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = []
    for name, value in hard.items():
        found += leaves(value, (*path, name)) if isinstance(value, dict) else [(*path, name)]
    return found


def altered(hard: dict[str, Any], path: tuple[str, ...], *, remove: bool = False) -> dict[str, Any]:
    """`hard` with another value at `path`, or with none."""
    changed = copy.deepcopy(hard)
    section = changed
    for name in path[:-1]:
        section = section[name]
    section[path[-1]] = "other"
    if remove:
        del section[path[-1]]
    return changed


def names(cache: dict[str, Any], run: dict[str, Any]) -> list[str]:
    return [line.split(":")[0] for line in latent_differences(CacheSpec(cache, {}), CacheSpec(run, {}))]


def test_a_first_cache_goes_on_under_its_own_fingerprint(tmp_path: Path) -> None:
    create_or_check(tmp_path, FIRST, {})
    before = tree(tmp_path)
    found, warnings = create_or_check(tmp_path, now(), {})
    assert found.fingerprint == make_spec(FIRST).fingerprint != make_spec(now()).fingerprint
    assert warnings == [] and tree(tmp_path) == before
    with pytest.raises(SpecMismatch, match=r'architecture\.act: cache has "gelu", this run has "relu"'):
        create_or_check(tmp_path, now(act="relu"), {})


@pytest.mark.parametrize("path", leaves(FIRST), ids=".".join)
@pytest.mark.parametrize("remove", [False, True])
def test_a_field_that_a_first_cache_has_is_compared(path: tuple[str, ...], remove: bool) -> None:
    assert names(FIRST, altered(now(), path, remove=remove)) == [".".join(path)]


@pytest.mark.parametrize("path", leaves(now()), ids=".".join)
@pytest.mark.parametrize("remove", [False, True])
def test_a_cache_of_today_is_compared_in_full(path: tuple[str, ...], remove: bool) -> None:
    assert names(now(), now()) == []
    assert names(now(), altered(now(), path, remove=remove)) == [".".join(path)]
    if path != ("encoder", "fields"):
        assert names(altered(now(), path, remove=remove), now()) == [".".join(path)]


@pytest.mark.parametrize(
    "path", [("clip", "stride"), ("encoder", "adapter"), ("processor", "size", "depth"), ("keep",)]
)
def test_only_fields_of_encoder_and_processor_may_be_lacking(path: tuple[str, ...]) -> None:
    assert names(FIRST, altered(now(), path)) == [".".join(path)]


def test_a_cache_of_today_is_no_cache_of_a_run_that_states_less() -> None:
    assert "encoder.fields" in names(now(), FIRST)
    assert names(FIRST, altered(FIRST, ("encoder", "architecture", "bias"))) == ["encoder.architecture.bias"]
