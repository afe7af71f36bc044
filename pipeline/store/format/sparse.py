"""Sparse depth probability maps: the largest bins of each pixel, within an error budget in nats.

Each pixel keeps its largest bins until spreading the rest evenly costs less than the budget. Kept bins are stored in
ascending order as gaps from the previous bin (mostly 1, so nearly free), weights as logarithmic codes (the same
relative error for 0.5 and 0.0005), and the mass of all other bins (the tail) as one more code.

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
TRUNCATION_FRACTION = 0.8
"""Fraction of the budget for dropped bins; the rest is for the codes of the weights."""
VALUES_AT_ONCE = 2**17
"""Probabilities processed at once: these and their intermediates fit a processor's cache."""
SUM_TOLERANCE = 1e-3


class SparseMap(NamedTuple):
    """One sample's map. M is 0 if no pixel keeps a bin."""

    gap: NDArray[np.unsignedinteger]
    """(M, h, w); first kept bin + 1, then the gap to each next one; 0 after a pixel's last bin."""
    weight: NDArray[np.unsignedinteger]
    """(M, h, w); code of each kept bin's probability; 0 without a bin."""
    tail: NDArray[np.unsignedinteger]
    """(h, w); code of the probability spread evenly over all other bins; 0 is none."""


def encode_weight(probability: NDArray[np.floating], bits: int) -> NDArray[np.uint16]:
    """Return logarithmic codes of probabilities: 0 for zero, 1 for one, 2^bits - 1 for SMALLEST and below."""
    last = 2**bits - 1
    with np.errstate(divide="ignore"):
        code = 1 + np.rint(np.log(np.minimum(probability, 1.0)) / np.log(SMALLEST) * (last - 1))
    return np.where(probability > 0, np.clip(code, 1, last), 0).astype(np.uint16)


def weight_table(bits: int) -> NDArray[np.float32]:
    """Return the probability (2^bits,) of each code."""
    last = 2**bits - 1
    table: NDArray[np.float64] = np.exp(np.log(SMALLEST) * (np.arange(last + 1) - 1) / (last - 1))
    table[0] = 0
    return table.astype(np.float32)


def encode_sparse(
    probability: NDArray[np.float32], max_kl_nats: float, weight_bits: int
) -> tuple[SparseMap, NDArray[np.float64]]:
    """Encode a map (K, h, w). Returns it with KL(map || stored map) (h, w) in nats.

    Invalid pixels (NaN) keep no bins, and their divergence is NaN. Raises PipelineError for probabilities that are
    negative or do not sum to 1, and if the mean divergence exceeds the budget.
    """
    bins, height, width = probability.shape
    flat = probability.reshape(bins, -1)
    each = _pixels_at_once(bins)
    parts = [
        encode_pixels(flat[:, start : start + each].T.copy(), max_kl_nats, weight_bits)
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
            f"the stored map differs by {mean:.2g} nats from the teacher's: {weight_bits}-bit weights cannot reach "
            f"`max_dpm_kl={max_kl_nats:g}`; use a larger `max_dpm_kl`, or `dpm=dense`"
        )
    return stored, divergence


def encode_pixels(
    given: NDArray[np.float32], max_kl_nats: float, weight_bits: int
) -> tuple[NDArray[np.uint16], NDArray[np.uint16], NDArray[np.uint16], NDArray[np.float64]]:
    """Return gap (P, M), weight (P, M), tail (P,) and divergence (P,) of maps (P, K)."""
    pixels, bins = given.shape
    total: NDArray[np.float64] = given.sum(axis=1, dtype=np.float64)
    absent = np.isnan(total)  # one NaN bin is enough; infinities are refused below
    total[absent] = 1
    off: NDArray[np.float64] = np.abs(total - 1)
    if np.any(given < 0) or float(off.max(initial=0)) > SUM_TOLERANCE:
        worst = float(total[off.argmax()])
        raise PipelineError(
            f"the teacher's map sums to {worst:.6g} or has negative values: expected probabilities that sum to 1"
        )
    given[absent] = 0
    ranked = np.sort(given, axis=1)[:, ::-1]
    true = ranked / total[:, np.newaxis]
    own = _x_log(true, true)
    count = _fewest_bins(np.cumsum(true, axis=1), np.cumsum(own, axis=1), TRUNCATION_FRACTION * max_kl_nats)
    kept = _largest(given, ranked[np.arange(pixels), count - 1], count)
    kept[absent] = False
    count[absent] = 0

    planes = int(count.max(initial=0))
    row, which = np.nonzero(kept)  # ascending bins within each pixel
    plane = np.arange(row.size) - (np.cumsum(count) - count)[row]
    gap = np.zeros((pixels, planes), np.uint16)
    gap[row, plane] = np.where(plane == 0, which + 1, np.diff(which, prepend=0))
    value = given[row, which] / total[row]
    code = encode_weight(value, weight_bits)
    weight = np.zeros((pixels, planes), np.uint16)
    weight[row, plane] = code
    left = (given * ~kept).sum(axis=1, dtype=np.float64) / total
    tail = encode_weight(left, weight_bits)

    # The decoded probabilities, as in `_decode_pixels`: of kept bins, and of each other bin.
    table = weight_table(weight_bits)
    share = (table[tail] / np.maximum(bins - count, 1)).astype(np.float32)
    whole = np.bincount(row, table[code], pixels) + share.astype(np.float64) * (bins - count)
    whole[absent] = 1
    cost = _x_log(value, (table[code] / whole[row]).astype(np.float32))
    divergence = own.sum(axis=1) - np.bincount(row, cost, pixels) - _x_log(left, (share / whole).astype(np.float32))
    divergence[absent] = np.nan
    return gap, weight, tail, divergence


