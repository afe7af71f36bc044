"""Hostile inputs: images, depth files, splits, folders, predictions and runs."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import zlib
from functools import partial
from typing import TYPE_CHECKING

import fakes
import numpy as np
from hostile.forge import Case
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

CASES: list[Case] = []


def case(name: str, way: str, words: str, write: Callable[[Path], object]) -> None:
    """Add a case of one way to open it."""
    CASES.append(Case(name, (way,), words, write))


class Exec:
    """Runs when it is unpickled."""

    def __reduce__(self):
        return os.system, ("touch ../outside/owned",)


PICKLE = pickle.dumps(Exec())

# --- images ----------------------------------------------------------------------------------------------------------


def part(kind: bytes, data: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, rows: bytes, *between: bytes, bits: int = 8, color: int = 2) -> bytes:
    """A PNG of uncompressed `rows`, with chunks before its pixels."""
    head = part(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0))
    body = part(b"IDAT", zlib.compress(rows, 9))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(between) + body + part(b"IEND", b"")


def saved(kind: str, size: tuple[int, int] = (64, 48)) -> bytes:
    """A sound image."""
    out = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (*size, 3)).astype(np.uint8)
    Image.fromarray(noise).save(out, kind)
    return out.getvalue()


def jpeg_of(width: int, height: int) -> bytes:
    """A JPEG that declares another size."""
    data = bytearray(saved("JPEG"))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(data)


def webp_of(width: int, height: int) -> bytes:
    """An extended WebP that declares a canvas."""
    inner = saved("WEBP")[12:]
    canvas = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + canvas + inner
    return b"RIFF" + struct.pack("<I", len(body)) + body


def jpeg_of_scans(scans: int) -> bytes:
    """A progressive JPEG of 4096x4096 whose last scan comes again and again."""
    out = io.BytesIO()
    Image.new("L", (4096, 4096), 128).save(out, "JPEG", progressive=True)
    data = out.getvalue()
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * scans + data[-2:]


TEXT = zlib.compress(bytes(80 * 2**20), 1)
for _name, _data, _words in [
    ("png-bomb", png(20_000, 20_000, bytes(10**6), bits=1, color=0), "declares"),
    ("png-of-2^31", png(2**31 - 1, 2**31 - 1, b""), "declares"),
    ("png-beyond-2^31", png(2**32 - 1, 2**32 - 1, b""), "pixels|does not decode"),
    ("png-of-0", png(0, 0, b""), "does not decode"),
    ("png-ztxt-bomb", png(4, 4, bytes(52), part(b"zTXt", b"a\0\0" + TEXT)), "does not decode"),
    ("png-itxt-bomb", png(4, 4, bytes(52), part(b"iTXt", b"a\0\1\0\0\0" + TEXT)), "does not decode"),
    (
        "png-many-texts",
        png(4, 4, bytes(52), *[part(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**20 - 9)))] * 99),
        "decode",
    ),
    ("png-chunk-of-2-gigabytes", png(4, 4, b"")[:33] + struct.pack(">I", 2**31 - 1) + b"IDAT", "does not decode"),
    ("png-cut-off", saved("PNG")[:-5000], "does not decode"),
    ("jpeg-of-65500", jpeg_of(65500, 65500), "declares"),
    ("jpeg-of-12000", jpeg_of(12000, 12000), "declares"),
    ("jpeg-cut-off", saved("JPEG")[:-500], "does not decode"),
    ("jpeg-of-many-scans", jpeg_of_scans(900), "scans"),
    ("webp-of-16384", webp_of(16384, 16384), "declares|does not decode"),
    ("webp-of-2^24", webp_of(2**24, 2**24), "declares|does not decode"),
    ("webp-cut-off", saved("WEBP")[:-100], "does not decode"),
    ("gif", saved("GIF"), "does not decode"),
    ("tiff", saved("TIFF"), "does not decode"),
    ("postscript", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) run\n", "does not decode"),
    ("pickle", PICKLE, "does not decode"),
    ("empty", b"", "does not decode"),
]:
    case(f"image-{_name}", "image", _words, lambda folder, data=_data: (folder / "a.png").write_bytes(data))
case("image-is-a-pipe", "image", "not a regular file", lambda folder: os.mkfifo(folder / "a.png"))
case("image-is-a-device", "image", "not a regular file", lambda folder: (folder / "a.png").symlink_to("/dev/zero"))
case("image-is-a-folder", "image", "Is a directory", lambda folder: (folder / "a.png").mkdir())


def huge_file(name: str, size: int, folder: Path, begin: bytes = b"") -> None:
    """A file that takes no disk: its beginning, and a hole."""
    with (folder / name).open("wb") as file:
        file.write(begin)
        file.truncate(size)


case("image-of-50-gigabytes", "image", "bytes, expected at most", partial(huge_file, "a.png", 50 * 2**30))
for _name, _data, _words in [
    ("absurd", png(2**20, 2**20, b"", bits=16, color=0), "declares"),
    ("bomb", png(10_000, 10_000, bytes(10**6), bits=16, color=0), "declares 100000000 pixels"),
    ("8-bits", png(4, 4, bytes(20), bits=8, color=0), "expected a greyscale PNG of 16"),
    ("cut-off", png(99, 99, bytes(99 * 50), bits=16, color=0), "does not decode"),
]:
    case(f"depth-{_name}", "depth", _words, lambda folder, data=_data: (folder / "a.png").write_bytes(data))
case("depth-is-a-pipe", "depth", "not a regular file", lambda folder: os.mkfifo(folder / "a.png"))

# --- folders and splits ----------------------------------------------------------------------------------------------


def source(change: Callable[[Path], object]) -> Callable[[Path], object]:
    """A sound plain folder, changed."""
    return lambda folder: change(fakes.make_folder(folder / "root"))


def split(data: bytes) -> Callable[[Path], object]:
    """A sound plain folder with another list."""
    return source(lambda root: (root / "train.txt").write_bytes(data))


def instead(name: str, put: Callable[[Path], object]) -> Callable[[Path], object]:
    """Something else in the place of a file of the folder."""

    def change(root: Path) -> None:
        path = root / name
        path.unlink(missing_ok=True)
        put(path)

    return source(change)


def linked_folder(root: Path) -> None:
    """A link in the place of a folder of images."""
    (root / "rgb" / "more").symlink_to(root.parent.parent / "outside", target_is_directory=True)


LEAVES = "is absolute, outside the root or not normalized"
for _name, _row in [
    ("parent", b"../../outside/secret"),
    ("parent-inside", b"a/../../../outside/secret"),
    ("absolute", b"/etc/passwd"),
    ("backslash", b"..\\..\\outside\\secret"),
    ("nul", b"a/0001\0.png"),
    ("escape", b"a/\x1b[2J"),
    ("dot", b"./a/0001"),
    ("bidi", "a/\u202e0001".encode()),
]:
    case(f"split-{_name}", "folder", LEAVES, split(b"a/0002\n" + _row + b"\n"))
    case(
        f"kitti-split-{_name}",
        "kitti",
        f"{LEAVES}|columns|expected a name",
        partial(lambda row, folder: kitti(folder, row), _row),
    )


def kitti(folder: Path, row: bytes) -> None:
    """A KITTI list with a row."""
    root = fakes.make_kitti(folder / "root", 2)
    (root / "splits" / "train.txt").write_bytes(row + b".png None 721.5\n")


case("split-binary", "folder", "is not UTF-8", split(b"a/0001\n" + (bytes(range(128, 256)) + b"\n") * 999))
case(
    "split-of-600-megabytes",
    "folder",
    "expected a text list of at most",
    source(partial(huge_file, "train.txt", 600 * 2**20)),
)
case("split-of-nul", "folder", "more than 16384 bytes", source(partial(huge_file, "train.txt", 500 * 2**20)))
LINE = b"a" * 100_000
case(
    "split-of-one-line",
    "folder",
    "line 1: more than 16384 bytes",
    source(partial(huge_file, "train.txt", 100_000_000, begin=LINE)),
)
case("split-of-one-line-kitti", "kitti", "more than 16384 bytes", lambda folder: kitti(folder, LINE))
case("split-twice", "folder", "(first on line 1)", split(b"a/0001\na/0001.png\n"))
case("split-of-nothing", "folder", "no rows", split(b"\n" * 1_000_000))
case("split-is-a-pipe", "folder", "expected a file, or NAME of a list", instead("train.txt", os.mkfifo))
case(
    "split-is-a-device",
    "folder",
    "expected a file, or",
    instead("train.txt", lambda path: path.symlink_to("/dev/zero")),
)
case("split-is-a-pickle", "folder", "is not UTF-8", split(PICKLE))
case(
    "kitti-focal-nan",
    "kitti",
    "must be a positive number of pixels",
    lambda folder: kitti(folder, b"a.png None nan\nb"),
)
case("kitti-focal-1e999", "kitti", "got '1e999'", lambda folder: kitti(folder, b"a.png None 1e999\nb"))
case("folder-image-is-a-pipe", "folder", "not a regular file", instead("rgb/a/0001.png", os.mkfifo))
case(
    "folder-image-leads-out",
    "folder",
    "outside the root",
    instead("rgb/a/0001.png", lambda p: p.symlink_to("/etc/passwd")),
)
case("folder-link-to-a-folder", "folder", ": link to", source(linked_folder))
case("folder-link-in-circles", "folder", "circular link", instead("rgb/more", lambda path: path.symlink_to("..")))
case("folder-truth-is-a-pipe", "folder", "not a regular file", instead("depth/a/0001.png", os.mkfifo))
case("folder-two-of-one-id", "folder", "two images", source(lambda root: (root / "rgb/a/0001.jpg").write_bytes(b"")))
case(
    "folder-link-named-by-an-escape",
    "folder",
    r"\x1b[2J.png: link to",
    source(lambda root: (root / "rgb/\x1b[2J.png").symlink_to("/etc/passwd")),
)
case("folder-facts-are-a-pipe", "folder", "not a regular file", source(lambda root: os.mkfifo(root / "dataset.json")))
for _name, _text, _words in [
    ("1e308", '{"metres_per_unit": 1e308}', "expected a number above 0"),
    ("1e-320", '{"metres_per_unit": 1e-320}', "expected a number above 0"),
    ("nan", '{"metres_per_unit": NaN}', "NaN is not a JSON number"),
    ("negative", '{"metres_per_unit": -1}', "expected a number above 0"),
    ("zero", '{"metres_per_unit": 0}', "expected a number above 0"),
    ("true", '{"metres_per_unit": true}', "expected a number above 0"),
    ("digits", f'{{"metres_per_unit": {"9" * 5000}}}', "5000 digits does not fit"),
    ("400-digits", f'{{"metres_per_unit": 1{"0" * 400}}}', "401 digits does not fit"),
    ("deep", "[" * 100_000, "nested deeper|marks"),
    ("a-list", "[]", "list, expected an object"),
    ("binary", "\0", "not valid JSON"),
]:
    case(
        f"folder-facts-{_name}",
        "folder",
        _words,
        source(lambda root, text=_text: (root / "dataset.json").write_text(text)),
    )
case("folder-facts-of-a-gigabyte", "folder", "expected at most", source(partial(huge_file, "dataset.json", 2**30)))

# --- predictions -----------------------------------------------------------------------------------------------------


BAD_ARRAY = "damaged, or of another format|its header declares|expected|declares"


def npy(shape: object, dtype: str = "<f4", body: bytes = bytes(64)) -> bytes:
    """A `.npy` file with this header."""
    head = f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape}}}".encode()
    head += b" " * (-(len(head) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + body


def prediction(data: bytes, name: str = "a.npy") -> Callable[[Path], object]:
    """A folder with one prediction."""

    def write(folder: Path) -> None:
        (folder / "predictions").mkdir()
        (folder / "predictions" / name).write_bytes(data)

    return write


OBJECTS = io.BytesIO()
np.save(OBJECTS, np.array([[Exec()]], dtype=object), allow_pickle=True)
for _name, _data, _words in [
    ("npy-object", OBJECTS.getvalue(), BAD_ARRAY),
    ("npy-object-declared", npy((1, 1), "|O", PICKLE), BAD_ARRAY),
    ("npy-pickle", PICKLE, BAD_ARRAY),
    ("npy-huge", npy((2**31, 2**31)), BAD_ARRAY),
    ("npy-10^30", npy((10**30, 1)), BAD_ARRAY),
    ("npy-negative", npy((-4, -4)), BAD_ARRAY),
    ("npy-true", npy((True, 16)), BAD_ARRAY),
    ("npy-of-text", npy((4, 4), "<U4"), BAD_ARRAY),
    ("npy-code", npy("__import__('os').system('touch ../outside/owned')"), BAD_ARRAY),
    ("npy-deep-header", npy("(" * 9000), BAD_ARRAY),
    ("npy-infinite", npy((4, 4), body=np.full(16, np.inf, "<f4").tobytes()), "are infinite, 0 or negative"),
    ("npy-cut-off", npy((4, 4), body=bytes(63)), BAD_ARRAY),
]:
    case(f"prediction-{_name}", "predictions", _words, prediction(_data))
case("prediction-png-bomb", "predictions", "declares", prediction(png(10_000, 10_000, b"", bits=16, color=0), "a.png"))


def odd_prediction(put: Callable[[Path], object]) -> Callable[[Path], object]:
    """Something else in the place of a prediction."""

    def write(folder: Path) -> None:
        (folder / "predictions").mkdir()
        put(folder / "predictions" / "a.npy")

    return write


case("prediction-is-a-pipe", "predictions", "not a regular file", odd_prediction(os.mkfifo))
case(
    "prediction-is-a-device", "predictions", "not a regular", odd_prediction(lambda path: path.symlink_to("/dev/zero"))
)
case(
    "prediction-of-a-terabyte",
    "predictions",
    "expected at most",
    odd_prediction(lambda p: huge_file("a.npy", 2**40, p.parent)),
)

# --- runs ------------------------------------------------------------------------------------------------------------

EDGES = np.linspace(0, 80, 17).tolist()
SOUND = {"student": "lean", "view": "full", "bin_edges_m": EDGES}


def run(config: object = SOUND, weights: bytes | None = b"") -> Callable[[Path], object]:
    """A run; its configuration may be text."""

    def write(folder: Path) -> None:
        (folder / "run").mkdir()
        text = config if isinstance(config, str) else json.dumps(config)
        (folder / "run" / "config.json").write_text(text)
        if weights is not None:
            (folder / "run" / "student.safetensors").write_bytes(weights)

    return write


def tensors(header: object, body: bytes = b"") -> bytes:
    """A safetensors file."""
    head = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(head)) + head + body


ONE = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
for _name, _config, _words in [
    ("10^9-bins", {"student": "lean", "view": "full", "bin_edges_m": 10**9}, "expected a list of 3 to 4097 numbers"),
    (
        "10^5-bins",
        {"student": "lean", "view": "full", "bin_edges_m": list(range(10**5))},
        "expected a list of 3 to 4097 numbers",
    ),
    ("nested-bins", {"student": "lean", "view": "full", "bin_edges_m": [[1], [2, 3], [4]]}, "expected only numbers"),
    ("text-bins", {"student": "lean", "view": "full", "bin_edges_m": ["1", "2", "3"]}, "expected only numbers"),
    ("true-bins", {"student": "lean", "view": "full", "bin_edges_m": [False, True, 2]}, "expected only numbers"),
    ("descending-bins", {"student": "lean", "view": "full", "bin_edges_m": EDGES[::-1]}, "expected ascending numbers"),
    (
        "1e308-bins",
        {"student": "lean", "view": "full", "bin_edges_m": [0, 1, 1e308]},
        "expected ascending numbers up to",
    ),
    ("nan-bins", '{"student": "lean", "view": "full", "bin_edges_m": [0, 1, NaN]}', "NaN is not a JSON number"),
    ("10^6-bins-of-text", '{"bin_edges_m": [' + "0," * 2_000_000 + "0]}", "quotes; expected at most"),
    ("a-list", "[]", "expected an object as written by train-student"),
    ("deep", "[" * 100_000 + "]" * 100_000, "nested deeper|marks"),
    (
        "student-a-list",
        {"student": ["lean"], "view": "full", "bin_edges_m": EDGES},
        "expected a configuration written by train-student",
    ),
    ("pickle", "\x80\x04}q", "not valid JSON"),
]:
    case(f"run-config-{_name}", "run", _words, run(_config, tensors({"a": ONE}, bytes(4))))
for _name, _weights, _words in [
    ("pickle", PICKLE, "declares a header of"),
    ("torch-zip", b"PK\x03\x04" + bytes(99), "declares a header of"),
    ("header-of-gigabytes", struct.pack("<Q", 2**62) + b"{}", "declares a header of 4611686018427387904"),
    ("header-deep", tensors(b'{"a":' + b"[" * 9000 + b"}"), "expected a directory"),
    (
        "tensor-of-a-terabyte",
        tensors({"a": {"dtype": "F32", "shape": [2**38], "data_offsets": [0, 2**40]}}),
        "expected a",
    ),
    ("tensors-overlap", tensors({"a": ONE, "b": ONE}, bytes(4)), "expected a directory written by"),
    ("shape-overflows", tensors({"a": {**ONE, "shape": [2**63, 2**63]}}, bytes(4)), "expected a directory"),
    ("other-tensors", tensors({"a": ONE}, bytes(4)), "Missing key"),
    ("name-escape", tensors({"\x1b[2J": ONE}, bytes(4)), "Missing key"),
    ("empty", b"", "expected a directory written by train-student"),
]:
    case(f"run-weights-{_name}", "run", _words, run(weights=_weights))


def odd_weights(put: Callable[[Path], object], name: str = "student.safetensors") -> Callable[[Path], object]:
    """A run with something else in the place of a file."""

    def write(folder: Path) -> None:
        run()(folder)
        (folder / "run" / name).unlink()
        put(folder / "run" / name)

    return write


case("run-weights-are-a-pipe", "run", "not a regular file", odd_weights(os.mkfifo))
case(
    "run-weights-of-50-gigabytes",
    "run",
    "of at most 536870912",
    odd_weights(lambda p: huge_file(p.name, 50 * 2**30, p.parent)),
)
case(
    "run-weights-header-of-90-megabytes",
    "run",
    "with a header of at most 1048576",
    odd_weights(lambda p: huge_file(p.name, 90_000_008, p.parent, struct.pack("<Q", 90_000_000))),
)
case("run-weights-missing", "run", "No such file", run(weights=None))
case("run-config-is-a-pipe", "run", "not a complete run", odd_weights(os.mkfifo, "config.json"))
case(
    "run-config-of-a-gigabyte",
    "run",
    "expected at most",
    odd_weights(lambda p: huge_file(p.name, 2**30, p.parent), "config.json"),
)
