"""Statistics of a store, one dask task per shard; memory is one sample per thread.

Pixels are counted per code (at most 65536 codes), so extremes and medians are exact. A code stands for metres, or for a
fraction of the sample's range if depth is relative.

Shape legend: C codes, K bins, h w pixels of the teacher's own output.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from dask.base import compute
from dask.callbacks import Callback
from dask.delayed import delayed

from ...common.parallel import worker_threads
from ...common.progress import Silent
from ...depth.spaces import UNITS
from ..format.codec import AffineCodec, LogCodec, codes_of_residual
from ..read.store import Store, open_store
from .alignment_summary import AlignmentSummary, summarize

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from ...common.progress import Progress, Task

HISTOGRAM_BINS = 64
QUANTILES = {"p05": 0.05, "median": 0.5, "p95": 0.95}


class ShardFacts(NamedTuple):
    """Result of one task."""

    counts: NDArray[np.int64]
    """(C,) pixels of each code; code 0 is "no value"."""
    invalid_share: list[float]
    """Invalid fraction of each sample."""
    entropy_nats: list[float]
    """Mean entropy of each sample's map; empty for gaussian maps, which follow from depth."""


def store_statistics(path: str | Path, progress: Progress | None = None) -> dict[str, Any]:
    """Read every sample of a store and return its statistics as JSON: depth, errors and a histogram.

    Raises PipelineError if the store does not open, DamagedStoreError for the first damaged sample.
    """
    store = open_store(path)
    opened = _Opened(path)
    tasks = [delayed(shard_facts)(opened, shard) for shard in range(store.spec.shards)]
    workers = worker_threads()
    with (progress or Silent()).task("statistics", len(store), "sample") as task, _ProgressCallback(task):
        found: tuple[ShardFacts, ...] = compute(*tasks, scheduler="threads", num_workers=workers)
    counts = np.sum([facts.counts for facts in found], axis=0)
    entropy = [value for facts in found for value in facts.entropy_nats]
    error, clipped = store.rows("max_rel_error"), store.rows("clipped_share")
    spec = store.spec
    result: dict[str, Any] = {
        "store": Path(store.name).name,
        "teacher": spec.teacher.get("name"),
        "depth_space": spec.depth_space,
        "samples": len(store),
        "size_px": list(store.layout.size_px),
        "unit": UNITS.get(spec.depth_space, "share of each sample's own range"),
        "depth": _depth_facts(counts, spec.depth_codec()),
        "invalid_share": float(counts[0] / counts.sum()),
        "clipped_share": float(clipped.mean(dtype=np.float64)),
        "max_rel_error": float(error.max()),
        "max_rel_error_allowed": spec.max_rel_error,
        "dpm": {"kind": spec.dpm_kind, "bins": spec.bin_count},
        "histogram": _histogram(counts, spec.depth_codec()),
        "each_sample": {
            "invalid_share": [share for facts in found for share in facts.invalid_share],
            "clipped_share": clipped.tolist(),
            "max_rel_error": error.tolist(),
        },
    }
    if entropy:
        result["dpm"]["entropy_nats"] = float(np.mean(entropy))
        result["each_sample"]["entropy_nats"] = entropy
    if spec.carried_from is not None:
        result["dpm"]["carried_from"] = spec.carried_from
        result["dpm"]["carried_kl_nats"] = float(store.rows("dpm_carried_kl_nats").mean(dtype=np.float64))
    if spec.alignment is not None:
        result["alignment"] = summarize(store)._asdict()
        residual = store.rows("align_residual")
        result["each_sample"]["align_residual"] = [None if np.isnan(value) else float(value) for value in residual]
    if spec.dpm_kind == "sparse":
        result["dpm"]["kl_nats"] = float(store.rows("dpm_kl_nats").mean(dtype=np.float64))
    return result


def describe_statistics(found: dict[str, Any]) -> list[tuple[str, str]]:
    """Return lines of (name, text) for a result of `store_statistics`."""
    each, maps, (height, width) = found["each_sample"], found["dpm"], found["size_px"]
    facts = found["depth"] or {}
    formats = {
        "entropy_nats": "mean entropy {:.3f} nats",
        "kl_nats": "{:.4f} nats from the teacher's",
        "carried_kl_nats": "rebinned at {:.4f} nats",
    }
    known = [text.format(maps[key]) for key, text in formats.items() if key in maps]

    def share(name: str) -> str:
        return f"{found[name]:.4%} of pixels, at most {max(each[name]):.3%} of a sample's"

    return [
        ("samples", f"{found['samples']} of {height}x{width} px, {found['depth_space']}"),
        ("depth", ", ".join(f"{name} {value:.4g}" for name, value in facts.items()) + f" ({found['unit']})"),
        ("invalid", share("invalid_share")),
        ("clipped", share("clipped_share")),
        ("error", f"{found['max_rel_error']:.4%}, allowed {found['max_rel_error_allowed']:.4%}"),
        ("maps", ", ".join([f"{maps['kind']}, {maps['bins']} bins", *known])),
        *([("aligned", AlignmentSummary(**found["alignment"]).describe())] if "alignment" in found else []),
    ]


