"""ROOT/dataset.json: what a user declares of the numbers in depth files."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from ...common.fileio import printable, read_json
from ...errors import PipelineError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

FACTS = "dataset.json"


def read_facts(root: Path, keys: Sequence[str], ignored: Sequence[str] = ()) -> dict[str, Any]:
    """Return the object in dataset.json, empty if there is no such file.

    Raises PipelineError for invalid JSON, and for a key that is neither in `keys` nor in `ignored`.
    """
    path = root / FACTS
    if not os.path.lexists(path):
        return {}
    facts = read_json(path, "data set description")
    if not isinstance(facts, dict):
        raise PipelineError(
            f'data set description {path}: {type(facts).__name__}, expected an object like {{"metres_per_unit": 0.001}}'
        )
    unknown = sorted(set(facts) - {*keys, *ignored})
    if unknown:
        raise PipelineError(
            f"data set description {path}: unknown key {printable(unknown[0])[:80]!r}, expected {', '.join(keys)}; "
            "remove it"
        )
    return facts


def metres_per_unit(root: Path, facts: dict[str, Any]) -> float | None:
    """Return the size of a unit of depth files, None if it is not declared. Raises PipelineError if it is invalid."""
    if "metres_per_unit" not in facts:
        return None
    value = facts["metres_per_unit"]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 1e-9 <= value <= 1e9:
        raise PipelineError(
            f"data set description {root / FACTS}: metres_per_unit {value!r}, expected a number above 0 (1e-9 "
            'to 1e9) in a JSON object, for example {"metres_per_unit": 0.001} for millimetres'
        )
    return float(value)
