"""Specification of a store: teacher, source, view and codecs. Its hash decides which shards belong together.

The store's attributes hold exactly this. There is no time, host or absolute path, so the same inputs give the same
bytes.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from itertools import islice, pairwise
from typing import TYPE_CHECKING, Any

from ...common.fileio import canonical_json, sha256_bytes
from ...depth.spaces import ABSOLUTE_SPACES, DISPARITY, METRIC, check_depth_space
from ...errors import PipelineError
from .checks import (
    FORMAT_VERSIONS,
    KNOWN_VERSIONS,
    check_alignment,
    check_text,
    is_known_version,
    number,
    number_or_none,
    whole,
)
from .codec import BLOSC_LEVEL, BLOSC_LEVELS, LARGEST, AffineCodec, LogCodec
from .extras import Extras

if TYPE_CHECKING:
    from collections.abc import Iterable

DPM_KINDS = ("gaussian", "sparse", "dense")
CARRIED_FROM = ("fixed", "image", "pixel")
PRODUCERS = ("tiekd-pipeline", "numcodecs", "numpy", "torch")
SIGMA_KEYS = {METRIC: "sigma_m", DISPARITY: "sigma_px"}
MAX_BINS = 4096
MAX_SAMPLES = 2**40
MAX_VIEW_PIXELS = 2**27
IDS_AT_ONCE = 4096


def producer_versions() -> dict[str, str]:
    """Return versions of the packages that decide a store's bytes."""
    versions = {}
    for name in PRODUCERS:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:  # source tree without an installation
            versions[name] = "unknown"
    return versions


def digest_of_ids(ids: Iterable[str]) -> str:
    """Return the sha256 of a source's ids in order, joined by newlines. Holds a few thousand ids at a time."""
    hasher, rest, between = hashlib.sha256(), iter(ids), b""
    while part := list(islice(rest, IDS_AT_ONCE)):
        hasher.update(between + "\n".join(part).encode())
        between = b"\n"
    return hasher.hexdigest()


