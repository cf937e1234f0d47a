"""PRIME (Cui et al. 2025, arXiv 2502.01456): process rewards from an implicit process reward model (PRM), trained while
the policy is. Its configuration and its maths; what runs it in verl is :mod:`verl_cov.hooks.prime`."""
