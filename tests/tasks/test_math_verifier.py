r"""What counts as a right answer, and what a hostile or monstrous one may not do."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from verl_cov.tasks.math import verifier
from verl_cov.tasks.math.verifier import judge, last_boxed, verify
from verl_cov.tasks.node_places import NodePlaces


def box(answer: str) -> str:
    return rf"Let us see. So the answer is $\boxed{{{answer}}}$."


# gold, answers that are right, answers that are wrong
TABLE: list[tuple[str, list[str], list[str]]] = [
    # AIME: integers from 000 to 999
    (
        "33",
        ["33", "033", "33.", " 33 ", "33.0", "+33", r"33\,", r"\text{33}"],
        ["3", "333", "-33", "33.0001", "", "33x"],
    ),
    ("033", ["33", "033"], ["330"]),
    ("0", ["0", "-0", "000", "0.0"], ["", "O", "1"]),
    ("-7", ["-7", "\u22127", "- 7"], ["7", "--7"]),
    # thousands
    ("1000", ["1,000", "1{,}000", r"1\,000", "1000"], ["1,00", "100"]),
    ("12345678901234567890", ["12345678901234567890", "12,345,678,901,234,567,890"], ["12345678901234567891"]),
    # fractions
    (
        "1/2",
        [r"\frac{1}{2}", r"\frac12", r"\dfrac{1}{2}", r"\tfrac 12", "0.5", ".5", r"\frac{2}{4}", "2/4"],
        ["2", "0.51"],
    ),
    (r"\frac12", ["1/2", r"\left(\frac{1}{2}\right)", "50\\%"], ["12", "1/3", "50"]),
    (r"-\frac{3}{4}", [r"\frac{-3}{4}", "-0.75", "-3/4"], ["3/4", r"\frac{3}{-5}"]),
    (r"1\frac{1}{2}", [r"\frac32", "1.5"], [r"\frac{1}{2}", "11/2"]),
    ("1/0", ["1/0"], ["0", "1"]),
    # decimals, and the tolerance where the gold answer is no integer
    ("3.14", ["3.14", "3.1400", "3.1401", r"\frac{157}{50}"], ["3.15", "3", "3.1", r"\frac{22}{7}"]),
    ("0.333333", ["1/3", r"\frac13"], ["0.33", "1/4"]),
    ("1/3", ["0.333333", "0.33333"], ["0.33", "0.3"]),
    ("2.998e8", [r"2.998 \times 10^8", r"2.998\cdot10^{8}", "299800000", "2.998E+08"], ["2.998", "2.998e9", "3e8"]),
    ("1.6e-27", [r"1.6 \times 10^{-27}"], ["0", "1.6e-26", "1.7e-27"]),
    # percent: one side may write the sign, the value, or the bare number
    ("10\\%", ["10", "0.1", r"10\%", "10%", r"10\text{ percent}", r"\frac{1}{10}"], ["1", "0.01", "1000"]),
    ("10", ["10%", r"10\%", "1000\\%"], ["0.1", "100\\%"]),
    ("0.25", ["25\\%", "1/4"], ["25", "2.5\\%"]),
    # units, degrees, money
    (
        "5",
        [r"5\text{ cm}", r"5 \mathrm{~cm}^2", r"\$5", "5^\\circ", r"5\ \text{dollars}"],
        [r"6\text{ cm}", r"\text{cm}"],
    ),
    (r"90^\circ", ["90", r"90^{\circ}", "90\\text{ degrees}"], ["9", "100"]),
    (r"3.0 \times 10^{-5} \text{ m}", [r"3\times10^{-5}", "0.00003"], [r"3\times10^{-4}"]),
    # bases
    ("2516_8", ["2516_8", "2516_{8}", "2516"], ["2516_9", "1358"]),
    # expressions
    (r"2\sqrt{3}", [r"\sqrt{12}", r"2\sqrt3", r"\frac{6}{\sqrt{3}}"], [r"\sqrt{3}", r"3\sqrt{2}"]),
    (r"\frac{\pi}{2}", [r"\pi/2", r"\dfrac{\pi}{2}", r"0.5\pi"], [r"\pi", r"\frac{2}{\pi}"]),
    ("x^2+2x+1", ["(x+1)^2", "1+2x+x^2"], ["(x-1)^2", "x^2+1", "y^2+2y+1"]),
    ("2^{10}", ["1024"], ["1000", "20"]),
    ("x", ["x"], ["y", "2x"]),
    # equations
    ("x=3", ["3", "x=3", "x = 3"], ["x=4", "4", "y=3"]),
    ("3", ["x=3", "n = 3"], ["x=4"]),
    ("y=2x+1", ["2x+1", "y = 1 + 2x"], ["2x-1", "y=x"]),
    # several answers: all, in any order
    ("1,2", ["2,1", "1, 2", r"\{1,2\}", r"1 \text{ and } 2", r"1\text{ or }2"], ["1", "1,2,3", "1,3"]),
    ("$2$, $-3$", ["2,-3", "-3,2"], ["2", "-3", "2,3"]),
    (r"\pm 2", ["2,-2", r"-2,2", r"\pm2"], ["2", "-2"]),
    # tuples and intervals
    ("(1,2)", ["(1,2)", "( 1 , 2 )"], ["(2,1)", "(1,3)", "1"]),
    ("(1,2,3)", ["(1,2,3)", r"\left(1,2,3\right)"], ["(3,2,1)", "(1,2)"]),
    ("(1,2),(3,4)", ["(3,4),(1,2)"], ["(1,2)", "(1,2),(4,3)"]),
    ("[1,2)", ["[1,2)", r"\left[1, 2\right)", r"[1,\frac{4}{2})"], ["[1,2]", "(1,2)", "(1,2]"]),
    (r"(-\infty,2]", [r"(-\infty, 2]", r"x \le 2", r"(-\infty,\frac42]"], [r"(-\infty,2)", r"[2,\infty)"]),
    (r"x \in [1,2]", ["[1,2]", r"1 \le x \le 2"], ["[1,3]"]),
    # matrices
    (
        r"\begin{pmatrix}1\\2\end{pmatrix}",
        [r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{bmatrix}1\\2\end{bmatrix}"],
        [r"\begin{pmatrix}2\\1\end{pmatrix}", "1,2"],
    ),
    # words and choices
    (r"\text{(A)}", ["A", "(A)", r"\text{A}", r"\text{(A)}", "a"], ["B", "(B)", r"\text{AB}"]),
    ("C", ["C", "(C)", r"\text{C}", r"\textbf{(C)}", r"\mathrm{C}"], ["D", "(D)"]),
    (r"\text{Monday}", ["Monday", r"\text{monday}", r"\mathrm{Monday}"], ["Tuesday", r"\text{Mondya}"]),
    ("listen", ["listen"], ["silent", "enlist"]),
    ("Yes", [r"\text{yes}", "yes"], ["no", "sey", "1"]),
    (r"\text{even}", ["even"], ["odd", r"\text{odd}"]),
    ("C", [r"\textbf{(C)}\ 12", "(C) 12", r"\text{(c)}"], [r"\textbf{(D)}\ 12", "(C) (D)", "12", "12 (C)"]),
    # the case of symbols
    ("R-r", ["-r+R"], ["r-R", "0"]),
    (r"\pi(R^2-r^2)", [r"\pi (R-r)(R+r)"], ["0"]),
    (r"\frac{A}{a}", ["A/a"], ["1", "a/A"]),
    ("N^n", ["N^{n}"], ["n^N"]),
    ("AB", ["BA", r"\text{AB}"], ["ab"]),
    ("n", ["n"], ["N"]),
    ("x_N", ["x_N"], ["x_n"]),
    # letters at the end that math-verify takes for units
    ("3t", ["t \\cdot 3"], ["3", "4t"]),
    ("2ab", ["2ba"], ["2"]),
    (r"2\sqrt3", [r"2\sqrt{3}\text{ cm}", r"\sqrt{12} cm"], [r"2\sqrt{3}\text{ or }\text{ six}"]),
    # what an equation stands for
    (
        "7",
        ["m+n=7", "f(2)=7", r"f^{-1}(3)=7", r"\text{Area}=7", "3+4=7", "x=3+4=7", "I=7", r"\angle ABC=7"],
        ["8=7", "1=2=3=7", "x=8=7", "2x=7", "x^2=7", "8=@=7", "7=8"],
    ),
    ("5", ["5=5"], ["6=5"]),
    ("x=3", ["x=2+1"], ["x=8=3", "8=3"]),
    ("2x+1", ["f(x)=2x+1", r"\frac{dy}{dx}=2x+1"], ["2x+1=0"]),
    ("y=2x+1", ["2x-y+1=0", "2x+1=y"], ["8=7"]),
    # order and repetitions
    ("1,2", ["(1,2)", "x=2, x=1", "1;2"], ["(2,1)", "1,1", "1,2,2"]),
    ("(1,2)", ["1,2"], ["2,1", r"\{2,1\}", "[1,2]"]),
    ("x=1,y=2", ["1,2", "(1,2)", "y=2,x=1", "(x,y)=(1,2)"], ["2,1", "(2,1)", "x=2,y=1"]),
    ("x=1,x=2", ["2,1", r"x=2\text{ or }x=1"], ["1"]),
    (r"x=\pm 2", ["-2,2", "x=-2,x=2"], ["2"]),
    (r"3,\pm 2", ["-2,2,3"], ["2,3"]),
    (r"\{1,2,3\}", ["3,1,2", "(1,2,3)"], ["(3,2,1)"]),
    ("(1,2),(3,4)", [r"\{(3,4),(1,2)\}"], ["(2,1),(3,4)"]),
    ("5", [r"\{5\}"], ["5,5", r"\{5,5\}"]),
    ("5,5", ["5, 5"], ["5"]),
    # relations joined by words
    (
        r"(-\infty,-1)\cup(1,\infty)",
        [r"x<-1 \text{ or } x>1", "x>1 or x<-1", r"x<-1 \lor x>1", r"x\in(1,\infty)\cup(-\infty,-1)"],
        [r"x<-1 \text{ and } x>1", r"x\le-1 \text{ or } x>1", r"x<-1 \text{ or } y>1", "x>1"],
    ),
    ("1<x<2", [r"x>1 \text{ and } x<2", "(1,2)"], [r"x>1 \text{ or } x<2", "1<y<2"]),
    (r"x>1 \text{ or } x<0", ["x<0 or x>1", r"(-\infty,0)\cup(1,\infty)"], [r"y<0 \text{ or } y>1", "x>1"]),
    (r"\emptyset", [r"\varnothing", r"\{\}"], ["0"]),
    (r"\varnothing", [r"\emptyset"], ["1"]),
    # the imaginary unit
    (r"2\pi i", [r"2i\pi", r"2 i \pi"], [r"2\pi", r"-2\pi i"]),
    ("3+4i", ["4i+3", r"5(\frac35+\frac45i)"], ["3-4i"]),
    # mixed numbers, approximations, words for units
    ("5/2", ["2 1/2", r"2\frac12", r"2\ 1/2", r"2\,\frac{1}{2}"], ["21/2", "2 1/3"]),
    ("2 1/2", ["5/2", "2.5"], ["21/2", r"\frac{21}{2}"]),
    ("-5/2", ["-2 1/2"], ["-3/2"]),
    ("21/2", ["10 1/2"], ["2 1/2"]),
    ("11", [r"\approx 11", "≈11", r"x \approx 11"], [r"\approx 12"]),
    ("5", ["5 dollars", "5 cm", "5 square units"], ["6 dollars", "5 million", "5x", "5c", "5 or 6"]),
]


@pytest.mark.parametrize(("gold", "right", "wrong"), TABLE)
def test_table(gold: str, right: list[str], wrong: list[str]):
    assert [answer for answer in right if not verify(box(answer), gold)] == []
    assert [answer for answer in wrong if verify(box(answer), gold)] == []


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("1000000007", "1000000008"),  # a relative tolerance would take it
        ("2", "1,2"),
        ("2", "2,2.5"),
        ("2", r"2\text{ or }3"),
        ("2", r"\{1,2,3,4,5\}"),
        ("2", r"1 \le x \le 3"),
        ("2", "x"),
        ("2", "?"),
        ("2", r"\text{2 or 3}"),
        ("(1,2)", "(-\\infty,\\infty)"),
        ("x+1", "x"),
        ("5", r"\text{the answer is } 5 \text{ or } 6"),
    ],
)
def test_hedging_does_not_pay(gold: str, answer: str):
    assert not verify(box(answer), gold)


class TestBox:
    @pytest.mark.parametrize(
        ("response", "content"),
        [
            (r"\boxed{1} and then \boxed{2}", "2"),
            (r"\boxed{\frac{1}{\sqrt{2}}}", r"\frac{1}{\sqrt{2}}"),
            (r"\boxed{\boxed{5}}", "5"),
            (r"\boxed {5}", "5"),
            (r"\fbox{5}", "5"),
            (r"\boxed{\{1,2\}}", r"\{1,2\}"),
            (r"\boxed{1\}}", r"1\}"),
            (r"\boxed{}", ""),
            (r"\boxed{5", None),
            (r"\boxed{1} \boxed{{5}", None),  # the last one counts, and it is open
            (r"\boxed 5", None),
            ("the answer is 5", None),
            ("", None),
            ("boxed{5}", None),
        ],
    )
    def test_last(self, response: str, content: str | None):
        assert last_boxed(response) == content

    def test_outside_the_box_nothing_counts(self):
        assert not verify(r"The answer is 5. $5$ \boxed{6} Final answer: 5", "5")
        assert not verify("The answer is 5.", "5")
        assert not verify(r"\boxed{5} no, \boxed{6}", "5")
        assert verify(r"\boxed{6} no, \boxed{5}", "5")

    @given(st.text(alphabet="\\boxed{} 12"))
    def test_total(self, response: str):
        content = last_boxed(response)
        assert content is None or content in response

    def test_linear(self):
        started = time.perf_counter()
        for response in (r"\boxed{" * 200_000, r"\boxed{" + "{" * 10**6, "\\" * 10**6, r"\boxed{1}" * 100_000):
            last_boxed(response)
        assert time.perf_counter() - started < 30  # quadratic in a million would be hours


class TestGold:
    @pytest.mark.parametrize("gold", ["", " ", "$", None, 5, ["5"]])
    def test_a_damaged_one_is_not_a_zero(self, gold: object):
        with pytest.raises(ValueError, match=r"reward_model\.ground_truth"):
            verify(r"\boxed{5}", gold)  # type: ignore[arg-type]

    def test_reasons(self):
        assert judge("none", "5") == verifier.Verdict(right=False, boxed=False)
        assert judge(r"\boxed{5}", "5") == verifier.Verdict(right=True, boxed=True)
        assert judge(r"\boxed{9^{9^{9^{9}}}}", "x+5", 1) == verifier.Verdict(right=False, boxed=True, late=True)


class TestNumbers:
    """The light path against exact arithmetic."""

    integers = st.integers(-(10**12), 10**12)

    @given(integers, integers)
    @example(10**12, 10**12 + 1)
    def test_integers(self, a: int, b: int):
        assert verify(box(str(a)), str(b)) == (a == b)
        assert verify(box(f"{a:,}"), str(a))
        assert verify(box(f"{a}.00"), str(a))

    @given(integers, st.integers(1, 10**6), integers, st.integers(1, 10**6))
    def test_fractions_are_exact(self, a: int, b: int, c: int, d: int):
        gold = rf"\frac{{{c}}}{{{d}}}"
        assert verify(box(f"{a}/{b}"), gold) == (Fraction(a, b) == Fraction(c, d))
        assert verify(box(rf"\frac{{{2 * c}}}{{{2 * d}}}"), gold)

    @given(st.integers(1, 10**9), st.integers(-8, 8), st.floats(1e-6, 1e-2))
    def test_decimals_within_a_relative_tolerance(self, digits: int, exponent: int, off: float):
        gold = f"{digits}.5e{exponent}"
        value = Fraction(2 * digits + 1, 2) * Fraction(10) ** exponent
        answer = value * (1 + Fraction(off))
        text = f"{float(answer):.17e}"
        difference = abs(Fraction(text) - value) / value
        if value.denominator != 1:
            assert verify(box(text), gold) == (difference <= Fraction(1, 10_000))

    @given(st.text(alphabet="0123456789.,/-+eE^_{}%\\frac ", max_size=30))
    @settings(max_examples=300)
    def test_any_text_is_a_number_or_not(self, text: str):
        number = verifier._number(text)
        assert number is None or isinstance(number.value, Fraction)

    def test_monstrous_numerals_are_no_numbers(self):
        started = time.perf_counter()
        for text in ("9" * 10**6, "1e999999999", "1,000" * 10**5, "1/" * 10**5, r"\frac" * 10**5, "." * 10**6, "1e999"):
            assert not verify(box(text), "7")
        assert time.perf_counter() - started < 30


HOSTILE = [
    "__import__('os').system('touch {flag}')",
    "__import__(chr(111)+chr(115)).system('touch {flag}')",
    "(lambda: __import__('os').system('touch {flag}'))()",
    "open('{flag}', 'w')",
    r"\text{{__import__('os').system('touch {flag}')}}",
    r"1 + __import__('os').system('touch {flag}')",
    r"\operatorname{{__import__('os').system('touch {flag}')}}(1)",
    r"\frac{{__import__('os').system('touch {flag}')}}{{2}}",
    r"x_{{__import__('os').system('touch {flag}')}}",
    "[__import__('os').system('touch {flag}')]",
    r"\write18{{touch {flag}}}",
    r"\input{{/etc/passwd}}",
]


class TestHostile:
    @pytest.mark.parametrize("attack", HOSTILE)
    def test_nothing_is_executed(self, tmp_path: Path, attack: str):
        flag = tmp_path / "flag"
        answer = attack.format(flag=flag)
        for gold in ("5", "x+1", f"{answer}+1"):
            assert not verify(box(answer), gold)
            assert not verify(box("x+1"), answer)  # nor from the data set
        assert not flag.exists()

    def test_the_second_door(self, tmp_path: Path):
        """sympy evaluates strings as Python, also those of `Number`; in the child it takes numerals only."""
        script = textwrap.dedent(
            """
            import sys
            if sys.argv[1] == "child":
                from verl_cov.tasks.math import worker
                worker._load()
            import sympy, math_verify
            attack = f"__import__('os').system('touch {sys.argv[2]}')"
            for door in (
                sympy.sympify, sympy.Number, sympy.parsing.parse_expr, math_verify.parser.parse_expr,
                lambda text: math_verify.parser.parse_expr_cached(text), sympy.parsing.sympy_parser.parse_expr,
            ):
                try:
                    door(attack)
                except Exception:
                    pass
            print(sympy.Number("12.5") * 2, sympy.sympify("3"))
            """
        )
        for where, happens in (("child", False), ("elsewhere", True)):
            flag = tmp_path / where
            ran = subprocess.run([sys.executable, "-c", script, where, str(flag)], capture_output=True, text=True)
            assert ran.stdout.split() == ["25.0000000000000", "3"], ran.stderr
            assert flag.exists() == happens

    @pytest.mark.parametrize(
        "answer",
        [
            "9^{9^{9^{9}}}",
            "(x+1)^{5000}",
            "{" * 400 + "1" + "}" * 400,
            *(
                pytest.param(monster, marks=pytest.mark.nightly)
                for monster in (
                    "10^{10^{10}}",
                    r"\binom{10^9}{10^8}",
                    r"\sum_{i=1}^{10^{12}} \frac{1}{i}",
                    "1" + "+1" * 450,
                    "((((10!)!)!)!)!",
                    r"\prod_{i=1}^{10000000} i",
                    r"\sqrt{" * 100 + "2" + "}" * 100,
                    "(" * 450 + "1" + ")" * 450,
                    "x" * 990,
                    r"\int_0^1 x^{x^{x^x}} dx",
                    r"\lim_{n\to\infty} \frac{n!}{n^n}",
                )
            ),
        ],
    )
    def test_monsters_end_in_time(self, answer: str):
        started = time.monotonic()
        assert not verify(box(answer), "x^2+7", cpu_seconds=1)
        assert time.monotonic() - started < 60  # the limit is one CPU second; without it, for ever

    @pytest.mark.parametrize("answer", ["7" * 100_000, "x+" * 50_000 + "1", r"\frac{1}{2}" * 10_000, "{}" * 50_000])
    def test_long_boxes_cost_nothing(self, answer: str):
        started = time.monotonic()
        assert not verify(box(answer), "x^2+7")
        assert time.monotonic() - started < 20

    @given(st.text(max_size=60))
    @settings(max_examples=60, deadline=None)
    @example("\ud800")
    @example("\0")
    @example("\\")
    @example("}{")
    def test_any_response_gets_a_verdict(self, text: str):
        judge(box(text), "x^2+7", 1)
        judge(text, "x^2+7", 1)

    def test_memory_is_bounded(self):
        judge(box("y+1"), "x^2+7")
        with verifier._POOL._lock:
            child = verifier._POOL._idle[-1]._process.pid
        limits = Path(f"/proc/{child}/limits").read_text()
        line = next(line for line in limits.splitlines() if line.startswith("Max address space"))
        assert line.split()[3] == str(verifier.MEMORY_BYTES)
        assert Path(f"/proc/{child}/oom_score_adj").read_text() == "1000\n"

    def test_the_memory_of_a_node_is_bounded(self):
        """However many reward workers, `NODE_CHILDREN` compare at a time; of the others only what is idle counts."""
        verl = importlib.util.find_spec("verl")
        assert verl is not None
        assert verl.origin is not None
        config = Path(verl.origin).with_name("trainer") / "config" / "reward" / "reward.yaml"
        workers = yaml.safe_load(config.read_text())["num_workers"]
        most = 8 * verifier.MEMORY_BYTES + workers * 4 * verifier.IDLE_BYTES
        assert verifier.NODE_CHILDREN <= 8
        assert verifier.POOL_SIZE <= 4
        assert most <= 12 * 2**30
        judge(box("y+2"), "x^2+7")  # a child is there, and waits for nothing but its place
        waiting = threading.Thread(target=judge, args=(box("y+2"), "x^2+7"))
        with ExitStack() as taken:
            for _ in range(verifier.NODE_CHILDREN):
                taken.enter_context(NodePlaces("math", verifier.NODE_CHILDREN).one())
            waiting.start()
            waiting.join(0.5)
            assert waiting.is_alive()
        waiting.join(30)
        assert not waiting.is_alive()

    def test_a_child_that_has_grown_starts_afresh(self, monkeypatch: pytest.MonkeyPatch):
        verifier._POOL.close()
        monkeypatch.setattr(verifier, "IDLE_BYTES", 2**20)  # less than any has
        children, programs = set(), set()
        for _ in range(3):  # with one CPU second each, less than a start takes
            assert judge(box("x+7+y"), "y+x+7", 1).right
            assert judge(box("x+8+y"), "y+x+7", 1) == verifier.Verdict(right=False, boxed=True)
            with verifier._POOL._lock:
                child = Path(f"/proc/{verifier._POOL._idle[-1]._process.pid}")
            children.add(child)
            deadline = time.monotonic() + 20
            # While one program takes the place of the other its vector is empty or all zeros.
            while not any(program := (child / "auxv").read_bytes()) or program in programs:
                assert time.monotonic() < deadline, "the process still runs a program that was seen before"
                time.sleep(0.01)
            programs.add(program)
            # It loads unhurried: the soft limit of its CPU time is the hard one.
            while len(set((child / "limits").read_text().splitlines()[1].split()[3:5])) > 1:
                assert time.monotonic() < deadline
                time.sleep(0.01)
        assert len(children) == 1  # three programs in one process


class TestThreads:
    def test_32_at_once_with_monsters_between(self):
        """Outside the main thread math-verify's own time limit raises; and a killed child must not cost others."""
        cases = [(r"\sqrt{12}", True), (r"\sqrt{13}", False), (r"2\cdot 3^{1/2}", True)] * 32
        cases[10:90:40] = [("9^{9^{9^{9}}}", False)] * 2
        with ThreadPoolExecutor(32) as threads:
            verdicts = list(threads.map(lambda case: verify(box(case[0]), r"2\sqrt{3}", 1), cases))
        assert verdicts == [right for _, right in cases]

    def test_light_verdicts_start_no_child(self):
        script = textwrap.dedent(
            r"""
            import sys
            from verl_cov.tasks.math import verifier as m
            assert m.verify(r"\boxed{033}", "33") and not m.verify(r"\boxed{34}", "33")
            assert m.verify(r"\boxed{\text{Monday}}", r"\text{Monday}") and m.verify(r"\boxed{x+1}", "x + 1")
            assert not m._POOL._idle
            print(sorted({"sympy", "torch", "math_verify", "numpy", "verl"} & set(sys.modules)))
            """
        )
        ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        assert ran.stdout.strip() == "[]"


def test_the_child_finds_what_the_parent_finds(tmp_path: Path):
    """Ray extends sys.path in its workers, not the environment."""
    script = f"import sys; sys.path[:0] = {[os.getcwd()]!r}; from verl_cov.tasks.math import verifier as m; "
    script += r"print(m.verify(r'\boxed{\sqrt{12}}', r'2\sqrt{3}'))"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    ran = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert ran.stdout.strip() == "True"
