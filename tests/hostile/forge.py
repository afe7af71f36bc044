"""Forged stores: a valid store is copied and changed, and its checksums and manifest are updated to match."""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import google_crc32c
import numpy as np
from tiny_stores import BINS, make_spec

from pipeline.common.fileio import pretty_json, sha256_bytes
from pipeline.store import open_store
from pipeline.store.format.codec import encode_chunk
from pipeline.store.format.layout import MANIFEST, StoreLayout
from pipeline.store.format.shard import build_shard, parse_index
from pipeline.store.format.spec import digest_of_ids
from pipeline.store.images.reader import open_images
from pipeline.store.images.spec import ImageSpec
from pipeline.store.images.writer import ImageWriter, encode_image
from pipeline.store.write.writer import StoreWriter, encode_sample

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SIZE_PX = (24, 32)
"""Large enough that blosc compresses a chunk of depth: it copies below 128 bytes."""
STORE = "s.zarr"


@dataclass(frozen=True)
class Case:
    """A hostile file or folder, how it is opened, and words that the refusal must contain."""

    name: str
    ways: tuple[str, ...]
    """Names of harness.WAYS."""
    words: str
    write: Callable[[Path], None]
    """Writes the case into a folder. The folder `outside` next to it must not change."""


def make_sound(folder: Path, kind: str) -> Path:
    """Write a valid store of 7 samples, 3 in a shard: gaussian, sparse, dense, or `affine` for relative depth."""
    changes = {"depth_space": "affine_disparity"} if kind == "affine" else {}
    spec, ids = make_spec("gaussian" if kind == "affine" else kind, **changes)
    path = folder / f"{kind}.zarr"
    with StoreWriter(path, spec, ids) as writer:
        for shard in writer.todo:
            samples = []
            for number in spec.shard_samples(shard):
                random = np.random.default_rng(number)
                depth = np.cumsum(random.uniform(0, 0.1, SIZE_PX), axis=0).astype(np.float32) + 1
                dpm = random.dirichlet(np.ones(BINS) / 4, SIZE_PX).transpose(2, 0, 1).astype(np.float32)
                encoded = encode_sample(spec, depth, None if spec.dpm_kind == "gaussian" else dpm)
                encoded.row.update(image_sha256=f"{number:064x}", image_size_px=[24, 32])
                samples.append(encoded)
            writer.write_shard(shard, samples)
        writer.finish()
    return path


def make_sound_images(folder: Path) -> Path:
    """Write a valid image cache of 7 images, 3 in a shard."""
    ids = [f"a/{number:03d}" for number in range(7)]
    source = {"name": "fake", "samples": 7, "ids_sha256": digest_of_ids(ids)}
    spec = ImageSpec(source, "full", SIZE_PX, 5, samples_per_shard=3)
    path = folder / "images.zarr"
    with ImageWriter(path, spec, ids) as writer:
        for shard in writer.todo:
            images = []
            for number in spec.shard_samples(shard):
                slope = np.add.outer(np.arange(SIZE_PX[0]), np.arange(SIZE_PX[1])) + number
                view = np.stack([slope] * 3, -1).astype(np.uint8)
                images.append(encode_image(view, f"{number:064x}", SIZE_PX))
            writer.write_shard(shard, images)
        writer.finish()
    return path


