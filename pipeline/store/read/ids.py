"""Ids of a store's samples and their positions, in 20 bytes per sample.

As Python strings and a dict, a million ids take 190 MB per process, and forked loader workers copy them page by page
because reading an object writes its reference count. Here ids stay in the store, in chunks of 65,536; memory holds only
numpy arrays, which forked workers share.

Shape legend: N samples, R rows of one chunk, L bytes of the longest id.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING, overload

import numpy as np

from ...common.fileio import has_control
from ...errors import DamagedStoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from numpy.typing import NDArray

KEY_BYTES = 16
"""Bytes of an id's sha256; collisions cannot be constructed."""


class StoredIds(Sequence[str]):
    """Ids in the store's order, read chunk by chunk when needed; the last chunk is cached."""

    def __init__(self, samples: int, rows_per_chunk: int, read: Callable[[int], NDArray[np.uint8]], name: str) -> None:
        """`read` returns a chunk (R, L) uint8 of the column `id` by number, without padding.

        `name` is the store's, for messages.
        """
        self._samples = samples
        self._rows_per_chunk = rows_per_chunk
        self._read = read
        self.name = name
        self._cached: tuple[int, list[str]] = (-1, [])

    def __len__(self) -> int:
        return self._samples

    @overload
    def __getitem__(self, number: int) -> str: ...

    @overload
    def __getitem__(self, number: slice) -> list[str]: ...

    def __getitem__(self, number: int | slice) -> str | list[str]:
        """Return the id of a sample. Raises IndexError, or DamagedStoreError for a damaged chunk."""
        selected = range(self._samples)[number]
        return self._id(selected) if isinstance(selected, int) else [self._id(index) for index in selected]

    def __iter__(self) -> Iterator[str]:
        for chunk in range(-(-self._samples // self._rows_per_chunk)):
            yield from self._chunk(chunk)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(one == two for one, two in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]  # unhashable, as a list

    def _id(self, index: int) -> str:
        chunk, row = divmod(index, self._rows_per_chunk)
        return self._chunk(chunk)[row]

    def _chunk(self, chunk: int) -> list[str]:
        if self._cached[0] != chunk:
            self._cached = chunk, [name.decode() for name in self._checked(chunk)]
        return self._cached[1]

    def _checked(self, chunk: int) -> list[bytes]:
        rows = self._read(chunk)
        try:
            check_rows(rows, chunk * self._rows_per_chunk)
        except DamagedStoreError as error:
            raise DamagedStoreError(f"{self.name}: {error}") from error
        return _names(rows)

    def keys(self) -> NDArray[np.uint64]:
        """Return the key of each id (N, 2). Reads all ids once. Raises DamagedStoreError for an invalid id."""
        keys = np.empty((self._samples, 2), np.uint64)
        for chunk in range(-(-self._samples // self._rows_per_chunk)):
            names, first = self._checked(chunk), chunk * self._rows_per_chunk
            keys[first : first + len(names)] = keys_of(names)
        return keys


class IdTable:
    """Finds samples by id: sorted keys and their sample numbers."""

    def __init__(self, ids: StoredIds) -> None:
        """Read all ids once. Raises DamagedStoreError for an invalid or duplicate id."""
        keys = ids.keys()
        order = np.lexsort((keys[:, 1], keys[:, 0]))
        self._first, self._second = keys[order, 0], keys[order, 1]
        self._number = order.astype(np.uint32)
        same = (self._first[1:] == self._first[:-1]) & (self._second[1:] == self._second[:-1])
        if same.any():
            first = int(np.flatnonzero(same)[0])
            copies = (self._first == self._first[first]) & (self._second == self._second[first])
            duplicate = ids[int(self._number[first])]
            raise DamagedStoreError(
                f"{ids.name}: duplicate id {duplicate!r} ({int(copies.sum())} samples): expected unique ids"
            )

    @property
    def nbytes(self) -> int:
        """Memory of the table in bytes."""
        return int(self._first.nbytes + self._second.nbytes + self._number.nbytes)

    def find(self, ids: Sequence[str]) -> NDArray[np.int64]:
        """Return positions (len(ids),) of samples, -1 for ids missing in both Unicode forms, NFC and NFD."""
        numbers = self._find(ids)
        for index in np.flatnonzero(numbers < 0):  # macOS writes file names in NFD, and so do older stores
            name = ids[int(index)]
            if not name.isascii():
                others = {unicodedata.normalize(form, name) for form in ("NFC", "NFD")} - {name}
                numbers[index] = max(self._find(sorted(others)), default=-1)
        return numbers

    def _find(self, ids: Sequence[str]) -> NDArray[np.int64]:
        keys = keys_of(name.encode(errors="surrogatepass") for name in ids)
        position = np.searchsorted(self._first, keys[:, 0])
        numbers = np.full(len(ids), -1, np.int64)
        left = np.arange(len(ids))
        while left.size:  # repeats only for ids whose keys share their first eight bytes
            left = left[position[left] < len(self._first)]
            left = left[self._first[position[left]] == keys[left, 0]]
            right = self._second[position[left]] == keys[left, 1]
            numbers[left[right]] = self._number[position[left[right]]]
            left = left[~right]
            position[left] += 1
        return numbers


def _names(rows: NDArray[np.uint8]) -> list[bytes]:
    joined, width = rows.tobytes(), rows.shape[1]
    return [joined[start : start + width].rstrip(b"\0") for start in range(0, len(joined), width)]


def keys_of(names: Iterable[bytes]) -> NDArray[np.uint64]:
    """Return the first 16 bytes of each name's sha256 as (N, 2) uint64."""
    joined = b"".join([hashlib.sha256(name).digest()[:KEY_BYTES] for name in names])
    return np.frombuffer(joined, "<u8").reshape(-1, 2).astype(np.uint64, copy=False)


def check_rows(rows: NDArray[np.uint8], first: int) -> None:
    """Raise DamagedStoreError, naming the sample, for an id that is empty, not UTF-8, or has control characters."""
    # Check all rows at once; the slow loop below finds the invalid id.
    try:
        text = rows.tobytes().decode().replace("\0", "")
    except UnicodeDecodeError:
        text = "\0"
    inner = (rows[:, :-1] == 0) & (rows[:, 1:] != 0)
    # The joined text hides a character that starts in one row and ends in the next.
    torn = (rows[:, 0] & 0xC0) == 0x80
    if (text.isprintable() or not has_control(text)) and rows[:, 0].all() and not inner.any() and not torn.any():
        return
    for number, name in enumerate(_names(rows), first):
        try:
            text = name.decode()
        except UnicodeDecodeError as error:
            raise DamagedStoreError(f"the id of sample {number} is not UTF-8 ({error})") from error
        if not text or has_control(text):
            raise DamagedStoreError(f"id {text!r} of sample {number} is empty or has control characters")
