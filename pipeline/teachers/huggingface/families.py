"""Depth architectures of transformers: their depth space, and how their output is read.

docs/teachers.md shows this table, so this file imports no optional package.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from .distributions import FixedBins, ZoeDepth, zoedepth_padding_px
from .outputs import DepthPro, DirectDepth

if TYPE_CHECKING:
    from collections.abc import Callable

    from .outputs import Reader


class OwnProcessor(NamedTuple):
    """Preprocessing by this project, because the library's processor needs torchvision."""

    settings: dict[str, Any]
    """Defaults of `preprocessor_config.json`: the library's class attributes."""
    resize_last: bool
    """Resize after normalization, without antialiasing; otherwise before it, on bytes, with antialiasing."""


class Family(NamedTuple):
    """One architecture."""

    depth_space: Callable[[Any], str | None]
    """Configuration -> depth space; None if the user must specify it."""
    space: str
    """The depth space, for the docs."""
    gives: str = "depth"
    """Depth, and which maps, for the docs."""
    special: str = ""
    """Special handling, for the docs."""
    heads: tuple[str, ...] = ()
    """Modules that turn features into depth. They stay in float32: bfloat16 has two digits."""
    reader: Callable[[Any, dict[str, Any]], Reader] = DirectDepth
    """Converts the network's output; called with the network and the processor's settings."""
    own: OwnProcessor | None = None
    padding_px: Callable[[tuple[int, int]], tuple[int, int]] | None = None
    """View -> rows and columns that its processor adds on each side and its reader removes, if it pads."""
    input_px: Callable[[Any], int] | None = None
    """Configuration -> side of its square input, if it supports only one size."""
    hint: str = ""
    """Ends the message that asks for `depth_space`."""


def _depth_anything_space(config: Any) -> str:  # noqa: ANN401 - the library ships no types
    return "metric_m" if config.depth_estimation_type == "metric" else "affine_disparity"


MIDAS_BACKBONES = {None, "beit", "bit", "levit", "swin", "swinv2", "vit"}
"""Backbones of MiDaS 3 and 3.1; None is the ViT of DPT itself."""


def _dpt_space(config: Any) -> str | None:  # noqa: ANN401 - the library ships no types
    # MiDaS networks predict inverse depth; networks on DINOv2 predict metres (NYU, KITTI) or something else.
    backbone = getattr(config.backbone_config, "model_type", None)
    return "affine_disparity" if backbone in MIDAS_BACKBONES else None


def _depth_pro_side(config: Any) -> int:  # noqa: ANN401 - the library ships no types
    # The smallest scaled image must be exactly one patch. For other sizes the library silently drops a border or
    # merges patches that do not overlap, which shifts depth against the view.
    patch: int = config.patch_size if isinstance(config.patch_size, int) else config.patch_size[0]
    side: int = round(patch / min(config.scaled_images_ratios))
    return side


HALF = [0.5, 0.5, 0.5]
FAMILIES = {
    "depth_anything": Family(
        _depth_anything_space,
        "metric_m or affine_disparity, by its configuration",
        special="V1, V2 and networks of the same architecture",
        heads=("head",),
    ),
    "depth_pro": Family(
        lambda config: "metric_m" if config.use_fov_model else "scale_invariant",
        "metric_m; scale_invariant without its field-of-view model",
        gives="depth; the focal length, with its field-of-view model",
        special="depth scaled by the estimated field of view of each image; one square input size",
        heads=("head", "fov_model"),
        reader=DepthPro,
        own=OwnProcessor(
            {
                "size": {"height": 1536, "width": 1536},
                "do_normalize": True,
                "image_mean": HALF,
                "image_std": HALF,
            },
            resize_last=True,
        ),
        input_px=_depth_pro_side,
    ),
    "dpt": Family(
        _dpt_space,
        "affine_disparity with a MiDaS backbone; otherwise `depth_space`",
        special="networks on DINOv2 predict metres or disparity with the same configuration",
        heads=("head",),
    ),
    "glpn": Family(
        lambda _: "metric_m",
        "metric_m",
        special="input sides are rounded down to multiples of 32",
        heads=("head",),
    ),
    "prompt_depth_anything": Family(
        lambda _: None,
        "`depth_space`",
        special="runs without a prompt, which would be ground truth; the library allows this, its authors' code does "
        "not",
        heads=("head",),
        hint="; without a depth map as prompt, its depth has an unknown scale and shift, which is affine_depth",
    ),
    "tipsv2_dpt": Family(
        lambda _: "metric_m",
        "metric_m",
        gives="depth and maps over its own bins",
        special="linear bins, the same for every image",
        heads=("decoder", "bin_regressor"),
        reader=FixedBins,
        own=OwnProcessor({"size": {"height": 448, "width": 448}, "do_normalize": False}, resize_last=False),
    ),
    "zoedepth": Family(
        lambda _: "metric_m",
        "metric_m",
        gives="depth and maps over bins of each pixel",
        special="padding is removed; with two heads, each image is routed separately",
        heads=("relative_head", "metric_head"),
        reader=ZoeDepth,
        padding_px=zoedepth_padding_px,
    ),
}
UNKNOWN = Family(lambda _: None, "`depth_space`", special="float32 only; its `predicted_depth` must cover the view")
"""Any other architecture that AutoModelForDepthEstimation loads."""
REFUSED = {"chmv2": "it predicts canopy height seen from above, not depth"}
"""Architectures that do not predict depth, and why."""


class Row(NamedTuple):
    """A row of the table in the docs."""

    family: str
    depth_space: str
    gives: str
    special: str


def rows() -> list[Row]:
    """Return all architectures by name, then the row for any other."""
    known = [Row(name, family.space, family.gives, family.special) for name, family in FAMILIES.items()]
    refused = [Row(name, "none", "refused", reason) for name, reason in REFUSED.items()]
    return [*sorted(known + refused), Row("any other", UNKNOWN.space, UNKNOWN.gives, UNKNOWN.special)]
