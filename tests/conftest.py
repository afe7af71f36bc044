"""Fixtures that many tests share, and the rule that no test touches a network."""

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
# A shell that starts a job in the background has it ignore Ctrl-C, which tests press.
signal.signal(signal.SIGINT, signal.default_int_handler)
# A shared machine may take long over one example without anything being wrong.
settings.register_profile("steady", deadline=None)
settings.load_profile("steady")


def pytest_collection_modifyitems(items):
    """Skip what needs real data where there is none."""
    if REAL.is_dir():
        return
    for item in items:
        if item.get_closest_marker("realdata"):
            item.add_marker(pytest.mark.skip(reason="../shared/data is absent"))


def pytest_make_parametrize_id(val, argname):
    """Name what has no stable name of its own by its argument, to which pytest adds a number.

    Bytes of an archive hold the time, so that two processes of xdist collected different tests.
    """
    if val is None or (isinstance(val, bool | int | float | str | type) and len(str(val)) <= 60):
        return None  # pytest's own id
    return argname


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
