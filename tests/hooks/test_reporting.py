"""A report that fails ends no run and hangs no rank: it warns once, and its keys are left out on every rank."""

from __future__ import annotations

import logging
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from tensordict import NonTensorStack, TensorDict

from tests.hooks import engine
from tests.ranks import run_ranks
from verl_cov.core.metric_table import PREFIX
from verl_cov.hooks import mini_batch, reporting, rollout_batch, token_dump
from verl_cov.hooks.batch import RankTokens
from verl_cov.hooks.config import CovPolicyLossConfig
from verl_cov.hooks.reporting import agreed
from verl_cov.hooks.update_record import UpdateRecord

KL = dict(loss_mode="verl_cov.kl_cov", kl_cov_ratio=0.05)


@pytest.fixture(autouse=True)
def _nothing_said_yet(monkeypatch):
    monkeypatch.setattr(reporting, "_warned", set())


def test_a_failure_is_said_once_with_its_cause(caplog):
    values = {"before": 1.0}
    for _ in range(3):
        with reporting.reporting("Figure 8"):
            values["half"] = 2.0
            raise KeyError("uid")
    assert values == {"before": 1.0, "half": 2.0}
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "Figure 8" in record.message
    assert "KeyError: 'uid'" in record.message
    with pytest.raises(KeyboardInterrupt), reporting.reporting("Figure 8"):
        raise KeyboardInterrupt


# --- over ranks -------------------------------------------------------------------------------------------------------


def broken(*_, **__):
    raise ArithmeticError("on purpose")


def adapter_of(rank, group):
    """Half of a rollout batch, and the worker's side of the hook without an engine."""
    rows = engine.mini_batch()[rank * 8 : rank * 8 + 8]
    return SimpleNamespace(
        worker=SimpleNamespace(),
        data=engine.to_tensordict(rows, dense=False),
        group=group,
        tokenizer=None,
        step=lambda: 0,
        divides_by_width=lambda: False,
    )


@contextmanager
def one_that_fails(rank, failing):
    """Yields (a group in which a rank that waits for another raises, the warnings); rank 1 raises in ``failing``."""
    said: list[str] = []
    reporting._warned.clear()
    with (
        mock.patch.object(reporting.logger, "warning", lambda text, *values: said.append(text % values)),
        mock.patch(f"verl_cov.hooks.{failing}", broken) if failing and rank == 1 else nullcontext(),
    ):
        yield dist.new_group(timeout=timedelta(seconds=20)), said


def _update(rank, world, _, failing, policy_loss):
    """(keys of the metrics, whether tokens were selected, the warnings) of a rank's update."""
    with one_that_fails(rank, failing) as (group, said):
        hook = mini_batch.MiniBatchHook(adapter_of(rank, group), CovPolicyLossConfig(**policy_loss))
        keys = sorted(hook.metrics())
    return keys, hook._mini_batch is not None and hook._mini_batch.selected is not None, said


METRICS_ONLY = dict(loss_mode="vanilla", cov_metrics="full")


@pytest.mark.parametrize(
    ("failing", "policy_loss", "left_out"),
    [
        ("mini_batch.RankTokens.read", METRICS_ONLY, "all"),
        ("mini_batch.metrics.update_metrics", METRICS_ONLY, "its own"),
        ("worker_state.Advice.after_update", KL, "none"),
        ("mini_batch.metrics.update_metrics", KL, "its own"),
    ],
)
def test_a_rank_that_fails_leaves_its_keys_out_and_nobody_waits(failing, policy_loss, left_out):
    whole = run_ranks(_update, 2, None, policy_loss)
    assert whole[0][0] == whole[1][0]
    assert len(whole[0][0]) > 10
    first, second = run_ranks(_update, 2, failing, policy_loss)
    shown_by_losses = {f"{PREFIX}changed_gradient_frac", f"{PREFIX}kl_dead_zone"} & set(whole[1][0])
    assert second[0] == (whole[1][0] if left_out == "none" else sorted(shown_by_losses))
    assert first[0] == ([] if left_out == "all" else whole[0][0])
    assert first[1] == second[1] == ("verl_cov" in policy_loss["loss_mode"])
    assert first[2] == []  # who failed says why
    (said,) = second[2]
    assert "ArithmeticError: on purpose" in said


def test_a_control_that_cannot_read_its_batch_fails_loudly():
    with mock.patch.object(RankTokens, "read", broken), pytest.raises(ArithmeticError, match="on purpose"):
        mini_batch.MiniBatchHook(adapter_of(0, None), CovPolicyLossConfig(**KL))


def _dump(rank, world, _, folder, failing):
    dump = dict(KL, cov_dump_every=1, cov_dump_dir=str(folder))
    with one_that_fails(rank, failing) as (group, said):
        return sorted(mini_batch.MiniBatchHook(adapter_of(rank, group), CovPolicyLossConfig(**dump)).metrics()), said


