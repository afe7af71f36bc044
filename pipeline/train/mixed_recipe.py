"""Configuration of a run on several data sets, and the checks that they fit together."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from ..depth.relative import METRIC
from ..errors import PipelineError
from ..losses.registry import LOSSES
from .compatibility import check_terms
from .config import DataSetRecipe, Recipe, ids_sha256, store_identity

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..common.progress import Progress
    from ..store import Store
    from .mixed_data import Part
    from .options import TrainOptions

EXPONENT = 0.2
"""A data set of n samples has the weight n**EXPONENT: one of a million is drawn 4 times as often as one of a
thousand."""
DIGITS = 12
"""Of a probability: powers differ between machines in the last digits."""


def mixed_recipe(options: TrainOptions, parts: Sequence[Part], progress: Progress) -> Recipe:
    """Resolve every choice of a run on several data sets, which all have a store.

    Bins, the width of maps and the source's defaults are those of the first data set, except for the crop, the rows
    left out and the rotation.

    Raises PipelineError if data sets and options do not fit together.
    """
    if options.on_truth:
        raise PipelineError(
            f"`loss={options.loss}` learns from ground truth, but `data` names data sets with stores: use "
            f"`loss={options.loss_name}`, or give `source` and `split` of one data set"
        )
    stores = [_metric_store(part) for part in parts]
    options = _with_maps(options, stores, progress)
    recipe = Recipe.make(options, parts[0].source, parts[0].samples, stores[0], None)
    for store in stores:
        check_terms(options, store, None, stored_maps=recipe.stored_maps)
    crop_px, skip_rows = _crop_px(options, parts, stores), _skip_rows(options, parts)
    shares = probabilities(parts)
    data = tuple(
        DataSetRecipe(
            source=part.source.name,
            samples=len(part.samples),
            ids_sha256=ids_sha256(part.samples),
            store=store_identity(store),
            view=store.spec.view,
            rotate_deg=part.source.defaults.rotate_deg if options.rotate_deg is None else options.rotate_deg,
            probability=share,
        )
        for part, store, share in zip(parts, stores, shares, strict=True)
    )
    _note_bins(recipe, stores, progress)
    names = ", ".join(f"{share:.1%} from {store.name}" for store, share in zip(stores, shares, strict=True))
    progress.note(f"an epoch draws {sum(each.samples for each in data)} samples: {names}")
    return replace(recipe, crop_px=crop_px, skip_rows=skip_rows, data=data)


def probabilities(parts: Sequence[Part]) -> list[float]:
    """Return the probability of each data set: by the weights given, and n**0.2 where none is given.

    Raises PipelineError for a weight that is not a positive number.
    """
    for part in parts:
        if part.weight is not None and not 0 < part.weight < math.inf:
            name = "" if part.store is None else f" of {part.store.name}"
            raise PipelineError(f"`data`: the weight{name} is {part.weight}, expected a finite number above 0")
    weights = [len(part.samples) ** EXPONENT if part.weight is None else part.weight for part in parts]
    return [round(weight / sum(weights), DIGITS) for weight in weights]


def _metric_store(part: Part) -> Store:
    """Return the store of a data set. Raises PipelineError if it holds relative depth."""
    store = part.store
    assert store is not None
    if not store.is_metric:
        raise PipelineError(
            f"`data`: {store.name} holds {store.spec.depth_space}, but several data sets are learned in metres: align "
            f"it to ground truth (`pipeline store align {store.name}`), or train on it alone"
        )
    return store


def _with_maps(options: TrainOptions, stores: Sequence[Store], progress: Progress) -> TrainOptions:
    """Return the options with maps from depth if the stored ones cannot be used together.

    Raises PipelineError if the options ask for stored maps nevertheless.
    """
    if options.maps == "from-depth" or not LOSSES[options.loss_name].takes_stored_maps:
        return options
    reason = _maps_differ(stores)
    if reason is None:
        return options
    if options.maps == "stored":
        raise PipelineError(
            f"`maps=stored`: {reason}, and a batch needs maps of one kind: use `maps=from-depth`, or stores that were "
            "made with the same bins"
        )
    if any(store.spec.dpm_kind == "sparse" for store in stores):
        progress.note(f"maps are made from depth, because {reason}")
    return replace(options, maps="from-depth")


def _maps_differ(stores: Sequence[Store]) -> str | None:
    """Say why the maps of the stores cannot be used together; None if they can."""
    first = stores[0]
    for store in stores:
        if store.spec.dpm_kind != "sparse" or store.spec.depth_space != METRIC:
            return f"{store.name} holds no maps in metres"
        if store.spec.bin_edges != first.spec.bin_edges:
            return f"the maps of {store.name} have other bins than those of {first.name}"
        if store.spec.weight_bits != first.spec.weight_bits:
            return f"the maps of {store.name} have another precision than those of {first.name}"
    return None


def _crop_px(options: TrainOptions, parts: Sequence[Part], stores: Sequence[Store]) -> tuple[int, int] | None:
    """Return the size of crops, None for whole views. Raises PipelineError if it is unknown or does not fit."""
    defaults = {part.source.defaults.crop_px for part in parts}
    crop_px = options.crop_px or (defaults.pop() if len(defaults) == 1 else None)
    sizes_px = [store.spec.view_size_px for store in stores]
    smallest_px = min(height for height, _ in sizes_px), min(width for _, width in sizes_px)
    views = ", ".join(f"{store.name} {_text(store.spec.view_size_px)}" for store in stores)
    if crop_px is None and len(set(sizes_px)) > 1:
        raise PipelineError(
            f"the views of `data` have different sizes (in pixels: {views}), but the crops of a batch need one: give "
            f"`crop_px`, at most {_text(smallest_px)}"
        )
    if crop_px is not None and (crop_px[0] > smallest_px[0] or crop_px[1] > smallest_px[1]):
        raise PipelineError(
            f"`crop_px={_text(crop_px)}` does not fit into every view of `data` (in pixels: {views}): use at most "
            f"{_text(smallest_px)}"
        )
    return crop_px


def _skip_rows(options: TrainOptions, parts: Sequence[Part]) -> int:
    """Return the rows that the loss leaves out. Raises PipelineError if the sources' defaults differ."""
    if options.skip_rows is not None:
        return options.skip_rows
    defaults = [part.source.defaults.skip_rows for part in parts]
    if len(set(defaults)) > 1:
        listed = ", ".join(f"{part.source.name} {rows}" for part, rows in zip(parts, defaults, strict=True))
        raise PipelineError(
            f"the sources of `data` have different defaults of `skip_rows` ({listed}), but the loss leaves out one "
            "number of rows: give `skip_rows`, such as 0"
        )
    return defaults[0]


def _note_bins(recipe: Recipe, stores: Sequence[Store], progress: Progress) -> None:
    """Note where bins and width of maps come from, if the stores have different ones and the options none."""
    options, spec = recipe.options, stores[0].spec
    if options.bins or all(
        (each.spec.bin_edges, each.spec.sigma_m) == (spec.bin_edges, spec.sigma_m) for each in stores
    ):
        return
    progress.note(
        f"the student has the bins of the first data set, {stores[0].name}: {recipe.bin_edges_m[0]:g} to "
        f"{recipe.bin_edges_m[-1]:g} m, and maps from depth have its width, {recipe.sigma_m:g} m; choose others with "
        "`bins` and `sigma_m`"
    )


def _text(size_px: tuple[int, int]) -> str:
    return f"{size_px[0]}x{size_px[1]}"
