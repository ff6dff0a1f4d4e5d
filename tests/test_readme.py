"""README names every command, option, configuration key and metric, and every file it points to is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer

from sidecar.cli import COMMANDS, app
from sidecar.config import all_keys
from sidecar.metrics import names

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_an_example(name: str) -> None:
    assert re.search(rf"^\$ mailkeep {name}\b", README, re.MULTILINE)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_named(name: str) -> None:
    group = typer.main.get_command(app)
    command = group.get_command(typer.Context(group), name)  # type: ignore[attr-defined]  # a click Group
    options = [option for parameter in command.params for option in parameter.opts if option.startswith("--")]
    assert [option for option in options if option != "--help" and option not in README] == []


@pytest.mark.parametrize("key", all_keys(), ids=lambda key: f"{key.section}.{key.key}")
def test_every_key_is_in_the_table_with_its_default(key: object) -> None:
    section, name, default, sentence = key  # type: ignore[misc]  # a NamedTuple, seen as object
    assert re.search(rf"^\| `{section}` \| `{name}`( ⟳)? \| `{re.escape(default)}` \| ", README, re.MULTILINE)
    assert sentence in README


@pytest.mark.parametrize("name", names())
def test_every_metric_is_in_the_table(name: str) -> None:
    assert f"| `{name}` |" in README


def test_what_it_points_to_is_there() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target
    for name in re.findall(r"^\| `([a-z.-]+\.(?:toml|service|conf|cf|yml|json))`", README, re.MULTILINE):
        assert (ROOT / "deploy" / name).exists(), name


def test_make_targets_that_it_names_exist() -> None:
    targets = set(re.findall(r"^([a-z0-9]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`?make ([a-z0-9]+)", README)) <= targets
