"""A store is whole or absent, readable by others, and refuses what it was not written as."""

import json
import os
import pickle
import shutil
import subprocess
import sys
import warnings
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from itertools import pairwise
from multiprocessing import get_context

import fakes
import numpy as np
import pytest
import zarr
from paths import SUPPORT
from tiny_stores import BINS, SIZE_PX, encode, folder_bytes, make_maps, make_spec, make_store, write_shards

from pipeline.errors import DamagedStoreError
from pipeline.store import open_store
from pipeline.store.format.codec import LogCodec, codes_of_residual, decode_chunk
from pipeline.store.format.layout import ArrayLayout
from pipeline.store.tools.verify import verify_store
from pipeline.store.write.columns import column_files
from pipeline.store.write.journal import Journal, ShardRecord
from pipeline.store.write.writer import StoreWriter, encode_sample

KINDS = ["gaussian", "sparse", "dense"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_store_gives_back_depth_and_maps_within_its_error(tmp_path, kind):
    store = open_store(make_store(tmp_path / "s.zarr", kind))
    assert len(store) == 7
    assert store.ids[3] == "a/003"
    for number in range(7):
        depth_m, dpm = make_maps(number, kind)
        back = store.depth_m(number)
        assert np.array_equal(np.isnan(back), np.isnan(depth_m))
        assert np.nanmax(np.abs(back / depth_m - 1)) <= 5e-4
        maps = store.dpm(f"a/{number:03d}")
        assert maps.shape == (BINS, *SIZE_PX)
        if dpm is None:
            assert np.isnan(maps[:, 0, number % 10]).all()
            assert np.nansum(maps, axis=0)[1:] == pytest.approx(1, abs=1e-5)
        else:
            assert np.abs(maps - dpm).max() < (0.05 if kind == "sparse" else 1e-3)
    assert store.rows("max_rel_error").max() <= 5e-4
    assert store.rows("invalid_share") == pytest.approx(1 / 60)
    assert verify_store(tmp_path / "s.zarr") == []


@pytest.mark.parametrize("kind", KINDS)
def test_plain_zarr_reads_a_store_without_a_warning_and_to_the_same_metres(tmp_path, kind):
    path = make_store(tmp_path / "s.zarr", kind)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        group = zarr.open_group(path, mode="r")
        names = [name for name, _ in group.members(max_depth=None)]
        codes = codes_of_residual(group["depth"][4])
        id_bytes = bytes(group["sample/id"][4])
        edges = group["dpm/bin_edges"][:]
    header = group.attrs["depth_store"]
    assert header["version"] == 1
    assert "depth" in names
    codec = header["codec"]
    metres = LogCodec(codec["bits"], codec["lo_m"], codec["hi_m"]).decode(codes)
    assert np.array_equal(metres, open_store(path).depth_m(4), equal_nan=True)
    assert id_bytes.rstrip(b"\0") == b"a/004"
    assert np.array_equal(edges, np.linspace(0.5, 40, BINS + 1))


def test_the_same_inputs_give_the_same_bytes(tmp_path):
    one, two = (make_store(tmp_path / name / "s.zarr", "sparse") for name in ("one", "two"))
    assert folder_bytes(one) == folder_bytes(two)


def test_nothing_of_the_machine_is_in_a_store(tmp_path):
    whole = b"".join(folder_bytes(make_store(tmp_path / "s.zarr")).values())
    for private in (str(tmp_path), os.uname().nodename):
        assert private.encode() not in whole


def test_an_interrupted_store_goes_on_to_the_same_bytes(tmp_path):
    whole = folder_bytes(make_store(tmp_path / "whole.zarr", "sparse"))
    target = tmp_path / "s.zarr"
    spec, ids = make_spec("sparse")
    with StoreWriter(target, spec, ids) as writer:
        write_shards(writer, [1])
    assert not target.exists()
    with StoreWriter(target, spec, ids) as writer:
        assert writer.todo == [0, 2]
        write_shards(writer, writer.todo)
        writer.finish()
    assert folder_bytes(target) == whole
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s.zarr", "whole.zarr"]


def test_a_torn_journal_line_costs_its_shard_alone(tmp_path):
    spec, ids = make_spec()
    with StoreWriter(tmp_path / "s.zarr", spec, ids) as writer:
        write_shards(writer, [0, 1])
        journal = writer.staging / "journal"
    journal.write_bytes(journal.read_bytes()[:-20])
    with StoreWriter(tmp_path / "s.zarr", spec, ids) as writer:
        assert writer.todo == [1, 2]
    assert list(Journal(journal).read()) == [0]


def test_the_last_check_tells_how_far_it_is(tmp_path):
    class Told(fakes.StopAt):
        def task(self, title, total, unit, done=0):
            self.announced = (title, total, unit)
            return super().task(title, total, unit, done)

    spec, ids = make_spec()
    told = Told(None)
    with StoreWriter(tmp_path / "s.zarr", spec, ids) as writer:
        write_shards(writer, writer.todo)
        size = sum(record.size_bytes for record in writer.finished.values())
        writer.finish(told)
    assert told.announced == ("check what was written", size, "B")
    assert told.done == size


@pytest.mark.parametrize("rows_a_file", [1, 2, 5, 7, 8, 100])
def test_columns_are_cut_into_files_wherever_the_shards_end(rows_a_file):
    shas = np.random.default_rng(0).integers(0, 256, (7, 32), np.uint8)
    records = [
        ShardRecord(
            shard,
            (1, 1),
            {},
            {
                "image_sha256": [row.tobytes().hex() for row in shas[begin:end]],
                "align_scale": [None if number == 4 else number / 3 for number in range(begin, end)],
            },
        )
        for shard, (begin, end) in enumerate(pairwise([0, 3, 6, 7]))
    ]
    ids = [f"{number}" * (number + 1) for number in range(7)]
    scales = np.array([0, 1 / 3, 2 / 3, 1, np.nan, 5 / 3, 2])
    named = np.array([list(name.encode().ljust(8, b"\0")) for name in ids], np.uint8)
    for name, whole in (("image_sha256", shas), ("align_scale", scales), ("id", named)):
        array = ArrayLayout(f"sample/{name}", whole.shape, whole.dtype, (rows_a_file, *whole.shape[1:]))
        files = dict(column_files(array, ids, records))
        assert list(files) == [array.file(number) for number in range(array.files)]
        parts = [decode_chunk(data, array.chunk, array.dtype) for data in files.values()]
        found = np.concatenate(parts)
        assert np.array_equal(found[:7], whole, equal_nan=whole.dtype.kind == "f")
        assert not found[7:].any()


def test_a_shard_that_rotted_before_the_end_is_made_again(tmp_path):
    spec, ids = make_spec()
    target = tmp_path / "s.zarr"
    with StoreWriter(target, spec, ids) as writer:
        write_shards(writer, writer.todo)
        shard = writer.staging / "store" / "depth/c/1/0/0"
        data = bytearray(shard.read_bytes())
        data[-1] ^= 1
        shard.write_bytes(data)
        with pytest.raises(ValueError, match=r"shards \[1\] .* changed since they were written"):
            writer.finish()
    with StoreWriter(target, spec, ids) as writer:
        assert writer.todo == [1]
        write_shards(writer, [1])
        writer.finish()
    assert verify_store(target) == []


@pytest.mark.parametrize(
    "change",
    [
        {"teacher": {"name": "other"}},
        {"view": "kb"},
        {"max_rel_error": 1e-3},
        {"samples_per_shard": 2},
        {"sigma_m": 1.0},
        {"source": {"name": "folder", "samples": 7, "ids_sha256": "other"}},
    ],
)
def test_a_run_with_other_settings_never_finds_the_shards(tmp_path, change):
    spec, ids = make_spec()
    with StoreWriter(tmp_path / "s.zarr", spec, ids) as writer:
        write_shards(writer, [0])
    other, _ = make_spec(**change)
    with StoreWriter(tmp_path / "s.zarr", other, ids) as second:
        assert second.finished == {}
        assert second.other_stagings() == [writer.staging]


def test_a_finished_store_is_never_written_over(tmp_path):
    path = make_store(tmp_path / "s.zarr")
    spec, ids = make_spec()
    with (
        pytest.raises(ValueError, match="s.zarr already exists; .*choose another `out`"),
        StoreWriter(path, spec, ids),
    ):
        pass


def test_a_second_writer_is_refused_and_told_who_holds_the_target(tmp_path):
    spec, ids = make_spec()
    with StoreWriter(tmp_path / "s.zarr", spec, ids):
        code = (
            "import sys; sys.path.insert(0, sys.argv[1])\n"
            "from pathlib import Path; from tiny_stores import make_store\n"
            "make_store(Path(sys.argv[2]))"
        )
        other = subprocess.run(
            [sys.executable, "-c", code, SUPPORT, tmp_path / "s.zarr"], capture_output=True, text=True
        )
    assert other.returncode != 0
    assert f"is being written by process {os.getpid()}" in other.stderr


def test_a_writer_that_is_killed_leaves_no_lock(tmp_path):
    code = (
        "import os, sys; sys.path.insert(0, sys.argv[1]); from tiny_stores import *; from pathlib import Path\n"
        "spec, ids = make_spec()\n"
        "with StoreWriter(Path(sys.argv[2]), spec, ids) as writer:\n"
        "    write_shards(writer, [0]); os.kill(os.getpid(), 9)"
    )
    killed = subprocess.run([sys.executable, "-c", code, SUPPORT, tmp_path / "s.zarr"], capture_output=True)
    assert killed.returncode == -9
    spec, ids = make_spec()
    with StoreWriter(tmp_path / "s.zarr", spec, ids) as writer:
        assert writer.todo == [1, 2]


def test_samples_of_two_sizes_are_refused_with_both_named(tmp_path):
    spec, ids = make_spec()
    odd = encode(spec, 2)._replace(size_px=(5, 5))
    with (
        StoreWriter(tmp_path / "s.zarr", spec, ids) as writer,
        pytest.raises(ValueError, match="a/002 is 5x5 px, for the first sample 6x10"),
    ):
        writer.write_shard(0, [encode(spec, 0), encode(spec, 1), odd])


def test_an_unfinished_store_does_not_open_and_says_how_to_go_on(tmp_path):
    spec, ids = make_spec()
    with StoreWriter(tmp_path / "s.zarr", spec, ids) as writer:
        write_shards(writer, [0])
    with pytest.raises(ValueError, match=r"is not complete .*run the same `pipeline cache-teacher` command again"):
        open_store(tmp_path / "s.zarr")


def test_a_folder_that_is_no_store_does_not_open(tmp_path):
    with pytest.raises(ValueError, match=r"is not a complete store: MANIFEST.json is missing"):
        open_store(tmp_path)


def flip(path, place):
    data = bytearray(path.read_bytes())
    data[place] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize("kind", KINDS)
def test_damage_raises_for_its_samples_and_leaves_the_others_readable(tmp_path, kind):
    path = make_store(tmp_path / "s.zarr", kind)
    flip(path / "depth/c/1/0/0", -3)  # in the last sample of the second shard
    store = open_store(path)
    with pytest.raises(DamagedStoreError, match=r"depth/c/1/0/0, sample 5 \(a/005\): checksum"):
        store.depth_m(5)
    for sound in (0, 3, 4, 6):
        store.depth_m(sound)
    (damage,) = verify_store(path)
    assert damage.file == "depth/c/1/0/0"
    assert damage.samples == ["a/003", "a/004", "a/005"]


def test_a_missing_shard_raises_and_never_reads_as_zeros(tmp_path):
    path = make_store(tmp_path / "s.zarr")
    (path / "depth/c/0/0/0").unlink()
    store = open_store(path)
    with pytest.raises(DamagedStoreError, match="No such file"):
        store.depth_m(0)
    store.depth_m(6)
    assert [damage.samples for damage in verify_store(path)] == [["a/000", "a/001", "a/002"]]


def test_swapped_shards_are_found(tmp_path):
    path = make_store(tmp_path / "s.zarr")
    one, two = path / "depth/c/0/0/0", path / "depth/c/1/0/0"
    data = one.read_bytes(), two.read_bytes()
    one.write_bytes(data[1])
    two.write_bytes(data[0])
    assert {damage.file for damage in verify_store(path)} == {"depth/c/0/0/0", "depth/c/1/0/0"}


def test_a_changed_metadata_file_does_not_open(tmp_path):
    path = make_store(tmp_path / "s.zarr")
    node = path / "depth/zarr.json"
    node.write_text(node.read_text().replace("zstd", "lz4 "))
    with pytest.raises(DamagedStoreError, match=r"depth/zarr.json does not match its sha256 in the manifest"):
        open_store(path)


def forge(path, file, change):
    """Change a JSON file of a store and its manifest with it, as an attacker would."""
    from pipeline.common.fileio import sha256_bytes

    value = json.loads((path / file).read_text())
    change(value)
    data = json.dumps(value).encode()
    (path / file).write_bytes(data)
    manifest = json.loads((path / "MANIFEST.json").read_text())
    manifest["files"][file] = [len(data), sha256_bytes(data)]
    (path / "MANIFEST.json").write_text(json.dumps(manifest))


def set_header(key, value):
    def change(node):
        node["attributes"]["depth_store"][key] = value

    return change


def set_carried(node):
    node["attributes"]["carried_from"] = "pixel"


def drop_space(node):
    del node["attributes"]["depth_store"]["depth_space"]


def pickle_codec(node):
    node["codecs"][0]["configuration"]["codecs"][1] = {"name": "pickle"}


def huge(node):
    node["shape"] = [7, 2**31, 2**31]


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("zarr.json", set_header("version", 4), "store format version 4: this program reads versions 1 to 3"),
        ("zarr.json", set_header("version", value=True), "store format version True"),
        ("zarr.json", set_header("version", 2), "keys that format version 2 lacks"),
        ("zarr.json", set_header("alignment", {"fit": "x"}), "metric_m has an alignment"),
        ("zarr.json", set_header("alignment", None), "keys that format version 1 lacks"),
        ("dpm/zarr.json", set_carried, "gaussian maps follow from depth"),
        ("zarr.json", drop_space, "`depth_space` is missing"),
        ("zarr.json", set_header("depth_space", "furlongs"), "depth space 'furlongs'"),
        ("zarr.json", set_header("samples_per_shard", -3), "-3 in the store's attributes"),
        ("depth/zarr.json", pickle_codec, "not the metadata that format version 1 prescribes"),
        ("depth/zarr.json", huge, "expected 1 to 67108864 pixels"),
        (
            "sample/id/zarr.json",
            huge,
            "arrays do not follow the store format|prescribes|too many values",
        ),
    ],
)
def test_a_forged_store_is_refused_when_it_is_opened(tmp_path, file, change, message):
    path = make_store(tmp_path / "s.zarr")
    forge(path, file, change)
    with pytest.raises(ValueError, match=message):
        open_store(path)