class _Opened(threading.local):
    """One store per thread: a Store is not thread-safe, and opening it for each shard is slow."""

    def __init__(self, path: str | Path) -> None:
        self.store = open_store(path)


def shard_facts(opened: _Opened, shard: int) -> ShardFacts:
    """Count the samples of one shard, one at a time."""
    store = opened.store
    codec = store.spec.depth_codec()
    counts = np.zeros(2**codec.bits, np.int64)
    invalid, entropy = [], []
    for number in store.spec.shard_samples(shard):
        here = np.bincount(_codes(store, number).reshape(-1), minlength=counts.size)
        if here.size > counts.size:
            raise store._damaged("depth", number, f"depth code {here.size - 1}")  # noqa: SLF001 - same package
        counts += here
        invalid.append(float(here[0] / here.sum()))
        if store.spec.dpm_kind != "gaussian":
            entropy.append(_entropy_nats(store.dpm(number)))
    return ShardFacts(counts, invalid, entropy)


def _codes(store: Store, number: int) -> NDArray[np.uint16]:
    residual = store._chunks("depth", number)[0]  # noqa: SLF001 - same package
    if residual is None:
        raise store._damaged("depth", number, "the chunk is missing")  # noqa: SLF001 - same package
    return codes_of_residual(residual[0])


def _entropy_nats(dpm: NDArray[np.float32]) -> float:
    """Return the mean entropy of a map (K, h, w) over valid pixels; 0 without any."""
    with np.errstate(divide="ignore", invalid="ignore"):
        each = -np.where(dpm > 0, dpm * np.log(dpm), 0).sum(axis=0, dtype=np.float64)
    known = each[~np.isnan(dpm[0])]
    return float(known.mean()) if known.size else 0.0


def _values(codes: NDArray[np.floating], codec: LogCodec | AffineCodec) -> NDArray[np.float64]:
    """Return metres, or fractions of the range, of codes, which may be fractional."""
    position: NDArray[np.float64] = (codes - 1) / (2**codec.bits - 2)
    if isinstance(codec, AffineCodec):
        return position
    metres: NDArray[np.float64] = codec.lo_m * np.exp(position * np.log(codec.hi_m / codec.lo_m))
    return metres


def _depth_facts(counts: NDArray[np.int64], codec: LogCodec | AffineCodec) -> dict[str, float] | None:
    """Return extremes, mean and quantiles over valid pixels; None without any."""
    below = np.cumsum(counts[1:])
    if below[-1] == 0:
        return None
    values = _values(np.arange(1, counts.size, dtype=np.float64), codec)

    def quantile(level: float) -> float:
        position = level * (below[-1] - 1)
        low, high = (
            values[np.searchsorted(below, rank, side="right")] for rank in (np.floor(position), np.ceil(position))
        )
        return float(low + (high - low) * (position % 1))

    used = values[counts[1:] > 0]
    mean = float((values * counts[1:]).sum() / below[-1])
    return {"min": float(used[0]), "max": float(used[-1]), "mean": mean} | {
        name: quantile(level) for name, level in QUANTILES.items()
    }


def _histogram(counts: NDArray[np.int64], codec: LogCodec | AffineCodec) -> dict[str, list[float]]:
    """Return a histogram of depth. Bins have equal numbers of codes: logarithmic for metric depth."""
    used = np.flatnonzero(counts[1:]) + 1
    if not used.size:
        return {"edges": [], "pixels": []}
    each = -(-int(used[-1] - used[0] + 1) // HISTOGRAM_BINS)
    starts = np.arange(used[0], used[-1] + 1, each)
    edges = _values(np.append(starts, starts[-1] + each) - 0.5, codec)
    return {"edges": edges.tolist(), "pixels": np.add.reduceat(counts[: used[-1] + 1], starts).tolist()}


class _ProgressCallback(Callback):
    """Updates a progress task from dask's finished tasks."""

    def __init__(self, task: Task) -> None:
        super().__init__(posttask=self._count)  # type: ignore[no-untyped-call]  # dask's
        self._task = task

    def _count(self, _key: object, result: object, _graph: Mapping[Any, Any], _state: object, _worker: object) -> None:
        if isinstance(result, ShardFacts):
            self._task.update(len(result.invalid_share))
