"""What is known of each depth architecture of transformers: what its numbers mean, and how its output is read.

This is the table behind docs/teachers.md, so it imports nothing that is optional.

Shape legend: B batch, H W pixels of the view, h w pixels of the network's output.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from .distributions import FixedBins, ZoeDepth
from .outputs import AsItIs, DepthPro

if TYPE_CHECKING:
    from collections.abc import Callable

    from .outputs import Reader


class Own(NamedTuple):
    """Preparation of the input by our own code, where the library's needs torchvision."""

    settings: dict[str, Any]
    """What holds where `preprocessor_config.json` is silent: the library's class attributes."""
    resize_last: bool
    """Whether the resize comes after the normalisation, without antialiasing; else before, on bytes, with it."""


class Family(NamedTuple):
    """What this adapter has to know of one of the library's architectures."""

    depth_space: Callable[[Any], str | None]
    """Of its configuration; None where that does not say, so that the user must."""
    space: str
    """The same for people."""
    gives: str = "depth"
    """Depth alone, or with which maps; for people."""
    special: str = ""
    """What else is done for it; for people."""
    heads: tuple[str, ...] = ()
    """Modules that turn features into depth. They stay in float32, for bfloat16 gives depth two digits."""
    reader: Callable[[Any, dict[str, Any]], Reader] = AsItIs
    """Makes TeacherOutput of what the network returns; called with the network and the processor's settings."""
    own: Own | None = None
    pads: bool = False
    """Its reader undoes the processor's padding."""
    input_px: Callable[[Any], int] | None = None
    """Of its configuration: the side of the one square input that it takes, where it takes no other."""
    hint: str = ""
    """Ends the message that asks for --depth-space, after the words "as its model card says"."""


def _depth_anything_space(config: Any) -> str:  # noqa: ANN401 - the library ships no types
    return "metric_m" if config.depth_estimation_type == "metric" else "affine_disparity"


MIDAS_BACKBONES = {None, "beit", "bit", "levit", "swin", "swinv2", "vit"}
"""Those of MiDaS 3 and 3.1; None is the ViT within DPT itself."""


def _dpt_space(config: Any) -> str | None:  # noqa: ANN401 - the library ships no types
    # MiDaS networks give inverse depth; those on DINOv2 were trained on metres of NYU or KITTI, or on others.
    backbone = getattr(config.backbone_config, "model_type", None)
    return "affine_disparity" if backbone in MIDAS_BACKBONES else None


def _depth_pro_side(config: Any) -> int:  # noqa: ANN401 - the library ships no types
    # The smallest of its scaled images is one patch. Of any other input its patches leave out a border, or are
    # joined where they do not overlap: the library does not complain, and depth lies beside the view.
    patch: int = config.patch_size if isinstance(config.patch_size, int) else config.patch_size[0]
    side: int = round(patch / min(config.scaled_images_ratios))
    return side


HALF = [0.5, 0.5, 0.5]
FAMILIES = {
    "depth_anything": Family(
        _depth_anything_space,
        "metric_m or affine_disparity, by its configuration",
        special="V1, V2 and whatever shares their architecture",
        heads=("head",),
    ),
    "depth_pro": Family(
        lambda config: "metric_m" if config.use_fov_model else "scale_invariant",
        "metric_m; scale_invariant without its field of view model",
        special="depth by the field of view that it estimates for each image; a square input of one size",
        heads=("head", "fov_model"),
        reader=DepthPro,
        own=Own(
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
        "affine_disparity with a backbone of MiDaS; else `depth_space`",
        special="networks on DINOv2 exist for metres and for disparity, and their configurations are alike",
        heads=("head",),
    ),
    "glpn": Family(
        lambda _: "metric_m",
        "metric_m",
        special="the input is the view, its sides rounded down to multiples of 32",
        heads=("head",),
    ),
    "prompt_depth_anything": Family(
        lambda _: None,
        "`depth_space`",
        special="runs without a prompt, which would be truth: the library allows that, its authors' code does not",
        heads=("head",),
        hint="; that speaks of a depth map as prompt, and without one its numbers lie between an unknown nearest and "
        "farthest depth, which is affine_depth",
    ),
    "tipsv2_dpt": Family(
        lambda _: "metric_m",
        "metric_m",
        gives="depth and maps over its own bins",
        special="the same linear bins for every image",
        heads=("decoder", "bin_regressor"),
        reader=FixedBins,
        own=Own({"size": {"height": 448, "width": 448}, "do_normalize": False}, resize_last=False),
    ),
    "zoedepth": Family(
        lambda _: "metric_m",
        "metric_m",
        gives="depth and maps over bins of each pixel",
        special="its padding is undone; with two heads, each image is routed by itself",
        heads=("relative_head", "metric_head"),
        reader=ZoeDepth,
        pads=True,
    ),
}
UNKNOWN = Family(lambda _: None, "`depth_space`", special="float32 alone; its `predicted_depth` must cover the view")
"""Any other that AutoModelForDepthEstimation loads; the user says what it means."""
REFUSED = {"chmv2": "it measures how high trees stand above the ground, seen from above, which is no depth"}
"""Architectures of the library that are no teachers of depth, and why."""


class Row(NamedTuple):
    """A line of the table of families in the documents."""

    family: str
    depth_space: str
    gives: str
    special: str


def rows() -> list[Row]:
    """Every architecture of the library, by name, and last any other."""
    known = [Row(name, family.space, family.gives, family.special) for name, family in FAMILIES.items()]
    refused = [Row(name, "none", "refused", reason) for name, reason in REFUSED.items()]
    return [*sorted(known + refused), Row("any other", UNKNOWN.space, UNKNOWN.gives, UNKNOWN.special)]
