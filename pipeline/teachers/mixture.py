"""Mix several metric predictions into one distribution: an image and its mirror image, or several teachers.

Disagreement between predictions measures uncertainty, which a Gaussian of fixed width cannot. Relative predictions
cannot be mixed: their scale differs in every image.

Shape legend: B batch, K bins of a teacher, L bins of the mixture, h w pixels of the output.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..depth.dpm import gaussian_dpm
from ..depth.rebin import rebin
from ..errors import PipelineError
from .base import NONPOSITIVE_REMEDY, TeacherOutput, gives_maps, may_lack_values, nonfinite_remedy, on_cpu, run_teacher
from .signals import SIGNALS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from .base import Framing, Teacher
    from .options import TeacherOptions

SAME_CAMERA = 1e-3
"""Largest relative difference of intrinsics that agree."""


class Prediction(NamedTuple):
    """Output of one teacher for a batch, and its weight in the mixture."""

    output: TeacherOutput
    bin_edges_m: NDArray[np.float64] | None
    """(K + 1,) edges of the teacher's fixed bins; None if it has no maps or the output holds the edges."""
    weight: float


class FlipAveraged:
    """A teacher averaged over each image and its mirror image. See `flip_averaged`."""

    needs_images = True
    emits_maps = False

    def __init__(self, teacher: Teacher, bin_edges_m: NDArray[np.float64], sigma_m: float | None) -> None:
        self.bin_edges_m: NDArray[np.float64] | None = bin_edges_m
        self.wants_framing = bool(getattr(teacher, "wants_framing", False))
        self._teacher = teacher
        self._edges_m = bin_edges_m
        self._sigma_m = sigma_m
        stated = {"flip_average": True, **({} if sigma_m is None else {"sigma_m": sigma_m})}
        self.card = replace(teacher.card, preprocessing={**teacher.card.preprocessing, **stated})

    def predict(self, images: Tensor | None, ids: Sequence[str], framing: Framing | None = None) -> TeacherOutput:
        """Return the mean depth (B, h, w), the mixture (B, L, h, w) of both maps, and the mean of signals.

        Intrinsics are those of the image as it is. Raises PipelineError for invalid depth.
        """
        assert images is not None, "needs_images is True"
        of_mirrored = None if framing is None else framing.mirrored()
        predictions = [
            Prediction(output, self._teacher.bin_edges_m, 0.5)
            for output in (
                checked_prediction(self._teacher, images, ids, framing),
                _mirrored(checked_prediction(self._teacher, images.flip(-1), ids, of_mirrored)),
            )
        ]
        mixture = mix(predictions, self._edges_m, self._sigma_m)
        return mixture._replace(intrinsics_px=predictions[0].output.intrinsics_px)


def flip_averaged(teacher: Teacher, options: TeacherOptions) -> FlipAveraged:
    """Average a teacher over each image and its mirror image; the second prediction is mirrored back.

    Maps are over the teacher's fixed bins if it has them, otherwise over `options.map_edges_m`.

    Raises PipelineError for a teacher of files, a relative-depth teacher, missing bins or sigma, and features, which
    belong to one network and one image.
    """
    name = teacher.card.name
    if options.features:
        raise PipelineError(
            f"teacher {name!r}: `features={','.join(options.features)}` of an image and its mirror image cannot be "
            "averaged: omit `features` or `flip_average`"
        )
    if not teacher.needs_images:
        raise PipelineError(
            f"teacher {name!r} is a folder of {teacher.card.kind} and cannot predict mirrored images: omit "
            "`flip_average`, or use the network that made the files"
        )
    return FlipAveraged(teacher, mixture_bins([teacher], options), mixture_sigma([teacher], options))


