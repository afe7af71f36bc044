"""Format version 3, a draft: signals, features, cameras and relations of a store."""

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from stores_v3 import KINDS, encode_v3, extras_of, extras_spec, features_of, make_basis, make_store_v3
from tiny_stores import documents, folder_bytes, make_maps, make_spec, make_store, write_shards

from pipeline.errors import DamagedStoreError, PipelineError
from pipeline.store import open_store
from pipeline.store.format.extras import Extras, Features, Signal
from pipeline.store.format.features import Basis, BasisFitter
from pipeline.store.tools.archive import pack_store, unpack_store
from pipeline.store.tools.diff import compare_stores
from pipeline.store.tools.info import describe
from pipeline.store.tools.merge import merge_stores
from pipeline.store.tools.recompress import recompress_store
from pipeline.store.tools.subset import subset_store
from pipeline.store.tools.verify import verify_store
from pipeline.store.write.encode_extras import encode_extras
from pipeline.store.write.writer import StoreWriter

KEPT = Path(__file__).parents[1] / "data"
SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "store.schema.json").read_text())


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    return make_store_v3(tmp_path_factory.mktemp("v3") / "full.zarr")


@pytest.mark.parametrize("name", KINDS)
def test_a_draft_store_of_version_3_is_read(name):
    store = open_store(KEPT / f"v3_{name}.zarr")
    with np.load(KEPT / f"v3_{name}.npz") as expected:
        for number in range(7):
            assert np.array_equal(store.depth_m(number), expected["depth_m"][number], equal_nan=True)
            assert np.array_equal(store.intrinsics_px(number), expected["intrinsics_px"][number], equal_nan=True)
            for signal in store.signals:
                assert np.array_equal(store.signal(signal, number), expected[signal][number])
            for layer in store.feature_layers:
                assert store.feature(layer, number) == pytest.approx(expected[f"feature_{layer}"][number], abs=1e-5)
    assert verify_store(KEPT / f"v3_{name}.zarr") == []


def test_every_part_comes_back_within_its_stated_error(full):
    store = open_store(full)
    assert (store.spec.version, store.signals, store.feature_layers) == (3, ("confidence", "sky"), ("11",))
    for number in range(7):
        given = extras_of(number)
        for name in store.signals:
            error = np.abs(store.signal(name, number) - given.signals[name]).max()
            assert error <= store.rows(f"signal_{name}_error")[number] + 1e-6 <= 1 / 510 + 2e-6
        assert store.intrinsics_px(number) == pytest.approx(given.intrinsics_px, nan_ok=True)
        neighbour, weight = store.relations(number)
        assert np.array_equal(neighbour, given.relations.neighbour)
        assert weight == pytest.approx(given.relations.weight, abs=1 / 509)
    assert store.rows("previous").tolist() == [-1, 0, 1, 2, 3, 4, 5]
    assert store.rows("next").tolist() == [1, 2, 3, 4, 5, 6, -1]
    assert store.rows("pose")[3] == pytest.approx(extras_of(3).pose)


def test_the_stated_quality_of_features_is_what_a_reader_finds(full):
    store, mean = open_store(full), make_basis().mean[:, None, None]
    for number in range(7):
        given, restored = features_of(number), store.feature("11", number)
        lengths = np.linalg.norm(given, axis=0) * np.linalg.norm(restored, axis=0)
        cosine = ((given * restored).sum(axis=0) / lengths).mean()
        variance = 1 - np.square(restored - given).sum() / np.square(given - mean).sum()
        assert store.rows("feature_11_cosine")[number] == pytest.approx(cosine, abs=1e-5)
        assert store.rows("feature_11_variance")[number] == pytest.approx(variance, abs=1e-5)


def test_disparity_becomes_metres_by_the_camera_of_each_sample(tmp_path):
    store = open_store(make_store_v3(tmp_path / "s.zarr", "disparity"))
    assert store.is_metric
    for number in range(7):
        disparity_px = make_maps(number)[0]
        assert store.depth_m(number) == pytest.approx((20 + number) * 0.54 / disparity_px, rel=6e-4, nan_ok=True)


def test_disparity_without_cameras_is_refused():
    with pytest.raises(PipelineError, match="without the intrinsics and the baseline"):
        make_spec(depth_space="disparity_px")


def test_a_store_without_optional_parts_is_of_an_older_version():
    assert make_spec(extras=Extras())[0].version == 1
    assert make_spec(extras=Extras(data_licence="CC0"))[0].version == 3


@pytest.mark.parametrize("name", KINDS)
def test_the_schema_describes_version_3(tmp_path, name):
    whole = documents(make_store_v3(tmp_path / "now.zarr", name))
    jsonschema.validate(whole, SCHEMA)
    whole["depth_store"]["version"] = 2
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(whole, SCHEMA)


