import json
import subprocess
import sys
from pathlib import Path

import pytest

from verl_cov.law import NoPoints, find_runs, read_metrics
from verl_cov.law.readers import find

DATA = Path(__file__).parent.parent / "data"


def put(path, text=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"step": 1, "data": {"h": 1.0}}) + "\n" if text is None else text)
    return path


def found(*arguments):
    return [(name, [str(path) for path in paths]) for name, paths in find_runs(arguments)]


def test_the_segments_of_a_run_are_one_run_in_their_order(tmp_path):
    for number in (1, 2, 10):
        put(tmp_path / "run" / f"{number}.jsonl", json.dumps({"step": number, "data": {"h": number}}) + "\n")
    ((name, paths),) = find_runs([tmp_path / "run"])
    assert name == "run"
    assert [path.stem for path in paths] == ["1", "2", "10"]


def test_dumps_of_rollouts_are_no_runs(tmp_path):
    put(tmp_path / "rollouts" / "5.jsonl", json.dumps({"input": "1+1", "output": "2", "score": 1.0, "step": 5}) + "\n")
    with pytest.raises(NoPoints, match="holds no metrics"):
        find_runs([tmp_path])
    log = put(tmp_path / "project" / "experiment.jsonl")
    assert found(tmp_path) == [("experiment", [str(log)])]


def test_a_run_that_has_just_begun(tmp_path):
    log = put(tmp_path / "project" / "experiment.jsonl", "")
    assert found(tmp_path) == [("experiment", [str(log)])]


def test_a_run_that_logs_in_two_ways_is_found_once(tmp_path):
    metrics = put(tmp_path / "demo" / "vanilla" / "metrics.jsonl")
    put(tmp_path / "demo" / "vanilla" / "train.log", (DATA / "console.log").read_text())
    assert found(tmp_path / "demo") == found(tmp_path / "demo" / "vanilla") == [("vanilla", [str(metrics)])]


def test_console_logs_are_told_from_other_logs_by_their_content(tmp_path):
    put(tmp_path / "logs" / "ray.log", "hello\n")
    log = put(tmp_path / "logs" / "kl.out", (DATA / "console.log").read_text())
    assert found(tmp_path / "logs") == found(tmp_path) == [("kl", [str(log)])]
    train = put(tmp_path / "vanilla" / "train.log", (DATA / "console.log").read_text())
    assert found(train) == [("vanilla", [str(train)])]


