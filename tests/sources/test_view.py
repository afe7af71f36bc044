"""Views: what is cut out, and how it is written."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from pipeline.sources.view import LIMIT_PX, View

SIDES = st.integers(1, 500)
SIZES = st.tuples(SIDES, SIDES)


@st.composite
def views(draw):
    resize = draw(st.none() | SIZES)
    suffix = f",resize:{resize[0]}x{resize[1]}" if resize else ""
    crop = draw(st.just("full") | st.just("kb") | SIZES.map(lambda size: f"center:{size[0]}x{size[1]}"))
    return View.parse(crop + suffix)


@given(views())
def test_a_view_reads_back_from_its_text(view):
    assert View.parse(str(view)) == view


@given(views(), st.integers(1, 2000), st.integers(1, 2000))
def test_the_box_lies_inside_the_image_or_is_refused(view, height, width):
    fits = view.crop_size_px is None or (view.crop_size_px[0] <= height and view.crop_size_px[1] <= width)
    if not fits:
        with pytest.raises(ValueError, match=rf"{height}x{width} px is smaller than the view .*`view`"):
            view.box_px(height, width)
        return
    top, left, box_height, box_width = view.box_px(height, width)
    assert 0 <= top <= top + box_height <= height
    assert 0 <= left <= left + box_width <= width
    assert (box_height, box_width) == (view.crop_size_px or (height, width))


@given(SIZES, st.none() | SIZES)
def test_image_and_truth_have_the_size_that_the_view_says(crop, resize):
    assume(crop[0] * crop[1] < 20_000)
    assume(resize is None or resize[0] * resize[1] < 20_000)
    view = View("center", crop, resize)
    height, width = crop[0] + 3, crop[1] + 2
    assert view.of_image(np.zeros((height, width, 3), np.uint8)).shape == (*view.size_px(height, width), 3)
    assert view.of_depth(np.zeros((height, width), np.float32), (height, width)).shape == view.size_px(height, width)


@pytest.mark.parametrize(
    "text", ["", "kb:3x4", "center", "center:3", "center:0x4", "full,resize:4x0", "full,resize:-1x4", "full "]
)
def test_another_text_is_refused_with_the_value(text):
    with pytest.raises(ValueError, match="view"):
        View.parse(text)


def test_a_side_beyond_the_limit_is_refused_before_anything_is_allocated():
    with pytest.raises(ValueError, match=f"at most {LIMIT_PX} pixels"):
        View.parse(f"full,resize:{LIMIT_PX + 1}x4")


def test_the_kb_crop_lies_at_the_bottom_center():
    assert View.parse("kb").box_px(375, 1242) == (23, 13, 352, 1216)


def test_a_view_without_resize_copies_the_very_pixels():
    image = np.random.default_rng(0).integers(0, 256, (9, 11, 3), dtype=np.uint8)
    assert (View.parse("center:3x5").of_image(image) == image[3:6, 3:8]).all()


def test_resizing_truth_takes_the_nearest_pixel_and_invents_none():
    truth_m = np.array([[1, 9], [np.nan, 3]], np.float32)
    seen = View.parse("full,resize:4x4").of_depth(truth_m, truth_m.shape)
    np.testing.assert_array_equal(seen, np.repeat(np.repeat(truth_m, 2, 0), 2, 1))


@pytest.mark.parametrize("text", ["full", "center:4x4", "full,resize:3x3"])
@pytest.mark.filterwarnings("error")
def test_a_viewed_image_becomes_a_tensor_without_warning(text):
    torch.from_numpy(View.parse(text).of_image(np.zeros((6, 6, 3), np.uint8)))


@pytest.mark.parametrize("text", ["full,resize:16384x16384", "kb,resize:8192x4097"])
def test_a_view_that_asks_for_gigabytes_is_refused_before_any_is_taken(text):
    with pytest.raises(ValueError, match="expected at most 33554432 pixels in total"):
        View.parse(text)


def test_a_view_as_large_as_the_largest_image_is_taken():
    assert View.parse("full,resize:8192x4096").resize_px == (8192, 4096)
