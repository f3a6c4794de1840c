"""Class names: from the model, from a file or list of the user, and back to numbers."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from edge_perception.detection.errors import LabelsError, first_line

Labels = str | Path | Sequence[str] | Mapping[int, str]


def labels_from_metadata(metadata: Mapping[str, str]) -> dict[int, str] | None:
    """Class names in a model's `names` metadata, a Python literal; None when it has none.

    Raises:
        LabelsError: there are names, but not as a literal list or dictionary.
    """
    text = metadata.get('names')
    if not text:
        return None
    try:
        names = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise LabelsError(f'malformed class names in the model: {text[:60]!r}') from error
    return _checked(names, 'the model')


def load_labels(labels: Labels) -> dict[int, str]:
    """Class names from a list, a dictionary, a text file with one name a line, or a YOLO YAML.

    Raises:
        LabelsError: the file cannot be read, or holds no names.
    """
    if not isinstance(labels, (str, Path)):
        return _checked(labels, 'the list given')
    try:
        text = Path(labels).read_text(encoding='utf-8')
        if Path(labels).suffix.lower() not in ('.yaml', '.yml'):
            names: Any = [line.strip() for line in text.splitlines() if line.strip()]
        else:
            content = yaml.safe_load(text)
            names = content.get('names') if isinstance(content, dict) else content
    # PyYAML lets through what its constructors raise, on dates that there are not for one.
    except (OSError, ValueError, TypeError, RecursionError, yaml.YAMLError) as error:
        raise LabelsError(f'cannot read the labels file {labels}: {first_line(error)}') from error
    return _checked(names, str(labels))


def _checked(names: Any, origin: str) -> dict[int, str]:
    """Names by class id, when they are that: a name for each id from 0 on."""
    if isinstance(names, Mapping):
        pairs = list(names.items())
    elif isinstance(names, Sequence) and not isinstance(names, str):
        pairs = list(enumerate(names))
    else:
        pairs = []
    try:
        by_id = {int(class_id): str(name) for class_id, name in pairs}
    except (ValueError, TypeError, OverflowError):
        by_id = {}
    if not by_id or set(by_id) != set(range(len(by_id))):
        raise LabelsError(f'no class names in {origin}: expected one for each class id from 0 on')
    return dict(sorted(by_id.items()))


def resolve_labels(metadata: Mapping[str, str], labels: Labels | None) -> dict[int, str]:
    """Class names: what the user gave, else what the model says.

    Raises:
        LabelsError: neither has any.
    """
    names = load_labels(labels) if labels is not None else labels_from_metadata(metadata)
    if names is None:
        raise LabelsError(
            'the model carries no class names: give labels=FILE with one name a line, or a list'
        )
    return names


def wanted_class_ids(
    names: Mapping[int, str], classes: Iterable[str] | None
) -> NDArray[np.int32] | None:
    """Numbers of the wanted class names, ascending; None (all classes) for None or no names.

    Raises:
        LabelsError: a name is not among the model's.
    """
    wanted = list(classes or ())
    if not wanted:
        return None
    ids = {name: index for index, name in names.items()}
    unknown = [name for name in wanted if name not in ids]
    if unknown:
        available = ', '.join(names.values())
        raise LabelsError(f'unknown class {", ".join(unknown)}: the model has {available}')
    return np.array(sorted({ids[name] for name in wanted}), dtype=np.int32)
