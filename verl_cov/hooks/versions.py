"""The verl releases that verl-cov works with, and the one place that knows how they differ.

All other code asks the :class:`Release` of the installed verl (:func:`installed_release`).
``docs/compatibility.md`` says what was run on which; ``make compat`` runs it.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from packaging.version import InvalidVersion, Version

from verl_cov.hooks.status import status


@dataclass(frozen=True)
class Release:
    """What a verl release has of the things that verl-cov leans on.

    Args:
        version: of verl.
        plugins: how a process of it comes to import verl-cov: ``entry point`` (by itself) or
            ``VERL_USE_EXTERNAL_MODULES`` (environment).
        driver_checks: ``main_ppo`` calls ``validate_config`` in the driver. Before 0.9 it is called in the TaskRunner,
            a Ray actor.
        v1: the V1 trainer with its registries, and the CPU platform: PRIME, the filter's limit, validation, recipes.
        engine: ``workers/engine_workers.py::TrainingWorker.train_batch`` sees the mini-batch: the hook needs no patch.
        legacy: ``workers/actor/dp_actor.py::DataParallelPPOActor.update_policy`` trains the actor (also, or only),
            where the hook needs a patch.
        unpads_on_cpu: its legacy trainer can unpad a batch without flash-attn.
        batches_rollouts: its single-turn agent loop is the one whose work ``hooks/cpu/single_turn_batch.py`` does.
    """

    version: str
    plugins: str = "entry point"
    driver_checks: bool = True
    v1: bool = True
    engine: bool = True
    legacy: bool = False
    unpads_on_cpu: bool = True
    batches_rollouts: bool = True

    @property
    def supports(self) -> str:
        """What works there, in a few words."""
        if self.v1:
            return "everything"
        if self.engine:
            legacy = ", the legacy actor's through a patch" if self.legacy else ""
            return f"the losses, their metrics and the law{legacy}; not PRIME, recipes and CPU"
        return "the losses and the metrics of an update through a patch, and the law"


_MODULES = dict(plugins="VERL_USE_EXTERNAL_MODULES", driver_checks=False, v1=False)

RELEASES = (
    Release("0.6.1", **_MODULES, engine=False, legacy=True),  # type: ignore[arg-type]
    Release("0.7.1", **_MODULES, legacy=True),  # type: ignore[arg-type]
    Release("0.8.0", **_MODULES),  # type: ignore[arg-type]
    Release("0.9.0", unpads_on_cpu=False, batches_rollouts=False),
    Release("0.9.1"),
)

NEWEST = RELEASES[-1]


class UnsupportedVersion(ValueError):
    """A package is missing, too old or too new; the message says which and what to install."""


def installed(distribution: str) -> str | None:
    """Version of an installed distribution, or None."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def release_of(verl_version: str | None) -> Release:
    """Returns the release that a version of verl is treated as.

    A build from source counts as the release it was built from, a later patch release of the newest line (0.9.7) as the
    newest release.

    Raises:
        UnsupportedVersion: there is no such release here.
    """
    known = ", ".join(release.version for release in RELEASES)
    if verl_version is None:
        raise UnsupportedVersion(f"verl is not installed: pip install 'verl[verl-core]=={NEWEST.version}'")
    try:
        base = Version(Version(verl_version).base_version)  # 0.9.1.dev0 and 0.9.1+fork are 0.9.1
    except InvalidVersion:
        raise UnsupportedVersion(
            f"verl calls itself {verl_version!r}, which is no version: verl-cov knows {known}"
        ) from None
    for release in RELEASES:
        if base == Version(release.version):
            return release
    newest = Version(NEWEST.version)
    if base.release[:2] == newest.release[:2] and base > newest:
        return NEWEST
    if base > newest:
        raise UnsupportedVersion(
            f"verl {verl_version} is too new for this verl-cov, which knows {known}: upgrade verl-cov, or pip install "
            f"verl=={NEWEST.version}"
        )
    if base < Version(RELEASES[0].version):
        raise UnsupportedVersion(
            f"verl {verl_version} is too old for verl-cov, which knows {known}: pip install verl=={NEWEST.version}"
        )
    nearest = next(release.version for release in RELEASES if Version(release.version) > base)
    raise UnsupportedVersion(
        f"verl {verl_version} is not among the releases that verl-cov was tested with ({known}): "
        f"pip install verl=={nearest}"
    )


@functools.cache
def installed_release() -> Release:
    """The release of the verl in this process. Raises :class:`UnsupportedVersion`."""
    import verl

    return release_of(verl.__version__)


def require_v1(what: str) -> None:
    """Raises ValueError, in one line with the fix, if ``what`` cannot be had with the installed verl."""
    verl_version = installed("verl")
    if verl_version is not None and release_of(verl_version).v1:
        return
    state = "which is not installed" if verl_version is None else f"and this is {verl_version}"
    raise ValueError(
        f"{what} needs verl 0.9 or later, {state}: pip install 'verl[verl-core]=={NEWEST.version}', in an environment "
        "of its own if you need the other one"
    )


def is_tested(verl_version: str) -> bool:
    """True if exactly this version was tested (a later patch release or a build of a fork was not)."""
    return any(verl_version == release.version for release in RELEASES)


def check_parts(release: Release, package: Path) -> None:
    """Raises :class:`UnsupportedVersion` if the folder ``package`` of a verl has other parts than ``release``.

    A build from between two releases calls itself the later one (0.8.0.dev), and may still be the earlier one.
    """
    parts = {
        "workers/engine_workers.py": release.engine,
        "workers/actor/dp_actor.py": release.legacy,
        "plugin/platform/__init__.py": release.v1,
    }
    for name, expected in parts.items():
        if (package / name).exists() != expected:
            has = "has no" if expected else "has a"
            raise UnsupportedVersion(
                f"this verl calls itself {release.version} and {has} verl/{name}: it is a build from between two "
                f"releases, or a fork, which verl-cov does not know: pip install verl=={release.version}"
            )


def check_installed_verl() -> None:
    """Raises :class:`UnsupportedVersion` if this process has a verl whose internals were not checked."""
    import verl

    status.verl_version = verl.__version__
    check_parts(release_of(verl.__version__), Path(verl.__file__).parent)
