"""Plan and collect what a store keeps besides depth and maps: signals, features, intrinsics, the licence of the data.

The first image's prediction shows what the teacher gives and at which size. Bases of features are fitted on a few
images before the first shard.

Shape legend: B batch, D channels, a b pixels of a signal or cells of features.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from ..depth.spaces import DISPARITY
from ..errors import PipelineError
from ..sources.intrinsics import intrinsics_of_view
from ..store.format.extras import SIGNALS, Extras, Features, Signal
from ..store.format.features import Basis, BasisFitter
from ..store.write.encode_extras import SampleExtras
from ..teachers.base import images_of_views, run_teacher
from .framing import framing_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from ..sources.base import Sample, Source
    from ..sources.view import View
    from ..teachers.base import Teacher, TeacherOutput
    from .batches import Frame
    from .plan import CacheOptions

Bases = tuple[tuple[str, Basis], ...]
"""Layer and basis, hashable as options have to be."""
TRIED_CELLS = 20_000
"""Cells on which a number of components is tried, over all images of the fit."""


class Asker(NamedTuple):
    """Asks a teacher about single images of a split, before the run."""

    source: Source
    samples: Sequence[Sample]
    view: View
    teacher: Teacher

    def output(self, number: int) -> TeacherOutput:
        """Return the prediction for one image, on the CPU."""
        sample = self.samples[number]
        image = self.source.read_image(sample)[0]
        pixels = images_of_views(torch.from_numpy(self.view.of_image(image))[None])
        image_px = image.shape[0], image.shape[1]
        framing = framing_of(self.source, self.view, [sample], [image_px], self.teacher)
        with torch.no_grad():
            return run_teacher(self.teacher, pixels if self.teacher.needs_images else None, [sample.id], framing).cpu()


def plan_extras(asker: Asker, options: CacheOptions) -> tuple[Extras, Bases]:
    """Return the optional parts of a store, and the bases of its features.

    Raises PipelineError for a part that the teacher or the source does not give.
    """
    stereo = asker.teacher.card.depth_space == DISPARITY
    intrinsics = "source" if stereo else options.intrinsics
    if not (options.signals or options.features or intrinsics):
        return Extras(data_licence=options.data_licence), ()
    unknown = [name for name in options.signals if name not in SIGNALS]
    if unknown:
        raise PipelineError(f"`signals={unknown[0]}`: expected any of {', '.join(SIGNALS)}")
    first = asker.output(0)
    name = asker.teacher.card.name
    signals = {}
    for signal in options.signals:
        values: torch.Tensor | None = getattr(first, signal, None)
        if values is None:
            given = ", ".join(_given(first)) or "depth alone"
            raise PipelineError(
                f"`signals={signal}`: teacher {name!r} does not give it (it gives {given}): omit it, or use a teacher "
                "that does (docs/teachers.md)"
            )
        signals[signal] = Signal((values.shape[1], values.shape[2]))
    if intrinsics == "teacher" and first.intrinsics_px is None:
        raise PipelineError(f"`intrinsics=teacher`: teacher {name!r} gives none: use `intrinsics=source` or omit it")
    if intrinsics == "source":
        _check_source_has_intrinsics(asker)
    bases = _bases(asker, options, first) if options.features else ()
    features = {
        layer: Features(len(basis.rows), len(basis.mean), _size_of(first, layer), basis.fitted_on, basis.sha256)
        for layer, basis in bases
    }
    extras = Extras(intrinsics, stereo, signals=signals, features=features, data_licence=options.data_licence)
    return extras, bases


def _given(output: TeacherOutput) -> list[str]:
    return [name for name in ("confidence", "sky") if getattr(output, name) is not None]


def _check_source_has_intrinsics(asker: Asker) -> None:
    sample = asker.samples[0]
    image = asker.source.read_image(sample)[0]
    camera = intrinsics_of_view(asker.source, sample, asker.view, (image.shape[0], image.shape[1]))
    if camera is None or not camera.has_focal:
        raise PipelineError(
            f"`intrinsics=source`: source {asker.source.name!r} has none for {sample.id!r}: add them to the data set "
            "(docs/sources.md), use `intrinsics=teacher` if the teacher predicts them, or omit it"
        )


def _size_of(output: TeacherOutput, layer: str) -> tuple[int, int]:
    features = (output.features or {})[layer]
    return features.shape[2], features.shape[3]


def _bases(asker: Asker, options: CacheOptions, first: TeacherOutput) -> Bases:
    """Fit the basis of each layer, or return the given ones. Raises PipelineError for a layer that is not given."""
    given = first.features or {}
    for layer in options.features:
        if layer not in given:
            raise PipelineError(
                f"`features={layer}`: teacher {asker.teacher.card.name!r} gave {', '.join(given) or 'none'}: open it "
                f"with these layers (`features` of the teacher), or omit it"
            )
    if options.bases:
        fitted = dict(options.bases)
        for layer in options.features:
            if layer not in fitted or given[layer].shape[1] != len(fitted[layer].mean):
                channels = "no basis" if layer not in fitted else f"a basis of {len(fitted[layer].mean)} channels"
                raise PipelineError(
                    f"there is {channels} for layer {layer!r}, whose features have {given[layer].shape[1]} channels: "
                    "expected one for each layer"
                )
        return tuple((layer, fitted[layer]) for layer in options.features)
    count = min(options.feature_images, len(asker.samples))
    numbers = np.linspace(0, len(asker.samples) - 1, count).round().astype(int).tolist()
    fitters = {layer: BasisFitter(given[layer].shape[1]) for layer in options.features}
    tried: dict[str, list[NDArray[np.float32]]] = {layer: [] for layer in options.features}
    for layer, features in _features(asker, numbers, options.features):
        fitters[layer].add(features)
        flat = features.reshape(len(features), -1)
        tried[layer].append(flat[:, :: max(1, flat.shape[1] * len(numbers) // TRIED_CELLS)])
    return tuple((layer, _basis(layer, fitters[layer], tried[layer], options)) for layer in options.features)


def _features(asker: Asker, numbers: Sequence[int], layers: Sequence[str]) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Yield layer and features (D, a, b) of images."""
    for number in numbers:
        features = asker.output(number).features or {}
        for layer in layers:
            values = features[layer][0].float().numpy()
            if not np.isfinite(values).all():
                raise PipelineError(
                    f"features of layer {layer!r} of {asker.samples[number].id} are NaN or infinite: use "
                    "`precision=float32`, or another layer"
                )
            yield layer, values


