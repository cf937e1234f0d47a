"""verl-cov: covariance control of policy entropy (Clip-Cov, KL-Cov) for verl.

Importing this package is free: it touches neither verl nor torch. Registration happens in :mod:`verl_cov.plugin`,
which verl loads by itself through the ``verl.plugins`` entry point.
"""

__version__ = "0.1.0"