def test_the_schema_describes_a_compression_level_and_mirrored_views(tmp_path):
    card = {"kind": "python", "name": "tiny", "depth_space": "metric_m"}
    path = make_store(tmp_path / "s.zarr", compression_level=9, view="full,mirror", teacher=card)
    jsonschema.validate(documents(path), SCHEMA)


@pytest.mark.parametrize("name", ["v1_sparse", "v2_aligned", "v3_full", "v3_disparity"])
def test_zarr_opens_a_store_of_each_version_without_a_warning(name):
    program = f"import zarr; g = zarr.open_group({str(KEPT / name)!r} + '.zarr', mode='r'); print(g['depth'][3].sum())"
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0


def test_a_release_that_knows_versions_1_and_2_names_the_version_that_it_lacks(monkeypatch):
    for module in ("spec", "checks"):
        monkeypatch.setattr(f"pipeline.store.format.{module}.FORMAT_VERSIONS", (1, 2))
    for module in ("pipeline.store.format.spec", "pipeline.store.read.validate"):
        monkeypatch.setattr(f"{module}.KNOWN_VERSIONS", "1 to 2")
    with pytest.raises(PipelineError, match="manifest version 3: this program reads 1 to 2; install the release that"):
        open_store(KEPT / "v3_full.zarr")


# --- tools -----------------------------------------------------------------------------------------------------------


def parts_of(store, number):
    """Every optional part of a sample, as bytes."""
    arrays = [store.signal(name, number) for name in store.signals]
    arrays += [store.feature(layer, number) for layer in store.feature_layers]
    return b"".join(array.tobytes() for array in (*arrays, *store.relations(number), store.intrinsics_px(number)))


def test_a_subset_keeps_every_part_and_renumbers_neighbours(full, tmp_path):
    subset_store(open_store(full), tmp_path / "part.zarr", [5, 4, 1])
    whole, part = open_store(full), open_store(tmp_path / "part.zarr")
    assert [parts_of(part, number) for number in range(3)] == [parts_of(whole, number) for number in (5, 4, 1)]
    assert part.rows("previous").tolist() == [1, -1, -1]
    assert part.rows("next").tolist() == [-1, 0, -1]
    assert verify_store(tmp_path / "part.zarr") == []


def test_parts_of_a_store_merge_to_the_same_bytes_but_for_the_seam(full, tmp_path):
    whole = open_store(full)
    for name, rows in (("a", range(3)), ("b", range(3, 7))):
        subset_store(whole, tmp_path / f"{name}.zarr", list(rows))
    merge_stores([open_store(tmp_path / "a.zarr"), open_store(tmp_path / "b.zarr")], tmp_path / "both.zarr")
    both = open_store(tmp_path / "both.zarr")
    assert [parts_of(both, number) for number in range(7)] == [parts_of(whole, number) for number in range(7)]
    assert both.rows("previous").tolist() == [-1, 0, 1, -1, 3, 4, 5]  # a part does not know what was before it


class Notes:
    def __init__(self):
        self.said = []

    def note(self, text):
        self.said.append(text)

    def task(self, *_, **__):
        from pipeline.common.progress import Silent

        return Silent().task("", 1, "")


def test_merging_unites_licences_and_names_the_conflict(tmp_path):
    stores = []
    for name, licence in (("a", "CC BY 4.0"), ("b", "CC BY-NC 4.0")):
        path = make_store_v3(tmp_path / f"{name}.zarr", extras=extras_spec(data_licence=licence))
        subset_store(open_store(path), tmp_path / f"{name}1.zarr", [0 if name == "a" else 1])
        stores.append(open_store(tmp_path / f"{name}1.zarr"))
    notes = Notes()
    merge_stores(stores, tmp_path / "both.zarr", notes)
    assert open_store(tmp_path / "both.zarr").spec.extras.data_licence == "CC BY 4.0 and CC BY-NC 4.0"
    assert any("CC BY 4.0, CC BY-NC 4.0" in text for text in notes.said)


def test_features_of_another_basis_do_not_merge(full, tmp_path):
    basis = Basis(make_basis().mean + 1, make_basis().rows, 5)
    features = {"11": Features(3, 6, (2, 4), 5, basis.sha256)}
    spec, ids = make_spec("sparse", 7, teacher=open_store(full).spec.teacher, extras=extras_spec(features=features))
    with StoreWriter(tmp_path / "other.zarr", spec, ids, {"11": basis}) as writer:
        for shard in writer.todo:
            writer.write_shard(shard, [encode_v3(spec, n, {"11": basis}) for n in spec.shard_samples(shard)])
        writer.finish()
    with pytest.raises(PipelineError, match="features.11.basis_sha256"):
        merge_stores([open_store(full), open_store(tmp_path / "other.zarr")], tmp_path / "both.zarr")


