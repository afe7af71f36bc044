"""Depth probability map of one frame, computed in parts: all of a KITTI frame is 440 MB.

Shape legend: H W pixels of the view, h w of the map, K bins.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from ..depth.dpm import bin_gaussian_dpm, entropy_nats, gaussian_dpm, interval_m
from ..depth.log_distribution import FAMILIES
from ..depth.readout import DEFAULT, READOUTS, read_depth
from ..depth.relative import METRIC
from ..networks.predict import predict_outputs
from ..sources.frames import images_of
from .model import Belief

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from torch import Tensor

    from ..networks.saved_run import LoadedRun
    from ..sources.frames import Frame
    from ..store import Store
    from .probe_pixels import ProbePixel
    from .units import DepthUnits

    Part = Callable[[slice, slice], Tensor]

_STRIP_ROWS = 16


class Map(NamedTuple):
    """A map that computes any part on request. It may hold the whole map in memory: release it soon."""

    part: Part
    """Rows and columns -> (1, K, rows, columns) float32; NaN where the network has no value."""
    size_px: tuple[int, int]
    bin_edges_m: NDArray[np.float64]
    """(K + 1,)"""
    readout: str = DEFAULT
    """How depth is read from the map."""
    known_depth_m: Tensor | None = None
    """(h, w) depth, where it is not read from the map."""

    def depth_m(self) -> NDArray[np.float32]:
        """Depth (h, w) in metres."""
        if self.known_depth_m is not None:
            return self.known_depth_m.float().numpy()
        return self._in_strips(self._read)

    def _read(self, maps: Tensor) -> Tensor:
        return read_depth(maps, torch.from_numpy(self.bin_edges_m), self.readout)

    def entropy_nats(self) -> NDArray[np.float32]:
        """Entropy (h, w) in nats."""
        return self._in_strips(entropy_nats)

    def relative_width(self) -> NDArray[np.float32]:
        """Width (h, w) of the central interval that holds 90 % of the mass, by depth."""
        edges_m = torch.from_numpy(self.bin_edges_m)

        def width(maps: Tensor) -> Tensor:
            low_m, high_m = interval_m(maps, edges_m)
            return high_m - low_m

        return self._in_strips(width) / self.depth_m()

    def _in_strips(self, reduce: Callable[[Tensor], Tensor]) -> NDArray[np.float32]:
        strips = [
            reduce(self.part(slice(row, row + _STRIP_ROWS), slice(None)))[0, 0].float().numpy()
            for row in range(0, self.size_px[0], _STRIP_ROWS)
        ]
        return np.concatenate(strips)

    def belief(self, pixel: ProbePixel, view_px: tuple[int, int]) -> Belief | None:
        """The map at the pixel that contains the center of a view pixel; None where the map has no value."""
        row, column = (
            int((index + 0.5) * own / view)
            for index, own, view in zip((pixel.row, pixel.column), self.size_px, view_px, strict=True)
        )
        # A copy: a view of it would keep the whole map.
        probability = self.part(slice(row, row + 1), slice(column, column + 1))[0, :, 0, 0].float().numpy().copy()
        if not np.isfinite(probability).all():
            return None
        if self.known_depth_m is not None:
            return Belief(probability, self.bin_edges_m, float(self.known_depth_m[row, column]))
        return Belief(probability, self.bin_edges_m, float(self._read(torch.from_numpy(probability).view(1, -1, 1, 1))))


def teacher_map(store: Store, number: int, units: DepthUnits) -> Map:
    """The teacher's map of a sample. A `gaussian` map is computed from depth in parts, as in training."""
    if store.spec.dpm_kind != "gaussian" and store.spec.depth_space == METRIC:
        readout = str((store.spec.teacher.get("preprocessing") or {}).get("readout", DEFAULT))
        parts = _parts_of(torch.from_numpy(store.dpm(number))[None])
        return Map(parts, store.layout.size_px, units.bin_edges_m, readout if readout in READOUTS else DEFAULT)
    depth_m = torch.from_numpy(units.own_depth(store, number))[None, None]
    edges = torch.from_numpy(units.bin_edges_m)

    def part(rows: slice, columns: slice) -> Tensor:
        depths_m = depth_m[:, :, rows, columns]
        if units.sigma_bins is not None:
            maps = bin_gaussian_dpm(depths_m, edges, units.sigma_bins)
        else:
            assert units.sigma_m is not None, "sigma_m or sigma_bins is set"
            maps = gaussian_dpm(depths_m, edges, units.sigma_m)
        return maps.masked_fill(depths_m.isnan(), torch.nan)

    return Map(part, store.layout.size_px, units.bin_edges_m)


def student_map(run: LoadedRun, frame: Frame, readout: str | None = None) -> Map:
    """A student's map of a frame, without a flip average; `readout` None reads depth as the run was trained."""
    outputs, reader = predict_outputs(run.network, images_of([frame], torch.device("cpu"))), run.reader(readout=readout)
    known_m = reader.depth_m(outputs)[0, 0] if reader.head in FAMILIES else None
    maps = reader.maps(outputs)
    return Map(_parts_of(maps), (maps.shape[2], maps.shape[3]), run.bin_edges_m, reader.readout, known_m)


def _parts_of(whole: Tensor) -> Part:
    return lambda rows, columns: whole[:, :, rows, columns]
