"""What a shell completes in `verl-cov recipes ...`: experiments and their runs, models, algorithms, controls, tasks."""

from __future__ import annotations

from collections.abc import Iterator

import typer


def words(context: typer.Context, incomplete: str) -> Iterator[tuple[str, str]]:
    """Recipes, by what stands before: EXPERIMENT, EXPERIMENT/RUN, or the next word of MODEL ALGORITHM ENTROPY TASK."""
    from verl_cov.recipes import catalogue

    given = list(context.params.get("words") or [])
    parts = incomplete.split("/")
    *before, part = parts if len(parts) > 1 else [*given, incomplete]
    prefix = "/".join(parts[:-1]) + "/" if len(parts) > 1 else ""
    if not before or before[0] not in catalogue.options("model"):
        if prefix:
            found = _runs(before[0]) if len(before) == 1 else {}
        else:  # `recipes run` takes several
            found = {**catalogue.options("experiment"), **({} if given else catalogue.options("model"))}
            if len(near := [name for name in found if name.startswith(part)]) == 1:
                found |= {f"{near[0]}/{run}": about for run, about in _runs(near[0]).items()}
    else:
        groups = catalogue.GROUPS[:-1]  # not the scale
        found = catalogue.options(groups[len(before)]) if len(before) < len(groups) else {}
    for name, about in found.items():
        if name.startswith(part):
            yield f"{prefix}{name}", about


def experiments(incomplete: str) -> Iterator[tuple[str, str]]:
    """Experiments alone."""
    from verl_cov.recipes import catalogue

    return ((name, about) for name, about in catalogue.options("experiment").items() if name.startswith(incomplete))


def scales(incomplete: str) -> Iterator[tuple[str, str]]:
    """Scales alone."""
    from verl_cov.recipes import catalogue

    return ((name, about) for name, about in catalogue.options("scale").items() if name.startswith(incomplete))


def _runs(name: str) -> dict[str, str]:
    from verl_cov.recipes import catalogue

    if name not in catalogue.options("experiment"):
        return {}
    return {run: " ".join(overrides) for run, overrides in catalogue.experiment(name).runs.items()}
