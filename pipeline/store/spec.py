"""What a store is asked to be: who taught, over what, in which codes. Its hash decides what may be mixed.

Everything here goes into the store's attributes, and nothing else does: no time, host or absolute path, so that
the same inputs give the same bytes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from typing import Any

from ..depth_space import check_depth_space
from ..fileio import canonical_json, sha256_bytes
from .codec import LARGEST, AffineCodec, LogCodec

FORMAT_VERSION = 1
DPM_KINDS = ("gaussian", "sparse", "dense")
PRODUCERS = ("tiekd-pipeline", "numcodecs", "numpy", "torch")
MAX_BINS = 4096
MAX_SAMPLES = 2**40
MAX_VIEW_PIXELS = 2**27


def producer_versions() -> dict[str, str]:
    """Versions of the packages that decide a store's bytes."""
    found = {}
    for name in PRODUCERS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # run from a source tree that was never installed
            found[name] = "unknown"
    return found


def digest_of_ids(ids: list[str]) -> str:
    """Hash of a source list: the ids in their order."""
    return sha256_bytes("\n".join(ids).encode())


@dataclass(frozen=True)
class StoreSpec:
    """Everything about a store except its arrays. Field names are the format's own."""

    teacher: dict[str, Any]
    """A teacher's card as JSON."""
    depth_space: str
    source: dict[str, Any]
    """`name`, `samples` (how many), `ids_sha256`."""
    view: str
    """Written form of the crop and resize that the teacher saw."""
    view_size_px: tuple[int, int]
    """(H, W) that depth is brought back to on reading."""
    max_rel_error: float
    depth_range_m: tuple[float, float]
    """Range of the logarithmic codes; unused in the other depth spaces."""
    dpm_kind: str
    bin_edges: tuple[float, ...]
    """K + 1 ascending edges: metres where depth is metric, elsewhere shares of each sample's own range, 0 to 1."""
    sigma_m: float | None = None
    """Width of a `gaussian` map; in the unit of the edges."""
    max_dpm_kl: float | None = None
    """Error budget of a `sparse` map in nats, as a mean over pixels."""
    samples_per_shard: int = 128
    producer: dict[str, str] = field(default_factory=producer_versions)

    def __post_init__(self) -> None:
        check_depth_space(self.depth_space)
        if self.dpm_kind not in DPM_KINDS:
            raise ValueError(f"DPM kind {self.dpm_kind!r}: expected one of {', '.join(DPM_KINDS)}")
        edges = self.bin_edges
        if not 2 <= len(edges) <= MAX_BINS + 1 or any(not math.isfinite(edge) for edge in edges):
            raise ValueError(f"{len(edges)} bin edges: expected 2 to {MAX_BINS + 1} finite numbers")
        if max(map(abs, edges)) > LARGEST:
            raise ValueError(f"bin edges of {edges[0]:g} to {edges[-1]:g}: expected none beyond {LARGEST:g}")
        if any(high <= low for low, high in pairwise(edges)):
            raise ValueError("bin edges do not ascend: expected each larger than the one before")
        if self.dpm_kind == "gaussian" and not (self.sigma_m and 1 / LARGEST <= self.sigma_m <= LARGEST):
            raise ValueError(f"sigma {self.sigma_m} m of a gaussian DPM: expected a number above 0 (--sigma-m)")
        if self.dpm_kind == "sparse" and not (self.max_dpm_kl and 0 < self.max_dpm_kl < math.inf):
            raise ValueError(f"DPM error {self.max_dpm_kl} nats: expected a number above 0 (--max-dpm-kl)")
        if not 1 <= self.samples_per_shard <= 2**16:
            raise ValueError(f"{self.samples_per_shard} samples a shard: expected 1 to {2**16}")
        if not 0 < self.samples <= MAX_SAMPLES:
            raise ValueError(f"{self.samples} samples: expected at least 1")
        if not 0 < self.view_size_px[0] * self.view_size_px[1] <= MAX_VIEW_PIXELS:
            raise ValueError(f"a view of {self.view_size_px} px: expected 1 to {MAX_VIEW_PIXELS} pixels")
        _check_text([self.teacher, self.source, self.view, self.producer])
        self.depth_codec()  # its range and error are checked there

    @property
    def samples(self) -> int:
        """How many samples the store holds."""
        return int(self.source["samples"])

    @property
    def bin_count(self) -> int:
        """K, the number of depth bins."""
        return len(self.bin_edges) - 1

    @property
    def shards(self) -> int:
        """How many shards each of the large arrays has."""
        return -(-self.samples // self.samples_per_shard)

    @property
    def weight_bits(self) -> int:
        """Bits of a stored weight of a sparse map: 8 cost about 1e-4 nats, too much for a tight budget."""
        return 8 if (self.max_dpm_kl or 1) >= 2e-3 else 16

    def depth_codec(self) -> LogCodec | AffineCodec:
        """How depth becomes codes: logarithmic where it is metric, affine for each sample elsewhere."""
        if self.depth_space == "metric_m":
            return LogCodec.for_error(self.max_rel_error, *self.depth_range_m)
        return AffineCodec.for_error(self.max_rel_error)

    def shard_samples(self, shard: int) -> range:
        """Indexes of the samples that a shard holds."""
        first = shard * self.samples_per_shard
        return range(first, min(first + self.samples_per_shard, self.samples))

    def root_attributes(self) -> dict[str, Any]:
        """Attributes of the store's group."""
        codec = self.depth_codec()
        kind: dict[str, Any] = (
            {"kind": "log", "bits": codec.bits, "lo_m": codec.lo_m, "hi_m": codec.hi_m}
            if isinstance(codec, LogCodec)
            else {"kind": "affine", "bits": codec.bits}
        )
        return {
            "depth_store": {
                "version": FORMAT_VERSION,
                "teacher": self.teacher,
                "depth_space": self.depth_space,
                "source": self.source,
                "view": {"name": self.view, "size_px": list(self.view_size_px), "upsampling": "bilinear"},
                "codec": {**kind, "residual": "zigzag_2d", "max_rel_error": self.max_rel_error},
                "samples_per_shard": self.samples_per_shard,
                "producer": self.producer,
            }
        }

    def dpm_attributes(self) -> dict[str, Any]:
        """Attributes of the group `dpm`."""
        if self.dpm_kind == "gaussian":
            return {"kind": "gaussian", "sigma_m" if self.depth_space == "metric_m" else "sigma_share": self.sigma_m}
        if self.dpm_kind == "sparse":
            return {"kind": "sparse", "max_kl_nats": self.max_dpm_kl, "weight_bits": self.weight_bits}
        return {"kind": "dense"}

    def digest(self) -> str:
        """Hash of the whole specification; it names the staging directory, so that nothing else resumes it."""
        whole = [self.root_attributes(), self.dpm_attributes(), list(self.bin_edges)]
        return sha256_bytes(canonical_json(whole))

    @classmethod
    def from_attributes(cls, root: Any, dpm: Any, bin_edges: tuple[float, ...]) -> StoreSpec:  # noqa: ANN401 - any JSON
        """Read the attributes of a store that may come from anybody.

        Raises ValueError for another version, a missing `depth_space`, or anything out of form.
        """
        try:
            header = root["depth_store"]
            if header["version"] != FORMAT_VERSION:
                raise ValueError(
                    f"store format version {header['version']!r}: this program reads version {FORMAT_VERSION}; "
                    "install the release that wrote the store"
                )
            if not isinstance(header.get("depth_space"), str):
                raise ValueError(  # noqa: TRY004 - for people
                    "the store does not say its depth_space: without it the numbers mean nothing"
                )
            codec, source = header["codec"], header["source"]
            height, width = header["view"]["size_px"]
            spec = cls(
                teacher=dict(header["teacher"]),
                depth_space=header["depth_space"],
                source={**source, "samples": _whole(source["samples"])},
                view=str(header["view"]["name"]),
                view_size_px=(_whole(height), _whole(width)),
                max_rel_error=_number(codec["max_rel_error"]),
                depth_range_m=(_number(codec.get("lo_m", 0.1)), _number(codec.get("hi_m", 300.0))),
                dpm_kind=str(dpm["kind"]),
                bin_edges=bin_edges,
                sigma_m=_number_or_none(dpm.get("sigma_m", dpm.get("sigma_share"))),
                max_dpm_kl=_number_or_none(dpm.get("max_kl_nats")),
                samples_per_shard=_whole(header["samples_per_shard"]),
                producer=dict(header["producer"]),
            )
            texts = (spec.teacher["name"], source["name"], source["ids_sha256"])
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"the store's attributes are not of format version 1 ({error!r})") from error
        if not all(isinstance(text, str) for text in texts):
            raise ValueError("the teacher's or the source's name, or the ids' sha256, is no text")
        if spec.root_attributes() != root or spec.dpm_attributes() != dpm:
            raise ValueError("the store's attributes contradict each other or hold more than format version 1 has")
        return spec


def _whole(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{value!r} in the store's attributes: expected a whole number above 0")
    return value


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{value!r} in the store's attributes: expected a number")  # noqa: TRY004 - for people
    return value


def _number_or_none(value: object) -> float | None:
    return None if value is None else _number(value)


def _check_text(value: Any) -> None:  # noqa: ANN401 - any JSON value
    """Refuse control characters anywhere in a JSON value: printed, they could move a terminal's cursor."""
    if isinstance(value, dict):
        _check_text([*value, *value.values()])
    elif isinstance(value, list | tuple):
        for each in value:
            _check_text(each)
    elif isinstance(value, str) and not value.isprintable():
        raise ValueError(f"text {value[:80]!r} of the teacher, source, view or producer holds control characters")
