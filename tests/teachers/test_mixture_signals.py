"""Confidence, sky and intrinsics of averaged predictions."""

from __future__ import annotations

import math
import re

import fakes
import pytest
import torch

from pipeline.teachers.options import TeacherOptions
from pipeline.teachers.registry import open_teacher

MIXED = {"map_edges_m": tuple(range(13)), "map_sigma_m": 0.8}
IMAGES = torch.rand(2, 3, 8, 12, generator=torch.Generator().manual_seed(0))
IDS = ["a", "b"]
DEPTH = torch.full((2, 8, 12), 3.0)
RAMP = torch.linspace(0, 1, 12).expand(2, 8, 12).contiguous()
K = torch.tensor([[10.0, 11, 5.5, 3.5], [20, 21, 5, 4]])


@pytest.fixture
def made(monkeypatch):
    """Make teachers that `python:fakes:NAME` opens, each with a dict for any image."""

    def make(name, **returned):
        def model(_):
            return {"depth": DEPTH, **returned}

        model.card = {"name": name, "depth_space": "metric_m", "weights_sha256": name * 8}
        monkeypatch.setattr(fakes, name, lambda: model, raising=False)
        return f"python:fakes:{name}"

    return make


def predicted(spec, **options):
    teacher = open_teacher(spec, device=torch.device("cpu"), options=TeacherOptions(**MIXED, **options))
    return teacher.predict(IMAGES, IDS)


def ensemble(*specs):
    return predicted("ensemble:" + ",".join(specs))


def test_flip_average_mirrors_the_signals_of_the_mirror_image_back(made):
    output = predicted(made("net", confidence=RAMP, sky=RAMP / 2), flip_average=True)
    torch.testing.assert_close(output.confidence, torch.full((2, 8, 12), 0.5))
    torch.testing.assert_close(output.sky, torch.full((2, 8, 12), 0.25))


def test_flip_average_keeps_a_signal_that_follows_the_image(monkeypatch):
    def model(images):
        return {"depth": torch.ones_like(images[:, 0]), "confidence": images[:, 0]}

    model.card = {"name": "follows", "depth_space": "metric_m"}
    monkeypatch.setattr(fakes, "follows", lambda: model, raising=False)
    torch.testing.assert_close(predicted("python:fakes:follows", flip_average=True).confidence, IMAGES[:, 0])


def test_flip_average_keeps_the_intrinsics_of_the_image_as_it_is(made):
    assert torch.equal(predicted(made("net", intrinsics_px=K), flip_average=True).intrinsics_px, K)


def test_an_ensemble_averages_signals_that_all_members_give_by_their_weights(made, tmp_path):
    small = torch.full((2, 4, 6), 0.6)
    near, far = made("near", confidence=RAMP, sky=RAMP), made("far", confidence=small)
    members = '{"members": [{"teacher": "%s", "weight": 3}, {"teacher": "%s"}]}' % (near, far)  # noqa: UP031 - braces
    (tmp_path / "two.json").write_text(members)
    output = predicted(f"ensemble:{tmp_path / 'two.json'}", trust_code=True)
    torch.testing.assert_close(output.confidence, 0.75 * RAMP + 0.25 * 0.6)
    assert output.sky is None


def test_the_mean_of_ten_full_confidences_is_not_above_1(made):
    specs = [made(f"member{number}", confidence=torch.ones(2, 8, 12)) for number in range(10)]
    confidence = ensemble(*specs).confidence
    assert confidence.max() <= 1
    torch.testing.assert_close(confidence, torch.ones(2, 8, 12))


def test_an_ensemble_gives_the_intrinsics_on_which_all_members_agree(made):
    other = K.clone()
    other[0] *= 1.0005
    other[1, 0] *= 1.01
    intrinsics_px = ensemble(made("one", intrinsics_px=K), made("two", intrinsics_px=other)).intrinsics_px
    expected = K.clone()
    expected[1, 0] = math.nan
    torch.testing.assert_close(intrinsics_px, expected, equal_nan=True)


def test_an_ensemble_gives_no_intrinsics_if_a_member_has_none(made):
    assert ensemble(made("one", intrinsics_px=K), made("two")).intrinsics_px is None
    assert ensemble(made("one"), made("two", intrinsics_px=K)).intrinsics_px is None


def test_features_of_averaged_images_are_refused(made):
    with pytest.raises(ValueError, match=re.escape("'net': `features=low` of an image and its mirror image")):
        predicted(made("net", features={"low": DEPTH[:, None]}), flip_average=True, features=("low",))


def test_features_of_an_ensemble_are_refused(made):
    with pytest.raises(ValueError, match=re.escape("`features=('low',)` does not apply to ensemble teachers")):
        predicted(f"ensemble:{made('one')},{made('two')}", features=("low",))
