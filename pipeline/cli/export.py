"""`pipeline export-student`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ..errors import PipelineError
from .console import Console, echo, table
from .options import OVERWRITE, PATH, READOUT, REQUIRE_LICENCE, SIZE, TRUTH, PipelineCommand, option

if TYPE_CHECKING:
    from pathlib import Path

    from ..deploy.parity import ProbeImages
    from ..sources.view import View

METRIC_HEADS = {"abs_rel": "AbsRel", "rmse": "RMSE", "delta1": "d1"}


@click.command(cls=PipelineCommand)
@click.argument("run", type=PATH)
@option(
    "--out", type=PATH, required=True, help="Output file NAME.onnx; must not exist. NAME.onnx.json has the figures."
)
@option(
    "--size", "size_px", type=SIZE, help="Fix height and width, and resize the run's view to it; dynamic if omitted."
)
@option("--opset", default=20, help="ONNX operator set, 18 to 23.")
@option("--uncertainty", is_flag=True, help="Add outputs entropy_nats, low_m and high_m (90 % interval).")
@READOUT
@option("--source", "source_name", metavar="KIND:ROOT", help="Data set of the images to compare on.")
@option("--split", help="Split of the data set.")
@TRUTH
@option("--images", type=PATH, help="Folder of images to compare on instead.")
@option("--frames", default=16, help="Number of images, evenly spaced.")
@option("--max-rel-error", default=1e-4, help="Largest relative difference of depth from PyTorch, at any pixel.")
@option("--int8", type=PATH, help="Also write a quantized file, and measure its loss of accuracy.")
@option("--calibration-split", help="Split for int8 calibration; other images of --split if omitted.")
@option("--calibration-frames", default=32, help="Number of images for calibration.")
@REQUIRE_LICENCE
@OVERWRITE
def export_student(
    run: Path,
    out: Path,
    size_px: tuple[int, int] | None,
    opset: int,
    uncertainty: bool,
    readout: str | None,
    max_rel_error: float,
    int8: Path | None,
    overwrite: bool,
    require_licence: tuple[str, ...],
    **image_flags: Any,
) -> None:
    """Export a trained student as one ONNX file: from an image in 0..1 to metres.

    \b
    Example: pipeline export-student runs/tiekd --out student.onnx --source scenes:data/scenes --split test \\
               --int8 student-int8.onnx --calibration-split train

    The file is compared with PyTorch, on your images if you give --source or --images, and written only if depth
    agrees at every pixel.
    """
    from ..common.licences import check_licences
    from ..deploy.export import ExportOptions, summary_path
    from ..deploy.export import export_student as export
    from ..networks.saved_run import licences_of_run, load_run

    options = ExportOptions(size_px, opset, uncertainty, max_rel_error, readout)
    loaded = load_run(run)
    check_licences(str(run), licences_of_run(loaded.config), require_licence)
    probe, calibration = _images(options.view(loaded), **image_flags)
    if probe is None:
        echo("without --source or --images: compared on synthetic images only", err=True)
    summary = export(
        loaded,
        out,
        options,
        given=probe,
        int8=int8,
        calibration=calibration if int8 else None,
        overwrite=overwrite,
        progress=Console(),
    )
    parity = summary["parity"]
    echo(
        f"{out}: {summary['bytes'] / 1e6:.2f} MB, opset {opset}, outputs {', '.join(summary['outputs'])}\n"
        f"against PyTorch on {parity['of']} and batches of {', '.join(parity['batches'])}: largest relative depth "
        f"error {parity['max_rel_error']:.1e} (at most {parity['limit']:g})"
    )
    _print_latency_and_int8(summary)
    echo(f"{summary_path(out)}: these figures as JSON")


def _images(
    view: View,
    *,
    source_name: str | None,
    split: str | None,
    truth: str | None,
    invalid: tuple[float, ...] | None,
    images: Path | None,
    frames: int,
    calibration_split: str | None,
    calibration_frames: int,
) -> tuple[ProbeImages | None, ProbeImages | None]:
    """Return images to compare on, and others to calibrate on."""
    from ..deploy.image_files import find_images
    from ..deploy.parity import images_of_files, images_of_source
    from ..sources.registry import open_source

    if min(frames, calibration_frames) < 1:
        raise PipelineError(f"--frames {frames}, --calibration-frames {calibration_frames}: expected at least 1")
    if source_name is not None and images is not None:
        raise PipelineError("--source and --images: give one of them")
    if (source_name is None) != (split is None):
        raise PipelineError("--source and --split belong together: give both, or neither")
    if source_name is not None and split is not None:
        source = open_source(source_name, truth, invalid or ())
        probe = images_of_source(source, split, view, frames)
        used = [image.name for image in probe.images]
        return probe, images_of_source(source, calibration_split or split, view, calibration_frames, used)
    if calibration_split is not None:
        raise PipelineError(f"--calibration-split {calibration_split}: give its data set with --source and --split")
    if images is not None:
        paths = [path for _, path in find_images(images)]
        probe = images_of_files(paths, view, frames)
        used = [image.name for image in probe.images]
        unused = [path for path in paths if str(path) not in used]
        return probe, images_of_files(unused or paths, view, calibration_frames)
    return None, None


def _print_latency_and_int8(summary: dict[str, Any]) -> None:
    """Print the latency, and the size and accuracy of the int8 file."""
    latency, int8 = summary["latency"], summary.get("int8")
    size = "x".join(map(str, latency["size_px"]))
    times = [f"{name} {latency[f'{name}_ms']:.1f} ms" for name in ("float32", "int8") if f"{name}_ms" in latency]
    echo(f"one image of {size} px on {latency['threads']} thread: {', '.join(times)}")
    if int8 is None:
        return
    difference = int8["against_float"]
    same = ", some of them also used for the comparison" if int8["shares_images"] else ""
    echo(
        f"{int8['file']}: {int8['bytes'] / 1e6:.2f} MB ({int8['bytes'] / summary['bytes']:.2f} of the float file), "
        f"calibrated on {int8['calibrated_on']}{same}\n"
        f"int8 against float depth: {difference['median']:.2%} at the median, {difference['p99']:.2%} at the 99th "
        "percentile"
    )
    if "metrics" in int8:
        rows = [
            [name, str(int8["metrics"]["frames"]), *(f"{int8['metrics'][name][key]:.4f}" for key in METRIC_HEADS)]
            for name in ("float32", "int8")
        ]
        echo(table(["", "frames", *METRIC_HEADS.values()], rows))
