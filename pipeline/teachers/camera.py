"""Teachers that need to know the camera: for their input, or because their metres depend on the focal length.

A network of a canonical camera predicts depth as a camera of the focal length `canonical_focal_px` would see it:
metres = output * focal length of the view / canonical_focal_px.

Shape legend: B batch, K bins, h w pixels of the teacher's own output.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from ..depth.spaces import DISPARITY
from ..errors import OptionError, PipelineError
from ..sources.intrinsics import MAX_FOCAL_PX
from .base import StagingTeacher, device_of, package_versions

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from ..sources.intrinsics import Intrinsics
    from .base import Framing, Teacher, TeacherOutput
    from .options import TeacherOptions

INPUTS = "inputs"
"""Key of a card's preprocessing: what `predict` wants besides images, a list of names of INPUT_NAMES."""
INTRINSICS, RIGHT, BASELINE = "intrinsics", "right", "baseline"
INPUT_NAMES = (INTRINSICS, RIGHT, BASELINE)
CANONICAL = "canonical_focal_px"
"""Key of a card's preprocessing: the focal length of the canonical camera."""
FOCAL = "focal_px"
"""Key of a card's preprocessing: a focal length given by hand, in pixels of the original images."""


class CameraTeacher:
    """A network that gets the intrinsics of each view, and whose output is scaled to metres. See `with_camera`."""

    needs_images = True
    wants_framing = True

    def __init__(self, teacher: Teacher, canonical_focal_px: float | None, focal_px: float | None) -> None:
        stated: dict[str, Any] = {} if canonical_focal_px is None else {CANONICAL: canonical_focal_px}
        stated |= {} if focal_px is None else {FOCAL: focal_px}
        self.card = replace(teacher.card, preprocessing={**teacher.card.preprocessing, **stated})
        self.device: torch.device | None = getattr(teacher, "device", None)
        own_m, emits_maps = teacher.bin_edges_m, bool(getattr(teacher, "emits_maps", False))
        self._own_edges_m = own_m
        # The metres of canonical bins differ between images
        self.bin_edges_m: NDArray[np.float64] | None = own_m if canonical_focal_px is None else None
        self.emits_maps = emits_maps or (canonical_focal_px is not None and own_m is not None)
        self.package_versions = package_versions([teacher])
        if isinstance(teacher, StagingTeacher):
            self.stage = teacher.stage
        self._teacher = teacher
        self._canonical_focal_px = canonical_focal_px
        self._focal_px = focal_px
        self._inputs = inputs_of(teacher)

    def predict(self, images: Tensor | None, ids: Sequence[str], framing: Framing | None = None) -> TeacherOutput:
        """Predict depth (B, h, w) in metres, and maps (B, K, h, w) if the network has them.

        Raises PipelineError, naming the image, where the focal length is not known.
        """
        cameras: Sequence[Intrinsics] = ()
        given: dict[str, Any] = {}
        if INTRINSICS in self._inputs or self._canonical_focal_px is not None:
            cameras = self._cameras(ids, framing)
        if INTRINSICS in self._inputs:
            given["intrinsics_px"] = torch.tensor(cameras, dtype=torch.float32, device=device_of(self))
        given |= self._pairs(ids, framing)
        predict: Any = self._teacher.predict  # the keyword is not part of the protocol
        output: TeacherOutput = predict(images, ids, **given)
        if self._canonical_focal_px is None:
            return output
        scale = torch.tensor([camera.focal_px / self._canonical_focal_px for camera in cameras], dtype=torch.float64)
        depth = output.depth.float() * scale.to(output.depth.device, torch.float32)[:, None, None]
        edges_m = output.bin_edges_m
        if output.dpm is not None and edges_m is None and self._own_edges_m is not None:
            edges_m = torch.from_numpy(self._own_edges_m).expand(len(cameras), -1)
        if edges_m is not None:
            edges_m = edges_m * scale.to(edges_m).view(-1, *[1] * (edges_m.ndim - 1))
        return output._replace(depth=depth, bin_edges_m=edges_m)

    def _pairs(self, ids: Sequence[str], framing: Framing | None) -> dict[str, Tensor]:
        """Return the right views and the baselines, as far as the network wants them."""
        given: dict[str, Tensor] = {}
        if RIGHT in self._inputs:
            if framing is None or framing.right is None:
                raise PipelineError(
                    f"teacher {self.card.name!r} needs the right images of stereo pairs: cache it from a source that "
                    "has them (docs/sources.md)"
                )
            given["right"] = framing.right.to(device_of(self), non_blocking=True)
        if BASELINE in self._inputs:
            baselines_m = [] if framing is None else list(framing.baselines_m)
            if len(baselines_m) < len(ids) or None in baselines_m:
                raise PipelineError(
                    f"teacher {self.card.name!r} needs the baseline of {', '.join(ids)}: cache it from a source of "
                    "stereo pairs (docs/sources.md)"
                )
            given["baseline_m"] = torch.tensor(baselines_m, dtype=torch.float32, device=device_of(self))
        return given

    def _cameras(self, ids: Sequence[str], framing: Framing | None) -> list[Intrinsics]:
        """Return the intrinsics of each view."""
        name = self.card.name
        if framing is None:
            raise PipelineError(
                f"teacher {name!r} needs the intrinsics of the views: call it with `teachers.base.run_teacher` and a "
                "Framing"
            )
        if self._focal_px is not None:
            framing = framing.with_focal(self._focal_px)
        cameras = []
        for number, sample_id in enumerate(ids):
            camera = framing.intrinsics[number] if framing.intrinsics else None
            if camera is None or not camera.has_focal:
                raise PipelineError(
                    f"teacher {name!r} needs the focal length of its images, but the source has none for "
                    f"{sample_id!r}: give `focal_px`, in pixels of the original image, or write the intrinsics into "
                    "the data set (docs/sources.md)"
                )
            cameras.append(camera)
        return cameras


