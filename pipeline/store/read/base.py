"""Base of opened stores of all kinds: sample ids, columns and chunks.

Shape legend: N samples.
"""

from __future__ import annotations

from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Generic

import numpy as np

from ...common.fileio import pretty_json, sha256_bytes
from ...errors import DamagedStoreError, PipelineError, SampleNotFoundError
from ..format.codec import decode_chunk
from ..format.protocols import S
from ..format.shard import EMPTY
from .ids import IdTable, StoredIds
from .shards import ShardReader
from .validate import read_checked

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from ..format.layout import ArrayLayout
    from .files import StoreFiles
    from .validate import Manifest


def check_image(path: str, sha256: str, expected_sha256: str, store_name: str) -> None:
    """Raise PipelineError if an image is not the one that the teacher saw."""
    if sha256 != expected_sha256:
        raise PipelineError(
            f"{path} is not the image that the teacher saw: its sha256 is {sha256[:16]}..., {store_name} was made from "
            f"{expected_sha256[:16]}...; use the same images, or run `pipeline cache-teacher` over these"
        )


class Columns:
    """Columns of `sample/`.

    Ids refer to this object and not to the store: a reference cycle would keep the store's files open.
    """

    def __init__(self, files: StoreFiles, name: str, manifest: Manifest, arrays: dict[str, ArrayLayout]) -> None:
        self._files, self._name, self._manifest, self._arrays = files, name, manifest, arrays

    def rows(self, name: str) -> NDArray[Any]:
        """Return a whole column, one row per sample, by its name in the format."""
        array = self._arrays[f"sample/{name}"]
        column = np.empty(array.shape, array.dtype)
        for number in range(array.files):
            first = number * array.chunk[0]
            column[first : first + array.chunk[0]] = self.part(array, number)
        return column

    def part(self, array: ArrayLayout, number: int) -> NDArray[Any]:
        """Return the rows of chunk `number` of a column, without the padding of the last chunk."""
        file = array.file(number)
        data = read_checked(self._files, self._name, self._manifest, file, 2 * array.chunk_bytes + 1024)
        try:
            part: NDArray[Any] = decode_chunk(data, array.chunk, array.dtype)
        except DamagedStoreError as error:
            raise DamagedStoreError(f"{self._name}/{file}: {error}; fetch the store again") from error
        return part[: array.shape[0] - number * array.chunk[0]]


