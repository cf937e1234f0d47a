"""The countdown task: its rules, its generator, its files, and its face to verl."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verl_cov.tasks import countdown
from verl_cov.tasks.countdown import LEVELS, MAX_TERMS, Problem, Settings

SMALL = Settings(train=20, validation=10)

problems = st.builds(
    lambda numbers, target: Problem(tuple(sorted(numbers)), target),
    st.sets(st.integers(1, 9), min_size=2, max_size=5),
    st.integers(1, 54),
)


def by_hand(answer: str, problem: Problem) -> bool:
    """The rules once more, another way: every allowed digit string of that length, its digits counted."""
    counts = Counter(answer)
    allowed = {str(number): number for number in problem.numbers}
    return (
        2 <= len(answer) <= 6
        and all(character in allowed for character in counts)
        and sum(allowed[character] * times for character, times in counts.items()) == problem.target
    )


class TestRules:
    def test_examples(self):
        problem = Problem.parse("2459:19")
        assert countdown.verify("955", problem)
        assert countdown.verify("559", problem)
        assert countdown.verify("922222", problem)
        for wrong in (
            "",
            "9",
            "95",
            "9555",
            "199",
            "9 55",
            "955 ",
            " 955",
            "955\n",
            "9+5+5",
            "-955",
            "9.55",
            "\u0669\u0665\u0665",  # the same digits in other scripts
            "\uff19\uff15\uff15",
        ):
            assert not countdown.verify(wrong, problem), wrong

    def test_one_digit_and_seven_digits_are_no_answers(self):
        assert not countdown.verify("9", Problem((2, 9), 9))
        assert not countdown.verify("1" * 7, Problem((1, 2), 7))
        assert countdown.verify("1" * 6, Problem((1, 2), 6))

    @given(problems)
    def test_every_listed_answer_is_right_and_the_count_agrees(self, problem: Problem):
        listed = countdown.answers(problem)
        assert listed == sorted(set(listed))
        assert all(countdown.verify(answer, problem) for answer in listed)
        for terms in range(2, MAX_TERMS + 1):
            assert countdown.count_answers(problem, terms) == len(countdown.answers(problem, terms))

    @given(st.sampled_from([(1, 2), (2, 3, 7), (1, 5, 9)]), st.integers(1, 30))
    def test_the_list_misses_none(self, numbers: tuple[int, ...], target: int):
        problem = Problem(numbers, target)
        texts = ("".join(map(str, d)) for n in range(2, MAX_TERMS + 1) for d in product(numbers, repeat=n))
        assert countdown.answers(problem) == sorted(text for text in texts if by_hand(text, problem))

    @given(st.sampled_from(countdown.generate(SMALL, "train")), st.data())
    def test_a_mutation_is_right_only_where_the_rules_say_so(self, problem: Problem, data: st.DataObject):
        answer = data.draw(st.sampled_from(countdown.answers(problem)))
        place = data.draw(st.integers(0, len(answer)))
        character = data.draw(st.sampled_from("0123456789 +-\n"))
        for mutated in (
            answer[:place] + character + answer[place:],
            answer[:place] + character + answer[place + 1 :],
            answer[:place] + answer[place + 1 :],
        ):
            assert countdown.verify(mutated, problem) == by_hand(mutated, problem)
        assert not countdown.verify(answer + character, problem)  # no digit is zero: one more always breaks the sum

    @given(st.text(), problems)
    def test_any_text_gets_a_verdict(self, text: str, problem: Problem):
        assert countdown.verify(text, problem) == by_hand(text, problem)

    def test_hostile_text_is_refused_at_once(self):
        problem = Problem((1, 9), 10)
        started = time.perf_counter()
        for text in ("1" * 10**7, "19" * 10**6 + "x", "9**9**9**9", "__import__('os')", "\x00" * 10**6, "\ud800"):
            assert not countdown.verify(text, problem)
        assert time.perf_counter() - started < 1


class TestProblem:
    @given(problems)
    def test_text_and_back(self, problem: Problem):
        assert Problem.parse(problem.text) == problem

    @pytest.mark.parametrize(
        "text",
        ["", "2459", "2459:", ":19", "2459:019", "9542:19", "2259:19", "0459:19", "2459:0", "2459:19\n", 19, None],
    )
    def test_anything_else_raises(self, text: object):
        with pytest.raises(ValueError, match="not a countdown problem"):
            Problem.parse(text)


class TestGenerator:
    @pytest.mark.parametrize("level", LEVELS)
    def test_every_prompt_can_be_answered(self, level: str):
        settings = LEVELS[level]
        for split, wanted in (("train", settings.train), ("validation", settings.validation)):
            drawn = countdown.generate(settings, split)
            assert len(drawn) == len(set(drawn)) == wanted
            for problem in drawn:
                assert len(problem.numbers) == settings.numbers
                assert settings.min_target <= problem.target <= settings.max_target
                assert countdown.verify(countdown.answers(problem, settings.max_terms)[0], problem)

    @pytest.mark.parametrize("seed", range(5))
    def test_no_validation_digit_set_is_in_training(self, seed: int):
        settings = replace(SMALL, seed=seed)
        train, validation = (
            {problem.numbers for problem in countdown.all_problems(settings, split)}
            for split in ("train", "validation")
        )
        assert train
        assert validation
        assert not train & validation

    def test_a_split_is_drawn_from_its_own_side(self):
        for split in ("train", "validation"):
            assert set(countdown.generate(SMALL, split)) <= set(countdown.all_problems(SMALL, split))

    def test_the_seed_decides(self):
        assert countdown.generate(SMALL, "train") == countdown.generate(SMALL, "train")
        assert countdown.generate(SMALL, "train") != countdown.generate(replace(SMALL, seed=1), "train")

    def test_the_hash_seed_does_not(self):
        code = (
            "from verl_cov.tasks import countdown as c; s = c.Settings(train=20, validation=10);"
            "print([p.text for split in ('train', 'validation') for p in c.generate(s, split)])"
        )
        outputs = {
            subprocess.run(
                [sys.executable, "-c", code],
                env={**os.environ, "PYTHONHASHSEED": seed},
                capture_output=True,
                text=True,
                check=True,
            ).stdout
            for seed in ("1", "2")
        }
        assert len(outputs) == 1
        assert outputs.pop().strip() == str(
            [p.text for s in ("train", "validation") for p in countdown.generate(SMALL, s)]
        )

    def test_the_knob_turns(self):
        def luck(settings: Settings) -> float:
            """How often a random answer, of a length within the level's, is right."""
            drawn = countdown.generate(settings, "train")
            tries = sum(settings.numbers**terms for terms in range(2, settings.max_terms + 1))
            return sum(countdown.count_answers(problem, settings.max_terms) for problem in drawn) / tries / len(drawn)

        def short(settings: Settings) -> float:
            """Share of the prompts that three digits can answer."""
            drawn = countdown.generate(settings, "train")
            return sum(countdown.count_answers(problem, 3) > 0 for problem in drawn) / len(drawn)

        assert luck(LEVELS["easy"]) > 1.3 * luck(LEVELS["medium"])
        assert short(LEVELS["medium"]) > 1.3 * short(LEVELS["hard"])

    def test_bad_requests_are_refused(self):
        with pytest.raises(ValueError, match="prompts are too many"):
            countdown.generate(replace(SMALL, train=10**6), "train")
        with pytest.raises(ValueError, match="split must be"):
            countdown.generate(SMALL, "test")
        for bad in (
            {"numbers": 1},
            {"numbers": 7},
            {"max_terms": 1},
            {"max_terms": 7},
            {"min_target": 0},
            {"min_target": 30},
            {"max_target": 55},
            {"train": 0},
            {"validation_share": 1.0},
        ):
            with pytest.raises(ValueError, match="must be"):
                replace(SMALL, **bad)


