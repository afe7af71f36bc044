"""What a store is asked to be: who taught, over what, in which codes. Its hash decides what may be mixed.

Everything here goes into the store's attributes, and nothing else does: no time, host or absolute path, so that
the same inputs give the same bytes.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from itertools import islice, pairwise
from typing import TYPE_CHECKING, Any

from ...common.fileio import canonical_json, sha256_bytes
from ...depth.spaces import check_depth_space
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
from .codec import LARGEST, AffineCodec, LogCodec

if TYPE_CHECKING:
    from collections.abc import Iterable

DPM_KINDS = ("gaussian", "sparse", "dense")
CARRIED_FROM = ("fixed", "image", "pixel")
PRODUCERS = ("tiekd-pipeline", "numcodecs", "numpy", "torch")
MAX_BINS = 4096
MAX_SAMPLES = 2**40
MAX_VIEW_PIXELS = 2**27
IDS_AT_ONCE = 4096


def producer_versions() -> dict[str, str]:
    """Versions of the packages that decide a store's bytes."""
    found = {}
    for name in PRODUCERS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # run from a source tree that was never installed
            found[name] = "unknown"
    return found


def digest_of_ids(ids: Iterable[str]) -> str:
    """Hash of a source list: the ids in their order, joined by newlines. Holds a few thousand of them at a time."""
    hasher, rest, between = hashlib.sha256(), iter(ids), b""
    while part := list(islice(rest, IDS_AT_ONCE)):
        hasher.update(between + "\n".join(part).encode())
        between = b"\n"
    return hasher.hexdigest()


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
    carried_from: str | None = None
    """What bins the teacher's own maps were over: other `fixed` ones, those of each `image` or of each `pixel`; by mass
    they were carried over onto these. None where these are the teacher's own, or where it gave no maps."""
    alignment: dict[str, Any] | None = None
    """How `sample/align_*` were fitted to ground truth: `fit`, `truth`, `min_points`, `max_residual`, `depth_range_m`.
    None for a store that is not aligned."""
    samples_per_shard: int = 128
    producer: dict[str, str] = field(default_factory=producer_versions)

    def __post_init__(self) -> None:
        check_depth_space(self.depth_space)
        edges = self.bin_edges
        if not 2 <= len(edges) <= MAX_BINS + 1 or any(not math.isfinite(edge) for edge in edges):
            raise PipelineError(f"{len(edges)} bin edges: expected 2 to {MAX_BINS + 1} finite numbers")
        if max(map(abs, edges)) > LARGEST:
            raise PipelineError(f"bin edges of {edges[0]:g} to {edges[-1]:g}: expected none beyond {LARGEST:g}")
        if any(high <= low for low, high in pairwise(edges)):
            raise PipelineError("bin edges do not ascend: expected each larger than the one before")
        self._check_maps()
        if self.alignment is not None:
            check_alignment(self.alignment, self.depth_space)
        if not 1 <= self.samples_per_shard <= 2**16:
            raise PipelineError(f"{self.samples_per_shard} samples a shard: expected 1 to {2**16}")
        if not 0 < self.samples <= MAX_SAMPLES:
            raise PipelineError(f"{self.samples} samples: expected at least 1")
        if not 0 < self.view_size_px[0] * self.view_size_px[1] <= MAX_VIEW_PIXELS:
            raise PipelineError(f"a view of {self.view_size_px} px: expected 1 to {MAX_VIEW_PIXELS} pixels")
        check_text([self.teacher, self.source, self.view, self.producer, self.alignment])
        self.depth_codec()  # its range and error are checked there

    def _check_maps(self) -> None:
        if self.dpm_kind not in DPM_KINDS:
            raise PipelineError(f"DPM kind {self.dpm_kind!r}: expected one of {', '.join(DPM_KINDS)}")
        if self.dpm_kind == "gaussian" and not (self.sigma_m and 1 / LARGEST <= self.sigma_m <= LARGEST):
            raise PipelineError(f"sigma {self.sigma_m} m of a gaussian DPM: expected a number above 0 (`sigma_m`)")
        if self.dpm_kind == "sparse" and not (self.max_dpm_kl and 0 < self.max_dpm_kl < math.inf):
            raise PipelineError(f"DPM error {self.max_dpm_kl} nats: expected a number above 0 (`max_dpm_kl`)")
        if self.carried_from is not None and self.carried_from not in CARRIED_FROM:
            raise PipelineError(
                f"maps carried from {str(self.carried_from)[:80]!r}: expected one of {', '.join(CARRIED_FROM)}"
            )
        if self.carried_from is not None and self.dpm_kind == "gaussian":
            raise PipelineError("gaussian maps are a function of depth: expected none to be carried over")

    @property
    def version(self) -> int:
        """The format's version: 2 where something is there that version 1 has not."""
        return 1 if self.carried_from is None and self.alignment is None else 2

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
                "version": self.version,
                "teacher": self.teacher,
                "depth_space": self.depth_space,
                "source": self.source,
                "view": {"name": self.view, "size_px": list(self.view_size_px), "upsampling": "bilinear"},
                "codec": {**kind, "residual": "zigzag_2d", "max_rel_error": self.max_rel_error},
                "samples_per_shard": self.samples_per_shard,
                "producer": self.producer,
                **({"alignment": self.alignment} if self.alignment is not None else {}),
            }
        }

    def dpm_attributes(self) -> dict[str, Any]:
        """Attributes of the group `dpm`."""
        if self.dpm_kind == "gaussian":
            return {"kind": "gaussian", "sigma_m" if self.depth_space == "metric_m" else "sigma_share": self.sigma_m}
        carried = {"carried_from": self.carried_from} if self.carried_from is not None else {}
        if self.dpm_kind == "sparse":
            return {"kind": "sparse", "max_kl_nats": self.max_dpm_kl, "weight_bits": self.weight_bits, **carried}
        return {"kind": "dense", **carried}

    def digest(self) -> str:
        """Hash of the whole specification; it names the staging directory, so that nothing else resumes it."""
        whole = [self.root_attributes(), self.dpm_attributes(), list(self.bin_edges)]
        return sha256_bytes(canonical_json(whole))

    @classmethod
    def from_attributes(cls, root: Any, dpm: Any, bin_edges: tuple[float, ...]) -> StoreSpec:  # noqa: ANN401 - any JSON
        """Read the attributes of a store that may come from anybody.

        Raises PipelineError for another version, a missing `depth_space`, or anything out of form.
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
                raise PipelineError("the store does not say its depth_space: without it the numbers mean nothing")
            codec, source = header["codec"], header["source"]
            height, width = header["view"]["size_px"]
            spec = cls(
                teacher=dict(header["teacher"]),
                depth_space=header["depth_space"],
                source={**source, "samples": whole(source["samples"])},
                view=str(header["view"]["name"]),
                view_size_px=(whole(height), whole(width)),
                max_rel_error=number(codec["max_rel_error"]),
                depth_range_m=(number(codec.get("lo_m", 0.1)), number(codec.get("hi_m", 300.0))),
                dpm_kind=str(dpm["kind"]),
                bin_edges=bin_edges,
                sigma_m=number_or_none(dpm.get("sigma_m", dpm.get("sigma_share"))),
                max_dpm_kl=number_or_none(dpm.get("max_kl_nats")),
                carried_from=dpm.get("carried_from"),
                alignment=header.get("alignment"),
                samples_per_shard=whole(header["samples_per_shard"]),
                producer=dict(header["producer"]),
            )
            texts = (spec.teacher["name"], source["name"], source["ids_sha256"])
        except (KeyError, TypeError, AttributeError) as error:
            raise PipelineError(f"the store's attributes are not of format version {version} ({error!r})") from error
        if not all(isinstance(text, str) for text in texts):
            raise PipelineError("the teacher's or the source's name, or the ids' sha256, is no text")
        if spec.root_attributes() != root or spec.dpm_attributes() != dpm:
            raise PipelineError(
                f"the store's attributes contradict each other or hold more than format version {version} has"
            )
        return spec
