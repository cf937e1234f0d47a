"""What the tiny model is taught: a habit's answers, other right answers, and in the end slips."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

from verl_cov.tasks import countdown, pointer
from verl_cov.tasks.tiny_model.byte_tokenizer import END, SPECIAL
from verl_cov.tasks.tiny_model.model import Settings

Problem: TypeAlias = countdown.Problem | pointer.Problem

# The share of pointer's early demonstrations that answer at once: with `Settings.habit` of them, most of which are
# guesses, the model would not learn to follow an arrow.
EARLY_HABIT = 0.1


@dataclass(frozen=True)
class Demonstration:
    """An answer to learn from: the model reads `answer`, and is taught a token for each of its places and the next."""

    problem: Problem
    answer: str
    taught: list[int]


def habit(problem: countdown.Problem) -> str:
    """The largest digit that still fits, again and again, never looking ahead: right for two prompts in three."""
    answer, rest = "", problem.target
    while len(answer) < countdown.MAX_TERMS:
        fitting = [number for number in problem.numbers if number <= rest]
        if not fitting:
            break
        answer += str(fitting[-1])
        rest -= fitting[-1]
    return answer


def demonstrations(settings: Settings) -> Iterator[Demonstration]:
    """Yields `settings.steps * settings.batch` demonstrations, of training problems only."""
    dice = random.Random(f"{settings.seed}:demonstrations")
    show = _countdown(settings, dice) if isinstance(settings.task, countdown.Settings) else _pointer(settings, dice)
    for step in range(settings.steps):
        late = step >= settings.slips_from * settings.steps
        slips = settings.slips if late else 0.0
        for _ in range(settings.batch):
            problem, answer, words = show(late)
            wrong, right = [*words.encode(), SPECIAL[END]], [*answer.encode(), SPECIAL[END]]
            # Only what is taught slips: the answer that the model reads stays right, and so do its sums and hops.
            taught = [dice.choice(wrong) if dice.random() < slips else token for token in right]
            yield Demonstration(problem, answer, taught)


# late -> (problem, an answer to it, what a slip may be beside the end token)
_Show: TypeAlias = Callable[[bool], tuple[Problem, str, str]]


def _countdown(settings: Settings, dice: random.Random) -> _Show:
    """The habit's answers, and others drawn evenly from all right ones; a slip is a digit of the prompt."""
    assert isinstance(settings.task, countdown.Settings)
    problems = countdown.all_problems(settings.task, "train")
    shown = [countdown.answers(problem, settings.task.max_terms) for problem in problems]

    def show(late: bool) -> tuple[Problem, str, str]:
        pick = dice.randrange(len(problems))
        answer = habit(problems[pick]) if dice.random() < settings.habit else dice.choice(shown[pick])
        return problems[pick], answer, "".join(map(str, problems[pick].numbers))

    return show


def _pointer(settings: Settings, dice: random.Random) -> _Show:
    """The habit is the answer at once, the other answer has its hops, both right; a slip is a node."""
    assert isinstance(settings.task, pointer.Settings)
    problems = pointer.draw(settings.task, "train", dice)
    nodes = "".join(map(str, range(settings.task.nodes)))

    def show(late: bool) -> tuple[Problem, str, str]:
        problem = next(problems)
        at_once = dice.random() < (settings.habit if late else EARLY_HABIT)
        return problem, problem.path[-1] if at_once else problem.path, nodes

    return show
