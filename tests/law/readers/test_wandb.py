"""W&B's local runs: one that wandb itself wrote without a network, and files made up chunk by chunk."""

import json
import math
import struct
import subprocess
import sys
import zlib

import pytest

from verl_cov.law import NoPoints, find_runs, points, read_metrics

messages = pytest.importorskip("wandb.proto.wandb_internal_pb2")

_WRITE = """
import wandb
run = wandb.init(mode="offline", project="p", name="the name", dir=".", settings=wandb.Settings(x_disable_stats=True))
many = {f"other/{n}": n / 7 for n in range(2000)}
for step in range(6):
    data = {"actor/entropy": 1 / (step + 1), "val-core/x/acc/mean@1": step / 4, "nan": float("nan")}
    run.log(data | many, step=step)
run.finish()
"""


def test_a_run_that_wandb_wrote(tmp_path):
    subprocess.run([sys.executable, "-c", _WRITE], cwd=tmp_path, check=True, capture_output=True, timeout=1200)
    ((name, paths),) = find_runs([tmp_path])
    assert name == "the name"
    assert paths[0].stat().st_size > 6 * 32768  # so that records go over several blocks
    run = read_metrics(paths)
    assert run.damaged == 0
    assert run.column("actor/entropy").tolist() == [1 / (step + 1) for step in range(6)]
    assert run.column("other/1999").tolist() == [1999 / 7] * 6
    assert all(math.isnan(value) for value in run.column("nan"))
    assert points(run, name).entropy.tolist() == [1 / (step + 1) for step in range(1, 6)]


def history(step, **data):
    record = messages.Record()
    record.history.step.num = step
    for key, value in data.items():
        record.history.item.add(nested_key=[key.replace("__", "/")], value_json=json.dumps(value))
    return record.SerializeToString()


def file(path, raws):
    """The records in LevelDB's format, as its documentation describes it."""
    whole = bytearray(b":W&B\xe1\xbe\x00")
    for raw in raws:
        first = True
        while True:
            room = 32768 - len(whole) % 32768
            if room < 7:
                whole += bytes(room)
                continue
            piece, raw = raw[: room - 7], raw[room - 7 :]
            kind = {(True, True): 1, (True, False): 2, (False, False): 3, (False, True): 4}[first, not raw]
            whole += struct.pack("<IHB", zlib.crc32(piece, zlib.crc32(bytes([kind]))), len(piece), kind) + piece
            first = False
            if not raw:
                break
    path.write_bytes(whole)
    return path


@pytest.mark.parametrize("size", [10, 32700, 32740, 32746, 32747, 32748, 32754, 40000, 100000])
def test_records_across_blocks(tmp_path, size):
    path = file(tmp_path / "run-x.wandb", [history(step, h=step, text="x" * size) for step in range(5)])
    run = read_metrics(path)
    assert run.damaged == 0
    assert run.column("h").tolist() == [0, 1, 2, 3, 4]


def test_the_trainers_step_comes_before_the_loggers(tmp_path):
    """The Hugging Face trainers log twice a step, and W&B counts the calls."""
    raws = [history(0, train__global_step=5, train__entropy=0.4), history(1, train__global_step=5, eval__reward=0.2)]
    run = read_metrics(file(tmp_path / "run-x.wandb", raws))
    assert run.steps.tolist() == [5]
    assert run.column("train/entropy").tolist() == [0.4]
    assert run.column("eval/reward").tolist() == [0.2]


def test_a_damaged_block_costs_no_more_than_itself(tmp_path):
    path = file(tmp_path / "run-x.wandb", [history(step, h=step, text="x" * 500) for step in range(300)])
    content = bytearray(path.read_bytes())
    content[40000] ^= 1
    path.write_bytes(content[:-3])
    run = read_metrics(path)
    assert run.damaged == 2
    assert 200 < len(run.steps) < 300
    assert {0, 298} <= set(run.steps.tolist())


def test_without_wandb_the_error_says_what_to_install(tmp_path, monkeypatch):
    path = file(tmp_path / "run-x.wandb", [history(1, h=1.0)])
    monkeypatch.setitem(sys.modules, "wandb.proto.wandb_internal_pb2", None)
    with pytest.raises(NoPoints, match="pip install wandb"):
        read_metrics(path)
    assert find_runs([path]) == [("x", [path])]