@pytest.mark.parametrize(("version", "message"), [(2, "has version 2, but the attributes have 1"), (4, "reads 1 to 3")])
def test_a_manifest_of_another_version_than_the_store_is_refused(tmp_path, version, message):
    path = make_store(tmp_path / "s.zarr")
    manifest = json.loads((path / "MANIFEST.json").read_text())
    (path / "MANIFEST.json").write_text(json.dumps(manifest | {"version": version}))
    with pytest.raises(ValueError, match=message):
        open_store(path)


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "a//b"])
def test_a_manifest_that_leads_out_of_the_store_is_refused(tmp_path, name):
    path = make_store(tmp_path / "s.zarr")
    manifest = json.loads((path / "MANIFEST.json").read_text())
    manifest["files"][name] = [1, "00"]
    (path / "MANIFEST.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="leaves the store"):
        open_store(path)


def test_a_link_in_the_place_of_a_shard_is_not_followed(tmp_path):
    path = make_store(tmp_path / "s.zarr")
    shard = path / "depth/c/0/0/0"
    shutil.move(shard, tmp_path / "elsewhere")
    shard.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DamagedStoreError, match="depth/c/0/0/0"):
        open_store(path).depth_m(0)


def test_a_sample_that_the_store_lacks_is_named_with_what_to_do(tmp_path):
    store = open_store(make_store(tmp_path / "s.zarr"))
    with pytest.raises(ValueError, match="has no sample 'b/000' .*run `pipeline cache-teacher`"):
        store.depth_m("b/000")
    with pytest.raises(IndexError, match="samples 0 to 6, got 7"):
        store.depth_m(7)