def test_tensorboard_folders_lie_as_deep_as_verl_puts_them(tmp_path):
    pytest.importorskip("tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    for name in ("a", "b"):
        with SummaryWriter(tmp_path / "tensorboard_log" / "project" / name) as writer:
            writer.add_scalar("h", 1.0, 1)
    runs = find_runs([tmp_path])
    assert [name for name, _ in runs] == ["a", "b"]
    assert read_metrics(runs[0][1]).column("h").tolist() == [1.0]
    (event_file,) = (tmp_path / "tensorboard_log" / "project" / "a").iterdir()
    assert [name for name, _ in find_runs([event_file])] == ["a"]


def test_names_get_as_many_folders_as_tell_them_apart(tmp_path):
    paths = [put(tmp_path / seed / "run" / "metrics.jsonl") for seed in ("x/s0", "x/s1", "y/s0")]
    assert [name for name, _ in found(*paths)] == ["x/s0/run", "x/s1/run", "y/s0/run"]
    assert [name for name, _ in found(*paths[:2])] == ["s0/run", "s1/run"]
    same = [put(tmp_path / "z" / f"run.{ending}") for ending in ("jsonl", "json", "txt")]
    assert [name for name, _ in found(*same)] == ["run (1)", "run (2)", "run (3)"]


def test_an_argument_given_twice_is_one_run(tmp_path):
    path = put(tmp_path / "run" / "metrics.jsonl")
    assert found(path, tmp_path / "run", tmp_path) == [("run", [str(path)])]


def test_what_is_not_read_is_not_imported():
    code = "import sys, verl_cov.law; print(sorted({'verl', 'torch', 'tensorboard', 'wandb'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_a_folder_without_a_log_says_what_was_looked_for(tmp_path):
    with pytest.raises(FileNotFoundError, match="looked for event files"):
        read_metrics(tmp_path)


# --- what is passed over is said --------------------------------------------------------------------------------------


def said(*arguments):
    runs, left_out = find(arguments)
    return [name for name, _ in runs], {one.path.name: one.reason for one in left_out}


def test_of_folders_beside_runs_each_without_a_log_is_named(tmp_path):
    put(tmp_path / "runs" / "a" / "metrics.jsonl")
    (tmp_path / "runs" / "empty").mkdir()
    put(tmp_path / "runs" / "notes" / "readme.txt", "hello\n")
    put(tmp_path / "runs" / "a" / "checkpoints" / "weights.txt", "no log of a run's own folder is meant\n")
    names, left_out = said(tmp_path / "runs")
    assert names == ["a"]
    assert set(left_out) == {"empty", "notes"}
    assert "looked at readme.txt" in left_out["notes"]
    assert said(tmp_path / "none") == ([], {"none": "no such file or folder"})


def test_runs_of_different_trainers_and_depths_in_one_folder(tmp_path):
    put(tmp_path / "a" / "metrics.jsonl")
    put(tmp_path / "b" / "2025-01-01" / "12-00-00" / "deep" / "er" / "train.log", (DATA / "console.log").read_text())
    put(tmp_path / "c.csv", "step,entropy,reward\n1,0.5,0.1\n")
    put(tmp_path / "d.log", (DATA / "console.log").read_text())
    put(tmp_path / "d.jsonl", (DATA / "file.jsonl").read_text())  # the same run as d.log, by its name
    put(tmp_path / "crashed.out", "Traceback (most recent call last)\n")
    names, left_out = said(tmp_path)
    assert sorted(names) == ["a", "c", "d", "er"]
    assert left_out == {"crashed.out": "no record of a training in it"}


def test_the_pictures_beside_runs_are_no_run_that_is_missing(tmp_path):
    put(tmp_path / "runs" / "one" / "metrics.jsonl")
    for name in ("plots/law.png", "plots/demo.pdf", "other/law.png", "other/notes.md"):
        put(tmp_path / "runs" / name, "x")
    assert said(tmp_path / "runs") == (["one"], {"other": "no log of a known kind in it"})


def test_another_runs_log_in_the_folder_of_a_run_or_below_it_is_named(tmp_path):
    put(tmp_path / "run" / "metrics.jsonl")
    put(tmp_path / "run" / "train.log", (DATA / "console.log").read_text())  # the run itself
    put(tmp_path / "run" / "other.log", (DATA / "console.log").read_text())
    put(tmp_path / "run" / "eval" / "scores.csv", "step,score\n1,0.5\n")
    names, left_out = said(tmp_path)
    assert names == ["run"]
    assert set(left_out) == {"other.log", "scores.csv"}


def test_a_table_without_a_step_names_the_option_and_is_read_with_it(tmp_path):
    path = put(tmp_path / "run.csv", "iteration,entropy,reward\n1,0.5,0.1\n2,0.4,0.2\n")
    assert "--step-key: iteration, entropy, reward" in said(tmp_path)[1]["run.csv"]
    with pytest.raises(NoPoints, match="--step-key: iteration, entropy, reward"):
        read_metrics(path)
    ((_, paths),) = find_runs(tmp_path, "iteration")
    assert read_metrics(paths, step_key="iteration").steps.tolist() == [1, 2]
    rows = put(tmp_path / "rows.jsonl", '{"iteration": 4, "entropy": 0.5}\n{"iteration": 5, "entropy": 0.4}\n')
    with pytest.raises(NoPoints, match="--step-key: iteration, entropy"):
        read_metrics(rows)
    assert read_metrics(rows, step_key="iteration").steps.tolist() == [4, 5]
    log = put(
        tmp_path / "console.log", "step:1 - a/updates:10 - a/entropy:0.5\nstep:2 - a/updates:20 - a/entropy:0.4\n"
    )
    assert read_metrics(log, step_key="a/updates").steps.tolist() == [10, 20]
    with pytest.raises(NoPoints, match=r"no step 'a/epoch'.*--step-key: a/entropy, a/updates"):
        read_metrics(log, step_key="a/epoch")


def test_links_that_lead_in_a_circle_or_nowhere(tmp_path):
    put(tmp_path / "runs" / "a" / "metrics.jsonl")
    (tmp_path / "runs" / "a" / "up").symlink_to(tmp_path / "runs")
    (tmp_path / "runs" / "self").symlink_to(tmp_path / "runs" / "self")
    (tmp_path / "runs" / "latest").symlink_to(tmp_path / "runs" / "a")
    (tmp_path / "runs" / "gone").mkdir()
    (tmp_path / "runs" / "gone" / "metrics.jsonl").symlink_to(tmp_path / "nowhere")
    names, left_out = said(tmp_path / "runs")
    assert names == ["a"]
    assert left_out == {"metrics.jsonl": "a link that leads nowhere"}


def test_what_cannot_be_read_or_lies_too_deep_is_named(tmp_path, monkeypatch):
    put(tmp_path / "a" / "metrics.jsonl")
    closed = put(tmp_path / "closed" / "run.jsonl").parent
    deep = tmp_path / "/".join(f"d{n}" for n in range(14))
    put(deep / "metrics.jsonl")
    listed = Path.iterdir

    def iterdir(folder):  # as root nothing is closed
        if folder == closed:
            raise PermissionError(13, "Permission denied")
        return listed(folder)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    names, left_out = said(tmp_path)
    assert names == ["a"]
    assert left_out["closed"] == "it cannot be read: Permission denied"
    assert "too deep" in left_out["d12"]


def state(path, steps, seed=0):
    history = [{"step": n, "entropy": 1 / (n + seed), "reward": 0.1 * n} for n in range(1, steps + 1)]
    return put(path, json.dumps({"best_metric": None, "log_history": history}, indent=2))


def test_of_the_checkpoints_of_a_run_the_last_is_the_run(tmp_path):
    for run_, seed in (("a", 0), ("b", 5)):
        for steps in (4, 30, 100):
            state(tmp_path / run_ / f"checkpoint-{steps}" / "trainer_state.json", steps, seed)
    names, left_out = said(tmp_path)
    assert names == ["a", "b"]
    assert len(left_out) == 1  # all are called trainer_state.json
    assert [read_metrics(paths).steps.size for _, paths in find_runs(tmp_path)] == [100, 100]
    assert read_metrics(tmp_path / "a").steps.size == 100
    assert [name for name, _ in find_runs(tmp_path / "a" / "checkpoint-30")] == ["checkpoint-30"]
    # The last was being written; and one of another run lies among them.
    half = state(tmp_path / "a" / "checkpoint-200" / "trainer_state.json", 200)
    half.write_bytes(half.read_bytes()[:-100])
    assert read_metrics(find_runs(tmp_path / "a")[0][1]).steps.size == 100
    state(tmp_path / "a" / "checkpoint-4" / "trainer_state.json", 4, seed=9)
    assert [name for name, _ in find_runs(tmp_path / "a")] == ["checkpoint-4", "checkpoint-100"]


def test_one_path_or_many_as_text_or_path(tmp_path):
    path = put(tmp_path / "run" / "metrics.jsonl")
    for given in (str(path), path, [str(path)], [path], (str(tmp_path),)):
        assert find_runs(given) == [("run", [path])]


def test_a_table_whose_values_are_no_numbers_says_so(tmp_path):
    """As a spreadsheet writes it where numbers have a decimal comma."""
    rows = "".join(f"{step};0,{step};0,5\n" for step in range(10, 20))
    run = read_metrics(put(tmp_path / "curve.csv", "step;entropy;reward\n" + rows))
    assert run.damaged == 10
    assert run.damage == "entropy is '0,10', which is no number"


def test_a_step_that_no_training_reaches_is_damage(tmp_path):
    good = json.dumps({"step": 1, "data": {"h": 1.0}})
    log = put(tmp_path / "a.jsonl", good + "\n" + good.replace('"step": 1', f'"step": {2**53 + 1}') + "\n")
    run = read_metrics(log)
    assert (run.steps.tolist(), run.damaged) == ([1], 1)
