"""Every cell of the matrix, composed by Hydra and put through the installed verl's own checks; and the record."""

from __future__ import annotations

import contextlib
import io

import pytest
from hydra import initialize_config_module
from omegaconf import OmegaConf

from recipes import matrix
from verl_cov.hooks import versions
from verl_cov.hooks.checks.recipe import check as check_recipe
from verl_cov.recipes import catalogue, compose


@pytest.fixture(autouse=True)
def parse_files_once(monkeypatch):
    """Hydra parses all of verl's YAML for each composition, which is most of its time. The composition stays Hydra's.

    What is kept is plain data: Hydra changes the configurations that it composes from.
    """
    real = OmegaConf.load
    parsed: dict[str, object] = {}

    def load(file):
        text = file.read()
        if text not in parsed:
            parsed[text] = OmegaConf.to_container(real(io.StringIO(text)))
        return OmegaConf.create(parsed[text])

    monkeypatch.setattr(OmegaConf, "load", load)


def _models():
    """The tiny one in every test run, the paper's by `make matrix`."""
    for model in catalogue.options("model"):
        yield pytest.param(model, marks=[] if model == "tiny" else pytest.mark.matrix)


@pytest.mark.parametrize("model", _models())
def test_every_cell_is_a_configuration_that_verl_accepts(model, untrained_model):
    """40 cells (algorithm x control) for each of seven tasks; verl's checks fail on the first bad field."""
    count = 0
    with initialize_config_module(compose.PRIMARY[0], version_base=None):
        for cell in matrix.cells(model):
            config = compose.resolved(compose.compose(cell.hydra_overrides()))
            for group, name in cell.choices.items():
                assert config.recipe[group] == name
            with contextlib.redirect_stdout(io.StringIO()) as said:
                check_recipe(config, untrained_model)
            no_op = "KL-Cov will do NOTHING" in said.getvalue()
            assert no_op is (cell.choices["algorithm"] == "on_policy" and cell.choices["entropy"] == "kl_cov")
            count += 1
    assert count == 40 * (1 if model == "tiny" else 7)


@pytest.mark.parametrize("name", catalogue.options("experiment"))
def test_every_run_of_every_experiment_is_accepted(name, untrained_model):
    found = catalogue.experiment(name)
    with initialize_config_module(compose.PRIMARY[0], version_base=None):
        for run in found.runs or [None]:
            selection = found.selection(run)
            config = compose.resolved(compose.compose(selection.hydra_overrides()))
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


@pytest.mark.skipif(versions.installed_release() is not versions.NEWEST, reason="recorded with the newest release")
def test_the_record_of_trained_cells_is_of_the_files_as_they_are():
    """Each algorithm with each control has trained with exactly the configuration that it composes to now."""
    behind = [cell for cell, selection in matrix.trained().items() if not matrix.up_to_date(cell, selection)]
    assert not behind, "run `python -m recipes.matrix train` and `write`"
    assert len(matrix.record()) == len(matrix.trained()) == 40


@pytest.mark.matrix
def test_the_tables_are_of_the_files_as_they_are():
    assert matrix.tables() in matrix.README.read_text(), "run `python -m recipes.matrix write`"


@pytest.mark.matrix
def test_the_only_model_and_task_that_cannot_go_together():
    tasks = [task for task in catalogue.options("task") if task != "toy"]
    models = [model for model in catalogue.options("model") if model != "tiny"]
    found = {(model, task) for model in models for task in tasks if matrix.too_long(model, task)}
    assert found == {("deepseek-math-7b", "dapo_math"), ("deepseek-math-7b", "math")}


def test_a_changed_value_makes_a_record_stale():
    cell = matrix.trained()["grpo/kl_cov"]
    other = catalogue.parse([*["sec4-7b"], *cell.overrides, "actor_rollout_ref.actor.ppo_epochs=2"])
    moved = catalogue.parse([*["sec4-7b"], *cell.overrides, "recipe.toy=/elsewhere"])
    assert matrix.digest(cell) != matrix.digest(other)
    assert matrix.digest(cell) == matrix.digest(moved)
