"""Files of numbers: each format reads back what a writer of its own wrote, and refuses what is wrong with it."""

from __future__ import annotations

import io
import math
import re
import struct
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fakes
import numpy as np
import pytest
import torch
from array_files import npy_bytes, pfm_bytes, write, write_exr
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from pipeline.sources.readers import arrays, exr
from pipeline.sources.readers.arrays import ARRAY_SUFFIXES, DTYPES, metres, read_array

DEPTH_M = fakes.smooth_depth_m((6, 9))


def refuses(*parts):
    """Raises ValueError whose message holds all parts in this order."""
    return pytest.raises(ValueError, match="(?s)" + ".*".join(re.escape(str(part)) for part in parts))


# All formats


@pytest.mark.parametrize("suffix", ARRAY_SUFFIXES)
def test_each_format_reads_back(tmp_path, suffix):
    array = (DEPTH_M * 1000).astype(np.uint16) if suffix == ".png" else DEPTH_M
    write(tmp_path / f"a{suffix}", array)
    read = read_array(tmp_path / f"a{suffix}", "depth")
    np.testing.assert_array_equal(read, array)
    assert read.dtype == array.dtype
    assert read.dtype.isnative


@pytest.mark.parametrize("suffix", ARRAY_SUFFIXES)
def test_an_error_begins_with_what_the_file_was_to_be_and_its_path(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    with pytest.raises(ValueError, match=rf"^prediction {re.escape(str(path))}: no such file"):
        read_array(path, "prediction")
    path.write_bytes(b"neither one nor the other")
    with pytest.raises(ValueError, match=rf"^prediction {re.escape(str(path))}: "):
        read_array(path, "prediction")


@pytest.mark.parametrize("suffix", ARRAY_SUFFIXES)
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_file_that_is_cut_off_is_refused(tmp_path, suffix, share):
    path = tmp_path / f"a{suffix}"
    noise = np.random.default_rng(0).random((20, 30)).astype(np.float32)
    write(path, (noise * 60000).astype(np.uint16) if suffix == ".png" else noise)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with refuses("depth", path):
        read_array(path, "depth")


def test_another_suffix_is_refused_with_those_that_are_read(tmp_path):
    with refuses("a.tif", "ends in", *ARRAY_SUFFIXES):
        read_array(tmp_path / "a.tif", "depth")


def test_a_suffix_may_be_in_capitals(tmp_path):
    (tmp_path / "A.NPY").write_bytes(npy_bytes(DEPTH_M))
    assert (read_array(tmp_path / "A.NPY", "depth") == DEPTH_M).all()


@given(st.floats(1e-3, 1e3), st.sampled_from(["u2", "f2", "f4", "f8"]))
def test_metres_are_numbers_times_a_unit_and_nothing_else(unit, dtype):
    values = np.array([[0, 1, 250, 7]], dtype)
    depth_m = metres(values, unit)
    assert depth_m.dtype == np.float32
    assert np.isnan(depth_m[0, 0])
    np.testing.assert_allclose(depth_m[0, 1:], values[0, 1:].astype(float) * unit, rtol=1e-6)


def test_what_is_no_distance_is_none():
    values = np.array([0, -1, np.nan, np.inf, -np.inf, 1e10, 5])  # Blender has 1e10 where there is nothing
    np.testing.assert_array_equal(metres(values), np.float32([*[np.nan] * 6, 5]))


# .npy


@settings(max_examples=50)
@given(
    st.sampled_from(DTYPES),
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.sampled_from("<>"),
    st.sampled_from("CF"),
    st.booleans(),
    st.sampled_from([".npy", ".npz"]),
)
def test_numbers_of_every_type_and_order_read_back(tmp_path_factory, dtype, shape, byte_order, order, axis, suffix):
    array = np.arange(shape[0] * shape[1]).reshape(shape).astype(np.dtype(dtype).newbyteorder(byte_order), order)
    path = tmp_path_factory.mktemp("npy") / f"a{suffix}"
    write(path, array[..., None] if axis else array)
    read = read_array(path, "depth")
    np.testing.assert_array_equal(read, array)
    assert read.dtype == np.dtype(dtype)


HEADER = npy_bytes(np.zeros((4, 5), np.float32))


@pytest.mark.parametrize(
    ("data", "parts"),
    [
        (b"", ["damaged, or of another format", "numpy.save"]),
        (b"PK\x03\x04 something", ["damaged, or of another format"]),
        (HEADER[:-1], ["expected 80 bytes got 79", "write it"]),
        (HEADER + b"x", ["1 bytes follow the array"]),
        (HEADER.replace(b"(4, 5), }".ljust(20), b"(99999, 999999), }".ljust(20)), ["damaged, or of another format"]),
        (npy_bytes(np.zeros((1, 4, 5), np.float32)), ["float32 of shape (1, 4, 5)", "(height, width)"]),
        (npy_bytes(np.zeros((4, 5), np.int32)), ["int32", "uint16, float16, float32, float64"]),
        (npy_bytes(np.zeros((0, 5), np.float32)), ["declares 0x5 pixels"]),
        (npy_bytes(np.array([[{}]], dtype=object), allow_pickle=True), ["Object arrays"]),
        (b"\x93NUMPY\x09\x00" + HEADER[8:], ["damaged, or of another format", "(9, 0)"]),
        (HEADER.replace(b"'<f4'", b"'<f9'"), ["damaged, or of another format"]),
    ],
)
def test_a_wrong_npy_file_is_refused(tmp_path, data, parts):
    path = tmp_path / "a.npy"
    path.write_bytes(data)
    with refuses("depth", path, *parts):
        read_array(path, "depth")


@given(st.integers(0, len(HEADER) - 1), st.binary(min_size=1, max_size=3))
def test_a_damaged_npy_header_never_allocates_what_it_claims(tmp_path_factory, position, junk):
    path = tmp_path_factory.mktemp("npy") / "a.npy"
    path.write_bytes((HEADER[:position] + junk + HEADER[position + len(junk) :])[: len(HEADER)])
    try:
        assert read_array(path, "depth").nbytes <= len(HEADER)
    except ValueError as error:
        assert "a.npy" in str(error)  # noqa: PT017 - both ways are right, here is what must hold


def test_a_file_too_large_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(arrays, "LIMIT_BYTES", 96)
    (tmp_path / "a.npy").write_bytes(HEADER)
    with refuses("a.npy", f"{len(HEADER)} bytes, expected at most 96"):
        read_array(tmp_path / "a.npy", "depth")


# .npz


def npz_bytes(packing=zipfile.ZIP_DEFLATED, **members):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", packing) as packed:
        for name, data in members.items():
            packed.writestr(f"{name}.npy", data)
    return file.getvalue()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("names", [["arr_0"], ["depth"], ["depth", "mask"]])
def test_one_array_or_one_that_is_named_depth_is_read(tmp_path, save, names):
    save(tmp_path / "a.npz", **{name: DEPTH_M if name != "mask" else np.zeros(3) for name in names})
    assert (read_array(tmp_path / "a.npz", "depth") == DEPTH_M).all()


@pytest.mark.parametrize(
    ("data", "parts"),
    [
        (npz_bytes(a=HEADER, b=HEADER), ["'a', 'b'", "one named 'depth'"]),
        (npz_bytes(), ["(none)"]),
        (npz_bytes(depth=b"nothing"), ["'depth' is not an array"]),
        (npz_bytes(depth=HEADER[:-1]), ["expected 80 bytes got 79"]),
        (npz_bytes(depth=npy_bytes(np.array([[{}]], dtype=object), allow_pickle=True)), ["Object arrays"]),
        (b"PK", ["damaged, or of another format"]),
        (npz_bytes(zipfile.ZIP_STORED, depth=HEADER).replace(HEADER, HEADER[:-1] + b"x"), ["Bad CRC-32"]),
        (
            npz_bytes(zipfile.ZIP_LZMA, depth=HEADER).replace(b"\x0e\x00", b"\x63\x00"),
            ["damaged, or of another format"],
        ),
    ],
)
def test_a_wrong_npz_file_is_refused(tmp_path, data, parts):
    path = tmp_path / "a.npz"
    path.write_bytes(data)
    with refuses("depth", path, *parts):
        read_array(path, "depth")


ZIPPED = npz_bytes(depth=HEADER)


@given(st.integers(0, len(ZIPPED) - 1), st.binary(min_size=1, max_size=4))
def test_a_damaged_npz_file_is_numbers_or_one_value_error(tmp_path_factory, position, junk):
    path = tmp_path_factory.mktemp("npz") / "a.npz"
    path.write_bytes(ZIPPED[:position] + junk + ZIPPED[position + len(junk) :])
    try:
        assert read_array(path, "depth").nbytes <= 80
    except ValueError as error:
        assert str(error).startswith(f"depth {path}: ")  # noqa: PT017 - both ways are right


# .pfm


@given(
    st.tuples(st.integers(1, 7), st.integers(1, 7)),
    st.sampled_from([-1.0, 1.0, -0.003922, 2.5]),
    st.sampled_from(
        ["Pf\n{width} {height}\n{scale}\n", "Pf\r\n{width} {height}\r\n{scale}\r\n", "Pf {width} {height} {scale} "]
    ),
)
def test_pfm_reads_back_in_both_byte_orders_whatever_its_scale(tmp_path_factory, shape, scale, head):
    array = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    path = tmp_path_factory.mktemp("pfm") / "a.pfm"
    path.write_bytes(pfm_bytes(array, scale, head))
    np.testing.assert_array_equal(read_array(path, "depth"), array)


def test_a_pfm_whose_first_number_looks_like_white_space_reads_back(tmp_path):
    array = np.frombuffer(b"\n" * 24, "<f4").reshape(2, 3)
    (tmp_path / "a.pfm").write_bytes(pfm_bytes(array))
    np.testing.assert_array_equal(read_array(tmp_path / "a.pfm", "depth"), array)


@pytest.mark.parametrize(
    ("data", "parts"),
    [
        (pfm_bytes(DEPTH_M).replace(b"Pf", b"PF", 1), ["PF is a colour picture"]),
        (pfm_bytes(DEPTH_M).replace(b"Pf", b"P5", 1), ["to begin with 'Pf'"]),
        (pfm_bytes(DEPTH_M, 0.0), ["scale '0.0'", "other than 0"]),
        (pfm_bytes(DEPTH_M, -1.0).replace(b"-1.0", b"-1.1.", 1), ["scale"]),
        (pfm_bytes(DEPTH_M)[:-1], ["declares 216 bytes", "it has 215"]),
        (pfm_bytes(DEPTH_M) + b"xy", ["declares 216 bytes", "it has 218"]),
        (b"Pf\n99999999 99999999\n-1\n" + bytes(80), ["its header declares 39999999200000004 bytes"]),
        (b"Pf\n0 4\n-1\n", ["declares 4x0 pixels"]),
        (b"Pf\n-4 -4\n-1\n" + bytes(64), ["no .pfm file"]),
    ],
)
def test_a_wrong_pfm_file_is_refused(tmp_path, data, parts):
    path = tmp_path / "a.pfm"
    path.write_bytes(data)
    with refuses("depth", path, *parts):
        read_array(path, "depth")


# .exr


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["Z"], "Z"),
        (["V"], "V"),
        (["Z", "A"], "Z"),
        (["Y", "depth"], "depth"),
        (["Y", "A"], "Y"),
        (["ViewLayer__Combined__A", "ViewLayer__Depth__Z"], "ViewLayer__Depth__Z"),
    ],
)
def test_the_channel_of_depth_is_found(tmp_path, names, chosen, dtype):
    path = write_exr(tmp_path / "a.exr", **{name: (DEPTH_M + (name != chosen)).astype(dtype) for name in names})
    read = read_array(path, "depth")
    np.testing.assert_array_equal(read, DEPTH_M.astype(dtype))
    assert read.dtype == dtype


