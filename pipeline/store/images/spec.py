"""Specification of an image cache, and the files and arrays that follow from it.

One directory is one Zarr v3 group: `rgb` uint8 (N, H, 3, W), residuals of `image_codec`; and `sample/`, with rows.
Codecs, shards and manifest are those of a store of depth, and so are the checks: what is there is compared with what
is written from here.

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
    """Versions of the packages that decide a store's bytes: decoders of JPEG differ, and Pillow brings its own."""
    return producer_versions() | {"pillow": version("pillow")}


@dataclass(frozen=True)
class ImageSpec:
    """Everything about a store of images except its arrays."""

    source: dict[str, Any]
    """`name`, `samples` (how many), `ids_sha256`."""
    view: str
    """Written form of the crop and resize that were done."""
    size_px: tuple[int, int]
    """(H, W) of the view."""
    id_bytes: int
    """Length of the longest id in UTF-8."""
    samples_per_shard: int = 64
    producer: dict[str, str] = field(default_factory=image_producer_versions)

    def __post_init__(self) -> None:
        height, width = self.size_px
        if not 0 < height * width <= MAX_PIXELS or min(height, width) < 1:
            raise PipelineError(f"a view of {height}x{width} px: expected 1 to {MAX_PIXELS} pixels")
        if not 1 <= self.id_bytes <= MAX_ID_BYTES:
            raise PipelineError(f"the longest id has {self.id_bytes} bytes: expected 1 to {MAX_ID_BYTES}")
        if not 1 <= self.samples_per_shard <= 2**16:
            raise PipelineError(f"{self.samples_per_shard} samples a shard: expected 1 to {2**16}")
        if self.rgb.chunk_bytes > MAX_CHUNK_BYTES or self.rgb.index_bytes > MAX_INDEX_BYTES:
            raise PipelineError(
                f"{self.samples_per_shard} images of {height}x{width} px: more than a shard may hold; use fewer "
                "`samples_per_shard`, or a smaller `view`"
            )
        if max(self.id_bytes, 32) * self.samples > MAX_ROW_BYTES or self.rgb.files > MAX_FILES // 2:
            raise PipelineError(
                f"{self.samples} samples, {self.samples_per_shard} a shard: more than a store may hold; keep each part "
                "of the split on its own"
            )
        check_text([self.source, self.view, self.producer])

    @property
    def version(self) -> int:
        """Of the format."""
        return VERSION

    @property
    def samples(self) -> int:
        """How many images there are."""
        return int(self.source["samples"])

    @property
    def shards(self) -> int:
        """How many files hold them."""
        return self.rgb.files

    def shard_samples(self, shard: int) -> range:
        """Indexes of the samples that a shard holds."""
        first = shard * self.samples_per_shard
        return range(first, min(first + self.samples_per_shard, self.samples))

    @property
    def rgb(self) -> ArrayLayout:
        """The images."""
        height, width = self.size_px
        one = (height, 3, width)
        return ArrayLayout("rgb", (self.samples, *one), np.dtype("uint8"), (1, *one), (self.samples_per_shard, *one))

    def sharded(self) -> list[ArrayLayout]:
        """Arrays whose files hold many samples each."""
        return [self.rgb]

    def rows(self) -> list[ArrayLayout]:
        """Arrays with one row a sample."""
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
        """Attributes of the store's group."""
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
        """Hash of the whole specification; it names the staging directory, so that nothing else resumes it."""
        return sha256_bytes(canonical_json(self.attributes()))

    def metadata(self) -> dict[str, dict[str, Any]]:
        """Content of every `zarr.json`, by its path in the store."""
        nodes = {"sample": group_metadata({})} | {one.path: one.metadata() for one in self.arrays()}
        root = group_metadata(self.attributes())
        root["consolidated_metadata"] = {"kind": "inline", "must_understand": False, "metadata": nodes}
        return {"zarr.json": root} | {f"{path}/zarr.json": node for path, node in nodes.items()}

    def files(self) -> Iterator[str]:
        """Every file of a complete store except the manifest."""
        yield from self.metadata()
        for array in self.arrays():
            for number in range(array.files):
                yield array.file(number)

    @classmethod
    def from_attributes(cls, attributes: Any) -> ImageSpec:  # noqa: ANN401 - any JSON value
        """Read the attributes of a store that may come from anybody. Raises PipelineError for anything out of form."""
        try:
            header = attributes[KIND]
            if type(header["version"]) is not int or header["version"] != VERSION:
                raise PipelineError(
                    f"images of format version {header['version']!r}, this program reads {VERSION}: run "
                    "`pipeline cache-images` again"
                )
            size_px, source = header["view"]["size_px"], header["source"]
            if len(size_px) != 2:
                raise PipelineError(f"a size of {len(size_px)} numbers: expected height and width in pixels")
            if not all(isinstance(text, str) for text in (source["name"], source["ids_sha256"])):
                raise PipelineError("the source's name, or the ids' sha256, is no text")
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
                f"not the attributes of an image cache ({error!r}): expected what `pipeline cache-images` writes; pass "
                "a depth store as `store`"
            ) from error
        if spec.attributes() != attributes:
            raise PipelineError(
                "the attributes of this image cache contradict each other, or hold more than they should"
            )
        return spec
