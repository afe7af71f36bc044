"""`pipeline evaluate-student` and `pipeline evaluate-teacher`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from .console import Console, echo, one_line, table
from .options import DEVICE, OVERWRITE, PATH, READOUT, SOURCE, STORE, STORE_CACHE, TRUTH, PipelineCommand, many, option

if TYPE_CHECKING:
    from pathlib import Path


METRIC_HEADS = {
    "abs_rel": "AbsRel",
    "sq_rel": "SqRel",
    "rmse": "RMSE",
    "rmse_log": "RMSElog",
    "log10": "log10",
    "silog": "SILog",
    "delta1": "d1",
    "delta2": "d2",
    "delta3": "d3",
}


def _write_and_print(name: str, result: dict[str, Any], out: Path) -> None:
    """Write a result as JSON with its rows as CSV, and print the means."""
    from ..evaluation.coverage import coverage_text
    from ..evaluation.result import write_result

    write_result(result, out)
    protocol = ", ".join(f"{key} {value}" for key, value in result["protocol"].items() if value is not None)
    echo("protocol " + one_line(protocol))
    rows = [[name, str(result["frames"]), *_figures(result["metrics"]), coverage_text(result["coverage"])]]
    if "against_teacher" in result:
        against = result["against_teacher"]
        rows.append(["against the teacher", "", *_figures(against), coverage_text(against["coverage"])])
    echo(table(["", "frames", *METRIC_HEADS.values(), "coverage"], rows))
    if "scale" in result:
        echo(f"depth is multiplied by {result['scale']['factor']:.4f}, fitted on {result['scale']['frames']} images")
    if "edges" in result:
        edges = result["edges"]
        echo(
            f"within 5 px of depth edges, in {edges['frames']} frames: AbsRel {edges['edge_abs_rel']:.4f}, F1 of edges "
            f"{edges['edge_f1']:.3f}"
        )
    if result["frames_without_truth"]:
        echo(f"{result['frames_without_truth']} frames have no ground truth in the protocol's range and crop")
    if result["frames_without_prediction"]:
        echo(f"{result['frames_without_prediction']} frames have no prediction at any pixel with ground truth")
    if "uncertainty" in result:
        _print_uncertainty(result["uncertainty"])


def _figures(metrics: dict[str, float]) -> list[str]:
    return [f"{metrics[key]:.4f}" for key in METRIC_HEADS]


def _print_uncertainty(uncertainty: dict[str, Any]) -> None:
    """Print how well each measure ranks the errors, and the coverage of intervals."""
    rows = []
    for name, measure in uncertainty["measures"].items():
        rank = measure.get("spearman")
        rows.append([name, f"{measure['aurc']:.4f}", f"{measure['ause']:.4f}", "" if rank is None else f"{rank:.3f}"])
    echo()
    echo(table(["uncertainty", "AURC", "AUSE", "rank corr."], rows))
    rows = []
    for name, interval in uncertainty["intervals"].items():
        at_90, equal = interval["nominal"].index(0.9), interval["equal"]
        width = equal["width"][equal["observed"].index(0.9)]
        figures = [f"{interval['ece']:.4f}", f"{interval['observed'][at_90]:.1%}", f"{interval['width'][at_90]:.3f}"]
        rows.append([name, *figures, "" if width is None else f"{width:.3f}"])
    echo()
    if rows:
        echo(table(["intervals", "ECE", "truth in 90 %", "width / depth", "width that holds 90 %"], rows))
    else:
        echo("this student predicts no map and so no intervals; add --calibration-split to fit constant ones")


EVALUATION = many(
    SOURCE,
    TRUTH,
    option("--protocol", help="kitti_eigen_garg80, nyu_eigen or plain; the source's default if omitted."),
    option("--max-depth-m", type=float, help="Largest depth, with --protocol plain."),
    option(
        "--align",
        help="Align each prediction to its ground truth first: none, median, scale, depth or disparity (scale and "
        "shift). If omitted, relative depth is aligned in the teacher's depth space.",
    ),
    option(
        "--scale-split",
        help="Multiply all depth by one constant that is fitted on this split, such as train; removes a common bias.",
    ),
    option("--out", type=PATH, required=True, help="Output JSON file; a CSV next to it has one row per image."),
    OVERWRITE,
)


@click.command(cls=PipelineCommand)
@click.argument("run", type=PATH)
@EVALUATION
@option("--store", "store_path", type=STORE, help="Also compare the student with its teacher.")
@STORE_CACHE
@READOUT
@option("--view", help="View of the images, as in cache-teacher; that of training if omitted.")
@option("--uncertainty", is_flag=True, help="Also evaluate the uncertainty of its maps; runs each image twice.")
@option("--calibration-split", help="With --uncertainty: fit intervals of constant relative width on this split.")
@option("--batch-size", default=4, help="Images in a batch.")
@DEVICE
def evaluate_student(
    run: Path,
    source_name: str,
    split: str,
    truth: str | None,
    invalid: tuple[float, ...] | None,
    protocol: str | None,
    max_depth_m: float | None,
    align: str | None,
    scale_split: str | None,
    out: Path,
    overwrite: bool,
    store_path: str | Path | None,
    store_cache: Path | None,
    readout: str | None,
    view: str | None,
    uncertainty: bool,
    calibration_split: str | None,
    batch_size: int,
    device: str,
) -> None:
    """Evaluate a trained student against ground truth and its teacher.

    \b
    Example: pipeline evaluate-student runs/mobilenetv2 --source kitti:ROOT --split ROOT/splits/test.txt \\
               --protocol kitti_eigen_garg80 --out metrics.json
    """
    from ..common.device import choose_device
    from ..depth.relative import depth_space_of
    from ..evaluation.identity import measurement_terms, run_identity
    from ..evaluation.protocol import choose_protocol
    from ..evaluation.result import check_target
    from ..evaluation.run import evaluate_student as measure
    from ..networks.saved_run import load_run
    from ..sources.registry import open_source
    from ..store import open_store

    source, loaded = open_source(source_name, truth, invalid or ()), load_run(run)
    terms = choose_protocol(protocol, source, max_depth_m, align, depth_space_of(loaded.config), scale_split)
    check_target(
        out,
        {"measured": run_identity(loaded, readout, view)} | measurement_terms(source, split, terms),
        overwrite=overwrite,
    )
    result = measure(
        loaded,
        source,
        split,
        terms,
        store=None if store_path is None else open_store(store_path, cache=store_cache),
        uncertainty=uncertainty,
        calibration_split=calibration_split,
        readout=readout,
        view=view,
        device=choose_device(device),
        batch_size=batch_size,
        progress=Console(),
    )
    _write_and_print(run.name, result, out)


@click.command(cls=PipelineCommand)
@click.argument("store_path", metavar="STORE", type=STORE)
@STORE_CACHE
@EVALUATION
def evaluate_teacher(
    store_path: str | Path,
    store_cache: Path | None,
    source_name: str,
    split: str,
    truth: str | None,
    invalid: tuple[float, ...] | None,
    protocol: str | None,
    max_depth_m: float | None,
    align: str | None,
    scale_split: str | None,
    out: Path,
    overwrite: bool,
) -> None:
    """Evaluate the depth in a store against ground truth: the accuracy of the cached teacher.

    \b
    Example: pipeline evaluate-teacher train.zarr --source kitti:ROOT --split ROOT/splits/train.txt \\
               --protocol kitti_eigen_garg80 --out teacher.json
    """
    from ..depth.relative import METRIC
    from ..evaluation.identity import measurement_terms, store_identity
    from ..evaluation.protocol import choose_protocol, store_protocol
    from ..evaluation.result import check_target
    from ..evaluation.run import evaluate_teacher as measure
    from ..sources.registry import open_source
    from ..store import open_store

    source = open_source(source_name, truth, invalid or ())
    store = open_store(store_path, cache=store_cache)
    space = METRIC if store.is_metric else store.spec.depth_space
    terms = choose_protocol(protocol, source, max_depth_m, align, space, scale_split)
    identity = {"measured": store_identity(store)} | measurement_terms(source, split, store_protocol(terms))
    check_target(out, identity, overwrite=overwrite)
    result = measure(store, source, split, terms, Console())
    _write_and_print(str(store.spec.teacher["name"]), result, out)
