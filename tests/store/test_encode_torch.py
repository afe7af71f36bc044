"""Depth that a GPU encodes has the bits of the CPU encoder; tested on CPU tensors."""

from __future__ import annotations

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.store.format.codec import LogCodec, residual_of_codes
from pipeline.store.write.encode_torch import DepthEncoder, counts_of, thresholds_m

CODECS = [
    LogCodec.for_error(0.0005, 0.1, 300.0),
    LogCodec.for_error(0.01, 0.1, 300.0),
    LogCodec.for_error(0.2, 0.3, 7.0),
    LogCodec(16, 0.1, 300.0),
]
BIN_RANGE_M = (0.5, 80.0)


def neighbors(depth_m):
    """Each number with the float32 numbers around it."""
    return np.stack([np.nextafter(depth_m, np.float32(0)), depth_m, np.nextafter(depth_m, np.float32(np.inf))])


def check(codec, depth_m):
    residual, statistics = DepthEncoder(codec, BIN_RANGE_M).encode(torch.from_numpy(depth_m)[None])
    counts = counts_of(statistics[0].numpy())
    codes, clipped = codec.encode(depth_m)
    np.testing.assert_array_equal(residual[0].numpy().view(np.uint16), residual_of_codes(codes))
    valid = ~np.isnan(depth_m)
    counted = valid & ~clipped
    error = np.abs(codec.decode(codes)[counted].astype(np.float64) / depth_m[counted] - 1)
    assert counts.max_rel_error == error.max(initial=0.0)
    assert (counts.invalid, counts.infinite, counts.nonpositive) == (np.count_nonzero(~valid), 0, 0)
    assert counts.clipped == np.count_nonzero(clipped)
    known = depth_m[valid]
    outside = (known < BIN_RANGE_M[0]) | (known > BIN_RANGE_M[1])
    assert counts.outside_bins == np.count_nonzero(outside)
    assert counts.is_constant == (not known.size or known.min() == known.max())


@pytest.mark.parametrize("codec", CODECS, ids=str)
def test_codes_are_the_same_on_both_sides_of_every_threshold(codec):
    check(codec, neighbors(thresholds_m(codec)))
    check(codec, neighbors(np.array([codec.lo_m, codec.hi_m, *BIN_RANGE_M], np.float32)))


@settings(max_examples=200, deadline=None)
@given(
    hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=2, max_dims=2, max_side=9),
        elements=st.one_of(
            st.just(np.nan),
            st.floats(2.0**-126, 2.0**60, width=32),
            st.floats(0.0625, 512, width=32),
        ),
    ),
    st.sampled_from(CODECS),
)
def test_any_depth_has_the_same_residual_and_counts(depth_m, codec):
    check(codec, depth_m)


def test_every_code_that_the_cpu_gives_is_given():
    codec = CODECS[1]
    depth_m = np.geomspace(0.05, 400, 200_000, dtype=np.float32).reshape(400, 500)
    check(codec, depth_m)
    check(codec, np.random.default_rng(0).permuted(depth_m, axis=1))


def test_images_of_a_batch_are_encoded_and_counted_apart():
    depth_m = torch.tensor([[[1.0, 2.0], [3.0, torch.nan]], [[5.0, 5.0], [5.0, 5.0]], [[-1.0, 0.0], [torch.inf, 900]]])
    residual, statistics = DepthEncoder(CODECS[0], BIN_RANGE_M).encode(depth_m)
    for index in range(2):
        codes, _ = CODECS[0].encode(depth_m[index].numpy())
        np.testing.assert_array_equal(residual[index].numpy().view(np.uint16), residual_of_codes(codes))
    first, constant, wrong = (counts_of(row) for row in statistics.numpy())
    assert (first.invalid, first.is_constant) == (1, False)
    assert constant.is_constant
    assert (wrong.infinite, wrong.nonpositive, wrong.outside_bins) == (1, 2, 3)
