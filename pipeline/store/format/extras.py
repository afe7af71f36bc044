"""What a store of format version 3 may hold besides depth and maps: signals, features, cameras and relations.

Each part is optional. A store without any of them has the bytes of an older version.

Shape legend: N samples, S samples a shard, a b pixels of a signal or cells of features, C components, D channels.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import PipelineError
from .checks import whole

if TYPE_CHECKING:
    from collections.abc import Callable

    from .layout import ArrayLayout

SIGNALS = {
    "confidence": "how far the teacher trusts its depth: 1 is best, 0 is worst",
    "sky": "probability that the pixel is sky",
    "valid": "probability that the depth is a surface and not a hole or an artefact",
}
"""Names of signals and what 1 means; a store repeats the text."""
CAMERA_FROM = ("source", "teacher")
LAYER = re.compile(r"(?!zarr\.json$)[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
"""Names of layers are folders of the store."""
FEATURE_ARRAYS = 2
"""Sharded arrays of a layer."""
MAX_LAYERS = 8
MAX_COMPONENTS = 1024
MAX_CHANNELS = 8192
MAX_CELLS = 2**22
MAX_FEATURE_BYTES = 2**31
"""Limit of a layer's restored features (D, a, b) in float32."""
MAX_LICENCE = 4000
MAX_NODES = 2**14
SIGNAL_STEPS = 255
INTRINSICS, BASELINE, POSE = "intrinsics", "baseline_m", "pose"
COLUMNS = {
    INTRINSICS: ("float32", 4),
    BASELINE: ("float32", 0),
    "previous": ("int32", 0),
    "next": ("int32", 0),
    POSE: ("float32", 6),
}
"""Columns of `sample/` by name: dtype and width, 0 for one number."""


def column_dtype(name: str) -> tuple[str, int] | None:
    """Return dtype and width of a column of version 3; None for another name."""
    if name.startswith(("signal_", "feature_")):
        return "float32", 0
    return COLUMNS.get(name)


@dataclass(frozen=True)
class Signal:
    """One of SIGNALS, stored as bytes."""

    size_px: tuple[int, int]
    """(a, b), over the whole view."""


@dataclass(frozen=True)
class Features:
    """Features of one layer, stored as their first principal components."""

    components: int
    channels: int
    size_cells: tuple[int, int]
    """(a, b), over the whole view."""
    fitted_on: int
    """Number of images that the basis was fitted on."""
    basis_sha256: str
    """Of the little-endian float32 bytes of `mean` (D,), then of `basis` (C, D)."""


@dataclass(frozen=True)
class Relations:
    """Relations of a grid of nodes: each node's strongest neighbours and their weights."""

    nodes: tuple[int, int]
    """Rows and columns of the grid, over the whole view."""
    neighbours: int
    expert: str
    """Who gave them."""


