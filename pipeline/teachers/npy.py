"""Reads a `.npy` file of numbers, without pickle and without believing what its header claims.

Shape legend: h, w pixels.
"""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from ..fileio import open_regular

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

LIMIT_PIXELS = 2**25  # a frame of 8K
HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
DTYPES = ("uint16", "float16", "float32", "float64")


def read_npy(path: Path) -> NDArray[Any]:
    """A 2-D array (h, w) of one of DTYPES, in native byte order.

    Raises ValueError for a file that is missing, no `.npy`, of another type or number of dimensions, too
    large, or of another length than its header says. Nothing is allocated before that is known.
    """
    limit_bytes = LIMIT_PIXELS * 8 + 4096
    try:
        with open_regular(path) as whole:
            size = os.fstat(whole.fileno()).st_size
            if size > limit_bytes:
                raise ValueError(f"prediction {path}: {size} bytes, expected at most {limit_bytes}")
            data = whole.read(limit_bytes)
    except OSError as error:
        raise ValueError(f"prediction {path}: {error.strerror}; expected a readable .npy file") from error
    file = io.BytesIO(data)
    try:
        shape, fortran, dtype = HEADERS[np.lib.format.read_magic(file)](file)
    except Exception as error:  # the parser lets through what Python's tokenizer raises
        raise ValueError(f"prediction {path}: no .npy file ({error}); write it with numpy.save(path, depth)") from error
    if (
        dtype.hasobject
        or dtype.name not in DTYPES
        or len(shape) != 2
        or any(side is True or side < 1 for side in shape)
    ):
        raise ValueError(
            f"prediction {path}: {dtype} of shape {shape}, expected (height, width) of {', '.join(DTYPES)}"
        )
    body_bytes = len(data) - file.tell()
    declared_bytes = int(shape[0]) * int(shape[1]) * dtype.itemsize
    if declared_bytes != body_bytes:
        raise ValueError(
            f"prediction {path}: its header says {declared_bytes} bytes of numbers, it holds {body_bytes}; "
            "the file is cut off or not what it says: write it again"
        )
    array = np.frombuffer(data, dtype, offset=file.tell()).reshape(shape, order="F" if fortran else "C")
    return array.astype(dtype.newbyteorder("="), copy=False)