@pytest.mark.parametrize("failing", ["highest_tokens", "_text"])
def test_a_dump_that_one_rank_cannot_make_is_not_written_and_the_metrics_stay(tmp_path, failing):
    whole, _ = run_ranks(_dump, 2, tmp_path / "whole", None)
    assert (tmp_path / "whole" / token_dump.FILE).exists()
    first, (keys, (said,)) = run_ranks(_dump, 2, tmp_path / "broken", f"token_dump.{failing}")
    assert first == whole
    assert keys == whole[0]
    assert "the dump of tokens failed" in said
    assert not (tmp_path / "broken").exists()


def _rollout(rank, world, _, failing):
    with one_that_fails(rank, failing) as (group, said):
        responses = rollout_batch.gather_responses(SimpleNamespace(), adapter_of(rank, group).data, group)
        values, theorems = ({}, {}) if responses is None else rollout_batch.rollout_metrics(responses)
    return sorted(values), sorted(theorems), said


def test_a_rollout_batch_that_one_rank_cannot_read_is_not_measured():
    whole, _ = run_ranks(_rollout, 2, None)
    assert len(whole[0]) > 5
    for name in ("read", "prompt", "response", "score"):
        first, (values, theorems, (said,)) = run_ranks(_rollout, 2, f"rollout_batch.RankTokens.{name}")
        assert first == ([], [], [])
        assert values == theorems == []
        assert "ArithmeticError: on purpose" in said
    first, (values, _, (said,)) = run_ranks(_rollout, 2, "rollout_batch.rollout.prompts")
    assert first == whole
    assert set(whole[0]) - set(values) == {key for key in whole[0] if key.startswith("prompt")}
    assert "Figure 8" in said


def _agree(rank, world, group, missing):
    return agreed(None if rank in missing else rank, group)


def test_all_have_it_or_none():
    assert run_ranks(_agree, 2, ()) == [0, 1]
    for missing in ((0,), (1,), (0, 1)):
        assert run_ranks(_agree, 2, missing) == [None, None]
    assert agreed("alone", None) == "alone"


# --- PRIME ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def prime_advantages(monkeypatch):
    """PRIME's ``_compute_advantage`` on three responses to one prompt, without workers and TransferQueue."""
    from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync

    from tests.hooks.test_prime_refusals import RUN
    from tests.hooks.test_start import config
    from verl_cov.hooks.prime.prm_settings import prime_in
    from verl_cov.hooks.prime.prm_worker import LOG_PROBS
    from verl_cov.hooks.prime.trainer import PrimeTrainer

    mask = torch.nested.as_nested_tensor([torch.ones(length) for length in (2, 3, 1)], layout=torch.jagged)
    put: dict = {}
    trainer = PrimeTrainer.__new__(PrimeTrainer)
    trainer.config = config(*RUN)
    trainer.prime = prime_in(trainer.config)
    trainer.band, trainer.timing_raw = None, {}
    monkeypatch.setattr(PPOTrainerSync, "_compute_advantage", lambda self, batch, metrics: batch)
    fields = {"response_mask": mask, LOG_PROBS: mask * 0.5, "uid": NonTensorStack(*["p"] * 3)}
    data = TensorDict(fields, batch_size=3)
    for name, value in {
        "_get": lambda batch, *fields: data,
        "_put": lambda batch, fields: put.update(fields) or batch,
        "_outcomes": lambda batch: torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64),
        "_reference_log_probs": lambda batch, data: mask,
        "_infer": lambda workers, batch, mask: mask.float(),
        "_train": lambda batch: [None, {"prm_loss": [1.0]}],
        "prm": None,
    }.items():
        setattr(trainer, name, value)

    def run(sessions=("p_0_0", "p_1_0", "p_2_0")):
        metrics: dict = {}
        trainer._compute_advantage(SimpleNamespace(keys=list(sessions)), metrics)
        return metrics, put["advantages"]

    return run


def test_primes_metrics_end_no_run_and_its_advantages_stay(prime_advantages, monkeypatch):
    from verl_cov.hooks.prime import prime_metrics

    metrics, advantages = prime_advantages()
    assert {"prime/pairs", "prime/outcome", "prime/prm_loss"} <= set(metrics)
    for name in ("ranking_metrics", "reward_metrics", "filter_metrics", "training_metrics"):
        monkeypatch.setattr(prime_metrics, name, broken)
    metrics, again = prime_advantages()
    assert metrics == {}
    assert torch.equal(again.values(), advantages.values())


def test_prime_refuses_an_agent_loop_with_several_outputs(prime_advantages):
    with pytest.raises(ValueError, match="1 of 3 rows are further outputs of a session"):
        prime_advantages(("p_0_0", "p_0_1", "p_1_0"))


def test_a_row_of_another_rank_ends_no_update():
    """Its numbers are not this rank's. An engine that re-shards shows them: what is measured may be wrong there, but an
    error on one rank alone would leave the others waiting in the gradient's collective."""
    record = UpdateRecord(slots=3)
    record.add_log_probs(torch.tensor([[1, 3, 900]]), -torch.ones(1, 3), torch.ones(1, 3, dtype=torch.bool))
    assert record.present_log_probs(torch.zeros(3)).tolist()[::2] == [-1, -1]