def mixture_bins(teachers: Sequence[Teacher], options: TeacherOptions) -> NDArray[np.float64]:
    """Return edges (L + 1,) in metres of a mixture: those that all teachers share, otherwise `options.map_edges_m`.

    Raises PipelineError for a relative-depth teacher, and if there are no edges.
    """
    for teacher in teachers:
        if teacher.card.depth_space != "metric_m":
            raise PipelineError(
                f"teacher {teacher.card.name!r} predicts {teacher.card.depth_space}, whose scale differs in every "
                "image, so predictions cannot be averaged: mix metric teachers only"
            )
    own_m = teachers[0].bin_edges_m
    if own_m is not None and all(np.array_equal(own_m, teacher.bin_edges_m) for teacher in teachers):  # type: ignore[arg-type]  # None is equal to none
        return own_m
    if options.map_edges_m is None:
        raise PipelineError(
            f"teacher {', '.join(repr(teacher.card.name) for teacher in teachers)}: mixing needs bins, and the source "
            "has no default: give `bins`, for example nyu, kitti or log:64:0.5:20"
        )
    return np.array(options.map_edges_m, np.float64)


def mixture_sigma(teachers: Sequence[Teacher], options: TeacherOptions) -> float | None:
    """Return the width in metres of the Gaussian for predictions without a map; None if all have maps.

    Raises PipelineError if the width is needed and missing or not positive.
    """
    without_maps = [teacher.card.name for teacher in teachers if not gives_maps(teacher)]
    if not without_maps:
        return None
    sigma_m = options.map_sigma_m
    if sigma_m is None or not 0 < sigma_m < np.inf:
        problem = "the source has no default width" if sigma_m is None else f"`sigma_m={sigma_m}` is not valid"
        raise PipelineError(
            f"teacher {', '.join(map(repr, without_maps))} predicts depth without maps, so mixing needs a Gaussian, "
            f"and {problem}: give a positive `sigma_m` in metres"
        )
    return sigma_m


def checked_prediction(
    teacher: Teacher, images: Tensor | None, ids: Sequence[str], framing: Framing | None = None
) -> TeacherOutput:
    """Run a metric teacher on images (B, 3, H, W) and validate its depth.

    Raises PipelineError for a network's NaN, infinite, zero or negative depth, which a mixture would hide.
    """
    output = on_cpu(run_teacher(teacher, images if teacher.needs_images else None, ids, framing))
    depth = output.depth
    if depth.ndim != 3 or len(depth) != len(ids):
        raise PipelineError(
            f"teacher {teacher.card.name!r} returned depth of shape {tuple(depth.shape)} for {len(ids)} images, "
            "expected (B, h, w)"
        )
    bad = ~(depth.isfinite() & (depth > 0))
    if may_lack_values(teacher):
        bad &= ~depth.isnan()
    if bool(bad.any()):
        worst = float(depth[bad][0])
        remedy = NONPOSITIVE_REMEDY if math.isfinite(worst) else nonfinite_remedy(teacher.card)
        raise PipelineError(
            f"teacher {teacher.card.name!r} predicted {worst} m for images {', '.join(ids)} ({int(bad.sum())} such "
            f"pixels), expected finite positive depth: {remedy}"
        )
    return output


def mix(predictions: Sequence[Prediction], edges_m: NDArray[np.float64], sigma_m: float | None) -> TeacherOutput:
    """Return the weighted mean depth (B, h, w) and the mixture (B, L, h, w) of maps over `edges_m` (L + 1,).

    Maps over other bins are rebinned by mass; a prediction without a map becomes a Gaussian of width `sigma_m`. All
    are resized to the largest by nearest pixel. Pixels without a value are left out; NaN where no prediction has one.
    Signals are the weighted mean, if all predictions have them.
    """
    sizes = [(each.output.depth.shape[1], each.output.depth.shape[2]) for each in predictions]
    size = max(sizes, key=lambda size: size[0] * size[1])
    batch = len(predictions[0].output.depth)
    weights = torch.zeros(batch, *size)
    depth_m = torch.zeros(batch, *size)
    dpm = torch.zeros(batch, len(edges_m) - 1, *size)
    for prediction in predictions:
        own_m = _resized(prediction.output.depth[:, None], size)[:, 0]
        valid = ~own_m.isnan()
        weights += prediction.weight * valid
        depth_m += prediction.weight * own_m.nan_to_num(0.0)
        for index in range(batch):  # one image at a time: each step copies the maps
            dpm_of_image = _resized(_map_of(prediction, index, edges_m, sigma_m)[None], size)[0]
            dpm[index] += prediction.weight * torch.where(valid[index], dpm_of_image, 0.0)
    depth_m /= weights  # 0 / 0 is NaN
    dpm /= weights[:, None]
    return TeacherOutput(depth_m, dpm)._replace(**_mixed_signals(predictions))


