"""The teacher interface: a network or a folder of files that gives depth for images, with a card that identifies it.

Shape legend: B batch, K bins, H W pixels of the view, h w pixels of the teacher's own output.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import torch

from ..depth.spaces import check_depth_space
from ..errors import PipelineError
from ..sources.intrinsics import Intrinsics
from ..sources.view import aspect_off_px, same_aspect

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from ..sources.view import View

STRIDES = (4, 8, 14, 16, 32, 64)
"""Common patch sizes and total strides; networks may round the sides of their output to a multiple of one."""
POSITIVE_SPACES = frozenset({"metric_m", "scale_invariant", "disparity_px"})
"""Depth spaces in which valid depth is positive."""
NONPOSITIVE_REMEDY = "give `drop_nonpositive` to treat these pixels as missing, or correct the network's output"
NONPOSITIVE = "nonpositive"
"""Key of a card's preprocessing; present if depth of 0 or less counts as missing."""
VIEW = "trained_view"
"""Key of a card's preprocessing: the view that a run was trained on, the default view of its store."""


@dataclass(frozen=True)
class TeacherCard:
    """Identity of a teacher and meaning of its numbers. Part of the store: another card needs another store."""

    kind: str
    """A key of `registry.KINDS`."""
    name: str
    """Model or folder name, never an absolute path."""
    depth_space: str
    """One of DEPTH_SPACES; never guessed."""
    weights_sha256: str | None = None
    """None if there are no weights; for predictions a digest of all files."""
    revision: str | None = None
    preprocessing: dict[str, Any] = field(default_factory=dict)
    """JSON values only: input size, normalization, scale of a file's numbers ..."""
    precision: str = "float32"
    licence: str | None = None

    def __post_init__(self) -> None:
        check_depth_space(self.depth_space)

    def as_json(self) -> dict[str, Any]:
        """Return all fields as JSON values."""
        return asdict(self)


class TeacherOutput(NamedTuple):
    """Predictions for a batch, at the teacher's own resolution."""

    depth: Tensor
    """(B, h, w) float32 in the card's depth space; NaN is a missing value."""
    dpm: Tensor | None = None
    """(B, K, h, w) float32 that sums to 1 over K, if the teacher predicts a distribution."""
    bin_edges_m: Tensor | None = None
    """(B, K + 1) or (B, K + 1, h, w) ascending edges of `dpm`, if bins are adaptive: per image or per pixel."""
    confidence: Tensor | None = None
    """(B, a, b) float32 in 0..1 over the whole view, at any resolution; higher is better."""
    sky: Tensor | None = None
    """(B, a, b) float32 in 0..1 over the whole view, at any resolution: the probability that a pixel is sky."""
    intrinsics_px: Tensor | None = None
    """(B, 4) fx fy cx cy in pixels of the view, NaN where unknown."""
    features: Mapping[str, Tensor] | None = None
    """(B, D, a, b) features of each layer over the whole view, each at its own resolution."""

    def cpu(self) -> TeacherOutput:
        """Return the output on the CPU."""
        moved: dict[str, Any] = {
            name: value.cpu() for name, value in self._asdict().items() if isinstance(value, torch.Tensor)
        }
        if self.features is not None:
            moved["features"] = {layer: values.cpu() for layer, values in self.features.items()}
        return self._replace(**moved)


class Framing(NamedTuple):
    """View, image sizes and cameras of a batch, for teachers of files, which get no images, and `CameraTeacher`.

    Third argument of `predict` for a teacher with `wants_framing = True`.
    """

    view: View
    images_px: Sequence[tuple[int, int]]
    """(height, width) of each whole image."""
    intrinsics: Sequence[Intrinsics | None] = ()
    """Of each view; None where unknown. Empty if unknown for all."""
    right: Tensor | None = None
    """(B, 3, H, W) float32 in 0..1: views of the right images of stereo pairs, for a teacher that wants them."""
    baselines_m: Sequence[float | None] = ()
    """Distance of the cameras of each pair."""

    def with_focal(self, focal_px: float) -> Framing:
        """Return the framing with one focal length for all images, in pixels of the whole images."""
        whole = Intrinsics.of_focal(focal_px)
        return self._replace(intrinsics=[self.view.of_intrinsics(whole, image_px) for image_px in self.images_px])

    def mirrored(self) -> Framing:
        """Return the framing of the mirrored views."""
        widths_px = [self.view.size_px(*image_px)[1] for image_px in self.images_px]
        return Framing(
            replace(self.view, mirror=not self.view.mirror),
            self.images_px,
            [
                None if camera is None else camera.mirrored(width_px)
                for camera, width_px in zip(self.intrinsics, widths_px, strict=False)
            ],
        )


class Teacher(Protocol):
    """A loaded teacher."""

    card: TeacherCard
    bin_edges_m: NDArray[np.float64] | None
    """(K + 1,) edges of its bins, if it predicts distributions over bins that are the same for every image."""
    needs_images: bool
    """False for folders of predictions: then `images` is None."""
    emits_maps: bool = False
    """True if it predicts distributions over adaptive bins (per image or per pixel). Optional."""

    def predict(self, images: Tensor | None, ids: Sequence[str]) -> TeacherOutput:
        """Predict depth for images (B, 3, H, W) float32 RGB in 0..1 on any device, named by `ids`.

        Runs without gradients on the teacher's own device, and returns tensors there or on the CPU. On a GPU it need
        not wait for them. Stage one puts the images onto the teacher's `device`, if it has this attribute.
        """
        ...


