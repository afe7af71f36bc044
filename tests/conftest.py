"""Fixtures that many tests share, and the rule that no test touches a network."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings

from pipeline.cache import cache_teacher
from pipeline.plan import CacheOptions
from pipeline.sources.registry import open_source
from pipeline.store.spec import StoreSpec, digest_of_ids
from pipeline.store.writer import StoreWriter, encode_sample

import fakes  # isort: skip  # beside this file; pytest puts its folder on the path

os.environ["HF_HUB_OFFLINE"] = "1"
# A shell that starts a job in the background has it ignore Ctrl-C, which tests press.
signal.signal(signal.SIGINT, signal.default_int_handler)
# A shared machine may take long over one example without anything being wrong.
settings.register_profile("steady", deadline=None)
settings.load_profile("steady")
REAL = Path(__file__).parents[2] / "shared" / "data"


def pytest_collection_modifyitems(items):
    """Skip what needs real data where there is none."""
    if REAL.is_dir():
        return
    for item in items:
        if item.get_closest_marker("realdata"):
            item.add_marker(pytest.mark.skip(reason="../shared/data is absent"))


@pytest.fixture(autouse=True)
def _as_many_threads_as_before():
    """A command may choose torch's threads for its own process; here that is everybody's, and weights depend on it."""
    before = torch.get_num_threads()
    yield
    if torch.get_num_threads() != before:
        torch.set_num_threads(before)


@pytest.fixture
def real():
    """The folder of real images and predictions."""
    return REAL


BINS = 12
SIZE_PX = (6, 10)


def make_spec(kind="gaussian", samples=7, **changes):
    """A specification of a tiny store."""
    ids = [f"a/{number:03d}" for number in range(samples)]
    values = {
        "teacher": {"name": "tiny", "kind": "python", "precision": "float32", "weights_sha256": None},
        "depth_space": "metric_m",
        "source": {"name": "folder", "samples": samples, "ids_sha256": digest_of_ids(ids)},
        "view": "full",
        "view_size_px": (12, 20),
        "max_rel_error": 5e-4,
        "depth_range_m": (0.1, 300.0),
        "dpm_kind": kind,
        "bin_edges": tuple(np.linspace(0.5, 40, BINS + 1).tolist()),
        "sigma_m": 2.0 if kind == "gaussian" else None,
        "max_dpm_kl": 0.01 if kind == "sparse" else None,
        "samples_per_shard": 3,
    }
    return StoreSpec(**(values | changes)), ids


def make_maps(number, kind="gaussian"):
    """Depth (6, 10) with one invalid pixel, and a map (12, 6, 10) unless the store needs none."""
    random = np.random.default_rng(number)
    depth_m = random.uniform(1, 40, SIZE_PX).astype(np.float32)
    depth_m[0, number % SIZE_PX[1]] = np.nan
    if kind == "gaussian":
        return depth_m, None
    logits = random.normal(0, 3, (BINS, *SIZE_PX))
    dpm = np.exp(logits) / np.exp(logits).sum(axis=0)
    return depth_m, dpm.astype(np.float32)


def encode(spec, number):
    """Sample `number` as the writer wants it."""
    encoded = encode_sample(spec, *make_maps(number, spec.dpm_kind))
    encoded.row.update(image_sha256=f"{number:064x}", image_size_px=[12, 20])
    return encoded


def write_shards(writer, shards):
    """Write the given shards of a tiny store."""
    for shard in shards:
        writer.write_shard(shard, [encode(writer.spec, number) for number in writer.spec.shard_samples(shard)])


def make_store(path, kind="gaussian", **changes):
    """Write a tiny store."""
    spec, ids = make_spec(kind, **changes)
    with StoreWriter(path, spec, ids) as writer:
        write_shards(writer, writer.todo)
        writer.finish()
    return path


@pytest.fixture
def scenes(tmp_path):
    """A source like the renderer's, of 8 frames of 32x64 px."""
    return open_source(f"scenes:{fakes.make_scenes_folder(tmp_path / 'scenes', 8, (32, 64))}")


@pytest.fixture
def teacher_store(tmp_path, scenes):
    """A store over all frames of `scenes`, from a teacher with maps at half resolution."""
    path = tmp_path / "teacher.zarr"
    cache_teacher(scenes, "all", fakes.factory_with_dpm(), path, CacheOptions(samples_per_shard=3, batch_size=2))
    return path


def folder_bytes(root):
    """Every file of a folder with its content."""
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}
