"""What a teacher is to stage one: something that turns images into depth, and says who it is.

Shape legend: B batch, K bins, H W pixels of the view, h w pixels of the teacher's own output.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from ..depth.spaces import check_depth_space
from ..errors import PipelineError
from ..sources.view import aspect_off_px, same_aspect

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from ..sources.view import View

STRIDES = (4, 8, 14, 16, 32, 64)
"""Of patches and of the deepest layers of networks; sides that they do not divide may be rounded to them."""
NEVER_0 = frozenset({"metric_m", "scale_invariant"})
"""Depth spaces in which 0 is no value."""
REMEDY_OF_NONPOSITIVE = "give `drop_nonpositive` to take 0 and less as no value, or correct what it gives"
NONPOSITIVE = "nonpositive"
"""Key of a card's preprocessing, where depth of 0 or less is taken as no value."""
VIEW = "trained_view"
"""Key of a card's preprocessing: the view that a network of ours was trained on, which stage one then takes."""


@dataclass(frozen=True)
class TeacherCard:
    """Who a teacher is and what its numbers mean. Goes into the store; a difference means another store."""

    kind: str
    """The adapter: `checkpoint`, `predictions`, `python`, `transformers` ..."""
    name: str
    """For people: a model or folder name, never an absolute path."""
    depth_space: str
    """One of `depth_space.DEPTH_SPACES`. What the numbers mean is stated, never guessed."""
    weights_sha256: str | None = None
    """None where there are no weights to hash (a folder of predictions has a digest of its listing here)."""
    revision: str | None = None
    preprocessing: dict[str, Any] = field(default_factory=dict)
    """JSON values only: input size, normalisation, scale of a file's numbers ..."""
    precision: str = "float32"
    licence: str | None = None

    def __post_init__(self) -> None:
        check_depth_space(self.depth_space)

    def as_json(self) -> dict[str, Any]:
        """JSON form, every field present."""
        return asdict(self)


class TeacherOutput(NamedTuple):
    """What a teacher gives for a batch, at its own resolution."""

    depth: Tensor
    """(B, h, w) float32 in the card's depth space. NaN where the teacher gives no value (integer formats)."""
    dpm: Tensor | None = None
    """(B, K, h, w) float32 that sums to 1 over K, if the teacher emits a distribution."""
    bin_edges_m: Tensor | None = None
    """(B, K + 1) or (B, K + 1, h, w) ascending edges of `dpm`, where each image, or each pixel, has bins of its own."""


class Framing(NamedTuple):
    """Which part of which images a batch is, for a teacher of files, which does not see them.

    A teacher that has `wants_framing = True` is given one as a third argument of `predict`.
    """

    view: View
    images_px: Sequence[tuple[int, int]]
    """(height, width) of each whole image."""


class Teacher(Protocol):
    """A loaded teacher."""

    card: TeacherCard
    bin_edges_m: NDArray[np.float64] | None
    """(K + 1,) edges of its own bins, if it emits distributions over the same ones for every image."""
    needs_images: bool
    """False for folders of predictions: then `images` is None, and only hashed."""
    emits_maps: bool = False
    """True if it emits distributions over bins that each image, or each pixel, has of its own. May be left out."""

    def predict(self, images: Tensor | None, ids: Sequence[str]) -> TeacherOutput:
        """Depth for images (B, 3, H, W) float32 RGB in 0..1, named by `ids`.

        Runs without gradients, on the teacher's own device, and returns CPU tensors.
        """
        ...


def answer_of(
    teacher: Teacher, images: Tensor | None, ids: Sequence[str], framing: Framing | None = None
) -> TeacherOutput:
    """What a teacher says of a batch, with the framing where it wants that."""
    if getattr(teacher, "wants_framing", False):
        framed: Any = teacher.predict  # its third argument is not in the protocol, which most teachers do without
        output: TeacherOutput = framed(images, ids, framing)
        return output
    return teacher.predict(images, ids)


def check_covers(
    where: str, output_px: Sequence[int], input_px: Sequence[int], remedy: str, *, strict: bool = False
) -> None:
    """Refuse an output (h, w) that cannot cover an input (H, W): another aspect, such as that of a transposed one.

    Within a pixel, or, unless `strict`, that of the input with its sides rounded to a multiple of a stride or a patch,
    as some networks round them. Raises PipelineError with both sizes and the remedy.
    """
    (height, width), given_px = output_px, (input_px[0], input_px[1])
    if any(same_aspect((height, width), one) for one in ([given_px] if strict else _rounded(given_px))):
        return
    turned = aspect_off_px((width, height), given_px) < aspect_off_px((height, width), given_px)
    raise PipelineError(
        f"{where} gave depth of {height}x{width} px for {given_px[0]}x{given_px[1]} px: expected the same aspect, "
        f"within a pixel; {'rows and columns look exchanged: transpose it back; or ' if turned else ''}{remedy}"
    )


def _rounded(size_px: tuple[int, int]) -> Iterator[tuple[int, int]]:
    height, width = size_px
    yield size_px
    for step in STRIDES:
        yield max(height // step, 1) * step, max(width // step, 1) * step
        yield -(-height // step) * step, -(-width // step) * step


def may_lack_values(teacher: Teacher) -> bool:
    """Whether NaN is a teacher's word for no value: in a file, where its numbers are integers, or where that was asked.

    Of any other network it is a fault.
    """
    card = teacher.card
    return not teacher.needs_images or card.precision.startswith(("int", "uint")) or NONPOSITIVE in card.preprocessing


def remedy_of_infinity(card: TeacherCard) -> str:
    """What to do where a network gives NaN or infinity."""
    if card.kind == "transformers" and card.precision != "float32":
        return "try `precision=float32`"
    if card.precision in {"float16", "bfloat16"}:
        return f"its numbers are {card.precision}, which may overflow: export it, or call it, as float32"
    return "look at its input (normalisation, size) and at its weights"


def gives_maps(teacher: Teacher) -> bool:
    """Whether a teacher's answers hold distributions, over whatever bins."""
    return teacher.bin_edges_m is not None or has_moving_bins(teacher)


def has_moving_bins(teacher: Teacher) -> bool:
    """Whether the bins of its distributions differ between images or pixels."""
    return bool(getattr(teacher, "emits_maps", False))
