"""A depth probability map as its largest bins: within an error budget in nats, stated as achieved.

For each pixel the largest bins are kept until the rest, spread evenly, costs less than the budget. Kept bins are
stored in ascending order as steps from the one before (mostly 1, so nearly free), weights as logarithmic codes
(the same relative error for 0.5 and 0.0005), and the mass of all other bins as one more such code.

Shape legend: P pixels, K bins, M planes (the most bins that any pixel keeps), h w pixels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

SMALLEST = 1e-6
"""Weights below this are stored as this."""
TRUNCATION_SHARE = 0.8
"""Part of the budget that leaving bins out may use; the rest is for the codes of the weights."""
PIXELS_AT_ONCE = 16384
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

    Pixels whose map is NaN have no value: they keep nothing and their divergence is NaN. Raises ValueError for
    probabilities that are negative or do not sum to 1, and where the mean divergence exceeds the budget.
    """
    bins, height, width = probability.shape
    flat = probability.reshape(bins, -1).T
    parts = [
        _encode_pixels(flat[start : start + PIXELS_AT_ONCE], max_kl_nats, weight_bits)
        for start in range(0, len(flat), PIXELS_AT_ONCE)
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
        raise ValueError(
            f"the stored map is {mean:.2g} nats from the teacher's: {weight_bits}-bit weights cannot reach the asked "
            f"{max_kl_nats:g}; ask for more with --max-dpm-kl, or store --dpm dense"
        )
    return stored, divergence


def _encode_pixels(
    given: NDArray[np.float32], max_kl_nats: float, weight_bits: int
) -> tuple[NDArray[np.uint16], NDArray[np.uint16], NDArray[np.uint16], NDArray[np.float64]]:
    """Gap (P, M), weight (P, M), tail (P,) and divergence (P,) of maps (P, K)."""
    pixels, bins = given.shape
    absent: NDArray[np.bool_] = np.asarray(np.isnan(given).any(axis=1))
    total: NDArray[np.float64] = np.where(absent, 1.0, given.sum(axis=1, dtype=np.float64))
    off: NDArray[np.float64] = np.abs(total - 1)
    if np.any(given < 0) or float(off.max(initial=0)) > SUM_TOLERANCE:
        worst = float(total[off.argmax()])
        raise ValueError(f"a teacher's map sums to {worst:.6g} or is negative: expected probabilities that sum to 1")
    true: NDArray[np.float64] = np.where(absent[:, np.newaxis], 0.0, given / total[:, np.newaxis])
    order = np.argsort(-true, axis=1, kind="stable")
    ranked = np.take_along_axis(true, order, axis=1)
    own = _x_log(ranked, ranked)
    rest = np.maximum(1 - np.cumsum(ranked, axis=1), 0)
    rest_own = own.sum(axis=1, keepdims=True) - np.cumsum(own, axis=1)
    others = bins - 1 - np.arange(bins)
    cost = rest_own - _x_log(rest, rest / np.maximum(others, 1))
    cost[:, -1] = 0  # nothing is left out
    count = 1 + np.argmax(cost <= TRUNCATION_SHARE * max_kl_nats, axis=1)
    count[absent] = 0

    ranks = np.arange(bins)
    kept = np.zeros(true.shape, bool)
    np.put_along_axis(kept, order, ranks < count[:, None], axis=1)
    planes = int(count.max(initial=0))
    row, which = np.nonzero(kept)  # ascending bins within each pixel
    place = (np.cumsum(kept, axis=1) - 1)[row, which]
    position = np.zeros((pixels, planes), np.int64)
    position[row, place] = which + 1
    gap = np.diff(position, axis=1, prepend=0)
    gap[position == 0] = 0
    weight = np.zeros((pixels, planes), np.uint16)
    weight[row, place] = encode_weight(true[row, which], weight_bits)
    left = np.where(kept, 0, true).sum(axis=1)
    tail = encode_weight(np.where(count < bins, left, 0), weight_bits)

    stored = _decode_pixels(gap.T, weight.T, tail, bins, weight_bits).T
    divergence = (_x_log(true, true) - _x_log(true, stored)).sum(axis=1)
    divergence[absent] = np.nan
    return gap.astype(np.uint16), weight, tail, divergence


def _x_log(x: NDArray[np.float64], y: NDArray[np.float64] | NDArray[np.float32]) -> NDArray[np.float64]:
    """`x log y`, and 0 where x is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        product: NDArray[np.float64] = np.where(x > 0, x * np.log(y), 0.0)
    return product


def _decode_pixels(
    gap: NDArray[np.integer], weight: NDArray[np.integer], tail: NDArray[np.integer], bins: int, bits: int
) -> NDArray[np.float32]:
    """Maps (K, P) of planes (M, P) and tails (P,); pixels that keep nothing are NaN."""
    table = weight_table(bits)
    present = gap > 0
    # Planes that a pixel does not use write to a row of their own, which is cut off.
    last = gap.sum(axis=0, dtype=np.int64).max(initial=0) - 1
    if last >= bins:
        raise ValueError(f"a sparse map names bin {int(last)}: expected at most {bins - 1}")
    target = np.where(present, np.cumsum(gap, axis=0, dtype=np.int64) - 1, bins)
    count = present.sum(axis=0)
    share = table[tail] / np.maximum(bins - count, 1)
    whole = np.broadcast_to(share.astype(np.float32), (bins + 1, gap.shape[1])).copy()
    np.put_along_axis(whole, target, table[weight], axis=0)
    whole = whole[:bins]
    whole[:, count == 0] = np.nan
    total = whole.sum(axis=0, dtype=np.float64)
    if np.any(total <= 0):
        raise ValueError("a sparse map keeps bins but no probability: expected weights above 0")
    whole /= total
    return whole


def decode_sparse(stored: SparseMap, bins: int, weight_bits: int) -> NDArray[np.float32]:
    """Map (K, h, w) float32 that sums to 1, NaN where there is no value.

    Raises ValueError for a bin beyond K, or a map without weight.
    """
    planes, height, width = stored.gap.shape
    flat = _decode_pixels(
        stored.gap.reshape(planes, -1),
        stored.weight.reshape(planes, -1),
        stored.tail.reshape(-1),
        bins,
        weight_bits,
    )
    return flat.reshape(bins, height, width)