def test_depth_that_was_read_stays_as_it_is_when_others_are_read(tmp_path):
    path = make_store(tmp_path / "s.zarr")
    kept = [open_store(path).depth_m(number) for number in range(7)]
    store = open_store(path)
    read = [store.depth_m(number) for number in range(7)]
    assert all(np.array_equal(one, other, equal_nan=True) for one, other in zip(kept, read, strict=True))
    assert not any(np.shares_memory(one, other) for one, other in pairwise(read))


def test_threads_with_a_store_each_read_what_one_reads_alone(tmp_path):
    path = make_store(tmp_path / "s.zarr")
    alone = [open_store(path).depth_m(number) for number in range(7)]

    def same(start):
        store = open_store(path)
        order = [(start + step) % 7 for step in range(70)]
        return all(np.array_equal(store.depth_m(number), alone[number], equal_nan=True) for number in order)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(same, range(4)))


def test_relative_depth_is_not_handed_out_as_metres(tmp_path):
    path = make_store(tmp_path / "s.zarr", depth_space="affine_disparity")
    store = open_store(path)
    with pytest.raises(ValueError, match="affine_disparity, which is not in metres"):
        store.depth_m(0)
    given, _ = make_maps(0)
    assert store.spec.dpm_attributes() == {"kind": "gaussian", "sigma_share": 2.0}
    span = np.nanmax(given) - np.nanmin(given)
    assert np.nanmax(np.abs(store.depth(0) - given)) <= 5e-4 * span


