"""Reads frames out of HDF5 files (MATLAB 7.3 among them) that may come from anybody.

A data set is read only if its numbers lie in the file itself, plain and whole: no link, external or virtual storage,
no type beside integers and floats, no shape or chunk larger than a frame may have. Chunks are unpacked here, as HDF5's
own gzip filter goes on for as long as the packed bytes say, and its other filters are plug-ins: programs that it looks
for on the disk. Its parser of the file's structure stays what it is: it was not written for hostile files.

Shape legend: N frames; the other axes are the file's own.
"""

from __future__ import annotations

import itertools
import math
import os
import zlib
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import h5py
import numpy as np

from ...common.fileio import open_regular, printable
from ...errors import PipelineError
from .images import LIMIT_PIXELS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

GZIP, SHUFFLE, FLETCHER32 = 1, 2, 3
LIMIT_CHUNK_BYTES = 2**26
LIMIT_UNPACKED_BYTES = 2**30
"""Of all chunks that one frame touches."""


class _Data(NamedTuple):
    """A data set that was checked."""

    handle: Any
    where: str
    filters: tuple[int, ...]
    """In the order of writing."""


class Hdf5File:
    """A file of many frames: opened when it is first read, in each process anew; many threads may read it.

    Picklable: what is open stays behind.
    """

    def __init__(self, path: Path, what: str) -> None:
        self.path = path
        self._what = what
        self._opened: tuple[int, dict[str, _Data]] = (0, {})

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": (0, {})}

    def frames(self, name: str, axes: int) -> tuple[int, ...]:
        """Shape of a data set of so many axes, the first of which is N. Raises PipelineError as `read`."""
        return tuple(self._data(name, axes).handle.shape)

    def read(self, name: str, axes: int, number: int) -> NDArray[Any]:
        """Frame `number` of a data set; nothing else is read.

        Raises PipelineError for a file or data set that is missing, damaged, or not as the module says.
        """
        return _read(self._data(name, axes), number)

    def _data(self, name: str, axes: int) -> _Data:
        process, known = self._opened
        if process != os.getpid():  # a file that was opened before a fork would share its position
            known = {}
            self._opened = (os.getpid(), known)
        if name not in known:  # two threads may both do it, to the same end
            known[name] = _checked(_open(self.path, self._what), name, axes, f"{self._what} {self.path}", frames=True)
        return known[name]


def read_hdf5(path: str, name: str, axes: int, what: str) -> NDArray[Any]:
    """A data set of so many axes of a file of one frame. Raises PipelineError as `Hdf5File.read`."""
    with _open(Path(path), what) as file:
        return _read(_checked(file, name, axes, f"{what} {path}", frames=False), None)


def _open(path: Path, what: str) -> Any:  # noqa: ANN401 - h5py has no types
    try:
        open_regular(path).close()
    except OSError as error:
        raise PipelineError(
            f"{what} {path}: {error.strerror}; check the root given to `source`, and the split"
        ) from error
    with _hdf5_errors(f"{what} {path}", "is no whole HDF5 file"):
        return h5py.File(path, "r", locking=False)  # discs that are mounted for reading often know no locks