@runtime_checkable
class PreparingTeacher(Protocol):
    """A teacher that prepares images for its network one by one, while the network runs on others. Optional."""

    def prepare(self, view: NDArray[np.uint8]) -> Tensor:
        """Prepare a view (H, W, 3) uint8. Called in several threads; returns a CPU tensor."""
        ...

    def predict_prepared(self, inputs: Tensor, view_size_px: tuple[int, int], ids: Sequence[str]) -> TeacherOutput:
        """Predict as `predict` for stacked results of `prepare`, on any device, of views (H, W)."""
        ...


@runtime_checkable
class StagingTeacher(Protocol):
    """A teacher that reads its images from memory of its own. Optional."""

    def stage(self, images: Tensor) -> Tensor:
        """Return a copy of a batch for `predict`, images (B, 3, H, W) float32 on the CPU. Called in another thread."""
        ...


def package_versions(teachers: Sequence[Teacher]) -> dict[str, str]:
    """Return the versions of packages that run teachers in other environments, by import name."""
    versions: dict[str, set[str]] = {}
    for teacher in teachers:
        for name, version in getattr(teacher, "package_versions", {}).items():
            versions.setdefault(name, set()).add(version)
    return {name: " and ".join(sorted(found)) for name, found in versions.items()}


def device_of(teacher: Teacher) -> torch.device:
    """Return where a teacher wants its images."""
    device: torch.device | None = getattr(teacher, "device", None)
    return device or torch.device("cpu")


def on_cpu(output: TeacherOutput) -> TeacherOutput:
    """Return the output on the CPU."""
    return output.cpu()


def images_of_views(views: Tensor) -> Tensor:
    """Convert views (B, H, W, 3) uint8 to images (B, 3, H, W) float32 in 0..1 on the same device.

    Channels stay last in memory: the last bits of a network's output depend on the layout.
    """
    if views.device.type == "cpu":
        return views.float().div_(255).permute(0, 3, 1, 2)
    return _byte_values(views.device)[views.int()].permute(0, 3, 1, 2)


@cache
def _byte_values(device: torch.device) -> Tensor:
    """Return byte / 255 for each byte: a GPU multiplies by 1/255, which differs in the last bit for half of them."""
    return (torch.arange(256).float() / 255).to(device)


def run_teacher(
    teacher: Teacher, images: Tensor | None, ids: Sequence[str], framing: Framing | None = None
) -> TeacherOutput:
    """Call `predict`, with the framing if the teacher wants it. The output may be on any device."""
    if getattr(teacher, "wants_framing", False):
        predict: Any = teacher.predict  # the third argument is not part of the protocol
        output: TeacherOutput = predict(images, ids, framing)
        return output
    return teacher.predict(images, ids)


def concatenate(outputs: Sequence[TeacherOutput]) -> TeacherOutput:
    """Return outputs with the same fields as one batch, in their order."""
    first = outputs[0]
    if len(outputs) == 1:
        return first
    joined: dict[str, Any] = {
        name: torch.cat([getattr(output, name) for output in outputs])
        for name, value in first._asdict().items()
        if isinstance(value, torch.Tensor)
    }
    if first.features is not None:
        joined["features"] = {
            layer: torch.cat([output.features[layer] for output in outputs if output.features is not None])
            for layer in first.features
        }
    return first._replace(**joined)


def check_covers(
    where: str,
    output_px: Sequence[int],
    input_px: Sequence[int],
    remedy: str,
    *,
    strict: bool = False,
    what: str = "depth",
) -> None:
    """Check that an output (h, w) has the aspect ratio of its input (H, W), within a pixel.

    Unless `strict`, the sides of the input may be rounded to a multiple of a common stride or patch size.
    Raises PipelineError with both sizes and the remedy.
    """
    height, width = output_px
    expected_px = (input_px[0], input_px[1])
    if any(same_aspect((height, width), size) for size in ([expected_px] if strict else _rounded(expected_px))):
        return
    transposed = aspect_off_px((width, height), expected_px) < aspect_off_px((height, width), expected_px)
    hint = "rows and columns look swapped: transpose the output; or " if transposed else ""
    raise PipelineError(
        f"{where} returned {what} of {height}x{width} px for {expected_px[0]}x{expected_px[1]} px, expected the same "
        f"aspect ratio within a pixel: {hint}{remedy}"
    )


def _rounded(size_px: tuple[int, int]) -> Iterator[tuple[int, int]]:
    height, width = size_px
    yield size_px
    for step in STRIDES:
        yield max(height // step, 1) * step, max(width // step, 1) * step
        yield -(-height // step) * step, -(-width // step) * step


def may_lack_values(teacher: Teacher) -> bool:
    """Return whether NaN means a missing value: for files, integer outputs and `drop_nonpositive`.

    From any other network NaN is an error.
    """
    card = teacher.card
    return not teacher.needs_images or card.precision.startswith(("int", "uint")) or NONPOSITIVE in card.preprocessing


def nonfinite_remedy(card: TeacherCard) -> str:
    """Return what to do about NaN or infinity from a network."""
    if card.kind == "transformers" and card.precision != "float32":
        return "use `precision=bfloat16` or float32" if card.precision == "float16" else "use `precision=float32`"
    if card.precision in {"float16", "bfloat16"}:
        return f"{card.precision} may overflow: export or call the network as float32"
    return "check its input (normalization, size) and its weights"


def gives_maps(teacher: Teacher) -> bool:
    """Return whether a teacher predicts distributions."""
    return teacher.bin_edges_m is not None or has_adaptive_bins(teacher)


def has_adaptive_bins(teacher: Teacher) -> bool:
    """Return whether the bins of its distributions differ between images or pixels."""
    return bool(getattr(teacher, "emits_maps", False))
