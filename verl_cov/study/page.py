"""docs/study.md: what was claimed, what was seen, what could not be told. Made from protocols and results alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from verl_cov.law import files
from verl_cov.study.protocol import Protocol
from verl_cov.study.results import Found
from verl_cov.study.shown import Table
from verl_cov.study.statistics import STATISTICS, of_each
from verl_cov.study.verdicts import LEVEL, WAITS, Verdict, interval, judge

HEAD = f"""# The study

The claims of [the paper](https://arxiv.org/abs/2505.22617), put to the test on models small enough for many runs with
seeds on a CPU. Each protocol (which runs, which claims, which thresholds) was written before its first result, and says
what had been tried before it. A claim holds if the whole {LEVEL:.0%} interval of its mean (Student's, over the starts)
lies on the predicted side of the threshold, and does not if the whole interval lies on the other; in between, the study
cannot tell. The intervals are not corrected for their number: of twenty claims without any truth, one would be expected
to get a verdict by chance.
Small models on a CPU can show a mechanism, or that it does not show at this scale; they say nothing of AIME.

`verl-cov study report` makes this page, its numbers and its figures from the files in `docs/study/data`; `verl-cov
study run NAME` makes the files, and `verl-cov study status NAME` says how far it is. The protocols are in
`recipes/study`. [Limits](limits.md) has what else a CPU cannot show.
"""

END = "<!-- end -->"


def write(output: Path, studies: Sequence[tuple[Protocol, Found]], *, embed: bool = False) -> list[Path]:
    """Write the page, and its figures into a folder of the page's name beside it. Returns the paths.

    embed: bring the tables in the other pages of the folder up to date too. Nothing is written before all is drawn.
    """
    from verl_cov.study import figures  # matplotlib

    drawn: dict[Path, bytes] = {}
    parts = [HEAD]
    tables: dict[str, str] = {}  # by the mark that other pages have for them
    for protocol, found in studies:
        parts += _study(protocol, found)
        for figure in protocol.figures:
            path = output.parent / output.stem / protocol.name / f"{figure.name}.png"
            picture = figures.draw(protocol, figure, found.results)
            if picture is not None:
                drawn[path] = picture
                parts.append(f"![{figure.says}]({path.relative_to(output.parent)})\n\n{figure.says}\n")
            else:
                parts.append(f"No run yet for: {figure.says}\n")
        own = {f"<!-- study {protocol.name} {one.name} -->": _numbers(protocol, one, found) for one in protocol.tables}
        tables |= own
        parts += own.values()
        if protocol.settings:
            parts.append(f"### How the runs of {protocol.name} were made\n\n" + _listed(protocol.settings))
        if protocol.tried:
            parts.append(
                f"### What was tried before {protocol.name}\n\n" + "".join(f"- {one}\n" for one in protocol.tried)
            )
    files.write(output, "\n".join(parts).encode())
    for path, picture in drawn.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write(path, picture)
    return [output, *drawn, *(_embed(output.parent, tables) if embed else ())]


def _embed(folder: Path, tables: Mapping[str, str]) -> Iterator[Path]:
    """Bring the tables in other pages of the folder up to date: what is between the mark of a table and `END`.

    tables: by their marks, `<!-- study NAME TABLE -->`. Yields the pages that change.
    """
    for path in sorted(folder.glob("*.md")):
        text = new = path.read_text(encoding="utf-8")
        for mark, table in tables.items():
            before, there, rest = new.partition(mark)
            if there and END in rest:
                new = f"{before}{mark}\n\n{table}\n{END}{rest.partition(END)[2]}"
        if new != text:
            files.write(path, new.encode())
            yield path


def _study(protocol: Protocol, found: Found) -> Iterator[str]:
    yield f"## {protocol.name}\n\n{protocol.about}\n"
    done, every = len(found.results), len(protocol.cells)
    so_far = f"{done} of {every} runs so far" if done < every else f"all {every} runs"
    yield f"Protocol version {protocol.version} (`{protocol.digest}`), {so_far}.\n"
    for problem in found.problems:
        yield f"**Left out:** {problem}\n"
    verdicts = [judge(protocol, claim, found.results) for claim in protocol.claims]
    yield "\n".join(_table(protocol, verdicts)) + "\n"
    if protocol.reading:
        yield "".join(f"- {one}\n" for one in protocol.reading)
    notes = [f"- {verdict.claim.name}: {note}\n" for verdict in verdicts for note in verdict.notes]
    if notes:
        yield "Numbers that runs did not give:\n\n" + "".join(notes)


def _table(protocol: Protocol, verdicts: Sequence[Verdict]) -> Iterator[str]:
    whose = "whose control" if protocol.papers else "in the paper"
    yield f"| claim | {whose} | predicted | statistic | seen | n | verdict | command |"
    yield "|---|---|---|---|---|---|---|---|"
    for verdict in verdicts:
        claim = verdict.claim
        minus = ""
        if claim.minus is not None:
            other = " ".join(f"{name} {' '.join(levels)}" for name, levels in claim.minus.items())
            minus = f", less that of {other}"
        cells = (
            claim.name,
            protocol.whose(claim),
            f"{claim.predicts}: {claim.relation} {claim.threshold:g}",
            STATISTICS[claim.statistic][0] + minus,
            _seen(verdict),
            f"{len(verdict.values)} of {verdict.wanted}",
            verdict.text + (f" ({verdict.done} of {verdict.runs} runs)" if verdict.text == WAITS else ""),
            f"`verl-cov study run {protocol.name} --claim {claim.name}`",
        )
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _numbers(protocol: Protocol, table: Table, found: Found) -> str:
    """A table of numbers with its caption."""
    rows = [
        f"| {table.by} | n | {' | '.join(table.statistics.values())} |",
        "|---|---|" + "---|" * len(table.statistics),
    ]
    levels = protocol.by_level(table.by, table.runs, found.results)
    columns = [_column([of_each(each, results) for results in levels.values()]) for each in table.statistics]
    for level, results, *cells in zip(levels, levels.values(), *columns, strict=True):
        if results:
            rows.append(f"| {level} | {len(results)} | {' | '.join(cells)} |")
    missing = [level for level, results in levels.items() if not results]
    return f"{table.says}\n\n" + "\n".join(rows) + "\n" + (f"\nNo run yet: {', '.join(missing)}.\n" if missing else "")


def _column(levels: Sequence[Sequence[float]]) -> list[str]:
    """`0.123 ± 0.004`, mean and standard error, of each level's numbers; one number of digits for all."""
    found = [interval(values) for values in levels]
    digits = 1 if any(abs(mean) >= 2 for mean, *_ in found) else 3
    return [
        "-" if math.isnan(mean) else f"{mean:.{digits}f}" + ("" if math.isnan(se) else f" ± {se:.{digits}f}")
        for mean, se, *_ in found
    ]


def _seen(verdict: Verdict) -> str:
    """`0.12 ± 0.03 (0.05 to 0.19)`: mean, standard error, interval."""
    if math.isnan(verdict.mean):
        return "-"
    mean, low, high = (0.0 if abs(each) < 1e-9 else each for each in (verdict.mean, verdict.low, verdict.high))
    if math.isnan(verdict.se):
        return f"{mean:.3g}"
    return f"{mean:.3g} ± {verdict.se:.2g} ({low:.3g} to {high:.3g})"


def _listed(settings: Mapping[str, str]) -> str:
    return "".join(f"- {what}: {why}\n" for what, why in settings.items())
