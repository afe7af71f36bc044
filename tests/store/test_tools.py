"""A store can be weighed before it is made, measured, cut, packed and compared, and nothing is lost or let in."""

import json
import re
import shutil
import stat
import struct
import tempfile
import zipfile
from pathlib import Path

import fakes
import numpy as np
import pytest
import zarr
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_stores import BINS, SIZE_PX, folder_bytes, make_store

from pipeline.cli.main import main
from pipeline.common.fileio import sha256_file
from pipeline.errors import DamagedStoreError
from pipeline.store import open_store
from pipeline.store.format.layout import MANIFEST
from pipeline.store.format.shard import build_shard
from pipeline.store.tools.archive import pack_store, unpack_store
from pipeline.store.tools.diff import compare_stores
from pipeline.store.tools.estimate import measured_costs, reference_costs
from pipeline.store.tools.stats import store_statistics
from pipeline.store.tools.subset import subset_store
from pipeline.store.tools.verify import verify_store

KINDS = ["gaussian", "sparse", "dense"]


def run(*arguments, status=0):
    done = CliRunner().invoke(main, ["store", *map(str, arguments)])
    assert done.exit_code == status, done.output
    assert "Traceback" not in done.output
    return done.output


def flip(path, place=-3):
    data = bytearray(path.read_bytes())
    data[place] ^= 4
    path.write_bytes(data)


# --- estimate ------------------------------------------------------------------------------------------------------


def test_the_reference_figures_are_those_of_the_benchmark():
    upsampled, native, png, dense = reference_costs(5e-4, "gaussian", 257)
    assert upsampled.bytes(1, (352, 1216)) == pytest.approx(82.9e3, rel=0.005)
    assert native.bytes(1, (192, 640)) == pytest.approx(37.0e3, rel=0.005)
    assert png.bytes(1, (352, 1216)) == pytest.approx(421.2e3, rel=0.005)
    assert dense.bytes(10, (352, 1216)) == 10 * 352 * 1216 * 257 * 2


def test_a_tighter_error_and_stored_maps_cost_more():
    bits = [reference_costs(error, "gaussian", 64)[0].bits_per_pixel for error in (1e-4, 3e-4, 5e-4, 1e-2)]
    assert bits == sorted(bits, reverse=True)
    kinds = [reference_costs(5e-4, kind, 64)[0].bits_per_pixel for kind in ("gaussian", "sparse", "dense")]
    assert kinds == sorted(kinds)
    with pytest.raises(ValueError, match="they reach from 0.0001 to 0.01; .*`from`"):
        reference_costs(0.1, "gaussian", 64)


@pytest.mark.parametrize("kind", KINDS)
def test_a_store_measures_what_its_chunks_take(tmp_path, kind):
    store = open_store(make_store(tmp_path / "s.zarr", kind))
    chunks = 0
    for array in store.layout.sharded():
        for number in range(array.files):
            chunks += (tmp_path / "s.zarr" / array.file(number)).stat().st_size - array.index_bytes
    assert measured_costs(store)[0].bytes(7, SIZE_PX) == pytest.approx(chunks)


def test_estimate_counts_the_images_of_a_split_and_prints_bytes_and_hours(tmp_path):
    fakes.make_kitti(tmp_path)
    given = ["--source", f"kitti:{tmp_path}", "--split", "train", "--size", "352x1216", "--ms-per-image", "1800000"]
    said = run("estimate", *given)
    assert "4 images of 352x1216 px, relative error at most 0.050%" in said
    assert re.search(r"store, maps saved larger.* 1.55 +82.9 KB +332 KB +0.20x", said)
    assert re.search(r"16-bit PNG.* 7.87 +421 KB +1.68 MB +1.00x", said)
    assert "dense float16 maps of 257 bins" in said  # the source's custom
    assert "docs/benchmarks.md" in said
    assert "hours: 2.00" in said
    assert "hours: unknown without --ms-per-image" in run("estimate", *given[:-2])


