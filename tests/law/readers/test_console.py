"""Console logs: what a terminal and other processes do to verl's records, and what is read of them all the same."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from verl_cov.hooks import versions
from verl_cov.law import points, read_metrics
from verl_cov.law.readers import lines

DATA = Path(__file__).parent.parent / "data"
RAY = "\x1b[36m(TaskRunner pid=123, ip=10.0.0.2)\x1b[0m "
OTHER = "\x1b[36m(WorkerDict pid=7)\x1b[0m INFO global_step:3 - loading took 5 - seconds\n"
BAR = "\rTraining Progress:  10%|█         | 1/10 [00:04<01:40,  4.2s/it]"

KEYS = ("actor/entropy", "val-core/openai/gsm8k/acc/mean@8", "critic/score/mean", "actor/lr", "timing_s/gen", "a-b/c:d")
values = st.one_of(st.floats(), st.integers(-5, 10**6))
record = st.dictionaries(st.sampled_from(KEYS), values, min_size=1)


def shown(value):
    return f"np.float64({value!r})" if isinstance(value, float) and math.isfinite(value) else repr(value)


def line(step, data):
    """As verl's LocalLogger prints it."""
    return " - ".join([f"step:{step}", *(f"{key}:{shown(value)}" for key, value in data.items())])


def read(tmp_path, text):
    path = tmp_path / "train.log"
    path.write_bytes(text.encode())
    return read_metrics(path)


def same(run, records):
    assert run.steps.tolist() == list(range(len(records)))
    assert [list(one) for one in run.records] == [list(one) for one in records]
    for key in KEYS:
        wanted = [float(data.get(key, math.nan)) for data in records]
        np.testing.assert_array_equal(run.column(key), wanted)


def test_a_real_log_gives_the_points_of_the_file_logger():
    log, file = read_metrics(DATA / "console.log"), read_metrics(DATA / "file.jsonl")
    assert log.damaged == 0
    assert log.steps.tolist() == list(range(10))
    for key in file.keys():  # noqa: SIM118
        np.testing.assert_array_equal(log.column(key), file.column(key))
    one, other = points(log, "run"), points(file, "run")
    assert one.steps.tolist() == other.steps.tolist() == [0, 4, 8]
    assert one.entropy.tolist() == other.entropy.tolist()
    assert one.score.tolist() == other.score.tolist()
    assert one.notes == other.notes


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(record, min_size=1, max_size=6), st.sampled_from(["", RAY, BAR + "\r" + RAY, BAR + RAY, OTHER + RAY]))
def test_prefixes_bars_and_other_processes(tmp_path, records, before):
    assume(longest_of_several([line(step, data) for step, data in enumerate(records)]) is None)
    run = read(tmp_path, "".join(f"{before}{line(step, data)}\n{OTHER}" for step, data in enumerate(records)))
    same(run, records)
    assert run.damaged == 0


def longest_of_several(lines):
    """The greatest length, if several lines have it: a log that is cut there looks the same, so that their last values
    may be given up. Else None."""
    lengths = [len(text.rstrip()) for text in lines]
    return max(lengths) if lengths and lengths.count(max(lengths)) > 1 else None


def wrap(text, width, trim):
    pieces = [text[start : start + width] for start in range(0, len(text), width)]
    return "\n".join(piece.rstrip() if trim else piece for piece in pieces) + "\n"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.lists(record, min_size=1, max_size=6),
    st.integers(60, 200),
    st.booleans(),
    st.sampled_from(["", "(TaskRunnerV1 pid=2091) "]),
    st.sampled_from(["", "(WorkerDict pid=7) hello\n", "hello\n", "\n"]),
)
def test_wrapped_lines(tmp_path, records, width, trim, before, after):
    lines = [before + line(step, data) for step, data in enumerate(records)]
    run = read(tmp_path, "".join(wrap(text, width, trim) + after for text in lines))
    # A record that ends at an edge, or is as long as others, could go on: its last value may be given up.
    read_back = dict(zip(run.steps.tolist(), run.records, strict=True))
    lost = 0
    for step, data in enumerate(records):
        got = read_back.get(step, {})
        assert list(got) == list(data)[: len(got)]
        assert all(value != value or value == data[key] for key, value in got.items())
        assert len(got) >= len(data) - 1
        lost += len(got) < len(data)
    assert run.damaged == lost


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(record, st.integers(60, 100), st.data())
def test_a_wrapped_record_that_is_torn_has_no_wrong_value(tmp_path, data, width, draw):
    text = line(1, {"actor/some/metric/or/other": 0.123456789, "actor/another/metric": 1e-05} | data)
    pieces = wrap(text, width, trim=False).splitlines(keepends=True)
    at = draw.draw(st.integers(2, max(2, len(pieces) - 1)))
    run = read(tmp_path, "".join([*pieces[:at], OTHER, *pieces[at:]]))
    got = run.records[0] if run.records else {}
    whole = {"actor/some/metric/or/other": 0.123456789, "actor/another/metric": 1e-05} | data
    assert all(value != value or value == whole[key] for key, value in got.items())
    assert run.damaged == (len(got) < len(whole))


