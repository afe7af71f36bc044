"""Check a store's manifest and metadata before any sample is read. Stores are not trusted.

Metadata must match the manifest and equal what the format version prescribes. So other codecs, excessive shapes and
paths that leave the store are refused here.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np

from ...common.fileio import parse_json, sha256_bytes
from ...errors import DamagedStoreError, PipelineError, StoreFormatError
from ..format.checks import KNOWN_VERSIONS, is_known_version
from ..format.codec import decode_chunk
from ..format.layout import MANIFEST, MAX_ID_BYTES, StoreLayout
from ..format.spec import MAX_BINS, StoreSpec

if TYPE_CHECKING:
    from ..format.protocols import Layout
    from .files import StoreFiles

DEPTH, IMAGES = "depth/zarr.json", "rgb/zarr.json"
"""The manifest of a depth store lists the first, that of an image cache the second."""
MANIFEST_LIMIT_BYTES = 2**25
NODE_LIMIT_BYTES = 2**20
SHA256 = re.compile("[0-9a-f]{64}")

Manifest = dict[str, tuple[int, str]]
"""Path in the store -> (bytes, sha256)."""


class HoldsImagesError(PipelineError):
    """A depth store was expected, but this is an image cache."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"{name} is an image cache (from `pipeline cache-images`), not a depth store from `pipeline "
            "cache-teacher`; pass it to train-student as `images`, or to `pipeline store` info, verify, pack or unpack"
        )


def open_layout(files: StoreFiles, name: str) -> tuple[Manifest, StoreSpec, StoreLayout]:
    """Read and check a store's manifest and metadata. `name` is for messages.

    Raises StoreFormatError, or its subclass DamagedStoreError if bytes do not match the manifest.
    """
    version, manifest = read_manifest(files, name)
    spec, layout = _read_spec(files, name, manifest)
    if version != spec.version:
        raise StoreFormatError(f"{name}/{MANIFEST} has version {version}, but the attributes have {spec.version}")
    for path, expected in layout.metadata().items():
        if not _same(read_node(files, name, manifest, path), expected):
            raise StoreFormatError(f"{name}/{path} is not the metadata that format version {spec.version} prescribes")
    check_listed(name, manifest, layout)
    return manifest, spec, layout


def check_listed(name: str, manifest: Manifest, layout: Layout) -> None:
    """Raise StoreFormatError unless the manifest lists exactly the files of a layout, none above its size limit."""
    if set(manifest) != set(layout.files()):
        wrong = sorted(set(manifest) ^ set(layout.files()))
        raise StoreFormatError(f"{name}/{MANIFEST}: missing or unexpected files, such as {wrong[0]}")
    for array in layout.arrays():
        for number in range(array.files):
            size = manifest[array.file(number)][0]
            if size > array.max_file_bytes:
                raise StoreFormatError(
                    f"{name}/{MANIFEST}: {array.file(number)} has {size} bytes: expected at most {array.max_file_bytes}"
                )


def read_checked(files: StoreFiles, name: str, manifest: Manifest, path: str, limit_bytes: int) -> bytes:
    """Return the content of a small file. Raises DamagedStoreError if it does not match the manifest."""
    if path not in manifest:
        raise DamagedStoreError(f"{name}/{MANIFEST} does not list {path}: the store is damaged or from another program")
    data = files.read(path, limit_bytes)
    if (len(data), sha256_bytes(data)) != manifest[path]:
        raise DamagedStoreError(
            f"{name}/{path} does not match its sha256 in the manifest: it was changed or damaged; fetch the store again"
        )
    return data


def read_node(files: StoreFiles, name: str, manifest: Manifest, path: str) -> Any:  # noqa: ANN401 - any JSON value
    """Parse a `zarr.json`. Raises DamagedStoreError if it does not match the manifest or is not JSON."""
    return _parse(name, path, read_checked(files, name, manifest, path, NODE_LIMIT_BYTES))


