"""Tar shards in WebDataset's layout give what the same files in a folder give."""

import csv
import gzip
import hashlib
import json
import os
import pickle
import re
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import array_files
import fakes
import numpy as np
import pytest
from PIL import Image
from tar_shards import shards_of_folder, write_shard
from tiny_stores import folder_bytes

from pipeline.cache.plan import CacheOptions
from pipeline.cache.run import cache_teacher
from pipeline.sources.datasets import wds_rows
from pipeline.sources.datasets.wds_shards import expanded
from pipeline.sources.readers import tar_data, tar_headers
from pipeline.sources.registry import open_source
from pipeline.sources.sample_table import SampleTable
from pipeline.store import open_store
from pipeline.train.options import TrainOptions
from pipeline.train.run import train_network


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Folder of the index files of this test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tiekd-pipeline" / "wds"


@pytest.fixture
def pair(tmp_path):
    """The same eight images, with truth, as a folder and as shards."""
    folder = fakes.make_scenes_folder(tmp_path / "folder", 8, (32, 64))
    (folder / "all.txt").unlink()
    root = shards_of_folder(folder, tmp_path / "shards")
    return open_source(f"folder:{folder}"), open_source(f"wds:{root}")


def refuses(*parts):
    return pytest.raises(ValueError, match="(?s)" + ".*".join(re.escape(str(part)) for part in parts))


def png(value=0, size_px=(2, 3)):
    """Return the bytes of a small image."""
    path = Path(os.environ["XDG_CACHE_HOME"]).with_name("image.png")
    fakes.write_image(path, np.full((*size_px, 3), value, np.uint8))
    return path.read_bytes()


def ids(root, split="all"):
    return open_source(f"wds:{root}").samples(split).ids


# The same as a folder


def test_samples_images_and_truth_are_those_of_the_folder(pair):
    folder, shards = pair
    theirs, ours = folder.samples("all"), shards.samples("all")
    assert [sample.id for sample in ours] == [sample.id for sample in theirs] == ours.ids
    for one, other in zip(theirs, ours, strict=True):
        image, sha256 = shards.read_image(other)
        assert sha256 == hashlib.sha256(Path(one.image_path).read_bytes()).hexdigest()
        np.testing.assert_array_equal(image, folder.read_image(one)[0])
        np.testing.assert_array_equal(shards.read_truth_m(other), folder.read_truth_m(one))


def test_a_store_has_the_same_bytes(tmp_path, pair):
    for source in pair:
        options = CacheOptions(samples_per_shard=3, batch_size=2, bins="linear:16:0:12", sigma_m=0.5)
        cache_teacher(source, "all", fakes.factory(), tmp_path / f"{source.name}.zarr", options)
    ours, theirs = (folder_bytes(tmp_path / f"{source.name}.zarr") for source in reversed(pair))
    for files in (ours, theirs):
        del files["MANIFEST.json"]  # it has the hash of zarr.json
    assert ours.pop("zarr.json").replace(b'"name": "wds"', b'"name": "folder"') == theirs.pop("zarr.json")
    assert ours == theirs
    assert "depth/c/0/0/0" in ours


@pytest.mark.parametrize(("loss", "workers"), [("tiekd", 0), ("truth-si", 2)])
def test_a_run_has_the_same_losses_and_weights(tmp_path, pair, loss, workers):
    options = CacheOptions(samples_per_shard=3, bins="linear:16:0:12", sigma_m=0.5)
    cache_teacher(pair[0], "all", fakes.factory(), tmp_path / "t.zarr", options)
    settings = TrainOptions(student="lean-small", loss=loss, epochs=1, batch_size=2)
    for source in pair:
        out = tmp_path / f"run-{source.name}"
        train_network(source, "all", out, settings, store=open_store(tmp_path / "t.zarr"), workers=workers)
    ours, theirs = (folder_bytes(tmp_path / f"run-{source.name}") for source in reversed(pair))
    assert len(list(csv.DictReader(ours["steps.csv"].decode().splitlines()))) == 4
    for name in ("steps.csv", "student.safetensors"):
        assert ours[name] == theirs[name], name
    config, other = (json.loads(files["config.json"]) for files in (ours, theirs))
    assert config.pop("source") == "wds"
    assert other.pop("source") == "folder"
    assert config == other


