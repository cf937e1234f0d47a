"""The entry point: asks each seam to install itself, and nothing else.

verl imports this module at the end of ``import verl``, in the driver, the Ray workers and the vLLM workers (entry point
group ``verl.plugins``; verl never calls it). verl hides what a plugin raises, so this module catches its own errors and
keeps them in :data:`verl_cov.hooks.status.status`, which ``verl-cov doctor`` and the checks of a run that asks for
verl-cov read.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

from verl_cov.hooks.status import status

logger = logging.getLogger(__name__)


def seams() -> Iterator[Any]:
    """The modules that the installed verl has a place for, in the order in which they are installed.

    Raises:
        UnsupportedVersion: a verl whose internals were not checked.
    """
    from verl_cov.hooks import cpu, policy_losses, versions
    from verl_cov.hooks.checks import start

    # The start-up check goes first: it is what tells the user about a verl that the rest cannot work with.
    yield start
    versions.check_installed_verl()
    release = versions.installed_release()
    if release.v1:
        yield cpu  # before anything that asks verl for its platform
    yield policy_losses
    if release.engine:
        from verl_cov.hooks import rollout_batch, train_batch

        yield from (train_batch, rollout_batch)
    if release.legacy:
        from verl_cov.hooks import legacy_actor

        yield legacy_actor
    if release.v1:
        from verl_cov.hooks import fail_fast, group_filter
        from verl_cov.hooks.prime import registration
        from verl_cov.hooks.validation import averages, entropy, sampling

        yield from (registration, group_filter, sampling, averages, entropy, fail_fast)


def install() -> None:
    """Change verl where verl-cov needs it; what goes wrong is kept in ``status``."""
    try:
        for module in seams():
            module.install()
            status.registered.append(module.__name__.removeprefix("verl_cov.hooks."))
    except Exception as error:
        # At DEBUG: most runs with this environment may never ask for verl-cov; the ones that do are told at start.
        status.registration_error = f"{type(error).__name__}: {error}"
        logger.debug("verl-cov %s could not register itself with verl: %s", status.version, status.error)


def uninstall() -> None:
    """Take back every change that :func:`install` made in this process."""
    for module in reversed(list(seams())):
        (module.uninstall if hasattr(module, "uninstall") else module.seam.uninstall)()
    status.registered.clear()


install()
