"""Hostile stores: bad content with valid checksums."""

from __future__ import annotations

import json
import os
import shutil
import struct
from typing import TYPE_CHECKING

import numcodecs
import numpy as np
from hostile.forge import SIZE_PX, Case, Forged, frame, with_crc

from pipeline.store.format.codec import encode_chunk, residual_of_codes
from pipeline.store.format.layout import MANIFEST

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

BOTH = ("read", "verify")
CASES: list[Case] = []
SHARD = "depth/c/0/0/0"
RAW_BYTES = 2 * SIZE_PX[0] * SIZE_PX[1]
BLOSC = "an invalid blosc header"


def case(name: str, words: str, change: Callable[[Forged], None], kind: str = "gaussian", ways=BOTH) -> None:
    """Add a case: a changed store of `kind`."""
    CASES.append(Case(name, ways, words, lambda folder: change(Forged(folder, kind))))


# --- frames of blosc and zstd ----------------------------------------------------------------------------------------

NOISE = np.random.default_rng(1).integers(0, 2**16, (1, *SIZE_PX)).astype(np.uint16)
SMOOTH = encode_chunk(np.arange(NOISE.size, dtype=np.uint16).reshape(NOISE.shape) // 8)
COPIED = encode_chunk(NOISE)
assert not SMOOTH[2] & 2
assert COPIED[2] & 2
TERABYTE = {"size_px": (8192, 8192), "bin_edges": tuple(np.linspace(0, 40, 4097).tolist())}
"""67 million invalid pixels compress to kilobytes; their maps would take a terabyte."""


def blosc(zstd: bytes, *, length: int | None = None, block: int = RAW_BYTES, start: int = 20) -> bytes:
    """Return a chunk whose only block is the given zstd frame."""
    inside = struct.pack("<II", start, len(zstd) if length is None else length) + zstd
    return with_crc(struct.pack("<4B3I", 2, 1, 0x94, 2, RAW_BYTES, block, 16 + len(inside)) + inside)


def zstd(size: int) -> bytes:
    """Return a frame that states its size."""
    return numcodecs.zstd.compress(bytes(size), 19)


for _name, _chunk, _words in [
    ("declares-two-gigabytes", frame(SMOOTH, 4, 2**31 - 16), "declares 2147483632 bytes: expected 1536"),
    ("declares-nothing", frame(SMOOTH, 4, 0), "declares 0 bytes: expected 1536"),
    ("length-beyond-its-bytes", frame(SMOOTH, 12, 2**31 - 1), BLOSC),
    ("length-of-a-header", frame(SMOOTH, 12, 16), BLOSC),
    ("blocks-of-0", frame(SMOOTH, 8, 0), BLOSC),
    ("blocks-of-1", frame(SMOOTH, 8, 1), BLOSC),
    ("blocks-negative", frame(SMOOTH, 8, 2**32 - 1), BLOSC),
    ("blocks-huge", frame(SMOOTH, 8, 2**31 - 1), BLOSC),
    ("blocks-huge-copied", frame(COPIED, 8, 2**31 - 1), BLOSC),
    ("typesize-0", frame(SMOOTH, 3, 0, 1), BLOSC),
    ("typesize-255", frame(SMOOTH, 3, 255, 1), BLOSC),
    ("copied-but-short", frame(SMOOTH, 2, 0x96, 1), BLOSC),
    ("compressed-by-lz4", frame(SMOOTH, 2, 0x34, 1), BLOSC),
    ("byte-shuffled", frame(SMOOTH, 2, 0x91, 1), BLOSC),
    ("of-another-version", frame(SMOOTH, 0, 9, 1), BLOSC),
    ("block-starts-outside", frame(SMOOTH, 16, 2**31 - 1), BLOSC),
    ("block-starts-negative", frame(SMOOTH, 16, 2**32 - 8), BLOSC),
    ("block-starts-in-the-header", frame(SMOOTH, 16, 4), BLOSC),
    ("block-length-huge", frame(SMOOTH, 20, 2**31 - 1), "does not decompress"),
    ("block-length-negative", frame(SMOOTH, 20, 2**32 - 1), "does not decompress"),
    ("zstd-of-30-megabytes", blosc(zstd(3 * 10**7)), "does not decompress"),
    ("zstd-of-too-little", blosc(zstd(100)), "does not decompress"),
    ("zstd-of-nothing", blosc(b""), "a chunk"),
    ("zstd-that-is-none", blosc(b"\x28\xb5\x2f\xfd" + bytes(64)), "does not decompress"),
    ("of-3-bytes", b"abc", "checksum (crc32c) of a chunk"),
    ("of-no-bytes", b"", "checksum (crc32c) of a chunk"),
    ("is-a-pickle", with_crc(b"\x80\x04cos\nsystem\n(S'touch /tmp/owned'\ntR."), "a chunk"),
]:
    case(f"chunk-{_name}", _words, lambda store, chunk=_chunk: store.chunk("depth", chunk))

# --- what chunks say -------------------------------------------------------------------------------------------------


def dense(value: float, where: tuple[slice, ...]) -> Callable[[Forged], None]:
    """A uniform map except for some values."""

    def change(store: Forged) -> None:
        chunk = np.full(store.array("dpm/probability").chunk, 1 / 12, np.float16)
        chunk[0][where] = value
        store.chunk("dpm/probability", encode_chunk(chunk))

    return change


def sparse(planes: int, **values: int) -> Callable[[Forged], None]:
    """A sparse map with constant arrays, which states that it uses `planes`."""

    def change(store: Forged) -> None:
        for name, value in values.items():
            array = store.array(f"dpm/{name}")
            chunk = encode_chunk(np.full(array.chunk, value, array.dtype))
            for number in range(array.chunks_per_sample):
                used = name == "tail" or number < -(-planes // 8)
                store.chunk(array.path, chunk if used else None, number)
        column = np.full(7, planes, np.int32)
        column[1:] = [store_planes(store, number) for number in range(1, 7)]
        store.rows("dpm_planes", column)

    return change


def store_planes(store: Forged, number: int) -> int:
    """Return the number of planes of a sample in the valid store."""
    from pipeline.store import open_store

    return int(open_store(store.sound["sparse"]).rows("dpm_planes")[number])


def shifted_planes(store: Forged) -> None:
    """The first chunk of planes is missing, the second is not."""
    sparse(8, gap=1, weight=9, tail=0)(store)
    for path in ("dpm/gap", "dpm/weight"):
        store.chunks(path, lambda chunks: chunks.__setitem__(slice(2), [None, chunks[0]]))


def in_plane(name: str, plane: slice, value: int) -> Callable[[Forged], None]:
    """Set planes of the first chunk of the first sample, which uses one plane."""

    def change(store: Forged) -> None:
        sparse(1, gap=1, weight=9, tail=9)(store)
        array = store.array(f"dpm/{name}")
        used = {"gap": 1, "weight": 9}
        chunks = {}
        for part, fill in used.items():
            whole = np.zeros(array.chunk, store.array(f"dpm/{part}").dtype)
            whole[0, 0] = fill
            chunks[part] = whole
        chunks[name][0, plane] = value
        for part, whole in chunks.items():
            store.chunk(f"dpm/{part}", encode_chunk(whole), 0)

    return change


def with_hole(store: Forged) -> None:
    """Two planes are used, but only the second has bins."""
    in_plane("gap", slice(0, 1), 0)(store)
    for part, fill in (("gap", 2), ("weight", 9)):
        whole = np.zeros(store.array(f"dpm/{part}").chunk, store.array(f"dpm/{part}").dtype)
        whole[0, 1] = fill
        store.chunk(f"dpm/{part}", encode_chunk(whole), 0)
    column = np.full(7, 2, np.int32)
    column[1:] = [store_planes(store, number) for number in range(1, 7)]
    store.rows("dpm_planes", column)


LAST = residual_of_codes(np.full(SIZE_PX, 65535, np.uint16))[np.newaxis]
ALL = (slice(None),)
case(
    "code-beyond-the-last",
    "depth code 65535 is out of range: expected at most",
    lambda s: s.chunk("depth", encode_chunk(LAST)),
)
case("code-missing", "the chunk is missing", lambda s: s.chunk("depth", None))
case("affine-code-beyond-the-last", "depth code 65535", lambda s: s.chunk("depth", encode_chunk(LAST)), "affine")
case("gap-beyond-the-last-bin", "uses bin 12: expected at most 11", sparse(1, gap=13, weight=9, tail=9), "sparse")
case("gaps-far-beyond", "uses bin 3059: expected", sparse(12, gap=255, weight=9, tail=9), "sparse")
case("weights-of-zero", "total probability of 0", sparse(1, gap=1, weight=0, tail=0), "sparse")
case("planes-negative", "chunks for -5 planes", sparse(-5, gap=1, weight=9, tail=9), "sparse")
case("planes-by-the-billion", "chunks for 2147483647 planes", sparse(2**31 - 1, gap=1, weight=9, tail=9), "sparse")
BEYOND = "planes beyond the 1 that the sample uses are not 0"
case("planes-of-bins-beyond-those-used", BEYOND, in_plane("gap", slice(3, 8), 1), "sparse", ways=("verify",))
case("planes-of-weights-beyond-those-used", BEYOND, in_plane("weight", slice(7, 8), 1), "sparse", ways=("verify",))
case("planes-with-a-hole", "bins follow a pixel's last one", with_hole, "sparse", ways=("verify",))
case("planes-missing-before-others", "chunks for 8 planes", shifted_planes, "sparse")
case("dense-negative", "or does not sum to 1", dense(-0.5, (slice(0, 1),)), "dense")
case("dense-nan-in-a-bin", "NaN in some bins", dense(np.nan, (slice(3, 4),)), "dense")
case("dense-infinite", "does not sum to 1", dense(np.inf, (slice(2, 3),)), "dense")
case("dense-zero", "does not sum to 1", dense(0, ALL), "dense")

# --- the index of a shard --------------------------------------------------------------------------------------------


def entry(row: int, offset: int | None, length: int | None, array: str = "depth") -> Callable[[Forged], None]:
    """Set an entry of the index; None keeps a number."""

    def change(index: np.ndarray, _: int) -> None:
        index[row] = [
            old if new is None else np.uint64(new) for old, new in zip(index[row], (offset, length), strict=True)
        ]

    return lambda store: store.index(array, change)


def overlap(index: np.ndarray, _: int) -> None:
    index[:] = index[0]


def whole_file(index: np.ndarray, size: int) -> None:
    index[0] = 52, size - 52


case("index-overlaps", "overlap or leave gaps", lambda s: s.index("depth", overlap))
case("index-outside", "points outside its file", entry(1, 10**9, None))
case("index-wraps-around", "points outside its file", entry(1, 2**64 - 2, 16))
case("index-in-itself", "points outside its file", entry(0, 0, None))
case("index-length-0", "overlap or leave gaps", entry(1, None, 0))
case("index-length-huge", "points outside its file", entry(1, None, 2**63))
case("index-length-empty", "points outside its file", entry(1, None, 2**64 - 1))
case("index-chunk-of-the-whole-file", "lists a chunk of|overlap", lambda s: s.index("depth", whole_file))
case("index-cut-off", "index does not match its checksum", lambda s: s.write(SHARD, bytes(20)))
case("shard-is-empty", "index does not match its checksum", lambda s: s.write(SHARD, b""))

# --- rows ------------------------------------------------------------------------------------------------------------

for _name, _scale, _offset in [
    ("nan", np.nan, 0.0),
    ("infinite", np.inf, 0.0),
    ("zero", 0.0, 0.0),
    ("negative", -1.0, 0.0),
    ("1e308", 1e308, 0.0),
    ("offset-infinite", 1.0, -np.inf),
    ("offset-nan", 1.0, np.nan),
    ("offset-1e308", 1.0, 1e308),
]:

    def _scales(store: Forged, scale: float = _scale, offset: float = _offset) -> None:
        store.rows("code_scale", np.full(7, scale))
        store.rows("code_offset", np.full(7, offset))

    case(f"scale-{_name}", "expected finite numbers, scale above 0", _scales, "affine")

for _name, _ids, _words in [
    ("not-utf8", [b"\xff\xfe"], "is not UTF-8"),
    ("twice", [b"a/003"], "duplicate id 'a/003'"),
    ("empty", [b""], "is empty or has control characters"),
    ("newline", [b"a\nb"], "control characters"),
    ("terminal-escape", [b"\x1b[2J"], r"'\x1b[2J'"),
    ("nul-inside", [b"a\0b"], r"'a\x00b'"),
    ("bidi", ["\u202eab".encode()], "control characters"),
]:
    case(f"id-{_name}", _words, lambda store, ids=_ids: store.ids(*ids))
OTHER = np.frombuffer(b"".join(b"b/%03d" % number for number in range(7)), np.uint8).reshape(7, 5)
case("ids-of-other-images", "the ids' sha256 differs", lambda s: s.rows("id", OTHER), ways=("verify",))

# --- metadata --------------------------------------------------------------------------------------------------------

PRESCRIBES = "not the metadata that format version 1 prescribes"


def shape(file: str, *numbers: object) -> Callable[[Forged], None]:
    """Set an array's shape."""
    return lambda store: store.node(file, lambda node: node.update(shape=list(numbers)))


def inner_codec(codec: dict) -> Callable[[Forged], None]:
    """Replace blosc."""

    def change(node: dict) -> None:
        node["codecs"][0]["configuration"]["codecs"][1] = codec

    return lambda store: store.node("depth/zarr.json", change)


def of_array(path: str, **values: object) -> Callable[[Forged], None]:
    """Set keys of an array's metadata."""
    return lambda store: store.node(f"{path}/zarr.json", lambda node: node.update(values))


def many(samples: object, **changes: object) -> Callable[[Forged], None]:
    """Write metadata for this number of samples."""
    return lambda store: store.declare(source={**store.layout.spec.source, "samples": samples}, **changes)


case("shape-2^31-squared", "expected 1 to 67108864 pixels", lambda s: s.declare((2**31, 2**31)))
case("shape-2^31-squared-in-one-place", "67108864 pixels", shape("depth/zarr.json", 7, 2**31, 2**31))
case("shape-2^62-samples", "must have 1 to", many(2**62))
case("shape-2^40-samples", "expected at most", many(2**40))
case("shape-2^24-samples", "expected at most", many(2**24, samples_per_shard=65536))
case("shape-2^22-samples-a-file-each", "files: expected at most 100000", many(2**22, samples_per_shard=1))
case("shape-10^6-bins", "above the limits", shape("dpm/bin_edges/zarr.json", 10**6 + 1))
case("shape-ids-of-a-gigabyte", "above the limits", shape("sample/id/zarr.json", 7, 2**30))
case("shape-negative", "expected positive integers", shape("depth/zarr.json", -7, 24, 32))
case("shape-zero", "expected positive integers", shape("depth/zarr.json", 7, 0, 32))
case("shape-true", "expected positive integers", shape("depth/zarr.json", 7, 24, *[True]))
case("shape-float", "expected positive integers", shape("depth/zarr.json", 7, 24.0, 32))
case("shape-of-lists", "do not follow the store format|positive integers", shape("depth/zarr.json", [7], [24], [32]))
case("shape-of-100000-axes", "do not follow the store format", shape("depth/zarr.json", *[1] * 100_000))
case("shape-true-elsewhere", PRESCRIBES, shape("sample/clipped_share/zarr.json", *[True]))
case("shape-float-elsewhere", PRESCRIBES, of_array("sample/clipped_share", shape=[7.0]))
case("format-float", PRESCRIBES, of_array("depth", zarr_format=3.0))
case("format-true", PRESCRIBES, lambda s: s.node("sample/zarr.json", lambda node: node.update(zarr_format=True)))
case("weight-bits-float", PRESCRIBES, lambda s: s.replace("dpm/zarr.json", '_bits": 8', '_bits": 8.0'), "sparse")
case("codec-pickle", PRESCRIBES, inner_codec({"name": "pickle"}))
case("codec-numcodecs-python", PRESCRIBES, inner_codec({"name": "numcodecs.pickle", "configuration": {}}))
case("codec-gzip", PRESCRIBES, inner_codec({"name": "gzip", "configuration": {"level": 5}}))
case("dtype-object", PRESCRIBES, of_array("sample/id", data_type="object"))
case("dtype-variable-length", PRESCRIBES, of_array("sample/id", data_type="variable_length_utf8"))
case("storage-transformers", PRESCRIBES, of_array("depth", storage_transformers=[{"name": "x"}]))
case("attributes-more", "keys that format version 1 lacks", lambda s: s.header(code="import os"))
case("version-2-of-a-store-of-1", "are inconsistent or have keys", lambda s: s.header(version=2))
case("version-4", "store format version 4: this program reads", lambda s: s.header(version=4))
case("version-3-at-level-5", "are inconsistent or have keys", lambda s: s.header(version=3))
case("level-10", "`compression_level` must be 1 to 9", lambda s: s.header(version=3, compression_level=10))
case(
    "level-of-another-array",
    "not the metadata that format version 3 prescribes|has version 1, but the attributes have 3",
    lambda s: s.header(version=3, compression_level=9),
)
case("version-true", "store format version True: this program reads", lambda s: s.header(version=True))
case("depth-space-missing", "`depth_space` is missing", lambda s: s.header(depth_space=None))
case("samples-a-shard-huge", "`samples_per_shard` must be 1 to 65536", lambda s: s.declare(samples_per_shard=2**40))
case("samples-a-shard-float", "expected a positive integer", lambda s: s.header(samples_per_shard=3.0))
case("samples-a-shard-true", "expected a positive integer", lambda s: s.header(samples_per_shard=True))
case("samples-true", "True in the store's attributes", many(samples=True))
case("samples-text", "'7' in the store's attributes", many(samples="7"))
case("teacher-a-list", "do not follow format version 1", lambda s: s.header(teacher=[1, 2]))
case("teacher-nameless", "do not follow format version 1", lambda s: s.header(teacher={}), ways=(*BOTH, "info"))
case("teacher-name-a-list", "must be text", lambda s: s.declare(teacher={"name": [1]}), ways=(*BOTH, "info"))
case("ids-digest-a-number", "must be text", lambda s: s.declare(source={"name": "x", "samples": 7, "ids_sha256": 3}))
case("producer-missing", "do not follow format version 1", lambda s: s.header(producer=3))
case("view-of-2^40-px", "expected 1 to 134217728 pixels", lambda s: s.declare(view_size_px=(2**40, 2**40)))
for _name, _text in [("escape", "\x1b]0;owned\x07"), ("newline", "a\nsound"), ("bidi", "\u202egpj"), ("c1", "\x9b2J")]:
    case(
        f"teacher-name-{_name}",
        "has control characters",
        lambda store, text=_text: store.declare(teacher={"name": text, "kind": "x"}),
        ways=(*BOTH, "info"),
    )
case("licence-escape", "has control", lambda s: s.declare(teacher={"name": "a", "licence": "\x1b[1A"}), ways=("info",))


def edges(*values: float) -> Callable[[Forged], None]:
    """Replace the last bin edges."""

    def change(store: Forged) -> None:
        whole = np.array(store.layout.spec.bin_edges)
        whole[len(whole) - len(values) :] = values
        store.write("dpm/bin_edges/c/0", encode_chunk(whole))

    return change


case("edges-nan", "finite numbers", edges(np.nan))
case("edges-infinite", "finite numbers", edges(np.inf))
case("edges-descending", "strictly increasing", edges(3, 2, 1))
case("edges-twice", "strictly increasing", edges(40, 40))
case("edges-1e308", "expected magnitudes of at most 1e+12", edges(1e308))

# --- JSON ------------------------------------------------------------------------------------------------------------

JSON = "not valid JSON"
DIGITS = "9" * 5000
for _name, _old, _new, _words in [
    ("nan", '"sigma_m": 2.0', '"sigma_m": NaN', "NaN is not a JSON number"),
    ("infinity", '"sigma_m": 2.0', '"sigma_m": -Infinity', "-Infinity is not a JSON number"),
    ("1e999", '"sigma_m": 2.0', '"sigma_m": 1e999', "1e999 is not a finite number"),
    ("5000-digits", '"sigma_m": 2.0', f'"sigma_m": {DIGITS}', "5000 digits does not fit 64 bits"),
    ("400-digits", '"sigma_m": 2.0', f'"sigma_m": 1{"0" * 400}', "401 digits does not fit 64 bits"),
    ("true", '"sigma_m": 2.0', '"sigma_m": true', "True in the store's attributes: expected a number"),
    ("text", '"sigma_m": 2.0', '"sigma_m": "2.0"', "'2.0' in the store's attributes"),
    ("negative", '"sigma_m": 2.0', '"sigma_m": -2.0', "must be positive"),
    ("1e-300", '"sigma_m": 2.0', '"sigma_m": 1e-300', "must be positive"),
    ("1e308", '"sigma_m": 2.0', '"sigma_m": 1e308', "must be positive"),
    ("twice", '"sigma_m": 2.0', '"sigma_m": 2.0, "sigma_m": 3.0', "duplicate key 'sigma_m'"),
]:
    case(f"sigma-{_name}", _words, lambda store, old=_old, new=_new: store.replace("dpm/zarr.json", old, new))
for _name, _codec, _words in [
    ("1e308", {"lo_m": 1e-308, "hi_m": 1e308}, "must lie within 1e-12 and 1e+12 m"),
    ("descending", {"lo_m": 3.0, "hi_m": 2.0}, "expected 0 < lo < hi"),
    ("negative", {"lo_m": -3.0}, "expected 0 < lo < hi"),
    ("a-list", {"lo_m": [1]}, "expected a number"),
    ("error-true", {"max_rel_error": True}, "expected a number"),
    ("error-zero", {"max_rel_error": 0}, "must be between 0 and 1"),
    ("bits-64", {"bits": 64}, "are inconsistent"),
]:

    def _codecs(store: Forged, codec: dict = _codec) -> None:
        store.node("zarr.json", lambda node: node["attributes"]["depth_store"]["codec"].update(codec))

    case(f"range-{_name}", _words, _codecs)
DEEP = b"[" * 100_000 + b"]" * 100_000
NESTED = b'{"a":' * 500 + b"1" + b"}" * 500
for _name, _data, _words in [
    ("deep", DEEP, "marks|nested deeper"),
    ("nested-500", NESTED, "nested deeper than 64"),
    ("of-2-megabytes", b" " * 2**21 + b"{}", "expected at most 1048576"),
    ("not-json", b"\x80\x04}q\0.", JSON),
    ("empty", b"", JSON),
    ("a-list", b"[]", "do not follow the store format"),
    ("a-number", b"7", "do not follow the store format"),
    ("half-a-surrogate", b'{"shape": "\\ud800"}', JSON),
    ("utf-16", "{}".encode("utf-16"), JSON),
    ("a-million-keys", json.dumps(dict.fromkeys(range(70_000))).encode(), "do not follow the store format"),
]:
    case(f"node-{_name}", _words, lambda store, data=_data: store.write("depth/zarr.json", data))

# --- the manifest ----------------------------------------------------------------------------------------------------


def raw_manifest(data: bytes) -> Callable[[Forged], None]:
    """Replace the manifest."""
    return lambda store: (store.path / MANIFEST).write_bytes(data) and None


def listed(text: str) -> bytes:
    """Write a manifest of these entries."""
    return b'{"version": 1, "files": {' + text.encode() + b"}}"


SUM = "0" * 64
ENTRY = f'"depth/c/0/0/0": [3, "{SUM}"]'
for _name, _path in [
    ("parent", "../../outside/secret"),
    ("parent-inside", "depth/../../../outside/secret"),
    ("absolute", "/etc/passwd"),
    ("backslash", "..\\..\\outside\\secret"),
    ("nul", "depth/zarr.json\0.zarr.json"),
    ("dot", "./zarr.json"),
    ("double-slash", "depth//zarr.json"),
    ("empty", ""),
    ("escape", "\x1b[2J/zarr.json"),
]:
    case(f"manifest-path-{_name}", "leaves the store", lambda store, path=_path: store.list_as(path, 3, SUM))
for _name, _entry in [
    ("size-true", [True, SUM]),
    ("size-negative", [-1, SUM]),
    ("size-float", [3.0, SUM]),
    ("digest-short", [3, "00"]),
    ("digest-null", [3, None]),
    ("three-parts", [3, SUM, 1]),
    ("text", list("ab")),
]:
    case(f"manifest-entry-{_name}", "invalid entry of", lambda store, entry=_entry: store.list_as(SHARD, *entry))
for _name, _data, _words in [
    ("deep", DEEP, "nested deeper|marks"),
    ("deep-below-the-limit", listed(f'"a": {NESTED.decode()}'), "nested deeper than 64"),
    ("twice", listed(f"{ENTRY}, {ENTRY}"), "duplicate key 'depth/c/0/0/0'"),
    (
        "twice-among-many",
        listed(",".join(f'"{n}":1' for n in [*range(150_000), 149_999])),
        "duplicate key '149999'",
    ),
    (
        "million-entries",
        listed(",".join(f'"{n}/zarr.json":[1,"{SUM}"]' for n in range(140_000))),
        "quotes; expected at",
    ),
    ("empty-objects", b"[" + b"{}," * 1_200_000 + b"1]", "quotes; expected at most"),
    ("nested-lists", b"[" + b"[[[[[[]]]]]]," * 200_000 + b"1]", "quotes; expected at most"),
    ("one-long-text", b'"' + "\U0001f600".encode() * 5_000_000 + b'"', "not the manifest of a store"),
    ("digits", listed(f'"a": [{DIGITS}, "{SUM}"]'), "5000 digits does not fit"),
    ("nan", listed(f'"a": [NaN, "{SUM}"]'), "NaN is not a JSON number"),
    ("version-true", b'{"version": true, "files": {}}', "manifest version True"),
    ("files-a-list", b'{"version": 1, "files": []}', "not the manifest of a store"),
    ("files-numbers", b'{"version": 1, "files": {"a": 3}}', "not the manifest of a store"),
    ("empty", b"", JSON),
    ("lists-nothing", listed(""), "does not list"),
    ("pickle", b"\x80\x04cos\nsystem\n(S'id'\ntR.", JSON),
]:
    case(f"manifest-{_name}", _words, raw_manifest(_data))
case("manifest-lists-more", "missing or unexpected files", lambda s: s.write("extra/zarr.json", b"{}"))
case("manifest-lists-less", "missing or unexpected", lambda s: s.manifest(lambda m: m["files"].pop(SHARD)))
case("manifest-size-huge", "expected at most", lambda s: s.list_as(SHARD, 2**62, SUM))


def sparse_file(name: str, size: int) -> Callable[[Forged], None]:
    """A large sparse file, listed in the manifest."""

    def change(store: Forged) -> None:
        with (store.path / name).open("r+b") as file:
            file.truncate(size)
        if name != MANIFEST:
            store.list_as(name, size, SUM)

    return change


case("manifest-of-a-gigabyte", "expected at most 33554432", sparse_file(MANIFEST, 2**30))
case("shard-of-50-gigabytes", "has 53687091200 bytes: expected at most", sparse_file(SHARD, 50 * 2**30))
case("rows-of-50-gigabytes", "has 53687091200 bytes: expected at", sparse_file("sample/id/c/0/0", 50 * 2**30))
case("node-of-50-gigabytes", "expected at most 1048576", sparse_file("depth/zarr.json", 50 * 2**30))

# --- what lies in a file's place -------------------------------------------------------------------------------------


def instead(name: str, put: Callable[[Path], None]) -> Callable[[Forged], None]:
    """Replace a file or folder by something else."""

    def change(store: Forged) -> None:
        path = store.path / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
        put(path)

    return change


def link(target: str, kind: str = "gaussian") -> Callable[[Path], None]:
    """A symbolic link to a valid copy of the file outside the store."""

    def put(path: Path) -> None:
        case_folder = next(parent for parent in path.parents if parent.name == "s.zarr").parent
        twin = Forged.sound[kind] / path.relative_to(case_folder / "s.zarr")
        path.symlink_to(twin if target == "twin" else target)

    return put


for _name, _file, _words in [
    ("manifest", MANIFEST, "not a complete store"),
    ("shard", SHARD, "not a regular file"),
    ("node", "depth/zarr.json", "not a regular file"),
    ("rows", "sample/id/c/0/0", "not a regular file"),
    ("edges", "dpm/bin_edges/c/0", "not a regular file"),
]:
    case(f"pipe-for-{_name}", _words, instead(_file, os.mkfifo))
for _name, _file, _target, _words in [
    ("manifest", MANIFEST, "twin", "a symbolic link"),
    ("shard", SHARD, "twin", "a symbolic link"),
    ("node", "zarr.json", "twin", "a symbolic link"),
    ("folder-of-chunks", "depth/c", "twin", "Not a directory"),
    ("folder-of-an-array", "sample", "twin", "Not a directory"),
    ("shard-to-zeros", SHARD, "/dev/zero", "a symbolic link"),
    ("manifest-to-zeros", MANIFEST, "/dev/zero", "not a complete store"),
    ("shard-to-itself", SHARD, "0", "a symbolic link"),
]:
    case(f"link-for-{_name}", _words, instead(_file, link(_target)))
case("folder-for-a-shard", "not a regular file", instead(SHARD, lambda path: path.mkdir()))
case(
    "file-named-by-an-escape",
    r"\x1b[2J: does not belong to the store",
    lambda s: (s.path / "\x1b[2J").write_bytes(b"") and None,
    ways=("verify",),
)
case(
    "link-that-belongs-to-nothing",
    "more: does not belong to the store",
    lambda s: (s.path / "more").symlink_to("/"),
    ways=("verify",),
)

for _name, _put in [
    ("link", lambda path: path.symlink_to("/")),
    ("pipe", os.mkfifo),
]:
    case(
        f"{_name}-named-as-of-the-system",
        ".DS_Store: does not belong to the store",
        lambda s, put=_put: put(s.path / ".DS_Store") and None,
        ways=("verify",),
    )


def listed_nodes(count: int, size: int) -> Callable[[Forged], None]:
    """A manifest with more metadata than allowed."""
    more = {f"x{number}/zarr.json": [size, SUM] for number in range(count)}
    return lambda store: store.manifest(lambda value: value["files"].update(more))


case("url-metadata-by-the-gigabyte", "metadata files with", listed_nodes(40, 1_000_000), ways=("url",))
case("url-metadata-by-the-thousand", "metadata files with", listed_nodes(5000, 1), ways=("url",))
case("url-node-of-64-megabytes", "expected at most 1048576", sparse_file("zarr.json", 2**26), ways=("url",))
case("url-node-of-64-megabytes-more", "missing or unexpected", listed_nodes(1, 2**26), ways=("url",))


def gigabyte_of_zeros(store: Forged) -> None:
    """A shard as large as its shape allows, which takes longer to hash than the limit of a case."""
    store.declare((4096, 8192), samples_per_shard=128)
    sparse_file(SHARD, 2**30)(store)
    store.manifest(lambda value: [value["files"].pop(f"depth/c/{shard}/0/0") for shard in (1, 2)])
    for shard in (1, 2):
        (store.path / f"depth/c/{shard}/0/0").unlink()


case("maps-of-a-terabyte", "map takes 1099511627776 bytes", lambda s: s.declare(**TERABYTE), ways=("dpm",))
case("maps-of-a-terabyte-sparse", "expected at most", lambda s: s.declare(**TERABYTE), "sparse")
case("maps-of-a-terabyte-dense", "expected at most", lambda s: s.declare(**TERABYTE), "dense")
case(
    "index-of-half-a-gigabyte",
    "use fewer `samples_per_shard`",
    lambda s: s.declare(samples_per_shard=65536, bin_edges=TERABYTE["bin_edges"]),
    "sparse",
)
case("shard-of-a-gigabyte", "does not match its checksum", gigabyte_of_zeros, ways=("read",))
