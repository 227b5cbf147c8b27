"""The methods: one paper a file. Each method chooses the five stages of a step.

Every module of this folder is imported. Its public subclasses of ``MethodBase`` are methods, so a new file adds a
method.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any

from zolit.methods.about import About as About
from zolit.methods.base import Method as Method
from zolit.methods.base import MethodBase as MethodBase


def _discover() -> dict[str, type[MethodBase]]:
    """Returns the methods that the modules of this folder define, by name in alphabetical order."""
    found = []
    for name in (module.name for module in iter_modules(__path__) if module.name != "base"):
        module = import_module(f"{__name__}.{name}")
        classes = [member for member in vars(module).values() if isinstance(member, type)]
        found += [c for c in classes if issubclass(c, MethodBase) and c.__module__ == module.__name__]
    return {c.__name__: c for c in sorted(found, key=lambda c: c.__name__.casefold()) if c.__name__[0] != "_"}


_METHODS = _discover()
globals().update(_METHODS)
__all__ = list(_METHODS)

if TYPE_CHECKING:

    def __getattr__(name: str) -> Any: ...


def abouts() -> dict[str, About]:
    """Returns the description of every method, by name."""
    return {name: method.about for name, method in _METHODS.items()}
