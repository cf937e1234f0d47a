"""The entry point: installs every seam of :mod:`verl_cov.hooks`, and nothing else.

Leans on verl importing this module at the end of ``import verl``, in the driver, the Ray workers and the vLLM workers
(entry point group ``verl.plugins``; verl never calls it). verl hides what a plugin raises, so this module catches its
own errors and stores them in :data:`verl_cov.hooks.status.status`, which ``verl-cov doctor`` and the checks of a run
that asks for verl-cov read.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from types import ModuleType

from verl_cov.hooks.status import status

logger = logging.getLogger(__name__)

_installed: list[ModuleType] = []


def seams() -> Iterator[ModuleType]:
    """Yields the modules that apply to the installed verl, in the order in which they are installed.

    Raises:
        UnsupportedVersion: a verl release that verl-cov was not tested with.
    """
    from verl_cov.hooks import cpu, policy_losses, versions
    from verl_cov.hooks.checks import start

    # The start-up check goes first: it tells the user about a verl that the rest cannot work with.
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
        from verl_cov.hooks.validation import averages, entropy, greedy, pass_at_k, sampling

        yield from (registration, group_filter, sampling, averages, pass_at_k)
        # Greedy last: it takes its responses out of each batch before the others see it.
        yield from (entropy, greedy, fail_fast)


def install() -> None:
    """Changes verl where verl-cov needs it. Never raises: an error is stored in ``status``. Only a bad word of ours on
    the command line ends the program, by SystemExit (:mod:`verl_cov.hooks.checks.command_line`)."""
    try:
        for module in seams():
            _installed.append(module)
            module.install()
            status.registered.append(module.__name__.removeprefix("verl_cov.hooks."))
    except Exception as error:
        # At DEBUG: most runs in this environment may never ask for verl-cov; those that do are told at start.
        status.registration_error = f"{type(error).__name__}: {error}"
        logger.debug("verl-cov %s could not register itself with verl: %s", status.version, status.error)


def uninstall() -> None:
    """Undoes every change that :func:`install` made in this process, the newest first.

    The trap: a module that imported one of verl's functions by name keeps the one that it got.
    """
    while _installed:
        module = _installed.pop()
        (module.uninstall if hasattr(module, "uninstall") else module.seam.uninstall)()
    status.registered.clear()


install()
