"""Which verl this release of verl-cov was built for and tested with."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from packaging.specifiers import SpecifierSet
from packaging.version import Version

SUPPORTED_VERL = SpecifierSet(">=0.9.0,<0.10")


class UnsupportedVersion(RuntimeError):
    """A package is missing, too old or too new; the message says which and what to install."""


def installed(distribution: str) -> str | None:
    """Version of an installed distribution, or None."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def check_verl(found: str | None) -> None:
    """Raise :class:`UnsupportedVersion` unless verl ``found`` is one that verl-cov supports."""
    fix = f"pip install 'verl{SUPPORTED_VERL}'"
    if found is None:
        raise UnsupportedVersion(f"verl is not installed: {fix}")
    # The base version: a build of 0.9.1 from source calls itself 0.9.1.dev0, which a specifier would order before it.
    if Version(Version(found).base_version) not in SUPPORTED_VERL:
        older = Version(found) < Version("0.9.0")
        raise UnsupportedVersion(
            f"verl {found} is too {'old' if older else 'new'} for this verl-cov, which supports verl{SUPPORTED_VERL}: "
            + (fix if older else f"upgrade verl-cov, or {fix}")
        )


def install() -> None:
    """Refuse to register anything with a verl whose internals were not checked."""
    import verl

    from verl_cov import plugin

    plugin.status.verl_version = verl.__version__
    check_verl(verl.__version__)
