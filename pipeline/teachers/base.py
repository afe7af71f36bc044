"""What a teacher is to stage one: something that turns images into depth, and says who it is.

Shape legend: B batch, K bins, H W pixels of the view, h w pixels of the teacher's own output.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from ..depth_space import check_depth_space

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

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


def may_lack_values(teacher: Teacher) -> bool:
    """Whether NaN is a teacher's word for no value: in a file, or where its numbers are integers.

    Of any other network it is a fault.
    """
    return not teacher.needs_images or teacher.card.precision.startswith(("int", "uint"))


def gives_maps(teacher: Teacher) -> bool:
    """Whether a teacher's answers hold distributions, over whatever bins."""
    return teacher.bin_edges_m is not None or has_moving_bins(teacher)


def has_moving_bins(teacher: Teacher) -> bool:
    """Whether the bins of its distributions differ between images or pixels."""
    return bool(getattr(teacher, "emits_maps", False))