@pytest.mark.parametrize("orientation", [3, 6])
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
def test_images_and_truth_are_turned_as_exif_says(tmp_path, orientation, suffix):
    depth_m, exif = fakes.smooth_depth_m((24, 32)), Image.Exif()
    exif[0x0112] = orientation
    fakes.write_image(tmp_path / f"folder/rgb/a{suffix}", fakes.image_of(depth_m))
    Image.fromarray(fakes.image_of(depth_m)).save(tmp_path / f"folder/rgb/a{suffix}", exif=exif)
    fakes.write_depth(tmp_path / "folder/depth/a.png", depth_m, 0.001)
    folder = open_source(f"folder:{tmp_path / 'folder'}")
    shards = open_source(f"wds:{shards_of_folder(tmp_path / 'folder', tmp_path / 'shards')}")
    (one,), (other,) = folder.samples("all"), shards.samples("all")
    image, sha256 = shards.read_image(other)
    np.testing.assert_array_equal(image, folder.read_image(one)[0])
    assert sha256 == folder.read_image(one)[1]
    if orientation == 6:
        np.testing.assert_array_equal(shards.read_truth_m(other), folder.read_truth_m(one))
    else:
        with refuses("part-000.tar[", "do not tell whether it is turned"):
            shards.read_truth_m(other)


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".pfm"])
def test_truth_of_floats_is_in_metres(tmp_path, suffix):
    depth_m = fakes.smooth_depth_m((24, 32))
    array_files.write(tmp_path / f"depth{suffix}", depth_m)
    truth = (tmp_path / f"depth{suffix}").read_bytes()
    write_shard(tmp_path / "s/a.tar", {"a.png": png(), f"a.depth{suffix}": truth})
    source = open_source(f"wds:{tmp_path / 's'}")
    np.testing.assert_array_equal(source.read_truth_m(source.samples("all")[0]), depth_m)


def test_units_and_invalid_values_are_those_of_dataset_json(tmp_path):
    np.save(tmp_path / "d.npy", np.array([[0, 100, 65535]], np.uint16))
    truth = (tmp_path / "d.npy").read_bytes()
    write_shard(tmp_path / "s/a.tar", {"a.png": png(0, (1, 3)), "a.depth.npy": truth})
    (tmp_path / "s/dataset.json").write_text('{"metres_per_unit": 0.01, "invalid": 65535}')
    source = open_source(f"wds:{tmp_path / 's'}")
    truth_m = source.read_truth_m(source.samples("all")[0])
    np.testing.assert_array_equal(truth_m, np.array([[np.nan, 1, np.nan]], np.float32))


def test_another_truth_is_chosen_by_its_extension(tmp_path):
    for name in ("near", "far"):
        np.save(tmp_path / f"{name}.npy", np.full((2, 3), len(name), np.float32))
    truths = {f"a.{name}.npy": (tmp_path / f"{name}.npy").read_bytes() for name in ("near", "far")}
    write_shard(tmp_path / "s/a.tar", {"a.png": png(), **truths})
    for name in ("near", "far"):
        source = open_source(f"wds:{tmp_path / 's'}", name)
        assert (source.read_truth_m(source.samples("all")[0]) == len(name)).all()
    source = open_source(f"wds:{tmp_path / 's'}")
    assert source.read_truth_m(source.samples("all")[0]) is None


# Keys


def test_a_key_ends_at_the_first_dot_of_the_file_name(tmp_path):
    names = ["v1.0/a.jpg", "v1.0/a.seg.png", "b.JPG", "./c.webp", ".hidden.jpg", "d/.e.png", "f.txt", "no_dot", "g.cls"]
    write_shard(tmp_path / "a.tar", dict.fromkeys(names, b"x"))
    assert ids(tmp_path) == ["v1.0/a", "b", "c"]