@settings(max_examples=40)
@given(
    st.tuples(st.integers(1, 40), st.integers(1, 20)),
    st.sampled_from(["NO", "RLE", "ZIPS", "ZIP", "PIZ"]),
    st.sampled_from([np.float16, np.float32]),
    st.booleans(),
)
def test_exr_reads_back_from_every_packing_that_loses_nothing(tmp_path_factory, shape, packing, dtype, noise):
    smooth = np.linspace(1, 9, shape[0] * shape[1]).reshape(shape)
    array = (np.random.default_rng(0).random(shape) if noise else smooth).astype(dtype)
    path = write_exr(tmp_path_factory.mktemp("exr") / "a.exr", packing, A=array.astype(np.float32) + 1, Z=array)
    np.testing.assert_array_equal(read_array(path, "depth"), array)


def test_gray_that_was_saved_as_color_is_depth_and_a_picture_is_not(tmp_path):
    write_exr(tmp_path / "grey.exr", R=DEPTH_M, G=DEPTH_M, B=DEPTH_M)
    np.testing.assert_array_equal(read_array(tmp_path / "grey.exr", "depth"), DEPTH_M)
    write_exr(tmp_path / "picture.exr", R=DEPTH_M, G=DEPTH_M + 1, B=DEPTH_M)
    with refuses("picture.exr", "differ", "a color image"):
        read_array(tmp_path / "picture.exr", "depth")