def test_estimate_from_a_store_says_where_its_figure_is_from(tmp_path):
    path = make_store(tmp_path / "s.zarr", "sparse")
    said = run("estimate", "--images", "1000", "--from", path)
    assert f"store: {path}: 7 samples of 6x10 px" in said
    assert f"dense float16 maps of {BINS} bins" in said


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "give either --source and --split, or --images"),
        (["--images", 3, "--split", "x"], "give either --source and --split, or --images"),
        (["--images", 3, "--bins", "kitti"], "give --size, the teacher's output such as 352x1216"),
        (["--images", 3, "--size", "6x10"], "give --bins, such as kitti or nyu"),
        (["--images", 3, "--from", "x", "--bins", "nyu"], "--from sets --bins"),
    ],
)
def test_estimate_says_what_it_lacks(given, message):
    assert message in run("estimate", *given, status=2)


# --- stats ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_statistics_are_those_of_numpy_over_all_samples(tmp_path, kind):
    path = make_store(tmp_path / "s.zarr", kind)
    store = open_store(path)
    whole = np.stack([store.depth_m(number) for number in range(7)]).astype(np.float64)
    found = store_statistics(path)
    depth = found["depth"]
    assert [depth[name] for name in ("min", "max", "mean")] == pytest.approx(
        [np.nanmin(whole), np.nanmax(whole), np.nanmean(whole)], rel=1e-6
    )
    assert [depth[name] for name in ("p05", "median", "p95")] == pytest.approx(
        np.nanquantile(whole, [0.05, 0.5, 0.95]), rel=1e-6
    )
    assert found["invalid_share"] == pytest.approx(np.isnan(whole).mean())
    assert found["each_sample"]["invalid_share"] == pytest.approx(np.isnan(whole).mean(axis=(1, 2)))
    assert found["max_rel_error"] == store.rows("max_rel_error").max()
    edges, pixels = found["histogram"]["edges"], found["histogram"]["pixels"]
    assert np.histogram(whole[~np.isnan(whole)], edges)[0].tolist() == pixels
    assert np.diff(np.log(edges)) == pytest.approx(np.log(edges[1] / edges[0]))
    if kind == "gaussian":
        assert "entropy_nats" not in found["dpm"]
    else:
        maps = np.stack([store.dpm(number) for number in range(7)]).astype(np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            entropy = -np.where(maps > 0, maps * np.log(maps), 0).sum(axis=1)
        assert found["dpm"]["entropy_nats"] == pytest.approx(entropy[~np.isnan(maps[:, 0])].mean(), rel=1e-4)


def test_statistics_of_relative_depth_are_shares_of_each_samples_range(tmp_path):
    found = store_statistics(make_store(tmp_path / "s.zarr", depth_space="affine_disparity"))
    assert found["unit"] == "share of each sample's own range"
    assert (found["depth"]["min"], found["depth"]["max"]) == (0, 1)


def test_clipped_pixels_are_in_the_statistics(tmp_path):
    found = store_statistics(make_store(tmp_path / "s.zarr", code_range=(10.0, 20.0)))
    assert found["clipped_share"] > 0.5
    assert 10 <= found["depth"]["min"] < found["depth"]["max"] <= 20.000001


def test_statistics_of_a_damaged_store_raise_with_the_sample(tmp_path):
    path = make_store(tmp_path / "s.zarr")
    flip(path / "depth/c/1/0/0")
    with pytest.raises(DamagedStoreError, match=r"sample 5 \(a/005\)"):
        store_statistics(path)


@pytest.mark.parametrize("kind", ["gaussian", "sparse"])
def test_stats_prints_writes_and_draws(tmp_path, kind):
    path = make_store(tmp_path / "s.zarr", kind)
    said = run("stats", path, "--out", tmp_path / "s.json", "--picture", tmp_path / "s.png")
    assert "statistics: 7/7 sample" in said
    assert re.search(r"depth +min \d.*median \d.*\(m\)", said)
    assert ("mean entropy" in said) == (kind == "sparse")
    assert json.loads((tmp_path / "s.json").read_text()) == store_statistics(path)
    assert (tmp_path / "s.png").read_bytes().startswith(b"\x89PNG")


# --- subset --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """A store of each kind, and one of relative depth."""
    folder = tmp_path_factory.mktemp("stores")
    made = {kind: make_store(folder / f"{kind}.zarr", kind) for kind in KINDS}
    return made | {"affine": make_store(folder / "affine.zarr", depth_space="affine_depth")}


@pytest.mark.parametrize("kind", [*KINDS, "affine"])
def test_a_subset_of_everything_is_the_store_byte_for_byte(tmp_path, stores, kind):
    subset_store(open_store(stores[kind]), tmp_path / "t.zarr", range(7))
    assert folder_bytes(tmp_path / "t.zarr") == folder_bytes(stores[kind])


@settings(max_examples=20)
@given(chosen=st.lists(st.integers(0, 6), min_size=1, unique=True), kind=st.sampled_from([*KINDS, "affine"]))
def test_a_subset_holds_its_samples_bit_for_bit_in_the_order_asked_for(stores, chosen, kind):
    store = open_store(stores[kind])
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "t.zarr"
        subset_store(store, path, [store.ids[number] for number in chosen])
        made = open_store(path)
        assert made.ids == [store.ids[number] for number in chosen]
        assert np.array_equal(made.image_sha256, store.image_sha256[chosen])
        for place_in, number in enumerate(chosen):
            assert np.array_equal(made.depth(place_in), store.depth(number), equal_nan=True)
            assert np.array_equal(made.dpm(place_in), store.dpm(number), equal_nan=True)
        assert verify_store(path) == []


def test_a_subset_goes_on_where_it_was_interrupted(tmp_path, stores, monkeypatch):
    from pipeline.store.write.writer import StoreWriter

    store, finish = open_store(stores["sparse"]), StoreWriter.write_shard

    def stop(writer, shard, samples):
        if shard == 1:
            raise KeyboardInterrupt
        return finish(writer, shard, samples)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(StoreWriter, "write_shard", stop)
        subset_store(store, tmp_path / "t.zarr", range(7))
    assert not (tmp_path / "t.zarr").exists()
    monkeypatch.setattr(StoreWriter, "write_shard", lambda *given: given[1] and finish(*given))  # shard 0 is there
    subset_store(store, tmp_path / "t.zarr", range(7))
    assert folder_bytes(tmp_path / "t.zarr") == folder_bytes(stores["sparse"])


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([], "no samples .* expected at least one"),
        (["a/001", "b/000"], "has no sample 'b/000'"),
        (["a/001", "a/003", "a/001"], r"duplicate sample 'a/001' \(2 times\)"),
    ],
)
def test_a_subset_of_what_is_not_there_is_refused(tmp_path, stores, samples, message):
    with pytest.raises(ValueError, match=message):
        subset_store(open_store(stores["gaussian"]), tmp_path / "t.zarr", samples)
    assert list(tmp_path.iterdir()) == []