def test_long_and_accented_names_are_ids_in_every_format_of_tar(tmp_path):
    names = ["d" * 120 + "/" + "e" * 130, "e\u0301te\u0301"]
    for tar_format in (0, 1, 2):
        (tmp_path / f"{tar_format}").mkdir()
        members = {f"{name}.jpg": b"x" for name in (names if tar_format else [names[1]])}
        write_shard(tmp_path / f"{tar_format}/a.tar", members, tar_format)
        assert ids(tmp_path / f"{tar_format}")[-1] == "\u00e9t\u00e9"
    assert ids(tmp_path / "2")[0] == names[0]


# Splits


@pytest.fixture
def root(tmp_path):
    """Shards with one image each, whose id is the shard's path."""
    for name in ("train-000", "train-001", "train-002", "train-extra-000", "val", "test/x0", "test/deep/x1"):
        write_shard(tmp_path / f"{name}.tar", {f"{name}.png": png()})
    (tmp_path / "mine.txt").write_text("# some\nval.tar\n\ntrain-{001..002}.tar\n")
    (tmp_path / ".hidden.tar").write_bytes(b"")
    return tmp_path


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ("all", "test/deep/x1 test/x0 train-000 train-001 train-002 train-extra-000 val"),
        ("train", "train-000 train-001 train-002"),
        ("val", "val"),
        ("test", "test/deep/x1 test/x0"),
        ("mine", "val train-001 train-002"),
        ("train-*.tar", "train-000 train-001 train-002 train-extra-000"),
        ("train-{002..002}.tar", "train-002"),
        ("{val,train-000}.tar", "val train-000"),
        ("test/*", "test/x0"),
        ("val.tar", "val"),
    ],
)
def test_a_split_selects_shards(root, split, expected):
    assert ids(root, split) == expected.split()


def test_a_list_may_be_anywhere(root, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/l.txt").write_text("val.tar\n")
    assert ids(root, str(tmp_path / "elsewhere/l.txt")) == ["val"]


def test_a_root_may_be_a_pattern(root):
    source = open_source(f"wds:{root}/train-{{000..001}}.tar")
    assert source.samples("all").ids == ["train-000", "train-001"]
    assert source.root == root
    with refuses("split 'val'", "train-000.tar, train-001.tar"):
        source.samples("val")


@pytest.mark.parametrize(
    ("split", "parts"),
    [
        ("nothing", ["split 'nothing'", "NAME.tar", "train-000..099", "has test/deep/x1.tar", "..."]),
        ("train-{000..003}.tar", ["no shard 'train-003.tar' below", "copy it"]),
        ("none-*.tar", ["no shard 'none-*.tar'"]),
        ("../*.tar", ["path '../*.tar' is absolute, outside the root"]),
        ("train-{000..}.tar", ["{000..}", "expected a range such as {000..099}"]),
        ("train-{0..9999999}.tar", ["at most 1000000 names"]),
        ("train-{000.tar", ["brace without its counterpart"]),
        ("nothing.txt", ["split 'nothing.txt'"]),
    ],
)
def test_a_split_without_shards_is_refused(root, split, parts):
    with refuses(*[part.replace("train-000..099", "train-{000..099}") for part in parts]):
        ids(root, split)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("val.tar\nval.tar\n", ["line 2", "duplicate shard 'val.tar' (first on line 1)"]),
        ("val\n", ["line 1", "'val', expected a shard or a pattern that ends in .tar"]),
        ("\n# none\n", ["no rows"]),
        ("/val.tar\n", ["line 1", "absolute"]),
    ],
)
def test_a_wrong_list_is_refused_with_its_line(root, text, parts):
    (root / "wrong.txt").write_text(text)
    with refuses("wrong.txt", *parts):
        ids(root, "wrong")


