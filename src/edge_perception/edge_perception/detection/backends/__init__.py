"""Inference engines behind one interface. A new engine is one more module in this folder.

Each module but `base` holds one subclass of `Backend`; it imports its engine only when a model is
loaded, so that listing the backends costs nothing and works where an engine is missing.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from functools import cache
from pathlib import Path

from edge_perception.detection.backends.base import Backend, TensorSpec
from edge_perception.detection.errors import BackendError, ModelFileError

__all__ = ['Backend', 'TensorSpec', 'available_backends', 'backend_class', 'backends_for_file']


@cache
def available_backends() -> dict[str, type[Backend]]:
    """Every backend of this folder by name, whether or not its engine is installed."""
    found: dict[str, type[Backend]] = {}
    for module_info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f'{__name__}.{module_info.name}')
        for _, value in inspect.getmembers(module, inspect.isclass):
            # The module first: Python 3.10 takes list[int], as imported, for a class.
            if (
                value.__module__ == module.__name__
                and issubclass(value, Backend)
                and not inspect.isabstract(value)
            ):
                found[value.name] = value
    return found


def backend_class(name: str) -> type[Backend]:
    """The backend called `name`.

    Raises:
        BackendError: there is none of that name.
    """
    backends = available_backends()
    if name not in backends:
        raise BackendError(f'unknown backend {name!r}: choose auto or one of {sorted(backends)}')
    return backends[name]


def backends_for_file(model_path: str | Path) -> list[type[Backend]]:
    """The backends that read files of this type, the preferred one first.

    Raises:
        ModelFileError: no backend reads such files.
    """
    suffix = Path(model_path).suffix.lower()
    matching = [item for item in available_backends().values() if suffix in item.suffixes]
    if not matching:
        known = sorted({end for item in available_backends().values() for end in item.suffixes})
        raise ModelFileError(
            f'no backend reads {suffix or "files without an ending"} ({model_path}): '
            f'known endings are {", ".join(known)}'
        )
    return sorted(matching, key=lambda item: -item.preference)