def test_a_subset_never_copies_damage(tmp_path):
    path = make_store(tmp_path / "s.zarr")
    flip(path / "depth/c/1/0/0")
    with pytest.raises(DamagedStoreError, match=r"sample 5 \(a/005\): checksum"):
        subset_store(open_store(path), tmp_path / "t.zarr", [0, 5])
    subset_store(open_store(path), tmp_path / "u.zarr", [0, 3])
    assert verify_store(tmp_path / "u.zarr") == []


def test_a_chunk_that_is_missing_is_neither_copied_nor_counted(tmp_path):
    path = make_store(tmp_path / "s.zarr")
    shard, manifest = path / "depth/c/2/0/0", json.loads((path / MANIFEST).read_text())
    (array,) = open_store(path).layout.sharded()
    shard.write_bytes(build_shard(array, [[None]]))
    manifest["files"]["depth/c/2/0/0"] = [shard.stat().st_size, sha256_file(shard)]
    (path / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(DamagedStoreError, match=r"sample 6 \(a/006\): the chunk is missing"):
        subset_store(open_store(path), tmp_path / "t.zarr", [0, 6])
    with pytest.raises(DamagedStoreError, match=r"sample 6 \(a/006\): the chunk is missing"):
        store_statistics(path)


def test_subset_takes_ids_images_of_a_list_or_every_so_many(tmp_path, stores):
    path, split = stores["gaussian"], tmp_path / "few.txt"
    split.write_text("# mine\na/004\na/001.png gt/001.png 721.5\n")
    assert "2 of 7 samples" in run("subset", path, "--split", split, "--out", tmp_path / "t.zarr")
    assert open_store(tmp_path / "t.zarr").ids == ["a/004", "a/001"]
    run("subset", path, "--every", 3, "--out", tmp_path / "u.zarr")
    assert open_store(tmp_path / "u.zarr").ids == ["a/000", "a/003", "a/006"]
    split.write_text("a/004\nb/001\n")
    assert "few.txt line 2" in run("subset", path, "--split", split, "--out", tmp_path / "v.zarr", status=1)
    assert "t.zarr already exists" in run("subset", path, "--every", 2, "--out", tmp_path / "t.zarr", status=1)
    assert "give either" in run("subset", path, "--out", tmp_path / "v.zarr", status=2)


# --- pack and unpack -----------------------------------------------------------------------------------------------


@pytest.fixture
def packed(tmp_path, stores):
    """A packed store."""
    pack_store(stores["sparse"], tmp_path / "s.dstore")
    return tmp_path / "s.dstore"


@pytest.mark.parametrize("kind", KINDS)
def test_packing_and_unpacking_gives_every_byte_back(tmp_path, stores, kind):
    archive = tmp_path / "s.dstore"
    assert "KB" in run("pack", stores[kind], "--out", archive)
    assert "7 samples" in run("unpack", archive, "--out", tmp_path / "t.zarr")
    assert folder_bytes(tmp_path / "t.zarr") == folder_bytes(stores[kind])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s.dstore", "t.zarr"]


def test_the_same_store_packs_to_the_same_bytes_whenever_and_wherever(tmp_path, stores, packed):
    copy = tmp_path / "elsewhere.zarr"
    shutil.copytree(stores["sparse"], copy, copy_function=shutil.copyfile)
    (copy / MANIFEST).chmod(0o600)
    pack_store(copy, tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == packed.read_bytes()
    with zipfile.ZipFile(packed) as members:
        assert {info.date_time for info in members.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert members.namelist()[0] == MANIFEST


def test_zarr_opens_a_packed_store_as_it_is(packed, stores):
    store = zarr.storage.ZipStore(packed, mode="r")
    group = zarr.open_group(store, mode="r")
    whole = zarr.open_group(stores["sparse"], mode="r")
    assert np.array_equal(group["depth"][:], whole["depth"][:])
    assert np.array_equal(group["dpm/weight"][2], whole["dpm/weight"][2])
    store.close()


@pytest.mark.parametrize("damage", [flip, Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:-1])])
def test_a_damaged_store_is_not_packed(tmp_path, damage):
    path = make_store(tmp_path / "s.zarr")
    damage(path / "depth/c/1/0/0")
    with pytest.raises(DamagedStoreError, match="depth/c/1/0/0"):
        pack_store(path, tmp_path / "s.dstore")
    assert [path.name for path in tmp_path.iterdir()] == ["s.zarr"]


def test_what_exists_is_left_as_it_is(tmp_path, stores, packed):
    before = packed.read_bytes()
    with pytest.raises(ValueError, match="s.dstore already exists; .*choose another `out`"):
        pack_store(stores["dense"], packed)
    (tmp_path / "t.zarr").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="t.zarr already exists"):
        unpack_store(packed, tmp_path / "t.zarr")
    assert packed.read_bytes() == before
    assert not (tmp_path / "nowhere").exists()


