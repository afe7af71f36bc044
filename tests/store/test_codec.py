"""Codes, residuals, chunks and sparse maps: exact, or within the error they state."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from pipeline.errors import DamagedStoreError
from pipeline.store.format import prefix_sum as scan
from pipeline.store.format import sparse
from pipeline.store.format.codec import (
    AffineCodec,
    LogCodec,
    codes_of_residual,
    decode_chunk,
    encode_chunk,
    residual_of_codes,
)
from pipeline.store.format.sparse import decode_sparse, encode_sparse, encode_weight, weight_table

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


@st.composite
def residuals(draw):
    """A residual as it is read: sound, rotten in one value, or anything; of any number of bits and any width."""
    bits, shape = draw(st.integers(2, 16)), draw(images)
    if draw(st.booleans()):
        return bits, draw(arrays(np.uint16, shape))
    codes = draw(arrays(np.uint16, shape, elements=st.one_of(st.integers(0, 2**bits - 1), st.just(2**bits - 1))))
    residual = residual_of_codes(codes)
    if draw(st.booleans()):
        place = tuple(draw(st.integers(0, side - 1)) for side in shape)
        residual[place] ^= 1 << draw(st.integers(0, 15))
    return bits, residual


def outcome(decode, *given):
    try:
        return decode(*given)
    except DamagedStoreError:
        return "damaged"


@settings(max_examples=200, deadline=None)
@given(residuals())
def test_sums_by_words_are_sums_modulo_2_to_the_16_or_refused_as_those_are(given_residual):
    bits, residual = given_residual
    codes = codes_of_residual(residual)
    log, affine = LogCodec(bits, 0.1, 300.0), AffineCodec(bits)
    for codec, more in ((log, ()), (affine, (0.37, -5.0))):
        plain = outcome(codec.decode, codes, *more)
        quick = outcome(codec.decode_residual, residual.copy(), *more)
        assert isinstance(quick, str) == isinstance(plain, str) == (int(codes.max()) >= 2**bits)
        assert isinstance(quick, str) or np.array_equal(quick, plain, equal_nan=True)


@pytest.mark.parametrize("last", [2**13 - 1, 2**14 - 1])
def test_sums_by_words_bear_the_steepest_image(last):
    codes = (np.indices((40, 37)).sum(axis=0) % 2 * last).astype(np.uint16)
    assert np.array_equal(scan.sum_by_words(residual_of_codes(codes)), codes)


def test_relative_values_are_the_formula_of_the_format_to_the_last_bit():
    codes = np.random.default_rng(0).integers(0, 2**13, (31, 50), dtype=np.uint16)
    expected = ((codes.astype(np.float64) - 1) * 0.123 + 4.5).astype(np.float32)
    expected[codes == 0] = np.nan
    assert np.array_equal(AffineCodec(13).decode(codes, 0.123, 4.5), expected, equal_nan=True)


def test_large_memory_is_not_kept():
    wide = scan.scratch("test", (scan.MAX_BUFFER_BYTES + 1,), np.uint8)
    assert not np.shares_memory(wide, scan.scratch("test", (8,), np.uint8))
    assert np.shares_memory(scan.scratch("test", (8,), np.uint8), scan.scratch("test", (2, 2), np.uint16))


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
    with pytest.raises(ValueError, match="1 pixels have invalid depth such as .* expected finite and positive"):
        LogCodec.for_error(1e-3, 1.0, 10.0).encode(np.array([[2.0, bad]], np.float32))


def test_an_error_beyond_16_bits_is_refused_with_what_they_reach():
    with pytest.raises(ValueError, match="16 bits over 0.1-300 m reach 6.1e-05"):
        LogCodec.for_error(1e-6, 0.1, 300.0)


def test_a_code_beyond_the_last_is_damage():
    with pytest.raises(DamagedStoreError, match="depth code 9000 is out of range: expected at most 8191"):
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


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 4, 5), (6, 1, 1), (9, 5, 7)])
def test_a_map_is_stored_alike_in_blocks_of_any_size_and_left_as_it_is(monkeypatch, shape):
    dpm = random_maps(5, shape[0], 2.0, shape[1:])
    dpm[:, 0, 0] = np.nan
    before = dpm.copy()
    whole, stated = encode_sparse(dpm, 0.01, 8)
    read = decode_sparse(whole, shape[0], 8)
    monkeypatch.setattr(sparse, "VALUES_AT_ONCE", 3 * shape[0])
    parts, stated_of_parts = encode_sparse(dpm, 0.01, 8)
    assert all(np.array_equal(one, other) for one, other in zip(whole, parts, strict=True))
    assert np.array_equal(stated, stated_of_parts, equal_nan=True)
    assert np.array_equal(read, decode_sparse(whole, shape[0], 8), equal_nan=True)
    assert np.array_equal(dpm, before, equal_nan=True)


def test_of_equal_bins_the_first_are_kept_and_no_more_than_are_needed():
    dpm = np.array([0.05, 0.3, 0.05, 0.3, 0.0, 0.3], np.float32).reshape(6, 1, 1)
    stored, _ = encode_sparse(dpm, 0.1, 8)
    assert stored.gap[:, 0, 0].tolist() == [2, 2, 2]
    stored, _ = encode_sparse(dpm, 0.046, 8)
    assert stored.gap[:, 0, 0].tolist() == [1, 1, 2, 2]


@given(st.integers(0, 2**32), st.integers(1, 40), st.floats(0, 20), st.floats(1e-4, 0.5))
def test_the_fewest_bins_within_the_budget_are_kept(seed, bins, sharpness, budget):
    dpm = random_maps(seed, bins, sharpness, (2, 2)).astype(np.float64)
    ranked = np.sort((dpm / dpm.sum(axis=0)).reshape(bins, -1), axis=0)[::-1]
    for pixel, count in zip(ranked.T, fewest(ranked, budget), strict=True):
        costs = [spread_cost(pixel[kept:]) for kept in range(1, bins + 1)]
        near = 1e-9 * (1 + budget)
        assert costs[count - 1] <= budget + near
        assert all(cost > budget - near for cost in costs[: count - 1])


def fewest(ranked, budget):
    own = ranked * np.log(np.maximum(ranked, 1e-300))
    return sparse._fewest_bins(np.cumsum(ranked.T, axis=1), np.cumsum(own.T, axis=1), budget)


def spread_cost(left):
    """Divergence, in nats, of probabilities from their own mean."""
    total = left.sum()
    return 0.0 if total <= 0 else float(sum(p * np.log(p * left.size / total) for p in left if p > 0))


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
    with pytest.raises(ValueError, match="uses bin"):
        decode_sparse(stored, 4, 8)


@pytest.mark.parametrize("bits", [8, 16])
def test_weights_keep_their_relative_error_down_to_a_millionth(bits):
    probability = np.geomspace(1e-6, 1, 1000)
    back = weight_table(bits)[encode_weight(probability, bits)]
    assert np.abs(back / probability - 1).max() < {8: 0.028, 16: 1.1e-4}[bits]
