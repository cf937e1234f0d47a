"""TensorBoard folders, written by torch's writer as verl's logger does."""

import math
import sys

import numpy as np
import pytest

from verl_cov.law import NoPoints, read_metrics
from verl_cov.law.readers.tensorboard import event_files

tensorboard = pytest.importorskip("tensorboard")


def write(folder, records, number=0):
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(folder, filename_suffix=f".{number}") as writer:
        for step, data in records:
            for key, value in data.items():
                writer.add_scalar(key, value, step)
        writer.add_text("config", "not a number")
        writer.add_histogram("weights", np.ones(3))
    # The name holds the second, which two launches of a test share.
    (file,) = [path for path in folder.iterdir() if path.name.endswith(f".{number}")]
    file.rename(folder / f"events.out.tfevents.{1_000_000_000 + number}.host.1.{number}")


def test_of_the_launches_of_a_run_the_later_one_counts(tmp_path):
    write(tmp_path, [(step, {"h": step, "r": 0.5}) for step in range(6)], number=9)
    write(tmp_path, [(step, {"h": -step}) for step in range(4, 8)], number=10)  # "10" sorts before "9" by letters
    run = read_metrics(tmp_path)
    assert run.steps.tolist() == list(range(8))
    assert run.column("h").tolist() == [0, 1, 2, 3, -4, -5, -6, -7]
    assert run.column("r")[4] == 0.5
    assert run.repeats == 1
    assert run.damaged == 0
    assert run.keys() == ["h", "r"]


def test_values_that_are_not_finite(tmp_path):
    write(tmp_path, [(1, {"h": math.nan, "r": math.inf})])
    run = read_metrics(event_files(tmp_path)[0])
    assert math.isnan(run.column("h")[0])
    assert run.column("r")[0] == math.inf


def test_scalars_as_tensorflow_2_writes_them(tmp_path):
    from tensorboard.plugins.scalar.summary_v2 import scalar_pb
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(tmp_path) as writer:
        writer.file_writer.add_summary(scalar_pb("h", 0.25), 3)
    assert read_metrics(tmp_path).records == ({"h": 0.25},)


def test_a_file_that_was_cut_off_is_read_to_the_cut(tmp_path):
    write(tmp_path, [(step, {"h": step}) for step in range(100)])
    (file,) = event_files(tmp_path)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    run = read_metrics(tmp_path)
    assert 10 < len(run.steps) < 100
    assert run.steps.tolist() == list(range(len(run.steps)))
    assert run.damaged == 1


def test_without_tensorboard_the_error_says_what_to_install(tmp_path, monkeypatch):
    write(tmp_path, [(1, {"h": 1.0})])
    monkeypatch.setitem(sys.modules, "tensorboard.backend.event_processing.event_file_loader", None)
    with pytest.raises(NoPoints, match="pip install tensorboard"):
        read_metrics(tmp_path)
