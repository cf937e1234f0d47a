"""Calls a function in a child process, so that verl and torch stay out of one that lives as long as the trainings."""

from __future__ import annotations

import signal
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import TypeVar

Result = TypeVar("Result")


def in_child(function: Callable[..., Result], *arguments: object, **options: object) -> Result:
    """What `function` returns or raises, called in a fork of this process."""
    # SIG_DFL: Ctrl-C ends the child without a traceback of its own.
    with ProcessPoolExecutor(
        1, mp_context=get_context("fork"), initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_DFL)
    ) as pool:
        return pool.submit(function, *arguments, **options).result()
