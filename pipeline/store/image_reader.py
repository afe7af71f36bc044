"""Open kept images and read them, whoever wrote them: nothing of a store is trusted that was not checked.

Shape legend: N samples, H W pixels of the view.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..fileio import parse_json, pretty_json
from .codec import DamagedStoreError, decode_chunk
from .files import LocalFiles
from .image_codec import image_of_residual
from .image_layout import ImageSpec
from .layout import MANIFEST
from .opening import NODE_LIMIT_BYTES, read_checked, read_manifest
from .shard_reader import ShardReader

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


def open_images(path: str | Path) -> KeptImages:
    """Open a finished store of images, a directory.

    Raises ValueError with what to do for a path that holds none, an unfinished one, another format version, or files
    that do not match the manifest.
    """
    root = Path(path)
    if not (root / MANIFEST).is_file():
        raise ValueError(
            f"{root} holds no finished images (it has no {MANIFEST}): expected a directory written by "
            "`pipeline cache-images`, which goes on where it stopped"
        )
    return KeptImages(root)


class KeptImages:
    """The views of a source's images, decoded once. Picklable, and safe in forked and spawned loader workers."""

    def __init__(self, root: Path) -> None:
        self.name = str(root)
        self._files = LocalFiles(root)
        self.manifest = read_manifest(self._files, self.name)[1]
        data = read_checked(self._files, self.name, self.manifest, "zarr.json", NODE_LIMIT_BYTES)
        try:
            self.spec = ImageSpec.from_attributes(parse_json(data)["attributes"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"{self.name}: not the metadata of kept images ({error!r})") from error
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}") from error
        for file, node in self.spec.metadata().items():
            if read_checked(self._files, self.name, self.manifest, file, NODE_LIMIT_BYTES) != pretty_json(node):
                raise ValueError(f"{self.name}/{file}: not the metadata that kept images have; make them again")
        if set(self.manifest) != set(self.spec.files()):
            odd = sorted(set(self.manifest) ^ set(self.spec.files()))
            raise ValueError(f"{self.name}/{MANIFEST}: missing or unexpected files, such as {odd[0]}")
        self._shards = ShardReader(self._files, self.manifest, check_shards=True)

    def __len__(self) -> int:
        return self.spec.samples

    def __getstate__(self) -> dict[str, Any]:
        # Columns are read again where they are needed: a worker of a large store should not be sent them.
        return {name: self.__dict__[name] for name in ("name", "_files", "manifest", "spec", "_shards")}

    def _rows(self, name: str) -> NDArray[Any]:
        (array,) = (one for one in self.spec.rows() if one.path == f"sample/{name}")
        parts = []
        for number in range(array.files):
            file = array.file(number)
            data = read_checked(self._files, self.name, self.manifest, file, array.max_file_bytes)
            parts.append(decode_chunk(data, array.chunk, array.dtype))
        whole: NDArray[Any] = np.concatenate(parts)[: self.spec.samples]
        return whole

    @cached_property
    def image_sha256(self) -> NDArray[np.uint8]:
        """(N, 32) sha256 of the file that each image came from."""
        return self._rows("image_sha256")

    @cached_property
    def _number_of_id(self) -> dict[str, int]:
        names = [row.tobytes().rstrip(b"\0") for row in self._rows("id")]
        return {name.decode(errors="replace"): number for number, name in enumerate(names)}

    def numbers(self, ids: Sequence[str]) -> NDArray[np.int64]:
        """Positions of samples. Raises ValueError if an image was not kept."""
        places = self._number_of_id
        lacking = next((one for one in ids if one not in places), None)
        if lacking is not None:
            raise ValueError(
                f"{self.name} holds no image {lacking!r} (it has {len(self)}, such as {next(iter(places))!r}): run "
                "`pipeline cache-images` with a split that has it"
            )
        return np.array([places[one] for one in ids], np.int64)

    def image(self, number: int) -> NDArray[np.uint8]:
        """The view (H, W, 3) uint8 of an image, bit for bit; its memory lies (H, 3, W).

        Raises DamagedStoreError for a damaged image.
        """
        shard, place = divmod(number, self.spec.samples_per_shard)
        try:
            (residual,) = self._shards.read(self.spec.rgb, shard, place, reuse=True)
            if residual is None:
                raise DamagedStoreError("the chunk is missing")  # noqa: TRY301 - told below, with its place
        except DamagedStoreError as error:
            raise DamagedStoreError(
                f"{self.name}/{self.spec.rgb.file(shard)}, sample {number}: {error}; remove {self.name} and run "
                "`pipeline cache-images` again"
            ) from error
        return image_of_residual(residual[0])
