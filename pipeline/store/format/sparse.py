"""A depth probability map as its largest bins: within an error budget in nats, stated as achieved.

For each pixel the largest bins are kept until the rest, spread evenly, costs less than the budget. Kept bins are
stored in ascending order as steps from the one before (mostly 1, so nearly free), weights as logarithmic codes
(the same relative error for 0.5 and 0.0005), and the mass of all other bins as one more such code.

Shape legend: P pixels, K bins, M planes (the most bins that any pixel keeps), h w pixels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ...errors import PipelineError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

SMALLEST = 1e-6
"""Weights below this are stored as this."""
TRUNCATION_SHARE = 0.8
"""Part of the budget that leaving bins out may use; the rest is for the codes of the weights."""
VALUES_AT_ONCE = 2**17
"""Probabilities of so many pixels as stay in a processor's cache, with what is made of them on the way."""
SUM_TOLERANCE = 1e-3


class SparseMap(NamedTuple):
    """One sample's map. M is 0 where no pixel keeps a bin."""

    gap: NDArray[np.unsignedinteger]
    """(M, h, w); first kept bin + 1, then the step to each next one; 0 where a pixel keeps no more."""
    weight: NDArray[np.unsignedinteger]
    """(M, h, w); code of each kept bin's probability; 0 where there is none."""
    tail: NDArray[np.unsignedinteger]
    """(h, w); code of the probability that all other bins share evenly; 0 is none."""


def encode_weight(probability: NDArray[np.floating], bits: int) -> NDArray[np.uint16]:
    """Logarithmic code of probabilities: 0 for zero, 1 for one, 2^bits - 1 for SMALLEST and below."""
    last = 2**bits - 1
    with np.errstate(divide="ignore"):
        code = 1 + np.rint(np.log(np.minimum(probability, 1.0)) / np.log(SMALLEST) * (last - 1))
    return np.where(probability > 0, np.clip(code, 1, last), 0).astype(np.uint16)


def weight_table(bits: int) -> NDArray[np.float32]:
    """(2^bits,) probability of each code."""
    last = 2**bits - 1
    table: NDArray[np.float64] = np.exp(np.log(SMALLEST) * (np.arange(last + 1) - 1) / (last - 1))
    table[0] = 0
    return table.astype(np.float32)


def encode_sparse(
    probability: NDArray[np.float32], max_kl_nats: float, weight_bits: int
) -> tuple[SparseMap, NDArray[np.float64]]:
    """Map (K, h, w) as a SparseMap, with the KL divergence (h, w) of each pixel's true map from the stored one.

    Pixels whose map is NaN have no value: they keep nothing and their divergence is NaN. Raises PipelineError for
    probabilities that are negative or do not sum to 1, and where the mean divergence exceeds the budget.
    """
    bins, height, width = probability.shape
    flat = probability.reshape(bins, -1)
    each = _pixels_at_once(bins)
    parts = [
        _encode_pixels(flat[:, start : start + each].T.copy(), max_kl_nats, weight_bits)
        for start in range(0, flat.shape[1], each)
    ]
    planes = max(gap.shape[1] for gap, _, _, _ in parts)

    def planes_first(columns: list[NDArray[np.uint16]], dtype: str) -> NDArray[np.unsignedinteger]:
        whole = np.zeros((planes, height * width), dtype)
        start = 0
        for part in columns:
            whole[: part.shape[1], start : start + len(part)] = part.T
            start += len(part)
        return whole.reshape(planes, height, width)

    weight_dtype = "uint8" if weight_bits == 8 else "uint16"
    stored = SparseMap(
        planes_first([gap for gap, _, _, _ in parts], "uint8" if bins < 256 else "uint16"),
        planes_first([weight for _, weight, _, _ in parts], weight_dtype),
        np.concatenate([tail for _, _, tail, _ in parts]).astype(weight_dtype).reshape(height, width),
    )
    divergence = np.concatenate([kl for _, _, _, kl in parts]).reshape(height, width)
    mean = float(np.nanmean(divergence)) if np.isfinite(divergence).any() else 0.0
    if mean > max_kl_nats:
        raise PipelineError(
            f"the stored map is {mean:.2g} nats from the teacher's: {weight_bits}-bit weights cannot reach the asked "
            f"{max_kl_nats:g}; ask for more with `max_dpm_kl`, or store `dpm=dense`"
        )
    return stored, divergence


