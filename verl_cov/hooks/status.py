"""Whether the plugin works in this process: ``verl-cov doctor`` and the checks of a run with verl-cov read it."""

from __future__ import annotations

from dataclasses import dataclass, field

from verl_cov import __version__
from verl_cov.hooks import imports


@dataclass
class Status:
    """What happened when this process loaded the plugin.

    Args:
        registered: the seams that were installed, by their modules' names.
        registration_error: what stopped the registration, or None.
    """

    version: str = __version__
    verl_version: str | None = None
    registered: list[str] = field(default_factory=list)
    registration_error: str | None = None

    @property
    def error(self) -> str | None:
        """What keeps verl-cov from working in this process, or None."""
        return self.registration_error or next(iter(imports.failures), None)


status = Status()


def require_working_plugin() -> None:
    """Raises RuntimeError if verl-cov could not register itself in this process."""
    if status.error:
        raise RuntimeError(
            f"verl-cov {status.version} could not register itself in this process: {status.error}. "
            "Run `verl-cov doctor`"
        )
