"""The metrics through verl's engine: exact for any policy loss, at each level, and without touching the update.

In every layout, on 1, 2 and 4 ranks: test_invariance.py, which has those runs.
"""

from __future__ import annotations

import functools
import json
from types import SimpleNamespace

import numpy as np
import pytest

from tests.hooks import engine
from tests.hooks.numpys_metrics import check, expected, ours
from tests.hooks.test_invariance import CLIP, KL, LAYOUTS, RANDOM_ORDER, RATIO, WIDE, relative
from tests.ranks import run_ranks
from verl_cov.core import token_file
from verl_cov.core.metric_table import TABLE
from verl_cov.hooks import rollout_batch

VARIANTS = {
    "kl_cov": KL,
    "kl_cov, current": {**KL, "cov_log_prob": "current"},
    "clip_cov": CLIP,
    "kl_cov, basic": {**KL, "cov_metrics": "basic"},
    "kl_cov, off": {**KL, "cov_metrics": "off"},
    "kl_cov in micro-batches": {**KL, "cov_scope": "micro_batch"},
    "kl_cov in micro-batches, off": {**KL, "cov_scope": "micro_batch", "cov_metrics": "off"},
    "vanilla": dict(loss_mode="vanilla"),
    "vanilla, measured": dict(loss_mode="vanilla", cov_metrics="full"),
    "vanilla, off": dict(loss_mode="vanilla", cov_metrics="off"),
}
FEW = (LAYOUTS[3], LAYOUTS[7])  # a small micro-batch in another order, and the legacy trainer's
# What depends on the rollouts before.
HISTORY = {"entropy_change", "entropy_falls"} | {
    f"theorem{n}_{what}" for n in (1, 2) for what in ("predicted", "correlation", "agreement")
}
SELECTION = {
    *("tokens", "non_finite_tokens", "selected_tokens", "selected_frac", "selected_mean", "selected_negative_frac"),
    *("candidate_tokens", "tied_tokens"),
}


@functools.cache
def reports(model: str) -> dict[tuple[str, int, str], engine.Report]:
    return engine.run(engine.Spec(model, WIDE, FEW, ranks=2, variants=VARIANTS))


@pytest.mark.parametrize("variant", ["vanilla, measured", "kl_cov in micro-batches"])
def test_verls_own_loss_and_a_selection_within_micro_batches_report_numpys_numbers(untrained_model, variant):
    for layout in FEW:
        check(ours(reports(str(untrained_model))[variant, 0, layout.name]), expected(0), layout.name)


def test_each_level_reports_what_the_table_says(untrained_model):
    levels = {name: {metric.key for metric in TABLE if metric.level == name} for name in ("off", "basic", "full")}
    keys: dict[str, set[str]] = {}
    for (variant, _, _), report in reports(str(untrained_model)).items():
        keys.setdefault(variant, set()).update(set(ours(report)) - HISTORY)
    full = set().union(*levels.values()) - HISTORY
    current, old = {"overlap_old", "forward_seconds"}, {"overlap_current"}
    assert keys["kl_cov, current"] == full - old
    assert keys["kl_cov"] == full - current
    assert keys["clip_cov"] == full - current - {"threshold", "kl_dead_zone"}
    assert keys["kl_cov, basic"] == keys["kl_cov"] - levels["full"]
    assert keys["kl_cov, off"] == SELECTION | {"threshold", "kl_dead_zone"}
    assert keys["kl_cov in micro-batches"] == keys["clip_cov"] - old | {"kl_dead_zone"}
    assert keys["kl_cov in micro-batches, off"] == SELECTION | {"kl_dead_zone"}
    of_a_control = SELECTION - {"tokens", "non_finite_tokens"} | old | {"changed_gradient_frac"}
    assert keys["vanilla, measured"] == keys["clip_cov"] - of_a_control
    assert keys["vanilla"] == keys["vanilla, off"] == set()
    assert levels["full"] > HISTORY


@pytest.mark.parametrize(("one", "other"), [("vanilla", "vanilla, measured"), ("kl_cov, off", "kl_cov")])
def test_measuring_leaves_the_update_as_it_is(untrained_model, one, other):
    for layout in FEW:
        without, measured = (reports(str(untrained_model))[name, 0, layout.name] for name in (one, other))
        assert relative(measured.gradient, without.gradient) == 0, layout.name
        assert measured.metrics["loss"] == without.metrics["loss"]
        assert measured.selected == without.selected


def test_current_measures_the_present_policys_covariance(untrained_model):
    found = [ours(reports(str(untrained_model))[name, 0, FEW[0].name]) for name in ("kl_cov", "kl_cov, current")]
    assert found[0]["mean"] != pytest.approx(found[1]["mean"], rel=1e-3)
    # The theorems are about the policy that sampled, whatever the control looks at.
    assert found[0]["theorem2"] == found[1]["theorem2"]


