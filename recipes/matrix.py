"""The matrix of recipes: model x algorithm x control x task. Trains its cells on a CPU and writes recipes/README.md.

    python -m recipes.matrix train [ALGORITHM/ENTROPY ...]   two real steps of each cell that has not run as it is now
    python -m recipes.matrix write                           the tables of recipes/README.md, from files and record

`recipes/ran.json` is the record of what ran: a cell counts as long as its configuration is, to the last value, the one
that was trained, with the same verl (`digest`). tests/recipes/test_matrix.py composes every cell, and fails when the
record or the tables are behind the files.
"""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from verl_cov.recipes import catalogue, compose, machine, plan
from verl_cov.recipes.catalogue import Selection
from verl_cov.recipes.memory import GB
from verl_cov.recipes.progress import Progress
from verl_cov.recipes.train import TrainingFailed
from verl_cov.suggestions import unknown

ROOT = Path(__file__).resolve().parents[1]
RECORD = ROOT / "recipes" / "ran.json"
README = ROOT / "recipes" / "README.md"
STEPS = 2
ALIASES = ("math",)  # the same as another task


def cells(model: str | None = None) -> Iterator[Selection]:
    """Every cell of the paper's models (of one, if named), and of those that are made here, each with its own tasks."""
    algorithms, controls = catalogue.options("algorithm"), catalogue.options("entropy")
    for name in [model] if model else catalogue.options("model"):
        tasks = catalogue.MADE.get(name) or papers_tasks()
        for words in itertools.product([name], algorithms, controls, tasks):
            yield catalogue.parse(words)


def papers_tasks() -> list[str]:
    return [task for task in catalogue.options("task") if task not in (*catalogue.TOYS, *ALIASES)]


def trained() -> dict[str, Selection]:
    """The cells that are trained: each algorithm with each control, as ALGORITHM/ENTROPY.

    From an experiment of the paper, by overriding nothing but model, task and scale.
    """
    swap = ["recipe/model=tiny", "recipe/task=toy", "recipe/scale=cpu"]
    pairs = itertools.product(catalogue.options("algorithm"), catalogue.options("entropy"))
    return {
        f"{algorithm}/{control}": catalogue.parse(
            ["sec4-7b", f"recipe/algorithm={algorithm}", f"recipe/entropy={control}", *swap]
        )
        for algorithm, control in pairs
    }


def digest(selection: Selection) -> str:
    """Names the configuration that a cell composes to, and the verl it is for.

    Not the paths, not where a class of ours lives, and not the node `recipe`, which acts through the keys that refer to
    it.
    """
    config = compose.resolved(compose.compose([*selection.hydra_overrides(), "recipe.name=cell", "recipe.toy=toy"]))
    flat = {key: value for key, value in compose.flat(config).items() if not key.startswith("recipe.")}
    flat = {key: value for key, value in flat.items() if not (key.endswith("_target_") and "verl_cov" in str(value))}
    return compose.digest({"verl": importlib.metadata.version("verl"), **flat})


def record() -> dict[str, dict]:
    return json.loads(RECORD.read_text()) if RECORD.is_file() else {}


def up_to_date(cell: str, selection: Selection) -> bool:
    return record().get(cell, {}).get("digest") == digest(selection)


def train(names: list[str]) -> int:
    """Train what is asked for, or what has not run as it is now. Returns how many failed."""
    todo = {cell: one for cell, one in trained().items() if cell in names or (not names and not up_to_date(cell, one))}
    failed = 0
    plan.make_toy(ROOT / "runs" / "cache")
    for number, (cell, selection) in enumerate(todo.items(), 1):
        started = time.monotonic()
        named = digest(selection)  # before: the files may be edited while it trains
        with tempfile.TemporaryDirectory(prefix="verl-cov-") as folder:
            problem, steps = train_one(selection, Path(folder))
        seconds = time.monotonic() - started
        print(f"{number}/{len(todo)} {cell}: {problem or 'ran'} ({seconds:.0f} s)", flush=True)
        failed += bool(problem)
        if not problem:
            entry = {
                "digest": named,
                "verl": importlib.metadata.version("verl"),
                "device": "cpu",
                "steps": len(steps),
                "entropy": round(steps[-1]["actor/entropy"], 4),
                "score": round(steps[-1]["critic/score/mean"], 4),
            }
            content = dict(sorted({**record(), cell: entry}.items()))
            RECORD.write_text(json.dumps(content, indent=1) + "\n")
    return failed


