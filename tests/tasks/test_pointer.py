"""Pointer chasing: its rules, its generator, its files, its demonstrations, and its face to verl."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from itertools import islice

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from verl_cov.tasks import pointer
from verl_cov.tasks.pointer import EXAMPLE, Problem, Settings

SMALL = Settings(nodes=5, train=20, validation=10)


@st.composite
def problems(draw):
    order = draw(st.permutations(range(draw(st.integers(3, 8)))))
    table = [0] * len(order)
    for node, to in zip(order, [*order[1:], order[0]], strict=True):
        table[node] = to
    return Problem(tuple(table), draw(st.integers(1, 6)), draw(st.sampled_from(order)))


def by_hand(answer: str, problem: Problem) -> bool:
    """The rules once more, another way: the start, as often around as needed, in the list of the cycle."""
    cycle = [problem.start]
    while (following := problem.table[cycle[-1]]) != problem.start:
        cycle.append(following)
    allowed = {str(node) for node in cycle}
    return (
        1 <= len(answer) <= 6
        and all(character in allowed for character in answer)
        and answer[-1] == str(cycle[problem.hops % len(cycle)])
    )


def test_examples():
    problem = Problem.parse(EXAMPLE)
    assert problem == Problem((2, 3, 4, 5, 6, 0, 1), 3, 5)
    assert problem.path == "024"
    for right in ("4", "024", "666664"):
        assert pointer.verify(right, problem)
    for wrong in ("", "2", "042", "24 ", " 4", "4\n", "0000004", "74", "-4", "４", "4" * 10**6):
        assert not pointer.verify(wrong, problem)


@given(problems(), st.text("01234567 -x", max_size=8))
def test_the_rules_agree_with_rules_written_another_way(problem, answer):
    for one in (answer, problem.path, problem.path[-1], answer + problem.path[-1]):
        assert pointer.verify(one, problem) is by_hand(one, problem)


@given(problems())
def test_the_text_is_the_problem(problem):
    assert Problem.parse(problem.text) == problem
    assert len(problem.text) == len(problem.table) + 3


@pytest.mark.parametrize(
    "text", ["", "x", None, EXAMPLE + "\n", EXAMPLE[:-1], EXAMPLE[1:], "0" + EXAMPLE[1:], EXAMPLE.replace(":3", ":0")]
)
def test_a_damaged_ground_truth_is_an_error(text):
    with pytest.raises(ValueError, match="not a pointer problem"):
        pointer.compute_score("", "4", text)


def test_verls_face():
    assert pointer.compute_score("verl_cov/pointer", "024", EXAMPLE, None, extra=1) == 1.0
    assert pointer.compute_score("verl_cov/pointer", "02", EXAMPLE) == 0.0


def test_the_splits_share_no_table_and_the_seed_decides():
    settings = Settings(train=500, validation=100)
    train, validation = (pointer.generate(settings, split) for split in ("train", "validation"))
    assert (len(set(train)), len(set(validation))) == (500, 100)
    assert not {one.table for one in train} & {one.table for one in validation}
    assert pointer.generate(settings, "train") == train
    assert pointer.generate(replace(settings, seed=1), "train") != train
    hops = Counter(one.hops for one in train)
    assert set(hops) == {1, 2, 3, 4}
    assert min(hops.values()) > 90
    for one in train:
        assert len(set(replace(one, hops=7).path)) == 7  # one cycle over all nodes


def test_answering_at_once_without_looking_is_a_guess():
    """So is the best constant guess by the start alone, which no arrow is followed for."""
    drawn = pointer.generate(Settings(train=4000), "train")
    landed = Counter((one.hops, (int(one.path[-1]) - one.start) % 7) for one in drawn)
    assert max(landed.values()) / 1000 < 0.25


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ({"nodes": 2}, "nodes must be 3 to 8"),
        ({"nodes": 9}, "nodes must be 3 to 8"),
        ({"max_hops": 7}, "max_hops must be 1 to 6"),
        ({"train": 0}, "must be positive"),
        ({"validation_share": 1.0}, "validation_share must be inside"),
    ],
)
def test_settings_are_checked(bad, says):
    with pytest.raises(ValueError, match=says):
        Settings(**bad)


def test_too_many_prompts_are_an_error():
    with pytest.raises(ValueError, match="validation=1000 prompts are too many"):
        pointer.generate(replace(SMALL, validation=1000), "validation")
    with pytest.raises(ValueError, match="validation owns no table of 3 nodes"):
        pointer.generate(replace(SMALL, nodes=3, validation_share=1e-9), "validation")
    with pytest.raises(ValueError, match="split must be"):
        pointer.generate(SMALL, "test")


def test_files(tmp_path):
    paths = pointer.write_parquet(tmp_path, SMALL)
    rows = pq.read_table(paths[1]).to_pylist()
    assert len(rows) == 10
    for row, problem in zip(rows, pointer.generate(SMALL, "validation"), strict=True):
        assert row["data_source"] == "verl_cov/pointer"
        assert row["prompt"] == [{"role": "user", "content": problem.text}]
        assert row["reward_model"]["ground_truth"] == problem.text
        assert row["extra_info"]["hops"] == problem.hops
        assert pointer.compute_score("", problem.path, row["reward_model"]["ground_truth"]) == 1.0
    written = [path.stat().st_mtime_ns for path in paths]
    assert pointer.write_parquet(tmp_path, SMALL) == paths
    assert [path.stat().st_mtime_ns for path in paths] == written
    pointer.write_parquet(tmp_path, replace(SMALL, seed=1))
    assert [path.stat().st_mtime_ns for path in paths] != written
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pointer.json", "train.parquet", "validation.parquet"]


class TestDemonstrations:
    def settings(self, **changes):
        from verl_cov.tasks.tiny_model.starts import settings_of

        return replace(settings_of("pointer-small-3"), steps=100, batch=40, **changes)

    def test_the_habit_is_the_answer_at_once_and_the_others_have_their_hops(self):
        from verl_cov.tasks.tiny_model import lessons

        settings = self.settings(slips_from=0.5, slips=0.0)
        shown = list(lessons.demonstrations(settings))
        assert len(shown) == 4000
        assert all(pointer.verify(one.answer, one.problem) for one in shown)
        halves = [[one for one in half if one.problem.hops > 1] for half in (shown[:2000], shown[2000:])]
        early, late = (sum(len(one.answer) > 1 for one in half) / len(half) for half in halves)
        assert early == pytest.approx(1 - lessons.EARLY_HABIT, abs=0.03)
        assert late == pytest.approx(0.2, abs=0.03)
        held_out = {one.table for one in pointer.generate(settings.task, "validation")}
        assert not held_out & {one.problem.table for one in shown}

    def test_a_slip_is_a_node_or_the_end_and_is_not_read(self):
        from verl_cov.tasks.tiny_model import lessons
        from verl_cov.tasks.tiny_model.byte_tokenizer import END, SPECIAL

        wrong = tokens = 0
        for one in lessons.demonstrations(self.settings(slips_from=0.0)):
            right = [*one.answer.encode(), SPECIAL[END]]
            assert set(one.taught) <= {*b"0123456", SPECIAL[END]}
            wrong += sum(a != b for a, b in zip(one.taught, right, strict=True))
            tokens += len(right)
        assert wrong / tokens == pytest.approx(0.3 * 7 / 8, abs=0.02)  # one in eight is the right one


def test_starts_have_names():
    from verl_cov.tasks.tiny_model import Settings as Model
    from verl_cov.tasks.tiny_model import fingerprint, starts
    from verl_cov.tasks.tiny_model.model import new_model

    assert starts.settings_of("model") == starts.settings_of("countdown-small-0") == Model()
    assert starts.settings_of("countdown-small-4") == Model(seed=4)
    assert (starts.task_of("model"), starts.task_of("pointer-mini-2")) == ("countdown", "pointer")
    sizes = []
    for size in starts.SIZES:
        model = new_model(starts.settings_of(f"countdown-{size}-0"))
        sizes.append(sum(parameter.numel() for parameter in model.parameters()))
        assert model.config.hidden_size // model.config.num_attention_heads == 32
    assert sizes == sorted(sizes)
    assert 30_000 < sizes[0] < 60_000
    assert 2_500_000 < sizes[-1] < 3_500_000
    keys = {fingerprint(starts.settings_of(f"{task}-{size}-0")) for task in starts.TASKS for size in starts.SIZES}
    assert len(keys) == 2 * len(starts.SIZES)
    for name, says in (
        ("pointer", "is no start"),
        ("pointer-small", "is no start"),
        ("pointers-small-0", "did you mean pointer"),
        ("pointer-smal-0", "did you mean small"),
    ):
        with pytest.raises(ValueError, match=says):
            starts.settings_of(name)


def test_drawing_is_a_function_of_the_dice():
    first, second = (list(islice(pointer.draw(Settings(), "train", random.Random(5)), 20)) for _ in range(2))
    assert first == second