def test_a_table_as_wide_as_the_record_before_it(tmp_path):
    text = "step:1 - actor/a:1.25\n"
    run = read(tmp_path, text + ("=" * (len(text) - 1) + "\n") * 2000 + "step:2 - actor/a:1.0\n")
    assert run.steps.tolist() == [1, 2]
    assert run.records[0] == {"actor/a": 1.25}
    assert run.damaged == 0


def test_a_torn_record_keeps_what_is_whole(tmp_path):
    torn = "step:1 - actor/entropy:0.5 - critic/score/mean:0.2(WorkerDict pid=7) hello - actor/lr:0.1\n"
    run = read(tmp_path, "step:0 - val-core/x:0.1\n" + torn)
    assert run.records[1] == {"actor/entropy": 0.5, "actor/lr": 0.1}
    assert run.damaged == 1


def test_a_log_that_ends_within_a_record_does_not_end_with_half_a_number(tmp_path):
    run = read(tmp_path, "step:1 - actor/entropy:0.5 - critic/score/mean:0.2 - actor/lr:0.123"[:-2])
    assert run.records == ({"actor/entropy": 0.5, "critic/score/mean": 0.2},)
    assert run.damaged == 1


def long_record(step, form, count, key="timing_s/p{:03d}"):
    """As much as a real record: the entropy first, the score last."""
    random = np.random.default_rng(step)
    data = {"actor/entropy": random.random()}
    data |= {key.format(n): random.random() * 10.0 ** int(random.integers(-7, 3)) for n in range(count)}
    items = {name: form.format(value) for name, value in (data | {"critic/score/mean": random.random()}).items()}
    return f"step:{step} - " + " - ".join(f"{name}:{value}" for name, value in items.items()), items


@pytest.mark.parametrize("form", ["{!r}", "np.float64({!r})", "{:.4f}", "{:.5e}"])
@pytest.mark.parametrize("key", ["timing_s/p{:03d}", "timing_s/é模{:03d}"])
@pytest.mark.parametrize("size", [1000, 2048, 4096, 8192, 1337, None])  # None: in each position of an item
@pytest.mark.parametrize("unit", ["characters", "bytes"])
def test_a_line_cut_at_a_fixed_length_does_not_end_in_half_a_value(tmp_path, form, key, size, unit):
    count = 60 if size is None else 8192 // len(key)
    lines_, wanted = zip(*(long_record(step, form, count, key) for step in range(1, 6)), strict=True)
    for at in range(1020, 1050) if size is None else [size]:
        cut = [text[:at].encode() if unit == "characters" else text.encode()[:at] for text in lines_]
        path = tmp_path / "output.log"
        path.write_bytes(b"".join(line + b"\nINFO other\n" for line in cut))
        run = read_metrics(path)
        assert run.steps.tolist() == [1, 2, 3, 4, 5]
        assert run.damaged == 5
        for got, items in zip(run.records, wanted, strict=True):
            assert len(got) > 10
            for name, value in got.items():
                assert value == float(items[name].removeprefix("np.float64(").removesuffix(")"))


@pytest.mark.parametrize("every", [1, 5])  # every line is cut, or only the longer ones, those with a validation
@pytest.mark.parametrize("form", ["{!r}", "{:.6f}"])
def test_short_lines_cut_within_their_last_number_lose_it(tmp_path, every, form):
    texts, wanted = [], []
    for step in range(1, 61):
        items = {f"a/x{n}": form.format(math.exp(-(n + 1) * step / 50)) for n in range(4)}
        items["b/y"] = str(10 ** (step % 4))  # fields before the cut differ in length
        if step % every == 0:
            items["val-core/math/acc/mean@1"] = form.format(1 - 0.9 * math.exp(-step / 30))
        wanted.append({key: float(value) for key, value in items.items()})
        texts.append(f"step:{step} - " + " - ".join(f"{key}:{value}" for key, value in items.items()))
    score = min(text.index("mean@1:") for text in texts if "mean@1" in text) + len("mean@1:")
    for size in range(score + 5, score + 9):
        run = read(tmp_path, "\n".join(text[:size] for text in texts) + "\n")
        assert run.damaged >= sum(len(text) > size for text in texts)
        for got, items in zip(run.records, wanted, strict=True):
            assert all(math.isclose(value, items[key], rel_tol=1e-13) for key, value in got.items())


def test_short_lines_of_one_format_are_whole(tmp_path):
    texts = [f"step:{n} - a/x:{n / 7:.4f} - critic/score/mean:{0.01 * n:.4f}" for n in range(60)]
    assert read(tmp_path, "\n".join(texts) + "\n").damaged == 0


