"""Compare two stores: specifications, samples, depth and maps.

Shape legend: h, w pixels of the teacher's own output.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ...common.fileio import sha256_bytes
from ...common.progress import Silent
from ...depth.spaces import ABSOLUTE_SPACES
from ...errors import PipelineError
from .subset import raw_chunks

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ...common.progress import Progress
    from ..format.spec import StoreSpec
    from ..read.store import Store

PROVENANCE_FIELDS = ("producer.", "samples_per_shard", "compression_level", "version")
"""Fields that do not change a store's content."""
MAX_TEXT = 40
MAX_IDS = 5


@dataclass(frozen=True)
class StoreDifference:
    """Differences of stores A and B."""

    fields: list[tuple[str, str, str]]
    """(name, in A, in B) of each differing field of the specifications."""
    only_a: list[str]
    only_b: list[str]
    """Ids of samples missing in the other store."""
    common: int
    other_images: int
    """Common samples whose source images differ (sha256)."""
    compared: int
    """Common samples whose depth was compared; 0 if the stores' depth is not comparable."""
    different_depth: int
    """Compared samples with any differing pixel."""
    median_rel_difference: float
    """Median over samples of the median over pixels valid in both."""
    max_rel_difference: float
    """Over pixels valid in both; for relative depth, relative to each sample's range."""
    one_sided_share: float
    """Fraction of pixels valid in only one of the stores."""
    different_maps: int
    """Compared samples whose stored maps differ; gaussian maps follow from depth."""
    different_alignments: int
    """Compared samples whose scale, shift or verdict differ; 0 unless both stores are aligned."""
    different_extras: int
    """Compared samples with a differing signal, feature, camera or relation that both stores hold."""

    @property
    def identical(self) -> bool:
        """Whether the compared content is identical."""
        fields = [name for name, _, _ in self.fields if not name.startswith(PROVENANCE_FIELDS)]
        samples = self.only_a or self.only_b or self.other_images
        numbers = self.different_depth or self.different_maps or self.different_alignments or self.different_extras
        return not (fields or samples or numbers)

    def describe(self) -> list[str]:
        """Return lines of text, without the fields."""
        lines = []
        for name, ids in (("A", self.only_a), ("B", self.only_b)):
            if ids:
                examples = ", ".join(ids[:MAX_IDS]) + (" ..." if len(ids) > MAX_IDS else "")
                lines.append(f"only in {name}: {len(ids)} of {len(ids) + self.common} samples: {examples}")
        if self.other_images:
            lines.append(f"{self.other_images} of {self.common} common samples have different images (sha256)")
        if self.common and not self.compared:
            lines.append("depth was not compared: the stores differ in size or depth space")
        if self.compared:
            lines.append(
                f"depth: {self.different_depth} of {self.compared} compared samples differ ({self.common} common); "
                f"relative difference median {self.median_rel_difference:.3g}, largest {self.max_rel_difference:.3g}; "
                f"{self.one_sided_share:.3%} of pixels are valid in only one"
            )
        if self.different_maps:
            lines.append(f"maps: {self.different_maps} of {self.compared} compared samples differ")
        if self.different_alignments:
            lines.append(f"alignment: {self.different_alignments} of {self.compared} compared samples differ")
        if self.different_extras:
            lines.append(
                f"signals, features, cameras or relations: {self.different_extras} of {self.compared} compared samples "
                "differ"
            )
        return [*lines, "identical in content" if self.identical else "different"]


def compare_stores(
    first: Store, second: Store, samples: int | None = None, progress: Progress | None = None
) -> StoreDifference:
    """Compare two stores, over all common samples or over `samples` of them, evenly spaced.

    If one store's view is mirrored, its depth is mirrored back before comparing.

    Raises PipelineError for fewer than one sample, DamagedStoreError if a compared sample is damaged.
    """
    if samples is not None and samples < 1:
        raise PipelineError(f"`samples` must be at least 1, got {samples}")
    mine, theirs = set(first.ids), set(second.ids)
    common = [name for name in first.ids if name in theirs]
    hashes = [store.image_sha256[store.indexes_of(common)] for store in (first, second)]
    alike = first.layout.size_px == second.layout.size_px and first.spec.depth_space == second.spec.depth_space
    chosen = common if alike else []
    if chosen and samples is not None and samples < len(chosen):
        chosen = [chosen[index] for index in np.linspace(0, len(chosen) - 1, samples).round().astype(int)]
    with (progress or Silent()).task("compare", len(chosen), "sample") as task:
        results = []
        for name in chosen:
            facts = _depth_difference(first, second, name)
            maps, aligned = _maps_differ(first, second, name), _alignments_differ(first, second, name)
            results.append((*facts, maps, aligned, _extras_differ(first, second, name)))
            task.update()
    medians, largest, one_sided, differ, *counts = zip(*results, strict=True) if results else ([],) * 7
    different_maps, different_alignments, different_extras = map(sum, counts)
    known = [value for value in medians if value is not None]
    return StoreDifference(
        fields=_fields(first, second),
        only_a=[name for name in first.ids if name not in theirs],
        only_b=[name for name in second.ids if name not in mine],
        common=len(common),
        other_images=int((hashes[0] != hashes[1]).any(axis=1).sum()),
        compared=len(results),
        different_depth=sum(differ),
        median_rel_difference=float(np.median(known)) if known else 0.0,
        max_rel_difference=max(largest, default=0.0),
        one_sided_share=float(np.mean(one_sided)) if results else 0.0,
        different_maps=different_maps,
        different_alignments=different_alignments,
        different_extras=different_extras,
    )


