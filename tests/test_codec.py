"""Codes, residuals, chunks and sparse maps: exact, or within the error they state."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from pipeline.store.codec import (
    AffineCodec,
    DamagedStoreError,
    LogCodec,
    codes_of_residual,
    decode_chunk,
    encode_chunk,
    residual_of_codes,
)
from pipeline.store.sparse import decode_sparse, encode_sparse, encode_weight, weight_table

images = array_shapes(min_dims=2, max_dims=2, max_side=20)


@given(arrays(np.uint16, images))
def test_every_image_of_codes_survives_the_residual(codes):
    assert np.array_equal(codes_of_residual(residual_of_codes(codes)), codes)


@given(arrays(np.uint16, images))
def test_the_residual_is_what_the_format_says(codes):
    wide = np.pad(codes.astype(np.int64), ((1, 0), (1, 0)))
    plane = wide[1:, 1:] - wide[1:, :-1] - wide[:-1, 1:] + wide[:-1, :-1]
    signed = (plane + 2**15) % 2**16 - 2**15
    assert np.array_equal(residual_of_codes(codes), np.where(signed >= 0, 2 * signed, -2 * signed - 1))


@given(
    arrays(
        st.sampled_from([np.uint8, np.uint16, np.float16]),
        array_shapes(max_side=9),
        elements=st.integers(0, 200),
    )
)
def test_every_chunk_survives_its_bytes(array):
    assert np.array_equal(decode_chunk(encode_chunk(array), array.shape, array.dtype), array)


@given(arrays(np.uint16, (5, 7)), st.data())
def test_a_chunk_with_any_bit_flipped_is_refused(array, data):
    chunk = bytearray(encode_chunk(array))
    place = data.draw(st.integers(0, len(chunk) * 8 - 1))
    chunk[place // 8] ^= 1 << place % 8
    with pytest.raises(DamagedStoreError):
        decode_chunk(bytes(chunk), array.shape, array.dtype)


def test_a_chunk_that_declares_more_than_its_array_has_is_refused_before_it_is_unpacked():
    bomb = encode_chunk(np.zeros(10**7, np.uint8))
    assert len(bomb) < 50_000
    with pytest.raises(DamagedStoreError, match="declares 10000000 bytes: expected 8"):
        decode_chunk(bomb, (4,), np.dtype(np.uint16))


ranges = st.tuples(st.floats(1e-3, 10), st.floats(1.01, 1e4)).map(lambda pair: (pair[0], pair[0] * pair[1]))


@settings(deadline=None)
@given(ranges, st.floats(1e-3, 0.2), st.sampled_from([np.float16, np.float32]), st.data())
def test_the_relative_error_never_exceeds_the_asked_one(depth_range, asked, dtype, data):
    low, high = depth_range
    codec = LogCodec.for_error(asked, low, high)
    shares = data.draw(arrays(np.float64, (3, 4), elements=st.floats(0, 1)))
    depth_m = np.clip(low * (high / low) ** shares, low, min(high, np.finfo(dtype).max)).astype(dtype)
    depth_m[0, 0] = np.nan
    codes, clipped = codec.encode(depth_m)
    inside = ~clipped & ~np.isnan(depth_m)
    back = codec.decode(codes).astype(np.float64)
    assert np.isnan(back[0, 0])
    exact = depth_m.astype(np.float64)
    assert (np.abs(back - exact)[inside] <= asked * exact[inside]).all()


def test_the_fewest_bits_that_meet_the_error_are_chosen():
    assert LogCodec.for_error(5e-4, 0.1, 300.0).bits == 13
    assert LogCodec(12, 0.1, 300.0).max_rel_error > 5e-4


def test_depth_beyond_the_range_is_clipped_and_told_never_wrapped():
    codec = LogCodec.for_error(1e-3, 1.0, 10.0)
    codes, clipped = codec.encode(np.array([[0.5, 1.0, 10.0, 1e4]], np.float32))
    assert clipped.tolist() == [[True, False, False, True]]
    assert codec.decode(codes) == pytest.approx(np.array([[1, 1, 10, 10]]))


@pytest.mark.parametrize("bad", [0.0, -1.0, np.inf])
def test_depth_that_no_metric_teacher_gives_is_an_error(bad):
    with pytest.raises(ValueError, match="1 pixels of depth such as .* expected finite and above 0"):
        LogCodec.for_error(1e-3, 1.0, 10.0).encode(np.array([[2.0, bad]], np.float32))


def test_an_error_beyond_16_bits_is_refused_with_what_they_reach():
    with pytest.raises(ValueError, match="16 bits over 0.1-300 m reach 6.1e-05"):
        LogCodec.for_error(1e-6, 0.1, 300.0)


def test_a_code_beyond_the_last_is_damage():
    with pytest.raises(DamagedStoreError, match="depth code 9000: expected at most 8191"):
        LogCodec(13, 0.1, 300.0).decode(np.array([[9000]], np.uint16))


@given(arrays(np.float32, (4, 5), elements=st.floats(-1e4, 1e4, width=32)), st.floats(1e-4, 0.1))
def test_relative_values_keep_the_asked_share_of_their_range(values, asked):
    codec = AffineCodec.for_error(asked)
    codes, scale, offset = codec.encode(values)
    span = float(values.max()) - float(values.min())
    rounding = np.spacing(np.abs(values).max())
    assert np.abs(codec.decode(codes, scale, offset) - values).max() <= asked * span + rounding


def test_relative_values_keep_their_invalid_pixels():
    values = np.array([[np.nan, 1.0], [3.0, -2.0]], np.float32)
    codes, scale, offset = AffineCodec.for_error(1e-3).encode(values)
    assert np.isnan(AffineCodec.for_error(1e-3).decode(codes, scale, offset)).tolist() == [
        [True, False],
        [False, False],
    ]


def random_maps(seed, bins, sharpness, size=(5, 6)):
    logits = np.random.default_rng(seed).normal(0, sharpness, (bins, *size))
    dpm = np.exp(logits - logits.max(axis=0))
    return (dpm / dpm.sum(axis=0)).astype(np.float32)


@settings(deadline=None)
@given(
    st.integers(0, 2**32),
    st.sampled_from([1, 2, 7, 64, 255, 256, 300]),
    st.floats(0, 30),
    st.sampled_from([2e-3, 0.01, 0.3]),
)
def test_a_sparse_map_stays_within_its_budget_and_says_how_far_it_is(seed, bins, sharpness, budget):
    dpm = random_maps(seed, bins, sharpness)
    stored, stated = encode_sparse(dpm, budget, 8)
    back = decode_sparse(stored, bins, 8).astype(np.float64)
    true = dpm.astype(np.float64) / dpm.sum(axis=0, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        divergence = np.where(true > 0, true * np.log(true / back), 0).sum(axis=0)
    assert back.sum(axis=0) == pytest.approx(1, abs=1e-5)
    assert divergence == pytest.approx(stated, abs=1e-4)
    assert divergence.mean() <= budget + 1e-6


def test_a_tight_budget_takes_16_bit_weights():
    stored, stated = encode_sparse(random_maps(1, 40, 2.0), 1e-5, 16)
    assert stored.weight.dtype == np.uint16
    assert stated.mean() <= 1e-5


def test_a_peaked_map_takes_few_planes_and_a_flat_one_none_beyond_its_budget():
    peaked = np.full((50, 2, 2), 1e-9, np.float32)
    peaked[20] = 1
    stored, _ = encode_sparse(peaked, 0.01, 8)
    assert stored.gap.shape == (1, 2, 2)
    assert (stored.gap == 21).all()
    flat, stated = encode_sparse(np.full((50, 2, 2), 1 / 50, np.float32), 0.01, 8)
    assert len(flat.gap) == 1
    assert stated.max() < 0.01


def test_pixels_without_a_map_come_back_without_one():
    dpm = random_maps(3, 20, 2.0)
    dpm[:, 1, 2] = np.nan
    stored, stated = encode_sparse(dpm, 0.01, 8)
    back = decode_sparse(stored, 20, 8)
    assert np.isnan(back[:, 1, 2]).all()
    assert np.isnan(stated[1, 2])
    assert np.isfinite(back).sum() == 20 * 29


@pytest.mark.parametrize("factor", [0.5, 1.1])
def test_a_map_that_does_not_sum_to_one_is_an_error(factor):
    with pytest.raises(ValueError, match="expected probabilities that sum to 1"):
        encode_sparse(random_maps(0, 8, 1.0) * np.float32(factor), 0.01, 8)


def test_a_sparse_map_that_names_a_bin_beyond_the_last_is_refused():
    stored, _ = encode_sparse(random_maps(0, 8, 1.0), 0.01, 8)
    with pytest.raises(ValueError, match="names bin"):
        decode_sparse(stored, 4, 8)


@pytest.mark.parametrize("bits", [8, 16])
def test_weights_keep_their_relative_error_down_to_a_millionth(bits):
    probability = np.geomspace(1e-6, 1, 1000)
    back = weight_table(bits)[encode_weight(probability, bits)]
    assert np.abs(back / probability - 1).max() < {8: 0.028, 16: 1.1e-4}[bits]
