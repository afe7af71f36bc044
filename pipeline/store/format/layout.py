"""Which files a store consists of, and the exact Zarr v3 metadata of each array.

Writers write this metadata, and readers compare it: a store with another codec, dtype or chunk grid is refused before
any of its data is read. Only core Zarr v3 codecs are used.

Shape legend: N samples, K bins, S samples a shard, h w pixels of the teacher's own output.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ...depth.spaces import ABSOLUTE_SPACES
from ...errors import PipelineError
from .codec import BLOSC_LEVEL, CHUNK_EXTRA_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .spec import StoreSpec

MANIFEST = "MANIFEST.json"
PLANES_PER_CHUNK = 8
"""Planes of a sparse map in one chunk; chunks of unused planes take no bytes."""
ROWS_PER_CHUNK = 65536
MAX_PIXELS = 2**26
MAX_ID_BYTES = 1024
# Limits what one chunk of a hostile store makes a reader allocate.
MAX_CHUNK_BYTES = 2**30
MAX_MAP_BYTES = 2**31
"""Limit of a map (K, h, w) in float32."""
MAX_INDEX_BYTES = 2**22
"""Readers keep the indexes of several shards."""
MAX_ROW_BYTES = 3 * 2**27
"""Limit of a column of `sample/`, which is read at once: the sha256 of twelve million images."""
MAX_FILES = 100_000
"""Every process that opens the store parses the whole manifest."""

SAMPLE_DTYPES = {
    "image_sha256": ("uint8", 32),
    "image_size_px": ("int32", 2),
    "max_rel_error": ("float32", 0),
    "clipped_share": ("float32", 0),
    "invalid_share": ("float32", 0),
}
AFFINE_DTYPES = {"code_scale": ("float64", 0), "code_offset": ("float64", 0)}
SPARSE_DTYPES = {"dpm_kl_nats": ("float32", 0), "dpm_max_kl_nats": ("float32", 0), "dpm_planes": ("int32", 0)}
CARRIED_DTYPES = {"dpm_carried_kl_nats": ("float32", 0)}
ALIGNMENT_DTYPES = {
    "align_scale": ("float64", 0),
    "align_shift": ("float64", 0),
    "align_points": ("int32", 0),
    "align_residual": ("float32", 0),
    "align_verdict": ("uint8", 0),
}


@dataclass(frozen=True)
class ArrayLayout:
    """One array: its path in the store, its files and chunks."""

    path: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    chunk: tuple[int, ...]
    """Shape of one compressed chunk."""
    shard: tuple[int, ...] | None = None
    """Shape of one file of many chunks; None if each file is one chunk."""
    level: int = BLOSC_LEVEL
    """Compression level."""

    @property
    def files(self) -> int:
        """Number of data files; only the first axis is split into files."""
        return -(-self.shape[0] // (self.shard or self.chunk)[0])

    def file(self, number: int) -> str:
        """Return the path in the store of data file `number`."""
        return "/".join([self.path, "c", str(number), *["0"] * (len(self.shape) - 1)])

    @property
    def chunks_per_sample(self) -> int:
        """Number of chunks of one sample."""
        assert self.shard is not None
        return int(np.prod([-(-whole // part) for whole, part in zip(self.shard[1:], self.chunk[1:], strict=True)]))

    @property
    def chunk_bytes(self) -> int:
        """Uncompressed bytes of one chunk."""
        return int(np.prod(self.chunk, dtype=np.int64)) * self.dtype.itemsize

    @property
    def max_file_bytes(self) -> int:
        """Upper bound of a file's bytes: incompressible chunks and the index."""
        whole = self.chunk_bytes + CHUNK_EXTRA_BYTES
        return whole if self.shard is None else self.index_bytes + self.shard[0] * self.chunks_per_sample * whole

    @property
    def index_bytes(self) -> int:
        """Bytes of a shard's index: offset and length of each chunk, and a checksum."""
        assert self.shard is not None
        return 16 * self.shard[0] * self.chunks_per_sample + 4

    def metadata(self) -> dict[str, Any]:
        """Return the content of the array's `zarr.json`."""
        size = self.dtype.itemsize
        to_bytes: dict[str, Any] = {"name": "bytes"}
        if size > 1:
            to_bytes["configuration"] = {"endian": "little"}
        blosc = {
            "cname": "zstd",
            "clevel": self.level,
            "shuffle": "bitshuffle",
            "typesize": size,
            "blocksize": 0,
        }
        codecs: list[dict[str, Any]] = [
            to_bytes,
            {"name": "blosc", "configuration": blosc},
            {"name": "crc32c"},
        ]
        if self.shard:
            # Index first, for file systems that can only stream forward.
            sharding = {
                "chunk_shape": list(self.chunk),
                "codecs": codecs,
                "index_codecs": [
                    {"name": "bytes", "configuration": {"endian": "little"}},
                    {"name": "crc32c"},
                ],
                "index_location": "start",
            }
            codecs = [{"name": "sharding_indexed", "configuration": sharding}]
        return {
            "zarr_format": 3,
            "node_type": "array",
            "shape": list(self.shape),
            "data_type": self.dtype.name,
            "chunk_grid": {
                "name": "regular",
                "configuration": {"chunk_shape": list(self.shard or self.chunk)},
            },
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": 0,
            "codecs": codecs,
            "attributes": {},
            "storage_transformers": [],
        }


