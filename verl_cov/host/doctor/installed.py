"""The installed verl, read and not imported."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from verl_cov.host import versions
from verl_cov.host.doctor import fingerprints
from verl_cov.patch import Status, status


class Installed:
    """The verl of this Python, as far as it can be read without importing it."""

    @cached_property
    def _found(self) -> Status | str:
        try:
            return status()
        except (ValueError, ImportError) as error:
            return str(error)

    @property
    def package(self) -> Path | None:
        """The folder ``verl``, None if there is none."""
        return None if isinstance(self._found, str) else self._found.site / "verl"

    @property
    def why_none(self) -> str:
        return self._found if isinstance(self._found, str) else ""

    @cached_property
    def version(self) -> str | None:
        """``verl.__version__``, which the plugin goes by; pip's metadata may say another."""
        if self.package is None:
            return None
        return self.metadata

    @property
    def metadata(self) -> str | None:
        return None if isinstance(self._found, str) else self._found.release

    @cached_property
    def release(self) -> versions.Release | None:
        """What the plugin takes it for; None if it refuses it."""
        try:
            return versions.release_of(self.version)
        except versions.UnsupportedVersion:
            return None

    @cached_property
    def functions(self) -> dict[str, str]:
        """The fingerprints of what verl-cov leans on. Empty if there is no verl."""
        return {} if self.package is None else fingerprints.read(self.package)

    @cached_property
    def nearest(self) -> fingerprints.Comparison | None:
        """Against the release that it is most like."""
        return None if self.package is None else fingerprints.nearest(self.functions)

    @cached_property
    def compared(self) -> fingerprints.Comparison | None:
        """Against its release, or the one that it is most like."""
        if self.package is None or self.release is None:
            return self.nearest
        return fingerprints.compare(self.functions, self.release.version)

    @cached_property
    def patch(self) -> Status | None:
        """Its state against its patch."""
        return None if self.package is None else status(self.package)

    @property
    def patch_state(self) -> str | None:
        return None if self.patch is None else self.patch.state