class TestReward:
    def test_score(self):
        assert countdown.compute_score(countdown.DATA_SOURCE, "955", "2459:19") == 1.0
        assert countdown.compute_score(countdown.DATA_SOURCE, "954", "2459:19", {"index": 1}, reward_router=None) == 0.0

    def test_a_damaged_ground_truth_is_not_a_zero(self):
        with pytest.raises(ValueError, match="not a countdown problem"):
            countdown.compute_score(countdown.DATA_SOURCE, "955", "2459")

    @pytest.mark.parametrize("path", ["pkg://verl_cov.tasks.countdown", countdown.__file__])
    def test_verl_loads_it(self, path: str):
        pytest.importorskip("verl")
        from omegaconf import OmegaConf
        from verl.trainer.ppo.reward import get_custom_reward_fn

        function = {"path": path, "name": "compute_score"}
        score = get_custom_reward_fn(OmegaConf.create({"reward": {"custom_reward_function": function}}))
        assert score(data_source="x", solution_str="955", ground_truth="2459:19", extra_info={}) == 1.0


class TestFiles:
    def test_rows_are_verls(self, tmp_path: Path):
        datasets = pytest.importorskip("datasets")
        paths = countdown.write_parquet(tmp_path / "new" / "folder", SMALL)
        for path, split, wanted in zip(paths, ("train", "validation"), (20, 10), strict=True):
            # As verl reads them.
            table = datasets.load_dataset("parquet", data_files=str(path), cache_dir=str(tmp_path / "cache"))["train"]
            assert path.name == f"{split}.parquet"
            assert len(table) == wanted
            assert [row["prompt"][0]["content"] for row in table] == [p.text for p in countdown.generate(SMALL, split)]
            for index, row in enumerate(table):
                (message,) = row["prompt"]
                assert message["role"] == "user"
                assert row["data_source"] == countdown.DATA_SOURCE
                assert row["reward_model"] == {"style": "rule", "ground_truth": message["content"]}
                assert row["extra_info"]["split"] == split
                assert row["extra_info"]["index"] == index
                assert row["extra_info"]["answers"] == len(countdown.answers(Problem.parse(message["content"])))

    def test_the_same_settings_write_nothing_again(self, tmp_path: Path):
        paths = countdown.write_parquet(tmp_path, SMALL)
        before = [(path.stat().st_ino, path.stat().st_mtime_ns) for path in paths]
        assert countdown.write_parquet(tmp_path, SMALL) == paths
        assert [(path.stat().st_ino, path.stat().st_mtime_ns) for path in paths] == before

    def test_other_settings_or_a_lost_file_write_again(self, tmp_path: Path):
        paths = countdown.write_parquet(tmp_path, SMALL)
        first = paths[0].read_bytes()
        countdown.write_parquet(tmp_path, replace(SMALL, seed=1))
        assert paths[0].read_bytes() != first
        countdown.write_parquet(tmp_path, SMALL)
        assert paths[0].read_bytes() == first
        paths[0].unlink()
        countdown.write_parquet(tmp_path, SMALL)
        assert paths[0].read_bytes() == first

    def test_an_interrupted_write_leaves_no_stamp_and_no_rubbish(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        import pyarrow.parquet

        countdown.write_parquet(tmp_path, SMALL)
        whole = (tmp_path / "train.parquet").read_bytes()

        def break_off(table, path):
            Path(path).write_bytes(b"PAR1 half a file")
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(pyarrow.parquet, "write_table", break_off)
            with pytest.raises(KeyboardInterrupt):
                countdown.write_parquet(tmp_path, replace(SMALL, seed=1))
        assert sorted(path.name for path in tmp_path.iterdir()) == ["train.parquet", "validation.parquet"]
        assert (tmp_path / "train.parquet").read_bytes() == whole  # the old file, not half of the new
        countdown.write_parquet(tmp_path, replace(SMALL, seed=1))
        assert json.loads((tmp_path / "countdown.json").read_text())["settings"]["seed"] == 1

    def test_settings_that_cannot_be_met_touch_nothing(self, tmp_path: Path):
        with pytest.raises(ValueError, match="prompts are too many"):
            countdown.write_parquet(tmp_path / "data", replace(SMALL, train=10**6))
        assert not (tmp_path / "data").exists()

    def test_command_line(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
        countdown.main([str(tmp_path), "--level", "easy", "--seed", "3"])
        assert capsys.readouterr().out.split() == [str(tmp_path / f"{s}.parquet") for s in ("train", "validation")]
        settings = json.loads((tmp_path / "countdown.json").read_text())["settings"]
        assert (settings["numbers"], settings["seed"]) == (3, 3)