def _fewest_bins(mass: NDArray[np.float64], own: NDArray[np.float64], budget_nats: float) -> NDArray[np.int64]:
    """Return how many of its largest bins each pixel must keep (P,), at least one.

    `mass` and `own` are cumulative sums (P, K) of p and of p log p over bins by falling probability p. The cost of
    spreading the rest evenly falls with each kept bin (chain rule of the divergence), so bisection finds the count.
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
    """Mask (P, K) of the `count` (P,) largest bins, the smallest of which is `least` (P,); ties keep the first."""
    kept: NDArray[np.bool_] = given >= least[:, np.newaxis]
    (many,) = np.nonzero(kept.sum(axis=1) > count)
    equal = given[many] == least[many, np.newaxis]
    spare = count[many] - (kept[many] & ~equal).sum(axis=1)
    kept[many] &= ~equal | (np.cumsum(equal, axis=1) <= spare[:, np.newaxis])
    return kept


def _x_log(x: NDArray[np.float64], y: NDArray[np.float64] | NDArray[np.float32]) -> NDArray[np.float64]:
    """Return `x log y`, and 0 where x is 0."""
    product: NDArray[np.float64] = x * np.log(np.maximum(y, np.finfo(y.dtype).tiny))
    return product


def _decode_pixels(
    gap: NDArray[np.integer], weight: NDArray[np.integer], tail: NDArray[np.integer], bins: int, bits: int
) -> NDArray[np.float32]:
    """Decode maps (K, P) from planes (M, P) and tails (P,); pixels without bins are NaN."""
    last = gap.sum(axis=0, dtype=np.int64).max(initial=0) - 1
    if last >= bins:
        raise PipelineError(f"a sparse map uses bin {int(last)}: expected at most {bins - 1}")
    table, each, pixels = weight_table(bits), _pixels_at_once(bins), gap.shape[1]
    maps = np.empty((bins, pixels), np.float32)
    for start in range(0, pixels, each):
        here = slice(start, start + each)
        present = gap[:, here] > 0
        count = present.sum(axis=0)
        # Unused planes write to an extra row, which is cut off.
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
    """Decode as `decode_sparse`, bit for bit, from gaps and weights (M, h, w) that arrive a few planes at a time.

    Needs memory for the map and these planes only. Planes beyond the last used one are 0.
    """
    table, pixels, rest = weight_table(weight_bits), tail.size, tail.reshape(-1)
    maps = np.full((bins, pixels), -1, np.float32)
    last_bin, count = np.full(pixels, -1, np.intp), np.zeros(pixels, np.intp)
    for gaps, weights in pairs:
        for gap, weight in zip(gaps.reshape(len(gaps), -1), weights.reshape(len(weights), -1), strict=True):
            (present,) = np.nonzero(gap)
            at = last_bin[present] + gap[present]
            if at.size and int(at.max()) >= bins:
                raise PipelineError(f"a sparse map uses bin {int(at.max())}: expected at most {bins - 1}")
            last_bin[present] = at
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
    """Sums (P,) of unnormalized maps (K, P); NaN for pixels without bins. Raises PipelineError for a sum of 0."""
    total: NDArray[np.float64] = whole.sum(axis=0, dtype=np.float64)
    total[count == 0] = np.nan
    if np.any(total <= 0):
        raise PipelineError("a sparse map has bins with a total probability of 0: expected positive weights")
    return total


def _pixels_at_once(bins: int) -> int:
    return max(1, VALUES_AT_ONCE // bins)


def decode_sparse(stored: SparseMap, bins: int, weight_bits: int) -> NDArray[np.float32]:
    """Return the map (K, h, w) float32, which sums to 1 over K; NaN for invalid pixels.

    Raises PipelineError for a bin beyond K, or a total probability of 0.
    """
    planes, height, width = stored.gap.shape
    flat = _decode_pixels(
        stored.gap.reshape(planes, height * width),  # there may be no planes
        stored.weight.reshape(planes, height * width),
        stored.tail.reshape(-1),
        bins,
        weight_bits,
    )
    return flat.reshape(bins, height, width)