@dataclass(frozen=True)
class Extras:
    """The optional parts of a store."""

    intrinsics: str | None = None
    """Who gave `sample/intrinsics`: one of CAMERA_FROM."""
    baseline: bool = False
    """Whether `sample/baseline_m` exists, the distance of the two cameras of a stereo pair."""
    neighbours: bool = False
    """Whether `sample/previous` and `sample/next` exist, row numbers of adjacent frames."""
    pose: bool = False
    signals: dict[str, Signal] = field(default_factory=dict)
    features: dict[str, Features] = field(default_factory=dict)
    relations: Relations | None = None
    data_licence: str | None = None
    """Licence of the images."""

    def __post_init__(self) -> None:
        if self.intrinsics not in {None, *CAMERA_FROM}:
            raise PipelineError(f"intrinsics from {self.intrinsics!r}: expected one of {', '.join(CAMERA_FROM)}")
        for name, signal in self.signals.items():
            if name not in SIGNALS:
                raise PipelineError(f"signal {name!r}: expected one of {', '.join(SIGNALS)}")
            _check_size(f"signal {name}", signal.size_px)
        if len(self.features) > MAX_LAYERS:
            raise PipelineError(f"{len(self.features)} layers of features: expected at most {MAX_LAYERS}")
        for layer, features in self.features.items():
            _check_features(layer, features)
        if self.relations is not None:
            rows, columns = self.relations.nodes
            if not (0 < rows * columns <= MAX_NODES and 0 < self.relations.neighbours < rows * columns):
                raise PipelineError(
                    f"relations of {rows}x{columns} nodes to {self.relations.neighbours} neighbours: expected 1 to "
                    f"{MAX_NODES} nodes and fewer neighbours than nodes"
                )
        if self.data_licence is not None and not 0 < len(self.data_licence) <= MAX_LICENCE:
            raise PipelineError(f"the licence of the data must be 1 to {MAX_LICENCE} characters")

    def __bool__(self) -> bool:
        return self != Extras()

    def as_json(self) -> dict[str, Any]:
        """Return the attributes of `depth_store` for these parts; empty without any."""
        parts: dict[str, Any] = {"data_licence": self.data_licence, "intrinsics": self.intrinsics}
        for name in ("baseline", "neighbours", "pose"):
            parts[name] = getattr(self, name) or None
        parts["signals"] = {
            name: {"size_px": list(signal.size_px), "meaning": SIGNALS[name]} for name, signal in self.signals.items()
        }
        parts["features"] = {
            layer: asdict(each) | {"size_cells": list(each.size_cells)} for layer, each in self.features.items()
        }
        if self.relations is not None:
            parts["relations"] = asdict(self.relations) | {"nodes": list(self.relations.nodes)}
        return {name: value for name, value in parts.items() if value not in (None, {})}

    @classmethod
    def from_json(cls, header: dict[str, Any]) -> Extras:
        """Parse the attributes of an untrusted store; what is not there is absent.

        Raises PipelineError for values outside the format, KeyError or TypeError for a missing key or another type.
        """
        relations = header.get("relations")
        return cls(
            intrinsics=_text_or_none(header.get("intrinsics")),
            baseline=header.get("baseline") is True,
            neighbours=header.get("neighbours") is True,
            pose=header.get("pose") is True,
            signals={name: Signal(_pair(value["size_px"])) for name, value in header.get("signals", {}).items()},
            features={
                layer: Features(
                    components=whole(value["components"]),
                    channels=whole(value["channels"]),
                    size_cells=_pair(value["size_cells"]),
                    fitted_on=whole(value["fitted_on"]),
                    basis_sha256=str(value["basis_sha256"]),
                )
                for layer, value in header.get("features", {}).items()
            },
            relations=None
            if relations is None
            else Relations(_pair(relations["nodes"]), whole(relations["neighbours"]), str(relations["expert"])),
            data_licence=_text_or_none(header.get("data_licence")),
        )

    def columns(self) -> dict[str, tuple[str, int]]:
        """Return dtype and width of each column of `sample/`."""
        names = [INTRINSICS] if self.intrinsics else []
        names += [BASELINE] if self.baseline else []
        names += ["previous", "next"] if self.neighbours else []
        names += [POSE] if self.pose else []
        names += [f"signal_{name}_error" for name in self.signals]
        names += [f"feature_{layer}_{fact}" for layer in self.features for fact in ("cosine", "variance")]
        return {name: column_dtype(name) or ("float32", 0) for name in names}

    def sharded(self, array: Callable[[str, str, tuple[int, ...]], ArrayLayout]) -> list[ArrayLayout]:
        """Return the arrays with one chunk per sample; `array` makes one of a path, a dtype and a sample's shape."""
        arrays = [array(f"signals/{name}", "uint8", signal.size_px) for name, signal in self.signals.items()]
        for layer, each in self.features.items():
            arrays.append(array(f"features/{layer}/code", "int8", (each.components, *each.size_cells)))
            arrays.append(array(f"features/{layer}/scale", "float32", (each.components,)))
        if self.relations is not None:
            shape = (int(np.prod(self.relations.nodes)), self.relations.neighbours)
            arrays += [array("relations/neighbour", "uint16", shape), array("relations/weight", "uint8", shape)]
        return arrays

    def constants(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the float32 arrays that all samples share, by path."""
        shapes: dict[str, tuple[int, ...]] = {}
        for layer, each in self.features.items():
            shapes[f"features/{layer}/mean"] = (each.channels,)
            shapes[f"features/{layer}/basis"] = (each.components, each.channels)
        return shapes

    def groups(self) -> list[str]:
        """Return the paths of the groups above these arrays."""
        groups = ["signals"] if self.signals else []
        groups += ["features", *(f"features/{layer}" for layer in self.features)] if self.features else []
        return groups + (["relations"] if self.relations else [])


def _check_features(layer: str, features: Features) -> None:
    if LAYER.fullmatch(layer) is None:
        raise PipelineError(
            f"layer {layer[:80]!r}: expected 1 to 64 letters, digits, `_`, `.` or `-`, a letter or digit first"
        )
    _check_size(f"features of layer {layer}", features.size_cells)
    if not 1 <= features.components <= min(features.channels, MAX_COMPONENTS):
        raise PipelineError(
            f"features of layer {layer}: {features.components} components of {features.channels} channels, "
            f"expected at most {min(features.channels, MAX_COMPONENTS)}"
        )
    size = 4 * features.channels * features.size_cells[0] * features.size_cells[1]
    if size > MAX_FEATURE_BYTES:
        raise PipelineError(f"features of layer {layer} take {size} bytes: expected at most {MAX_FEATURE_BYTES}")
    if features.channels > MAX_CHANNELS or features.fitted_on < 1:
        raise PipelineError(
            f"features of layer {layer}: {features.channels} channels fitted on {features.fitted_on} images, "
            f"expected at most {MAX_CHANNELS}, and at least one image"
        )


def _check_size(what: str, size: tuple[int, int]) -> None:
    if not 0 < size[0] * size[1] <= MAX_CELLS:
        raise PipelineError(f"{what}: {size[0]}x{size[1]} px, expected 1 to {MAX_CELLS} pixels")


def _pair(value: Any) -> tuple[int, int]:  # noqa: ANN401 - any JSON value
    first, second = value
    return whole(first), whole(second)


def _text_or_none(value: Any) -> str | None:  # noqa: ANN401 - any JSON value
    if value is None or isinstance(value, str):
        return value
    raise PipelineError(f"{str(value)[:80]!r} in the store's attributes: expected text")