def test_an_unpacking_that_was_killed_leaves_nothing_in_the_way(tmp_path, packed):
    left = tmp_path / ".t.zarr.unpacking" / "depth"
    left.mkdir(parents=True)
    (left / "zarr.json").write_text("half")
    unpack_store(packed, tmp_path / "t.zarr")
    assert verify_store(tmp_path / "t.zarr") == []
    assert not left.exists()


def rewrite(archive, change):
    """Pack again what is in an archive, after `change` has had its way with the list of (ZipInfo, content)."""
    with zipfile.ZipFile(archive) as old:
        members = [(info, old.read(info)) for info in old.infolist()]
    with zipfile.ZipFile(archive, "w") as new:
        for info, data in change(members):
            fresh = zipfile.ZipInfo(info.filename, info.date_time)
            fresh.external_attr, fresh.compress_type = info.external_attr, info.compress_type
            new.writestr(fresh, data)


def extra(name, data=b"x", mode=stat.S_IFREG | 0o644):
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    return lambda members: [*members, (info, data)]


def link(members):
    (info, _), *rest = members[::-1]
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return [*rest, (info, b"/etc/passwd")]


def bomb(members):
    info, _ = members[-1]
    info.compress_type = zipfile.ZIP_DEFLATED
    return [*members[:-1], (info, bytes(10**7))]