def _mixed_signals(predictions: Sequence[Prediction]) -> dict[str, Any]:
    """Return the weighted mean (B, a, b) of each signal that all predictions have, at the size of the largest."""
    mixed: dict[str, Any] = {}
    for name in SIGNALS:
        signals: list[Tensor | None] = [getattr(prediction.output, name) for prediction in predictions]
        given = [signal for signal in signals if signal is not None]
        if len(given) < len(signals):
            continue
        size = max(((signal.shape[1], signal.shape[2]) for signal in given), key=lambda size: size[0] * size[1])
        mean = torch.zeros(len(given[0]), *size)
        for prediction, signal in zip(predictions, given, strict=True):
            mean += prediction.weight * _resized(signal[:, None], size)[:, 0]
        mixed[name] = mean.clamp_(0, 1)  # weights add up to 1 but for rounding
    return mixed


def agreed_intrinsics(predictions: Sequence[Prediction]) -> Tensor | None:
    """Return intrinsics (B, 4) on which all predictions agree, NaN where they differ by more than 0.1 %.

    None if a prediction has none. Intrinsics are not averaged: the mean of two cameras is no camera.
    """
    given = [prediction.output.intrinsics_px for prediction in predictions]
    first = given[0]
    if first is None:
        return None
    agreed = torch.ones_like(first, dtype=torch.bool)
    for intrinsics_px in given[1:]:
        if intrinsics_px is None:
            return None
        agreed &= torch.isclose(intrinsics_px, first, rtol=SAME_CAMERA, atol=0)
    return torch.where(agreed, first, torch.nan)


def _map_of(prediction: Prediction, index: int, edges_m: NDArray[np.float64], sigma_m: float | None) -> Tensor:
    """Return one image's map (L, h, w) over the mixture's bins."""
    depth, dpm, adaptive_m = prediction.output[:3]
    if dpm is None:
        assert sigma_m is not None, "mixture_sigma returns a width if a teacher has no maps"
        return gaussian_dpm(depth[index, None, None], torch.from_numpy(edges_m), sigma_m)[0]
    own_m = prediction.bin_edges_m if adaptive_m is None else adaptive_m[index].numpy()
    assert own_m is not None, "a map has bins"
    return torch.from_numpy(rebin(dpm[index].float().numpy(), own_m, edges_m)[0])


def _mirrored(output: TeacherOutput) -> TeacherOutput:
    """Mirror the prediction for a mirrored image back."""
    mirrored = output._replace(depth=output.depth.flip(-1))
    if output.dpm is not None:
        mirrored = mirrored._replace(dpm=output.dpm.flip(-1))
    if output.bin_edges_m is not None and output.bin_edges_m.ndim == 4:
        mirrored = mirrored._replace(bin_edges_m=output.bin_edges_m.flip(-1))
    signals = {name: values.flip(-1) for name in SIGNALS if (values := getattr(output, name)) is not None}
    return mirrored._replace(**signals)


def _resized(values: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize values (B, C, h, w) by nearest pixel."""
    return values if tuple(values.shape[-2:]) == size else F.interpolate(values, size, mode="nearest-exact")
