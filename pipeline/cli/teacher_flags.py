"""Flags of `cache-teacher` about the teacher and about what a store keeps of it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from .options import INVALID, NAMES, SIZE, STORE, many, option

if TYPE_CHECKING:
    from ..sources.base import Source
    from ..teachers.options import TeacherOptions

TEACHER_KINDS = (
    "checkpoint:RUN, ensemble:KIND:WHAT,KIND:WHAT, ensemble:FILE.json, litert:FILE, onnx:FILE, predictions:DIR, "
    "python:module:factory, torchscript:FILE or transformers:DIR_OR_ID."
)
TEACHER_FLAGS = many(
    option("--metres-per-unit", help="Scale of predictions: mm, kitti, tiekd-kitti, tiekd-nyu, 80/65535, 0.001 ..."),
    option(
        "--depth-space",
        help="Meaning of the teacher's numbers, if it does not state it: metric_m, affine_disparity ...",
    ),
    option("--licence", help="Licence of the teacher's output, recorded in the store."),
    option("--precision", default="auto", help="auto, float32, bfloat16 or float16."),
    option("--revision", help="Revision of a model on the hub."),
    option("--input-size", type=SIZE, help="Input size of the teacher, or of saved predictions, if not its default."),
    option("--normalise", help="Input normalization of a network file: imagenet, half, unit, bytes, or MEAN/STD."),
    option("--channels", type=click.Choice(["rgb", "bgr"]), help="Channel order of a network file's input."),
    option(
        "--output",
        help="Which output of a network file is depth, if it has several; or depth=NAME,confidence=NAME,sky=NAME.",
    ),
    option("--invalid", type=INVALID, help="Numbers in prediction files that mean no value, such as 65535."),
    option("--readout", help="How a checkpoint's depth is read from its map: mean, geometric, median or absrel."),
    option(
        "--focal-px",
        type=float,
        help="Focal length of the original images, for a teacher that depends on it; the source's if omitted.",
    ),
    option(
        "--canonical-focal-px",
        type=float,
        help="A network file predicts depth for a camera of this focal length; the store holds metres of the real one.",
    ),
    option("--drop-nonpositive", is_flag=True, help="Treat predicted depth of 0 or less as no value, and count it."),
    option(
        "--flip-average", is_flag=True, help="Average each prediction with that of the mirrored image, into one map."
    ),
    option(
        "--teacher-python",
        metavar="PYTHON",
        help="Run a python: teacher with the Python of another environment, such as /path/to/env/bin/python.",
    ),
    option("--trust-code", is_flag=True, help="Allow code that comes with the weights to run."),
)


KEPT_FLAGS = many(
    option("--signals", type=NAMES, help="Also keep these outputs of the teacher: confidence, sky."),
    option(
        "--intrinsics",
        type=click.Choice(["source", "teacher"]),
        help="Also keep the intrinsics of each view, of the source or as the teacher predicts them.",
    ),
    option(
        "--features",
        metavar="LAYER[,LAYER]:COMPONENTS",
        help="Also keep features of these layers as so many principal components, such as 6,11:64.",
    ),
    option(
        "--max-feature-cosine-error",
        type=float,
        help="Keep the fewest components, up to those of --features, with this mean cosine error on the fitted images.",
    ),
    option("--features-basis", type=STORE, help="Use the components of this store, so that the two can be merged."),
    option("--data-licence", help="Licence of the images, recorded in the store."),
)
UNCHANGED_FLAGS = (
    "canonical_focal_px",
    "channels",
    "depth_space",
    "drop_nonpositive",
    "flip_average",
    "focal_px",
    "licence",
    "normalise",
    "output",
    "precision",
    "readout",
    "revision",
    "teacher_python",
    "trust_code",
)
"""Flags of TEACHER_FLAGS that are fields of TeacherOptions with the same value."""


def options_of_flags(flags: dict[str, Any]) -> TeacherOptions:
    """Take TEACHER_FLAGS out of a command's flags. Raises PipelineError for an invalid scale."""
    from ..teachers.options import TeacherOptions
    from ..teachers.predictions import parse_metres_per_unit

    scale, invalid = flags.pop("metres_per_unit"), flags.pop("invalid")
    return TeacherOptions(
        metres_per_unit=None if scale is None else parse_metres_per_unit(scale),
        input_size_px=flags.pop("input_size"),
        invalid=invalid or (),
        **{name: flags.pop(name) for name in UNCHANGED_FLAGS},
    )


def with_averaging_bins(
    options: TeacherOptions, teacher_name: str, source: Source, bins: str | None, sigma_m: float | None
) -> TeacherOptions:
    """Add the bins and sigma of averaged maps, if the teacher averages predictions."""
    if not options.flip_average and not teacher_name.startswith("ensemble:"):
        return options
    from ..cache.plan import edges_or_default

    return replace(
        options,
        map_edges_m=edges_or_default(source, bins),
        map_sigma_m=source.defaults.sigma_m if sigma_m is None else sigma_m,
    )


def take_features(flags: dict[str, Any]) -> tuple[str, ...]:
    """Replace the flags about features by the fields of CacheOptions. Returns the layers."""
    from ..store import open_store
    from ..teachers.features import parse_features

    text, basis = flags.pop("features"), flags.pop("features_basis")
    flags["signals"] = flags["signals"] or ()
    if text is None:
        if basis is not None or flags["max_feature_cosine_error"] is not None:
            raise click.UsageError("--features-basis and --max-feature-cosine-error need --features")
        return ()
    layers, flags["feature_components"] = parse_features(text)
    flags["features"] = layers
    if basis is not None:
        flags["bases"] = tuple(open_store(basis).bases.items())
    return layers
