"""What is selected on a device is what the CPU encodes; on CPU tensors, the kernel in Triton's interpreter."""

from importlib.util import find_spec

import fakes
import numpy as np
import pytest
import torch
from tiny_stores import folder_bytes, make_spec
from triton_cases import run_script

from pipeline.cache import selection
from pipeline.cache.plan import CacheOptions
from pipeline.cache.run import cache_teacher
from pipeline.teachers.base import TeacherCard, TeacherOutput, images_of_views

needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="needs triton: pip install '.[triton]'")
OPTIONS = CacheOptions(samples_per_shard=3, batch_size=2, bins="nyu", sigma_m=0.2, accept_noise=True)


@pytest.fixture(scope="module")
def agreed(tmp_path_factory):
    return run_script("select_cases.py", "agree", tmp_path_factory.mktemp("triton"), TRITON_INTERPRET="1")


@needs_triton
@pytest.mark.parametrize("case", ["2 bins", "7 bins", "64 bins", "64 bins of 16 bits", "257 bins"])
def test_maps_have_the_codes_of_the_cpu_encoder(agreed, case):
    planes, uncertain, difference = agreed[case]
    assert (planes > 0, uncertain, difference) == (True, 0, None)


@needs_triton
def test_a_pixel_whose_cost_is_the_budget_is_encoded_by_the_cpu(agreed):
    _, uncertain, difference = agreed["at the budget"]
    assert (uncertain, difference) == (1, None)


@needs_triton
def test_a_map_with_more_planes_than_there_is_room_for_is_encoded_by_the_cpu(agreed):
    assert agreed["more planes than room"][2] == "left to the CPU"


@needs_triton
def test_stores_have_the_bytes_of_the_cpu_encoder(agreed):
    assert agreed["stores"] == {"gaussian": True, "sparse": True}


@needs_triton
def test_the_kernel_compiles_without_spilling_much(tmp_path):
    found = run_script("select_cases.py", "compile", tmp_path, TRITON_INTERPRET="0")
    assert len(found) == 4
    for case, used in found.items():
        assert used["spilled_bytes"] <= 16, (case, used)


@pytest.fixture
def _on_device(monkeypatch):
    monkeypatch.setattr(selection, "DEVICES", {"cpu"})


class Wrong(fakes.FakeTeacher):
    """Predicts one invalid value, in the third image."""

    def __init__(self, value):
        super().__init__()
        self.value = value

    def predict(self, images, ids):
        depth = super().predict(images, ids).depth
        for number, name in enumerate(ids):
            if name.endswith("2"):
                depth[number, 3, 4] = self.value
        return TeacherOutput(depth)


@pytest.mark.usefixtures("_on_device")
@pytest.mark.parametrize(
    ("value", "message"),
    [(np.nan, "NaN or inf at 1 pixels"), (np.inf, "NaN or inf at 1 pixels"), (-2.0, "predicted -2 m")],
)
def test_invalid_depth_gives_the_error_of_the_cpu_encoder(tmp_path, scenes, value, message):
    with pytest.raises(ValueError, match=message):
        cache_teacher(scenes, "all", Wrong(value), tmp_path / "s.zarr", OPTIONS)


@pytest.mark.usefixtures("_on_device")
def test_relative_depth_is_left_to_the_cpu():
    spec, _ = make_spec(depth_space="affine_disparity", bin_edges=tuple(np.linspace(0, 1, 13).tolist()), sigma_m=0.1)
    assert selection.Selector(spec).select(TeacherOutput(torch.rand(1, 6, 10))) is None


class Prepares(fakes.FakeTeacher):
    """Gets views that `prepare` turned by 180 degrees, in other threads."""

    def __init__(self):
        super().__init__()
        self.card = TeacherCard("python", "fake", "metric_m", weights_sha256="0" * 64)

    def prepare(self, view):
        return torch.from_numpy(view[::-1, ::-1].copy())

    def predict_prepared(self, inputs, view_size_px, ids):
        assert inputs.shape[1:3] == view_size_px
        return self.predict(images_of_views(inputs.flip(1, 2)), ids)


def test_a_teacher_that_prepares_its_images_gets_what_it_prepared(tmp_path, scenes):
    cache_teacher(scenes, "all", Prepares(), tmp_path / "prepared.zarr", OPTIONS)
    cache_teacher(scenes, "all", fakes.FakeTeacher(), tmp_path / "plain.zarr", OPTIONS)
    assert folder_bytes(tmp_path / "prepared.zarr") == folder_bytes(tmp_path / "plain.zarr")
