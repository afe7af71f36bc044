"""What a `python:` teacher returned, as a checked output.

Shape legend: B batch, K bins, D channels of features, H W pixels of the view, h w pixels of the teacher's own output,
a b pixels of a signal.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypeGuard

import torch
from torch import Tensor

from ..depth.rebin import check_edges
from ..errors import PipelineError
from ..sources.view import aspect_off_px, same_aspect
from .base import TeacherOutput, check_covers
from .features import LAYER, check_layers
from .signals import SIGNALS, check_probabilities, checked_intrinsics

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from .base import TeacherCard

KEYS = TeacherOutput._fields
"""Keys of a returned dict."""
SUM_TOLERANCE = 1e-3


class OutputCheck(NamedTuple):
    """Checks what the code of a teacher returned. Every error quotes it."""

    card: TeacherCard
    bin_edges_m: NDArray[np.float64] | None
    emits_maps: bool
    layers: tuple[str, ...]
    """Layers whose features were asked for; others are dropped."""

    @property
    def _where(self) -> str:
        return f"teacher {self.card.name!r}"

    def output(self, returned: Any, images: Tensor) -> TeacherOutput:  # noqa: ANN401 - whatever the user returned
        """Return depth (B, h, w) for images (B, 3, H, W), with all that came with it. Raises PipelineError."""
        values = self._values(returned)
        depth = values.get("depth")
        if not _is_float(depth, 3) or len(depth) != len(images) or 0 in depth.shape:
            raise PipelineError(
                f"{self._where} returned {quoted(returned)} for images {tuple(images.shape)}, "
                f"expected depth ({len(images)}, h, w) of a float type, or a tuple of that and a dpm "
                f"({len(images)}, K, h, w), or of these and its bin edges ({len(images)}, K + 1) or "
                f"({len(images)}, K + 1, h, w), or a dict with the key depth and others of {', '.join(KEYS[1:])}"
            )
        self._check_size("depth", depth, images)
        dpm, edges_m = self._maps(values.get("dpm"), values.get("bin_edges_m"), depth)
        return TeacherOutput(
            depth.float(),
            dpm,
            edges_m,
            **{name: self._signal(name, values[name], images) for name in SIGNALS if name in values},
            intrinsics_px=self._intrinsics(values.get("intrinsics_px"), images),
            features=self._features(values.get("features"), images),
        )

    def _values(self, returned: Any) -> dict[str, Any]:  # noqa: ANN401 - as above
        """Return what was returned by its key; None counts as not returned."""
        if isinstance(returned, TeacherOutput):
            values = returned._asdict()
        elif isinstance(returned, Mapping):
            unknown = [key for key in returned if key not in KEYS]
            if unknown:
                raise PipelineError(
                    f"{self._where} returned a dict with the unknown key {str(unknown[0])[:60]!r}, expected "
                    f"{', '.join(KEYS)}: rename or remove it"
                )
            values = dict(returned)
        else:
            parts = returned if isinstance(returned, tuple) and len(returned) in {2, 3} else (returned,)
            values = dict(zip(KEYS, parts, strict=False))
        return {key: value for key, value in values.items() if value is not None}

    def _maps(self, dpm: Any, edges: Any, depth: Tensor) -> tuple[Tensor | None, Tensor | None]:  # noqa: ANN401 - as above
        if dpm is None:
            self._check_no_maps_promised(edges)
            return None, None
        edges_m = self._checked_edges(edges, dpm, depth)
        return self._checked_dpm(dpm, depth, edges_m), edges_m

    def _signal(self, name: str, values: Any, images: Tensor) -> Tensor:  # noqa: ANN401 - as above
        """Return a signal (B, a, b) float32 in 0..1."""
        signal = values[:, 0] if isinstance(values, Tensor) and values.ndim == 4 and values.shape[1] == 1 else values
        if not _is_float(signal, 3) or len(signal) != len(images) or 0 in signal.shape:
            raise PipelineError(
                f"{self._where} returned {name} {quoted(values)} for images {tuple(images.shape)}, expected "
                f"({len(images)}, a, b) or ({len(images)}, 1, a, b) of a float type in 0..1"
            )
        self._check_size(name, signal, images)
        check_probabilities(self._where, name, signal)
        return signal.float()

    def _intrinsics(self, values: Any, images: Tensor) -> Tensor | None:  # noqa: ANN401 - as above
        if values is None:
            return None
        shapes = ((len(images), 4), (len(images), 3, 3))
        if not isinstance(values, Tensor) or not values.is_floating_point() or values.shape not in shapes:
            raise PipelineError(
                f"{self._where} returned intrinsics_px {quoted(values)}, expected {shapes[0]} (fx fy cx cy) or "
                f"{shapes[1]} of a float type, in pixels of the view"
            )
        return checked_intrinsics(self._where, values, (images.shape[2], images.shape[3]))

    def _features(self, values: Any, images: Tensor) -> dict[str, Tensor] | None:  # noqa: ANN401 - as above
        """Return the features that were asked for, (B, D, a, b) float32 by layer."""
        if not self.layers:
            return None
        if not isinstance(values, Mapping):
            raise PipelineError(
                f"{self._where} returned features {quoted(values)}, but `features={','.join(self.layers)}` asks for "
                'them: return a dict with "depth" and "features", a dict of layer -> (B, D, a, b)'
            )
        check_layers(self._where, self.layers, values)
        return {layer: self._feature(layer, values[layer], images) for layer in self.layers}

    def _feature(self, layer: str, values: Any, images: Tensor) -> Tensor:  # noqa: ANN401 - as above
        what = f"features of layer {layer!r}"
        if not LAYER.fullmatch(layer):
            raise PipelineError(f"{self._where} returned {what}, expected a name of letters, digits, `_`, `.` and `-`")
        if not _is_float(values, 4) or len(values) != len(images) or 0 in values.shape:
            raise PipelineError(
                f"{self._where} returned {what} {quoted(values)} for images {tuple(images.shape)}, expected "
                f"({len(images)}, D, a, b) of a float type"
            )
        self._check_size(what, values[:, 0], images)
        wrong = int((~values.isfinite()).sum())
        if wrong:
            raise PipelineError(
                f"{self._where} returned {what} with {wrong} of {values.numel()} values NaN or infinite, expected "
                "finite values: check the network's precision and weights"
            )
        return values.float()

    def _check_size(self, what: str, values: Tensor, images: Tensor) -> None:
        """Refuse (B, h, w) of another aspect ratio than the view, unless the card allows it (docs/teachers.md)."""
        output_px, view_px = (values.shape[1], values.shape[2]), (images.shape[2], images.shape[3])
        preprocessing = self.card.preprocessing
        transposed = aspect_off_px(output_px[::-1], view_px) < aspect_off_px(output_px, view_px)
        if same_aspect(output_px, view_px) or (preprocessing.get("covers_view") is True and not transposed):
            return
        input_px = _size_of(preprocessing.get("input_size_px"))
        remedy = (
            "if the network resizes the view and its depth covers all of it, add to its card "
            '"preprocessing": {"input_size_px": [height, width]}, or {"covers_view": true} if that size varies'
        )
        check_covers(self._where, output_px, input_px or view_px, remedy, strict=input_px is None, what=what)

    def _check_no_maps_promised(self, edges: Any) -> None:  # noqa: ANN401 - whatever the user returned
        if self.emits_maps or edges is not None:
            promised = "its emits_maps is True" if self.emits_maps else f"bin edges {quoted(edges)}"
            raise PipelineError(
                f"{self._where} returned no dpm, but {promised}: return (depth, dpm, bin_edges_m), or "
                "depth without emits_maps and edges"
            )

    def _checked_edges(self, edges: Any, dpm: Any, depth: Tensor) -> Tensor | None:  # noqa: ANN401 - whatever the user returned
        """Return adaptive edges (B, K + 1) or (B, K + 1, h, w) in metres; None if the bins are fixed."""
        if edges is None:
            if self.bin_edges_m is None:
                raise PipelineError(
                    f"{self._where} returned a dpm {quoted(dpm)} but has no bin_edges_m: add the "
                    "attribute bin_edges_m, (K + 1,) ascending metres; for bins of each image or pixel, set the "
                    "attribute emits_maps = True and return (depth, dpm, bin_edges_m)"
                )
            return None
        if self.bin_edges_m is not None or not self.emits_maps:
            fix = "set emits_maps = True" if self.bin_edges_m is None else "remove one of the two"
            raise PipelineError(
                f"{self._where} returned adaptive bin edges {quoted(edges)}, but has bin_edges_m "
                f"{quoted(self.bin_edges_m)} and emits_maps {self.emits_maps}: {fix}"
            )
        if not isinstance(edges, Tensor) or not edges.is_floating_point() or edges.ndim not in {2, 4}:
            raise PipelineError(
                f"{self._where} returned bin edges {quoted(edges)}, expected a tensor "
                f"({len(depth)}, K + 1) or ({len(depth)}, K + 1, h, w) of a float type, in metres"
            )
        if len(edges) != len(depth):
            raise PipelineError(
                f"{self._where} returned bin edges {quoted(edges)}, expected one row for each of {len(depth)} images"
            )
        edges_m = edges.detach().cpu()
        edges_m = edges_m if edges_m.dtype == torch.float64 else edges_m.float()
        try:
            for edges_of_image in edges_m.numpy():
                check_edges(edges_of_image, len(edges_of_image) - 1, tuple(depth.shape[1:]))
        except ValueError as error:
            raise PipelineError(f"{self._where} returned invalid bin edges: {error}") from error
        return edges_m

    def _checked_dpm(self, dpm: Any, depth: Tensor, edges_m: Tensor | None) -> Tensor:  # noqa: ANN401 - as above
        own_m = self.bin_edges_m if edges_m is None else edges_m[0]
        assert own_m is not None, "_checked_edges refuses it"
        shape = (len(depth), len(own_m) - 1, *depth.shape[1:])
        if not _is_float(dpm, 4) or dpm.shape != shape:
            raise PipelineError(
                f"{self._where} returned a dpm {quoted(dpm)}, expected shape {shape} of a float type: "
                f"{shape[1]} bins at the size of its depth"
            )
        maps: Tensor = dpm.float()
        worst = float((maps.sum(dim=1) - 1).abs().max())
        if not worst <= SUM_TOLERANCE or bool((maps < 0).any()):
            raise PipelineError(
                f"{self._where} returned a dpm with values from {float(dpm.min()):g} to "
                f"{float(dpm.max()):g} and sums over K up to {worst:g} away from 1, expected probabilities: apply "
                "softmax over dim 1"
            )
        return maps


def _size_of(value: Any) -> tuple[int, int] | None:  # noqa: ANN401 - any JSON value of a card
    """Return the size (height, width) of a card; None if it has none."""
    if not isinstance(value, list | tuple) or len(value) != 2 or not all(type(side) is int for side in value):
        return None
    return (value[0], value[1]) if min(value) > 0 else None


def _is_float(value: Any, dimensions: int) -> TypeGuard[Tensor]:  # noqa: ANN401 - whatever the user returned
    return isinstance(value, Tensor) and value.ndim == dimensions and value.is_floating_point()


def quoted(value: Any) -> str:  # noqa: ANN401 - whatever the user returned
    """Return the type, shape and type of numbers of a value, for messages."""
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {quoted(part)}' for key, part in value.items())}}}"
    if isinstance(value, tuple):
        return f"({', '.join(map(quoted, value))})"
    shape = getattr(value, "shape", None)
    if shape is None:
        return f"{type(value).__name__} {str(value)[:60]!r}"
    return f"{type(value).__name__} {tuple(shape)} {getattr(value, 'dtype', '')}".rstrip()
