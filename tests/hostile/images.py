"""Hostile image caches: bad content with valid checksums."""

from __future__ import annotations

import os
import struct
import zipfile
from typing import TYPE_CHECKING

import numcodecs
import numpy as np
from hostile.forge import SIZE_PX, Case, ForgedImages, frame, with_crc
from hostile.stores import entry, instead, link, overlap, sparse_file

from pipeline.store.format.codec import encode_chunk
from pipeline.store.format.layout import MANIFEST
from pipeline.store.images.codec import residual_of_image

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

BOTH = ("images", "verify")
CASES: list[Case] = []
SHARD = "rgb/c/0/0/0/0"
RAW_BYTES = 3 * SIZE_PX[0] * SIZE_PX[1]
BLOSC = "an invalid blosc header"
SUM = "0" * 64


def case(name: str, words: str, change: Callable[[ForgedImages], object], ways=BOTH) -> None:
    """Add a case: a changed image cache."""
    CASES.append(Case(f"images-{name}", ways, words, lambda folder: change(ForgedImages(folder)) and None))


# --- chunks ----------------------------------------------------------------------------------------------------------

SMOOTH = encode_chunk(residual_of_image(np.full((*SIZE_PX, 3), 7, np.uint8))[None])
assert not SMOOTH[2] & 2


def blosc(size: int) -> bytes:
    """A chunk that declares an image, and whose zstd frame holds `size` bytes."""
    zstd = numcodecs.zstd.compress(bytes(size), 19)
    inside = struct.pack("<II", 20, len(zstd)) + zstd
    return with_crc(struct.pack("<4B3I", 2, 1, SMOOTH[2], 1, RAW_BYTES, RAW_BYTES, 16 + len(inside)) + inside)


for _name, _chunk, _words in [
    ("declares-two-gigabytes", frame(SMOOTH, 4, 2**31 - 16), "declares 2147483632 bytes: expected 2304"),
    ("declares-nothing", frame(SMOOTH, 4, 0), "declares 0 bytes: expected 2304"),
    ("length-beyond-its-bytes", frame(SMOOTH, 12, 2**31 - 1), BLOSC),
    ("blocks-of-0", frame(SMOOTH, 8, 0), BLOSC),
    ("blocks-huge", frame(SMOOTH, 8, 2**31 - 1), BLOSC),
    ("typesize-2", frame(SMOOTH, 3, 2, 1), BLOSC),
    ("compressed-by-lz4", frame(SMOOTH, 2, 0x34, 1), BLOSC),
    ("byte-shuffled", frame(SMOOTH, 2, 0x91, 1), BLOSC),
    ("block-starts-outside", frame(SMOOTH, 16, 2**31 - 1), BLOSC),
    ("block-length-huge", frame(SMOOTH, 20, 2**31 - 1), "does not decompress"),
    ("zstd-of-30-megabytes", blosc(3 * 10**7), "does not decompress"),
    ("zstd-of-too-little", blosc(100), "does not decompress"),
    ("of-another-image-size", encode_chunk(np.zeros((1, 24, 3, 33), np.uint8)), "declares 2376 bytes: expected 2304"),
    ("of-no-bytes", b"", "checksum (crc32c) of a chunk"),
    ("missing", None, "the chunk is missing"),
    ("is-a-pickle", with_crc(b"\x80\x04cos\nsystem\n(S'touch /tmp/owned'\ntR."), "a chunk"),
]:
    case(f"chunk-{_name}", _words, lambda store, chunk=_chunk: store.chunk("rgb", chunk))

for _name, _words, _change in [
    ("overlaps", "overlap or leave gaps", lambda store: store.index("rgb", overlap)),
    ("outside", "points outside its file", entry(1, 10**9, None, "rgb")),
    ("wraps-around", "points outside its file", entry(1, 2**64 - 2, 16, "rgb")),
    ("in-itself", "points outside its file", entry(0, 0, None, "rgb")),
    ("length-huge", "points outside its file", entry(1, None, 2**63, "rgb")),
    ("cut-off", "index does not match its checksum", lambda store: store.write(SHARD, bytes(20))),
    ("of-no-bytes", "index does not match its checksum", lambda store: store.write(SHARD, b"")),
]:
    case(f"index-{_name}", _words, _change)

# --- rows ------------------------------------------------------------------------------------------------------------

