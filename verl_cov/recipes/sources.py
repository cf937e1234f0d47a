"""Where each number of a recipe comes from: the comment beside it, or above it, in the file that sets it.

Reads the YAML files as text with positions, so that a comment is never a second copy of a fact.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from verl_cov.recipes.catalogue import CONF, Selection


@dataclass(frozen=True)
class Setting:
    """One leaf of one file: `actor_rollout_ref.actor.optim.lr`, its value as written, and why."""

    key: str
    value: Any
    file: str  # relative to verl_cov/conf
    line: int
    why: str


@functools.cache
def settings(file: str) -> tuple[Setting, ...]:
    """The settings of one file (relative to verl_cov/conf, with .yaml), in its order, without those of its defaults."""
    text = (CONF / file).read_text()
    lines = text.splitlines()
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    if not isinstance(root, yaml.MappingNode):
        return ()
    return tuple(_leaves(root, "", "", lines, file))


def _leaves(node: yaml.MappingNode, prefix: str, inherited: str, lines: list[str], file: str) -> Iterator[Setting]:
    for key, value in node.value:
        if not prefix and key.value == "defaults":
            continue
        name = f"{prefix}{key.value}"
        why = _beside(lines[key.start_mark.line], value) or _above(lines, key.start_mark.line) or inherited
        if isinstance(value, yaml.MappingNode) and value.value:
            yield from _leaves(value, f"{name}.", why, lines, file)
        else:
            yield Setting(name, _plain(value), file, key.start_mark.line + 1, why)


def _plain(node: yaml.Node) -> Any:
    return yaml.safe_load(yaml.serialize(node))


def _beside(line: str, value: yaml.Node) -> str:
    """The comment at the end of the line. A # inside a quoted value does not start one."""
    start = value.end_mark.column if isinstance(value, yaml.ScalarNode) else 0
    return line[start:].partition("# ")[2].strip()


def _above(lines: Sequence[str], line: int) -> str:
    """The comment lines directly above. The head of a file describes the file, no setting."""
    block: list[str] = []
    while line > 0 and lines[line - 1].lstrip().startswith("#"):
        line -= 1
        block.insert(0, lines[line].strip().lstrip("# "))
    return " ".join(block) if line > 0 else ""


def files(selection: Selection) -> list[str]:
    """The files a recipe is composed of, relative to verl_cov/conf, in the order in which later ones win."""
    if selection.experiment is None:
        roots = [f"recipe/{group}/{name}" for group, name in selection.choices.items()]
    else:
        roots = [f"experiment/{selection.experiment}"]
    result: list[str] = []
    for root in roots:
        for file in _with_defaults(root, selection.choices):
            if file not in result:
                result.append(file)
    return result


def _with_defaults(config: str, choices: Mapping[str, str]) -> Iterator[str]:
    content = yaml.safe_load((CONF / f"{config}.yaml").read_text())
    entries = list(content.get("defaults", []))
    for entry in entries if "_self_" in entries else [*entries, "_self_"]:
        if entry == "_self_":
            yield f"{config}.yaml"
        elif isinstance(entry, dict):
            for group in entry:
                yield from _with_defaults(f"{group.lstrip('/')}/{choices[group.removeprefix('/recipe/')]}", choices)
        else:
            path = entry.lstrip("/") if entry.startswith("/") else str(Path(config).parent / entry)
            yield from _with_defaults(path, choices)


def by_key(selection: Selection) -> dict[str, Setting]:
    """The setting that wins, for each key that the recipe's files set."""
    return {setting.key: setting for file in files(selection) for setting in settings(file)}