@pytest.mark.parametrize("kind", ["sparse", "dense"])
def test_what_carrying_maps_over_cost_is_a_column(tmp_path, kind):
    spec, ids = make_spec(kind, carried_from="image")
    given = [0.0, 0.25, 1e-3, 2e-3, 3e-3, 4e-3, 5e-3]
    with StoreWriter(tmp_path / "s.zarr", spec, ids) as writer:
        for shard in writer.todo:
            samples = [encode_sample(spec, *make_maps(n, kind), given[n]) for n in spec.shard_samples(shard)]
            for sample in samples:
                sample.row.update(image_sha256="0" * 64, image_size_px=[12, 20])
            writer.write_shard(shard, samples)
        writer.finish()
    store = open_store(tmp_path / "s.zarr")
    assert store.spec.carried_from == "image"
    assert store.rows("dpm_carried_kl_nats") == pytest.approx(given)
    assert verify_store(tmp_path / "s.zarr") == []


@pytest.mark.parametrize("cost", [np.nan, np.inf, -0.1])
def test_a_cost_of_carrying_over_that_is_none_is_refused(cost):
    spec, _ = make_spec("sparse", carried_from="fixed")
    with pytest.raises(ValueError, match="nats: expected a finite number, 0 or above"):
        encode_sample(spec, *make_maps(0, "sparse"), cost)


def test_only_maps_of_the_teacher_are_carried_over():
    with pytest.raises(ValueError, match="maps rebinned from 'nowhere': expected one of fixed, image, pixel"):
        make_spec("sparse", carried_from="nowhere")
    with pytest.raises(ValueError, match="gaussian maps follow from depth"):
        make_spec("gaussian", carried_from="fixed")


def read_in_worker(store):
    return store.depth_m(2)


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_a_store_is_read_the_same_in_worker_processes(tmp_path, start):
    store = open_store(make_store(tmp_path / "s.zarr"))
    here = store.depth_m(2)
    with ProcessPoolExecutor(2, mp_context=get_context(start)) as pool:
        for there in pool.map(read_in_worker, [store] * 4):
            assert np.array_equal(here, there, equal_nan=True)
    assert np.array_equal(pickle.loads(pickle.dumps(store)).depth_m(2), here, equal_nan=True)
