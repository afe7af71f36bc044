"""Read frames of HDF5 files, MATLAB 7.3 among them, with h5py.

HDF5 fills numbers that were never written with zeros. So a data set must have all its bytes or chunks in the file.

Shape legend: N frames; the other axes are the file's own.
"""

from __future__ import annotations

import math
import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from ...common.fileio import open_regular, printable
from ...errors import PipelineError
from .images import LIMIT_PIXELS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray


class Hdf5File:
    """A file of many frames, opened on the first read in each process. Picklable, and safe in threads."""

    def __init__(self, path: Path, what: str) -> None:
        self.path = path
        self._what = what
        self._opened: tuple[int, dict[str, Any]] = (0, {})

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": (0, {})}

    def shape(self, name: str, axes: int) -> tuple[int, ...]:
        """Return the shape of a data set with so many axes, the first of which is N. Raises PipelineError as `read`."""
        return tuple(self._data(name, axes).shape)

    def read(self, name: str, axes: int, number: int) -> NDArray[Any]:
        """Read frame `number` of a data set, in native byte order.

        Raises PipelineError for a file or data set that is missing, damaged, or too large for a frame.
        """
        data = self._data(name, axes)
        if not 0 <= number < data.shape[0]:
            raise PipelineError(
                f"{self._what} {self.path}: data set {name!r} has no frame {number}, only {data.shape[0]}"
            )
        return _values(data, number, f"{self._what} {self.path}: data set {name!r}")

    def _data(self, name: str, axes: int) -> Any:  # noqa: ANN401 - h5py has no types
        process, opened = self._opened
        if process != os.getpid():  # a file that was opened before a fork would share its position
            opened = {}
            self._opened = (os.getpid(), opened)
        if name not in opened:  # two threads may both open it, with the same result
            opened[name] = _checked(_open(self.path, self._what), name, axes, f"{self._what} {self.path}", frames=True)
        return opened[name]


def read_hdf5(path: str, name: str, axes: int, what: str) -> NDArray[Any]:
    """Read a whole data set of a file of one frame. Raises PipelineError as `Hdf5File.read`."""
    with _open(Path(path), what) as file:
        return _values(_checked(file, name, axes, f"{what} {path}", frames=False), (), f"{what} {path}: {name!r}")


def _open(path: Path, what: str) -> Any:  # noqa: ANN401 - as above
    try:
        open_regular(path).close()
    except OSError as error:
        raise PipelineError(
            f"{what} {path}: {error.strerror}; check the root given to `source`, and the split"
        ) from error
    with _hdf5_errors(f"{what} {path}: not a complete HDF5 file"):
        return h5py.File(path, "r", locking=False)  # read-only file systems often have no locks


def _checked(file: Any, name: str, axes: int, where: str, *, frames: bool) -> Any:  # noqa: ANN401 - as above
    """Return a data set of numbers whose frames have at most LIMIT_PIXELS pixels, and which is whole."""
    with _hdf5_errors(f"{where}: data set {name!r} does not open"):
        data = file.get(name)
        names = printable(", ".join(list(file)[:20]))[:400]
    if not isinstance(data, h5py.Dataset):
        raise PipelineError(f"{where}: no data set {name!r}; it has {names or 'none'}")
    shape = tuple(data.shape or ())
    what = f"{where}: data set {name!r}"
    if data.dtype.kind not in "iuf" or len(shape) != axes or 0 in shape:
        raise PipelineError(f"{what} is {data.dtype} of shape {shape}, expected numbers with {axes} axes")
    frame = shape[1:] if frames else shape
    if math.prod(frame) > 3 * LIMIT_PIXELS:
        raise PipelineError(f"{what} declares frames of {frame}, expected at most {LIMIT_PIXELS} pixels")
    if data.is_virtual or data.external:
        raise PipelineError(f"{what} is stored in other files; expected its numbers in this one")
    with _hdf5_errors(f"{what} does not open"):
        if data.chunks is None:
            expected, stored, unit = data.nbytes, data.id.get_storage_size(), "bytes"
        else:
            expected = math.prod(-(-side // step) for side, step in zip(shape, data.chunks, strict=True))
            stored, unit = data.id.get_num_chunks(), "chunks"
    if stored != expected:
        raise PipelineError(f"{what} has {stored} of {expected} {unit}: it was not written completely; copy it again")
    return data


def _values(data: Any, key: Any, where: str) -> NDArray[Any]:  # noqa: ANN401 - as above
    with _hdf5_errors(f"{where} does not read"):
        values = np.asarray(data[key])
    return values.astype(values.dtype.newbyteorder("="), copy=False)


@contextmanager
def _hdf5_errors(what: str) -> Iterator[None]:
    """Report what h5py raises, of many types, as one error."""
    try:
        yield
    except Exception as error:
        text = printable(str(error).replace("\n", " "))[:200]
        raise PipelineError(f"{what} ({text}); copy or download it again") from error
