"""Class names: from the model, from a file or list of the user, and back to numbers."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_perception.detection.errors import LabelsError

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
        pairs = names.items() if isinstance(names, dict) else enumerate(names)
        return {int(index): str(name) for index, name in pairs}
    except (ValueError, SyntaxError, TypeError) as error:
        raise LabelsError(
            f'the class names in the model are malformed ({text[:60]!r}): give labels=FILE'
        ) from error


def load_labels(labels: Labels) -> dict[int, str]:
    """Class names from a list, a dictionary, or a text file with one name a line.

    Raises:
        LabelsError: the file is missing or nothing is in it.
    """
    if isinstance(labels, (str, Path)):
        try:
            lines = Path(labels).read_text(encoding='utf-8').splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise LabelsError(f'cannot read the labels file {labels}: {error}') from error
        names = dict(enumerate(line.strip() for line in lines if line.strip()))
    elif isinstance(labels, Mapping):
        names = {int(index): str(name) for index, name in labels.items()}
    else:
        names = dict(enumerate(map(str, labels)))
    if not names:
        raise LabelsError(f'no class names in {labels!r}')
    return names


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
        available = ', '.join(names[index] for index in sorted(names))
        raise LabelsError(f'unknown class {", ".join(unknown)}: the model has {available}')
    return np.array(sorted({ids[name] for name in wanted}), dtype=np.int32)
