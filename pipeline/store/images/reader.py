"""Open and read an image cache; everything in it is checked before use.

Shape legend: N samples, H W pixels of the view.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from ...common.fileio import pretty_json
from ...errors import DamagedStoreError, PipelineError
from ..format.layout import MANIFEST
from ..read.base import StoredSamples
from ..read.files import LocalFiles, is_url
from ..read.validate import NODE_LIMIT_BYTES, check_listed, read_checked, read_manifest, read_node
from .codec import image_of_residual
from .spec import ImageSpec

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from ..read.files import StoreFiles
    from ..read.validate import Manifest


def open_images(path: str | Path, *, check_shards: bool | None = None) -> ImageCache:
    """Open a complete image cache: a directory, or a URL.

    Each process compares each shard with the manifest when it first reads from it. From a URL, or with
    `check_shards=False`, it checks only the checksums of the chunks it reads, as `open_store` does.

    Raises PipelineError for a path without a complete image cache, another format version, or files that do not match
    the manifest.
    """
    if is_url(path):
        from ..remote.remote import RemoteFiles

        remote = RemoteFiles(str(path), whole_shards=bool(check_shards))
        return ImageCache(remote, remote.name, check_shards=False)  # RemoteFiles checks whole shards itself
    root = Path(path)
    if not (root / MANIFEST).is_file():
        raise PipelineError(
            f"{root} is not a complete image cache: {MANIFEST} is missing; run `pipeline cache-images`, which "
            "resumes an interrupted run"
        )
    return ImageCache(LocalFiles(root), str(root), check_shards=check_shards is not False)


def open_image_spec(files: StoreFiles, name: str) -> tuple[Manifest, ImageSpec]:
    """Read and check the manifest and metadata of an image cache, as `open_layout` does. `name` is for messages.

    Raises PipelineError, or its subclass DamagedStoreError if bytes do not match the manifest.
    """
    version, manifest = read_manifest(files, name)
    root = read_node(files, name, manifest, "zarr.json")
    try:
        spec = ImageSpec.from_attributes(root["attributes"])
    except (KeyError, TypeError) as error:
        raise PipelineError(f"{name}: invalid metadata of an image cache ({error!r})") from error
    except ValueError as error:
        raise PipelineError(f"{name}: {error}") from error
    if version != spec.version:
        raise PipelineError(f"{name}/{MANIFEST} has version {version}, but the attributes have {spec.version}")
    for file, node in spec.metadata().items():
        if read_checked(files, name, manifest, file, NODE_LIMIT_BYTES) != pretty_json(node):
            raise PipelineError(f"{name}/{file} is not the metadata of this image cache; run cache-images again")
    check_listed(name, manifest, spec)
    return manifest, spec


class ImageCache(StoredSamples[ImageSpec]):
    """Decoded views of a source's images. Picklable; safe in forked and spawned loader workers."""

    def __init__(self, files: StoreFiles, name: str, *, check_shards: bool = True) -> None:
        manifest, spec = open_image_spec(files, name)
        super().__init__(files, name, manifest, spec, spec.arrays(), check_shards=check_shards)

    def __repr__(self) -> str:
        height, width = self.spec.size_px
        return f"<ImageCache {self.name}: {len(self)} x {height}x{width} px of {self.spec.source['name']}>"

    @property
    def layout(self) -> ImageSpec:
        """Files and arrays; the specification defines them."""
        return self.spec

    def numbers(self, ids: Sequence[str]) -> NDArray[np.int64]:
        """Return positions of samples. Raises PipelineError if an image is not in the cache."""
        return self.indexes_of(ids)

    @cached_property
    def image_size_px(self) -> NDArray[np.int32]:
        """(N, 2) height and width of each source image, before the view."""
        return self.rows("image_size_px")

    def image(self, number: int) -> NDArray[np.uint8]:
        """Return the view (H, W, 3) uint8 of an image, bit for bit; its memory is (H, 3, W).

        Raises DamagedStoreError for a damaged image.
        """
        (residual,) = self._chunks("rgb", number, reuse=True)
        if residual is None:
            raise self._damaged("rgb", number, "the chunk is missing")
        return image_of_residual(residual[0])

    def _damaged(self, path: str, number: int, what: str) -> DamagedStoreError:
        file = self._arrays[path].file(number // self.spec.samples_per_shard)
        return DamagedStoreError(
            f"{self.name}/{file}, sample {number}: {what}; remove {self.name} and run `pipeline cache-images` again"
        )

    def _lacks(self, sample: str) -> str:
        return (
            f"{self.name} has no image {sample!r} ({len(self)} images, such as {self.ids[0]!r}): run `pipeline "
            "cache-images` with a split that contains it"
        )
