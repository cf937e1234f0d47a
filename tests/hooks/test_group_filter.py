"""The filter of prompts that are all right or all wrong: verl's own replay buffer on a real TransferQueue."""

from __future__ import annotations

import re
import uuid
from collections import Counter

import pytest
import torch

from tests.hooks.test_start import RUN, config
from verl_cov.hooks import group_filter
from verl_cov.hooks.group_filter import Limit, TooFewPrompts

FILTER = (
    "algorithm.filter_groups.enable=True",
    "algorithm.filter_groups.metric=acc",
    "data.train_batch_size=4",
)
RESPONSES = 3


class Generation:
    """Stands in for prompts, vLLM and reward function: a prompt is answered as soon as it is asked, with the
    accuracies that ``answer(number of the prompt)`` gives its responses: of each session one, or a list of one for each
    of its outputs."""

    def __init__(self, tq, answer):
        self.tq, self.answer, self.asked = tq, answer, 0

    def __call__(self, prompts: int) -> None:
        from verl.utils.tensordict_utils import list_of_dict_to_tensordict

        for _ in range(prompts):
            uid, accuracies = str(uuid.uuid4()), self.answer(self.asked)
            self.asked += 1
            outputs = [
                (f"{uid}_{session}_{output}", accuracy)
                for session, given in enumerate(accuracies)
                for output, accuracy in enumerate(given if isinstance(given, list) else [given])
            ]
            rows = [
                {
                    "rm_scores": torch.tensor([0.0, accuracy]),
                    # As verl_cov.tasks.reward answers: the training reward need not be the accuracy.
                    "extra_fields": {"reward_extra_info": {"score": 0.5, "acc": accuracy}},
                }
                for _, accuracy in outputs
            ]
            keys = [key for key, _ in outputs]
            self.tq.kv_batch_put(
                keys=keys,
                partition_id="train",
                fields=list_of_dict_to_tensordict(rows),
                tags=[{"status": "success", "global_steps": 1} for _ in rows],
            )
            tag = {"is_prompt": True, "status": "finished", "global_steps": 1}
            self.tq.kv_batch_put(keys=[uid], partition_id="train", tags=[tag])


@pytest.fixture(params=["sync", "colocate_async"])
def sample(request, transfer_queue):
    """sample(answer, *overrides): one step's batch and its metrics from verl's buffer, and how many prompts it took."""
    from verl.trainer.ppo.v1 import get_trainer_cls

    def run(answer, *overrides):
        trainer_class = get_trainer_cls(request.param)
        trainer = trainer_class.__new__(trainer_class)
        trainer.config = config(*RUN, *FILTER, *overrides)
        trainer.trainer_mode = request.param
        generation = Generation(transfer_queue, answer)
        trainer._add_prompts_to_generate = generation
        buffer = trainer._build_replay_buffer()
        buffer.poll_interval = 0.01
        generation(4)
        try:
            batch, metrics = buffer.sample(global_steps=1, partition_id="train", batch_size=4)
            return batch, metrics, generation.asked
        finally:
            left = list(transfer_queue.kv_list("train").get("train", {}))
            if left:
                transfer_queue.kv_clear(keys=left, partition_id="train")

    return run


def all_wrong(prompt):
    return [0.0] * RESPONSES


def every_other_is_mixed(prompt):
    return [0.0, 1.0, 1.0] if prompt % 2 else [1.0] * RESPONSES


def one_in_four_is_mixed(prompt):
    return [1.0, 0.0, 0.0] if prompt % 4 == 3 else [float(prompt % 4 == 0)] * RESPONSES


@pytest.mark.parametrize("batches", [1, 2, 5])
def test_prompts_that_teach_nothing_end_the_run_within_the_batches_allowed(sample, batches):
    with pytest.raises(TooFewPrompts) as error:
        sample(all_wrong, f"algorithm.filter_groups.max_num_gen_batches={batches}")
    message = str(error.value)
    assert "\n" not in message
    assert (
        f"of {4 * batches} answered, {4 * batches} had the same acc in all responses ({4 * batches} all wrong)"
        in message
    )
    assert f"max_num_gen_batches={batches} generation batches of 4 allow {4 * batches}" in message
    for fix in ("nearer to the model's level", "rollout.n", "filter_groups.enable=False"):
        assert fix in message