def _parse(name: str, path: str, data: bytes) -> Any:  # noqa: ANN401 - any JSON value
    try:
        return parse_json(data)
    except ValueError as error:
        raise DamagedStoreError(f"{name}/{path}: not valid JSON ({error})") from error


def _same(first: object, second: object) -> bool:
    """Compare as JSON: unlike in Python, 1, 1.0 and `true` differ, since other readers refuse them."""
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(_same(value, second[key]) for key, value in first.items())
    if isinstance(first, list) and isinstance(second, list):
        return len(first) == len(second) and all(map(_same, first, second))
    return type(first) is type(second) and first == second


def read_manifest(files: StoreFiles, name: str) -> tuple[int, Manifest]:
    """Return the manifest and its version. Raises StoreFormatError for an invalid one, or paths outside the store."""
    value = _parse(name, MANIFEST, files.read(MANIFEST, MANIFEST_LIMIT_BYTES))
    try:
        if not is_known_version(value["version"]):
            raise StoreFormatError(
                f"{name}: manifest version {value['version']!r}: this program reads {KNOWN_VERSIONS}; install the "
                "release that wrote the store"
            )
        pairs = {path: list(entry) for path, entry in value["files"].items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise StoreFormatError(f"{name}/{MANIFEST} is not the manifest of a store ({error!r})") from error
    entries: Manifest = {}
    for path, entry in pairs.items():
        parts = path.split("/")
        if {"", ".", ".."} & set(parts) or "\\" in path or not path.isprintable():
            raise StoreFormatError(f"{name}/{MANIFEST}: path {path[:200]!r} leaves the store or is not normalized")
        size, digest = entry if len(entry) == 2 else (None, None)
        if type(size) is not int or size < 0 or not isinstance(digest, str) or not SHA256.fullmatch(digest):
            raise StoreFormatError(f"{name}/{MANIFEST}: invalid entry of {path[:200]!r}: expected [bytes, sha256]")
        entries[path] = size, digest
    return value["version"], entries


def _read_spec(files: StoreFiles, name: str, manifest: Manifest) -> tuple[StoreSpec, StoreLayout]:
    if IMAGES in manifest and DEPTH not in manifest:
        raise HoldsImagesError(name)
    paths = ("dpm/bin_edges/zarr.json", "depth/zarr.json", "sample/id/zarr.json", "zarr.json", "dpm/zarr.json")
    nodes = {path: read_node(files, name, manifest, path) for path in paths}
    try:
        (edge_count,) = nodes["dpm/bin_edges/zarr.json"]["shape"]
        count, height, width = nodes["depth/zarr.json"]["shape"]
        _, id_bytes = nodes["sample/id/zarr.json"]["shape"]
        root, dpm = nodes["zarr.json"]["attributes"], nodes["dpm/zarr.json"]["attributes"]
    except (KeyError, TypeError, ValueError) as error:  # ValueError: wrong number of dimensions
        raise StoreFormatError(f"{name}: arrays do not follow the store format ({error!r})") from error
    numbers = (edge_count, count, height, width, id_bytes)
    if not all(type(number) is int and number > 0 for number in numbers):
        raise StoreFormatError(f"{name}: invalid array shapes {numbers!r}: expected positive integers")
    if edge_count > MAX_BINS + 1 or id_bytes > MAX_ID_BYTES:
        raise StoreFormatError(
            f"{name}: {edge_count} edges, ids of {id_bytes} bytes: above the limits {MAX_BINS + 1} and {MAX_ID_BYTES}"
        )
    data = read_checked(files, name, manifest, "dpm/bin_edges/c/0", 8 * (MAX_BINS + 1) + 1024)
    edges = decode_chunk(data, (edge_count,), np.dtype("float64"))
    try:
        spec = StoreSpec.from_attributes(root, dpm, tuple(edges.tolist()))
        layout = StoreLayout(spec, (height, width), id_bytes)
    except ValueError as error:
        raise StoreFormatError(f"{name}: {error}") from error
    return spec, layout
