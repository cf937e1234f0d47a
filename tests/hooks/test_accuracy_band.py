"""PRIME's filter of prompts by their mean accuracy: verl's own replay buffer on a real TransferQueue."""

from __future__ import annotations

import pytest

from tests.hooks.test_group_filter import Generation
from tests.hooks.test_prime_refusals import RUN
from tests.hooks.test_start import config
from verl_cov.hooks.group_filter import TooFewPrompts
from verl_cov.hooks.prime.accuracy_band import Band
from verl_cov.hooks.prime.outcomes import MissingOutcome

FILTER = ("data.train_batch_size=4", "actor_rollout_ref.rollout.n=5")
RESPONSES = 5


def right(count: int) -> list[float]:
    return [float(number < count) for number in range(RESPONSES)]


@pytest.fixture
def sample(transfer_queue):
    """sample(answer, *overrides): one step's batch, its metrics, {uid: accuracies} of all that was asked."""
    from verl.trainer.ppo.v1 import get_trainer_cls

    from verl_cov.hooks.prime.trainer import PrimeTrainer

    class Remembering(Generation):
        def __init__(self, answer):
            super().__init__(transfer_queue, self.remember)
            self.of_prompt, self.accuracies = answer, []

        def remember(self, prompt):
            self.accuracies.append(self.of_prompt(prompt))
            return self.accuracies[-1]

    def run(answer, *overrides):
        composed = config(*RUN, *FILTER, *overrides)
        trainer_class = get_trainer_cls("verl_cov.prime")
        assert trainer_class is PrimeTrainer
        trainer = trainer_class.__new__(trainer_class)
        trainer.config, trainer.trainer_mode = composed, "sync"
        groups, prime = composed.algorithm.filter_groups, composed.prime
        trainer.band = Band(prime.accuracy_low, prime.accuracy_high, groups.metric) if groups.enable else None
        generation = Remembering(answer)
        trainer._add_prompts_to_generate = generation
        buffer = trainer._build_replay_buffer()
        buffer.poll_interval = 0.01
        generation(4)
        try:
            batch, metrics = buffer.sample(global_steps=1, partition_id="train", batch_size=4)
            values = transfer_queue.kv_batch_get(
                keys=batch.keys, partition_id="train", select_fields=["extra_fields", "rm_scores"]
            )
            kept: dict[str, list[float]] = {}
            for key, row in zip(batch.keys, values["rm_scores"].unbind(), strict=True):
                kept.setdefault(key.split("_")[0], []).append(float(row.sum()))
            return list(kept.values()), metrics, generation
        finally:
            left = list(transfer_queue.kv_list("train").get("train", {}))
            if left:
                transfer_queue.kv_clear(keys=left, partition_id="train")

    return run


def dropped(metrics) -> dict[float, int]:
    return {round(accuracy, 9): count for accuracy, count in metrics.get("_dapo_filtered_reward_counts", {}).items()}


def test_prompts_outside_the_band_are_dropped_and_counted_by_their_accuracy(sample):
    """In turn 0, 1, 2, ... 5 of 5 right; the band is [0.2, 0.8]."""
    kept, metrics, generation = sample(lambda prompt: right(prompt % 6))
    assert len(kept) == 4
    assert all(sorted(row) not in (right(0), right(5)) for row in kept)
    assert {len(row) for row in kept} == {RESPONSES}
    # Whatever was looked at before the batch was full: the first four, of which only the first is out.
    assert dropped(metrics)[0.0] >= 1
    assert set(dropped(metrics)) <= {0.0, 1.0}
    assert sum(dropped(metrics).values()) == metrics["training/filter_groups/evicted_samples"]
    assert len(generation.accuracies) == generation.asked >= 5


@pytest.mark.parametrize("count", [1, 4])
def test_an_accuracy_at_the_bound_is_kept(sample, count):
    """0.2 and 0.8, of five responses."""
    kept, metrics, generation = sample(lambda prompt: right(count))
    assert [sum(row) for row in kept] == [count] * 4
    assert dropped(metrics) == {}
    assert generation.asked == 4


