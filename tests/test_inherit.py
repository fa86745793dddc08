"""Layers of files: order, conflicts, chains, lines, interpolation."""

from __future__ import annotations

import re
from itertools import permutations
from pathlib import Path

import pytest

from flcache.config.inherit import find_config, overlay, read_config, read_overrides, resolve, shipped_names
from flcache.config.yaml_lines import dotted, read_yaml
from flcache.errors import ConfigError


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test works in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path: str, text: str) -> Path:
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    return file


def values(path: Path) -> dict[str, object]:
    return {dotted(key): entry.value for key, entry in read_config(path).entries.items()}


def message(path: Path) -> str:
    with pytest.raises(ConfigError) as error:
        read_config(path)
    return str(error.value)


def test_later_files_override_earlier_ones_and_the_file_itself_all() -> None:
    for first, second, third in permutations("abc"):
        for name in "abc":
            write(f"{name}.yaml", f"shared: {name}\nonly_{name}: 1\nsection:\n  shared: {name}\n  only_{name}: 1\n")
        main = write("main.yaml", f"inherits: [{first}.yaml, {second}.yaml, {third}.yaml]\nsection:\n  own: 1\n")
        found = values(main)
        assert found["shared"] == found["section.shared"] == third
        assert {f"only_{name}" for name in "abc"} | {f"section.only_{name}" for name in "abc"} <= set(found)
    write("main.yaml", "inherits: [a, b]\nshared: main\n")
    assert values(Path("main.yaml"))["shared"] == "main"


def test_another_encoder_drops_what_is_stated_of_the_one_below() -> None:
    """Beside a name, above it, and by no name at all a statement stays."""
    write("vit.yaml", "encoder: {name: vit, architecture: {width: 8, depth: 2}, dtype: auto}\n")
    own = write("own.yaml", "inherits: [vit]\nencoder: {name: mine, architecture: {width: 4}}\n")
    assert values(own) == {"encoder.name": "mine", "encoder.architecture.width": 4, "encoder.dtype": "auto"}
    for text in ("{name: vit}", "{name: null}", "{architecture: {depth: 2}}"):
        kept = values(write("kept.yaml", f"inherits: [vit]\nencoder: {text}\n"))
        assert kept["encoder.architecture.width"] == 8 and kept["encoder.architecture.depth"] == 2
    by_hand = overlay(read_config(Path("vit.yaml")), read_overrides(["encoder.architecture.depth=3", "encoder.name=x"]))
    assert {dotted(key) for key in by_hand.entries} == {"encoder.architecture.depth", "encoder.name", "encoder.dtype"}


def test_paths_are_relative_to_the_file_that_names_them_with_or_without_yaml() -> None:
    write("deep/er/leaf.yaml", "x: leaf\n")
    write("deep/middle.yaml", "inherits: [er/leaf]\ny: middle\n")
    write("other/beside.yaml", "inherits: ../deep/middle.yaml\n")
    assert values(write("main.yaml", "inherits:\n  - other/beside\n")) == {"x": "leaf", "y": "middle"}


def test_a_file_elsewhere_can_inherit_what_is_shipped() -> None:
    main = write("main.yaml", "inherits: [backbones/vjepa2]\n")
    assert values(main)["encoder.architecture.model_type"] == "vjepa2"
    write("backbones/vjepa2.yaml", "x: mine\n")
    assert values(main) == {"x": "mine"}, "the file beside comes first"


def test_every_conflicting_key_gives_one_notice_with_values_and_files() -> None:
    write("a.yaml", "same: 1\nseed: 1\ntraining:\n  steps: 10\n")
    write("b.yaml", "same: 1\nseed: 2\n")
    layers = read_config(write("main.yaml", "inherits: [a, b]\nseed: 3\n\ntraining:\n  steps: 20\n"))
    assert [str(conflict) for conflict in layers.conflicts] == [
        "seed: 1 (a.yaml:2) -> 2 (b.yaml:2) -> 3 (main.yaml:2)",
        "training.steps: 10 (a.yaml:4) -> 20 (main.yaml:5)",
    ]
    assert str(layers.entries["same",].origin) == "b.yaml:1"


def test_a_value_in_place_of_a_section_is_a_conflict_and_an_empty_section_is_none() -> None:
    write("a.yaml", "size:\n  edge: 64\nfields:\n  x: 1\n")
    layers = read_config(write("main.yaml", "inherits: [a]\nsize: 32\nfields: {}\n"))
    assert [str(conflict) for conflict in layers.conflicts] == ["size: 64 (a.yaml:2) -> 32 (main.yaml:2)"]
    assert {dotted(key): entry.value for key, entry in layers.entries.items()} == {"size": 32, "fields.x": 1}


