"""Keeps a report from ending a run: metrics, dumps, averages, advice and notices fail with one warning.

    with reporting("Figure 8"):
        values |= rollout.prompts(responses)  # on an exception its keys are left out

Never round a selection, a loss or a reward: what changes the training must fail loudly. The trap is a report over
ranks: a rank that fails before a collective must take part in it all the same, or the others wait for ever. So compute
what one rank can fail at inside :func:`reporting`, then call :func:`agreed` outside of it, then the collectives.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch.distributed import ProcessGroup

from verl_cov.core.collectives import all_reduce
from verl_cov.hooks import batch

logger = logging.getLogger(__name__)

T = TypeVar("T")

_warned: set[str] = set()


@contextmanager
def reporting(what: str) -> Iterator[None]:
    """Ends this block, not the run, where it raises; warns once in a process for each ``what``, with the cause."""
    try:
        yield
    except Exception as error:
        if what not in _warned:
            _warned.add(what)
            cause = f"{type(error).__name__}: {error}"
            logger.warning("verl-cov: %s failed and is left out; the run goes on (said once): %s", what, cause)
        logger.debug("verl-cov: %s failed", what, exc_info=True)


def agreed(value: T | None, group: ProcessGroup | None) -> T | None:
    """Returns ``value`` if every rank of ``group`` has one, and None on all of them if one has None.

    A collective, which every rank must call.
    """
    if group is None:
        return value
    missing = torch.tensor(int(value is None), device=batch.device())
    return None if int(all_reduce(missing, group)) else value
