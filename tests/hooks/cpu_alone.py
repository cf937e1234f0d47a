"""Of verl-cov the CPU platform alone: for processes that name this module in ``VERL_USE_EXTERNAL_MODULES``."""

from verl_cov.hooks import cpu

cpu.install()
