import json
import subprocess
import sys
from pathlib import Path

import pytest

from verl_cov.law import NoPoints, find_runs, read_metrics

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
