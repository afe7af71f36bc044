"""Choose and apply an evaluation protocol: crop, depth range, alignment and flip average (`depth.metrics.Protocol`).

Shape legend: H, W pixels of the view.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from ..depth.metrics import PROTOCOLS
from ..depth.relative import ALIGN, METRIC
from ..errors import PipelineError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..depth.metrics import Protocol
    from ..sources.base import Source
    from ..sources.frames import Frame


def choose_protocol(
    name: str | None,
    source: Source,
    max_m: float | None = None,
    align: str | None = None,
    depth_space: str = METRIC,
    scale_split: str | None = None,
) -> Protocol:
    """Return the named protocol, or the source's default, with the alignment of the depth space.

    Raises PipelineError for an unknown protocol, a depth range that is fixed, and an alignment of relative depth other
    than its own: it would remove more, or less, than the teacher leaves open.
    """
    name = name or source.defaults.protocol
    if name not in PROTOCOLS:
        raise PipelineError(f"protocol {name!r}: expected one of {', '.join(PROTOCOLS)}")
    default = ALIGN[depth_space]
    if align is not None and depth_space != METRIC and align != default:
        raise PipelineError(f"`align={align}` does not fit {depth_space}, which needs `align={default}`: leave it out")
    protocol = replace(PROTOCOLS[name], align=align or default, scale_split=scale_split)
    if max_m is not None:
        if protocol.max_m is not None and protocol.max_m != max_m:
            raise PipelineError(f"protocol {name} has a fixed limit of {protocol.max_m:g} m: leave `max_depth_m` out")
        return replace(protocol, max_m=max_m)
    return protocol


def store_protocol(protocol: Protocol) -> Protocol:
    """Return the protocol for a store: without flip average, because a store has no mirrored prediction."""
    return replace(protocol, flip_average=False)


def protocol_depth(depth_m: NDArray[np.float32], frame: Frame, protocol: Protocol) -> NDArray[np.float64] | None:
    """Align and clamp depth (H, W) as the protocol says; None if there is no ground truth to align it to."""
    if protocol.align == "none":
        return protocol.clamp(depth_m)
    if frame.truth_m is None:
        return None
    mask = protocol.mask(frame.truth_m) & np.isfinite(depth_m)
    return protocol.prepared(depth_m, frame.truth_m, mask) if mask.any() else None
