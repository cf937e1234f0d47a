"""Places that all reward workers of one user on a machine share, so that together they take bounded memory and CPU.

    places = NodePlaces("math", 8)
    with places.one():      # waits while eight are taken, by whichever process
        ...

verl starts several reward workers on a node, processes that know nothing of each other. A place is a lock on a file in
the folder for temporary files; the kernel frees it when its holder dies, however it dies.

Needs only the standard library.
"""

from __future__ import annotations

import fcntl
import os
import random
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager

_chance = random.Random()  # its own: the trainer may have seeded the global one
_TRIES = 8  # of a round: on a machine with hundreds of places a look at all of them would cost more than waiting
_PAUSE_SECONDS = 0.01  # between two rounds


class NodePlaces:
    """`count` places called `name`. Containers that do not share a folder for temporary files do not share places."""

    def __init__(self, name: str, count: int):
        if count < 1:
            raise ValueError(f"there must be at least one place, got count={count}")
        self.name, self.count = name, count

    @contextmanager
    def one(self) -> Iterator[None]:
        """Hold a place; waits for one without a time limit. Thread-safe. Raises OSError if no file can be locked."""
        folder = os.path.join(tempfile.gettempdir(), f"verl_cov-{os.getuid()}")
        os.makedirs(folder, 0o700, exist_ok=True)
        while True:
            for number in _chance.sample(range(self.count), min(self.count, _TRIES)):
                path = os.path.join(folder, f"{self.name}-{number}.lock")
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                try:
                    if _locked(descriptor):
                        yield
                        return
                finally:
                    fcntl.flock(descriptor, fcntl.LOCK_UN)  # for a forked copy of this process, which has it open too
                    os.close(descriptor)
            time.sleep(_PAUSE_SECONDS)


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