def with_camera(teacher: Teacher, options: TeacherOptions) -> Teacher:
    """Give a teacher what it wants to know of the camera, by its card or `options.canonical_focal_px`.

    Returns any other teacher as it is. Raises PipelineError for an invalid or contradictory focal length, unknown
    `inputs`, a canonical camera of relative depth, and `focal_px` for a teacher that does not depend on it.
    """
    card = teacher.card
    wants, stated = card.preprocessing.get(INPUTS), card.preprocessing.get(CANONICAL)
    check_focal_px("focal_px", options.focal_px)
    check_focal_px("canonical_focal_px", options.canonical_focal_px)
    if wants is not None and (not isinstance(wants, list | tuple) or not set(wants) <= set(INPUT_NAMES)):
        raise PipelineError(f"teacher {card.name!r}: its card has inputs {wants!r}, expected {list(INPUT_NAMES)}")
    if stated is not None and not _is_focal(stated):
        raise PipelineError(
            f"teacher {card.name!r}: its card has {CANONICAL} {stated!r}, expected a positive number of pixels"
        )
    canonical_px = stated or options.canonical_focal_px
    if options.canonical_focal_px not in {None, canonical_px}:
        raise PipelineError(
            f"teacher {card.name!r}: `canonical_focal_px={options.canonical_focal_px:g}` contradicts {stated:g} in its "
            "card: omit the option or correct the card"
        )
    if canonical_px is None and not wants:
        if options.focal_px is None:
            return teacher
        raise PipelineError(
            f"`focal_px={options.focal_px:g}`: the depth of teacher {card.name!r} does not depend on the focal length: "
            'omit it, or state in the card "inputs": ["intrinsics"] or "preprocessing": {"canonical_focal_px": ...}'
        )
    if canonical_px is not None and card.depth_space != "metric_m":
        raise PipelineError(
            f"teacher {card.name!r}: {CANONICAL} {canonical_px:g} scales metres, but it predicts {card.depth_space}: "
            "omit it"
        )
    if {RIGHT, BASELINE} & set(inputs_of(teacher)) and (options.flip_average or options.teacher_python is not None):
        option = "`flip_average`" if options.flip_average else f"`teacher_python={options.teacher_python}`"
        raise PipelineError(
            f"{option}: teacher {card.name!r} wants stereo pairs, which are not mirrored or sent to another "
            "environment: omit it"
        )
    return CameraTeacher(teacher, canonical_px, options.focal_px)


def check_focal_px(name: str, value: float | None) -> None:
    """Raise OptionError for an option that is not a focal length in pixels."""
    if value is not None and not _is_focal(value):
        raise OptionError(name, value, f"a number of pixels above 0 and below {MAX_FOCAL_PX:g}")


def _is_focal(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < MAX_FOCAL_PX


def inputs_of(teacher: Teacher) -> tuple[str, ...]:
    """Return what a teacher wants of a sample besides its image: any of INPUT_NAMES."""
    return tuple(teacher.card.preprocessing.get(INPUTS) or ())


def wants_intrinsics(teacher: Teacher) -> bool:
    """Return whether a network, or one inside of it, may ask for the intrinsics of views."""
    return teacher.needs_images and bool(getattr(teacher, "wants_framing", False))


def wants_baseline(teacher: Teacher) -> bool:
    """Return whether a teacher wants the baselines of stereo pairs, or means nothing without them."""
    return BASELINE in inputs_of(teacher) or teacher.card.depth_space == DISPARITY


def wants_right(teacher: Teacher) -> bool:
    """Return whether a teacher wants the right images of stereo pairs."""
    return RIGHT in inputs_of(teacher)


def wants_camera(teacher: Teacher) -> bool:
    """Return whether a teacher depends on the intrinsics of its images."""
    return any(key in teacher.card.preprocessing for key in (INPUTS, CANONICAL))