@dataclass(frozen=True)
class StoreLayout:
    """Every array of a store of the given specification and output size."""

    spec: StoreSpec
    size_px: tuple[int, int]
    """(h, w) of the teacher's own output."""
    id_bytes: int
    """Length of the longest id in UTF-8."""

    def __post_init__(self) -> None:
        height, width = self.size_px
        if height < 1 or width < 1 or height * width > MAX_PIXELS:
            raise PipelineError(f"the teacher's output has {height}x{width} px: expected 1 to {MAX_PIXELS} pixels")
        if not 1 <= self.id_bytes <= MAX_ID_BYTES:
            raise PipelineError(f"the longest id has {self.id_bytes} bytes: expected 1 to {MAX_ID_BYTES}")
        for array in self.sharded():
            size = array.chunk_bytes
            if size > MAX_CHUNK_BYTES:
                raise PipelineError(f"{array.path}: one sample takes {size} bytes, expected at most {MAX_CHUNK_BYTES}")
            if array.index_bytes > MAX_INDEX_BYTES:
                raise PipelineError(
                    f"{array.path}: {self.spec.samples_per_shard} samples per shard give an index of "
                    f"{array.index_bytes} bytes, expected at most {MAX_INDEX_BYTES}; use fewer `samples_per_shard`"
                )
        map_bytes = 4 * self.spec.bin_count * height * width
        if self.spec.dpm_kind != "gaussian" and map_bytes > MAX_MAP_BYTES:
            raise PipelineError(f"one map takes {map_bytes} bytes: expected at most {MAX_MAP_BYTES}; use fewer bins")
        widest = 32 * self.spec.samples  # ids may be wider, but are read chunk by chunk
        if widest > MAX_ROW_BYTES:
            raise PipelineError(
                f"the image hashes of {self.spec.samples} samples take {widest} bytes: expected at most "
                f"{MAX_ROW_BYTES}; split the images into several stores"
            )
        files = sum(array.files for array in self.arrays())
        if files > MAX_FILES:
            raise PipelineError(
                f"{self.spec.samples} samples with {self.spec.samples_per_shard} per shard give {files} files: "
                f"expected at most {MAX_FILES}; use more `samples_per_shard`"
            )

    def sharded(self) -> list[ArrayLayout]:
        """Arrays of depth, maps, signals, features and relations, all with the same samples per shard."""
        spec, (height, width) = self.spec, self.size_px
        count, group, bins = spec.samples, spec.samples_per_shard, spec.bin_count
        planes = -(-bins // PLANES_PER_CHUNK) * PLANES_PER_CHUNK

        def flat(path: str, dtype: str) -> ArrayLayout:
            shape = (count, height, width)
            chunk, shard = (1, height, width), (group, height, width)
            return ArrayLayout(path, shape, np.dtype(dtype), chunk, shard, spec.compression_level)

        def deep(path: str, dtype: str, chunk: int, depth: int) -> ArrayLayout:
            return ArrayLayout(
                path,
                (count, bins, height, width),
                np.dtype(dtype),
                (1, chunk, height, width),
                (group, depth, height, width),
                spec.compression_level,
            )

        arrays = [flat("depth", "uint16")]
        if spec.dpm_kind == "sparse":
            weight = "uint8" if spec.weight_bits == 8 else "uint16"
            gap = "uint8" if bins < 256 else "uint16"
            arrays.append(deep("dpm/gap", gap, PLANES_PER_CHUNK, planes))
            arrays.append(deep("dpm/weight", weight, PLANES_PER_CHUNK, planes))
            arrays.append(flat("dpm/tail", weight))
        elif spec.dpm_kind == "dense":
            arrays.append(deep("dpm/probability", "float16", bins, bins))

        def of_sample(path: str, dtype: str, shape: tuple[int, ...]) -> ArrayLayout:
            level = spec.compression_level
            return ArrayLayout(path, (count, *shape), np.dtype(dtype), (1, *shape), (group, *shape), level)

        return arrays + spec.extras.sharded(of_sample)

    def rows(self) -> list[ArrayLayout]:
        """Arrays with one row per sample."""
        columns: dict[str, tuple[str, int]] = {"id": ("uint8", self.id_bytes), **SAMPLE_DTYPES}
        if self.spec.depth_space not in ABSOLUTE_SPACES:
            columns |= AFFINE_DTYPES
        if self.spec.dpm_kind == "sparse":
            columns |= SPARSE_DTYPES
        if self.spec.carried_from is not None:
            columns |= CARRIED_DTYPES
        if self.spec.alignment is not None:
            columns |= ALIGNMENT_DTYPES
        columns |= self.spec.extras.columns()
        count = self.spec.samples
        chunk = min(count, ROWS_PER_CHUNK)
        return [
            ArrayLayout(
                f"sample/{name}",
                (count, width) if width else (count,),
                np.dtype(dtype),
                (chunk, width) if width else (chunk,),
            )
            for name, (dtype, width) in columns.items()
        ]

    def edges(self) -> ArrayLayout:
        """The array of bin edges, one chunk."""
        length = (len(self.spec.bin_edges),)
        return ArrayLayout("dpm/bin_edges", length, np.dtype("float64"), length)

    def bases(self) -> list[ArrayLayout]:
        """Arrays that all samples share besides the edges, one chunk each."""
        return [
            ArrayLayout(path, shape, np.dtype("float32"), shape) for path, shape in self.spec.extras.constants().items()
        ]

    def arrays(self) -> list[ArrayLayout]:
        """All arrays."""
        return [*self.sharded(), self.edges(), *self.bases(), *self.rows()]

    def metadata(self) -> dict[str, dict[str, Any]]:
        """Return the content of every `zarr.json`, by its path in the store."""
        nodes = {"dpm": group_metadata(self.spec.dpm_attributes()), "sample": group_metadata({})}
        nodes |= {path: group_metadata({}) for path in self.spec.extras.groups()}
        nodes |= {array.path: array.metadata() for array in self.arrays()}
        root = group_metadata(self.spec.root_attributes())
        # With a copy of all metadata here, readers need no directory listing (one request for a remote store), and
        # zarr-python does not warn about the manifest.
        root["consolidated_metadata"] = {"kind": "inline", "must_understand": False, "metadata": nodes}
        return {"zarr.json": root} | {f"{path}/zarr.json": node for path, node in nodes.items()}

    def files(self) -> Iterator[str]:
        """Yield every file of a complete store except the manifest."""
        yield from self.metadata()
        for array in self.arrays():
            for number in range(array.files):
                yield array.file(number)


def group_metadata(attributes: dict[str, Any]) -> dict[str, Any]:
    """Return the content of a group's `zarr.json`."""
    return {"zarr_format": 3, "node_type": "group", "attributes": attributes}
