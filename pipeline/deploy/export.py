"""Export a trained student as one ONNX file, written only if its output agrees with PyTorch.

Uses `torch.export` (`dynamo=True`) instead of tracing: it has symbolic shapes and refuses sizes that would become
constants, and it supports `special.entr`, which the deprecated tracing exporter does not. It takes seconds instead of
tenths of a second, and needs the package onnxscript.

Shape legend: B batch, K bins, H W pixels of the view, h w of the logits.
"""

from __future__ import annotations

import logging
import warnings
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..common.fileio import pretty_json, sha256_bytes, write_durably
from ..common.locks import locked
from ..common.outputs import refuse_existing
from ..common.own_files import make_folder
from ..common.progress import Silent
from ..depth.dpm import entropy_nats, interval_m
from ..depth.log_distribution import FAMILIES
from ..depth.readout import DEFAULT
from ..depth.relative import depth_space_of
from ..errors import OptionError, PipelineError
from ..networks.saved_run import IMAGENET_MEAN, IMAGENET_STD, has_map, view_of
from ..sources.view import View
from .onnx_model import INPUT, OF_MAP, OnnxStudent, depth_output, import_onnx, metadata
from .parity import INTERVAL_MASS, check_parity, synthetic_images
from .quantize import int8_of, latencies_ms, loss_of_int8

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ..common.progress import Progress
    from ..networks.saved_run import LoadedRun
    from .parity import ProbeImages

OPSETS = (18, 23)
"""The exporter writes 18 and up; onnxruntime lacks some CPU kernels above 23."""
EXAMPLE_PX = (96, 160)
MIN_PX = 64
"""Minimum of a dynamic side. Below it the deepest maps are one pixel, which the exporter specializes."""
MAX_REL_ERROR = 1e-4
PRODUCER = "tiekd-pipeline"
PACKAGES = ("onnx", "onnxruntime", "onnxscript", "torch")


@dataclass(frozen=True)
class ExportOptions:
    """Options of an exported file."""

    size_px: tuple[int, int] | None = None
    """Fixed (H, W) of the input; None for any size."""
    opset: int = 20
    uncertainty: bool = False
    """Also output entropy and the central 90 % interval."""
    max_rel_error: float = MAX_REL_ERROR
    readout: str | None = None
    """How depth is read from the map, one of `readout.READOUTS`; None is the run's."""

    def __post_init__(self) -> None:
        if not OPSETS[0] <= self.opset <= OPSETS[1]:
            raise OptionError("opset", self.opset, f"{OPSETS[0]} to {OPSETS[1]}")
        if not self.max_rel_error > 0:
            raise OptionError("max_rel_error", self.max_rel_error, "a number above 0, such as 1e-4")

    def view(self, run: LoadedRun) -> View:
        """The run's view, resized to `size_px` if set."""
        view = View.parse(view_of(run.config))
        return view if self.size_px is None else replace(view, resize_px=self.size_px)


class Deployable(nn.Module):
    """A student from image to depth, as one module."""

    def __init__(self, run: LoadedRun, *, uncertainty: bool, readout: str | None = None) -> None:
        super().__init__()
        self.network = run.network
        self.uncertainty = uncertainty
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1))
        # float32: a device may have no float64, and the bin centers lose only 1e-7.
        self.register_buffer("bin_edges_m", torch.from_numpy(run.bin_edges_m).float())
        self.reader = run.reader(readout=readout)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Depth, with `uncertainty` also entropy, low and high, each (B, 1, H, W), of images (B, 3, H, W) in 0..1."""
        mean, std, edges_m = self.get_buffer("mean"), self.get_buffer("std"), self.get_buffer("bin_edges_m")
        of_network = self.network((image - mean) / std)
        reader = self.reader.with_edges(edges_m)
        # Once: quantization leaves what follows the last softmax as it is. Two outputs need no map for depth.
        maps = reader.maps(of_network) if self.uncertainty or reader.head not in FAMILIES else None
        outputs = [reader.depth_m(of_network, maps)]
        if self.uncertainty:
            assert maps is not None
            outputs += [entropy_nats(maps), *interval_m(maps, edges_m, INTERVAL_MASS)]
        size = image.shape[-2:]
        return tuple(F.interpolate(output, size, mode="bilinear", align_corners=False) for output in outputs)


def export_student(
    run: LoadedRun,
    out: Path,
    options: ExportOptions | None = None,
    *,
    given: ProbeImages | None = None,
    int8: Path | None = None,
    calibration: ProbeImages | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write `out`, a quantized file if `int8` is given, and a summary `out`.json; return the summary.

    Args:
        run: the trained student.
        out: the float file, a path that ends in `.onnx`.
        options: options of the file.
        given: images for the comparison with PyTorch; default: synthetic images.
        int8: the quantized file, a path that ends in `.onnx`.
        calibration: real images for the ranges of int8.
        overwrite: replace existing files.
        progress: receives updates.

    Raises PipelineError if a target exists, if the file differs from PyTorch (then nothing is written), and for int8
    without real images; ImportError with the install command of a missing package.
    """
    options, progress = options or ExportOptions(), progress or Silent()
    _check_targets(out, int8, overwrite=overwrite)
    make_folder(out.parent)
    with locked(out, progress):
        _check_targets(out, int8, overwrite=overwrite)  # another process may have finished before this one got the lock
        return _export(run, out, options, given, int8, calibration, progress)