def _encode_pixels(
    given: NDArray[np.float32], max_kl_nats: float, weight_bits: int
) -> tuple[NDArray[np.uint16], NDArray[np.uint16], NDArray[np.uint16], NDArray[np.float64]]:
    """Gap (P, M), weight (P, M), tail (P,) and divergence (P,) of maps (P, K)."""
    pixels, bins = given.shape
    total: NDArray[np.float64] = given.sum(axis=1, dtype=np.float64)
    absent = np.isnan(total)  # as soon as one bin is; infinities of both signs are refused as negative
    total[absent] = 1
    off: NDArray[np.float64] = np.abs(total - 1)
    if np.any(given < 0) or float(off.max(initial=0)) > SUM_TOLERANCE:
        worst = float(total[off.argmax()])
        raise PipelineError(f"a teacher's map sums to {worst:.6g} or is negative: expected probabilities that sum to 1")
    given[absent] = 0
    ranked = np.sort(given, axis=1)[:, ::-1]
    true = ranked / total[:, np.newaxis]
    own = _x_log(true, true)
    count = _fewest_bins(np.cumsum(true, axis=1), np.cumsum(own, axis=1), TRUNCATION_SHARE * max_kl_nats)
    kept = _largest(given, ranked[np.arange(pixels), count - 1], count)
    kept[absent] = False
    count[absent] = 0

    planes = int(count.max(initial=0))
    row, which = np.nonzero(kept)  # ascending bins within each pixel
    place = np.arange(row.size) - (np.cumsum(count) - count)[row]
    gap = np.zeros((pixels, planes), np.uint16)
    gap[row, place] = np.where(place == 0, which + 1, np.diff(which, prepend=0))
    value = given[row, which] / total[row]
    code = encode_weight(value, weight_bits)
    weight = np.zeros((pixels, planes), np.uint16)
    weight[row, place] = code
    left = (given * ~kept).sum(axis=1, dtype=np.float64) / total
    tail = encode_weight(left, weight_bits)

    # What `_decode_pixels` will make of it, for the bins that were kept and for the share of each other one.
    table = weight_table(weight_bits)
    share = (table[tail] / np.maximum(bins - count, 1)).astype(np.float32)
    whole = np.bincount(row, table[code], pixels) + share.astype(np.float64) * (bins - count)
    whole[absent] = 1
    cost = _x_log(value, (table[code] / whole[row]).astype(np.float32))
    divergence = own.sum(axis=1) - np.bincount(row, cost, pixels) - _x_log(left, (share / whole).astype(np.float32))
    divergence[absent] = np.nan
    return gap, weight, tail, divergence


def _fewest_bins(mass: NDArray[np.float64], own: NDArray[np.float64], budget_nats: float) -> NDArray[np.int64]:
    """How many of its largest bins (P,) each pixel must keep, at least one.

    From cumulative sums (P, K) over bins by falling probability p, of p and of p log p. What it costs to spread the
    rest evenly falls with each bin that is kept (the chain rule of the divergence), so the place is found by halving.
    """
    pixels, bins = mass.shape
    row = np.arange(pixels)
    low, high = np.ones(pixels, np.int64), np.full(pixels, bins)
    while np.any(low < high):
        middle = (low + high) // 2
        rest = np.maximum(1 - mass[row, middle - 1], 0)
        cost = own[:, -1] - own[row, middle - 1] - _x_log(rest, rest / np.maximum(bins - middle, 1))
        enough = cost <= budget_nats
        high = np.where(enough, middle, high)
        low = np.where(enough, low, np.minimum(middle + 1, high))
    return high


