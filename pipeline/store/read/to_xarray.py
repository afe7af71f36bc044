"""A store as a lazy xarray data set: each sample is one dask chunk, decoded and checked when it is computed.

Shape legend: N samples, K bins, h w pixels of the teacher's own output.
"""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ...depth.spaces import UNITS
from ...errors import MissingDependencyError
from ..format.extras import SIGNALS

if TYPE_CHECKING:
    from collections.abc import Callable

    import xarray
    from numpy.typing import NDArray

    from .store import Store


class _Samples:
    """Array of `read(number)` for each sample, which dask slices."""

    def __init__(self, read: Callable[[int], NDArray[np.float32]], shape: tuple[int, ...]) -> None:
        self._read = read
        self.shape, self.ndim, self.dtype = shape, len(shape), np.dtype(np.float32)

    def __getitem__(self, key: tuple[slice, ...]) -> NDArray[np.float32]:
        samples, *rest = key
        return np.stack([self._read(number)[tuple(rest)] for number in range(*samples.indices(self.shape[0]))])


def to_xarray(store: Store, *, dpm: bool = False) -> xarray.Dataset:
    """See `Store.to_xarray`."""
    try:
        import xarray
    except ModuleNotFoundError as error:
        raise MissingDependencyError("xarray", "xarray", "Store.to_xarray") from error
    spec, (height, width) = store.spec, store.layout.size_px
    name, read, units = ("depth_m", store.depth_m, "m") if store.is_metric else ("depth", store.depth, "1")
    depth = _lazy(read, (len(store), height, width), f"{name}-{store.manifest_sha256}")
    variables: dict[str, Any] = {
        name: (("sample", "y", "x"), depth, {"long_name": "teacher depth", "units": units}),
        "max_rel_error": ("sample", store.rows("max_rel_error"), {"long_name": "largest error of stored depth"}),
        "invalid_fraction": ("sample", store.rows("invalid_share"), {"long_name": "pixels without a value"}),
    }
    metric_bins = spec.depth_space == "metric_m"
    edges = {
        "long_name": "edges of the depth bins",
        "units": UNITS.get(spec.depth_space, "fraction of a sample's range"),
    }
    variables["bin_edges_m" if metric_bins else "bin_edges"] = ("bin_edge", store.bin_edges_m, edges)
    for signal, signal_spec in spec.extras.signals.items():
        read_signal = partial(store.signal, signal)
        values = _lazy(read_signal, (len(store), *signal_spec.size_px), f"{signal}-{store.manifest_sha256}")
        variables[signal] = (
            ("sample", f"y_{signal}", f"x_{signal}"),
            values,
            {"long_name": SIGNALS[signal], "units": "1"},
        )
    if spec.extras.intrinsics is not None:
        text = {"long_name": "fx fy cx cy of the camera in pixels of the view", "units": "px"}
        variables["intrinsics_px"] = (("sample", "fx_fy_cx_cy"), store.rows("intrinsics"), text)
    if dpm:
        shape = (len(store), spec.bin_count, height, width)
        maps = _lazy(store.dpm, shape, f"dpm-{store.manifest_sha256}")
        variables["dpm"] = (("sample", "bin", "y", "x"), maps, {"long_name": "depth probability map", "units": "1"})
    attributes = {
        "depth_space": spec.depth_space,
        "teacher": json.dumps(spec.teacher),
        "view": spec.view,
        "max_rel_error": spec.max_rel_error,
        "manifest_sha256": store.manifest_sha256,
    }
    return xarray.Dataset(variables, coords={"sample": np.array(list(store.ids))}, attrs=attributes)


def _lazy(read: Callable[[int], NDArray[np.float32]], shape: tuple[int, ...], name: str) -> Any:  # noqa: ANN401 - dask's
    import dask.array

    chunks = ((1,) * shape[0], *((side,) for side in shape[1:]))
    meta = np.empty((0,) * len(shape), np.float32)
    return dask.array.from_array(_Samples(read, shape), chunks, name=name, asarray=False, fancy=False, meta=meta)