def test_a_response_of_several_outputs_counts_once(sample):
    """Of five sessions one is right; its six outputs carry its reward each, and would be six of ten right."""
    kept, metrics, _ = sample(
        lambda prompt: right(1) if prompt >= 2 else [[1.0] * 6, 0.0, 0.0, 0.0, 0.0], "prime.accuracy_high=0.5"
    )
    assert sorted(map(sum, kept)) == [1, 1, 6, 6]
    assert dropped(metrics) == {}


@pytest.mark.parametrize(("low", "high", "count"), [(0.3, 0.8, 1), (0.2, 0.7, 4), (0.5, 1.0, 2)])
def test_one_just_outside_is_not(sample, low, high, count):
    """verl's own filter would keep all of these: no prompt is all right or all wrong."""
    inside = 3
    kept, metrics, _ = sample(
        lambda prompt: right(inside if prompt >= 2 else count),
        f"prime.accuracy_low={low}",
        f"prime.accuracy_high={high}",
    )
    assert [sum(row) for row in kept] == [inside] * 4
    assert dropped(metrics) == {count / RESPONSES: 2}


def test_a_band_with_all_accuracies_keeps_what_verls_own_filter_would_drop(sample):
    kept, metrics, generation = sample(
        lambda prompt: right(5 * (prompt % 2)), "prime.accuracy_low=0", "prime.accuracy_high=1"
    )
    assert sorted(sum(row) for row in kept) == [0, 0, 5, 5]
    assert dropped(metrics) == {}
    assert generation.asked == 4


def test_soft_accuracies_are_averaged_whatever_rounding_leaves(sample):
    """Five times 0.47 comes out below it, in whatever order they are added: it is at the bound all the same."""
    soft = [0.47] * RESPONSES
    assert sum(soft) / RESPONSES < 0.47
    kept, metrics, generation = sample(lambda prompt: soft, "prime.accuracy_low=0.47")
    assert [sum(row) for row in kept] == pytest.approx([2.35] * 4)
    assert dropped(metrics) == {}
    assert generation.asked == 4


def test_the_reward_itself_can_be_what_the_filter_looks_at(sample):
    """``reward``: the score, which is the accuracy here; ``score``, a key of the reward function's, is 0.5 always."""
    kept, metrics, _ = sample(lambda prompt: right(prompt % 6), "algorithm.filter_groups.metric=reward")
    assert all(sum(row) not in (0, 5) for row in kept)
    assert dropped(metrics)
    kept, metrics, _ = sample(lambda prompt: right(0), "algorithm.filter_groups.metric=score")
    assert [sum(row) for row in kept] == [0] * 4
    assert dropped(metrics) == {}


@pytest.mark.parametrize("batches", [1, 3])
def test_data_that_is_too_hard_ends_the_run_within_the_batches_allowed(sample, batches):
    with pytest.raises(TooFewPrompts) as error:
        sample(lambda prompt: right(0), f"algorithm.filter_groups.max_num_gen_batches={batches}")
    message = str(error.value)
    assert "\n" not in message
    assert f"{4 * batches} had a mean acc outside [0.2, 0.8] ({4 * batches} all wrong)" in message
    assert f"max_num_gen_batches={batches} generation batches of 4 allow {4 * batches}" in message


def test_the_error_names_the_accuracies_that_were_seen(sample):
    with pytest.raises(
        TooFewPrompts, match=r"a mean acc outside \[0.5, 0.7\] \(\d all wrong, \d of 0.2, \d of 0.4, \d all right\)"
    ):
        sample(
            lambda prompt: right([0, 1, 2, 5][prompt % 4]),
            "prime.accuracy_low=0.5",
            "prime.accuracy_high=0.7",
            "algorithm.filter_groups.max_num_gen_batches=2",
        )


def test_a_metric_that_the_reward_function_does_not_give_names_the_field(sample):
    with pytest.raises(MissingOutcome) as error:
        sample(lambda prompt: right(2), "algorithm.filter_groups.metric=accuracy")
    message = str(error.value)
    assert "\n" not in message
    assert "algorithm.filter_groups.metric=accuracy is no key" in message
    assert "it returns acc, score" in message
    assert "set algorithm.filter_groups.metric to reward" in message


def test_without_the_filter_every_prompt_is_trained_on(sample):
    kept, metrics, generation = sample(lambda prompt: right(0), "algorithm.filter_groups.enable=False")
    assert len(kept) == 4
    assert dropped(metrics) == {}
    assert generation.asked == 4
