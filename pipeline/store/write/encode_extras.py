"""Encode signals, features, cameras and relations of one image as chunks and columns of a store of version 3.

Shape legend: a b pixels of a signal or cells of features, C components, D channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ...depth.spaces import DISPARITY
from ...errors import PipelineError
from ..format.codec import encode_chunk
from ..format.extras import BASELINE, INTRINSICS, POSE, SIGNAL_STEPS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from ..format.features import Basis
    from ..format.spec import StoreSpec


class SampleRelations(NamedTuple):
    """Relations of one image."""

    neighbour: NDArray[np.integer]
    """(nodes, 8) numbers of nodes."""
    weight: NDArray[np.floating]
    """(nodes, 8) in 0..1."""


@dataclass(frozen=True)
class SampleExtras:
    """The optional parts of one image; exactly those that the store holds."""

    intrinsics_px: NDArray[np.floating] | None = None
    """(4,) fx fy cx cy in pixels of the view, NaN where unknown."""
    baseline_m: float | None = None
    previous: int | None = None
    """Row of the frame before; -1 for none."""
    next: int | None = None
    pose: NDArray[np.floating] | None = None
    """(6,) of the camera, as the teacher defines it."""
    signals: Mapping[str, NDArray[np.floating]] | None = None
    """(a, b) in 0..1, by name."""
    features: Mapping[str, NDArray[np.floating]] | None = None
    """(D, a, b), by layer."""
    relations: SampleRelations | None = None


def encode_extras(
    spec: StoreSpec, extras: SampleExtras, bases: Mapping[str, Basis]
) -> tuple[dict[str, list[bytes | None]], dict[str, Any]]:
    """Return the chunks of an image by path, and its columns.

    Raises PipelineError for a part that is missing or of another size, and for values outside the format.
    """
    chunks: dict[str, list[bytes | None]] = {}
    row = _columns(spec, extras)
    level = spec.compression_level
    for name, signal in spec.extras.signals.items():
        values = (extras.signals or {}).get(name)
        if values is None:
            raise PipelineError(f"signal {name!r} is missing, and the first image has it")
        codes, error = encode_signal(name, values, signal.size_px)
        chunks[f"signals/{name}"] = [encode_chunk(codes[None], level)]
        row[f"signal_{name}_error"] = error
    for layer, features in spec.extras.features.items():
        whole = (extras.features or {}).get(layer)
        if whole is None:
            raise PipelineError(f"features of layer {layer!r} are missing, and the first image has them")
        shape = (features.channels, *features.size_cells)
        if whole.shape != shape:
            raise PipelineError(f"features of layer {layer!r} have the shape {whole.shape}, of the first image {shape}")
        encoded = bases[layer].encode(whole)
        chunks[f"features/{layer}/code"] = [encode_chunk(encoded.code[None], level)]
        chunks[f"features/{layer}/scale"] = [encode_chunk(encoded.scale[None], level)]
        row[f"feature_{layer}_cosine"] = encoded.mean_cosine
        row[f"feature_{layer}_variance"] = encoded.explained_variance
    if spec.extras.relations is not None:
        neighbour, weight = _relations(spec, extras.relations)
        chunks["relations/neighbour"] = [encode_chunk(neighbour[None], level)]
        chunks["relations/weight"] = [encode_chunk(weight[None], level)]
    return chunks, row


def encode_signal(name: str, values: NDArray[np.floating], size_px: tuple[int, int]) -> tuple[NDArray[np.uint8], float]:
    """Return the bytes (a, b) of a signal in 0..1, and their largest error, at most 1/510."""
    if values.shape != size_px:
        raise PipelineError(f"signal {name!r} has {values.shape} px, of the first image {size_px}: expected one size")
    wrong = ~((values >= 0) & (values <= 1))
    if wrong.any():
        raise PipelineError(
            f"signal {name!r} is {float(values[wrong][0]):g} at one of {np.count_nonzero(wrong)} pixels outside 0..1: "
            "expected probabilities; correct the teacher's output (for logits, apply a sigmoid)"
        )
    codes = np.rint(values.astype(np.float64) * SIGNAL_STEPS).astype(np.uint8)
    return codes, float(np.abs(codes / SIGNAL_STEPS - values).max())


def _columns(spec: StoreSpec, extras: SampleExtras) -> dict[str, Any]:
    row: dict[str, Any] = {}
    if spec.extras.intrinsics:
        row[INTRINSICS] = checked_intrinsics(extras.intrinsics_px)
        if spec.depth_space == DISPARITY and not np.isfinite(row[INTRINSICS][0]):
            raise PipelineError("the focal length is not known, and disparity means nothing without it: expected fx_px")
    if spec.extras.baseline:
        if extras.baseline_m is None or not 0 < extras.baseline_m < np.inf:
            raise PipelineError(f"`baseline_m={extras.baseline_m}`: expected a positive distance in metres")
        row[BASELINE] = extras.baseline_m
    if spec.extras.neighbours:
        row |= {"previous": _row_number(spec, extras.previous), "next": _row_number(spec, extras.next)}
    if spec.extras.pose:
        if extras.pose is None or extras.pose.shape != (6,) or not np.isfinite(extras.pose).all():
            raise PipelineError(f"pose {extras.pose}: expected six finite numbers")
        row[POSE] = extras.pose.tolist()
    return row


def checked_intrinsics(intrinsics_px: NDArray[np.floating] | None) -> list[float]:
    """Return fx fy cx cy as a list, NaN where unknown. Raises PipelineError for other values."""
    values = np.full(4, np.nan) if intrinsics_px is None else np.asarray(intrinsics_px, np.float64)
    if values.shape != (4,) or np.isinf(values).any() or (values[:2] <= 0).any():
        raise PipelineError(
            f"intrinsics {values.tolist()}: expected fx fy cx cy in pixels of the view, with positive focal lengths, "
            "NaN where unknown"
        )
    listed: list[float] = values.tolist()
    return listed


def _row_number(spec: StoreSpec, number: int | None) -> int:
    if number is None or not -1 <= number < spec.samples:
        raise PipelineError(f"neighbouring frame {number}: expected a row from 0 to {spec.samples - 1}, or -1 for none")
    return number


def _relations(spec: StoreSpec, relations: SampleRelations | None) -> tuple[NDArray[np.uint16], NDArray[np.uint8]]:
    assert spec.extras.relations is not None
    nodes = int(np.prod(spec.extras.relations.nodes))
    shape = (nodes, spec.extras.relations.neighbours)
    if relations is None or relations.neighbour.shape != shape or relations.weight.shape != shape:
        raise PipelineError(f"relations are missing or of another shape: expected {shape} neighbours and weights")
    if relations.neighbour.min() < 0 or relations.neighbour.max() >= nodes:
        raise PipelineError(f"relations name node {relations.neighbour.max()}: expected 0 to {nodes - 1}")
    weight, _ = encode_signal("relations", relations.weight, shape)
    return relations.neighbour.astype(np.uint16), weight
