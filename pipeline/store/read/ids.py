"""The ids of a store's samples, and where each one is, in twenty bytes a sample however long they are.

As Python's own text and dict, a million ids take 190 MB in each process, and forked loader workers copy them page by
page, since to look at an object is to write its reference count. Here they stay in the store, which has them in chunks
of 65,536, and what is kept are numpy arrays, which forked workers share.

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
"""Of an id's sha256. Nobody can make two ids that share so many."""


class StoredIds(Sequence[str]):
    """Ids in the store's order, read chunk by chunk when they are asked for; the last chunk is kept."""

    def __init__(self, samples: int, rows_per_chunk: int, read: Callable[[int], NDArray[np.uint8]], name: str) -> None:
        """`read` gives chunk number 0, 1, ... of the column `id`: (R, L) uint8, of the last one the used rows alone.

        `name` is the store's, for messages.
        """
        self._samples = samples
        self._rows_per_chunk = rows_per_chunk
        self._read = read
        self.name = name
        self._kept: tuple[int, list[str]] = (-1, [])

    def __len__(self) -> int:
        return self._samples

    @overload
    def __getitem__(self, number: int) -> str: ...

    @overload
    def __getitem__(self, number: slice) -> list[str]: ...

    def __getitem__(self, number: int | slice) -> str | list[str]:
        """The id of a sample. Raises IndexError, and DamagedStoreError for a damaged chunk."""
        places = range(self._samples)[number]
        return self._one(places) if isinstance(places, int) else [self._one(place) for place in places]

    def __iter__(self) -> Iterator[str]:
        for chunk in range(-(-self._samples // self._rows_per_chunk)):
            yield from self._chunk(chunk)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(one == two for one, two in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]  # as a list, which it stands for

    def _one(self, place: int) -> str:
        chunk, row = divmod(place, self._rows_per_chunk)
        return self._chunk(chunk)[row]

    def _chunk(self, chunk: int) -> list[str]:
        if self._kept[0] != chunk:
            self._kept = chunk, [name.decode() for name in self._checked(chunk)]
        return self._kept[1]

    def _checked(self, chunk: int) -> list[bytes]:
        rows = self._read(chunk)
        try:
            check_rows(rows, chunk * self._rows_per_chunk)
        except DamagedStoreError as error:
            raise DamagedStoreError(f"{self.name}: {error}") from error
        return _names(rows)

    def keys(self) -> NDArray[np.uint64]:
        """(N, 2) key of each id. Reads all of them once. Raises DamagedStoreError for one that no store may have."""
        found = np.empty((self._samples, 2), np.uint64)
        for chunk in range(-(-self._samples // self._rows_per_chunk)):
            names, first = self._checked(chunk), chunk * self._rows_per_chunk
            found[first : first + len(names)] = keys_of(names)
        return found


class IdTable:
    """Finds samples by their ids: keys in ascending order, and whose they are."""

    def __init__(self, ids: StoredIds) -> None:
        """Read all ids once. Raises DamagedStoreError for one that no store may have, or that is there twice."""
        keys = ids.keys()
        order = np.lexsort((keys[:, 1], keys[:, 0]))
        self._first, self._second = keys[order, 0], keys[order, 1]
        self._number = order.astype(np.uint32)
        same = (self._first[1:] == self._first[:-1]) & (self._second[1:] == self._second[:-1])
        if same.any():
            place = int(np.flatnonzero(same)[0])
            again = (self._first == self._first[place]) & (self._second == self._second[place])
            twice = ids[int(self._number[place])]
            raise DamagedStoreError(f"{ids.name}: {int(again.sum())} samples have the id {twice!r}, expected each once")

    @property
    def nbytes(self) -> int:
        """Memory of the table."""
        return int(self._first.nbytes + self._second.nbytes + self._number.nbytes)

    def find(self, ids: Sequence[str]) -> NDArray[np.int64]:
        """Positions of samples, -1 for an id that the store lacks, in each of Unicode's forms NFC and NFD."""
        found = self._find(ids)
        for place in np.flatnonzero(found < 0):  # of a folder that was written by macOS, NFD in older stores
            name = ids[int(place)]
            if not name.isascii():
                others = {unicodedata.normalize(form, name) for form in ("NFC", "NFD")} - {name}
                found[place] = max(self._find(sorted(others)), default=-1)
        return found

    def _find(self, ids: Sequence[str]) -> NDArray[np.int64]:
        keys = keys_of(name.encode(errors="surrogatepass") for name in ids)
        place = np.searchsorted(self._first, keys[:, 0])
        found = np.full(len(ids), -1, np.int64)
        left = np.arange(len(ids))
        while left.size:  # once; again for an id whose first eight bytes are another's too
            left = left[place[left] < len(self._first)]
            left = left[self._first[place[left]] == keys[left, 0]]
            right = self._second[place[left]] == keys[left, 1]
            found[left[right]] = self._number[place[left[right]]]
            left = left[~right]
            place[left] += 1
        return found


def _names(rows: NDArray[np.uint8]) -> list[bytes]:
    joined, width = rows.tobytes(), rows.shape[1]
    return [joined[start : start + width].rstrip(b"\0") for start in range(0, len(joined), width)]


def keys_of(names: Iterable[bytes]) -> NDArray[np.uint64]:
    """(N, 2) the first bytes of each name's sha256."""
    joined = b"".join([hashlib.sha256(name).digest()[:KEY_BYTES] for name in names])
    return np.frombuffer(joined, "<u8").reshape(-1, 2).astype(np.uint64, copy=False)


def check_rows(rows: NDArray[np.uint8], first: int) -> None:
    """Raise DamagedStoreError, naming the sample, for an id that is empty, not UTF-8, or has control characters."""
    # All at once; the slow way, which tells who it is, is for a damaged store.
    try:
        text = rows.tobytes().decode().replace("\0", "")
    except UnicodeDecodeError:
        text = "\0"
    inner = (rows[:, :-1] == 0) & (rows[:, 1:] != 0)
    # A character may not begin in one row and end in the next, which the joined text does not tell.
    torn = (rows[:, 0] & 0xC0) == 0x80
    if (text.isprintable() or not has_control(text)) and rows[:, 0].all() and not inner.any() and not torn.any():
        return
    for number, name in enumerate(_names(rows), first):
        try:
            one = name.decode()
        except UnicodeDecodeError as error:
            raise DamagedStoreError(f"a sample id is not UTF-8 ({error})") from error
        if not one or has_control(one):
            raise DamagedStoreError(f"id {one!r} of sample {number} is empty or has control characters")
