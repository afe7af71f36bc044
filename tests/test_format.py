"""Format version 1 for good: stores that were written once must be read by every later version."""

import json
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from conftest import make_store

from pipeline.store import open_store
from pipeline.store.verify import verify_store

KEPT = Path(__file__).parent / "data"
SCHEMA = json.loads((Path(__file__).parents[1] / "docs" / "store.schema.json").read_text())
STORES = ["gaussian", "sparse", "dense", "affine"]


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


def documents(path):
    """What the schema speaks of, of one store."""
    group, dpm, manifest = (
        json.loads((path / name).read_text()) for name in ("zarr.json", "dpm/zarr.json", "MANIFEST.json")
    )
    return {"depth_store": group["attributes"]["depth_store"], "dpm": dpm["attributes"], "manifest": manifest}


@pytest.mark.parametrize("name", STORES)
def test_the_schema_describes_what_is_written_then_and_now(tmp_path, name):
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    kind, space = ("gaussian", "affine_disparity") if name == "affine" else (name, "metric_m")
    card = {"kind": "python", "name": "tiny", "depth_space": space}
    fresh = make_store(tmp_path / "now.zarr", kind, depth_space=space, teacher=card)
    jsonschema.validate(documents(fresh), SCHEMA)
    jsonschema.validate(documents(KEPT / f"v1_{name}.zarr"), SCHEMA)


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("depth_store", "version", 2),
        ("depth_store", "depth_space", "furlongs"),
        ("depth_store", "samples_per_shard", 0),
        ("dpm", "kind", "pickle"),
        ("manifest", "files", {"../escape": [1, "0" * 64]}),
        ("manifest", "files", {"zarr.json": [-1, "0" * 64]}),
    ],
)
def test_the_schema_refuses_what_the_format_does(part, key, value):
    whole = documents(KEPT / "v1_gaussian.zarr")
    whole[part][key] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(whole, SCHEMA)