def longer(members):
    info, data = members[1]
    return [members[0], (info, data + b"x"), *members[2:]]


def other(members):
    info, data = members[1]
    return [members[0], (info, bytes(len(data))), *members[2:]]


def claims_more(members):
    """A manifest that asks for a terabyte."""
    info, data = members[0]
    value = json.loads(data)
    value["files"]["depth/c/0/0/0"][0] = 2**40
    return [(info, json.dumps(value).encode()), *members[1:]]


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (extra("../evil"), r"'../evil' leaves the store"),
        (extra("depth/../../evil"), r"leaves the store"),
        (extra("/etc/evil"), r"'/etc/evil' leaves the store"),
        (extra("depth\\evil"), r"leaves the store"),
        (extra("depth/"), r"is a folder"),
        (extra("evil", b"/etc/passwd", stat.S_IFLNK | 0o777), r"'evil' is a link"),
        (extra("evil", b"", stat.S_IFIFO | 0o644), r"'evil' is a link or a device"),
        (extra("evil"), r"'evil' is in the archive or in its manifest, but not in both"),
        (extra("depth/zarr.json"), r"'depth/zarr.json' is a duplicate"),
        (link, r"is a link"),
        (bomb, r"is compressed or encrypted: expected it stored"),
        (longer, r"has \d+ bytes, the manifest lists \d+"),
        (other, r"does not match"),
        (claims_more, r"depth/c/0/0/0"),
        (lambda members: members[1:], r"no member MANIFEST.json"),
        (lambda members: members[:-1], r"no member zarr.json"),
        (lambda _: [], r"no member MANIFEST.json"),
    ],
)
def test_a_hostile_archive_is_refused_and_nothing_is_written(tmp_path, packed, change, message):
    rewrite(packed, change)
    target = tmp_path / "inner" / "t.zarr"
    target.parent.mkdir()
    with pytest.raises(ValueError, match=message):
        unpack_store(packed, target)
    assert list(target.parent.iterdir()) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["inner", "s.dstore"]


