"""A view changes intrinsics as it changes pixels: a point of space stays on the pixel that shows it."""

import math

import numpy as np
import pytest

from pipeline.sources.intrinsics import Intrinsics
from pipeline.sources.view import View

CAMERA = Intrinsics(500.0, 400.0, 300.0, 190.0)
IMAGE_PX = (400, 640)
POINT_M = np.array([0.7, -0.4, 5.0])


def project(camera, point_m):
    return (
        camera.fx_px * point_m[0] / point_m[2] + camera.cx_px,
        camera.fy_px * point_m[1] / point_m[2] + camera.cy_px,
    )


@pytest.mark.parametrize("text", ["full", "center:320x480", "full,resize:100x320", "kb,resize:88x304"])
@pytest.mark.parametrize("mirror", [False, True])
def test_a_point_stays_on_its_pixel(text, mirror):
    image_px = (375, 1242) if text.startswith("kb") else IMAGE_PX
    view = View.parse(text + ",mirror" * mirror)
    of_view = view.of_intrinsics(CAMERA, image_px)
    x, y = project(CAMERA, POINT_M)
    top, left, height, width = view.box_px(*image_px)
    size = view.size_px(*image_px)
    expected = ((x - left + 0.5) * size[1] / width - 0.5, (y - top + 0.5) * size[0] / height - 0.5)
    point_m = POINT_M * [-1, 1, 1] if mirror else POINT_M  # a mirrored image shows a mirrored world
    x, y = project(of_view, point_m)
    assert (size[1] - 1 - x if mirror else x, y) == pytest.approx(expected)


def test_a_ramp_of_columns_is_resized_to_the_same_coordinates():
    ramp = np.tile(np.arange(64, dtype=np.uint8)[None, :, None], (8, 1, 3))
    half = View.parse("full,resize:4x32").of_image(ramp)
    camera = View.parse("full,resize:4x32").of_intrinsics(Intrinsics(1, 1, 31, 3), (8, 64))
    assert np.interp(camera.cx_px, np.arange(32), half[0, :, 0]) == pytest.approx(31, abs=0.51)  # rounded to uint8


def test_what_is_unknown_stays_unknown():
    camera = View.parse("center:320x480,resize:160x240").of_intrinsics(Intrinsics.of_focal(500.0), IMAGE_PX)
    assert camera[:2] == (250.0, 250.0)
    assert math.isnan(camera.cx_px)
    assert camera.has_focal
    assert not Intrinsics(math.nan, math.nan, 3.0, 4.0).has_focal
