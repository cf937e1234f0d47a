"""The average over the validation sets, by the methods of verl's own trainers."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
from verl.trainer.ppo.v1.trainer_base import PPOTrainer

from tests.hooks.test_start import RUN, config
from verl_cov.hooks import reporting

# Generations of each set in the paper's validation, and the accuracies and "Avg." of its Table 2, in percent.
SETS = dict(aime24=960, aime25=960, amc=2656, math500=500, omni_math=2821, olympiad=675, minerva=272)
TABLE_2 = {
    "7B GRPO": ([21.2, 9.6, 58.7, 78.8, 27.9, 40.7, 36.7], 38.6, 39.1),
    "7B clip-higher": ([18.1, 11.5, 56.6, 79.2, 29.8, 43.3, 40.4], 38.8, 39.8),
    "7B Clip-Cov": ([22.1, 15.8, 58.2, 80.4, 30.5, 44.1, 41.1], 40.4, 41.7),
    "7B KL-Cov": ([22.6, 12.9, 61.4, 80.8, 29.1, 42.6, 38.2], 40.6, 41.1),
    "32B GRPO": ([21.8, 16.2, 69.7, 84.2, 35.2, 43.6, 45.5], 45.8, 45.2),
    "32B clip-higher": ([35.6, 22.3, 69.5, 77.2, 35.1, 42.5, 43.0], 47.2, 46.5),
    "32B Clip-Cov": ([32.3, 22.7, 67.2, 87.0, 42.0, 57.2, 46.0], 50.3, 50.6),
    "32B KL-Cov": ([36.8, 30.8, 74.5, 84.6, 39.1, 49.0, 46.3], 52.2, 51.6),
}


# verl 0.9.0's mean is over the generations that came; 0.9.1's has a 0 for each that did not.
COUNTS_THE_LOST = "expected_acc_counts" in inspect.signature(PPOTrainer._val_metrics_update).parameters


def trainer(version: str, *overrides: str):
    """A trainer that has its configuration and nothing else."""
    if version == "V1":
        from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync as Trainer
    else:
        from verl.trainer.ppo.ray_trainer import RayPPOTrainer as Trainer
    made = Trainer.__new__(Trainer)
    made.config = config(*RUN, *overrides)
    return made


def validated(version: str, accuracies: list[float], *overrides: str, lost: int = 0) -> dict[str, float]:
    """What the trainer logs of a validation in which each set has this accuracy; the last ``lost`` never came."""
    names, acc = [], []
    for (name, count), percent in zip(SETS.items(), accuracies, strict=True):
        right = round(count * percent / 100)
        names += [name] * count
        acc += [1.0] * right + [0.0] * (count - right)
    uids = [str(at) for at in range(len(names))]
    expected = dict.fromkeys(zip(names, uids, strict=True), 1)
    keep = len(names) - lost
    arguments = (names[:keep], uids[:keep], {"reward": acc[:keep], "acc": acc[:keep]}, [])
    if version == "V1":
        more = {"expected_acc_counts": expected} if COUNTS_THE_LOST else {}
        return trainer(version, *overrides)._val_metrics_update(*arguments, **more)
    return trainer(version, *overrides)._val_metrics_update(np.array(arguments[0]), *arguments[1:])


@pytest.mark.parametrize("version", ["V1", "legacy"])
def test_the_average_is_that_of_the_papers_table_2(version):
    accuracies, average, plain = TABLE_2["7B GRPO"]
    found = validated(version, accuracies)
    assert round(100 * found["val-cov/acc/sample_weighted"], 1) == average
    assert round(100 * found["val-cov/acc/plain_mean"], 1) == plain
    assert found["val-cov/generations"] == sum(SETS.values()) == 8844
    # verl's own numbers stand beside it, untouched, and nothing of ours under their names.
    means = {key: value for key, value in found.items() if key.startswith("val-core/")}
    assert len(means) == len(SETS)
    assert found["val-core/aime24/acc/mean@1"] == pytest.approx(0.212, abs=1e-3)


@pytest.mark.parametrize("row", TABLE_2)
def test_so_are_the_other_rows_to_a_tenth_of_a_point(row):
    """The columns are rounded, and the sizes of the sets partly inferred."""
    accuracies, average, plain = TABLE_2[row]
    found = validated("V1", accuracies)
    assert 100 * found["val-cov/acc/sample_weighted"] == pytest.approx(average, abs=0.11)
    assert 100 * found["val-cov/acc/plain_mean"] == pytest.approx(plain, abs=0.1)


def test_generations_that_failed_count_as_in_verls_own_mean():
    found = validated("V1", [50.0] * 7, lost=272)
    assert found["val-cov/generations"] == 8844 - 272  # a set of which nothing came has no accuracy, in verl too
    found = validated("V1", [100.0] * 7, lost=136)
    minerva, counted = (0.5, 8844) if COUNTS_THE_LOST else (1, 8844 - 136)
    assert found["val-core/minerva/acc/mean@1"] == minerva
    assert found["val-cov/generations"] == counted
    assert found["val-cov/acc/sample_weighted"] == pytest.approx((8844 - 136) / counted)
    assert found["val-cov/acc/plain_mean"] == pytest.approx((6 + minerva) / 7)


def test_nothing_is_added_to_a_run_that_asks_for_nothing_of_ours():
    off = "actor_rollout_ref.actor.policy_loss.cov_metrics=off"
    assert not any(key.startswith("val-cov/") for key in validated("V1", [50.0] * 7, off))
    made = trainer("V1")
    made.config.actor_rollout_ref.actor.policy_loss = {
        "loss_mode": "vanilla",
        "_target_": "verl.workers.config.PolicyLossConfig",
    }
    found = made._val_metrics_update(["a"], ["u"], {"reward": [1.0], "acc": [1.0]}, [])
    assert set(found) == {"val-core/a/acc/mean@1", "val-aux/a/reward/mean@1"}
    # verl trains without these too.
    for policy_loss in ({"loss_mode": "vanilla"}, {}, None):
        made = trainer("V1")
        made.config.actor_rollout_ref.actor.policy_loss = policy_loss
        assert not any("val-cov" in key for key in made._val_metrics_update(["a"], ["u"], {"acc": [1.0]}, []))
    # A reward function without accuracies.
    assert not any("val-cov" in key for key in trainer("V1")._val_metrics_update(["a"], ["u"], {"reward": [1.0]}, []))


@pytest.mark.parametrize("version", ["V1", "legacy"])
def test_an_acc_that_is_text_leaves_verls_numbers_alone(version):
    found = trainer(version)._val_metrics_update(
        np.array(["a", "b", "b"]), ["u", "v", "v"], {"reward": [1.0, 0.5, 0.0], "acc": ["yes", 1.0, 0.0]}, []
    )
    assert found["val-core/a/reward/mean@1"] == 1.0
    assert found["val-cov/acc/sample_weighted"] == 0.5
    assert found["val-cov/generations"] == 2


@pytest.mark.parametrize("version", ["V1", "legacy"])
def test_accuracies_that_cannot_be_attributed_leave_verls_numbers_alone(version, caplog, monkeypatch):
    """As verl's lists are where a set's reward function returns a key "reward" and another set's gives an "acc" too."""
    monkeypatch.setattr(reporting, "_warned", set())
    names, uids = np.array(["a", "a", "b", "b"]), ["u", "u", "v", "v"]
    for _ in range(2):
        found = trainer(version)._val_metrics_update(
            names, uids, {"reward": [1.0] * 6, "acc": [None] * 4 + [1.0] * 2}, []
        )
        assert found["val-core/a/reward/mean@2"] == 1.0
        assert not any("val-cov" in key for key in found)
    (record,) = [record for record in caplog.records if "verl-cov" in record.message]
    assert "the average over the validation sets failed and is left out; the run goes on" in record.message
    assert "6 accuracies for 4 generations" in record.message
