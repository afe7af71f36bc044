"""What is looked at before any sample of a store is read: manifest and metadata, whoever wrote them.

Everything is small, is checked against the manifest, and must be what its format version prescribes to the letter; so a
foreign codec, a shape that declares too much, or a path that leads out of the store is refused here.
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
    """Read and check all that a store says of itself. `name` is for messages.

    Raises StoreFormatError, and of its kind DamagedStoreError where bytes are not those of the manifest.
    """
    version, manifest = read_manifest(files, name)
    spec, layout = _read_spec(files, name, manifest)
    if version != spec.version:
        raise StoreFormatError(f"{name}/{MANIFEST}: of version {version}, the store's attributes of {spec.version}")
    for path, expected in layout.metadata().items():
        if not _same(read_node(files, name, manifest, path), expected):
            raise StoreFormatError(f"{name}/{path}: not the metadata that format version {spec.version} prescribes")
    check_listed(name, manifest, layout)
    return manifest, spec, layout


def check_listed(name: str, manifest: Manifest, layout: Layout) -> None:
    """Raise StoreFormatError unless the manifest lists exactly the files of a layout, none larger than it can be."""
    if set(manifest) != set(layout.files()):
        odd = sorted(set(manifest) ^ set(layout.files()))
        raise StoreFormatError(f"{name}/{MANIFEST}: missing or unexpected files, such as {odd[0]}")
    for array in layout.arrays():
        for number in range(array.files):
            size = manifest[array.file(number)][0]
            if size > array.max_file_bytes:
                raise StoreFormatError(
                    f"{name}/{MANIFEST}: {array.file(number)} of {size} bytes, expected at most {array.max_file_bytes}"
                )


def read_checked(files: StoreFiles, name: str, manifest: Manifest, path: str, limit_bytes: int) -> bytes:
    """Content of a small file, if it is what the manifest says. Raises DamagedStoreError if not."""
    if path not in manifest:
        raise DamagedStoreError(f"{name}/{MANIFEST} does not list {path}: the store is damaged or foreign")
    data = files.read(path, limit_bytes)
    if (len(data), sha256_bytes(data)) != manifest[path]:
        raise DamagedStoreError(
            f"{name}/{path} does not match the manifest (sha256): it was changed or damaged; fetch the store again"
        )
    return data


def read_node(files: StoreFiles, name: str, manifest: Manifest, path: str) -> Any:  # noqa: ANN401 - any JSON value
    """A `zarr.json`, if it is what the manifest says. Raises DamagedStoreError if not, or for what is no JSON."""
    return _parse(name, path, read_checked(files, name, manifest, path, NODE_LIMIT_BYTES))


def _parse(name: str, path: str, data: bytes) -> Any:  # noqa: ANN401 - any JSON value
    try:
        return parse_json(data)
    except ValueError as error:
        raise DamagedStoreError(f"{name}/{path}: not valid JSON ({error})") from error


def _same(one: object, other: object) -> bool:
    """Equal as JSON: unlike in Python, `true` is not 1, and neither is 1.0, at which other readers stop."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(value, other[key]) for key, value in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    return type(one) is type(other) and one == other


def read_manifest(files: StoreFiles, name: str) -> tuple[int, Manifest]:
    """The manifest and its version. Raises StoreFormatError for one that leads out of the store, or is none."""
    value = _parse(name, MANIFEST, files.read(MANIFEST, MANIFEST_LIMIT_BYTES))
    try:
        if not is_known_version(value["version"]):
            raise StoreFormatError(
                f"{name}: manifest version {value['version']!r}, this program reads {KNOWN_VERSIONS}; install the "
                "release that wrote the store"
            )
        pairs = {path: list(entry) for path, entry in value["files"].items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise StoreFormatError(f"{name}/{MANIFEST}: not a manifest of a depth store ({error!r})") from error
    entries: Manifest = {}
    for path, entry in pairs.items():
        parts = path.split("/")
        if {"", ".", ".."} & set(parts) or "\\" in path or not path.isprintable():
            raise StoreFormatError(
                f"{name}/{MANIFEST}: path {path[:200]!r} would leave the store, or is not in its plain form"
            )
        size, digest = entry if len(entry) == 2 else (None, None)
        if type(size) is not int or size < 0 or not isinstance(digest, str) or not SHA256.fullmatch(digest):
            raise StoreFormatError(f"{name}/{MANIFEST}: entry of {path[:200]!r} is not (bytes, sha256)")
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
    except (KeyError, TypeError, ValueError) as error:  # ValueError: as many dimensions as they should not have
        raise StoreFormatError(f"{name}: its arrays are not those of format version 1 ({error!r})") from error
    numbers = (edge_count, count, height, width, id_bytes)
    if not all(type(number) is int and number > 0 for number in numbers):
        raise StoreFormatError(f"{name}: array shapes {numbers!r}: expected whole numbers above 0")
    if edge_count > MAX_BINS + 1 or id_bytes > MAX_ID_BYTES:
        raise StoreFormatError(f"{name}: {edge_count} bin edges, ids of {id_bytes} bytes: more than the format has")
    data = read_checked(files, name, manifest, "dpm/bin_edges/c/0", 8 * (MAX_BINS + 1) + 1024)
    edges = decode_chunk(data, (edge_count,), np.dtype("float64"))
    try:
        spec = StoreSpec.from_attributes(root, dpm, tuple(edges.tolist()))
        layout = StoreLayout(spec, (height, width), id_bytes)
    except ValueError as error:
        raise StoreFormatError(f"{name}: {error}") from error
    return spec, layout
