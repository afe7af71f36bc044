"""Several answers as one distribution: of a teacher and of its mirrored self, or of several teachers.

What one answer is unsure of, several disagree about; their mixture is a map that says so, and no Gaussian of a width
that somebody chose. Only metric answers can be mixed: relative ones have a scale of their own in every image.

Shape legend: B batch, K bins of one answer, L bins of the mixture, h w pixels of the output.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..depth.dpm import gaussian_dpm
from ..depth.rebin import carry
from ..errors import PipelineError
from .base import REMEDY_OF_NONPOSITIVE, TeacherOutput, answer_of, gives_maps, may_lack_values, remedy_of_infinity

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from .base import Framing, Teacher
    from .options import TeacherOptions


class Answer(NamedTuple):
    """What one teacher says of a batch."""

    output: TeacherOutput
    bin_edges_m: NDArray[np.float64] | None
    """(K + 1,) of its maps, where the output does not say."""
    weight: float


class FlipAveraged:
    """A teacher that looks at the image and at its mirror image. See `flip_averaged`."""

    needs_images = True
    emits_maps = False

    def __init__(self, teacher: Teacher, bin_edges_m: NDArray[np.float64], sigma_m: float | None) -> None:
        self.bin_edges_m: NDArray[np.float64] | None = bin_edges_m
        self._teacher = teacher
        self._edges_m = bin_edges_m
        self._sigma_m = sigma_m
        stated = {"flip_average": True, **({} if sigma_m is None else {"sigma_m": sigma_m})}
        self.card = replace(teacher.card, preprocessing={**teacher.card.preprocessing, **stated})

    def predict(self, images: Tensor | None, ids: Sequence[str]) -> TeacherOutput:
        """The mean (B, h, w) of both depths, and the mixture (B, L, h, w) of both maps.

        Raises PipelineError for depth that is none.
        """
        assert images is not None, "needs_images is True"
        answers = [
            Answer(output, self._teacher.bin_edges_m, 0.5)
            for output in (
                ask(self._teacher, images, ids),
                _mirrored(ask(self._teacher, images.flip(-1), ids)),
            )
        ]
        return mix(answers, self._edges_m, self._sigma_m)


def flip_averaged(teacher: Teacher, options: TeacherOptions) -> FlipAveraged:
    """Let a teacher look at each image and at its mirror image, whose answer is mirrored back.

    Its maps are over its own bins, where these are the same for all images; else over `options.map_edges_m`.

    Raises PipelineError for a teacher that sees no images or gives no metres, and where there are no bins or no sigma.
    """
    name = teacher.card.name
    if not teacher.needs_images:
        raise PipelineError(
            f"teacher {name!r} is a folder of {teacher.card.kind}: it cannot be shown a mirrored image; leave "
            "`flip_average` out, or give the network that made them"
        )
    return FlipAveraged(teacher, bins_to_mix_in([teacher], options), sigma_to_mix_with([teacher], options))


def bins_to_mix_in(teachers: Sequence[Teacher], options: TeacherOptions) -> NDArray[np.float64]:
    """Edges (L + 1,) in metres of a mixture: those that all teachers share, or else `options.map_edges_m`.

    Raises PipelineError for a teacher that gives no metres, and where there are no such edges.
    """
    for teacher in teachers:
        if teacher.card.depth_space != "metric_m":
            raise PipelineError(
                f"teacher {teacher.card.name!r} gives {teacher.card.depth_space}: its scale is another in every "
                "answer, so that two answers have no mean; mix teachers that give metres, and this one not"
            )
    own_m = teachers[0].bin_edges_m
    if own_m is not None and all(np.array_equal(own_m, teacher.bin_edges_m) for teacher in teachers):  # type: ignore[arg-type]  # None is equal to none
        return own_m
    if options.map_edges_m is None:
        raise PipelineError(
            f"teacher {', '.join(repr(teacher.card.name) for teacher in teachers)}: no bins to mix answers in, as the "
            "source has none that are customary; give `bins`, for example nyu, kitti or log:64:0.5:20"
        )
    return np.array(options.map_edges_m, np.float64)


def sigma_to_mix_with(teachers: Sequence[Teacher], options: TeacherOptions) -> float | None:
    """Width in metres of the Gaussian for answers without a map; None where all have maps.

    Raises PipelineError where it is needed, and nobody gave one above 0.
    """
    alone = [teacher.card.name for teacher in teachers if not gives_maps(teacher)]
    if not alone:
        return None
    sigma_m = options.map_sigma_m
    if sigma_m is None or not 0 < sigma_m < np.inf:
        found = "the source has no customary width" if sigma_m is None else f"its width is {sigma_m}"
        raise PipelineError(
            f"teacher {', '.join(map(repr, alone))}: gives depth alone, for which a Gaussian stands where answers are "
            f"mixed, and {found}; give `sigma_m`, in metres, above 0"
        )
    return sigma_m


def ask(teacher: Teacher, images: Tensor | None, ids: Sequence[str], framing: Framing | None = None) -> TeacherOutput:
    """What a teacher of metres says of images (B, 3, H, W), once it is known to be depth.

    Raises PipelineError for a network's NaN, infinite, zero or negative depth, which a mixture would hide.
    """
    output = answer_of(teacher, images if teacher.needs_images else None, ids, framing)
    depth = output.depth
    if depth.ndim != 3 or len(depth) != len(ids):
        raise PipelineError(
            f"teacher {teacher.card.name!r} gave depth of shape {tuple(depth.shape)} for {len(ids)} images: expected "
            "(B, h, w)"
        )
    bad = ~(depth.isfinite() & (depth > 0))
    if may_lack_values(teacher):
        bad &= ~depth.isnan()
    if bool(bad.any()):
        worst = float(depth[bad][0])
        remedy = REMEDY_OF_NONPOSITIVE if math.isfinite(worst) else remedy_of_infinity(teacher.card)
        raise PipelineError(
            f"teacher {teacher.card.name!r} gave {worst} m, one of {int(bad.sum())} pixels, for images "
            f"{', '.join(ids)}: expected finite depth above 0; {remedy}"
        )
    return output


def mix(answers: Sequence[Answer], edges_m: NDArray[np.float64], sigma_m: float | None) -> TeacherOutput:
    """The weighted mean depth (B, h, w) of answers, and the mixture (B, L, h, w) of their maps over `edges_m` (L + 1,).

    Maps over other bins are carried over by mass; where an answer has none, a Gaussian of `sigma_m` stands for it. All
    are brought to the size of the largest, by nearest pixel. Where one has no value, the others make the mixture;
    where none has, it is NaN.
    """
    sizes = [(answer.output.depth.shape[1], answer.output.depth.shape[2]) for answer in answers]
    size = max(sizes, key=lambda size: size[0] * size[1])
    batch = len(answers[0].output.depth)
    weights = torch.zeros(batch, *size)
    depth_m = torch.zeros(batch, *size)
    dpm = torch.zeros(batch, len(edges_m) - 1, *size)
    for answer in answers:
        own_m = _resized(answer.output.depth[:, None], size)[:, 0]
        known = ~own_m.isnan()
        weights += answer.weight * known
        depth_m += answer.weight * own_m.nan_to_num(0.0)
        for number in range(batch):  # a whole batch of maps is large, and each step makes a copy
            one = _resized(_map_of(answer, number, edges_m, sigma_m)[None], size)[0]
            dpm[number] += answer.weight * torch.where(known[number], one, 0.0)
    depth_m /= weights  # 0 / 0 is NaN
    dpm /= weights[:, None]
    return TeacherOutput(depth_m, dpm)


def _map_of(answer: Answer, number: int, edges_m: NDArray[np.float64], sigma_m: float | None) -> Tensor:
    """One image's map (L, h, w) over the mixture's bins."""
    depth, dpm, own_m = answer.output
    if dpm is None:
        assert sigma_m is not None, "sigma_to_mix_with gives one where an answer has no map"
        return gaussian_dpm(depth[number, None, None], torch.from_numpy(edges_m), sigma_m)[0]
    its_m = answer.bin_edges_m if own_m is None else own_m[number].numpy()
    assert its_m is not None, "a map has bins"
    return torch.from_numpy(carry(dpm[number].float().numpy(), its_m, edges_m)[0])


def _mirrored(output: TeacherOutput) -> TeacherOutput:
    """The answer for a mirrored image, mirrored back."""
    depth, dpm, edges_m = output
    moved = edges_m is not None and edges_m.ndim == 4
    return TeacherOutput(depth.flip(-1), None if dpm is None else dpm.flip(-1), edges_m.flip(-1) if moved else edges_m)  # type: ignore[union-attr]  # not None


def _resized(values: Tensor, size: tuple[int, int]) -> Tensor:
    """Values (B, C, h, w) at another size, each pixel the one that lies nearest."""
    return values if tuple(values.shape[-2:]) == size else F.interpolate(values, size, mode="nearest-exact")
