"""Writes arrays in each format that `pipeline.sources.readers.arrays` reads."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image


def npy_bytes(array, **kwargs):
    """Return the bytes that `numpy.save` writes."""
    file = io.BytesIO()
    np.save(file, array, **kwargs)
    return file.getvalue()


def pfm_bytes(array, scale=-1.0, head="Pf\n{width} {height}\n{scale}\n"):
    """Return a PFM file (netpbm's pfm.html): rows from the bottom up; the sign of the scale is the byte order."""
    text = head.format(width=array.shape[1], height=array.shape[0], scale=scale)
    return text.encode() + array[::-1].astype("<f4" if scale < 0 else ">f4").tobytes()


def write_exr(path, packing="ZIP", **channels):
    """Write channels; `__` in a name stands for a dot."""
    module = pytest.importorskip("OpenEXR")
    header = {
        "compression": getattr(module, f"{packing}_COMPRESSION"),
        "type": module.scanlineimage,
        "comments": "none",
    }
    named = {name.replace("__", "."): values for name, values in channels.items()}
    with module.File(header, named) as file:
        file.write(str(path))
    return path


def write(path, array):
    """Write an array in the format of its suffix."""
    if path.suffix == ".npy":
        np.save(path, array)
    elif path.suffix == ".npz":
        np.savez_compressed(path, depth=array)
    elif path.suffix == ".pfm":
        path.write_bytes(pfm_bytes(array))
    elif path.suffix == ".exr":
        write_exr(path, Z=array)
    else:
        Image.fromarray(array).save(path)
