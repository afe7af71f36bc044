"""Features of a teacher's layers: the text that selects them, and tokens of a vision transformer as maps.

Shape legend: B batch, T tokens, D channels, a b sides of the grid of patches.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ..common.fileio import printable
from ..errors import OptionError, PipelineError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch import Tensor

LAST = "last"
"""Name of the deepest layer, whatever its number."""
LAYER = re.compile(r"(?!zarr\.json$)[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
"""Names of layers, which become names in a store."""


def parse_features(text: str) -> tuple[tuple[str, ...], int]:
    """Parse `LAYER[,LAYER]:COMPONENTS`, such as `6,11:64`, to the layers and the number of principal components.

    Raises OptionError for anything else.
    """
    names, _, count = text.rpartition(":")
    layers = tuple(names.split(","))
    valid = all(LAYER.fullmatch(layer) for layer in layers) and len(set(layers)) == len(layers)
    if not valid or not re.fullmatch(r"[1-9][0-9]{0,5}", count):
        raise OptionError(
            "features",
            text,
            "LAYER[,LAYER]:COMPONENTS with different layers and at least one component, such as 6,11:64",
        )
    return layers, int(count)


def check_layers(where: str, asked: Sequence[str], existing: Iterable[str]) -> None:
    """Raise PipelineError that lists the `existing` layers for a layer that is not one of them or asked for twice."""
    names = list(existing)
    unknown = [layer for layer in asked if layer not in names]
    if unknown:
        listed = ", ".join(printable(str(name)) for name in names)
        raise PipelineError(f"{where} has no layer {unknown[0]!r}, expected `features` among {listed or 'none'}")
    if len(set(asked)) < len(asked):
        raise PipelineError(f"{where}: `features={','.join(asked)}` has a layer twice: name each once")


def token_map(tokens: Tensor, grid: tuple[int, int], special: int) -> Tensor | None:
    """Return tokens (B, T, D) as a map (B, D, a, b) for a grid (a, b) whose rows follow each other.

    The first `special` tokens (class token, registers) are dropped. None if the number of tokens does not fit.
    """
    rows, columns = grid
    if tokens.ndim != 3 or tokens.shape[1] != special + rows * columns:
        return None
    return tokens[:, special:].reshape(len(tokens), rows, columns, -1).permute(0, 3, 1, 2)
