"""Each source's own format, and what its rows become."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verl_cov.tasks.code import check_tests
from verl_cov.tasks.data.formats import items
from verl_cov.tasks.data.formats.items import Elsewhere, Unusable, strip_instruction
from verl_cov.tasks.data.formats.mathematics import boxed, several, unwrap_dollars
from verl_cov.tasks.data.sets import SETS


def read(name: str, row: dict[str, Any]) -> items.Item:
    """As prepare does: the first format whose fields the row has."""
    one = next(one for one in SETS[name].formats if all(field in row for field in one.fields))
    return one.read(row)


def eurus(content: str, truth: Any, ability: str) -> dict[str, Any]:
    return {
        "data_source": "taco",
        "prompt": [{"role": "system", "content": "Act."}, {"role": "user", "content": content}],
        "ability": ability,
        "reward_model": {"style": "rule", "ground_truth": truth},
        "extra_info": {"index": 7, "split": "train"},
    }


class TestMathematics:
    @pytest.mark.parametrize(
        ("name", "row", "question", "answer"),
        [
            ("aime24", {"id": 1, "problem": "Q", "answer": "033"}, "Q", "033"),
            ("aime24", {"ID": "2024-I-1", "Problem": "Q", "Answer": 33, "Solution": ""}, "Q", "33"),
            ("aime25", {"question": "Q ", "answer": "70"}, "Q", "70"),
            ("amc", {"id": 0, "problem": "Q", "answer": 142.0, "url": ""}, "Q", "142"),
            ("amc", {"problem": "Q", "answer": 0.75}, "Q", "0.75"),
            ("amc", {"problem": "Q", "answer": "142.0"}, "Q", "142"),  # a CSV of it
            ("math500", {"problem": "Q", "answer": "\\frac{1}{2}", "unique_id": "x"}, "Q", "\\frac{1}{2}"),
            ("omni_math", {"problem": "Q", "answer": "\\( 7 \\)."}, "Q", "7"),
            ("gsm8k", {"question": "Q", "answer": "1+1=<<1+1=2>>2\n#### 1,234"}, "Q", "1234"),
            ("gsm8k_test", {"question": "Q", "answer": "#### -5"}, "Q", "-5"),
            ("minerva", {"problem": "Q", "solution": "so $\\boxed{\\frac{1}{2}}$.", "idx": 0}, "Q", "\\frac{1}{2}"),
            ("minerva", {"question": "Q", "answer": "1.08e6"}, "Q", "1.08e6"),
            ("olympiadbench", {"question": "Q", "final_answer": ["$-1, 1$"]}, "Q", "-1, 1"),
            ("olympiadbench", {"question": "Q", "final_answer": "['3']", "context": "C"}, "C\n\nQ", "3"),
            ("dapo_math_17k", {"prompt": "Q", "solution": "34", "reward_model": {}}, "Q", "34"),  # open-r1's
            (
                "eurus2_rl_math",
                eurus("Q\n\nPresent the answer in LaTex format: \\boxed{Your answer}", "2", "math"),
                "Q",
                "2",
            ),
        ],
    )
    def test_question_and_answer(self, name: str, row: dict[str, Any], question: str, answer: str):
        item = read(name, row)
        assert (item.question, item.ground_truth) == (question, answer)

    def test_dapos_instructions_go(self):
        content = (
            "Solve the following math problem step by step. The last line of your response should be of the form "
            "Answer: $Answer (without quotes) where $Answer is the answer to the problem.\n\nFind $x$.\n\nWith $y$.\n\n"
            'Remember to put your answer on its own line after "Answer:".'
        )
        row = eurus(content, "3", "MATH")
        row["extra_info"] = {"index": "some-uuid"}
        item = read("dapo_math_17k", row)
        assert (item.question, item.ground_truth, item.id) == ("Find $x$.\n\nWith $y$.", "3", "some-uuid")

    def test_long_white_space_takes_no_time(self):
        assert strip_instruction("a" + " " * 300_000 + "b").startswith("a ")

    def test_instructions_inside_a_question_stay(self):
        text = "Please reason step by step, and put your final answer within \\boxed{}. said the king."
        assert strip_instruction(text) == text

    @pytest.mark.parametrize(
        ("name", "row", "reason"),
        [
            ("aime24", {"problem": "Q", "answer": None}, "no answer"),
            ("aime24", {"problem": "Q", "answer": " "}, "no answer"),
            ("amc", {"problem": "Q", "answer": float("nan")}, "no answer"),
            ("aime24", {"problem": " ", "answer": "1"}, "no question"),
            ("aime24", {"problem": None, "answer": "1"}, "no question"),
            ("aime24", {"problem": "half a pair \ud800", "answer": "1"}, "the question is not Unicode"),
            ("gsm8k", {"question": "Q", "answer": "2"}, "no #### in the solution"),
            ("minerva", {"problem": "Q", "solution": "\\boxed{1"}, r"no \\boxed{} in the solution"),
            ("olympiadbench", {"question": "Q", "final_answer": []}, "no answer"),
            ("olympiadbench", {"question": "Q", "final_answer": None}, "no answer"),
            ("eurus2_rl_math", eurus("Q", None, "math"), "no answer"),
            ("eurus2_rl_math", {**eurus("Q", "1", "math"), "prompt": []}, "not one message by the user"),
        ],
    )
    def test_unusable(self, name: str, row: dict[str, Any], reason: str):
        with pytest.raises(Unusable, match=reason):
            read(name, row)

    @pytest.mark.parametrize(
        ("name", "row", "reason"),
        [
            ("eurus2_rl_math", eurus("Q", "1", "code"), "ability code"),
            ("eurus2_rl_code", eurus("Q", "1", "math"), "ability math"),
            ("olympiadbench", {"question": "Q", "final_answer": ["1"], "image_1": "a.png"}, "with pictures"),
            ("olympiadbench", {"question": "Q", "final_answer": ["1"], "modality": "Multimodal"}, "with pictures"),
            ("olympiadbench", {"question": "Q", "final_answer": ["1"], "language": "Chinese"}, "language Chinese"),
            ("olympiadbench", {"question": "Q", "final_answer": ["1"], "subject": "Physics"}, "subject Physics"),
            ("kodcode", {"question": "Q", "style": "online_judge", "test": ""}, "style online_judge"),
        ],
    )
    def test_of_another_set(self, name: str, row: dict[str, Any], reason: str):
        with pytest.raises(Elsewhere, match=reason):
            read(name, row)

    @given(st.recursive(st.sampled_from(["x", "\\frac", "", " 1"]), lambda inner: st.lists(inner, max_size=3)))
    def test_braces_nest(self, tree: Any):
        def text(node: Any) -> str:
            return node if isinstance(node, str) else "".join(f"{{{text(one)}}}" for one in node)

        content = text(tree)
        assert boxed(f"first \\boxed{{wrong}}, then \\boxed{{{content}}} and {{more}}") == content.strip()

    @pytest.mark.parametrize(
        ("text", "inside"),
        [
            ("$x$", "x"),
            ("$$x$$", "x"),
            ("\\(x\\)", "x"),
            ("\\[x\\]", "x"),
            ("$1$, $2$", "$1$, $2$"),
            ("\\(1\\) and \\(2\\)", "\\(1\\) and \\(2\\)"),
            ("5 $", "5 $"),
            ("$", "$"),
            ("", ""),
        ],
    )
    def test_dollars(self, text: str, inside: str):
        assert unwrap_dollars(text) == inside

    def test_several_answers(self):
        assert several(["$k = 1$", "$k = -1$", ""]) == "k = 1, k = -1"
        assert several("[2, 3]") == several([2, 3.0]) == "2, 3"
        assert several("(2, 3)") == "(2, 3)"


class TestCode:
    def test_a_program(self):
        tests = {"inputs": ["1 2\n", ["3", "4"]], "outputs": ["3\n", ["7"]]}
        asked = "Write Python code to solve the problem. Present the code in \n```python\nYour code\n```\nat the end."
        item = read("eurus2_rl_code", eurus(f"Add.\n\n{asked}", json.dumps(tests), "code"))
        assert item.question == "Add."
        assert json.loads(item.ground_truth) == {"kind": "stdio", "inputs": ["1 2\n", "3\n4"], "outputs": ["3\n", "7"]}
        assert "standard input" in item.task
        check_tests(item.ground_truth)

    @pytest.mark.parametrize("outputs", [[[4], [0]], [4, 0], [[4, 1], [0]]])
    def test_a_function(self, outputs: list[Any]):
        tests = {"fn_name": "flips", "inputs": [["0101"], ["11"]], "outputs": outputs}
        item = read("eurus2_rl_code", eurus("Q", json.dumps(tests), "code"))
        assert json.loads(item.ground_truth) == {
            "kind": "call",
            "function": "flips",
            "inputs": [["0101"], ["11"]],
            "outputs": outputs,
        }
        assert "`flips`" in item.task
        check_tests(item.ground_truth)

    @pytest.mark.parametrize(
        ("truth", "reason"),
        [
            ("", "no tests"),
            ("not JSON", "no tests"),
            ("[" * 100_000, "no tests"),
            ("{}", "no tests"),
            ({"inputs": [], "outputs": []}, "no tests"),
            ({"inputs": ["1"], "outputs": []}, "differ in number"),
            ({"inputs": ["\ud800"], "outputs": ["1"]}, "not Unicode"),
            ({"inputs": [1], "outputs": ["1"]}, "not text"),
            ({"fn_name": "f", "inputs": ["1"], "outputs": ["1"]}, "not a list"),
            ({"fn_name": "a b", "inputs": [[1]], "outputs": [1]}, "not a name"),
        ],
    )
    def test_unusable_tests(self, truth: Any, reason: str):
        with pytest.raises(Unusable, match=reason):
            read("eurus2_rl_code", eurus("Q", truth, "code"))

    def test_acecode(self):
        asserts = ["assert f(1) == g(2)", "assert len(f([])) == 0", "assert f('\\d')"]
        item = read("acecode", {"id": "a", "question": "Q", "test_cases": asserts})
        assert json.loads(item.ground_truth) == {"kind": "asserts", "asserts": asserts}
        assert item.task == "Define the function `f`."
        assert read("acecode", {"question": "Q", "test_cases": ["assert True"]}).task == ""

    @pytest.mark.parametrize(
        ("tests", "reason"),
        [
            ([], "no tests"),
            (None, "no tests"),
            (["assert f(1) ==", "assert f(2) == 1"], "not an assert"),
            (["import os"], "not an assert"),
            (["assert f(1)\nassert f(2)"], "not an assert"),
            (["assert " + "(" * 5000 + "1" + ")" * 5000], "not an assert"),
        ],
    )
    def test_acecode_unusable(self, tests: Any, reason: str):
        with pytest.raises(Unusable, match=reason):
            read("acecode", {"question": "Q", "test_cases": tests})

    def test_kodcode(self):
        tests = "from solution import f, Queue\n\ndef test_f():\n    assert f(1) == 2\n"
        row = {"style": "instruct", "question_id": "Algorithm_7_I", "question": "Q", "test": tests, "test_info": []}
        item = read("kodcode", row)
        assert json.loads(item.ground_truth) == {"kind": "pytest", "tests": tests}
        assert item.task == "Define `f`, `Queue`."
        info = [{"function_declaration": "def f(a, b=1) -> int:"}, {"function_declaration": "class Queue: "}]
        assert read("kodcode", {**row, "test_info": info}).task == "Define `f(a, b=1) -> int`, `Queue`."
        # The same problem in the other style is the same group.
        other = read("kodcode", {**row, "style": "complete", "question_id": "Algorithm_7_C"})
        assert other.group == item.group
        older = {("test_code" if name == "test" else name): value for name, value in row.items()}
        assert read("kodcode", older).ground_truth == item.ground_truth

    @pytest.mark.parametrize(
        ("tests", "reason"),
        [(None, "no tests"), ("def test_f(:", "not Python"), ("assert 1", "no test function"), ("\0", "not Python")],
    )
    def test_kodcode_unusable(self, tests: Any, reason: str):
        with pytest.raises(Unusable, match=reason):
            read("kodcode", {"style": "complete", "question": "Q", "test": tests})

    def test_nothing_of_a_row_runs(self, tmp_path):
        target = tmp_path / "touched"
        text = f"assert open({str(target)!r}, 'w')"
        read("acecode", {"question": "Q", "test_cases": [text]})
        read("kodcode", {"style": "complete", "question": "Q", "test": f"{text}\ndef test_f(): pass"})
        several(f"open({str(target)!r}, 'w')")
        assert not target.exists()