def test_recompressing_and_packing_keep_every_part(full, tmp_path):
    recompress_store(open_store(full), tmp_path / "small.zarr", 9)
    pack_store(tmp_path / "small.zarr", tmp_path / "small.zip")
    unpack_store(tmp_path / "small.zip", tmp_path / "again.zarr")
    whole, again = open_store(full), open_store(tmp_path / "again.zarr")
    assert [parts_of(again, number) for number in range(7)] == [parts_of(whole, number) for number in range(7)]


def test_info_states_each_part_with_its_achieved_error(full):
    lines = dict(describe(open_store(full)))
    assert re.fullmatch(r"3x5 px; error at most 0.0020, 0.00\d\d reached", lines["confidence"])
    assert lines["layer 11"].startswith("3 components of 6 channels, 2x4 cells; mean cosine 0.9")
    assert lines["camera"].startswith("intrinsics from the source, 7 of 7 samples with a focal length, fx 20 to 26 px")
    assert lines["data licence"] == "CC BY 4.0"


def test_a_killed_writer_resumes_to_the_same_bytes(full, tmp_path):
    spec, ids = make_spec("sparse", 7, teacher=open_store(full).spec.teacher, extras=extras_spec())
    bases = {"11": make_basis()}
    for last in (1, None):
        with StoreWriter(tmp_path / "s.zarr", spec, ids, bases) as writer:
            for shard in writer.todo[:last]:
                writer.write_shard(shard, [encode_v3(spec, n, bases) for n in spec.shard_samples(shard)])
            if last is None:
                writer.finish()
    assert folder_bytes(tmp_path / "s.zarr") == folder_bytes(full)


def test_stores_whose_signals_differ_are_not_identical(full, tmp_path):
    assert compare_stores(open_store(full), open_store(full)).identical
    spec, ids = make_spec("sparse", 7, teacher=open_store(full).spec.teacher, extras=extras_spec())
    with StoreWriter(tmp_path / "other.zarr", spec, ids, {"11": make_basis()}) as writer:
        for shard in writer.todo:
            writer.write_shard(shard, [changed(spec, number) for number in spec.shard_samples(shard)])
        writer.finish()
    difference = compare_stores(open_store(full), open_store(tmp_path / "other.zarr"))
    assert (difference.different_depth, difference.different_extras, difference.identical) == (0, 1, False)
    assert "signals, features, cameras or relations: 1 of 7 compared samples differ" in difference.describe()


def changed(spec, number):
    """Encode a sample; the confidence of sample 4 is another."""
    sample = encode_v3(spec, number, {"11": make_basis()})
    extras = extras_of(number)
    if number == 4:
        extras = dataclasses.replace(extras, signals={**extras.signals, "confidence": np.zeros((3, 5))})
    return sample.with_extras(spec, extras, {"11": make_basis()})


def test_a_store_with_signals_is_compared_with_one_without(full, tmp_path):
    spec, ids = make_spec("sparse", 7, teacher=open_store(full).spec.teacher)
    with StoreWriter(tmp_path / "plain.zarr", spec, ids) as writer:
        write_shards(writer, writer.todo)
        writer.finish()
    for pair in ((full, tmp_path / "plain.zarr"), (tmp_path / "plain.zarr", full)):
        difference = compare_stores(*map(open_store, pair))
        assert (difference.different_depth, difference.different_maps, difference.identical) == (0, 0, False)


def test_disparities_of_another_baseline_are_not_identical(tmp_path, monkeypatch):
    first = open_store(make_store_v3(tmp_path / "a.zarr", "disparity"))
    ours = extras_of(0).baseline_m
    monkeypatch.setattr("stores_v3.BASELINE_M", 10 * ours)
    second = open_store(make_store_v3(tmp_path / "b.zarr", "disparity"))
    assert compare_stores(first, second).different_extras == 7


def test_links_that_a_subset_lost_are_a_difference(full, tmp_path):
    subset_store(open_store(full), tmp_path / "part.zarr", [0, 1, 3])
    assert compare_stores(open_store(full), open_store(tmp_path / "part.zarr")).different_extras == 2


def test_xarray_shows_signals_and_intrinsics(full):
    data = open_store(full).to_xarray()
    assert data.sky[2].compute().to_numpy() == pytest.approx(open_store(full).signal("sky", 2))
    assert data.intrinsics_px[5].to_numpy().tolist() == [25, 19, 9.5, 5.5]
    assert data.confidence.attrs["long_name"].startswith("how far the teacher trusts")


