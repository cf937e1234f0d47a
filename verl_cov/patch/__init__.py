"""Reviewed diffs that give an installed verl a mini-batch hook in its own code: `verl-cov patch`.

Nothing here imports verl or torch: an installation is looked at as files, and so also when it is broken.
"""

from __future__ import annotations


class PatchError(ValueError):
    """What stands in the way, in one line that says the fix."""
