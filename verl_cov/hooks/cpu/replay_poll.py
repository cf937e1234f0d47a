"""Poll the replay buffer ten times a second.

The V1 trainer sleeps 2 s between two looks at whether the rollouts are done; on a laptop model a whole rollout takes
less. Leans on the default of ``poll_interval`` of ``verl.trainer.ppo.v1.replay_buffer.ReplayBuffer``.
"""

from __future__ import annotations

import functools
from typing import Any

from verl_cov.hooks.imports import when_imported

POLL_SECONDS = 0.1


def install() -> None:
    when_imported("verl.trainer.ppo.v1.replay_buffer", _poll_often)


def _poll_often(module: Any) -> None:
    buffer = module.ReplayBuffer
    original = buffer.__init__

    @functools.wraps(original)
    def __init__(self, *args, **kwargs):
        original(self, *args, **{"poll_interval": POLL_SECONDS, **kwargs})

    buffer.__init__ = __init__
