"""A store as a lazy xarray data set, and its raw arrays through zarr-python."""

import json
import pickle
import shutil
import sys
import tracemalloc
from pathlib import Path

import dask
import numpy as np
import pytest
from tiny_stores import make_store

from pipeline.errors import DamagedStoreError, MissingDependencyError, PipelineError
from pipeline.store import Store, open_store
from pipeline.store.read.to_xarray import _lazy

DATA = Path(__file__).parents[1] / "data"
pytest.importorskip("xarray")


@pytest.mark.parametrize("name", ["v1_gaussian", "v1_sparse", "v1_dense", "v1_affine", "v2_aligned", "v2_carried"])
def test_it_has_what_the_store_reads_for_each_format(name):
    store = open_store(DATA / f"{name}.zarr")
    data = store.to_xarray(dpm=True)
    depth = data["depth_m" if store.is_metric else "depth"]
    assert ("depth_m" in data) == store.is_metric  # the name claims metres only of metres
    assert depth.units == ("m" if store.is_metric else "1")
    read = store.depth_m if store.is_metric else store.depth
    for number, sample in enumerate(store.ids):
        assert np.array_equal(depth.sel(sample=sample).compute(), read(number), equal_nan=True)
        assert np.array_equal(data.dpm.isel(sample=number).compute(), store.dpm(number), equal_nan=True)
    assert depth.dtype == np.float32
    assert json.loads(data.teacher) == store.spec.teacher
    edges = data["bin_edges_m" if store.spec.depth_space == "metric_m" else "bin_edges"]
    assert np.array_equal(edges, store.bin_edges_m)


def test_nothing_is_read_before_it_is_computed_and_then_one_sample_a_chunk(tmp_path, monkeypatch):
    store = open_store(make_store(tmp_path / "s.zarr"))
    read, depth_m = [], Store.depth_m
    monkeypatch.setattr(Store, "depth_m", lambda self, number: read.append(number) or depth_m(self, number))
    data = store.to_xarray()
    assert data.depth_m.data.chunks[0] == (1,) * len(store)
    part = data.depth_m.isel(sample=slice(2, 4), y=slice(0, 3))
    assert read == []
    assert part.compute().shape == (2, 3, store.layout.size_px[1])
    assert sorted(read) == [2, 3]


def test_it_goes_to_other_processes(tmp_path):
    store = open_store(make_store(tmp_path / "s.zarr"))
    data = pickle.loads(pickle.dumps(store.to_xarray()))
    with dask.config.set(scheduler="processes", num_workers=2):
        values = data.depth_m.isel(sample=slice(0, 2)).compute().values
    assert np.array_equal(values[1], store.depth_m(1), equal_nan=True)


def test_a_damaged_chunk_is_an_error_when_it_is_computed(tmp_path):
    path = make_store(tmp_path / "s.zarr")
    shard = next(file for file in (path / "depth" / "c").rglob("*") if file.is_file())
    data = bytearray(shard.read_bytes())
    data[len(data) - 20] ^= 1
    shard.write_bytes(data)
    depth_m = open_store(path).to_xarray().depth_m
    with pytest.raises(DamagedStoreError):
        depth_m.compute()


def test_a_hundred_thousand_samples_make_a_small_graph():
    tracemalloc.start()
    depth = _lazy(lambda _: None, (100_000, 352, 1216), "depth")
    part = depth[5:9]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert part.numblocks == (4, 1, 1)
    assert peak < 50e6  # it takes 9 MB; a task for each sample would take several times that


def test_without_xarray_the_error_names_the_extra(tmp_path, monkeypatch):
    store = open_store(make_store(tmp_path / "s.zarr"))
    monkeypatch.setitem(sys.modules, "xarray", None)
    with pytest.raises(MissingDependencyError, match=r"tiekd-pipeline\[xarray\]"):
        store.to_xarray()


def test_the_raw_arrays_open_read_only(tmp_path):
    store = open_store(make_store(tmp_path / "s.zarr"))
    group = store.zarr_group()
    assert group["depth"].shape == (len(store), *store.layout.size_px)
    assert bytes(group["sample/id"][3]).rstrip(b"\0").decode() == store.ids[3]
    with pytest.raises(ValueError, match="read-only"):
        group["depth"][0] = 0


def test_a_remote_store_has_no_raw_arrays(tmp_path):
    shutil.copytree(DATA / "v1_gaussian.zarr", tmp_path / "s.zarr")
    store = open_store(tmp_path / "s.zarr")
    store._files = object()
    with pytest.raises(PipelineError, match="copy the store to this machine"):
        store.zarr_group()