def test_members_that_share_their_bytes_are_refused(tmp_path, packed):
    """As in archives of a few kilobytes that unpack to petabytes: every entry of the directory tells of all bytes."""
    data = bytearray(packed.read_bytes())
    places = [match.start() for match in re.finditer(b"PK\x01\x02", bytes(data))]
    for place in places:
        struct.pack_into("<II", data, place + 20, len(data) // 2, len(data) // 2)
    packed.write_bytes(data)
    with pytest.raises(ValueError, match=r"its members declare \d+ bytes, the file has \d+"):
        unpack_store(packed, tmp_path / "t.zarr")


@settings(max_examples=60)
@given(data=st.data())
def test_an_archive_with_any_byte_changed_is_refused_or_gives_the_same_store(stores, data):
    with tempfile.TemporaryDirectory() as place:
        archive, target = Path(place) / "s.dstore", Path(place) / "t.zarr"
        pack_store(stores["gaussian"], archive)
        whole = bytearray(archive.read_bytes())
        # Half of the trials in the directory at the end, which is a tenth of the file.
        least = data.draw(st.sampled_from([0, whole.index(b"PK\x01\x02")]))
        whole[data.draw(st.integers(least, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
        archive.write_bytes(whole)
        try:
            unpack_store(archive, target)
        except ValueError:
            assert [path.name for path in Path(place).iterdir()] == ["s.dstore"]
        else:
            assert folder_bytes(target) == folder_bytes(stores["gaussian"])


def test_what_is_no_archive_is_told(tmp_path):
    (tmp_path / "x.dstore").write_text("no archive")
    said = run("unpack", tmp_path / "x.dstore", "--out", tmp_path / "t.zarr", status=1)
    assert "not a packed store, or damaged" in said
    assert "expected a file from `pipeline store pack`" in said
    assert "No such file" in run("unpack", tmp_path / "y.dstore", "--out", tmp_path / "t.zarr", status=1)


# --- diff ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*KINDS, "affine"])
def test_a_store_and_its_copy_are_identical(tmp_path, stores, kind):
    shutil.copytree(stores[kind], tmp_path / "t.zarr")
    said = run("diff", stores[kind], tmp_path / "t.zarr")
    assert "0 of 7 compared samples differ (7 common)" in said
    assert said.endswith("identical in content\n")


def test_other_grouping_and_package_versions_are_told_and_are_no_difference_in_content(tmp_path, stores):
    other = make_store(tmp_path / "t.zarr", "sparse", samples_per_shard=2, producer={"numcodecs": "0.1"})
    said = run("diff", stores["sparse"], other)
    assert "samples_per_shard" in said
    assert "producer.numcodecs" in said
    assert said.endswith("identical in content\n")


def test_other_settings_and_samples_are_named(tmp_path, stores):
    longer = make_store(tmp_path / "t.zarr", samples=9, sigma_m=1.0, teacher={"name": "other"})
    said = run("diff", stores["gaussian"], longer, status=1)
    assert re.search(r"teacher.name +tiny +other", said)
    assert re.search(r"dpm.sigma_m +2.0 +1.0", said)
    assert "only in B: 2 of 9 samples: a/007, a/008" in said
    assert said.endswith("different\n")


def test_the_difference_of_depth_is_measured(tmp_path, stores):
    coarse = open_store(make_store(tmp_path / "t.zarr", max_rel_error=0.05))
    fine = open_store(stores["gaussian"])
    found = compare_stores(fine, coarse)
    each = [np.abs(coarse.depth_m(n).astype(np.float64) / fine.depth_m(n) - 1) for n in range(7)]
    assert found.max_rel_difference == pytest.approx(np.nanmax(each))
    assert found.median_rel_difference == pytest.approx(np.median([np.nanmedian(one) for one in each]))
    assert (found.different_depth, found.one_sided_share, found.identical) == (7, 0, False)
    assert compare_stores(fine, coarse, samples=2).compared == 2


def test_other_maps_and_other_images_are_found(tmp_path, stores, monkeypatch):
    import tiny_stores

    encode = tiny_stores.encode

    def swapped(spec, number):
        one, two = encode(spec, number), encode(spec, number + 1)
        chunks = {path: (two if path.startswith("dpm") else one).chunks[path] for path in one.chunks}
        planes = {name: two.row[name] for name in one.row if name.startswith("dpm")}
        return one._replace(chunks=chunks, row=one.row | planes | {"image_sha256": two.row["image_sha256"]})

    monkeypatch.setattr(tiny_stores, "encode", swapped)
    said = run("diff", stores["sparse"], make_store(tmp_path / "t.zarr", "sparse"), status=1)
    assert "depth: 0 of 7" in said
    assert "maps: 7 of 7 compared samples differ" in said
    assert "7 of 7 common samples have different images" in said


def test_the_same_depth_of_other_images_is_a_difference(tmp_path, stores, monkeypatch):
    import tiny_stores

    encode = tiny_stores.encode

    def renamed(spec, number):
        one = encode(spec, number)
        return one._replace(row=one.row | {"image_sha256": "ab" * 32})

    monkeypatch.setattr(tiny_stores, "encode", renamed)
    found = compare_stores(open_store(stores["gaussian"]), open_store(make_store(tmp_path / "t.zarr")))
    assert (found.other_images, found.different_depth, found.identical) == (7, 0, False)


def test_maps_that_were_packed_otherwise_are_the_same_maps(stores, monkeypatch):
    monkeypatch.setattr("pipeline.store.tools.diff.raw_chunks", lambda store, *_: [id(store)])
    for kind in ("sparse", "dense"):
        assert compare_stores(open_store(stores[kind]), open_store(stores[kind])).identical


def test_stores_that_share_nothing_are_compared_by_what_they_say(stores, teacher_store):
    said = run("diff", stores["gaussian"], teacher_store, status=1)
    assert "only in A: 7 of 7" in said
    said = run("diff", stores["gaussian"], stores["affine"], status=1)
    assert "depth was not compared" in said


def test_damage_is_not_taken_for_a_difference(tmp_path, stores):
    path = make_store(tmp_path / "t.zarr")
    flip(path / "depth/c/1/0/0")
    assert re.search(r"Error: .*t.zarr/depth/c/1/0/0, sample 5", run("diff", stores["gaussian"], path, status=1))


# --- format version 2 ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["aligned", "carried"])
def test_a_store_of_version_2_is_packed_cut_and_compared_as_any_other(tmp_path, name):
    kept = Path(__file__).parents[1] / "data" / f"v2_{name}.zarr"
    run("pack", kept, "--out", tmp_path / "one.dstore")
    run("unpack", tmp_path / "one.dstore", "--out", tmp_path / "back.zarr")
    assert folder_bytes(tmp_path / "back.zarr") == folder_bytes(kept)
    run("subset", kept, "--out", tmp_path / "cut.zarr", "--every", 3)
    cut, whole = open_store(tmp_path / "cut.zarr"), open_store(kept)
    assert (cut.spec.version, cut.ids) == (2, ["a/000", "a/003", "a/006"])
    for column in ("align_scale", "align_verdict") if name == "aligned" else ("dpm_carried_kl_nats",):
        assert np.array_equal(cut.rows(column), whole.rows(column)[[0, 3, 6]], equal_nan=True)
    assert run("diff", kept, tmp_path / "back.zarr").endswith("identical in content\n")


def test_maps_that_were_carried_over_are_told(stores):
    kept = Path(__file__).parents[1] / "data" / "v2_carried.zarr"
    assert "the teacher's, rebinned from bins of each pixel (0.0029 nats)" in run("info", kept)
    assert "rebinned at 0.0029 nats" in run("stats", kept)
    found = store_statistics(kept)["dpm"]
    assert (found["carried_from"], found["carried_kl_nats"]) == ("pixel", pytest.approx(3 / 1024))
    said = run("diff", stores["sparse"], kept, status=1)
    assert re.search(r"dpm.carried_from +absent +pixel", said)
    assert "maps: " not in said