@pytest.mark.parametrize(
    ("channels", "parts"),
    [
        ({"U": DEPTH_M, "V": DEPTH_M}, ["'U', 'V'", "Z, depth, Y or R"]),
        ({"left__Z": DEPTH_M, "right__Z": DEPTH_M}, ["'left.Z', 'right.Z'", "write depth alone"]),
        ({"Z": DEPTH_M.astype(np.uint32)}, ["'Z' is UINT", "HALF or FLOAT"]),
    ],
)
def test_channels_that_are_no_depth_are_refused(tmp_path, channels, parts):
    with refuses("a.exr", *parts):
        read_array(write_exr(tmp_path / "a.exr", **channels), "depth")


def test_without_its_package_an_exr_file_names_the_command(tmp_path, monkeypatch):
    path = write_exr(tmp_path / "a.exr", Z=DEPTH_M)
    monkeypatch.setattr(exr, "find_spec", {}.get)
    with refuses("a.exr", "need OpenEXR", "pip install 'tiekd-pipeline[exr]'"):
        read_array(path, "depth")


def test_a_file_that_ends_the_reading_process_is_one_error_and_the_next_is_read(tmp_path, monkeypatch):
    dying = tmp_path / "dying.py"
    dying.write_text("import os, sys\nsys.stdin.buffer.read(8)\nos.kill(os.getpid(), 11)\n")
    path = write_exr(tmp_path / "a.exr", Z=DEPTH_M)
    monkeypatch.setattr(exr, "_idle", {})
    with monkeypatch.context() as patch:
        patch.setattr(exr, "WORKER", dying)
        with refuses("a.exr", "damaged", "ended on it with SIGSEGV", "write it again"):
            read_array(path, "depth")
    np.testing.assert_array_equal(read_array(path, "depth"), DEPTH_M)


