"""Registration, and nothing else.

verl imports this module at the end of ``import verl``, in the driver, the Ray workers and the vLLM workers (entry point
group ``verl.plugins``; verl never calls it). verl hides what a plugin raises, so this module catches its own errors and
keeps them in :data:`status`, which ``verl-cov doctor`` and the checks of a run that asks for verl-cov read.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

from verl_cov import __version__
from verl_cov.hooks import imports

logger = logging.getLogger(__name__)


@dataclass
class Status:
    """What happened when this process loaded the plugin."""

    version: str = __version__
    verl_version: str | None = None
    registered: list[str] = field(default_factory=list)
    registration_error: str | None = None

    @property
    def error(self) -> str | None:
        """What is missing of verl-cov in this process, or None."""
        return self.registration_error or next(iter(imports.failures), None)


status = Status()


def register() -> None:
    """Register the losses, the hooks in worker and trainer, the start-up checks and, on a CPU, the CPU host: what the
    verl at hand has a place for (:mod:`verl_cov.hooks.versions`)."""
    from verl_cov.hooks import policy_losses, versions
    from verl_cov.hooks.checks import preflight

    # The start-up check goes first: it is what tells the user about a verl that the rest cannot work with.
    _install(preflight, versions)
    release = versions.this()
    if release.v1:
        from verl_cov.hooks import cpu

        _install(cpu)  # before anything that asks verl for its platform
    _install(policy_losses)
    if release.engine:
        from verl_cov.hooks import rollout_batch, train_batch

        _install(train_batch, rollout_batch)
    if release.legacy:
        from verl_cov.hooks import legacy_actor

        _install(legacy_actor)
    if release.v1:
        from verl_cov.hooks import fail_fast, group_filter, prime
        from verl_cov.hooks.validation import averages, entropy, sampling

        _install(prime, group_filter, sampling, averages, entropy, fail_fast)


def _install(*pieces: Any) -> None:
    for piece in pieces:
        piece.install()
        status.registered.append(piece.__name__.removeprefix("verl_cov.hooks."))


try:
    register()
except Exception as error:
    # At DEBUG: most runs with this environment may never ask for verl-cov; the ones that do are told at start.
    status.registration_error = f"{type(error).__name__}: {error}"
    logger.debug("verl-cov %s could not register itself with verl: %s", __version__, status.error)
