"""What a module changes in verl, as one thing that can be installed and taken back.

    seam = Seam()

    def install() -> None:
        seam.when_imported("verl.trainer.ppo.v1.trainer_base", _change)

    def _change(trainer_base) -> None:
        seam.wrap(trainer_base.PPOTrainer, "_validate", _validate)

    def _validate(original, trainer): ...  # called in place of PPOTrainer._validate

Every module of :mod:`verl_cov.hooks` that touches verl has one. Knows nothing about verl.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import ModuleType
from typing import Any

from verl_cov.hooks import imports


class Seam:
    """The changes of one module, newest last."""

    def __init__(self) -> None:
        self._undo: list[Callable[[], None]] = []

    def when_imported(self, module: str, change: Callable[[ModuleType], None]) -> None:
        """Calls ``change(module)`` once the module is imported (:func:`verl_cov.hooks.imports.when_imported`)."""
        imports.when_imported(module, change)
        self._undo.append(lambda: imports.forget(module, change))

    def while_importing(self, module: str, context: Callable[[], AbstractContextManager]) -> None:
        """Executes the module's body inside ``context()`` (:func:`verl_cov.hooks.imports.while_importing`)."""
        imports.while_importing(module, context)
        self._undo.append(lambda: imports.forget(module, context))

    def wrap(self, owner: object, name: str, wrapper: Callable[..., Any]) -> None:
        """Replaces ``owner.name`` by a function that calls ``wrapper(original, *args, **kwargs)``.

        The replacement keeps the original's attributes (verl's ``@register`` puts dispatch rules there) and is a
        coroutine function if the original is one (Ray goes by that).
        """
        original = getattr(owner, name)
        if inspect.iscoroutinefunction(original):

            @functools.wraps(original)
            async def replacement(*args: Any, **kwargs: Any) -> Any:
                return await wrapper(original, *args, **kwargs)
        else:

            @functools.wraps(original)
            def replacement(*args: Any, **kwargs: Any) -> Any:
                return wrapper(original, *args, **kwargs)

        self.replace(owner, name, replacement)

    def replace(self, owner: object, name: str, value: object) -> None:
        """Sets ``owner.name``. Taking it back leaves a later change by somebody else alone."""
        original = getattr(owner, name)
        setattr(owner, name, value)

        def undo() -> None:
            if getattr(owner, name) is value:
                setattr(owner, name, original)

        self._undo.append(undo)

    def on_uninstall(self, undo: Callable[[], None]) -> None:
        """Calls ``undo()`` when the changes are taken back: for what was put into a registry."""
        self._undo.append(undo)

    def uninstall(self) -> None:
        """Undoes every change, the newest first."""
        while self._undo:
            self._undo.pop()()


@contextmanager
def shadowed(owner: object, name: str, value: object) -> Iterator[None]:
    """Gives one object another attribute ``name`` inside this block; what it had before shows again after it."""
    before = vars(owner).get(name, _NONE)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if before is _NONE:
            delattr(owner, name)  # that of the class shows again
        else:
            setattr(owner, name, before)


_NONE = object()