def test_exr_files_are_read_in_forked_workers_and_in_threads(tmp_path):
    paths = [write_exr(tmp_path / f"{n}.exr", Z=DEPTH_M + n) for n in range(24)]
    read_array(paths[0], "depth")  # a reader that a fork inherits, and must not use

    class Files(torch.utils.data.Dataset):
        def __len__(self):
            return len(paths)

        def __getitem__(self, number):
            return torch.from_numpy(read_array(paths[number], "depth"))

    for number, depth in enumerate(DataLoader(Files(), None, num_workers=2, multiprocessing_context="fork")):
        np.testing.assert_array_equal(depth, DEPTH_M + number)
    with ThreadPoolExecutor(8) as pool:
        for number, depth in enumerate(pool.map(lambda path: read_array(path, "depth"), paths)):
            np.testing.assert_array_equal(depth, DEPTH_M + number)


def test_an_exr_of_a_huge_window_is_refused_by_its_header(tmp_path):
    path = write_exr(tmp_path / "a.exr", Z=DEPTH_M)
    data = path.read_bytes()
    at = data.index(b"dataWindow\0box2i\0") + len(b"dataWindow\0box2i\0") + 4
    for right, words in [(2**14, "declares 6x16385|damaged"), (2**23 - 1, "declares 6x8388608 pixels")]:
        path.write_bytes(data[:at] + struct.pack("<4i", 0, 0, right, 5) + data[at + 16 :])
        with pytest.raises(ValueError, match=words):
            read_array(path, "depth")


@settings(max_examples=60)
@given(st.integers(0, 2000), st.binary(min_size=1, max_size=4), st.sampled_from(["ZIP", "PIZ", "PXR24"]))
def test_a_damaged_exr_file_is_numbers_or_one_value_error(tmp_path_factory, position, junk, packing):
    path = write_exr(tmp_path_factory.mktemp("exr") / "a.exr", packing, Z=DEPTH_M)
    data = path.read_bytes()
    position %= len(data)
    path.write_bytes((data[:position] + junk + data[position + len(junk) :])[: len(data)])
    try:
        assert math.prod(read_array(Path(path), "depth").shape) <= 2**25
    except ValueError as error:
        assert str(error).startswith(f"depth {path}: ")  # noqa: PT017 - both ways are right