def test_circles_show_the_chain() -> None:
    write("b.yaml", "inherits: [a.yaml]\n")
    assert message(write("a.yaml", "inherits: [b.yaml]\n")).startswith("a.yaml -> b.yaml -> a.yaml: ")
    assert message(write("self.yaml", "inherits: [self]\n")).startswith("self.yaml -> self.yaml: ")


def test_a_missing_file_shows_line_and_chain() -> None:
    write("b.yaml", "x: 1\ninherits:\n  - gone.yaml\n")
    text = message(write("a.yaml", "inherits: [b.yaml]\n"))
    assert text.startswith("b.yaml:2: inherits gone.yaml") and "a.yaml -> b.yaml -> gone.yaml" in text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: 1\nb: [1\n", r"bad\.yaml:\d: not valid YAML"),
        ("a: 1\nb: 2\na: 3\n", r"bad\.yaml:3: a is on line 1 already"),
        ("s:\n  a: 1\n  a: 1\n", r"bad\.yaml:3: s\.a is on line 2 already"),
        ("- a\n", r"bad\.yaml:1: expected `key: value` lines"),
        ("a: &x {b: *x}\n", r"bad\.yaml:1: .* nested deeper"),
        ("a: &x [*x]\n", r"bad\.yaml:1: not valid YAML"),
        ("a: !!python/object/apply:os.getcwd []\n", r"bad\.yaml:1: not valid YAML"),
        ("a: 1\n---\nb: 1\n", r"bad\.yaml:2: not valid YAML"),
        ("inherits: 3\n", r"bad\.yaml:1: inherits: expected a list of files, got 3"),
        ("inherits:\n  a: b\n", r"bad\.yaml:2: inherits: expected a list of files"),
    ],
)
def test_what_is_not_a_configuration_is_refused_with_its_line(text: str, expected: str) -> None:
    assert re.match(expected, message(write("bad.yaml", text)))


def test_bytes_that_are_no_text_and_folders_are_refused() -> None:
    Path("bad.yaml").write_bytes(b"\xff\xfe\x00")
    assert "not UTF-8" in message(Path("bad.yaml"))
    Path("folder.yaml").mkdir()
    assert "cannot be read" in message(Path("folder.yaml"))


def test_words_and_numbers_are_what_they_look_like() -> None:
    entries = read_yaml("a: no\nb: 5e-4\nc: true\nd: 2024-01-01\ne: trueish\nf: -1e3\ng: 1.5e+2\n", "text")
    assert [entry.value for entry in entries.values()] == ["no", 5e-4, True, "2024-01-01", "trueish", -1000.0, 150.0]


def test_overrides_are_yaml_and_the_later_counts() -> None:
    layers = read_overrides(["a.b=5e-4", "c={x: 1, y: [1, 2]}", "c.x=2", "d=", "e=k=v", "a.b=1"])
    assert {dotted(key): entry.value for key, entry in layers.entries.items()} == {
        "a.b": 1,
        "c.x": 2,
        "c.y": [1, 2],
        "d": None,
        "e": "k=v",
    }
    assert {str(entry.origin) for entry in layers.entries.values()} == {"command line"} and not layers.conflicts


@pytest.mark.parametrize("override", ["steps", "=3", "a..b=3", "a=[1", "a={x: 1, x: 2}"])
def test_a_wrong_override_is_named(override: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(override) if "{" not in override else "command line"):
        read_overrides([override])


def test_interpolation_sees_files_defaults_and_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDEOS", "/data")
    monkeypatch.delenv("GONE", raising=False)
    text = "a: ${oc.env:VIDEOS}/x\nb: ${s.c}\ns:\n  c: ${seed}\nd: [1, '${seed}']\ne: ${oc.env:GONE}\nf: ${nope}\n"
    resolved, problems = resolve(read_yaml(text, "text"), {"seed": 7})
    found = {dotted(key): entry.value for key, entry in resolved.items()}
    assert found == {"a": "/data/x", "b": 7, "s.c": 7, "d": [1, 7]}
    assert problems["e",] == "the environment variable GONE is not set"
    assert "nope" in problems["f",]


def test_a_name_is_a_file_or_a_shipped_one() -> None:
    assert shipped_names() == ["demo", "vjepa2_kinetics_400"]
    assert find_config("demo") == find_config("demo.yaml")
    write("demo.yaml", "seed: 1\n")
    assert find_config("demo.yaml") == Path("demo.yaml") and find_config("demo").is_absolute()
    with pytest.raises(ConfigError, match=r"nope: no such file.*shipped are demo, vjepa2_kinetics_400"):
        find_config("nope")