class Forged:
    """A copy of a valid store. Its methods change the store and keep the manifest consistent."""

    sound: dict[str, Path]
    """Kind -> valid store; set once by `make.write_all`."""
    header_key = "depth_store"
    dump: Callable[[object], bytes] = staticmethod(lambda value: json.dumps(value).encode())
    """Serializes metadata."""

    def __init__(self, folder: Path, kind: str = "gaussian") -> None:
        self.path = folder / STORE
        shutil.copytree(self.sound[kind], self.path)
        self._kind = kind

    @property
    def layout(self):
        """The original layout."""
        return open_store(self.sound[self._kind]).layout

    def array(self, path: str):
        """Return an array of the original layout."""
        return next(array for array in self.layout.arrays() if array.path == path)

    def write(self, file: str, data: bytes) -> None:
        """Replace a file and its entry in the manifest."""
        (self.path / file).parent.mkdir(parents=True, exist_ok=True)
        (self.path / file).write_bytes(data)
        self.list_as(file, len(data), sha256_bytes(data))

    def list_as(self, file: str, *entry: object) -> None:
        """Set an entry of the manifest."""
        self.manifest(lambda value: value["files"].__setitem__(file, list(entry)))

    def manifest(self, change: Callable[[dict], None]) -> None:
        """Change the manifest."""
        value = json.loads((self.path / MANIFEST).read_text())
        change(value)
        (self.path / MANIFEST).write_text(json.dumps(value))

    def node(self, file: str, change: Callable[[dict], None]) -> None:
        """Change a `zarr.json`, and its copy in the root's."""
        value = json.loads((self.path / file).read_text())
        change(value)
        self.write(file, self.dump(value))
        name = file.removesuffix("zarr.json").rstrip("/")
        if name:
            root = json.loads((self.path / "zarr.json").read_text())
            root["consolidated_metadata"]["metadata"][name] = value
            self.write("zarr.json", self.dump(root))

    def replace(self, file: str, old: str, new: str) -> None:
        """Change the text of a `zarr.json`, also to what no JSON writer writes."""
        text = json.dumps(json.loads((self.path / file).read_text()))
        assert old in text, (file, old)
        self.write(file, text.replace(old, new, 1).encode())

    def header(self, **values: object) -> None:
        """Set keys of the store's attribute."""
        self.node("zarr.json", lambda node: node["attributes"][self.header_key].update(values))

    def declare(self, size_px: tuple[int, int] = SIZE_PX, id_bytes: int = 5, **changes: object) -> None:
        """Rewrite all metadata for a store of another shape, as its writer would."""
        spec = copy.copy(self.layout.spec)
        for name, value in changes.items():
            object.__setattr__(spec, name, value)
        layout = object.__new__(StoreLayout)
        for name, value in {"spec": spec, "size_px": size_px, "id_bytes": id_bytes}.items():
            object.__setattr__(layout, name, value)
        if "bin_edges" in changes:
            self.write("dpm/bin_edges/c/0", encode_chunk(np.array(spec.bin_edges, np.float64)))
        for file, node in layout.metadata().items():
            self.write(file, json.dumps(node).encode())

    def rows(self, name: str, values: np.ndarray) -> None:
        """Replace a column of `sample/`."""
        self.write(self.array(f"sample/{name}").file(0), encode_chunk(values))

    def ids(self, *ids: bytes) -> None:
        """Replace the first ids, each of at most 5 bytes, and the digest of all."""
        all_ids = [*ids, *(b"a/%03d" % number for number in range(len(ids), 7))]
        self.rows("id", np.frombuffer(b"".join(name.ljust(5, b"\0") for name in all_ids), np.uint8).reshape(7, 5))
        digest = sha256_bytes(b"\n".join(all_ids))
        self.node("zarr.json", lambda node: node["attributes"][self.header_key]["source"].update(ids_sha256=digest))

    def chunks(self, path: str, change: Callable[[list], None], shard: int = 0) -> None:
        """Change the list of a shard's chunks (None is empty), and rebuild the shard."""
        array = self.array(path)
        data = (self.path / array.file(shard)).read_bytes()
        index = parse_index(array, data[: array.index_bytes], len(data))
        chunks = [None if at == 2**64 - 1 else data[int(at) : int(at) + int(size)] for at, size in index]
        change(chunks)
        self.write(array.file(shard), build_shard(array, [chunks]))

    def chunk(self, path: str, chunk: bytes | None, number: int = 0) -> None:
        """Replace one chunk of the first shard."""
        self.chunks(path, partial(_put, number=number, chunk=chunk))

    def index(self, path: str, change: Callable[[np.ndarray, int], None]) -> None:
        """Change the index (chunks, 2) of the first shard; `change` gets the index and the size of the file."""
        array = self.array(path)
        data = (self.path / array.file(0)).read_bytes()
        index = np.frombuffer(data[: array.index_bytes - 4], "<u8").reshape(-1, 2).copy()
        change(index, len(data))
        self.write(array.file(0), with_crc(index.tobytes()) + data[array.index_bytes :])


class ForgedImages(Forged):
    """A forged image cache, whose metadata must match to the byte."""

    header_key = "image_store"
    dump = staticmethod(pretty_json)

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, "images")

    @property
    def layout(self):
        """The original layout."""
        return open_images(self.sound["images"]).layout

    def declare(self, **changes: object) -> None:
        """Rewrite all metadata for a cache of another specification, as its writer would."""
        spec = copy.copy(self.layout)
        for name, value in changes.items():
            object.__setattr__(spec, name, value)
        for file, node in spec.metadata().items():
            self.write(file, pretty_json(node))


def _put(chunks: list, number: int, chunk: bytes | None) -> None:
    chunks[number] = chunk


def with_crc(data: bytes) -> bytes:
    """Return data with a valid checksum."""
    return data + google_crc32c.value(data).to_bytes(4, "little")


def frame(chunk: bytes, at: int, value: int, width: int = 4) -> bytes:
    """Change a number in the blosc header or body of a chunk, and keep the checksum valid."""
    changed = bytearray(chunk[:-4])
    changed[at : at + width] = value.to_bytes(width, "little")
    return with_crc(bytes(changed))
