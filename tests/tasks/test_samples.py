"""From a set's own format to a score: the samples that are shipped, prepared, answered and judged."""

from __future__ import annotations

import pyarrow.parquet as pq
import pytest

from verl_cov.tasks.data.prepare import prepare
from verl_cov.tasks.data.sets import SETS
from verl_cov.tasks.reward import compute_score

# Right programs for the code problems, by what their tests call or their question begins with.
PROGRAMS = {
    "rotate_text": """
def rotate_text(text, steps):
    k = steps % len(text) if text else 0
    return text[k:] + text[:k]
""",
    "even_pairs": """
def even_pairs(v):
    return [(a, b) for a, b in zip(v, v[1:]) if (a + b) % 2 == 0]
""",
    "count_balanced": """
def count_balanced(words):
    return sum(2 * sum(c in "aeiou" for c in w) == len(w) for w in words)
""",
    "letters_left": """
def letters_left(a, b):
    return "".join(c for c in a if c not in b)
""",
    "longest_run": """
from itertools import groupby
def longest_run(v):
    return max((len(list(g)) for _, g in groupby(v)), default=0)
""",
    "closes": """
def closes(text):
    stack = []
    for c in text:
        if c in "([{":
            stack.append(c)
        elif c in ")]}" and (not stack or stack.pop() + c not in ("()", "[]", "{}")):
            return False
    return not stack
""",
    "Print the largest": """
v = list(map(int, input().split()))
print(max(v))
print(v.count(max(v)))
""",
    "n-th row of the triangle": """
row = [1]
for _ in range(int(input()) - 1):
    row = [a + b for a, b in zip([0, *row], [*row, 0])]
print(*row)
""",
}


@pytest.mark.parametrize("name", SETS)
def test_right_answers_score_one_and_wrong_ones_nothing(name, tmp_path):
    rows = pq.read_table(prepare(SETS[name], "sample", tmp_path).path).to_pylist()
    assert rows
    for row in rows[: 40 if SETS[name].copies == 1 else 3]:
        truth = row["reward_model"]["ground_truth"]
        if row["ability"] == "math":
            right, wrong = rf"So it is $\boxed{{{truth}}}$.", rf"{truth}, no: \boxed{{-98765}}."
        else:
            text = row["prompt"][0]["content"] + truth
            program = next(program for key, program in PROGRAMS.items() if key in text)
            right, wrong = f"Here:\n```python\n{program}\n```", "```python\nprint('wrong')\n```"
        for response, expected in ((right, 1.0), (wrong, 0.0)):
            scored = compute_score(row["data_source"], response, truth, row["extra_info"])
            assert (scored["score"], scored["acc"]) == (expected, expected), (row["extra_info"]["id"], response)