def train_one(
    selection: Selection, folder: Path, toy: Path = ROOT / "runs" / "cache", data: Path = ROOT / "data"
) -> tuple[str | None, list[dict]]:
    """STEPS steps of verl's trainer, as `verl-cov recipes run` starts it. Returns what went wrong, and the metrics."""
    shorter = (f"trainer.total_training_steps={STEPS}", "trainer.save_freq=-1", "trainer.val_before_train=false")
    once = Selection(selection.choices, selection.experiment, selection.run, (*selection.overrides, *shorter))
    run = plan.planned(once, data, toy, folder)
    try:
        with Progress(Console(quiet=True)) as progress:
            run.train(progress)
    except TrainingFailed as error:
        return f"failed: {error}", []
    steps = [json.loads(line)["data"] for line in run.launch.metrics.read_text().splitlines()]
    return (None if len(steps) == STEPS else f"{len(steps)} steps logged, {STEPS} expected"), steps


# --- the tables -------------------------------------------------------------------------------------------------------

BEGIN, END = "<!-- generated by `python -m recipes.matrix write` -->", "<!-- end of what is generated -->"


def tables() -> str:
    ran = record()
    controls = list(catalogue.options("entropy"))
    lines = ["| algorithm | " + " | ".join(f"`{c}`" for c in controls) + " |", "|---" * (len(controls) + 1) + "|"]
    for algorithm in catalogue.options("algorithm"):
        marks = ["ran" if f"{algorithm}/{control}" in ran else "composed" for control in controls]
        lines.append(f"| `{algorithm}` | " + " | ".join(marks) + " |")

    tasks = papers_tasks()
    per_task = len(catalogue.options("algorithm")) * len(controls)
    scales = [scale for scale in catalogue.options("scale") if scale != "cpu"]
    lines += ["", "| model | " + " | ".join(f"`{task}`" for task in tasks) + " | " + " | ".join(scales) + " |"]
    lines.append("|---" * (1 + len(tasks) + len(scales)) + "|")
    for model in catalogue.options("model"):
        if model in catalogue.MADE:
            continue
        each = [too_long(model, task) or str(per_task) for task in tasks] + [fit(model, scale) for scale in scales]
        lines.append(f"| `{model}` | " + " | ".join(each) + " |")
    return "\n".join(lines)


@functools.cache
def too_long(model: str, task: str) -> str | None:
    """Why a model cannot run a task: its cells compose, and `verl-cov recipes check` refuses them."""
    recipe = compose.compose(catalogue.parse([model, "grpo", "none", task]).hydra_overrides()).recipe
    if recipe.max_model_len <= recipe.context:
        return None
    return f"no: {recipe.max_model_len:,} tokens, {recipe.context:,} positions"


def fit(model: str, scale: str) -> str:
    """Whether a model fits a scale of 80 GB GPUs, by verl_cov/recipes/memory.py."""
    selection = catalogue.parse([model, "grpo", "none", "dapo_math"], scale)
    need = machine.of_config(compose.resolved(compose.compose(selection.hydra_overrides())))
    if need.problem:
        return f"no: {need.problem}"
    return f"{need.state / GB:.0f} GB" + (f" (host: {need.host / GB:.0f} GB a node)" if need.host else "")


def write() -> None:
    before, _, rest = README.read_text().partition(BEGIN)
    README.write_text(f"{before}{BEGIN}\n\n{tables()}\n\n{END}{rest.partition(END)[2]}")


def main() -> int:
    os.environ.setdefault("VERL_PLATFORM", "cpu")
    parser = argparse.ArgumentParser(prog="python -m recipes.matrix", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("what", choices=("train", "write"))
    parser.add_argument("cells", nargs="*", metavar="ALGORITHM/ENTROPY")
    options = parser.parse_args()
    for cell in options.cells:
        if cell not in trained():
            parser.error(unknown("cell", cell, trained()))
    if options.what == "train":
        return train(options.cells)
    write()
    return 0


if __name__ == "__main__":
    sys.exit(main())