def test_the_outputs_of_a_session_are_measured_as_one_response():
    def measured(rows):
        data = engine.to_tensordict(rows, dense=False)
        responses = rollout_batch.gather_responses(SimpleNamespace(), data, None)
        assert responses is not None
        return rollout_batch.rollout_metrics(responses)[0]

    rows = [{**row, "session_id": number % 4} for number, row in enumerate(engine.mini_batch())]
    halves = []
    for row in rows:
        for part in (
            (slice(None, 2), slice(2, None)) if row["session_id"] in (0, 3) and len(row["mask"]) > 2 else (slice(None),)
        ):
            halves.append(
                {**row, **{key: row[key][part] for key in ("response", "mask", "old_log_prob", "advantage", "entropy")}}
            )
    assert len(halves) > len(rows)
    assert measured(halves) == pytest.approx(measured(rows), rel=1e-9)
    without = [{key: value for key, value in row.items() if key != "session_id"} for row in halves]
    assert measured(without)["entropy"] != pytest.approx(measured(rows)["entropy"], rel=1e-3)


# --- the dump -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_dump_holds_the_highest_tokens_of_all_ranks_and_their_text(untrained_model, tmp_path, ranks):
    from transformers import AutoTokenizer

    layouts = (engine.Layout("v1", micro=4, order=RANDOM_ORDER, step=6), engine.Layout("legacy", dense=True, step=9))
    skipped = engine.Layout("not this step", step=7)
    dump = {**KL, "cov_dump_every": 3, "cov_dump_tokens": 7, "cov_dump_dir": str(tmp_path)}
    found = engine.run(
        engine.Spec(str(untrained_model), WIDE, (*layouts, skipped), ranks=ranks, variants={"dump": dump})
    )
    tokenizer = AutoTokenizer.from_pretrained(untrained_model)
    rows = engine.mini_batch()
    tokens = [(row["index"], int(at)) for row in rows for at in np.flatnonzero(row["mask"])]
    x, a = (
        np.array([rows[row][key][at] for row, at in tokens], dtype=np.float64) for key in ("old_log_prob", "advantage")
    )
    cov = (x - x.mean()) * (a - a.mean())
    highest = np.sort(cov)[::-1][:7]
    read = token_file.read(tmp_path / token_file.FILE)
    assert read.damaged == 0
    for layout in layouts:
        mine = [token for token in read.tokens if token.step == layout.step]
        assert [token.covariance for token in mine] == pytest.approx(highest.tolist(), rel=1e-5)
        assert [token.rank for token in mine] == list(range(1, 8))
        assert sum(token.selected for token in mine) == int(RATIO * len(tokens))
        for token in mine:
            row = next(
                row
                for row in rows
                if row["uid"] == token.prompt
                and token.position < len(row["response"])
                and row["response"][token.position] == token.token_id
                and row["old_log_prob"][token.position] == pytest.approx(token.log_prob)
            )
            assert token.advantage == pytest.approx(float(row["advantage"][0]))
            assert token.token == tokenizer.decode([int(token.token_id)])
            text = [*row["prompt"], *row["response"]]
            at = len(row["prompt"]) + token.position
            assert token.before == tokenizer.decode(text[max(0, at - 32) : at])
            assert tokenizer.decode(text[at + 1 :]).startswith(token.after)
    assert len(read.tokens) == 14
    assert found["dump", 0, "not this step"].selected


def test_gradient_clipping_scales_the_step():
    from verl_cov.hooks.rollout_batch import clip_scale

    assert clip_scale([0.5, 1.0, 2.0, 4.0], 1.0) == pytest.approx((1 + 1 + 1 / 2 + 1 / 4) / 4)
    assert clip_scale([[4.0], [2.0]], 2.0) == pytest.approx(0.75)
    for norms, clip in (([], 1.0), (None, 1.0), ([3.0], None), ([0.0], 1.0)):
        assert clip_scale(norms, clip) == 1
    # verl skips an update whose gradient is not finite.
    assert clip_scale([float("nan"), float("inf"), 0.5, 2.0], 1.0) == pytest.approx((0 + 0 + 1 + 0.5) / 4)


def _load(rank, world, group, folder):
    """Rank 0 alone sees the checkpoint's folder, as on the first of two nodes."""
    from verl_cov.hooks import rollout_batch

    text = rollout_batch._read_state(folder if rank == 0 else folder / "not here")
    return rollout_batch._entropy_change(rollout_batch._shared(text)).state_dict()


@pytest.mark.parametrize("damage", [None, b"\xff\xfe", b'{"last": []', b'{"last": [], "pairs": []}', b'{"last": 1}'])
def test_every_rank_gets_the_state_that_one_finds_and_damage_stops_none(tmp_path, damage):
    from verl_cov.core.entropy_change import EntropyChange
    from verl_cov.core.rollout import Theorem
    from verl_cov.hooks.rollout_batch import STATE_FILE

    change = EntropyChange()
    for entropy in (1.0, 0.9):
        change.after_rollout(entropy, {"theorem2": Theorem(-0.1, 0.01)})
    if damage is None:
        (tmp_path / STATE_FILE).write_text(json.dumps(change.state_dict()))
    else:
        (tmp_path / STATE_FILE).write_bytes(damage)
        change = EntropyChange()
    assert run_ranks(_load, 2, tmp_path) == [change.state_dict()] * 2


def test_the_change_of_entropy_is_seen_one_rollout_later(untrained_model):
    """The rollouts of the layouts follow one another in the engine's worker."""
    found = [ours(reports(str(untrained_model))["vanilla, measured", 0, layout.name]) for layout in FEW]
    assert found[1]["entropy_change"] == pytest.approx(found[1]["entropy"] - found[0]["entropy"], abs=1e-12)
    assert 0 < found[0]["clip_scale"] <= 1