def test_braces_count_with_the_zeros_of_the_first_number():
    assert expanded("a-{08..10}-{x,y}.tar", "") == [f"a-{n}-{x}.tar" for n in ("08", "09", "10") for x in "xy"]


@pytest.mark.parametrize("name", ["shards", "shards.tar", "missing/train-*.tar"])
def test_a_root_that_is_neither_a_folder_nor_shards_is_refused(tmp_path, name):
    with refuses(str(tmp_path)):
        open_source(f"wds:{tmp_path / name}")


def test_a_root_without_shards_is_refused(tmp_path):
    with refuses(f"wds:{tmp_path}", "no .tar file"):
        open_source(f"wds:{tmp_path}")


@pytest.mark.parametrize("split", ["all", "train", "train-*.tar.gz", "train-{000..001}.tar.gz"])
def test_a_compressed_shard_is_refused_and_not_left_out(root, split):
    (root / "train-001.tar.gz").write_bytes(gzip.compress((root / "train-001.tar").read_bytes()))
    (root / "train-000.tar.gz").write_bytes(b"")
    with refuses(".tar.gz is compressed", "decompress it once"):
        ids(root, split)


def test_images_of_one_key_in_two_shards_are_refused(root):
    write_shard(root / "zz.tar", {"val.png": png()})
    with refuses("duplicate key 'val' in val.tar and zz.tar", "put each shard's members into a folder"):
        ids(root)
    assert "val" in ids(root, "val")


# Many images


def test_opening_reads_headers_alone_and_once(tmp_path, monkeypatch):
    image = png(7, (64, 64)) + bytes(100_000)
    write_shard(tmp_path / "s/a.tar", {f"{number}.jpg": image for number in range(50)})
    read, pread = [], os.pread
    monkeypatch.setattr(os, "pread", lambda *given: read.append(len(data := pread(*given))) or data)
    assert len(ids(tmp_path / "s")) == 50
    assert 0 < sum(read) < 50 * 600
    read.clear()
    assert len(ids(tmp_path / "s")) == 50
    assert not read


def test_a_table_of_many_images_takes_tens_of_bytes_each(tmp_path):
    for shard in range(4):
        write_shard(tmp_path / f"s/{shard}.tar", [(f"f{shard}/{number:05d}.jpg", b"") for number in range(5000)])
    table = open_source(f"wds:{tmp_path / 's'}").samples("all")
    assert len(table) == 20_000
    assert len(pickle.dumps(table)) < 64 * 20_000
    assert SampleTable.of(table) is table
    assert (table[0].id, table[-1].id, table[12_345].id) == ("f0/00000", "f3/04999", "f2/02345")
    assert [row.id for row in table[4999:5001]] == ["f0/04999", "f1/00000"]
    with pytest.raises(IndexError):
        table[20_000]


def test_no_more_shards_are_open_than_the_limit(root, monkeypatch):
    monkeypatch.setattr(tar_data, "OPEN_FILES", 2)
    source = open_source(f"wds:{root}")
    for sample in [*source.samples("all")] * 2:
        source.read_image(sample)
        assert sum(target.endswith(".tar") for target in open_files()) <= 2


def open_files():
    """Return the targets of the open files of this process."""
    return [str(path.readlink()) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]


def test_threads_read_the_right_images_while_shards_are_closed(tmp_path, monkeypatch):
    monkeypatch.setattr(tar_data, "OPEN_FILES", 1)
    for value in range(8):
        write_shard(tmp_path / f"s/{value}.tar", {f"{value}.png": png(value)})
    source = open_source(f"wds:{tmp_path / 's'}")
    samples = [*source.samples("all")] * 25
    with ThreadPoolExecutor(8) as pool:
        values = list(pool.map(lambda sample: int(source.read_image(sample)[0][0, 0, 0]), samples))
    assert values == [int(sample.id) for sample in samples]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_source_with_open_shards_reads_in_another_process(root, method):
    source = open_source(f"wds:{root}")
    samples = source.samples("all")
    source.read_image(samples[0])
    with get_context(method).Pool(1) as pool:
        images = pool.map(source.read_image, list(samples))
    assert [sha256 for _, sha256 in images] == [source.read_image(sample)[1] for sample in samples]


