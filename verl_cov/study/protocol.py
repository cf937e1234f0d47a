"""A study's protocol: what is run, and what is claimed of it, decided before the first result.

A protocol is a file `recipes/study/NAME.yaml`:

    version: 1                     # raised whenever anything below changes; results say which one made them
    about: one sentence
    tried: [what was tried before, a sentence each]
    settings: {key: why}           # prose for the report
    base: [overrides of every run; {factor} stands for a level]
    recipe: tiny/{algorithm}/{control}/{task}
    factors:                       # factor -> level -> overrides, or a list of levels without any
      control: {none: [], kl_cov: [recipe.ppo_kl_coef=2]}
      start: [0, 1, 2]
    usual: {control: none, start: 0}          # the level of a factor that a block or a claim does not name
    replicate: start               # the factor whose levels are the pairs of every test
    runs: [{start: [0, 1, 2], control: [none, kl_cov]}, ...]    # blocks; in a block the first factor changes slowest
    claims: ...                    # see `Claim`
    figures: ...                   # see `Figure`
    tables: ...                    # see `Table`
    papers: {level: paper}         # what `paper: its own` means, by a level of the runs
    reading: [how a claim's words are counted, a sentence each]

The last four and `report` only say how results are shown: they may change after the first one.
A factor's level may name a file of the recipes in `{factor}` of `recipe`, by its overrides `recipe/GROUP=FILE`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from verl_cov.recipes import catalogue
from verl_cov.recipes.catalogue import Selection
from verl_cov.study.factors import Chosen, Levels, check, chosen, levels_of, product
from verl_cov.study.result import Result
from verl_cov.study.shown import Figure, Table, read_figure, read_table
from verl_cov.study.statistics import STATISTICS
from verl_cov.suggestions import unknown

FOLDER = Path(__file__).parents[2] / "recipes" / "study"  # of a checkout; a wheel has no studies

ITS_OWN = "its own"


class BadProtocol(ValueError):
    """The protocol's file is not one. The message names the file, the field and the fix."""


@dataclass(frozen=True)
class Cell:
    """One run of a study. name: of its folder and its file. levels: of every factor. words: the recipe's."""

    name: str
    levels: Levels = field(hash=False)
    words: tuple[str, ...]

    @property
    def selection(self) -> Selection:
        """The recipe. Raises UnknownRecipe."""
        return catalogue.parse([*self.words, f"recipe.name={self.name}"])

    @property
    def steps(self) -> int | None:
        """Training steps, if the words say so."""
        said = [word.partition("=")[2] for word in self.words if word.startswith("trainer.total_training_steps=")]
        return int(said[-1]) if said else None


@dataclass(frozen=True)
class Claim:
    """A claim of the paper, and how it is put to the test.

    paper: where it stands. predicts: in words. statistic: a name of :mod:`verl_cov.study.statistics`. runs: the runs
    that it is computed of, for each level of `Protocol.replicate`. minus: levels that the other run of each pair has
    instead; the value is then the difference. relation, threshold: what is predicted of the mean, such as > 0.
    """

    name: str
    paper: str
    predicts: str
    statistic: str
    runs: Chosen
    minus: Chosen | None
    relation: str
    threshold: float


@dataclass(frozen=True)
class Protocol:
    """A protocol as it was read. digest: names what was decided. cells: in the order to be run in."""

    name: str
    version: int
    digest: str
    about: str
    tried: tuple[str, ...]
    settings: Mapping[str, str]
    reported: bool
    replicate: str
    usual: Levels
    cells: tuple[Cell, ...]
    claims: tuple[Claim, ...]
    figures: tuple[Figure, ...]
    tables: tuple[Table, ...]
    papers: Mapping[str, str]
    reading: tuple[str, ...]
    path: Path = field(compare=False)

    def chosen(self, runs: Chosen) -> list[Cell]:
        """The cells that `runs` means, in the order of its levels; of the replicate all that there are."""
        others = {name: (level,) for name, level in self.usual.items() if name != self.replicate}
        wanted = {**others, **runs}
        found = [cell for cell in self.cells if all(cell.levels[name] in wanted[name] for name in wanted)]
        return sorted(found, key=lambda cell: [wanted[name].index(cell.levels[name]) for name in runs])

    def by_level(self, by: str, runs: Chosen, results: Mapping[str, Result]) -> dict[str, list[Result]]:
        """The results that there are of `runs`, by their level of the factor `by`, in the order of its levels."""
        cells = self.chosen(runs)
        levels = runs.get(by, ()) or dict.fromkeys(cell.levels[by] for cell in cells)
        return {
            level: [results[cell.name] for cell in cells if cell.levels[by] == level and cell.name in results]
            for level in levels
        }

    def cells_of(self, claim: Claim) -> list[Cell]:
        """The cells that a claim needs."""
        other = [] if claim.minus is None else self.chosen({**claim.runs, **claim.minus})
        return list(dict.fromkeys([*self.chosen(claim.runs), *other]))

    def whose(self, claim: Claim) -> str:
        """Where a claim stands; for `ITS_OWN` the paper of the control that it is about."""
        levels = [level for levels in claim.runs.values() for level in levels] if claim.paper == ITS_OWN else []
        return next((self.papers[level] for level in levels if level in self.papers), claim.paper)

    def claim(self, name: str) -> Claim:
        """Raises ValueError for an unknown name."""
        known = {claim.name: claim for claim in self.claims}
        if name not in known:
            raise ValueError(unknown(f"claim of {self.name}", name, known))
        return known[name]