@dataclass(frozen=True)
class StoreSpec:
    """Everything about a store except its arrays. Field names are those of the format."""

    teacher: dict[str, Any]
    """A teacher's card as JSON."""
    depth_space: str
    source: dict[str, Any]
    """`name`, `samples` (their number), `ids_sha256`."""
    view: str
    """Name of the crop and resize that the teacher saw."""
    view_size_px: tuple[int, int]
    """(H, W) of the view; readers resize depth to it."""
    max_rel_error: float
    code_range: tuple[float, float]
    """Range of the logarithmic codes, in metres or pixels of disparity; unused in relative depth spaces."""
    dpm_kind: str
    bin_edges: tuple[float, ...]
    """K + 1 ascending edges: metres for metric depth, pixels for disparity, else fractions of each sample's range, 0 to
    1."""
    sigma_m: float | None = None
    """Standard deviation of a `gaussian` map, in the unit of the edges."""
    max_dpm_kl: float | None = None
    """Error budget of a `sparse` map in nats, mean over pixels."""
    carried_from: str | None = None
    """Bins of the teacher's maps, if they were rebinned by mass: other `fixed` bins, bins of each `image` or of each
    `pixel`. None if the teacher uses the store's bins or gives no maps."""
    alignment: dict[str, Any] | None = None
    """How `sample/align_*` were fitted to ground truth: `fit`, `truth`, `min_points`, `max_residual`, `depth_range_m`.
    None if the store is not aligned."""
    samples_per_shard: int = 128
    compression_level: int = BLOSC_LEVEL
    """Level of zstd for depth and maps, 1 (fast to write) to 9 (small, fast to read)."""
    producer: dict[str, str] = field(default_factory=producer_versions)
    extras: Extras = field(default_factory=Extras)
    """What else the store holds."""

    def __post_init__(self) -> None:
        check_depth_space(self.depth_space)
        edges = self.bin_edges
        if not 2 <= len(edges) <= MAX_BINS + 1 or any(not math.isfinite(edge) for edge in edges):
            raise PipelineError(f"{len(edges)} bin edges: expected 2 to {MAX_BINS + 1} finite numbers")
        if max(map(abs, edges)) > LARGEST:
            raise PipelineError(
                f"bin edges from {edges[0]:g} to {edges[-1]:g}: expected magnitudes of at most {LARGEST:g}"
            )
        if any(high <= low for low, high in pairwise(edges)):
            raise PipelineError("bin edges must be strictly increasing")
        self._check_maps()
        if self.alignment is not None:
            check_alignment(self.alignment, self.depth_space)
        if not 1 <= self.samples_per_shard <= 2**16:
            raise PipelineError(f"`samples_per_shard` must be 1 to {2**16}, got {self.samples_per_shard}")
        if self.compression_level not in BLOSC_LEVELS:
            raise PipelineError(f"`compression_level` must be 1 to 9, got {self.compression_level}")
        if not 0 < self.samples <= MAX_SAMPLES:
            raise PipelineError(f"a store must have 1 to {MAX_SAMPLES} samples, got {self.samples}")
        if not 0 < self.view_size_px[0] * self.view_size_px[1] <= MAX_VIEW_PIXELS:
            raise PipelineError(f"the view has {self.view_size_px} px: expected 1 to {MAX_VIEW_PIXELS} pixels")
        if self.depth_space == DISPARITY and not (self.extras.intrinsics and self.extras.baseline):
            raise PipelineError(
                "disparity in pixels means nothing without the intrinsics and the baseline of each sample"
            )
        check_text([self.teacher, self.source, self.view, self.producer, self.alignment, self.extras.as_json()])
        self.depth_codec()  # checks range and error

    def _check_maps(self) -> None:
        if self.dpm_kind not in DPM_KINDS:
            raise PipelineError(f"unknown DPM kind {self.dpm_kind!r}: expected one of {', '.join(DPM_KINDS)}")
        if self.dpm_kind == "gaussian" and not (self.sigma_m and 1 / LARGEST <= self.sigma_m <= LARGEST):
            raise PipelineError(f"`sigma_m` of a gaussian DPM must be positive, got {self.sigma_m}")
        if self.dpm_kind == "sparse" and not (self.max_dpm_kl and 0 < self.max_dpm_kl < math.inf):
            raise PipelineError(f"`max_dpm_kl` of a sparse DPM must be positive, got {self.max_dpm_kl}")
        if self.carried_from is not None and self.carried_from not in CARRIED_FROM:
            raise PipelineError(
                f"maps rebinned from {str(self.carried_from)[:80]!r}: expected one of {', '.join(CARRIED_FROM)}"
            )
        if self.carried_from is not None and self.dpm_kind == "gaussian":
            raise PipelineError("gaussian maps follow from depth and cannot be rebinned: expected no `carried_from`")

    @property
    def version(self) -> int:
        """Format version: the oldest that has all features of the store."""
        if self.compression_level != BLOSC_LEVEL or self.extras or self.depth_space == DISPARITY:
            return 3
        return 1 if self.carried_from is None and self.alignment is None else 2

    @property
    def samples(self) -> int:
        """Number of samples."""
        return int(self.source["samples"])

    @property
    def bin_count(self) -> int:
        """K, the number of depth bins."""
        return len(self.bin_edges) - 1

    @property
    def shards(self) -> int:
        """Number of shards of each large array."""
        return -(-self.samples // self.samples_per_shard)

    @property
    def weight_bits(self) -> int:
        """Bits per weight of a sparse map: 8 bits cost about 1e-4 nats, too much for a tight budget."""
        return 8 if (self.max_dpm_kl or 1) >= 2e-3 else 16

    def depth_codec(self) -> LogCodec | AffineCodec:
        """Return the depth codec: logarithmic for metres and pixels of disparity, else affine per sample."""
        if self.depth_space in ABSOLUTE_SPACES:
            return LogCodec.for_error(self.max_rel_error, *self.code_range)
        return AffineCodec.for_error(self.max_rel_error)

    def shard_samples(self, shard: int) -> range:
        """Return the indexes of the samples in a shard."""
        first = shard * self.samples_per_shard
        return range(first, min(first + self.samples_per_shard, self.samples))

    def root_attributes(self) -> dict[str, Any]:
        """Return the attributes of the store's group."""
        codec = self.depth_codec()
        unit = "m" if self.depth_space == METRIC else "px"
        kind: dict[str, Any] = (
            {"kind": "log", "bits": codec.bits, f"lo_{unit}": codec.lo_m, f"hi_{unit}": codec.hi_m}
            if isinstance(codec, LogCodec)
            else {"kind": "affine", "bits": codec.bits}
        )
        return {
            "depth_store": {
                "version": self.version,
                "teacher": self.teacher,
                "depth_space": self.depth_space,
                "source": self.source,
                "view": {"name": self.view, "size_px": list(self.view_size_px), "upsampling": "bilinear"},
                "codec": {**kind, "residual": "zigzag_2d", "max_rel_error": self.max_rel_error},
                "samples_per_shard": self.samples_per_shard,
                "producer": self.producer,
                **({"alignment": self.alignment} if self.alignment is not None else {}),
                **({"compression_level": self.compression_level} if self.compression_level != BLOSC_LEVEL else {}),
                **self.extras.as_json(),
            }
        }

    def dpm_attributes(self) -> dict[str, Any]:
        """Return the attributes of the group `dpm`."""
        if self.dpm_kind == "gaussian":
            return {"kind": "gaussian", SIGMA_KEYS.get(self.depth_space, "sigma_share"): self.sigma_m}
        carried = {"carried_from": self.carried_from} if self.carried_from is not None else {}
        if self.dpm_kind == "sparse":
            return {"kind": "sparse", "max_kl_nats": self.max_dpm_kl, "weight_bits": self.weight_bits, **carried}
        return {"kind": "dense", **carried}

    def digest(self) -> str:
        """Return the hash of the whole specification, which names the staging directory."""
        whole = [self.root_attributes(), self.dpm_attributes(), list(self.bin_edges)]
        return sha256_bytes(canonical_json(whole))

    @classmethod
    def from_attributes(cls, root: Any, dpm: Any, bin_edges: tuple[float, ...]) -> StoreSpec:  # noqa: ANN401 - any JSON
        """Parse the attributes of an untrusted store.

        Raises PipelineError for another version, a missing `depth_space`, or anything else outside the format.
        """
        version: object = FORMAT_VERSIONS[0]
        try:
            header = root["depth_store"]
            version = header["version"]
            if not is_known_version(version):
                raise PipelineError(
                    f"store format version {version!r}: this program reads versions {KNOWN_VERSIONS}; install the "
                    "release that wrote the store"
                )
            if not isinstance(header.get("depth_space"), str):
                raise PipelineError(
                    "`depth_space` is missing in the store's attributes: depth has no unit without it; write it again"
                )
            codec, source = header["codec"], header["source"]
            height, width = header["view"]["size_px"]
            spec = cls(
                teacher=dict(header["teacher"]),
                depth_space=header["depth_space"],
                source={**source, "samples": whole(source["samples"])},
                view=str(header["view"]["name"]),
                view_size_px=(whole(height), whole(width)),
                max_rel_error=number(codec["max_rel_error"]),
                code_range=(
                    number(codec.get("lo_m", codec.get("lo_px", 0.1))),
                    number(codec.get("hi_m", codec.get("hi_px", 300.0))),
                ),
                dpm_kind=str(dpm["kind"]),
                bin_edges=bin_edges,
                sigma_m=number_or_none(
                    next((dpm[key] for key in (*SIGMA_KEYS.values(), "sigma_share") if key in dpm), None)
                ),
                max_dpm_kl=number_or_none(dpm.get("max_kl_nats")),
                carried_from=dpm.get("carried_from"),
                alignment=header.get("alignment"),
                samples_per_shard=whole(header["samples_per_shard"]),
                compression_level=whole(header.get("compression_level", BLOSC_LEVEL)),
                producer=dict(header["producer"]),
                extras=Extras.from_json(header),
            )
            texts = (spec.teacher["name"], source["name"], source["ids_sha256"])
        except (KeyError, TypeError, AttributeError) as error:
            raise PipelineError(f"the store's attributes do not follow format version {version} ({error!r})") from error
        if not all(isinstance(text, str) for text in texts):
            raise PipelineError("`teacher.name`, `source.name` and `source.ids_sha256` must be text")
        if spec.root_attributes() != root or spec.dpm_attributes() != dpm:
            raise PipelineError(
                f"the store's attributes are inconsistent or have keys that format version {version} lacks"
            )
        return spec
