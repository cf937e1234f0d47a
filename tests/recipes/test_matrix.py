"""The matrix of recipes: what its cells compose to, verl's own checks of them, and the record of what was trained.

No group sets what another one sets (tests/recipes/test_sources.py), and a cell is the union of its files (here). So one
cell for each file stands for all of them in `make test`; `make nightly` composes and checks all 3,200.
"""

from __future__ import annotations

import contextlib
import functools
import io

import pytest

from recipes import matrix
from verl_cov.hooks import versions
from verl_cov.hooks.checks.configuration import notices
from verl_cov.hooks.checks.recipe import check as check_recipe
from verl_cov.recipes import catalogue, compose, sources


def representatives() -> list[catalogue.Selection]:
    """As few cells as have every file of every group, and the one pair that a rule is about.

    The models that are made here have their own tasks, whose responses are too short for the paper's ratios.
    """
    options = {group: list(catalogue.options(group)) for group in catalogue.GROUPS}
    own = [
        catalogue.parse([model, "grpo", "clip_cov", task]) for model in catalogue.MADE for task in catalogue.MADE[model]
    ]
    options["model"] = [model for model in options["model"] if model not in catalogue.MADE]
    options["task"] = [task for task in options["task"] if task not in catalogue.TOYS]
    words = [[names[number % len(names)] for names in options.values()] for number in range(11)]
    assert all({row[column] for row in words} == set(names) for column, names in enumerate(options.values()))
    pair = catalogue.parse(["qwen2.5-7b", "on_policy", "kl_cov", "math"])
    return [pair, *own, *(catalogue.parse(row[:-1], scale=row[-1]) for row in words)]


def check_cell(cell: catalogue.Selection, composed, model) -> None:
    config = compose.resolved(composed)
    for group, name in cell.choices.items():
        assert config.recipe[group] == ("dapo_math" if name in matrix.ALIASES else name)
    with contextlib.redirect_stdout(io.StringIO()):
        check_recipe(config, model)
    no_op = any("KL-Cov will do NOTHING" in notice for notice in notices(config))
    assert no_op is (cell.choices["algorithm"] == "on_policy" and cell.choices["entropy"] == "kl_cov")


def as_number(value):
    """YAML 1.1, which the sources are read with, takes 5e-7 for a string."""
    try:
        return float(value) if isinstance(value, str | int | float) else value
    except ValueError:
        return value


@functools.cache
def verls_own() -> dict:
    return compose.flat(compose.compose([]))


@pytest.mark.parametrize("cell", representatives(), ids=lambda cell: f"{cell.name}-{cell.choices['scale']}")
def test_a_cell_is_the_union_of_its_files_and_verl_accepts_it(cell, untrained_model):
    values = {setting.key: setting.value for setting in sources.by_key(cell).values()}
    parents = {key.rsplit(".", n)[0] for key in values for n in range(1, key.count(".") + 1)}
    union = {key: value for key, value in verls_own().items() if key not in parents} | values
    composed = compose.compose(cell.hydra_overrides())
    assert {k: as_number(v) for k, v in compose.flat(composed).items()} == {k: as_number(v) for k, v in union.items()}
    check_cell(cell, composed, untrained_model)


@pytest.mark.nightly
@pytest.mark.parametrize("model", catalogue.options("model"))
def test_every_cell_is_a_configuration_that_verl_accepts(model, untrained_model):
    """40 cells (algorithm x control) for each of seven tasks; verl's checks fail on the first bad field."""
    cells = list(matrix.cells(model))
    for cell in cells:
        check_cell(cell, compose.compose(cell.hydra_overrides()), untrained_model)
    assert len(cells) == 40 * len(catalogue.MADE.get(model, range(7)))


def _runs():
    """The first run of each experiment, and nightly the others."""
    for name in catalogue.options("experiment"):
        for number, run in enumerate(catalogue.experiment(name).runs or [None]):
            yield pytest.param(name, run, marks=pytest.mark.nightly if number else [])


