"""One small log of each trainer, as its sources print it: what is read, and which entropy goes with which score.

The scores follow R = 0.8 - 0.2 exp(H) exactly where the two belong to the same policy, and only there: the entropy
jumps up and down, so a wrong join fits nothing. The sources are in docs/law.md.
"""

import json
import math

import pytest

from verl_cov.law import estimate, find_runs, points, read_metrics

STEPS = 12


def entropy(policy):
    return 1 / (1 + policy / 6) + 0.15 * (policy % 2)


def score(policy):
    return 0.8 - 0.2 * math.exp(entropy(policy))


def rows(entropy_key, score_key, shift, step="step", first=0, extra=None):
    """Flat records. Policy n is what step n begins with; shift 1: the score of step n is of policy n + 1."""
    return [
        {step: n, entropy_key: entropy(n), score_key: score(n + shift), **(extra or {})}
        for n in range(first, first + STEPS)
    ]


def json_lines(records):
    return "".join(json.dumps(record) + "\n" for record in records)


def dash(n, **data):
    return f"step:{n} - " + " - ".join(f"{key.replace('__', '/')}:{value!r}" for key, value in data.items()) + "\n"


def bar(n):
    return f"\r {100 * n // STEPS:3d}%|{'█' * n}| {n}/{STEPS} [00:{n:02d}<00:10,  1.0s/it]"


def transformers(n, **data):
    """transformers 5: floats are text of four digits; a progress bar before it shows the step."""
    return bar(n) + "\r" + str({key: f"{value:.9g}" for key, value in data.items()} | {"epoch": f"{n / 10:.4g}"}) + "\n"


