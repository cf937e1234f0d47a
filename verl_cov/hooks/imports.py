"""Runs code when another module is imported, without importing it.

verl loads plugins at the end of ``import verl``, in every process of a run. Importing the engine, the trainer or vLLM
there would cost seconds in processes that never use them, so each seam registers itself for the moment its target is
imported. This module knows nothing about verl.

    when_imported("verl.trainer.ppo.core_algos", register_losses)   # register_losses(module), right after its body ran
    while_importing("verl.third_party.vllm", alias)                 # the module's body runs inside `with alias():`

Why not ``wrapt.when_imported``: it has no way to run a module's body inside a context, and an import fails with what a
hook of it raises.
"""

from __future__ import annotations

import importlib.abc
import logging
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from types import ModuleType
from typing import Any

logger = logging.getLogger(__name__)

failures: list[str] = []
"""What callbacks raised after an import, as "module: error"."""

_after: dict[str, list[Callable[[ModuleType], None]]] = {}
_around: dict[str, list[Callable[[], AbstractContextManager]]] = {}


def when_imported(name: str, callback: Callable[[ModuleType], None]) -> None:
    """Calls ``callback(module)`` once, right after module ``name`` is first executed (now, if that has happened).

    Because the callback runs before the import statement returns, ``from name import function`` in later modules
    sees a function the callback replaced. What a callback raises then does not reach the import, which belongs to
    somebody else: it is kept in :data:`failures`, for whoever asks for what is missing.

    Raises:
        RuntimeError: the module is half-way through its import.
    """
    module = sys.modules.get(name)
    if module is not None:
        if getattr(module.__spec__, "_initializing", False):
            # Half-built, and its loader is past the point where it could be wrapped.
            raise RuntimeError(f"{name} is being imported right now: register the hook before that")
        callback(module)
        return
    _after.setdefault(name, []).append(callback)
    _install()


def while_importing(name: str, context: Callable[[], AbstractContextManager]) -> None:
    """Executes the body of module ``name`` inside ``with context():``. Too late (and ignored) once it is imported."""
    if name not in sys.modules:
        _around.setdefault(name, []).append(context)
        _install()


def forget(name: str, hook: Callable[..., Any]) -> None:
    """Undoes a hook that has not run yet; does nothing if it has."""
    for waiting in (_after.get(name, []), _around.get(name, [])):
        if hook in waiting:
            waiting.remove(hook)


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the real spec through the other finders and wraps its loader's ``exec_module``."""

    def __init__(self) -> None:
        self._searching: set[str] = set()

    def find_spec(self, fullname, path, target=None):
        if fullname in self._searching or not (fullname in _after or fullname in _around):
            return None
        self._searching.add(fullname)
        try:
            spec = _find_in_other_finders(self, fullname, path)
        finally:
            self._searching.discard(fullname)
        if spec is None or spec.loader is None:
            return spec
        # Replaced on the loader object rather than by a loader of our own: everything else that asks the loader
        # something (inspect.getsource, pickling by reference, importlib.resources) sees the real one.
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            with ExitStack() as stack:
                for context in _around.get(fullname, []):
                    stack.enter_context(context())
                execute(module)
            _around.pop(fullname, None)  # only now: a failed import is tried again
            for callback in _after.pop(fullname, []):
                try:
                    callback(module)
                except Exception as error:
                    failures.append(f"{fullname}: {type(error).__name__}: {error}")
                    logger.debug("a hook of verl-cov on %s failed", fullname, exc_info=True)

        spec.loader.exec_module = exec_module
        return spec


def _find_in_other_finders(ours: _Finder, fullname: str, path):
    for finder in sys.meta_path:
        if finder is not ours and (spec := finder.find_spec(fullname, path)) is not None:
            return spec
    return None


_finder = _Finder()


def _install() -> None:
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)