@pytest.mark.parametrize(("name", "run"), _runs())
def test_the_runs_of_experiments_are_accepted(name, run, untrained_model):
    config = compose.resolved(compose.compose(catalogue.experiment(name).selection(run).hydra_overrides()))
    assert config.recipe.experiment == name
    with contextlib.redirect_stdout(io.StringIO()):
        check_recipe(config, untrained_model)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("actor_rollout_ref.actor.loss_agg_mode=token", "actor_rollout_ref.actor"),
        ("+actor_rollout_ref.rollout.nn=8", "actor_rollout_ref.rollout: "),
        ("+actor_rollout_ref.model.nn=8", "actor_rollout_ref.model: "),
        ("+actor_rollout_ref.ref.nn=8", "actor_rollout_ref.ref: "),
        ("actor_rollout_ref.actor.policy_loss.kl_cov_ratio=0.2", "kl_cov_ratio"),
        ("actor_rollout_ref.rollout.tensor_model_parallel_size=3", "does not divide 8 GPUs"),
        ("data.train_batch_size=30", "no multiple of actor_rollout_ref.actor.ppo_mini_batch_size=32"),
        ("+reward.custom_reward_function.reward_kwargs.max_test=3", "max_test"),
        ("trainer.use_v1=false", "cov_val_entropy needs verl's synchronous V1 trainer"),
        ("trainer.total_training_steps=abc", "trainer.total_training_steps=abc must be"),
        ("actor_rollout_ref.actor.policy_loss.loss_mode=verl_cov.kl_covv", "did you mean verl_cov.kl_cov"),
    ],
)
def test_the_check_can_fail(override, says, untrained_model):
    """That verl's dataclasses and validation are really reached."""
    words = ["qwen2.5-7b", "grpo", "kl_cov", "math", override]
    config = compose.resolved(compose.compose(catalogue.parse(words).hydra_overrides()))
    with pytest.raises(ValueError, match=r".") as raised:
        check_recipe(config, untrained_model)
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)


def _trained():
    """One control for each algorithm, so that each file of both is in one, and nightly all 40 cells."""
    controls, algorithms = (list(catalogue.options(group)) for group in ("entropy", "algorithm"))
    often = {f"{algorithms[n % len(algorithms)]}/{control}" for n, control in enumerate(controls)}
    return [pytest.param(cell, marks=[] if cell in often else pytest.mark.nightly) for cell in matrix.trained()]


@pytest.mark.skipif(versions.installed_release() is not versions.NEWEST, reason="recorded with the newest release")
@pytest.mark.parametrize("cell", _trained())
def test_the_record_of_trained_cells_is_of_the_files_as_they_are(cell):
    """Each algorithm with each control has trained with exactly the configuration that it composes to now."""
    assert len(matrix.trained()) == 40
    assert matrix.up_to_date(cell, matrix.trained()[cell]), "run `python -m recipes.matrix train` and `write`"


@pytest.mark.nightly
def test_the_tables_are_of_the_files_as_they_are():
    assert matrix.tables() in matrix.README.read_text(), "run `python -m recipes.matrix write`"


@pytest.mark.nightly
def test_the_only_model_and_task_that_cannot_go_together():
    tasks = [task for task in catalogue.options("task") if task not in catalogue.TOYS]
    models = [model for model in catalogue.options("model") if model not in catalogue.MADE]
    found = {(model, task) for model in models for task in tasks if matrix.too_long(model, task)}
    assert found == {("deepseek-math-7b", "dapo_math"), ("deepseek-math-7b", "math")}


def test_a_changed_value_makes_a_record_stale():
    cell = matrix.trained()["grpo/kl_cov"]
    other = catalogue.parse([*["sec4-7b"], *cell.overrides, "actor_rollout_ref.actor.ppo_epochs=2"])
    moved = catalogue.parse([*["sec4-7b"], *cell.overrides, "recipe.toy=/elsewhere"])
    digest = matrix.digest(cell)
    assert matrix.digest(moved) == digest != matrix.digest(other)
