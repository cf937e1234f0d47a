import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from verl_cov.law import read_metrics, readers


def line(step, **data):
    return json.dumps({"step": step, "data": data}) + "\n"


def test_columns_and_keys(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text(line(2, a=2, b=True) + line(1, a=1.5, c=None, d="text", e=10**400))
    run = read_metrics(path)
    assert run.steps.tolist() == [1, 2]
    assert run.steps.dtype == np.int64
    np.testing.assert_array_equal(run.column("a"), [1.5, 2])
    np.testing.assert_array_equal(run.column("b"), [np.nan, 1])
    for key in ("c", "d", "e", "absent"):
        assert np.isnan(run.column(key)).all()
    assert run.keys() == ["a", "b", "c", "d", "e"]
    assert run.damaged == 0


def test_segments_are_merged_by_step_and_the_last_value_wins(tmp_path):
    one, two = tmp_path / "1", tmp_path / "2"
    one.write_text(line(0, val=0.1) + line(1, h=1.0) + line(2, h=0.9))
    two.write_text(line(2, h=0.8) + line(3, h=0.7))
    run = read_metrics([one, str(two)])
    assert run.steps.tolist() == [0, 1, 2, 3]
    np.testing.assert_array_equal(run.column("h"), [np.nan, 1.0, 0.8, 0.7])


def test_the_validation_that_a_resumed_run_logs_first_does_not_erase_its_step(tmp_path):
    one, two = tmp_path / "1", tmp_path / "2"
    one.write_text(line(4, h=0.9, val=0.3))
    two.write_text(line(4, val=0.35))
    run = read_metrics([one, two])
    assert run.column("h").tolist() == [0.9]
    assert run.column("val").tolist() == [0.35]


def test_damaged_lines_are_counted_and_never_fatal(tmp_path):
    path = tmp_path / "m.jsonl"
    whole = line(1, h=1.0) + line(2, h=2.0)
    bad = [b"\xff\xfe\n", b"[]\n", b'{"step": true, "data": {}}\n', b'{"step": 3}\n', b'{"step": -1, "data": {}}\n']
    bad += [b"[" * 100_000 + b"\n", b'{"step": 1' + b"0" * 30 + b', "data": {}}\n', line(3, h=3.0).encode()[:-5]]
    path.write_bytes(whole.encode() + b"\n  \n" + b"".join(bad))
    run = read_metrics(path)
    assert run.damaged == len(bad)
    assert run.steps.tolist() == [1, 2]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=300))
def test_any_bytes_can_be_read(tmp_path, content):
    path = tmp_path / "any"
    path.write_bytes(content)
    run = read_metrics(path)
    assert run.steps.size == len(run.records)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.tuples(st.integers(0, 20), st.floats(0, 3)), max_size=30), st.data())
def test_where_the_segments_are_cut_does_not_matter(tmp_path, records, data):
    cut = data.draw(st.integers(0, len(records)))
    paths = []
    for number, part in enumerate((records, records[:cut], records[cut:])):
        paths.append(tmp_path / str(number))
        paths[-1].write_text("".join(line(step, h=value) for step, value in part))
    whole, pieces = read_metrics(paths[0]), read_metrics(paths[1:])
    assert whole.records == pieces.records
    assert whole.steps.tolist() == pieces.steps.tolist()


def test_missing_and_empty_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no metrics file at .*absent"):
        read_metrics(tmp_path / "absent")
    (tmp_path / "empty").touch()
    run = read_metrics(tmp_path / "empty")
    assert run.steps.size == 0
    assert run.column("h").shape == (0,)


def test_flat_records_say_their_step_in_a_column_of_some_name(tmp_path):
    path = tmp_path / "history.jsonl"
    rows = [{"_step": 7, "global_step": 1, "entropy": 0.5}, {"_step": 8, "global_step": 2, "reward": 1, "note": "text"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"entropy": 0.1}, {"step": 0.5, "entropy": 0.2}]))
    run = read_metrics(path)
    assert run.steps.tolist() == [1, 2]
    assert run.records == ({"_step": 7, "entropy": 0.5}, {"_step": 8, "reward": 1})
    assert run.damaged == 2


def test_what_a_resumed_run_repeats_is_counted_once_a_launch(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text("".join(line(step, h=step + n / 10) for n in range(3) for step in range(10)))
    assert read_metrics(path).repeats == 2
    # More of the same step repeats nothing.
    path.write_text(line(4, h=0.9, time=1.0) + line(4, val=0.35, time=2.0) + line(4, h=0.9))
    assert read_metrics(path).repeats == 0


def test_progress_ends_with_everything_read(tmp_path):
    paths = [tmp_path / "1", tmp_path / "2"]
    for path in paths:
        path.write_text(line(1, h=1.0) * 5)
    told = []
    read_metrics(paths, progress=lambda done, total: told.append((done, total)))
    total = sum(path.stat().st_size for path in paths)
    assert told[-1] == (total, total)
    assert {total for _, total in told} == {total}
    assert [done for done, _ in told] == sorted(done for done, _ in told)


def test_the_score_is_the_mean_over_samples_and_not_the_best_of_them():
    keys = ["val-core/x/acc/best@2/mean", "val-core/x/acc/mean@2", "actor/entropy"]
    assert readers.pick_score(keys) == "val-core/x/acc/mean@2"
    assert readers.pick_score(["val-core/x/acc"]) == "val-core/x/acc"
    assert readers.pick_score(["actor/entropy"]) is None
