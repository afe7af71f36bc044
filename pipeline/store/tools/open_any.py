"""Open a store of either kind: depth store or image cache."""

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
    """Open a complete store of either kind: a directory, or a URL. Raises as `open_store` and `open_images` do."""
    try:
        return open_store(path, check_shards=check_shards)
    except HoldsImagesError:
        return open_images(path, check_shards=check_shards)


def either_of(files: StoreFiles, name: str, *, check_shards: bool) -> Store | ImageCache:
    """Open a store of either kind from its files."""
    try:
        return Store(files, name, check_shards=check_shards)
    except HoldsImagesError:
        return ImageCache(files, name, check_shards=check_shards)


def either_layout(files: StoreFiles, name: str) -> tuple[Manifest, Spec]:
    """Read and check manifest and metadata of a store of either kind. Raises as `open_layout` does."""
    try:
        manifest, spec, _ = open_layout(files, name)
    except HoldsImagesError:
        return open_image_spec(files, name)
    return manifest, spec