def _export(
    run: LoadedRun,
    out: Path,
    options: ExportOptions,
    given: ProbeImages | None,
    int8: Path | None,
    calibration: ProbeImages | None,
    progress: Progress,
) -> dict[str, Any]:
    """Export under the lock; the targets are checked."""
    for name in PACKAGES:
        import_onnx(name)
    if options.uncertainty and not has_map(run.config):
        raise PipelineError("`uncertainty` needs a map, but this student has none (head depth); omit the option")
    if int8 is not None and (calibration is None or not calibration.real):
        raise PipelineError("`int8` needs real images for its ranges; give `source` and `split`, or `images`")
    given = given or synthetic_images(options.size_px)
    facts = metadata(run.config, run.bin_edges_m.tolist(), run.weights_sha256, options.view(run))
    readout = run.reader(readout=options.readout).readout
    if readout != DEFAULT:
        facts["readout"] = readout
    facts["pipeline_version"] = _version(PRODUCER)
    model = _exported(run, options)
    _describe(model, facts)
    data: bytes = model.SerializeToString(deterministic=True)
    student = OnnxStudent(data, out.name, threads=1)
    summary: dict[str, Any] = {
        "file": out.name,
        "bytes": len(data),
        "sha256": sha256_bytes(data),
        "opset": options.opset,
        "size_px": None if options.size_px is None else list(options.size_px),
        "outputs": student.outputs,
        "metadata": facts,
        "parity": check_parity(run, student, given, options.max_rel_error, progress, readout),
        "versions": {name: _version(name) for name in PACKAGES},
    }
    students = {"float32": student}
    if int8 is not None:
        assert calibration is not None
        small = int8_of(data, calibration, lambda changed: _describe(changed, facts | {"precision": "int8"}), progress)
        students["int8"] = OnnxStudent(small, int8.name, threads=1)
        summary["int8"] = {
            "file": int8.name,
            "bytes": len(small),
            "sha256": sha256_bytes(small),
            "calibrated_on": calibration.origin,
            "shares_images": bool(
                {image.name for image in calibration.images} & {image.name for image in given.images}
            ),
            **loss_of_int8(students["float32"], students["int8"], given, progress),
        }
    summary["latency"] = latencies_ms(students, given.images[0].image)
    if int8 is not None:
        make_folder(int8.parent)
        write_durably(int8, small)
    write_durably(summary_path(out), pretty_json(summary))
    write_durably(out, data)  # last: its presence means that the export is complete
    return summary


def summary_path(out: Path) -> Path:
    """Path of the summary: `student.onnx.json` for `student.onnx`."""
    return out.with_name(f"{out.name}.json")


def _check_targets(out: Path, int8: Path | None, *, overwrite: bool) -> None:
    for name, path in (("out", out), ("int8", int8)):
        if path is None:
            continue
        if path.suffix != ".onnx":
            raise PipelineError(f"`{name}={path}` must end in .onnx, which `pipeline predict` needs")
        refuse_existing(path, overwrite=overwrite, option=name)
    refuse_existing(summary_path(out), overwrite=overwrite)
    if int8 is not None and int8.resolve() == out.resolve():
        raise PipelineError(f"`int8={int8}` is the same file as `out`; give another path")


def _exported(run: LoadedRun, options: ExportOptions) -> Any:  # noqa: ANN401 - onnx has no types
    """The graph, with a dynamic batch, and dynamic height and width unless `size_px` is set."""
    network = Deployable(run, uncertainty=options.uncertainty, readout=options.readout).eval()
    shapes: dict[int, Any] = {0: torch.export.Dim("batch")}
    if options.size_px is None:
        shapes |= {2: torch.export.Dim("height", min=MIN_PX), 3: torch.export.Dim("width", min=MIN_PX)}
    outputs = [depth_output(depth_space_of(run.config)), *(OF_MAP if options.uncertainty else ())]
    with _quietly():
        program = torch.onnx.export(
            network,
            (torch.zeros(2, 3, *(options.size_px or EXAMPLE_PX)),),
            dynamo=True,
            opset_version=options.opset,
            input_names=[INPUT],
            output_names=outputs,
            dynamic_shapes=(shapes,),
            external_data=False,
            verbose=False,
        )
    assert program is not None
    return program.model_proto


def _describe(model: Any, facts: dict[str, str]) -> None:  # noqa: ANN401 - onnx has no types
    """Replace the exporter's metadata, which has paths of this machine, with `facts`."""
    graph = model.graph
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    graph.ClearField("value_info")
    model.producer_name, model.producer_version = PRODUCER, _version(PRODUCER)
    model.ClearField("metadata_props")
    for name, value in sorted(facts.items()):
        model.metadata_props.add(key=name, value=value)
    import_onnx("onnx").checker.check_model(model)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # run from a source tree
        return "unknown"


@contextmanager
def _quietly() -> Iterator[None]:
    """Silence the exporter's warnings about torchvision and its internals."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)
