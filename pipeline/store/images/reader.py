"""Open and read an image cache. Nothing in it is trusted before it is checked.

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
    """Open a finished store of images: a directory, or a URL.

    Each process compares each shard with the manifest when it first reads from it, and from a URL, or with
    `check_shards` False, only the chunks that it reads with their own checksums; as `open_store`.

    Raises PipelineError with what to do for a path that holds none, an unfinished one, another format version, or files
    that do not match the manifest.
    """
    if is_url(path):
        from ..remote.remote import RemoteFiles

        remote = RemoteFiles(str(path), whole_shards=bool(check_shards))
        return ImageCache(remote, remote.name, check_shards=False)  # it compares whole shards itself
    root = Path(path)
    if not (root / MANIFEST).is_file():
        raise PipelineError(
            f"{root} holds no finished images (it has no {MANIFEST}): expected a directory written by "
            "`pipeline cache-images`, which goes on where it stopped"
        )
    return ImageCache(LocalFiles(root), str(root), check_shards=check_shards is not False)


def open_image_spec(files: StoreFiles, name: str) -> tuple[Manifest, ImageSpec]:
    """Read and check all that a store of images says of itself, as `open_layout` does. `name` is for messages.

    Raises PipelineError, and of its kind DamagedStoreError where bytes are not those of the manifest.
    """
    version, manifest = read_manifest(files, name)
    root = read_node(files, name, manifest, "zarr.json")
    try:
        spec = ImageSpec.from_attributes(root["attributes"])
    except (KeyError, TypeError) as error:
        raise PipelineError(f"{name}: not the metadata of an image cache ({error!r})") from error
    except ValueError as error:
        raise PipelineError(f"{name}: {error}") from error
    if version != spec.version:
        raise PipelineError(f"{name}/{MANIFEST}: of version {version}, the attributes of the images of {spec.version}")
    for file, node in spec.metadata().items():
        if read_checked(files, name, manifest, file, NODE_LIMIT_BYTES) != pretty_json(node):
            raise PipelineError(f"{name}/{file}: not the metadata of an image cache; make it again")
    check_listed(name, manifest, spec)
    return manifest, spec


class ImageCache(StoredSamples[ImageSpec]):
    """The views of a source's images, decoded once. Picklable, and safe in forked and spawned loader workers."""

    def __init__(self, files: StoreFiles, name: str, *, check_shards: bool = True) -> None:
        manifest, spec = open_image_spec(files, name)
        super().__init__(files, name, manifest, spec, spec.arrays(), check_shards=check_shards)

    def __repr__(self) -> str:
        height, width = self.spec.size_px
        return f"<ImageCache {self.name}: {len(self)} x {height}x{width} px of {self.spec.source['name']}>"

    @property
    def layout(self) -> ImageSpec:
        """Which files and arrays there are: the specification says all of it."""
        return self.spec

    def numbers(self, ids: Sequence[str]) -> NDArray[np.int64]:
        """Positions of samples. Raises PipelineError if an image was not kept."""
        return self.indexes_of(ids)

    @cached_property
    def image_size_px(self) -> NDArray[np.int32]:
        """(N, 2) height and width of each whole image, of which the view was kept."""
        return self.rows("image_size_px")

    def image(self, number: int) -> NDArray[np.uint8]:
        """The view (H, W, 3) uint8 of an image, bit for bit; its memory lies (H, 3, W).

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
            f"{self.name} holds no image {sample!r} (it has {len(self)}, such as {self.ids[0]!r}): run `pipeline "
            "cache-images` with a split that has it"
        )