def _depth_difference(first: Store, second: Store, name: str) -> tuple[float | None, float, float, bool]:
    """Return median (None without a common pixel) and largest difference, one-sided fraction, any bit differs."""
    a, b = first.depth(name), second.depth(name)
    if _is_mirrored(first) != _is_mirrored(second):
        b = b[:, ::-1]
    both: NDArray[np.bool_] = ~(np.isnan(a) | np.isnan(b))
    one_sided = float(np.mean(np.isnan(a) != np.isnan(b)))
    if not both.any():
        return None, 0.0, one_sided, one_sided > 0
    near, far = a[both].astype(np.float64), b[both].astype(np.float64)
    scale = np.abs(near) if first.spec.depth_space in ABSOLUTE_SPACES else max(float(np.ptp(near)), 1e-30)
    relative = np.abs(far - near) / scale
    return float(np.median(relative)), float(relative.max()), one_sided, not np.array_equal(a, b, equal_nan=True)


def _is_mirrored(store: Store) -> bool:
    return store.spec.view.endswith(",mirror")


def _maps_differ(first: Store, second: Store, name: str) -> bool:
    """Return whether stored maps differ. Decodes only if chunks differ: other package versions compress differently."""
    if first.spec.dpm_kind != second.spec.dpm_kind or first.spec.dpm_kind == "gaussian":
        return False
    if _is_mirrored(first) != _is_mirrored(second):
        return not np.array_equal(first.dpm(name), second.dpm(name)[..., ::-1], equal_nan=True)
    arrays = [[array for array in store.layout.sharded() if array.path.startswith("dpm/")] for store in (first, second)]
    pairs = zip(*arrays, strict=True)
    if first.spec.bin_edges == second.spec.bin_edges and all(
        raw_chunks(first, one, first.index_of(name)) == raw_chunks(second, other, second.index_of(name))
        for one, other in pairs
    ):
        return False
    return not np.array_equal(first.dpm(name), second.dpm(name), equal_nan=True)


def _alignments_differ(first: Store, second: Store, name: str) -> bool:
    if first.spec.alignment is None or second.spec.alignment is None:
        return False  # the specifications differ then
    return not np.array_equal(first.alignment(name), second.alignment(name), equal_nan=True)


def _extras_differ(first: Store, second: Store, name: str) -> bool:
    """Return whether a part that both stores hold differs. What only one holds is a difference of specifications.

    Of a mirrored store, signals are mirrored back; its features and cameras are its own.
    """
    mirrored = _is_mirrored(first) != _is_mirrored(second)
    pairs: list[tuple[NDArray[Any], NDArray[Any]]] = [
        (first.signal(signal, name), second.signal(signal, name)[:, :: -1 if mirrored else 1])
        for signal in set(first.signals) & set(second.signals)
    ]
    if not mirrored:
        layers = set(first.feature_layers) & set(second.feature_layers)
        pairs += [(first.feature(layer, name), second.feature(layer, name)) for layer in layers]
        if first.spec.extras.intrinsics and second.spec.extras.intrinsics:
            pairs.append((first.intrinsics_px(name), second.intrinsics_px(name)))
        for column in ("baseline_m", "pose", "previous", "next"):
            if all(column in store.spec.extras.columns() for store in (first, second)):
                pairs.append((_cell(first, column, name), _cell(second, column, name)))
        if first.spec.extras.relations and second.spec.extras.relations:
            pairs += zip(first.relations(name), second.relations(name), strict=True)
    return not all(_equal(one, other) for one, other in pairs)


def _cell(store: Store, column: str, name: str) -> NDArray[Any]:
    """Return a sample's value in a column; for an adjacent frame its id, since stores number rows differently."""
    value = store.rows(column)[store.index_of(name)]
    if column not in {"previous", "next"}:
        return np.asarray(value)
    return np.asarray(store.ids[int(value)] if value >= 0 else "")


def _equal(one: NDArray[Any], other: NDArray[Any]) -> bool:
    return np.array_equal(one, other, equal_nan=one.dtype.kind == "f")


def _fields(first: Store, second: Store) -> list[tuple[str, str, str]]:
    sizes = [{"size_px": list(store.layout.size_px)} for store in (first, second)]
    return _different(facts_of(first.spec) | sizes[0], facts_of(second.spec) | sizes[1])


def differing_fields(first: StoreSpec, second: StoreSpec) -> list[tuple[str, str, str]]:
    """Return (name, in the first, in the second) of each differing field of two specifications, as text."""
    return _different(facts_of(first), facts_of(second))


def _different(a: dict[str, Any], b: dict[str, Any]) -> list[tuple[str, str, str]]:
    names = [name for name in sorted(a.keys() | b.keys()) if a.get(name) != b.get(name)]
    return [(name, _short(a.get(name)), _short(b.get(name))) for name in names]


def facts_of(spec: StoreSpec) -> dict[str, Any]:
    """Return every field of a specification by its dotted name."""
    edges = spec.bin_edges
    return {
        "bins": f"{len(edges) - 1} from {edges[0]:g} to {edges[-1]:g}",
        "bin_edges_sha256": sha256_bytes(np.array(edges).tobytes()),  # different spacings may share count and ends
        **_flat(spec.root_attributes()["depth_store"]),
        **_flat({"dpm": spec.dpm_attributes()}),
    }


def _flat(value: dict[str, Any], above: str = "") -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, part in value.items():
        fields |= _flat(part, f"{above}{name}.") if isinstance(part, dict) else {f"{above}{name}": part}
    return fields


def _short(value: object) -> str:
    text = "absent" if value is None else str(value)
    return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 3] + "..."