for _name, _ids, _words in [
    ("not-utf8", [b"\xff\xfe"], "is not UTF-8"),
    ("twice", [b"a/003"], "duplicate id 'a/003'"),
    ("empty", [b""], "is empty or has control characters"),
    ("terminal-escape", [b"\x1b[2J"], r"'\x1b[2J'"),
    ("bidi", ["\u202eab".encode()], "control characters"),
]:
    case(f"id-{_name}", _words, lambda store, ids=_ids: store.ids(*ids))
OTHER = np.frombuffer(b"".join(b"b/%03d" % number for number in range(7)), np.uint8).reshape(7, 5)
case("ids-of-other-images", "the ids' sha256 differs", lambda store: store.rows("id", OTHER), ways=("verify",))
ROWS = "sample/image_sha256/c/0/0"
case(
    "rows-of-too-little",
    "declares 32 bytes: expected 224",
    lambda s: s.write(ROWS, encode_chunk(OTHER[:1, :1].repeat(32))),
)
SIZES = "sample/image_size_px/c/0/0"
case("rows-that-nobody-reads", "checksum (crc32c)", lambda s: s.write(SIZES, b"abcdefgh"), ways=("verify",))

# --- metadata --------------------------------------------------------------------------------------------------------

KEPT = "metadata of this image cache|metadata of an image cache"
FORM = "not the attributes of an image cache"


def many(samples: object, **changes: object) -> Callable[[ForgedImages], None]:
    """Write metadata for this number of samples."""
    return lambda store: store.declare(source={**store.layout.source, "samples": samples}, **changes)


def view(**values: object) -> Callable[[ForgedImages], None]:
    """Set keys of the view."""
    return lambda store: store.node("zarr.json", lambda node: node["attributes"]["image_store"]["view"].update(values))


def of_array(**values: object) -> Callable[[ForgedImages], None]:
    """Set keys of the array's metadata."""
    return lambda store: store.node("rgb/zarr.json", lambda node: node.update(values))


def inner_codec(codec: dict) -> Callable[[ForgedImages], None]:
    """Replace blosc."""

    def change(node: dict) -> None:
        node["codecs"][0]["configuration"]["codecs"][1] = codec

    return lambda store: store.node("rgb/zarr.json", change)


for _name, _words, _change in [
    ("shape-2^31-squared", "expected 1 to 67108864 pixels", lambda s: s.declare(size_px=(2**31, 2**31))),
    ("shape-2^31-squared-in-one-place", KEPT, of_array(shape=[7, 2**31, 3, 2**31])),
    ("shape-wide", "expected 1 to 67108864 pixels", lambda s: s.declare(size_px=(1, 2**40))),
    ("shape-2^62-samples", "exceed the limit of a store", many(2**62)),
    ("shape-2^24-samples", "exceed the limit of a store", many(2**24, samples_per_shard=65536)),
    ("shape-a-file-each", "exceed the limit of a store", many(2**20, samples_per_shard=1)),
    ("ids-of-a-gigabyte", "expected 1 to 1024", lambda s: s.declare(id_bytes=2**30)),
    ("samples-a-shard-huge", "must be 1 to 65536", lambda s: s.declare(samples_per_shard=2**40)),
    ("samples-a-shard-true", "positive integer", lambda s: s.header(samples_per_shard=True)),
    ("samples-true", "positive integer", many(samples=True)),
    ("samples-text", "positive integer", many(samples="7")),
    ("samples-negative", "positive integer", many(samples=-7)),
    ("size-zero", "positive integer", view(size_px=[0, 32])),
    ("size-float", "positive integer", view(size_px=[24.0, 32])),
    ("size-of-three", "`size_px` has 3 numbers", view(size_px=[24, 3, 32])),
    ("size-a-number", FORM, view(size_px=24)),
    ("view-name-a-list", "are inconsistent", view(name=["full"])),
    ("view-name-escape", "has control characters", view(name="\x1b[2J")),
    ("source-name-bidi", "has control characters", lambda s: s.declare(source={**s.layout.source, "name": "\u202e"})),
    ("source-name-a-list", "must be text", lambda s: s.declare(source={**s.layout.source, "name": [1]})),
    ("producer-text", FORM, lambda s: s.header(producer="ab")),
    ("producer-escape", "has control characters", lambda s: s.declare(producer={"numpy": "\x1b]0;owned\x07"})),
    ("another-filter", "are inconsistent", lambda s: s.header(filter="paeth")),
    ("attributes-more", "have unknown keys", lambda s: s.header(code="import os")),
    ("version-2", "version 2: this program reads 1", lambda s: s.header(version=2)),
    ("codec-pickle", KEPT, inner_codec({"name": "pickle"})),
    ("codec-gzip", KEPT, inner_codec({"name": "gzip", "configuration": {"level": 5}})),
    ("codec-blosc-of-lz4", KEPT, inner_codec({"name": "blosc", "configuration": {"cname": "lz4"}})),
    ("dtype-object", KEPT, of_array(data_type="object")),
    ("storage-transformers", KEPT, of_array(storage_transformers=[{"name": "x"}])),
    ("root-a-list", "metadata of this image cache|metadata of an image cache", lambda s: s.write("zarr.json", b"[]")),
    ("root-not-json", "zarr.json: not valid JSON", lambda s: s.write("zarr.json", b"\x80\x04}q\0.")),
    ("root-nested", "nested deeper than 64", lambda s: s.write("zarr.json", b'{"a":' * 500 + b"1" + b"}" * 500)),
]:
    case(_name, _words, _change, ways=(*BOTH, "info"))

