"""Input and output tensors of a network file."""

from __future__ import annotations

from typing import NamedTuple


class InputTensor(NamedTuple):
    """The input of a file."""

    shape: tuple[int | None, ...]
    """None is a variable side."""
    dtype: str
    """NumPy's name of its type; supported are `preprocess.DTYPES`."""
    scale: float | None = None
    """Of a quantized input: value = (number - zero_point) * scale."""
    zero_point: int = 0


class OutputTensor(NamedTuple):
    """An output of a file."""

    name: str
    dtype: str | None
    """NumPy's name of its type; None if unknown before it runs."""
    scale: float | None = None
    """Of a quantized output: value = (number - zero_point) * scale."""
    zero_point: int = 0
