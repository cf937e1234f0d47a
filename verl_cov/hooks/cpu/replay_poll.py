"""Polls the replay buffer some thirty times a second.

The V1 trainer sleeps 2 s between two looks at whether the rollouts are done; on a laptop model a whole rollout takes
less. Leans on the default of ``poll_interval`` of ``verl.trainer.ppo.v1.replay_buffer.ReplayBuffer``.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any

from verl_cov.hooks.seams import Seam

if TYPE_CHECKING:
    from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer

POLL_SECONDS = 0.03


seam = Seam()


def install() -> None:
    seam.when_imported("verl.trainer.ppo.v1.replay_buffer", _poll_often)


def _poll_often(module: ModuleType) -> None:
    seam.wrap(module.ReplayBuffer, "__init__", _init)


def _init(original: Callable, buffer: ReplayBuffer, *args: Any, **kwargs: Any) -> None:
    original(buffer, *args, **{"poll_interval": POLL_SECONDS, **kwargs})