def test_a_line_that_is_merely_long_is_whole(tmp_path):
    texts = [long_record(step, "{!r}", 400)[0] for step in range(1, 6)]
    run = read(tmp_path, "\n".join(texts) + "\n")
    assert run.damaged == 0
    assert all("critic/score/mean" in record for record in run.records)


def test_a_short_line_before_another_line_is_whole(tmp_path):
    """verl 0.2 writes "epoch 0, step 1" after each record, as other programs write a time or a number."""
    for other in ("epoch 0, step 1", "2025-01-01 12:00:00 INFO", "e-5 is the rate", "=" * 35, "(1 of 5)"):
        text = "".join(f"{line(step, {'val/x': 0.25, 'a/b': 0.5})}\n{other}\n" for step in range(5))
        run = read(tmp_path, text)
        same(run, [{"val/x": 0.25, "a/b": 0.5}] * 5)
        assert run.damaged == 0


def test_what_a_killed_process_left_is_not_glued_to_the_next_record(tmp_path):
    half = "step:1 - actor/entropy:0.5 - critic/score/mean:0.4"
    for end in ("", "7", "e", "e-", "np.float64(0.", "-"):
        run = read(tmp_path, f"{half}{end}step:2 - actor/entropy:0.25 - critic/score/mean:0.75\n")
        assert run.records[-1] == {"actor/entropy": 0.25, "critic/score/mean": 0.75}
        assert run.records[:-1] in [({"actor/entropy": 0.5},), ()]


def test_a_record_that_breaks_off_among_whole_ones(tmp_path):
    texts = [line(step, {"a/entropy": 0.5, "b/score": 0.47, "c/lr": 0.1}) for step in range(8)]
    texts[4] = texts[4][: texts[4].index("0.47") + 3]
    run = read(tmp_path, "\n".join(texts) + "\n")
    assert run.records[4] == {"a/entropy": 0.5}
    assert run.damaged == 1


@pytest.mark.parametrize(
    "text", ["global_step:3 - a/b:1", "In step:3 - we add", "step:3", "mini-step:3 - a/b:1", "step:3 - sum:7"]
)
def test_what_is_no_record(tmp_path, text):
    run = read(tmp_path, f"{text}\n")
    assert run.steps.size == 0
    assert run.damaged == 0


def test_records_and_line_ends_across_the_pieces_that_are_read(tmp_path, monkeypatch):
    text = "".join(f"{OTHER}{RAY}{line(step, {'actor/entropy': step / 7})}\r\n" for step in range(20))
    for size in (1, 7, 64, 1000):
        monkeypatch.setattr(lines, "_CHUNK", size)
        run = read(tmp_path, text)
        assert run.column("actor/entropy").tolist() == [step / 7 for step in range(20)]


def test_a_file_without_line_ends_does_not_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "_LONGEST_LINE", 1000)
    monkeypatch.setattr(lines, "_CHUNK", 100)
    run = read(tmp_path, "x" * 5000 + "\nstep:1 - actor/a:1.0\n")
    assert run.records == ({"actor/a": 1.0},)


def test_what_verl_itself_writes(tmp_path, monkeypatch, capsys):
    """The same records through verl's own console, file and TensorBoard loggers."""
    pytest.importorskip("tensorboard")
    tracking = pytest.importorskip("verl.utils.tracking")
    if versions.installed("verl") == "0.6.1":
        pytest.skip("the file logger of verl 0.6 cannot write numpy's numbers")
    monkeypatch.setenv("VERL_FILE_LOGGER_PATH", str(tmp_path / "metrics.jsonl"))
    monkeypatch.setenv("TENSORBOARD_DIR", str(tmp_path / "events"))
    logger = tracking.Tracking("project", "run", default_backend=["console", "file", "tensorboard"])
    for step in range(12):
        data = {"actor/entropy": np.float32(1 / (step + 1)), "actor/grad_norm": math.inf} if step else {}
        if step % 3 == 0:
            data["val-core/x/acc/mean@1"] = np.float64(step / 8)
        logger.log(data, step)
    getattr(logger, "finish", logger.__del__)()  # verl 0.9 has a finish
    (tmp_path / "console.log").write_text(capsys.readouterr().out)
    logs = [tmp_path / name for name in ("console.log", "metrics.jsonl", "events")]
    console_log, file, events = (points(read_metrics(log), "run") for log in logs)
    assert file.steps.tolist() == [0, 3, 6, 9]
    assert file.entropy.tolist() == pytest.approx([1 / 2, 1 / 5, 1 / 8, 1 / 11])
    for other in (console_log, events):
        assert other.steps.tolist() == file.steps.tolist()
        np.testing.assert_allclose(other.entropy, file.entropy, rtol=1e-7)
        assert other.score.tolist() == file.score.tolist()
        assert other.notes == file.notes
    assert json.loads(logs[1].read_text().splitlines()[1])["data"]["actor/grad_norm"] is None