def test_a_generation_batch_has_as_many_prompts_as_the_configuration_says(sample):
    """As in DAPO's scripts, where it is three times the batch that is trained on."""
    three_times = ("algorithm.filter_groups.max_num_gen_batches=2", "data.gen_batch_size=12")
    with pytest.raises(TooFewPrompts, match="max_num_gen_batches=2 generation batches of 12 allow 24") as error:
        sample(all_wrong, *three_times)
    # More than 20 wrong ones leave fewer than 4; verl asks for two for each one dropped.
    dropped = int(re.search(r"answered, (\d+) had", str(error.value)).group(1))
    assert 20 < dropped <= 24
    batch, _, asked = sample(lambda prompt: [0.0, 1.0, 1.0] if prompt >= 16 else all_wrong(prompt), *three_times)
    assert len(batch.keys) == 4 * RESPONSES
    assert asked > 16


def test_a_limit_that_no_batch_fits_into_is_refused():
    one_by_one = config(*RUN, *FILTER, "algorithm.filter_groups.max_num_gen_batches=3", "data.gen_batch_size=1")
    with pytest.raises(ValueError, match="can never fill") as error:
        group_filter.refuse(one_by_one)
    for part in ("max_num_gen_batches=3 x data.gen_batch_size=1 prompts", "data.gen_batch_size=null"):
        assert part in str(error.value)
    for enough in ("data.gen_batch_size=2", "data.gen_batch_size=null", "algorithm.filter_groups.enable=False"):
        group_filter.refuse(config(*RUN, *FILTER, "algorithm.filter_groups.max_num_gen_batches=3", enough))


def test_it_says_which_were_all_right_and_which_all_wrong(sample):
    with pytest.raises(TooFewPrompts, match=r"had the same acc in all responses \(\d all wrong, \d all right\)"):
        sample(one_in_four_is_mixed, "algorithm.filter_groups.max_num_gen_batches=2")


@pytest.mark.parametrize("answer", [every_other_is_mixed, one_in_four_is_mixed])
def test_a_batch_is_filled_with_prompts_that_teach_something(sample, transfer_queue, answer):
    batch, metrics, asked = sample(answer, "algorithm.filter_groups.max_num_gen_batches=10")
    assert len(batch.keys) == 4 * RESPONSES
    assert len({key.split("_")[0] for key in batch.keys}) == 4
    assert 8 <= asked <= 40
    dropped = metrics["training/filter_groups/evicted_samples"]
    assert 4 <= dropped == sum(metrics["_dapo_filtered_reward_counts"].values())


def test_what_fits_exactly_is_trained_on(sample):
    """Two batches, the first of them wrong: nothing is left over, and nothing is missing."""
    _, metrics, asked = sample(
        lambda prompt: [0.0, 1.0, 0.0] if prompt >= 4 else all_wrong(prompt),
        "algorithm.filter_groups.max_num_gen_batches=2",
    )
    assert asked >= 8
    assert metrics["training/filter_groups/evicted_samples"] == 4


def test_without_a_limit_nothing_of_ours_counts(sample):
    taught = {"after": 40}

    def late(prompt):
        return [0.0, 1.0, 0.0] if prompt >= taught["after"] else all_wrong(prompt)

    _, metrics, asked = sample(late, "algorithm.filter_groups.max_num_gen_batches=0")
    assert asked >= 44
    assert metrics["training/filter_groups/evicted_samples"] == 40


def test_each_step_counts_anew():
    limit = Limit(batches=2, gen_batch_size=4, batch_size=4, metric="acc", rule="the same acc in all responses")
    for step in range(5):
        limit.drop(step, Counter({0.0: 3}), usable=2)
        limit.drop(step, Counter({1.0: 1}), usable=3)
    limit.drop(4, Counter({0.0: 9}), usable=4)  # the batch is full all the same: verl had asked for more than it needed
    with pytest.raises(TooFewPrompts, match=r"of 19 answered, 16 .*12 all wrong, 1 of 0.5, 3 all right"):
        limit.drop(4, Counter({0.5: 1, 1.0: 2}), usable=3)


@pytest.mark.parametrize(
    "override", ["algorithm.filter_groups.enable=False", "algorithm.filter_groups.max_num_gen_batches=0"]
)
def test_no_limit_unless_asked(override):
    assert Limit.read(config(*RUN, *FILTER, "algorithm.filter_groups.max_num_gen_batches=3", override)) is None
