"""Check that the options of a run, its store and its store of mirrored views fit together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..depth.relative import METRIC, SIGMA_BINS
from ..errors import PipelineError
from ..losses.registry import LOSSES, TERMS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ..store import Store
    from .options import TrainOptions


ONLY_ONE = {
    "flips_store": "mirrored crops learn the mirrored prediction",
    "images": "image files are read",
    "invalid": "no ground truth is learned",
    "truth": "no ground truth is learned",
    "validation_split": "run `pipeline evaluate-student` on each data set after training",
}
"""Options of a run on one data set -> what happens without them on several."""


def check_one_or_several(data: Sequence[object], one: Mapping[str, object], given: Mapping[str, object]) -> None:
    """Raise PipelineError unless either one data set is given or several.

    `one` has `source`, `split` and `store`, `given` the options of ONLY_ONE; None is not given.
    """
    if not data:
        if one["source"] is None or one["split"] is None:
            raise PipelineError(
                "no data set to train on: give `source`, `split` and `store`; or `data`, which names several"
            )
        return
    for name, value in one.items():
        if value is not None:
            raise PipelineError(
                f"`{name}` cannot be combined with `data`, which names a source, a split and a store for each data "
                f"set: leave `{name}` out"
            )
    for name, value in given.items():
        if value is not None:
            raise PipelineError(
                f"`{name}` cannot be combined with `data`, only with one data set: leave it out; then {ONLY_ONE[name]}"
            )


def check_store(options: TrainOptions, store: Store | None) -> None:
    """Raise PipelineError if a store is missing, or if its view would be overridden."""
    if not options.on_truth and store is None:
        raise PipelineError("no store to learn from: give `store`, or `loss=truth-si` to learn from ground truth")
    if store is not None and options.view:
        raise PipelineError("`view` cannot be combined with `store`, which has its own view: leave `view` out")


def check_relative(options: TrainOptions, store: Store | None) -> None:
    """Raise PipelineError for options in metres with a store of relative depth."""
    assert store is not None
    align = f"align the store to ground truth (`pipeline store align {store.name}`)"
    if LOSSES[options.loss_name].needs_metres:
        raise PipelineError(
            f"`loss={options.loss}` uses maps 0.5 m wide, but {store.name} holds {store.spec.depth_space}; use "
            f"`loss=tiekd` or ssi+grad, or {align}"
        )
    if options.sigma_m is not None:
        raise PipelineError(
            f"`sigma_m={options.sigma_m}` is in metres, but {store.name} holds {store.spec.depth_space}; use "
            f"`sigma_bins` (default {SIGMA_BINS:g}), or {align}"
        )


def uses_stored_maps(options: TrainOptions, store: Store | None) -> bool:
    """Whether the run learns from the sparse maps of a store. Raises PipelineError if the options contradict that."""
    has_maps = store is not None and store.spec.dpm_kind == "sparse" and store.spec.depth_space == METRIC
    usable = has_maps and LOSSES[options.loss_name].takes_stored_maps
    if options.maps == "stored" and not usable:
        problem, remedy = ("the store has no sparse maps", "a teacher that emits maps")
        if has_maps:
            problem, remedy = (f"`loss={options.loss}` does not use maps", "`loss=tiekd`")
        raise PipelineError(f"`maps=stored`: {problem}; use `maps=from-depth`, or {remedy}")
    if not usable or options.maps == "from-depth":
        return False
    assert store is not None
    if options.bins or options.sigma_bins or options.centred:
        option = f"`bins={options.bins}`" if options.bins else "`sigma_bins`" if options.sigma_bins else "`centred`"
        raise PipelineError(
            f"{option} does not apply to the stored maps of {store.name}; add `maps=from-depth` to make maps from its "
            "depth"
        )
    return True


def check_terms(options: TrainOptions, teacher: Store | None, flips: Store | None, *, stored_maps: bool) -> None:
    """Raise PipelineError if the stores lack a signal that a term needs, or a term does not fit stored maps."""
    for term in options.terms:
        for signal in TERMS[term.name].signals:
            if teacher is None:
                raise PipelineError(
                    f"`add={term}` needs the signal {signal} of a store, but `loss={options.loss}` learns from ground "
                    "truth: leave the term out"
                )
            for store in [teacher] if flips is None else [teacher, flips]:
                if signal not in store.signals:
                    raise PipelineError(
                        f"`add={term}` needs the signal {signal}, which {store.name} does not hold (it holds "
                        f"{', '.join(store.signals) or 'none'}): make a store with `signals={signal}` in "
                        "`pipeline cache-teacher`, from a teacher that predicts it"
                    )
        if term == ("sky", "far") and stored_maps:
            raise PipelineError(
                f"`add={term}` changes depth, but the maps stored in {store.name} stay as they are: use "
                "`maps=from-depth` with it, or `add=sky=ignore`"
            )


def check_flips_store(flips: Store, store: Store | None, options: TrainOptions) -> None:
    """Raise PipelineError if a store of mirrored views is not the counterpart of `store`, or is not used."""
    if store is None or not options.flip:
        option, reason = "`flip=False`", "no image is mirrored"
        if store is None:
            option, reason = f"`loss={options.loss}`", "ground truth is mirrored itself"
        raise PipelineError(f"`flips_store={flips.name}` is not used with {option}, because {reason}: leave it out")
    mine, theirs = store.spec, flips.spec
    pairs = {
        "teacher": (mine.teacher, theirs.teacher),
        "view": (f"{mine.view},mirror", theirs.view),
        "depth space": (mine.depth_space, theirs.depth_space),
        "kind of maps": (mine.dpm_kind, theirs.dpm_kind),
        "bins": (mine.bin_edges, theirs.bin_edges),
        "alignment": (mine.alignment, theirs.alignment),
    }
    for name, (expected, actual) in pairs.items():
        if expected != actual:
            values = "" if name in {"teacher", "bins"} else f" ({actual}, expected {expected})"
            raise PipelineError(
                f"`flips_store={flips.name}` has another {name}{values} than {store.name}; use the store that "
                f"`pipeline cache-teacher` wrote with `cache_flips` next to {store.name}"
            )