RAY = "\x1b[36m(MegatronTrainRayActor pid=7, ip=10.0.0.2)\x1b[0m [2025-01-01 00:00:00] "
SLIME = "".join(
    f"(RolloutManager pid=9) [2025-01-01 00:00:00] rollout.py:9 - eval 0: {{'eval/aime': {score(0)!r}}}\n" * (n == 0)
    + f"{RAY}data.py:193 - rollout {n}: {{'rollout/raw_reward': {score(n)!r}, 'rollout/truncated': 0.0}}\n"
    # Three updates a rollout: the first entropy is that of the rollout's policy.
    + "".join(
        f"{RAY}model.py:700 - step {3 * n + k}: {{'train/loss': 0.1, 'train/entropy_loss': tensor("
        f"{entropy(n) + k!r}, device='cuda:0'), 'train/step': {3 * n + k}}}\n"
        for k in range(3)
    )
    + f"(RolloutManager pid=9) [2025-01-01 00:00:00] rollout.py:9 - eval {n}: {{'eval/aime': {score(n + 1)!r}, "
    "'eval/aime-truncated_ratio': 0.5}\n"
    for n in range(STEPS)
)
LOGS = {
    # name: (file, text, entropy, score, points)
    "verl": ("train.log", "".join(dash(n, actor__entropy=entropy(n), **{"val-core/x/acc/mean@4": score(n + 1)})
             for n in range(1, STEPS + 1)), "actor/entropy", "val-core/x/acc/mean@4", STEPS - 1),
    "TRL's console": ("stdout.txt", "".join(transformers(n, loss=0.1, reward=score(n), entropy=entropy(n))
                      for n in range(1, STEPS + 1)), "entropy", "reward", STEPS),
    "TRL's console, with evaluations": ("stdout.log", "".join(
        transformers(n, reward=0.5, entropy=entropy(n)) + transformers(n, eval_reward=score(n + 1), eval_loss=0.1)
        for n in range(1, STEPS + 1)), "entropy", "eval_reward", STEPS - 1),
    "an older TRL's console without a bar": ("stdout.log", "".join(
        str({"reward": score(n), "entropy": entropy(n), "epoch": n / 10}) + "\n" for n in range(STEPS)),
        "entropy", "reward", STEPS),
    "ms-swift's file": ("logging.jsonl", json_lines(
        {"reward": score(n), "entropy/mean": entropy(n), "global_step/max_steps": f"{n}/{STEPS}", "percentage": "9%"}
        for n in range(1, STEPS + 1)), "entropy/mean", "reward", STEPS),
    "ms-swift's console": ("run.log", "".join(
        f"{{'reward': '{score(n)}', 'entropy/mean': '{entropy(n)}', 'global_step/max_steps': '{n}/{STEPS}'}}\n"
        for n in range(1, STEPS + 1)), "entropy/mean", "reward", STEPS),
    "slime": ("stdout.log", SLIME, "train/entropy_loss", "eval/aime", STEPS - 1),
    "miles": ("stdout.log", "".join(line.replace("data.py:193", "rank0] log.py:7") + "\n"
              for line in SLIME.splitlines() if "eval" not in line), "train/entropy_loss", "rollout/raw_reward", STEPS),
    "OpenRLHF": ("train.log", "".join(
        f"(PPOTrainer pid=5) ✨ Global step {n}: {{'policy_loss': 0.1, 'reward': {score(n)!r}, 'entropy_loss': "
        f"{entropy(n)!r}}}\n" for n in range(1, STEPS + 1)), "entropy_loss", "reward", STEPS),
    "OpenRLHF in W&B": ("metrics.jsonl", json_lines(
        record for n in range(1, STEPS + 1) for record in (
            {"_step": 2 * n, "train/global_step": n, "train/entropy_loss": entropy(n), "train/reward": 0.5},
            {"_step": 2 * n + 1, "eval/global_step": n, "eval/eval_math_pass1": score(n + 1)})),
        "train/entropy_loss", "eval/eval_math_pass1", STEPS - 1),
    "SkyRL": ("run.log", "".join(dash(n, policy__policy_entropy=entropy(n), eval__all__avg_score=score(n + 1))
              for n in range(1, STEPS + 1)), "policy/policy_entropy", "eval/all/avg_score", STEPS - 1),
    "prime-rl": ("metrics.jsonl", json_lines(  # the trainer and the orchestrator write to one file
        record for n in range(STEPS) for record in (
            {"step": n, "eval/aime/avg@8": score(n), "train/agg/effective/agent/reward/mean": 0.5, "time/step": 1.0},
            {"step": n, "entropy/all/mean": entropy(n), "loss/mean": 0.1, "time/step": 2.0})),
        "entropy/all/mean", "eval/aime/avg@8", STEPS),
    "NeMo-RL": ("metrics.jsonl", json_lines(rows("train/approx_entropy", "validation/accuracy", 1)),
                "train/approx_entropy", "validation/accuracy", STEPS - 1),
    "ROLL": ("custom_logs.log", "".join(
        f"[2025-01-01 INFO] metrics_tag: {json.dumps({'step': n, 'metrics': record})}\n"
        for n, record in enumerate(rows("critic/entropy/mean", "val_correct/all/mean", 0, "system/step"))),
        "critic/entropy/mean", "val_correct/all/mean", STEPS),
    "tinker-cookbook": ("metrics.jsonl", json_lines(rows("optim/entropy", "test/env/all/reward/total", 0,
                        extra={"env/all/reward/total": 0.5})), "optim/entropy", "test/env/all/reward/total", STEPS),
    "a table of one's own": ("run.csv", "Step,Entropy,Reward\n" + "".join(
        f"{n},{entropy(n)},{score(n)}\n" for n in range(STEPS)), "Entropy", "Reward", STEPS),
}  # fmt: skip
OTHER_QUANTITIES = {
    "TRL's console": "mean of the means",
    "ms-swift's file": "responses' means",
    "slime": "responses' means",
    "OpenRLHF": "several policies",
    "SkyRL": "several policies",
    "prime-rl": "older policies",
    "NeMo-RL": "importance-weighted",
    "tinker-cookbook": "sampled estimate",
}