# --- the manifest, and what lies in a file's place -------------------------------------------------------------------

for _name, _words, _change in [
    ("path-parent", "leaves the store", lambda s: s.list_as("../../outside/secret", 3, SUM)),
    ("size-huge", "expected at most", lambda s: s.list_as(SHARD, 2**62, SUM)),
    ("lists-more", "missing or unexpected files", lambda s: s.write("extra/zarr.json", b"{}")),
    ("lists-less", "missing or unexpected files", lambda s: s.manifest(lambda m: m["files"].pop(SHARD))),
    (
        "of-version-2",
        "has version 2, but the attributes have 1",
        lambda s: s.manifest(lambda m: m.update(version=2)),
    ),
    ("lists-depth-too", "missing or unexpected|does not list", lambda s: s.write("depth/zarr.json", b"{}")),
]:
    case(f"manifest-{_name}", _words, _change)
case("shard-of-50-gigabytes", "has 53687091200 bytes: expected at most", sparse_file(SHARD, 50 * 2**30))
case("rows-of-50-gigabytes", "has 53687091200 bytes: expected at", sparse_file(ROWS, 50 * 2**30))
case("node-of-50-gigabytes", "expected at most 1048576", sparse_file("rgb/zarr.json", 50 * 2**30))
case("pipe-for-a-shard", "not a regular file", instead(SHARD, os.mkfifo))
case("pipe-for-the-manifest", "not a complete", instead(MANIFEST, os.mkfifo))
case("link-for-a-shard", "a symbolic link", instead(SHARD, link("twin", "images")))
case("link-for-a-folder", "Not a directory", instead("rgb/c", link("twin", "images")))
case("link-for-a-shard-to-zeros", "a symbolic link", instead(SHARD, link("/dev/zero", "images")))
case("folder-for-a-shard", "not a regular file", instead(SHARD, lambda path: path.mkdir()))
case("in-the-place-of-depth", "is an image cache", lambda _: None, ways=("read",))

# --- packed ----------------------------------------------------------------------------------------------------------


def packed(name: str, words: str, change: Callable[[ForgedImages], object]) -> None:
    """Add a case: a changed image cache, packed as by `pipeline store pack`."""

    def write(folder: Path) -> None:
        forged = ForgedImages(folder)
        change(forged)
        with zipfile.ZipFile(folder / "s.zip", "w") as out:
            for path in sorted(forged.path.rglob("*")):
                if path.is_file():
                    out.write(path, path.relative_to(forged.path).as_posix())

    CASES.append(Case(f"archive-of-images-{name}", ("archive",), words, write))


packed("shape-2^31-squared", "expected 1 to 67108864 pixels", lambda s: s.declare(size_px=(2**31, 2**31)))
packed("codec-pickle", KEPT, inner_codec({"name": "pickle"}))
packed(
    "rotten",
    "does not match",
    lambda s: (s.path / SHARD).write_bytes(bytes((s.path / SHARD).stat().st_size)),
)
packed("less", "no member|but not in both", lambda s: (s.path / SHARD).unlink())
packed("parent", "leaves the store", lambda s: s.list_as("../outside/owned", 3, SUM))