def _checked(file: Any, name: str, axes: int, where: str, *, frames: bool) -> _Data:  # noqa: ANN401 - as above
    with _hdf5_errors(where, f"data set {name!r} does not open"):
        if not isinstance(file.get(name, getlink=True), h5py.HardLink) or not isinstance(file[name], h5py.Dataset):
            there = printable(", ".join(itertools.islice(file, 20)))
            raise PipelineError(
                f"{where}: no data set {name!r}, or only a link to one; there: {there[:400] or 'nothing'}"
            )
        data = file[name]
        dtype, shape, chunks = data.dtype, tuple(data.shape or ()), data.chunks
        plan = data.id.get_create_plist()
        filters = tuple(plan.get_filter(number)[0] for number in range(plan.get_nfilters()))
        elsewhere = data.is_virtual or plan.get_external_count() > 0
        stored = data.id.get_storage_size()
    what = f"{where}: data set {name!r}"
    if elsewhere:
        raise PipelineError(f"{what} lies in other files; expected its numbers in this one")
    if dtype.kind not in "iuf" or dtype.itemsize > 8 or len(shape) != axes or 0 in shape:
        raise PipelineError(f"{what} is {dtype} of shape {shape}, expected numbers of {axes} axes")
    frame = shape[1:] if frames else shape
    if math.prod(frame) > 3 * LIMIT_PIXELS:
        raise PipelineError(f"{what} declares frames of {frame}, expected at most {LIMIT_PIXELS} pixels")
    if chunks is None:
        if stored != math.prod(shape) * dtype.itemsize:
            raise PipelineError(f"{what} declares {math.prod(shape) * dtype.itemsize} bytes and holds {stored}")
        return _Data(data, what, ())
    if not set(filters) <= {GZIP, SHUFFLE, FLETCHER32} or len(set(filters)) != len(filters):
        raise PipelineError(
            f"{what} is packed with filters {filters}, expected gzip (1), shuffle (2), fletcher32 (3): repack it with "
            "`h5repack -f GZIP=4`"
        )
    chunk_bytes = math.prod(chunks) * dtype.itemsize
    touched = math.prod(-(-side // step) for side, step in zip(frame, chunks[-len(frame) :], strict=True))
    if chunk_bytes > LIMIT_CHUNK_BYTES or touched * chunk_bytes > LIMIT_UNPACKED_BYTES:
        raise PipelineError(
            f"{what} has chunks of {chunks}: a frame would unpack {touched} of {chunk_bytes} bytes, expected at most "
            f"{LIMIT_UNPACKED_BYTES} bytes in chunks of at most {LIMIT_CHUNK_BYTES}: repack it with `h5repack -l`"
        )
    return _Data(data, what, filters)


def _read(data: _Data, number: int | None) -> NDArray[Any]:
    """The part at `number` of the first axis, or all."""
    shape, chunks, dtype = data.handle.shape, data.handle.chunks, data.handle.dtype
    if number is not None and not 0 <= number < shape[0]:
        raise PipelineError(f"{data.where}: no frame {number}, it has {shape[0]}")
    if chunks is None:
        with _hdf5_errors(data.where, "does not read"):
            values = data.handle[()] if number is None else data.handle[number]
        return np.asarray(values).astype(dtype.newbyteorder("="), copy=False)
    whole = np.empty(shape if number is None else (1, *shape[1:]), dtype.newbyteorder("="))
    first = 0 if number is None else number - number % chunks[0]
    starts = [range(0, side, step) for side, step in zip(shape, chunks, strict=True)]
    starts[0] = starts[0] if number is None else range(first, first + 1)
    for corner in itertools.product(*starts):
        chunk = _unpacked(data, corner)
        if number is not None:
            chunk = chunk[number - first : number - first + 1]
            corner = (0, *corner[1:])  # noqa: PLW2901 - the place in what is returned
        place = tuple(slice(at, at + step) for at, step in zip(corner, chunk.shape, strict=True))
        target = whole[place]
        target[...] = chunk[tuple(slice(side) for side in target.shape)]  # the last chunk reaches beyond the edge
    return whole if number is None else whole[0]


def _unpacked(data: _Data, corner: tuple[int, ...]) -> NDArray[Any]:
    """The chunk that begins at `corner`."""
    chunks, dtype = data.handle.chunks, data.handle.dtype
    size = math.prod(chunks) * dtype.itemsize
    buffer = bytearray(size + size // 256 + 1024)  # as much as bytes that do not pack can take
    with _hdf5_errors(data.where, f"its chunk at {corner} is missing or damaged"):
        skipped, packed = data.handle.id.read_direct_chunk(corner, out=buffer)
        body: bytes | memoryview = memoryview(packed)
        for number, name in reversed(list(enumerate(data.filters))):
            if skipped >> number & 1:
                continue
            if name == GZIP:
                unpacker = zlib.decompressobj()
                body = unpacker.decompress(body, size + 5)  # the checksum, and one more than there may be
            elif name == FLETCHER32:
                body = _without_checksum(body)
            else:
                planes = np.frombuffer(body, np.uint8).reshape(dtype.itemsize, -1)
                body = planes.T.tobytes()
        if len(body) != size:
            raise PipelineError(f"it holds {len(body)} bytes or more, expected {size}")
        return np.frombuffer(body, dtype).reshape(chunks)


def _without_checksum(body: bytes | memoryview) -> bytes | memoryview:
    """Bytes without the checksum at their end, which must fit them: two sums of big-endian 16-bit words."""
    data, told = body[:-4], int.from_bytes(body[-4:], "little")
    words = np.frombuffer(bytes(data) + b"\0" * (len(data) % 2), ">u2").astype(np.uint64)
    weights = np.arange(len(words), 0, -1, dtype=np.uint64) % 65535
    sums = int(words.sum()) % 65535, int((words * weights % 65535).sum()) % 65535
    if ((told & 0xFFFF) % 65535, (told >> 16) % 65535) != sums:
        raise PipelineError("its checksum does not fit")
    return data


@contextmanager
def _hdf5_errors(where: str, told: str) -> Iterator[None]:
    """What h5py and zlib raise as one ValueError; ours, which begin with `where`, pass."""
    try:
        yield
    except Exception as error:  # h5py maps HDF5's errors to many types
        if isinstance(error, ValueError) and str(error).startswith(where):
            raise
        text = printable(str(error).replace("\n", " "))[:200]
        raise PipelineError(f"{where}: {told} ({text}); copy or download it again") from error