@pytest.mark.parametrize("name", LOGS)
@pytest.mark.parametrize("in_folder", [True, False])
def test_the_log_of_each_trainer(tmp_path, name, in_folder):
    file, text, entropy_key, score_key, count = LOGS[name]
    path = tmp_path / "the run" / file
    path.parent.mkdir()
    path.write_text(text, encoding="utf-8")
    ((_, paths),) = find_runs(tmp_path if in_folder else str(path))
    run = read_metrics(paths)
    assert run.damaged == 0
    found = points(run, name)
    assert (found.entropy_key, found.score_key) == (entropy_key, score_key)
    assert found.steps.size == count
    law = estimate(found.entropy, found.score, found.steps)
    assert (law.law.a, law.law.b) == pytest.approx((0.2, 0.8), abs=1e-6)
    assert OTHER_QUANTITIES.get(name, "") in " ".join(found.notes)
    assert ("--join" in " ".join(found.notes)) is run.table  # the join is a guess only for a table of one's own


@pytest.mark.parametrize("name", [name for name, log in LOGS.items() if "'" in log[1] and "Global" not in log[1]])
def test_a_dictionary_that_was_cut_off_or_wrapped_has_no_wrong_value(tmp_path, name):
    file, text, *_ = LOGS[name]
    path = tmp_path / file
    path.write_text(text, encoding="utf-8")
    whole = read_metrics(path)
    truth = dict(zip(whole.steps.tolist(), whole.records, strict=True))
    lines = text.replace("\r", "\n").splitlines()
    for width in (40, 61, 80, 133):
        pieces = [line[at : at + width] for line in lines for at in range(0, len(line), width)]
        for kind in ("cut", "wrapped"):
            path.write_text("\n".join(line[:width] for line in lines) if kind == "cut" else "\n".join(pieces))
            run = read_metrics(path)
            for step, record in zip(run.steps.tolist(), run.records, strict=True):
                bad = [
                    (key, value) for key, value in record.items() if truth.get(step, record).get(key, value) != value
                ]
                assert not bad, (width, kind, step, bad, truth.get(step))
        assert kind == "wrapped"


def test_a_chart_that_wandb_exported(tmp_path):
    for key, value in (("actor/entropy", entropy), ("val-core/x/acc/mean@1", lambda n: score(n + 1))):
        name = f"run - 7b - {key}"
        lines = [f'"Step","{name}","{name}__MIN","{name}__MAX"', *(f"{n},{value(n)},0,1" for n in range(STEPS))]
        (tmp_path / f"{key.replace('/', '_')}.csv").write_text("\n".join(lines))
    ((name, paths),) = find_runs(tmp_path)
    assert name == "run - 7b"
    found = points(read_metrics(paths), name)
    assert estimate(found.entropy, found.score).law.a == pytest.approx(0.2, abs=1e-6)


@pytest.mark.parametrize("with_bar", [True, False])
@pytest.mark.parametrize("every", [1, 5])  # steps between records
def test_a_resumed_log_of_dictionaries_goes_back_to_its_step(tmp_path, with_bar, every):
    steps = [*range(every, 41, every), *range(30 + every, 61, every)]
    record = "{{'loss': 0.0, 'reward': {}, 'entropy': {}, 'epoch': {}}}\n"
    text = ""
    for at, n in enumerate(steps):
        bar_ = f" {100 * n // 60}%|##  | {n}/60 [00:11<01:00,  1.00s/it]\n" if with_bar else ""
        text += bar_ + record.format(n / 100 + at / 1e4, 1 / (n + at / 1e4), round(n / 60, 4))
    path = tmp_path / "train.log"
    path.write_text(text)
    run = read_metrics(path)
    unit = every if with_bar else 1
    assert run.steps.tolist() == [n // every * unit for n in range(every, 61, every)]
    assert run.repeats == 1
    notes = " ".join(points(run, "run").notes)
    assert "The step ran backwards 1 time" in notes
    assert ("its records were counted" in notes) is not with_bar
