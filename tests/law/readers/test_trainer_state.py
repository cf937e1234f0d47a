import json

import pytest

from verl_cov.law import find_runs, points, read_metrics


def write(path, steps):
    history = []
    for step in range(1, steps + 1):
        history.append({"entropy": 1 / step, "epoch": step / 10, "reward": 0.1, "step": step})
        history.append({"eval_reward": step / 10, "eval_runtime": 1.0, "epoch": step / 10, "step": step})
    state = {"best_metric": None, "epoch": 1.0, "global_step": steps, "log_history": history, "max_steps": steps}
    path.write_text(json.dumps(state, indent=2, sort_keys=True))
    return path


def test_the_history_of_a_trainer(tmp_path):
    path = write(tmp_path / "trainer_state.json", 6)
    assert find_runs([path]) == [(tmp_path.name, [path])]
    run = read_metrics(path)
    assert (run.damaged, run.repeats) == (0, 0)
    found = points(run, "run")
    assert (found.entropy_key, found.score_key) == ("entropy", "eval_reward")
    assert found.score.tolist() == [0.1, 0.2, 0.3, 0.4, 0.5]
    assert found.entropy.tolist() == pytest.approx([1 / step for step in (2, 3, 4, 5, 6)])


def test_half_a_file_is_damaged(tmp_path):
    path = write(tmp_path / "trainer_state.json", 6)
    path.write_bytes(path.read_bytes()[:-20])
    run = read_metrics(path)
    assert run.damaged == 1
    assert run.steps.size == 0
