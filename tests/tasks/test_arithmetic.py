"""Mental arithmetic: its questions, its verifier, its files, and its face to verl."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verl_cov.tasks import arithmetic
from verl_cov.tasks.arithmetic import KINDS, MIXED, SETS, Problem, Settings

SMALL = Settings(train=40, validation=20)


@pytest.mark.parametrize(
    ("problem", "text", "answer"),
    [
        (Problem("sum", (3, 4)), "What is 3 + 4?", "7"),
        (Problem("product", (3, 4)), "What is 3 * 4?", "12"),
        (Problem("largest", (14, 41, 23)), "Which is the largest of 14, 41 and 23?", "41"),
        (Problem("long_sum", (99, 99)), "What is 99 + 99?", "198"),
    ],
)
def test_questions_and_answers(problem, text, answer):
    assert (problem.text, problem.answer) == (text, answer)
    *_, question = arithmetic.prompt(problem)
    assert question == {"role": "user", "content": text}


def test_the_example_of_a_prompt_is_right_and_never_asked():
    for kind in KINDS:
        every = arithmetic.all_problems(kind, SMALL, "train") + arithmetic.all_problems(kind, SMALL, "validation")
        _, asked, answered, _ = arithmetic.prompt(every[0])
        assert (asked["role"], answered["role"]) == ("user", "assistant")
        (shown,) = (Problem(kind, numbers) for numbers in [KINDS[kind].example])
        assert (asked["content"], answered["content"]) == (shown.text, shown.answer)
        assert asked["content"] not in {problem.text for problem in every}


class TestVerifier:
    @pytest.mark.parametrize(
        "response",
        [
            "12",
            "12.",
            " 12\n",
            "The answer is 12.",
            "12, of course",
            "**12**",
            "12 = 3 * 4",
            "012",
            "It is 12, not 13",
            "x12y",
        ],
    )
    def test_right(self, response):
        assert arithmetic.verify(response, 12)

    @pytest.mark.parametrize(
        "response",
        [
            "",
            "twelve",
            "13",
            "3 * 4 = 12",
            "-12",
            "−12",
            "12.5",
            "1.12",
            "12,000",
            "120",
            "112",
            "1 2",
            "\u0661\u0662",
            "１２",
        ],
    )
    def test_wrong(self, response):
        assert not arithmetic.verify(response, 12)

    @given(st.text(), st.integers(2, 198))
    def test_any_text_gets_a_verdict(self, text: str, answer: int):
        assert arithmetic.verify(text, answer) in (True, False)
        without_digits = "".join(c for c in text if not c.isdigit() and c not in "-−")[:150]
        assert arithmetic.verify(f"{without_digits} {answer} ", answer)

    def test_hostile_text_is_refused_at_once(self):
        started = time.perf_counter()
        for text in ("1" * 10**7, "1." * 10**6, "," * 10**7, "x" * 10**7 + "12", "\x00" * 10**6, "\ud800"):
            assert not arithmetic.verify(text, 12)
        assert time.perf_counter() - started < 1

    def test_score(self):
        assert arithmetic.compute_score("verl_cov/arithmetic/sum", "7", "7", {"index": 1}, reward_router=None) == 1.0
        assert arithmetic.compute_score("verl_cov/arithmetic/sum", "8", "7") == 0.0

    @pytest.mark.parametrize("damaged", ["", "seven", "7.0", "-7", "07", "7\n", 7, None])
    def test_a_damaged_ground_truth_is_not_a_zero(self, damaged):
        with pytest.raises(ValueError, match=r"reward_model\.ground_truth must be"):
            arithmetic.compute_score("verl_cov/arithmetic/sum", "7", damaged)

    def test_verl_loads_it(self):
        pytest.importorskip("verl")
        from omegaconf import OmegaConf
        from verl.trainer.ppo.reward import get_custom_reward_fn

        function = {"path": "pkg://verl_cov.tasks.arithmetic", "name": "compute_score"}
        score = get_custom_reward_fn(OmegaConf.create({"reward": {"custom_reward_function": function}}))
        assert score(data_source="x", solution_str="7", ground_truth="7", extra_info={}) == 1.0


class TestGenerator:
    @pytest.mark.parametrize("name", SETS)
    def test_the_right_answer_is_right_and_kinds_have_equal_parts(self, name):
        settings = SETS[name]
        assert settings.kinds == (tuple(KINDS) if name == MIXED else (name,))
        for split, wanted in (("train", settings.train), ("validation", settings.validation)):
            drawn = arithmetic.generate(settings, split)
            assert len(drawn) == wanted
            assert [problem.kind for problem in drawn[: len(settings.kinds)]] == list(settings.kinds)
            for kind in settings.kinds:
                assert sum(problem.kind == kind for problem in drawn) == wanted / len(settings.kinds)
            assert all(arithmetic.verify(problem.answer, int(problem.answer)) for problem in drawn)

    @pytest.mark.parametrize("seed", range(3))
    def test_no_question_of_validation_is_in_training_in_any_order(self, seed):
        settings = replace(SETS[MIXED], seed=seed)
        train, validation = (
            [(p.kind, tuple(sorted(p.numbers))) for p in arithmetic.generate(settings, split)]
            for split in ("train", "validation")
        )
        assert not set(train) & set(validation)
        assert len({problem.text for problem in arithmetic.generate(settings, "validation")}) == settings.validation

    def test_a_kind_with_few_questions_asks_each_as_often_as_any_other(self):
        drawn = arithmetic.generate(SETS["product"], "train")
        times = {problem: drawn.count(problem) for problem in drawn}
        assert times.keys() == set(arithmetic.all_problems("product", SETS["product"], "train"))
        assert max(times.values()) - min(times.values()) <= 1

    def test_the_seed_decides(self):
        assert arithmetic.generate(SMALL, "train") == arithmetic.generate(SMALL, "train")
        assert arithmetic.generate(SMALL, "train") != arithmetic.generate(replace(SMALL, seed=1), "train")

    def test_bad_requests_are_refused(self):
        with pytest.raises(ValueError, match="40 prompts of product are too many"):
            arithmetic.generate(replace(SMALL, kinds=("product",), validation=40), "validation")
        with pytest.raises(ValueError, match="split must be"):
            arithmetic.generate(SMALL, "test")
        for bad in (
            {"kinds": ("sums",)},
            {"kinds": ("sum", "sum")},
            {"kinds": ()},
            {"train": 0},
            {"train": 41},
            {"validation": 10},
            {"validation_share": 1.0},
        ):
            with pytest.raises(ValueError, match=f"^{next(iter(bad))} must be"):
                replace(SMALL, **bad)


class TestFiles:
    def test_rows_are_verls(self, tmp_path: Path):
        pq = pytest.importorskip("pyarrow.parquet")
        for path, split in zip(arithmetic.write_parquet(tmp_path, SMALL), ("train", "validation"), strict=True):
            problems = arithmetic.generate(SMALL, split)
            table = pq.read_table(path).to_pylist()
            assert [row["prompt"] for row in table] == [arithmetic.prompt(problem) for problem in problems]
            assert [row["data_source"] for row in table] == [
                f"verl_cov/arithmetic/{problem.kind}" for problem in problems
            ]
            assert [row["reward_model"]["ground_truth"] for row in table] == [problem.answer for problem in problems]
            assert [row["extra_info"] for row in table] == [{"split": split, "index": n} for n in range(len(problems))]

    def test_command_line(self, tmp_path: Path):
        pytest.importorskip("pyarrow")
        argv = [sys.executable, "-m", "verl_cov.tasks.arithmetic", tmp_path]
        done = subprocess.run([*argv, "--seed", "3"], capture_output=True, text=True, check=True)
        written = {tmp_path / name / f"{split}.parquet" for name in SETS for split in ("train", "validation")}
        assert {Path(line) for line in done.stdout.split()} == written
        assert all(path.is_file() for path in written)
        assert '"seed": 3' in (tmp_path / MIXED / "arithmetic.json").read_text()