class StoredSamples(Generic[S]):
    """Samples of a store opened for reading. Picklable; safe in forked and spawned loader workers."""

    def __init__(
        self,
        files: StoreFiles,
        name: str,
        manifest: Manifest,
        spec: S,
        arrays: Iterable[ArrayLayout],
        *,
        check_shards: bool,
    ) -> None:
        self.name = name
        self._files = files
        self.manifest = manifest
        self.spec = spec
        self._arrays = {array.path: array for array in arrays}
        self._columns = Columns(files, name, manifest, self._arrays)
        self._shards = ShardReader(files, manifest, check_shards=check_shards)

    def __len__(self) -> int:
        return self.spec.samples

    def __getstate__(self) -> dict[str, Any]:
        # Leave out cached columns: a worker reads those it needs.
        return {
            name: value
            for name, value in self.__dict__.items()
            if not isinstance(getattr(type(self), name, None), cached_property)
        }

    @property
    def manifest_sha256(self) -> str:
        """Hash of MANIFEST.json, and so of the store's whole content."""
        return sha256_bytes(pretty_json({"version": self.spec.version, "files": self.manifest}))

    def rows(self, name: str) -> NDArray[Any]:
        """Return a whole column of `sample/`, one row per sample, by its name in the format."""
        return self._columns.rows(name)

    def _part(self, array: ArrayLayout, number: int) -> NDArray[Any]:
        """Return the rows of chunk `number` of a column, without the padding of the last chunk."""
        return self._columns.part(array, number)

    @property
    def ids(self) -> Sequence[str]:
        """Sample ids in the store's order, read when needed."""
        return self._stored_ids

    @cached_property
    def _stored_ids(self) -> StoredIds:
        array = self._arrays["sample/id"]
        return StoredIds(len(self), array.chunk[0], partial(self._columns.part, array), self.name)

    @cached_property
    def _table(self) -> IdTable:
        return IdTable(self._stored_ids)

    def indexes_of(self, ids: Sequence[str]) -> NDArray[np.int64]:
        """Return positions (len(ids),) of samples. Raises SampleNotFoundError for the first that the store lacks."""
        numbers = self._table.find(ids)
        if (numbers < 0).any():
            self.index_of(ids[int(np.argmax(numbers < 0))])
        return numbers

    def index_of(self, sample: int | str) -> int:
        """Return the position of a sample, given by id or position. Raises SampleNotFoundError if it is missing."""
        if isinstance(sample, str):
            number = int(self._table.find([sample])[0])
            if number < 0:
                raise SampleNotFoundError(self._lacks(sample))
            return number
        if not 0 <= sample < len(self):
            raise IndexError(f"{self.name} has samples 0 to {len(self) - 1}, got {sample}")
        return sample

    def check_image(self, number: int, path: str, sha256: str) -> None:
        """Raise PipelineError unless an image file's sha256 is that of sample `number`."""
        check_image(path, sha256, self.image_sha256[number].tobytes().hex(), self.name)

    def check_same_images(
        self, numbers: NDArray[np.int64], other: StoredSamples[Any], other_numbers: NDArray[np.int64], remedy: str
    ) -> None:
        """Raise PipelineError, ending in `remedy`, unless these samples of both stores have the same images."""
        same = (self.image_sha256[numbers] == other.image_sha256[other_numbers]).all(axis=1)
        if not same.all():
            sample_id = self.ids[int(numbers[np.argmin(same)])]
            raise PipelineError(
                f"{other.name} and {self.name} were made from different images of {sample_id!r} (sha256): {remedy}"
            )

    @cached_property
    def image_sha256(self) -> NDArray[np.uint8]:
        """(N, 32) sha256 of each source image's file."""
        return self.rows("image_sha256")

    def _chunks(self, path: str, number: int, *, reuse: bool = False) -> list[NDArray[Any] | None]:
        """Return the chunks of a sample in one of the large arrays; `reuse` as in `ShardReader.read`."""
        array = self._arrays[path]
        try:
            return self._shards.read(array, *divmod(number, self.spec.samples_per_shard), reuse=reuse)
        except DamagedStoreError as error:
            raise self._damaged(path, number, str(error)) from error

    def _used_chunks(self, path: str, number: int) -> NDArray[np.bool_]:
        """Mask (chunks,) of a sample's stored chunks; the others are zeros."""
        array = self._arrays[path]
        try:
            entries = self._shards.entries(array, *divmod(number, self.spec.samples_per_shard))
        except DamagedStoreError as error:
            raise self._damaged(path, number, str(error)) from error
        used: NDArray[np.bool_] = entries[:, 0] != EMPTY
        return used

    def _each_chunk(self, path: str, number: int) -> Iterator[NDArray[Any] | None]:
        """Yield what `_chunks` returns, one at a time."""
        array = self._arrays[path]
        try:
            yield from self._shards.each(array, *divmod(number, self.spec.samples_per_shard))
        except DamagedStoreError as error:
            raise self._damaged(path, number, str(error)) from error

    def _damaged(self, path: str, number: int, what: str) -> DamagedStoreError:
        array = self._arrays[path]
        file = array.file(number // (array.shard or array.chunk)[0])
        try:
            sample = f"{number} ({self.ids[number]})"
        except DamagedStoreError:  # report the first damage
            sample = str(number)
        return DamagedStoreError(
            f"{self.name}/{file}, sample {sample}: {what}; "
            f"fetch the file again (`pipeline store verify {self.name}` lists all damage)"
        )

    def _lacks(self, sample: str) -> str:
        """Return the message for a sample that the store lacks."""
        raise NotImplementedError