def _largest(given: NDArray[np.float32], least: NDArray[np.float32], count: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which bins (P, K) are the `count` (P,) largest, the last of them being `least` (P,); of equal ones the first."""
    kept: NDArray[np.bool_] = given >= least[:, np.newaxis]
    (many,) = np.nonzero(kept.sum(axis=1) > count)
    equal = given[many] == least[many, np.newaxis]
    spare = count[many] - (kept[many] & ~equal).sum(axis=1)
    kept[many] &= ~equal | (np.cumsum(equal, axis=1) <= spare[:, np.newaxis])
    return kept


def _x_log(x: NDArray[np.float64], y: NDArray[np.float64] | NDArray[np.float32]) -> NDArray[np.float64]:
    """`x log y`, and 0 where x is 0."""
    product: NDArray[np.float64] = x * np.log(np.maximum(y, np.finfo(y.dtype).tiny))
    return product


def _decode_pixels(
    gap: NDArray[np.integer], weight: NDArray[np.integer], tail: NDArray[np.integer], bins: int, bits: int
) -> NDArray[np.float32]:
    """Maps (K, P) of planes (M, P) and tails (P,); pixels that keep nothing are NaN."""
    last = gap.sum(axis=0, dtype=np.int64).max(initial=0) - 1
    if last >= bins:
        raise PipelineError(f"a sparse map names bin {int(last)}: expected at most {bins - 1}")
    table, each, pixels = weight_table(bits), _pixels_at_once(bins), gap.shape[1]
    maps = np.empty((bins, pixels), np.float32)
    for start in range(0, pixels, each):
        here = slice(start, start + each)
        present = gap[:, here] > 0
        count = present.sum(axis=0)
        # Planes that a pixel does not use write to a row of their own, which is cut off.
        target = np.where(present, np.cumsum(gap[:, here], axis=0, dtype=np.intp) - 1, bins)
        whole = np.empty((bins + 1, count.size), np.float32)
        whole[:] = table[tail[here]] / np.maximum(bins - count, 1)
        whole.reshape(-1)[target * count.size + np.arange(count.size)] = table.take(weight[:, here])
        np.divide(whole[:bins], _totals(whole[:bins], count), out=maps[:, here], casting="same_kind")
    return maps


def decode_planes(
    pairs: Iterable[tuple[NDArray[np.unsignedinteger], NDArray[np.unsignedinteger]]],
    tail: NDArray[np.unsignedinteger],
    bins: int,
    weight_bits: int,
) -> NDArray[np.float32]:
    """`decode_sparse`, to the same bits, of gaps and weights (M, h, w) that come a few planes at a time.

    Takes no memory beside the map but for those few. Planes beyond the last used one are 0.
    """
    table, pixels, rest = weight_table(weight_bits), tail.size, tail.reshape(-1)
    maps = np.full((bins, pixels), -1, np.float32)
    place, count = np.full(pixels, -1, np.intp), np.zeros(pixels, np.intp)
    for gaps, weights in pairs:
        for gap, weight in zip(gaps.reshape(len(gaps), -1), weights.reshape(len(weights), -1), strict=True):
            (present,) = np.nonzero(gap)
            at = place[present] + gap[present]
            if at.size and int(at.max()) >= bins:
                raise PipelineError(f"a sparse map names bin {int(at.max())}: expected at most {bins - 1}")
            place[present] = at
            maps[at, present] = table.take(weight[present])
            count[present] += 1
    each = _pixels_at_once(bins)
    for start in range(0, pixels, each):
        here = slice(start, start + each)
        share = (table[rest[here]] / np.maximum(bins - count[here], 1)).astype(np.float32)
        block = maps[:, here]
        whole = np.where(block < 0, share, block)
        np.divide(whole, _totals(whole, count[here]), out=block, casting="same_kind")
    return maps.reshape(bins, *tail.shape)


def _totals(whole: NDArray[np.float32], count: NDArray[np.integer]) -> NDArray[np.float64]:
    """Sums (P,) of maps (K, P) before they are made 1; NaN for pixels that keep nothing. Raises PipelineError for 0."""
    total: NDArray[np.float64] = whole.sum(axis=0, dtype=np.float64)
    total[count == 0] = np.nan
    if np.any(total <= 0):
        raise PipelineError("a sparse map keeps bins but no probability: expected weights above 0")
    return total


def _pixels_at_once(bins: int) -> int:
    return max(1, VALUES_AT_ONCE // bins)


def decode_sparse(stored: SparseMap, bins: int, weight_bits: int) -> NDArray[np.float32]:
    """Map (K, h, w) float32 that sums to 1, NaN where there is no value.

    Raises PipelineError for a bin beyond K, or a map without weight.
    """
    planes, height, width = stored.gap.shape
    flat = _decode_pixels(
        stored.gap.reshape(planes, height * width),  # planes may be none
        stored.weight.reshape(planes, height * width),
        stored.tail.reshape(-1),
        bins,
        weight_bits,
    )
    return flat.reshape(bins, height, width)
