"""The camera of a training crop: a point of space stays on the pixel that shows it."""

import numpy as np
import pytest

from pipeline.sources.intrinsics import Intrinsics
from pipeline.train.augment import Geometry

VIEW_PX = (120, 200)
CAMERA = Intrinsics(150.0, 150.0, 95.0, 62.0)


@pytest.mark.parametrize("angle_deg", [0.0, 2.5, -2.0])
@pytest.mark.parametrize("mirrored", [False, True])
def test_the_crop_shows_a_point_where_its_camera_says(angle_deg, mirrored):
    geometry = Geometry(float(np.deg2rad(angle_deg)), mirrored, 13, 31, (80, 110))
    of_crop = geometry.of_intrinsics(CAMERA, VIEW_PX)
    rows, columns = geometry.source_positions(VIEW_PX, geometry.size_px)
    for row, column in ((10, 20), (70, 3), (40, 100)):
        # The ray of the view's pixel that this pixel of the crop shows
        x = (columns[row, column] - CAMERA.cx_px) / CAMERA.fx_px
        y = (rows[row, column] - CAMERA.cy_px) / CAMERA.fy_px
        # The same ray, in the crop's camera: turned about the axis, and mirrored
        seen_x = (column - of_crop.cx_px) / of_crop.fx_px * (-1 if mirrored else 1)
        seen_y = (row - of_crop.cy_px) / of_crop.fy_px
        angle = geometry.angle_rad
        turned = (np.cos(angle) * seen_x - np.sin(angle) * seen_y, np.cos(angle) * seen_y + np.sin(angle) * seen_x)
        assert turned == pytest.approx((x, y), abs=1e-9)


def test_without_an_augmentation_the_camera_is_that_of_the_view():
    whole = Geometry(0.0, mirrored=False, top=0, left=0, size_px=VIEW_PX)
    assert whole.of_intrinsics(CAMERA, VIEW_PX) == CAMERA