def _basis(layer: str, fitter: BasisFitter, tried: Sequence[NDArray[np.float32]], options: CacheOptions) -> Basis:
    """Return a basis of `feature_components` rows, or of the fewest up to them that keep the asked cosine."""
    most = min(options.feature_components, fitter.channels)
    wanted = options.max_feature_cosine_error
    if wanted is None:
        return fitter.basis(most)
    cells = np.concatenate(tried, axis=1)[:, None]
    low, high = 1, most
    reached = 1 - fitter.basis(most).encode(cells).mean_cosine
    if reached > wanted:
        raise PipelineError(
            f"`max_feature_cosine_error={wanted:g}`: {most} components of layer {layer!r} reach {reached:.3g}: allow "
            "more components or a larger error"
        )
    while low < high:
        middle = (low + high) // 2
        if 1 - fitter.basis(middle).encode(cells).mean_cosine <= wanted:
            high = middle
        else:
            low = middle + 1
    return fitter.basis(high)


def extras_of_batch(extras: Extras, output: TeacherOutput, frames: Sequence[Frame]) -> list[SampleExtras | None]:
    """Return what the store keeps of each image of a batch besides depth and maps; None if it keeps nothing else.

    `output` may be on any device. Missing parts are left out, and refused when they are encoded.
    """
    count = len(frames)
    if not (extras.signals or extras.features or extras.intrinsics):
        return [None] * count
    signals = {name: _array(getattr(output, name, None), count) for name in extras.signals}
    features = {layer: _array((output.features or {}).get(layer), count) for layer in extras.features}
    given = _array(output.intrinsics_px, count) if extras.intrinsics == "teacher" else None
    parts: list[SampleExtras | None] = []
    for number, frame in enumerate(frames):
        own = given[number] if given is not None else None
        if extras.intrinsics == "source" and frame.intrinsics is not None:
            own = np.array(frame.intrinsics)
        parts.append(
            SampleExtras(
                intrinsics_px=own,
                baseline_m=frame.baseline_m if extras.baseline else None,
                signals={name: values[number] for name, values in signals.items() if values is not None},
                features={layer: values[number] for layer, values in features.items() if values is not None},
            )
        )
    return parts


def _array(values: torch.Tensor | None, count: int) -> NDArray[np.float32] | None:
    if values is None:
        return None
    if len(values) != count:
        raise PipelineError(f"the teacher returned {len(values)} signals or features for {count} images")
    array: NDArray[np.float32] = values.float().cpu().numpy()
    return array
