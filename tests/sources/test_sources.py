"""Sources: lists, layouts, image files, and every error that a user may see."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import struct
import subprocess
import sys
import unicodedata
import zlib
from pathlib import Path

import array_files
import fakes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from pipeline.sources import splits as lists
from pipeline.sources.datasets.kitti import _parse_row
from pipeline.sources.readers import images as images_module
from pipeline.sources.readers.images import (
    IMAGE_SUFFIXES,
    LIMIT_PIXELS,
    read_depth_png_m,
    read_image_with_sha256,
    read_rgb,
    resolve_image,
)
from pipeline.sources.registry import open_source, source_kinds
from pipeline.sources.splits import BLANKS, checked_path, rows, without_suffix

REAL = Path(__file__).parents[2] / "../shared/data"
ROW = f"{fakes.DRIVE}/0000000000.png {fakes.TRUTH}/0000000000.png 721.5377"


def refuses(*parts):
    """Raises ValueError whose message holds all parts in this order."""
    return pytest.raises(ValueError, match="(?s)" + ".*".join(re.escape(str(part)) for part in parts))


@pytest.fixture
def kitti(tmp_path):
    return open_source(f"kitti:{fakes.make_kitti(tmp_path)}")


# The registry


@pytest.mark.parametrize(
    ("spec", "parts"),
    [
        ("nuscenes:x", ["'nuscenes:x'", "unknown kind 'nuscenes'", *source_kinds()]),
        ("data", ["unknown kind 'data'", "folder"]),
        ("kitti:", ["root is missing", "kitti:ROOT"]),
        ("folder:/no/such/place", ["/no/such/place does not exist", "directory of the data set"]),
    ],
)
def test_a_wrong_spec_is_refused_with_what_is_known(spec, parts):
    with refuses(*parts):
        open_source(spec)


def test_a_root_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with refuses("is not a directory", "expected the directory"):
        open_source(f"kitti:{tmp_path / 'file'}")


def test_sources_do_not_import_torch():
    code = "import sys, pipeline.sources.registry, pipeline.sources.view; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=Path(__file__).parents[2]).returncode == 0


@pytest.mark.parametrize(
    ("name", "view", "bins", "sigma_m", "protocol"),
    [
        ("kitti", "kb", "kitti", 0.5, "kitti_eigen_garg80"),
        ("folder", "full", None, None, "plain"),
        ("scenes", "full", "log:64:1:100", 0.5, "plain"),
    ],
)
def test_a_source_has_the_defaults_of_its_papers(tmp_path, name, view, bins, sigma_m, protocol):
    {"kitti": fakes.make_kitti, "folder": fakes.make_folder, "scenes": fakes.make_scenes_folder}[name](tmp_path)
    source = open_source(f"{name}:{tmp_path}")
    defaults = source.defaults
    assert (defaults.view, defaults.bins, defaults.sigma_m, defaults.protocol) == (view, bins, sigma_m, protocol)
    assert (source.name, source.root) == (name, tmp_path)


# Image files


def test_an_image_is_read_with_the_hash_of_its_file(tmp_path):
    image = fakes.image_of(fakes.smooth_depth_m((8, 9)))
    fakes.write_image(tmp_path / "a.png", image)
    read, sha256 = read_image_with_sha256(str(tmp_path / "a.png"))
    assert (read == image).all()
    assert read.dtype == np.uint8
    assert sha256 == hashlib.sha256((tmp_path / "a.png").read_bytes()).hexdigest()


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "CMYK", "LA"])
def test_other_modes_of_8_bits_become_rgb(tmp_path, mode):
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    Image.new(mode, (5, 4)).save(path)
    assert read_rgb(str(path)).shape == (4, 5, 3)


def with_orientation(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.mark.parametrize("suffix", [".png", ".webp", ".jpg"])
@pytest.mark.parametrize("orientation", range(2, 9))
def test_an_image_is_turned_upright_as_its_exif_says(tmp_path, suffix, orientation):
    path, image = tmp_path / f"a{suffix}", fakes.image_of(fakes.smooth_depth_m((40, 64), 3))
    Image.fromarray(image).save(path, exif=with_orientation(orientation), quality=95)
    read, sha256 = read_image_with_sha256(str(path))
    with Image.open(path) as opened:
        np.testing.assert_array_equal(read, np.asarray(ImageOps.exif_transpose(opened).convert("RGB")))
    assert sha256 == hashlib.sha256(read.tobytes()).hexdigest()  # that of the file is of images lying on their side


def test_that_an_image_was_turned_is_said_once(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(images_module, "_turned_is_said", False)
    for name in ("a", "b"):
        Image.new("RGB", (5, 4)).save(tmp_path / f"{name}.png", exif=with_orientation(6))
        read_rgb(str(tmp_path / f"{name}.png"))
    (record,) = caplog.records
    assert "a.png: turned upright, as its EXIF says (orientation 6)" in record.getMessage()


def test_exif_that_cannot_be_read_turns_nothing(tmp_path):
    Image.new("RGB", (5, 4)).save(tmp_path / "a.jpg", exif=b"Exif\0\0MM\0*garbage")
    assert read_rgb(str(tmp_path / "a.jpg")).shape == (4, 5, 3)


def turned_folder(root, orientation, size_px, truth_m):
    """A folder whose one image, of `size_px` in its file, is turned, and has the given truth."""
    (root / "rgb").mkdir(parents=True)
    Image.new("RGB", size_px[::-1]).save(root / "rgb/a.jpg", exif=with_orientation(orientation))
    (root / "depth").mkdir()
    np.save(root / "depth/a.npy", truth_m)
    source = open_source(f"folder:{root}")
    return source, source.samples("all")[0]


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
@pytest.mark.parametrize("factor", [1, 2], ids=["as large", "half as large"])
def test_truth_that_lies_as_the_images_file_does_is_turned_with_it(tmp_path, orientation, factor):
    truth_m = fakes.smooth_depth_m((24 // factor, 32 // factor))
    source, sample = turned_folder(tmp_path, orientation, (24, 32), truth_m)
    upright = images_module.TURNS[orientation](truth_m)
    np.testing.assert_array_equal(source.read_truth_m(sample), upright)
    assert source.read_image(sample)[0].shape[:2] == (32, 24)


def test_truth_that_lies_as_the_image_is_seen_is_left_alone(tmp_path):
    truth_m = fakes.smooth_depth_m((32, 24))
    source, sample = turned_folder(tmp_path, 6, (24, 32), truth_m)
    np.testing.assert_array_equal(source.read_truth_m(sample), truth_m)


@pytest.mark.parametrize(("orientation", "size_px"), [(2, (24, 32)), (3, (24, 32)), (4, (24, 32)), (6, (24, 24))])
def test_truth_whose_size_does_not_tell_how_it_lies_is_refused(tmp_path, orientation, size_px):
    source, sample = turned_folder(tmp_path, orientation, size_px, fakes.smooth_depth_m(size_px))
    with refuses("depth/a.npy", "do not tell whether it is turned", "rgb/a.jpg", f"orientation {orientation}", "-auto"):
        source.read_truth_m(sample)


def test_a_png_whose_pixels_fail_their_crc_is_refused(tmp_path):
    fakes.write_image(tmp_path / "a.png", fakes.image_of(fakes.smooth_depth_m((24, 32))))
    data = bytearray((tmp_path / "a.png").read_bytes())
    at = data.index(b"IDAT")
    data[at + 4 + struct.unpack(">I", data[at - 4 : at])[0]] ^= 1
    (tmp_path / "a.png").write_bytes(data)
    with refuses("a.png", "CRC", "'IDAT'", "copy or download it again"):
        read_rgb(str(tmp_path / "a.png"))


@pytest.mark.parametrize(
    ("options", "hole", "words"),
    [
        ({}, bytes(600), "a hole"),
        ({}, b"\xff" * 600, "does not decode"),
        ({"progressive": True}, b"\xff" * 600, "does not decode"),
        ({"restart_marker_blocks": 2, "progressive": True}, bytes(600), "restart marker"),
        ({}, b"\xff\x17", "FF 17"),
    ],
    ids=["zeros", "ones", "progressive ones", "restart markers gone", "a marker that is none"],
)
def test_a_jpeg_with_a_hole_is_refused(tmp_path, options, hole, words):
    path = tmp_path / "a.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 300, 3), np.uint8)).save(path, **options)
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + len(hole)] = hole
    path.write_bytes(data)
    with refuses("a.jpg", words, "copy or download it again"):
        read_rgb(str(path))


@pytest.mark.parametrize("color", [0, 128, 255], ids=["black", "grey", "white"])
@pytest.mark.parametrize("optimize", [False, True], ids=["usual codes", "own codes"])
@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"restart_marker_rows": 1}], ids=["one pass", "passes", "restarts"]
)
def test_a_jpeg_of_one_color_has_no_hole(tmp_path, color, optimize, options):
    Image.new("RGB", (2000, 1500), (color,) * 3).save(tmp_path / "a.jpg", optimize=optimize, **options)
    assert (np.abs(read_rgb(str(tmp_path / "a.jpg")).astype(int) - color) <= 1).all()


@pytest.mark.parametrize("suffix", IMAGE_SUFFIXES)
def test_an_image_is_found_under_another_suffix(tmp_path, suffix):
    fakes.write_image(tmp_path / f"a{suffix}", np.zeros((4, 5, 3), np.uint8))
    for named in IMAGE_SUFFIXES:
        assert resolve_image(str(tmp_path / f"a{named}")) == str(tmp_path / f"a{suffix}")
    assert read_rgb(str(tmp_path / "a.png")).shape == (4, 5, 3)


def test_the_named_file_goes_before_its_sibling(tmp_path):
    for suffix, value in {".png": 0, ".jpg": 255}.items():
        fakes.write_image(tmp_path / f"a{suffix}", np.full((4, 5, 3), value, np.uint8))
    assert read_rgb(str(tmp_path / "a.png")).max() == 0
    assert read_rgb(str(tmp_path / "a.jpg")).min() == 255


def test_a_missing_image_is_named_with_what_was_tried(tmp_path):
    with refuses(tmp_path / "a.png", "no such file", ".jpg", "`source`"):
        read_rgb(str(tmp_path / "a.png"))


def test_a_missing_depth_file_is_named(tmp_path):
    with refuses("depth", tmp_path / "a.png", "no such file", "check"):
        read_depth_png_m(str(tmp_path / "a.png"), 0.001)


def test_a_directory_in_place_of_an_image_is_refused(tmp_path):
    (tmp_path / "a.png").mkdir()
    with refuses("a.png", "Is a directory", "expected a readable file"):
        read_rgb(str(tmp_path / "a.png"))


@pytest.mark.parametrize("kept", [0, 20, 300, -40])
@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_a_file_cut_off_is_refused(tmp_path, suffix, kept):
    path = tmp_path / f"a{suffix}"
    fakes.write_image(path, np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8))
    path.write_bytes(path.read_bytes()[:kept])
    with refuses(path, "does not decode", "expected a whole PNG, JPEG, WEBP", "again"):
        read_rgb(str(path))


def test_a_format_beside_the_three_is_not_decoded(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png", format="BMP")
    with refuses("does not decode"):
        read_rgb(str(tmp_path / "a.png"))


@given(
    st.binary(max_size=200),
    st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF\0\0\0\0WEBP"]),
)
def test_any_bytes_are_an_image_or_one_value_error(data, magic):
    with pytest.raises(ValueError, match=r"image a\.png: "):
        images_module._decode_rgb("a.png", magic + data)


@pytest.mark.parametrize("side", [11_586, 20_000, 100_000])  # just above the limit, and above both of Pillow's own
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_decompression_bomb_is_refused_by_its_header(tmp_path, side):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    assert side**2 > LIMIT_PIXELS
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    path = tmp_path / "a.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b""))
    with refuses(path, "pixels", LIMIT_PIXELS, "make it smaller"):
        read_rgb(str(path))


def test_a_file_too_large_to_be_an_image_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(images_module, "LIMIT_BYTES", 10)
    fakes.write_image(tmp_path / "a.png", np.zeros((4, 5, 3), np.uint8))
    with refuses("a.png", "bytes, expected at most 10"):
        read_rgb(str(tmp_path / "a.png"))


def test_a_depth_file_given_as_image_is_refused(tmp_path):
    fakes.write_depth(tmp_path / "a.png", np.ones((4, 5), np.float32), 0.001)
    with refuses("a.png", "'I;16'", "expected 8 bits", "depth file"):
        read_rgb(str(tmp_path / "a.png"))


@pytest.mark.parametrize("mode", ["L", "P", "RGB"])
def test_a_depth_file_of_8_bits_is_refused(tmp_path, mode):
    Image.new(mode, (5, 4)).save(tmp_path / "a.png")
    with refuses("depth", "a.png", repr(mode), "greyscale PNG of 16 bits", "write the depth as uint16"):
        read_depth_png_m(str(tmp_path / "a.png"), 0.001)


def test_depth_is_in_metres_with_nan_where_the_file_holds_nothing(tmp_path):
    Image.fromarray(np.array([[0, 1, 256], [65535, 512, 0]], np.uint16)).save(tmp_path / "a.png")
    depth_m = read_depth_png_m(str(tmp_path / "a.png"), 1 / 256)
    np.testing.assert_array_equal(depth_m, np.array([[np.nan, 1 / 256, 1], [65535 / 256, 2, np.nan]], np.float32))
    assert depth_m.dtype == np.float32


# Lists


@given(st.text(max_size=30))
def test_a_checked_path_stays_below_its_root(text):
    try:
        path = checked_path(text, "here")
    except ValueError as error:
        assert str(error).startswith("here: path ")  # noqa: PT017 - both ways are right, here is what must hold
        return
    joined = os.path.normpath(os.path.join("/root", path))  # noqa: PTH118 - normpath is the question
    assert joined == f"/root/{path}"


@settings(deadline=None)  # writes files
@given(st.lists(st.text(st.characters(categories=["L", "N", "P", "Zs"]), max_size=10), max_size=10))
def test_rows_are_the_lines_that_are_not_blank_with_their_numbers(tmp_path_factory, lines):
    path = tmp_path_factory.mktemp("list") / "a.txt"
    path.write_text("\r\n".join(lines), encoding="utf-8-sig", newline="")
    assert list(rows(path)) == [(i, line.strip(BLANKS)) for i, line in enumerate(lines, 1) if line.strip(BLANKS)]


@given(st.text("ab/.", max_size=8), st.sampled_from([*IMAGE_SUFFIXES, ".PNG", ".txt", ""]))
def test_only_an_image_suffix_is_taken_off(stem, suffix):
    taken = without_suffix(stem + suffix)
    is_image = suffix.lower() in IMAGE_SUFFIXES and stem and not stem.endswith("/")
    assert taken == (stem if is_image else None)


PARTS = st.text("abz019_-", min_size=1, max_size=8)


@given(
    st.lists(PARTS, min_size=1, max_size=4),
    st.none() | PARTS,
    st.floats(1e-3, 1e6),
    st.sampled_from([" ", "\t "]),
)
def test_a_kitti_row_reads_back(parts, truth, focal_px, gap):
    stem = "/".join(parts)
    row = gap.join([f"{stem}.png", f"{truth}.png" if truth else "None", repr(focal_px)])
    assert _parse_row(row, "here") == (stem, f"{stem}.png", f"{truth}.png" if truth else None, focal_px)


@given(st.text(max_size=40))
def test_any_line_is_a_kitti_row_or_one_value_error(row):
    try:
        sample_id, image, truth, focal_px = _parse_row(row, "here line 1")
    except ValueError as error:
        assert str(error).startswith("here line 1: ")  # noqa: PT017 - both ways are right, here is what must hold
        return
    assert image.startswith(sample_id)
    assert truth is None or not truth.startswith("/")
    assert math.isfinite(focal_px)


# KITTI


def test_kitti_rows_come_in_order_with_ids_truth_and_focal_length(kitti):
    samples = kitti.samples("train")
    assert [sample.id for sample in samples] == [f"{fakes.DRIVE}/{n:010d}" for n in range(4)]
    assert samples[0].image_path == f"{kitti.root}/input/{fakes.DRIVE}/0000000000.png"
    assert samples[0].focal_px == 721.5377
    assert [sample.truth_path is None for sample in kitti.samples("test")] == [False, True]


def test_kitti_images_and_truth_read_with_jpg_beside_png(kitti):
    for frame, sample in enumerate(kitti.samples("train")):
        depth_m = fakes.smooth_depth_m((40, 120), frame)
        assert np.abs(read_rgb(sample.image_path).astype(int) - fakes.image_of(depth_m)).mean() < 3
        truth_m = kitti.read_truth_m(sample)
        np.testing.assert_allclose(truth_m, fakes.sparse(depth_m), atol=0.51 / 256)


def test_a_kitti_row_without_truth_has_none(kitti):
    assert kitti.read_truth_m(kitti.samples("test")[-1]) is None


def test_a_kitti_split_may_be_a_file_with_a_byte_order_mark(kitti, tmp_path):
    path = tmp_path / "mine.list"
    path.write_text(ROW + "\r\n", encoding="utf-8-sig")
    assert [sample.id for sample in kitti.samples(str(path))] == [f"{fakes.DRIVE}/0000000000"]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ["no rows", "one image per line"]),
        (f"{ROW}\n\na.png\n", ["line 3", "1 columns", "expected 3: rgb depth focal_px"]),
        (f"{ROW}\n{ROW}\n", ["line 2", "0000000000", "line 1", "delete one"]),
        (f"{ROW}\n{ROW.replace('.png', '.jpg', 1)}\n", ["line 2", "line 1"]),
        ("/etc/a.png None 1", ["line 1", "'/etc/a.png' is absolute", "relative to the root"]),
        ("a/../../b.png None 1", ["line 1", "outside the root"]),
        ("a.png ../b.png 1", ["line 1", "'../b.png'", "outside the root"]),
        ("./a.png None 1", ["not normalized"]),
        ("a.tif None 1", ["line 1", "'a.tif'", ".png or .jpg"]),
        ("a.png None x", ["line 1", "must be a positive number", "'x'"]),
        ("a.png None nan", ["must be a positive number", "'nan'"]),
        ("a.png None -7", ["must be a positive number", "'-7'"]),
    ],
)
def test_a_wrong_kitti_list_is_refused_with_its_line(kitti, tmp_path, text, parts):
    path = tmp_path / "mine.txt"
    path.write_text(text)
    with refuses("split", path, *parts):
        kitti.samples(str(path))


ANNOTATED = "proj_depth/groundtruth/image_02/0000000000.png"


@pytest.mark.parametrize(
    ("depth", "parts"),
    [
        (f"{fakes.TRUTH}/0000000001.png", ["frame 1", "of frame 0"]),
        (f"2011_09_26_drive_0002_sync/{ANNOTATED}", ["drive 2011_09_26_drive_0002", "of drive 2011_09_26_drive_0001"]),
        (f"{fakes.TRUTH.replace('02', '03')}/0000000000.png", ["camera image_03", "of camera image_02"]),
    ],
    ids=["frame", "drive", "camera"],
)
def test_a_row_with_the_depth_of_another_frame_is_refused_unless_the_list_means_it(kitti, tmp_path, depth, parts):
    row = f"{fakes.DRIVE}/0000000000.png {depth} 721.5\n"
    (tmp_path / "list.txt").write_text(row)
    with refuses("list.txt line 1: depth", depth, *parts, "`# pairs: as listed`"):
        kitti.samples(str(tmp_path / "list.txt"))
    (tmp_path / "list.txt").write_text(f"# pairs: as listed\n{row}")
    (sample,) = kitti.samples(str(tmp_path / "list.txt"))
    assert sample.truth_path.endswith(depth)


@pytest.mark.parametrize(
    ("row", "truth", "focal_px"),
    [
        (f"{fakes.DRIVE}/0000000000.png {fakes.TRUTH}/0000000000.png", True, None),
        (f"/mnt/x/Kitti/raw_data/{fakes.DRIVE}/0000000000.png /mnt/x/y/{fakes.TRUTH}/0000000000.png", True, None),
        (f"{fakes.DRIVE}/0000000000.png None", False, None),
        ("2011_09_26/2011_09_26_drive_0001_sync 0 l", True, None),
        ("2011_09_26/2011_09_26_drive_0001_sync 5 l", False, None),
        (f"/mnt/x/{fakes.DRIVE}/0000000000.jpg /mnt/y/{fakes.TRUTH}/0000000000.png 721.5", True, 721.5),
    ],
    ids=["two columns", "absolute", "two columns, no depth", "drive", "drive, no depth", "absolute, three columns"],
)
def test_kitti_lists_as_others_publish_them_are_read(kitti, tmp_path, row, truth, focal_px):
    (tmp_path / "list.txt").write_text(row)
    (sample,) = kitti.samples(str(tmp_path / "list.txt"))
    frame = "0000000005" if " 5 " in row else "0000000000"
    assert (sample.id, sample.focal_px) == (f"{fakes.DRIVE}/{frame}", focal_px)
    assert sample.truth_path == (f"{kitti.root}/gt_depth/{fakes.TRUTH}/{frame}.png" if truth else None)
    kitti.read_image(sample)


@pytest.mark.parametrize(
    ("row", "parts"),
    [
        ("00 105 l", ["sequence 00 of KITTI's odometry benchmark", "DATE/DRIVE frame l"]),
        ("image 0000000000 l", ["not an image of KITTI raw", "DATE/DRIVE frame l"]),
        (f"{fakes.DRIVE}/0000000000.png 721.5377", ["'721.5377'", "ends in .png, or None"]),
        (f"/elsewhere/a.png /elsewhere/{fakes.TRUTH}/0000000000.png", ["'/elsewhere/a.png'", "is absolute"]),
    ],
    ids=["odometry", "benchmark", "image and focal length", "absolute, not KITTI's"],
)
def test_kitti_lists_that_are_ambiguous_are_refused(kitti, tmp_path, row, parts):
    (tmp_path / "list.txt").write_text(row)
    with refuses("list.txt line 1", *parts):
        kitti.samples(str(tmp_path / "list.txt"))


def test_a_list_that_is_not_utf8_is_refused_with_the_byte(kitti, tmp_path):
    (tmp_path / "mine.txt").write_bytes(b"ab\xff")
    with refuses("mine.txt", "byte 2 is not UTF-8", "text list"):
        kitti.samples(str(tmp_path / "mine.txt"))


def test_an_absurdly_large_list_is_not_read(kitti, tmp_path, monkeypatch):
    monkeypatch.setattr(lists, "LIMIT_BYTES", 10)
    (tmp_path / "mine.txt").write_text(ROW)
    with refuses("mine.txt", f"{len(ROW)} bytes", "at most 10"):
        kitti.samples(str(tmp_path / "mine.txt"))


@pytest.mark.parametrize("split", ["trian", "../train", "no/such.txt"])
def test_an_unknown_split_is_refused_with_the_names_there_are(kitti, split):
    with refuses(repr(split), "splits/NAME.txt", "available: test, train"):
        kitti.samples(split)


def test_a_root_that_is_not_kitti_is_refused_with_what_was_expected(tmp_path):
    with refuses("not a KITTI root", tmp_path / "input", "gt_depth/"):
        open_source(f"kitti:{tmp_path}")


def test_kitti_has_one_truth(tmp_path):
    fakes.make_kitti(tmp_path)
    assert open_source(f"kitti:{tmp_path}", "gt_depth").name == "kitti"
    with refuses("'dense'", "expected gt_depth"):
        open_source(f"kitti:{tmp_path}", "dense")


# Folders


def test_a_folder_lists_all_its_images_sorted(tmp_path):
    source = open_source(f"folder:{fakes.make_folder(tmp_path, ids=['b/2', 'a/10', 'c'])}")
    assert [sample.id for sample in source.samples("all")] == ["a/10", "b/2", "c"]
    assert source.samples("all")[0].image_path == f"{tmp_path}/rgb/a/10.png"


def test_a_list_called_all_goes_before_the_listing(tmp_path):
    fakes.make_folder(tmp_path)
    (tmp_path / "all.txt").write_text("a/0002\n")
    assert [sample.id for sample in open_source(f"folder:{tmp_path}").samples("all")] == ["a/0002"]


def test_a_folder_split_skips_comments_and_drops_suffixes(tmp_path):
    fakes.make_folder(tmp_path)
    (tmp_path / "mine.txt").write_text("# two of them\n\na/0002.png\nb/0001\n")
    assert [sample.id for sample in open_source(f"folder:{tmp_path}").samples("mine")] == ["a/0002", "b/0001"]


def test_folder_truth_is_in_millimetres_unless_the_folder_says_otherwise(tmp_path):
    fakes.make_folder(tmp_path)
    sample = open_source(f"folder:{tmp_path}").samples("test")[0]
    depth_m = fakes.smooth_depth_m((24, 32), 2)
    np.testing.assert_allclose(open_source(f"folder:{tmp_path}").read_truth_m(sample), depth_m, atol=6e-4)
    (tmp_path / "dataset.json").write_text('{"metres_per_unit": 0.002}')
    np.testing.assert_allclose(open_source(f"folder:{tmp_path}").read_truth_m(sample), 2 * depth_m, atol=12e-4)


@pytest.mark.parametrize("value", [0, -1, "0.001", True, None, [1]])
def test_a_wrong_scale_in_dataset_json_is_refused(tmp_path, value):
    fakes.make_folder(tmp_path)
    (tmp_path / "dataset.json").write_text(json.dumps({"metres_per_unit": value}))
    with refuses("dataset.json", repr(value), "above 0", '{"metres_per_unit": 0.001}'):
        open_source(f"folder:{tmp_path}")


def test_an_image_without_depth_file_has_no_truth(tmp_path):
    fakes.make_folder(tmp_path)
    (tmp_path / "depth/a/0002.png").unlink()
    source = open_source(f"folder:{tmp_path}")
    assert [sample.truth_path is None for sample in source.samples("all")] == [False, True, False]
    assert source.read_truth_m(source.samples("all")[1]) is None


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".pfm", ".exr"])
def test_folder_truth_of_floats_is_in_metres_unless_the_folder_says_otherwise(tmp_path, suffix):
    depth_m = fakes.smooth_depth_m((24, 32))
    holed = depth_m.copy()
    holed[0, :5] = [0, -1, np.nan, np.inf, -np.inf]
    fakes.write_image(tmp_path / "rgb/a/0001.png", fakes.image_of(depth_m))
    (tmp_path / "depth/a").mkdir(parents=True)
    array_files.write(tmp_path / f"depth/a/0001{suffix}", holed)
    expected_m = depth_m.copy()
    expected_m[0, :5] = np.nan
    for facts, scale in [("{}", 1), ('{"metres_per_unit": 0.5}', 0.5)]:
        (tmp_path / "dataset.json").write_text(facts)
        source = open_source(f"folder:{tmp_path}")
        (sample,) = source.samples("all")
        np.testing.assert_array_equal(source.read_truth_m(sample), expected_m * np.float32(scale))


def test_folder_truth_of_16_bits_is_in_millimetres_whatever_holds_it(tmp_path):
    fakes.write_image(tmp_path / "rgb/a.png", np.zeros((1, 3, 3), np.uint8))
    (tmp_path / "depth").mkdir()
    np.save(tmp_path / "depth/a.npy", np.array([[0, 1, 2500]], np.uint16))
    source = open_source(f"folder:{tmp_path}")
    truth_m = source.read_truth_m(source.samples("all")[0])
    np.testing.assert_array_equal(truth_m, np.array([[np.nan, 0.001, 2.5]], np.float32))


def test_each_image_of_a_folder_may_have_a_format_of_its_own(tmp_path):
    for seed, (image, depth) in enumerate([(".jpg", ".npy"), (".webp", ".pfm"), (".jpeg", ".png")]):
        depth_m = fakes.smooth_depth_m((24, 32), seed)
        fakes.write_image(tmp_path / f"rgb/{seed}{image}", fakes.image_of(depth_m))
        (tmp_path / "depth").mkdir(exist_ok=True)
        values = (depth_m * 1000).round().astype(np.uint16) if depth == ".png" else depth_m
        array_files.write(tmp_path / f"depth/{seed}{depth}", values)
    (tmp_path / "depth/notes.txt").touch()
    source = open_source(f"folder:{tmp_path}")
    for seed, sample in enumerate(source.samples("all")):
        depth_m = fakes.smooth_depth_m((24, 32), seed)
        np.testing.assert_allclose(source.read_truth_m(sample), depth_m, atol=6e-4)
        assert np.abs(source.read_image(sample)[0].astype(int) - fakes.image_of(depth_m)).mean() < 5


def test_two_depth_files_of_one_id_are_refused(tmp_path):
    fakes.make_folder(tmp_path)
    np.save(tmp_path / "depth/a/0001.npy", np.ones((24, 32), np.float32))
    with refuses("depth/a/0001", "two depth files", "'a/0001'", "remove one"):
        open_source(f"folder:{tmp_path}").samples("train")


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        ("500.5 0 320\n0 490 240\n0 0 1\n", {}),
        ("500.5 490 320 240", {}),
        (None, {"intrinsics": [500.5, 490, 320, 240]}),
        (None, {"intrinsics": [[500.5, 0, 320], [0, 490, 240], [0, 0, 1]]}),
    ],
)
def test_a_folder_may_tell_its_cameras_focal_length(tmp_path, text, facts):
    fakes.make_folder(tmp_path)
    assert {sample.focal_px for sample in open_source(f"folder:{tmp_path}").samples("all")} == {None}
    (tmp_path / "dataset.json").write_text(json.dumps(facts))
    if text is not None:
        (tmp_path / "K.txt").write_text(text)
    assert {sample.focal_px for sample in open_source(f"folder:{tmp_path}").samples("all")} == {500.5}


@pytest.mark.parametrize(
    ("text", "facts", "parts"),
    [
        ("500 320 240", {}, ["K.txt", "fx fy cx cy", "3x3"]),
        ("fx fy cx cy", {}, ["K.txt", "3x3"]),
        ("nan 490 320 240", {}, ["K.txt"]),
        ("0 490 320 240", {}, ["K.txt"]),
        ("500 0 320 0 490 240 0 0 2", {}, ["K.txt", "0 0 1"]),
        ("1 " * 4000, {}, ["K.txt", "8000 bytes, expected at most 4096"]),
        (None, {"intrinsics": 500}, ["dataset.json: intrinsics", "fx fy cx cy"]),
        (None, {"intrinsics": [500, 490, 320, "240"]}, ["dataset.json: intrinsics"]),
        (None, {"intrinsics": [True, 490, 320, 240]}, ["dataset.json: intrinsics"]),
        ("500 490 320 240", {"intrinsics": [500, 490, 320, 240]}, ["K.txt and dataset.json", "remove one"]),
    ],
)
def test_wrong_intrinsics_of_a_folder_are_refused(tmp_path, text, facts, parts):
    fakes.make_folder(tmp_path)
    (tmp_path / "dataset.json").write_text(json.dumps(facts))
    if text is not None:
        (tmp_path / "K.txt").write_text(text)
    with refuses(*parts):
        open_source(f"folder:{tmp_path}")


def test_images_alone_make_a_folder_source(tmp_path):
    fakes.write_image(tmp_path / "rgb/a.webp", np.zeros((4, 5, 3), np.uint8))
    (sample,) = open_source(f"folder:{tmp_path}").samples("all")
    assert (sample.id, sample.truth_path, read_rgb(sample.image_path).shape) == ("a", None, (4, 5, 3))


def test_the_truth_folder_can_be_chosen(tmp_path):
    fakes.make_scenes_folder(tmp_path)
    source = open_source(f"folder:{tmp_path}", "depth_sparse")
    assert source.samples("test")[0].truth_path == f"{tmp_path}/depth_sparse/000005.png"


@pytest.mark.parametrize("truth", ["laser", "../depth", "", "depth/a"])
def test_an_unknown_truth_folder_is_refused_with_those_there(tmp_path, truth):
    fakes.make_folder(tmp_path)
    with refuses(f"truth {truth!r}", "expected one of: depth"):
        open_source(f"folder:{tmp_path}", truth)


def test_a_folder_without_rgb_is_refused(tmp_path):
    with refuses(tmp_path / "rgb", "expected rgb/ID.png"):
        open_source(f"folder:{tmp_path}")


def test_an_empty_folder_is_refused(tmp_path):
    (tmp_path / "rgb").mkdir()
    (tmp_path / "rgb/notes.txt").touch()
    (tmp_path / "rgb/.hidden.png").touch()
    with refuses("no image in", tmp_path / "rgb", ".webp"):
        open_source(f"folder:{tmp_path}").samples("all")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a/0001\nz/9\n", ["line 2", "'z/9'", "rgb", "z/9.png", "delete the line"]),
        ("# nothing\n", ["no rows"]),
        ("a/0001\n\na/0001.png\n", ["line 3", "'a/0001'", "line 1"]),
        ("/a/0001\n", ["line 1", "is absolute"]),
        ("../a/0001\n", ["line 1", "outside the root"]),
    ],
)
def test_a_wrong_folder_list_is_refused_with_its_line(tmp_path, text, parts):
    fakes.make_folder(tmp_path)
    (tmp_path / "mine.txt").write_text(text)
    with refuses(tmp_path / "mine.txt", *parts):
        open_source(f"folder:{tmp_path}").samples("mine")


def test_two_images_of_one_id_are_refused(tmp_path):
    fakes.make_folder(tmp_path)
    fakes.write_image(tmp_path / "rgb/a/0001.jpg", np.zeros((4, 5, 3), np.uint8))
    with refuses("rgb/a/0001", "two images", "'a/0001'", "remove one"):
        open_source(f"folder:{tmp_path}").samples("all")


def test_a_link_that_leaves_the_root_is_refused(tmp_path):
    fakes.write_image(tmp_path / "other.png", np.zeros((4, 5, 3), np.uint8))
    fakes.make_folder(tmp_path / "root")
    (tmp_path / "root/rgb/x.png").symlink_to(tmp_path / "other.png")
    with refuses("rgb/x.png", "other.png", "outside the root", "copy"):
        open_source(f"folder:{tmp_path / 'root'}").samples("all")


@pytest.mark.parametrize("name", ["rgb", "depth"])
def test_a_folder_of_the_root_may_be_a_link_to_elsewhere(tmp_path, name):
    fakes.make_folder(tmp_path / "root")
    (tmp_path / "root" / name).rename(tmp_path / "elsewhere")
    (tmp_path / "root" / name).symlink_to(tmp_path / "elsewhere")
    (tmp_path / "link").symlink_to(tmp_path / "root")
    source = open_source(f"folder:{tmp_path / 'link'}")
    samples = source.samples("all")
    assert [sample.id for sample in samples] == ["a/0001", "a/0002", "b/0001"]
    assert source.read_image(samples[0])[0].shape == (24, 32, 3)
    assert source.read_truth_m(samples[0]).shape == (24, 32)


def test_a_link_in_circles_is_refused(tmp_path):
    fakes.make_folder(tmp_path)
    (tmp_path / "rgb/a/again").symlink_to(tmp_path / "rgb")
    with refuses("rgb/a/again", "circular link", "copy the files there"):
        open_source(f"folder:{tmp_path}").samples("all")


def test_two_folders_that_link_to_each_other_are_refused(tmp_path):
    fakes.make_folder(tmp_path)
    for one, other in (("one", "other"), ("other", "one")):
        (tmp_path / "rgb" / one).mkdir()
        (tmp_path / "rgb" / one / "link").symlink_to(tmp_path / "rgb" / other)
    with refuses("circular link"):
        open_source(f"folder:{tmp_path}").samples("all")


def test_a_linked_folder_within_the_root_is_read(tmp_path):
    fakes.make_folder(tmp_path)
    (tmp_path / "rgb/linked").symlink_to(tmp_path / "rgb/a")
    ids = [sample.id for sample in open_source(f"folder:{tmp_path}").samples("all")]
    assert [one for one in ids if one.startswith("linked/")] == [
        one.replace("a/", "linked/", 1) for one in ids if one.startswith("a/")
    ]


SCREENSHOT = "Screenshot 2026-11-26 at 10.15.30\u202fAM"
NAMES = {
    "narrow no-break space": SCREENSHOT,
    "full-width blank": "\u5199\u771f\u3000\uff11",
    "decomposed accent": "Cafe\u0301",
    "emoji with joiner": "\U0001f469\u200d\U0001f4bb",
    "private use": "a\uf022b",
    "left-to-right mark": "\u200eWhatsApp Image",
    "backslash": "a\\b",
}


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES.keys())
def test_names_that_a_file_system_accepts_are_ids(tmp_path, name):
    fakes.write_image(tmp_path / f"rgb/{name}.png", np.zeros((4, 5, 3), np.uint8))
    fakes.write_depth(tmp_path / f"depth/{name}.png", np.ones((4, 5), np.float32), 0.001)
    source = open_source(f"folder:{tmp_path}")
    expected = unicodedata.normalize("NFC", name)
    (tmp_path / "nfc.txt").write_text(f"{expected}.png\n")
    (tmp_path / "nfd.txt").write_text(unicodedata.normalize("NFD", name))
    for split in ("all", "nfc", "nfd"):
        (sample,) = source.samples(split)
        assert sample.id == expected
        source.read_image(sample)
        assert source.read_truth_m(sample).shape == (4, 5)


@pytest.mark.parametrize("name", [b"caf\xe9", b"a\x1b[2J", "a\u202eb".encode()], ids=["latin-1", "escape", "turned"])
def test_names_that_could_be_no_id_are_counted_and_do_not_harm_other_splits(tmp_path, name):
    fakes.make_folder(tmp_path)
    with open(os.path.join(os.fsencode(tmp_path / "rgb"), name + b".png"), "wb"):  # noqa: PTH118, PTH123 - bytes
        pass
    source = open_source(f"folder:{tmp_path}")
    (tmp_path / "mine.txt").write_text("a/0001\n")
    assert [sample.id for sample in source.samples("mine")] == ["a/0001"]
    with refuses("1 images have names with control characters", "not UTF-8", "rename"):
        source.samples("all")


def test_images_of_formats_that_are_not_read_are_named_with_their_count_once(tmp_path, caplog):
    fakes.make_folder(tmp_path)
    for name in ("x.tif", "y.TIFF"):
        (tmp_path / "rgb" / name).touch()
    source = open_source(f"folder:{tmp_path}")
    source.samples("all")
    source.samples("all")
    (record,) = caplog.records
    assert "skipped 2 images in unsupported formats (rgb/x.tif, rgb/y.TIFF); convert" in record.getMessage()


def test_suffixes_may_be_upper_case(tmp_path):
    fakes.write_image(tmp_path / "rgb/a.JPG", np.zeros((4, 5, 3), np.uint8))
    fakes.write_depth(tmp_path / "depth/a.PNG", np.ones((4, 5), np.float32), 0.001)
    source = open_source(f"folder:{tmp_path}")
    (sample,) = source.samples("all")
    assert source.read_truth_m(sample).max() == 1
    assert resolve_image(str(tmp_path / "rgb/a.png")) == str(tmp_path / "rgb/a.JPG")


def make_7_scenes(root):
    """Two sequences of 7-Scenes: N.color.png beside N.depth.png and N.pose.txt."""
    for name in ("seq-01/frame-000000", "seq-01/frame-000001", "seq-02/frame-000000"):
        fakes.write_image(root / f"{name}.color.png", np.zeros((4, 5, 3), np.uint8))
        fakes.write_depth(root / f"{name}.depth.png", np.ones((4, 5), np.float32), 0.001)
        (root / f"{name}.pose.txt").touch()
    return root


def test_patterns_of_dataset_json_lay_out_a_folder(tmp_path):
    make_7_scenes(tmp_path)
    (tmp_path / "dataset.json").write_text('{"rgb": "*.color.png", "depth": "*.depth.png"}')
    source = open_source(f"folder:{tmp_path}")
    ids = ["seq-01/frame-000000", "seq-01/frame-000001", "seq-02/frame-000000"]
    samples = source.samples("all")
    assert [sample.id for sample in samples] == ids
    assert samples[0].image_path == f"{tmp_path}/{ids[0]}.color.png"
    assert samples[0].truth_path == f"{tmp_path}/{ids[0]}.depth.png"
    assert source.read_truth_m(samples[0]).max() == 1
    (tmp_path / "mine.txt").write_text(f"{ids[2]}\n{ids[0]}.color.png\n")
    assert [sample.id for sample in source.samples("mine")] == [ids[2], ids[0]]


def test_truth_may_be_a_pattern(tmp_path):
    make_7_scenes(tmp_path)
    (tmp_path / "dataset.json").write_text('{"rgb": "seq-02/*.color.png"}')
    (sample,) = open_source(f"folder:{tmp_path}", "seq-02/*.depth.png").samples("all")
    assert (sample.id, sample.truth_path) == ("frame-000000", f"{tmp_path}/seq-02/frame-000000.depth.png")


@pytest.mark.parametrize("pattern", ["rgb", "*/*.png", "../*", "/x/*", "a//*", "*/color.png", 3])
def test_a_pattern_without_one_star_below_the_root_is_refused(tmp_path, pattern):
    make_7_scenes(tmp_path)
    (tmp_path / "dataset.json").write_text(json.dumps({"rgb": pattern}))
    with refuses("dataset.json: rgb", repr(pattern), "*.color.png"):
        open_source(f"folder:{tmp_path}")


def test_a_link_to_a_file_within_the_root_is_an_image(tmp_path):
    fakes.make_folder(tmp_path)
    (tmp_path / "rgb/x.png").symlink_to(tmp_path / "rgb/a/0001.png")
    assert "x" in [sample.id for sample in open_source(f"folder:{tmp_path}").samples("all")]


# Scenes


@pytest.mark.parametrize(("truth", "share"), [(None, 1.0), ("dense", 1.0), ("sparse", 0.25)])
def test_scenes_have_dense_and_sparse_truth(tmp_path, truth, share):
    source = open_source(f"scenes:{fakes.make_scenes_folder(tmp_path)}", truth)
    assert [len(source.samples(split)) for split in ("train", "test", "all")] == [5, 1, 6]
    truth_m = source.read_truth_m(source.samples("test")[0])
    assert np.isfinite(truth_m).mean() == share
    np.testing.assert_allclose(np.nanmax(truth_m), np.nanmax(fakes.smooth_depth_m((24, 64), 5)), atol=0.3)


@pytest.mark.parametrize(
    ("world", "bins", "sigma_m"),
    [
        (None, "log:64:1:100", 0.5),
        ("street", "log:64:1:100", 0.5),
        ("fog", "log:64:1:100", 0.5),
        ("rooms", "log:64:0.3:10", 0.15),
    ],
)
def test_scenes_have_the_defaults_of_their_world(tmp_path, world, bins, sigma_m):
    fakes.make_scenes_folder(tmp_path)
    named = {} if world is None else {"world": world}
    (tmp_path / "dataset.json").write_text(json.dumps({"metres_per_unit": 0.001, **named}))
    source = open_source(f"scenes:{tmp_path}")
    defaults = source.defaults
    assert (defaults.view, defaults.bins, defaults.sigma_m, defaults.protocol) == ("full", bins, sigma_m, "plain")
    assert source.metres_per_unit == 0.001


@pytest.mark.parametrize("world", ["moon", None, 1, ["rooms"]])
def test_scenes_of_an_unknown_world_are_refused(tmp_path, world):
    fakes.make_scenes_folder(tmp_path)
    (tmp_path / "dataset.json").write_text(json.dumps({"metres_per_unit": 0.001, "world": world}))
    with refuses(repr(world), "expected one of street, fog, rooms", f"folder:{tmp_path}"):
        open_source(f"scenes:{tmp_path}")


def test_scenes_without_description_name_the_command(tmp_path):
    fakes.make_folder(tmp_path)
    with refuses(tmp_path / "dataset.json", f"python -m scenes {tmp_path}", f"folder:{tmp_path}"):
        open_source(f"scenes:{tmp_path}")


def test_an_unknown_truth_of_scenes_is_refused(tmp_path):
    fakes.make_scenes_folder(tmp_path)
    with refuses("'depth'", "dense, sparse"):
        open_source(f"scenes:{tmp_path}", "depth")


# Real data

realdata = [
    pytest.mark.realdata,
    pytest.mark.skipif(not REAL.is_dir(), reason="needs ../shared/data"),
]


@pytest.mark.parametrize(("split", "count"), [("sample_train", 24), ("sample_test", 20)])
class TestRealKitti:
    pytestmark = realdata

    def test_every_sample_reads(self, split, count):
        source = open_source(f"kitti:{REAL / 'kitti'}")
        samples = source.samples(split)
        assert len(samples) == count
        for sample in samples:
            assert read_rgb(sample.image_path).shape == (375, 1242, 3)
            truth_m = source.read_truth_m(sample)
            assert truth_m.shape == (375, 1242)
            assert 0.01 < np.isfinite(truth_m).mean() < 0.3
            assert 0.5 < np.nanmin(truth_m) < np.nanmax(truth_m) < 130


class TestRealLists:
    pytestmark = realdata

    def test_the_eigen_lists_have_their_rows(self):
        source = open_source(f"kitti:{REAL / 'kitti'}")
        assert len(source.samples("kitti_eigen_train")) == 23_158
        test = source.samples("kitti_eigen_test")
        assert (len(test), sum(sample.truth_path is None for sample in test)) == (697, 45)

    @pytest.mark.parametrize(("split", "count"), [("train", 149), ("test", 34), ("all", 187)])
    def test_the_indoor_folder_reads(self, split, count):
        source = open_source(f"folder:{REAL / 'indoor'}")
        samples = source.samples(split)
        assert len(samples) == count
        assert samples[0].focal_px == pytest.approx(495.5678, abs=1e-4)
        assert read_rgb(samples[-1].image_path).shape == (360, 540, 3)
        assert 0.2 < np.nanmedian(source.read_truth_m(samples[-1])) < 10