# The index


def scans(monkeypatch):
    """Count scans of headers."""
    scanned, scan = [], wds_rows.scan_tar
    monkeypatch.setattr(wds_rows, "scan_tar", lambda path: scanned.append(path) or scan(path))
    return scanned


def test_the_data_folder_is_not_written_to(root):
    before = folder_bytes(root)
    ids(root)
    after = {name: data for name, data in folder_bytes(root).items() if not name.startswith("cache/")}
    assert after == before


def test_a_changed_shard_is_scanned_again_and_no_other(root, monkeypatch):
    ids(root)
    scanned = scans(monkeypatch)
    write_shard(root / "val.tar", {"new.png": png(), "more.png": png()})
    assert {"new", "more"} < set(ids(root))
    assert scanned == [f"{root}/val.tar"]


def test_a_shard_of_the_same_size_and_another_time_is_scanned_again(root):
    ids(root)
    write_shard(root / "val.tar", {"new.png": png()})
    os.utime(root / "val.tar", ns=(1, 1))
    assert "new" in ids(root)


@pytest.mark.parametrize("damage", ["empty", "cut", "other"])
def test_a_damaged_index_is_made_again(root, cache, damage):
    expected = ids(root)
    for path in cache.iterdir():
        data = path.read_bytes()
        path.write_bytes({"empty": b"", "cut": data[: len(data) // 2], "other": b"PK\x03\x04" + bytes(99)}[damage])
    assert ids(root) == expected
    assert all(path.stat().st_size > 99 for path in cache.iterdir())


def test_without_a_folder_to_write_to_the_index_is_in_memory(root, cache, monkeypatch):
    cache.parent.mkdir(parents=True)
    cache.write_bytes(b"a file in its place")
    assert len(ids(root)) == 7
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    assert len(ids(root)) == 7


def test_no_temporary_file_stays_in_the_index(root, cache):
    ids(root)
    assert all(re.fullmatch(r"[0-9a-f]{32}\.npz", path.name) for path in cache.iterdir())
    assert len(list(cache.iterdir())) == 7


def test_a_shard_that_changes_while_it_is_used_is_refused(root):
    source = open_source(f"wds:{root}")
    first, *_, last = source.samples("all")
    source.read_image(first)
    for sample in (first, last):
        shard = Path(sample.image_path.partition("[")[0])
        with shard.open("r+b") as file:
            file.write(b"x")
        os.utime(shard, ns=(1, 1))
        with refuses(sample.image_path, "has changed since its headers were read", "run the same command again"):
            source.read_image(sample)


def test_a_shard_that_is_gone_is_named(root):
    source = open_source(f"wds:{root}")
    sample = source.samples("val")[0]
    (root / "val.tar").unlink()
    with refuses(f"image {root}/val.tar[", "No such file"):
        source.read_image(sample)


def test_scanning_many_shards_is_noted(root, monkeypatch, caplog):
    monkeypatch.setattr(wds_rows, "NOTED_SHARDS", 7)
    ids(root)
    ids(root)
    assert [record.getMessage().partition(": ")[2] for record in caplog.records] == [
        "reading the headers of 7 shards; they are then in an index"
    ]


def test_the_limit_of_a_member_is_that_of_a_file(root, monkeypatch):
    monkeypatch.setattr(tar_headers, "LIMIT_HEADER_BYTES", 10**6)
    source = open_source(f"wds:{root}")
    sample = source.samples("val")[0]
    huge = sample._replace(image_path=f"{root}/val.tar[0:{2**40}]/val.png")
    with refuses(f"image {huge.image_path}: {2**40} bytes, expected at most"):
        source.read_image(huge)
