"""What a GPU prepares for a transformers network is what the library's Pillow processor makes, bit for bit."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny_transformers import METRIC, save_model
from transformers_cases import IDS, VIEWS, opened

from pipeline.teachers.huggingface import preprocess
from pipeline.teachers.huggingface.device_preprocess import PillowResize

pytest.importorskip("transformers")
CPU = torch.device("cpu")
SIZES = st.tuples(st.integers(1, 60), st.integers(1, 60))


@settings(max_examples=150, deadline=None)
@given(SIZES, SIZES, st.sampled_from([2, 3]), st.integers(0, 10**6), st.booleans())
def test_a_resize_has_the_bytes_of_pillow(size_px, resized_px, resample, seed, extreme):
    image = np.random.default_rng(seed).integers(0, 256, (*size_px, 3), np.uint8)
    if extreme:  # bicubic weights overshoot
        image = np.where(image > 127, np.uint8(255), np.uint8(0))
    expected = np.asarray(Image.fromarray(image).resize(resized_px[::-1], resample))
    planes = torch.from_numpy(image).permute(2, 0, 1)[None]
    resized = [
        PillowResize(size_px, resized_px, resample, CPU, dims)(planes)[0].permute(1, 2, 0).numpy()
        for dims in ((3, 2), (2, 3))
    ]
    assert any(np.array_equal(one, expected) for one in resized)


@pytest.mark.parametrize("family", ["depth_anything", "dpt", "glpn"])
def test_depth_has_the_same_bits_wherever_its_input_is_prepared(tmp_path, monkeypatch, family):
    save_model(tmp_path, family)
    on_host = opened(tmp_path).predict(VIEWS, IDS).depth
    monkeypatch.setattr(preprocess, "PILLOW_IS_FASTER", set())
    teacher = opened(tmp_path)
    view = (VIEWS[0].permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
    assert teacher.prepare(view).dtype == torch.uint8
    assert torch.equal(teacher.predict(VIEWS, IDS).depth, on_host)
    large = torch.rand(1, 3, 90, 70, generator=torch.Generator().manual_seed(1))
    by_device = teacher.predict(large, ["c"]).depth
    monkeypatch.setattr(preprocess, "PILLOW_IS_FASTER", {"cpu"})
    assert torch.equal(by_device, opened(tmp_path).predict(large, ["c"]).depth)


def test_an_asked_input_size_is_prepared_on_the_device(tmp_path, monkeypatch):
    save_model(tmp_path, "depth_anything", **METRIC)
    on_host = opened(tmp_path, input_size_px=(42, 56)).predict(VIEWS, IDS).depth
    monkeypatch.setattr(preprocess, "PILLOW_IS_FASTER", set())
    on_device = opened(tmp_path, input_size_px=(42, 56)).predict(VIEWS, IDS).depth
    assert on_device.shape == (2, 42, 56)
    assert torch.equal(on_device, on_host)


@pytest.mark.parametrize("family", ["zoedepth", "depth_pro"])
def test_a_processor_that_is_not_repeated_bit_by_bit_stays_on_the_host(tmp_path, monkeypatch, family):
    save_model(tmp_path, family)
    monkeypatch.setattr(preprocess, "PILLOW_IS_FASTER", set())
    view = np.random.default_rng(0).integers(0, 256, (40, 100, 3), np.uint8)
    assert opened(tmp_path).prepare(view).dtype == torch.float32
