"""Fixtures shared by many tests. No test uses the network."""

from __future__ import annotations

import os
import signal

import fakes
import pytest
import torch
from hypothesis import settings
from paths import REAL

from pipeline.cache.plan import CacheOptions
from pipeline.cache.run import cache_teacher
from pipeline.sources.registry import open_source

os.environ["HF_HUB_OFFLINE"] = "1"
# A job in the background of a shell ignores Ctrl-C, which some tests send.
signal.signal(signal.SIGINT, signal.default_int_handler)
# On a busy machine a single example may be slow.
settings.register_profile("steady", deadline=None)
settings.load_profile("steady")


def pytest_collection_modifyitems(items):
    """Skip tests marked `realdata` if there is no real data."""
    if REAL.is_dir():
        return
    for item in items:
        if item.get_closest_marker("realdata"):
            item.add_marker(pytest.mark.skip(reason="../shared/data is absent"))


def pytest_make_parametrize_id(val, argname):
    """Use the argument's name as the id of values without a stable representation.

    The bytes of an archive contain the time, so two xdist processes would collect different tests.
    """
    if val is None or (isinstance(val, bool | int | float | str | type) and len(str(val)) <= 60):
        return None  # pytest's own id
    return argname


@pytest.fixture(autouse=True)
def _restore_torch_threads():
    """Restore the number of torch threads, which commands change and weights depend on."""
    before = torch.get_num_threads()
    yield
    if torch.get_num_threads() != before:
        torch.set_num_threads(before)


@pytest.fixture
def real():
    """Folder of real images and predictions."""
    return REAL


@pytest.fixture
def scenes(tmp_path):
    """A `scenes` source with 8 frames of 32x64 px."""
    return open_source(f"scenes:{fakes.make_scenes_folder(tmp_path / 'scenes', 8, (32, 64))}")


@pytest.fixture
def teacher_store(tmp_path, scenes):
    """A store of all frames of `scenes`, with maps at half resolution."""
    path = tmp_path / "teacher.zarr"
    cache_teacher(scenes, "all", fakes.factory_with_dpm(), path, CacheOptions(samples_per_shard=3, batch_size=2))
    return path
