"""A store of either kind, for whom either will do: depth of a teacher, or an image cache."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..images.reader import ImageCache, open_image_spec, open_images
from ..read.store import Store, open_store
from ..read.validate import HoldsImagesError, open_layout

if TYPE_CHECKING:
    from pathlib import Path

    from ..format.protocols import Spec
    from ..read.files import StoreFiles
    from ..read.validate import Manifest


def open_either(path: str | Path, *, check_shards: bool | None = None) -> Store | ImageCache:
    """Open a finished store of any kind: a directory, or a URL. Raises as `open_store` and `open_images` do."""
    try:
        return open_store(path, check_shards=check_shards)
    except HoldsImagesError:
        return open_images(path, check_shards=check_shards)


def either_of(files: StoreFiles, name: str, *, check_shards: bool) -> Store | ImageCache:
    """As `open_either`, of files that were found already."""
    try:
        return Store(files, name, check_shards=check_shards)
    except HoldsImagesError:
        return ImageCache(files, name, check_shards=check_shards)


def either_layout(files: StoreFiles, name: str) -> tuple[Manifest, Spec]:
    """Read and check all that a store of any kind says of itself. Raises as `open_layout` does."""
    try:
        manifest, spec, _ = open_layout(files, name)
    except HoldsImagesError:
        return open_image_spec(files, name)
    return manifest, spec
