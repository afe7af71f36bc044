"""Specification of an image cache, and the files and arrays that follow from it.

One directory is one Zarr v3 group: `rgb` uint8 (N, H, 3, W), residuals of `image_codec`; and `sample/`, with rows.
Codecs, shards, manifest and checks are those of a depth store: readers compare metadata with what this module writes.

Shape legend: N samples, S samples a shard, H W pixels of the view.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np

from ...common.fileio import canonical_json, sha256_bytes
from ...errors import PipelineError
from ..format.checks import check_text, whole
from ..format.layout import (
    MAX_CHUNK_BYTES,
    MAX_FILES,
    MAX_ID_BYTES,
    MAX_INDEX_BYTES,
    MAX_PIXELS,
    MAX_ROW_BYTES,
    ROWS_PER_CHUNK,
    ArrayLayout,
    group_metadata,
)
from ..format.spec import producer_versions
from .codec import FILTER

if TYPE_CHECKING:
    from collections.abc import Iterator

KIND = "image_store"
VERSION = 1
COLUMNS = {"image_sha256": ("uint8", 32), "image_size_px": ("int32", 2)}


def image_producer_versions() -> dict[str, str]:
    """Return versions of the packages that decide a store's bytes; Pillow brings its own JPEG decoder."""
    return producer_versions() | {"pillow": version("pillow")}


@dataclass(frozen=True)
class ImageSpec:
    """Everything about an image cache except its arrays."""

    source: dict[str, Any]
    """`name`, `samples` (their number), `ids_sha256`."""
    view: str
    """Name of the crop and resize that were applied."""
    size_px: tuple[int, int]
    """(H, W) of the view."""
    id_bytes: int
    """Length of the longest id in UTF-8."""
    samples_per_shard: int = 64
    producer: dict[str, str] = field(default_factory=image_producer_versions)

    def __post_init__(self) -> None:
        height, width = self.size_px
        if not 0 < height * width <= MAX_PIXELS or min(height, width) < 1:
            raise PipelineError(f"the view has {height}x{width} px: expected 1 to {MAX_PIXELS} pixels")
        if not 1 <= self.id_bytes <= MAX_ID_BYTES:
            raise PipelineError(f"the longest id has {self.id_bytes} bytes: expected 1 to {MAX_ID_BYTES}")
        if not 1 <= self.samples_per_shard <= 2**16:
            raise PipelineError(f"`samples_per_shard` must be 1 to {2**16}, got {self.samples_per_shard}")
        if self.rgb.chunk_bytes > MAX_CHUNK_BYTES or self.rgb.index_bytes > MAX_INDEX_BYTES:
            raise PipelineError(
                f"{self.samples_per_shard} images of {height}x{width} px exceed the limit of a shard; use fewer "
                "`samples_per_shard`, or a smaller `view`"
            )
        if max(self.id_bytes, 32) * self.samples > MAX_ROW_BYTES or self.rgb.files > MAX_FILES // 2:
            raise PipelineError(
                f"{self.samples} samples with {self.samples_per_shard} per shard exceed the limit of a store; split "
                "the images into several caches"
            )
        check_text([self.source, self.view, self.producer])

    @property
    def version(self) -> int:
        """Format version."""
        return VERSION

    @property
    def samples(self) -> int:
        """Number of images."""
        return int(self.source["samples"])

    @property
    def shards(self) -> int:
        """Number of shards."""
        return self.rgb.files

    def shard_samples(self, shard: int) -> range:
        """Return the indexes of the samples in a shard."""
        first = shard * self.samples_per_shard
        return range(first, min(first + self.samples_per_shard, self.samples))

    @property
    def rgb(self) -> ArrayLayout:
        """Array of the images."""
        height, width = self.size_px
        image = (height, 3, width)
        shape, shard = (self.samples, *image), (self.samples_per_shard, *image)
        return ArrayLayout("rgb", shape, np.dtype("uint8"), (1, *image), shard)

    def sharded(self) -> list[ArrayLayout]:
        """Arrays with many samples per file."""
        return [self.rgb]

    def rows(self) -> list[ArrayLayout]:
        """Arrays with one row per sample."""
        columns = {"id": ("uint8", self.id_bytes), **COLUMNS}
        chunk = min(self.samples, ROWS_PER_CHUNK)
        return [
            ArrayLayout(f"sample/{name}", (self.samples, width), np.dtype(dtype), (chunk, width))
            for name, (dtype, width) in columns.items()
        ]

    def arrays(self) -> list[ArrayLayout]:
        """All arrays."""
        return [*self.sharded(), *self.rows()]

    def attributes(self) -> dict[str, Any]:
        """Return the attributes of the store's group."""
        return {
            KIND: {
                "version": VERSION,
                "source": self.source,
                "view": {"name": self.view, "size_px": list(self.size_px)},
                "filter": FILTER,
                "id_bytes": self.id_bytes,
                "samples_per_shard": self.samples_per_shard,
                "producer": self.producer,
            }
        }

    def digest(self) -> str:
        """Return the hash of the whole specification, which names the staging directory."""
        return sha256_bytes(canonical_json(self.attributes()))

    def metadata(self) -> dict[str, dict[str, Any]]:
        """Return the content of every `zarr.json`, by its path in the store."""
        nodes = {"sample": group_metadata({})} | {array.path: array.metadata() for array in self.arrays()}
        root = group_metadata(self.attributes())
        root["consolidated_metadata"] = {"kind": "inline", "must_understand": False, "metadata": nodes}
        return {"zarr.json": root} | {f"{path}/zarr.json": node for path, node in nodes.items()}

    def files(self) -> Iterator[str]:
        """Yield every file of a complete store except the manifest."""
        yield from self.metadata()
        for array in self.arrays():
            for number in range(array.files):
                yield array.file(number)

    @classmethod
    def from_attributes(cls, attributes: Any) -> ImageSpec:  # noqa: ANN401 - any JSON value
        """Parse the attributes of an untrusted store. Raises PipelineError for anything outside the format."""
        try:
            header = attributes[KIND]
            if type(header["version"]) is not int or header["version"] != VERSION:
                raise PipelineError(
                    f"unknown image cache version {header['version']!r}: this program reads {VERSION}; run "
                    "`pipeline cache-images` again"
                )
            size_px, source = header["view"]["size_px"], header["source"]
            if len(size_px) != 2:
                raise PipelineError(f"`size_px` has {len(size_px)} numbers: expected height and width in pixels")
            if not all(isinstance(text, str) for text in (source["name"], source["ids_sha256"])):
                raise PipelineError("`source.name` and `source.ids_sha256` must be text")
            spec = cls(
                source={**source, "samples": whole(source["samples"])},
                view=str(header["view"]["name"]),
                size_px=(whole(size_px[0]), whole(size_px[1])),
                id_bytes=whole(header["id_bytes"]),
                samples_per_shard=whole(header["samples_per_shard"]),
                producer={**header["producer"]},
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise PipelineError(
                f"not the attributes of an image cache ({error!r}): expected a directory from `pipeline cache-images`; "
                "pass a depth store as `store`"
            ) from error
        if spec.attributes() != attributes:
            raise PipelineError("the attributes of this image cache are inconsistent or have unknown keys")
        return spec