def names(folder: Path = FOLDER) -> list[str]:
    """The studies in `folder`."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def load(name: str, folder: Path = FOLDER) -> Protocol:
    """The study of that name, or the protocol in the file `name`. Raises ValueError: unknown, or no protocol."""
    path = Path(name) if name.endswith((".yaml", ".yml")) else folder / f"{name}.yaml"
    if not path.is_file():
        if not names(folder):
            raise ValueError(f"there are no studies in {folder}: give --protocols FOLDER, or the file of one")
        raise ValueError(unknown("study", name, names(folder)))
    return read(path)


def read(path: Path) -> Protocol:
    """The protocol in a file. Raises BadProtocol."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise BadProtocol("it must be a mapping with version, runs and claims")
        return _protocol(path, content)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadProtocol(f"{path} is no YAML: {' '.join(str(error).split())}") from None
    except KeyError as error:
        raise BadProtocol(f"{path}: the field {error.args[0]} is missing") from None
    except (ValueError, TypeError, AttributeError) as error:
        raise BadProtocol(f"{path}: {error}") from None


SHOWN = ("report", "figures", "tables", "papers", "reading")
_FIELDS: dict[str, type] = {
    **dict.fromkeys(("about", "recipe", "replicate"), str),
    **dict.fromkeys(("tried", "base", "runs", "reading"), list),
    **dict.fromkeys(("settings", "factors", "usual", "claims", "figures", "tables", "papers"), dict),
    "version": int,
    "report": bool,
}
_KINDS = {str: "text", list: "a list", dict: "a mapping", int: "a whole number", bool: "true or false"}


def _check_kinds(content: Mapping[str, Any]) -> None:
    """Raise ValueError, with the field, for one that is unknown or of another kind."""
    for name, value in content.items():
        if name not in _FIELDS:
            raise ValueError(unknown("field", str(name), sorted(_FIELDS)))
        if type(value) is not _FIELDS[name]:
            raise ValueError(f"{name} must be {_KINDS[_FIELDS[name]]}, not {value!r}")
    for name in ("claims", "figures", "tables"):
        for entry, value in content.get(name, {}).items():
            if not isinstance(value, dict):
                raise ValueError(f"{name}: {entry} must be a mapping, not {value!r}")
    for block in content["runs"]:
        if not isinstance(block, dict):
            raise ValueError(f"runs: a block must be a mapping, such as {{start: [0, 1]}}, not {block!r}")


def _protocol(path: Path, content: dict[str, Any]) -> Protocol:
    _check_kinds(content)
    factors = {str(name): levels_of(levels) for name, levels in content["factors"].items()}
    usual = {name: str(content["usual"].get(name, next(iter(levels)))) for name, levels in factors.items()}
    replicate = str(content["replicate"])
    if replicate not in factors:
        raise ValueError(unknown("factor (replicate)", replicate, factors))
    check({name: (level,) for name, level in usual.items()}, factors, "usual")
    recipe, base = str(content["recipe"]), [str(word) for word in content.get("base", [])]
    cells: dict[str, Cell] = {}
    for block in content["runs"]:
        for levels in product(chosen(block, factors, "runs"), usual):
            name = "-".join(levels.values())
            words = [word for factor, level in levels.items() for word in factors[factor][level]]
            filled = tuple(word.format(**levels) for word in (recipe, *base, *words))
            cells.setdefault(name, Cell(name, levels, filled))
    protocol = Protocol(
        name=path.stem,
        version=content["version"],
        digest=_digest(content),
        about=str(content.get("about", "")),
        tried=tuple(map(str, content.get("tried", ()))),
        settings={str(key): str(why) for key, why in content.get("settings", {}).items()},
        reported=bool(content.get("report", True)),
        replicate=replicate,
        usual=usual,
        cells=tuple(cells.values()),
        claims=tuple(_claim(str(name), claim, factors) for name, claim in content.get("claims", {}).items()),
        figures=tuple(read_figure(str(name), figure, factors) for name, figure in content.get("figures", {}).items()),
        tables=tuple(read_table(str(name), table, factors) for name, table in content.get("tables", {}).items()),
        papers={str(level): str(paper) for level, paper in content.get("papers", {}).items()},
        reading=tuple(map(str, content.get("reading", ()))),
        path=path,
    )
    known = [level for levels in factors.values() for level in levels]
    for level in protocol.papers:
        if level not in known:
            raise ValueError(unknown("level (papers)", level, known))
    for claim in protocol.claims:
        for part in (claim.runs, {**claim.runs, **(claim.minus or {})}):
            if not protocol.chosen(part):
                raise ValueError(f"the claim {claim.name} is of runs that are not among `runs`: {dict(part)}")
    for cell in protocol.cells:
        cell.selection.folder  # noqa: B018  a recipe or name that cannot be is told now, and not after a night
    return protocol


def _digest(content: Mapping[str, Any]) -> str:
    """Sixteen hex digits that name what was decided: not how it is shown."""
    decided = {key: value for key, value in content.items() if key not in SHOWN}
    return hashlib.sha256(json.dumps(decided, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _claim(name: str, given: Mapping[str, Any], factors: Mapping[str, Mapping[str, object]]) -> Claim:
    relation, _, threshold = str(given["holds"]).partition(" ")
    if relation not in ("<", ">"):
        raise ValueError(f"the claim {name}: holds={given['holds']!r} must be like '> 0' or '< 0.05'")
    if given["statistic"] not in STATISTICS:
        raise ValueError(unknown(f"statistic (claim {name})", str(given["statistic"]), STATISTICS))
    minus = given.get("minus")
    return Claim(
        name=name,
        paper=str(given["paper"]),
        predicts=str(given["predicts"]),
        statistic=str(given["statistic"]),
        runs=chosen(given["runs"], factors, f"claim {name}"),
        minus=None if minus is None else chosen(minus, factors, f"claim {name}"),
        relation=relation,
        threshold=float(threshold),
    )