# --- damage ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "file",
    [
        "signals/confidence/c/1/0/0",
        "features/11/code/c/1/0/0/0",
        "features/11/scale/c/1/0",
        "relations/neighbour/c/1/0/0",
        "relations/weight/c/1/0/0",
        "features/11/basis/c/0/0",
        "features/11/mean/c/0",
        "sample/intrinsics/c/0/0",
    ],
)
def test_every_flipped_byte_is_found(tmp_path, file):
    path = make_store_v3(tmp_path / "s.zarr")
    good = (path / file).read_bytes()
    for place in range(0, len(good), max(1, len(good) // 40)):
        bad = bytearray(good)
        bad[place] ^= 0x10
        (path / file).write_bytes(bad)
        store = open_store(path)
        with pytest.raises(DamagedStoreError):
            for number in range(7):
                parts_of(store, number)
    (path / file).write_bytes(good)
    assert verify_store(path) == []


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("signals", {"confidence": {"size_px": [3, 5], "meaning": "lower is better"}}),
        ("signals", {"mood": {"size_px": [3, 5], "meaning": "good"}}),
        ("features", {"../up": {}}),
        ("features", {"11": {"components": 3, "channels": 6, "size_cells": [2, 4], "fitted_on": 5}}),
        ("baseline", 1),
        ("intrinsics", "a guess"),
        ("data_licence", 7),
        ("relations", {"nodes": [2, 3], "neighbours": 99, "expert": "a"}),
    ],
)
def test_attributes_outside_the_format_are_refused(full, key, value):
    spec = open_store(full).spec
    root = json.loads(json.dumps(spec.root_attributes()))
    root["depth_store"][key] = value
    with pytest.raises(PipelineError):
        type(spec).from_attributes(root, spec.dpm_attributes(), spec.bin_edges)


# --- values that are refused -----------------------------------------------------------------------------------------


def replaced(number=0, **parts):
    return dataclasses.replace(extras_of(number), **parts)


@pytest.mark.parametrize(
    ("extras", "message"),
    [
        (replaced(signals={"sky": extras_of(0).signals["sky"]}), "signal 'confidence' is missing"),
        (replaced(signals={**extras_of(0).signals, "confidence": np.full((3, 5), 1.5)}), "1.5 at one of 15 pixels"),
        (replaced(signals={**extras_of(0).signals, "confidence": np.full((3, 5), np.nan)}), "nan at one of 15 pixels"),
        (replaced(signals={**extras_of(0).signals, "confidence": np.zeros((4, 5))}), "expected one size"),
        (replaced(features={}), "features of layer '11' are missing"),
        (replaced(features={"11": np.zeros((5, 2, 4))}), "have the shape"),
        (replaced(features={"11": np.full((6, 2, 4), np.inf)}), "48 values of the features are NaN or infinite"),
        (replaced(intrinsics_px=np.array([-1.0, 1, 1, 1])), "positive focal lengths"),
        (replaced(baseline_m=None), "positive distance"),
        (replaced(next=7), "a row from 0 to 6, or -1"),
        (replaced(pose=np.zeros(5)), "six finite numbers"),
        (replaced(relations=None), "relations are missing"),
    ],
)
def test_wrong_values_end_in_one_error(extras, message):
    spec, _ = make_spec("sparse", 7, extras=extras_spec())
    with pytest.raises(PipelineError, match=re.escape(message)):
        encode_extras(spec, extras, {"11": make_basis()})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"signals": {"mood": Signal((3, 5))}}, "signal 'mood': expected one of confidence, sky, valid"),
        ({"features": {"a/b": Features(3, 6, (2, 4), 5, "0" * 64)}}, "layer 'a/b'"),
        ({"features": {"11": Features(7, 6, (2, 4), 5, "0" * 64)}}, "7 components of 6 channels, expected at most 6"),
        ({"features": {"zarr.json": Features(3, 6, (2, 4), 5, "0" * 64)}}, "layer 'zarr.json'"),
        ({"features": {"11": Features(1, 8192, (2048, 2048), 5, "0" * 64)}}, "137438953472 bytes: expected at most"),
        ({"data_licence": ""}, "1 to 4000 characters"),
    ],
)
def test_a_specification_outside_the_format_is_refused(changes, message):
    with pytest.raises(PipelineError, match=re.escape(message)):
        extras_spec(**changes)


# --- the basis -------------------------------------------------------------------------------------------------------


def test_a_basis_of_all_channels_restores_features_but_for_rounding():
    fitter = BasisFitter(6)
    for number in range(5):
        fitter.add(features_of(number))
    encoded = fitter.basis(6).encode(features_of(9))
    assert encoded.mean_cosine > 0.9995
    assert encoded.explained_variance > 0.999


def test_the_first_component_is_the_direction_of_largest_variance():
    random = np.random.default_rng(0)
    direction = np.array([0.6, 0.8, 0.0])
    features = direction[:, None, None] * random.normal(0, 5, (1, 20, 20)) + random.normal(0, 0.1, (3, 20, 20))
    fitter = BasisFitter(3)
    fitter.add(features)
    assert fitter.basis(1).rows[0] == pytest.approx(direction, abs=0.01)
