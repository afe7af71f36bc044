"""The format for good: stores that were written once must be read by every later version."""

import json
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from stores_v2 import FITS, make_store_v2
from tiny_stores import documents, folder_bytes, make_store

from pipeline.store import open_store
from pipeline.store.format.spec import producer_versions
from pipeline.store.tools.verify import verify_store

KEPT = Path(__file__).parents[1] / "data"
SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "store.schema.json").read_text())
STORES = ["gaussian", "sparse", "dense", "affine"]
STORES_V2 = ["aligned", "carried"]


@pytest.mark.parametrize("name", STORES)
def test_a_store_of_version_1_is_read_for_ever(name):
    path = KEPT / f"v1_{name}.zarr"
    with np.load(KEPT / f"v1_{name}.npz") as expected:
        store = open_store(path)
        assert store.ids == [f"a/{number:03d}" for number in range(7)]
        for number in range(7):
            assert np.array_equal(store.depth(number), expected["depth"][number], equal_nan=True)
            assert store.dpm(number) == pytest.approx(expected["dpm"][number], abs=1e-6, nan_ok=True)
    assert verify_store(path) == []


def test_an_aligned_store_of_version_2_is_read_for_ever():
    with np.load(KEPT / "v2_aligned.npz") as expected:
        store = open_store(KEPT / "v2_aligned.zarr")
        assert (store.spec.version, store.spec.alignment["truth"]) == (2, "folder/depth")
        for number in range(7):
            assert np.array_equal(store.depth(number), expected["depth"][number], equal_nan=True)
            assert store.depth_m(number) == pytest.approx(expected["depth_m"][number], rel=1e-6, nan_ok=True)
            assert store.alignment(number) == pytest.approx(FITS[number], nan_ok=True)
            assert store.dpm(number) == pytest.approx(expected["dpm"][number], abs=1e-6, nan_ok=True)
    assert verify_store(KEPT / "v2_aligned.zarr") == []


def test_a_store_of_version_2_with_maps_carried_over_is_read_for_ever():
    with np.load(KEPT / "v2_carried.npz") as expected:
        store = open_store(KEPT / "v2_carried.zarr")
        assert (store.spec.version, store.spec.carried_from) == (2, "pixel")
        assert np.array_equal(store.rows("dpm_carried_kl_nats"), expected["carried"])
        for number in range(7):
            assert np.array_equal(store.depth_m(number), expected["depth"][number], equal_nan=True)
            assert store.dpm(number) == pytest.approx(expected["dpm"][number], abs=1e-6, nan_ok=True)
    assert verify_store(KEPT / "v2_carried.zarr") == []


@pytest.mark.parametrize("name", STORES)
def test_what_needs_nothing_of_version_2_is_written_as_version_1(tmp_path, name):
    """To the byte; with other packages that compress, the metadata alone."""
    kind, space = ("gaussian", "affine_disparity") if name == "affine" else (name, "metric_m")
    kept = open_store(KEPT / f"v1_{name}.zarr")
    card = kept.spec.teacher
    fresh = make_store(tmp_path / "now.zarr", kind, depth_space=space, teacher=card, producer=kept.spec.producer)
    before, now = folder_bytes(KEPT / f"v1_{name}.zarr"), folder_bytes(fresh)
    if kept.spec.producer["numcodecs"] != producer_versions()["numcodecs"]:
        before, now = ({path: one[path] for path in one if path.endswith("zarr.json")} for one in (before, now))
    assert now == before


@pytest.mark.parametrize("name", STORES)
def test_the_schema_describes_what_is_written_then_and_now(tmp_path, name):
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    kind, space = ("gaussian", "affine_disparity") if name == "affine" else (name, "metric_m")
    card = {"kind": "python", "name": "tiny", "depth_space": space}
    fresh = make_store(tmp_path / "now.zarr", kind, depth_space=space, teacher=card)
    jsonschema.validate(documents(fresh), SCHEMA)
    jsonschema.validate(documents(KEPT / f"v1_{name}.zarr"), SCHEMA)


@pytest.mark.parametrize("name", STORES_V2)
def test_the_schema_describes_version_2_too(tmp_path, name):
    jsonschema.validate(documents(make_store_v2(tmp_path / "now.zarr", name)), SCHEMA)
    jsonschema.validate(documents(KEPT / f"v2_{name}.zarr"), SCHEMA)


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("depth_store", "version", 2),
        ("depth_store", "version", 3),
        ("depth_store", "alignment", None),
        ("depth_store", "depth_space", "furlongs"),
        ("depth_store", "samples_per_shard", 0),
        ("dpm", "kind", "pickle"),
        ("manifest", "files", {"../escape": [1, "0" * 64]}),
        ("manifest", "version", 2),
        ("manifest", "version", 3),
        ("manifest", "files", {"zarr.json": [-1, "0" * 64]}),
    ],
)
def test_the_schema_refuses_what_the_format_does(part, key, value):
    whole = documents(KEPT / "v1_gaussian.zarr")
    whole[part][key] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(whole, SCHEMA)


@pytest.mark.parametrize(
    ("name", "part", "key", "value"),
    [
        ("aligned", "depth_store", "version", 1),
        ("aligned", "depth_store", "depth_space", "metric_m"),
        ("aligned", "depth_store", "alignment", {"fit": "l1_tukey"}),
        ("aligned", "manifest", "version", 1),
        ("carried", "depth_store", "version", 1),
        ("carried", "dpm", "carried_from", "elsewhere"),
        ("carried", "manifest", "version", 1),
    ],
)
def test_the_schema_refuses_what_version_2_does(name, part, key, value):
    whole = documents(KEPT / f"v2_{name}.zarr")
    whole[part][key] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(whole, SCHEMA)
