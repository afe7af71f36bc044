"""Export: the file is the network, or there is no file."""

import json
import re
import subprocess
import sys
from pathlib import Path

import fakes
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import pipeline.deploy.export
from pipeline.cli.export import export_student as command
from pipeline.deploy.export import ExportOptions, export_student, summary_path
from pipeline.deploy.onnx_model import INPUT, OF_MAP, OnnxStudent, as_input, open_onnx
from pipeline.deploy.parity import check_parity, gap, images_of_source, reference, smooth, synthetic_images
from pipeline.depth.bins import bin_edges
from pipeline.errors import PipelineError
from pipeline.networks.decoder import Decoder
from pipeline.networks.registry import build_student
from pipeline.networks.saved_run import LoadedRun, save_weights
from pipeline.sources.readers.images import read_depth_png_m
from pipeline.sources.registry import open_source
from pipeline.sources.view import View

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

ROOT = Path(__file__).parents[2]
TEACHER = {"name": "big", "kind": "python", "licence": "CC-BY-4.0"}


class Tiny(torch.nn.Module):
    """The paper's decoder, which resizes to the image with aligned corners, on two convolutions."""

    def __init__(self, bins):
        super().__init__()
        self.first = torch.nn.Conv2d(3, 4, 3, 2, 1)
        self.second = torch.nn.Conv2d(4, 8, 3, 2, 1)
        self.decoder = Decoder((4, 8), (128, 8), bins, 1)
        torch.nn.init.normal_(self.decoder.head.weight, std=0.3)

    def forward(self, images):
        first = self.first(images).relu()
        return self.decoder.head(self.decoder([first, self.second(first).relu()], images.shape[-2:]))


def run_of(view="full", **config):
    torch.manual_seed(0)
    store = {"teacher": TEACHER, "digest": "0"}
    config = {"view": view, "student": "tiny", "store": store, **config}
    return LoadedRun(Tiny(8).eval(), bin_edges(8, 1, 40, "log").numpy(), "1" * 64, config)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A file with uncertainty and an int8 one, compared and calibrated on scenes."""
    folder = tmp_path_factory.mktemp("exported")
    source = open_source(f"scenes:{fakes.make_scenes_folder(folder / 'scenes', 8, (64, 96))}")
    given = images_of_source(source, "test", View(), 4)
    calibration = images_of_source(source, "train", View(), 3)
    out = folder / "student.onnx"
    options = ExportOptions(uncertainty=True)
    summary = export_student(run_of(), out, options, given=given, int8=folder / "small.onnx", calibration=calibration)
    return out, summary


@pytest.mark.parametrize("shape", [(1, 64, 96), (3, 65, 97), (2, 71, 203), (1, 33, 47)])
def test_the_file_gives_what_pytorch_gives_at_any_size_and_batch(exported, shape):
    student = open_onnx(exported[0], threads=1)
    images = as_input(smooth(shape[1:], shape[0], seed=7))
    expected = reference(run_of(), images, student.outputs)
    found = student.run(images, student.outputs)
    assert student.outputs == ["depth_m", *OF_MAP]
    for name, one, other in zip(student.outputs, expected, found, strict=True):
        assert other.shape == shape
        near = np.isclose(one, other, rtol=1e-4, atol=1e-5)
        assert near.all() if name == "depth_m" else near.mean() > 0.999  # a quantile jumps where a map is flat
    depth_m, _, low_m, high_m = found
    assert (low_m < depth_m).mean() > 0.99
    assert (depth_m < high_m).mean() > 0.99


def test_a_file_that_differs_is_not_written(tmp_path, monkeypatch, exported):
    monkeypatch.setattr(pipeline.deploy.export, "_exported", lambda *_: onnx.load(exported[0]))
    monkeypatch.setattr("pipeline.deploy.parity.ODD_SIZES_PX", ((65, 97),))
    run, given = run_of(), synthetic_images((64, 64))
    run.network.decoder.head.bias.data[0] += 0.1
    message = (
        r"differs from PyTorch: relative depth error \d.\d\de-0\d at row \d+, column \d+ of .*: PyTorch .* m, ONNX .* m"
    )
    with pytest.raises(ValueError, match=message):
        export_student(run, tmp_path / "student.onnx", given=given)
    assert list(tmp_path.iterdir()) == []
    summary = export_student(run, tmp_path / "student.onnx", ExportOptions(max_rel_error=0.5), given=given)
    assert 1e-4 < summary["parity"]["max_rel_error"] < 0.5
    assert (tmp_path / "student.onnx").exists()


def test_the_gate_names_the_worst_pixel_and_takes_what_is_not_finite_as_a_difference():
    expected = np.full((2, 3), 4, np.float32)
    found = expected.copy()
    found[1, 2] = 5
    worst = gap("a", expected, found)
    assert (worst.error, worst.row, worst.column, worst.pytorch_m, worst.onnx_m) == (0.25, 1, 2, 4, 5)
    found[0, 1] = np.nan
    assert gap("a", expected, found).error == np.inf
    assert gap("a", found, expected).column == 1


def test_an_output_of_the_map_is_compared_too(exported, monkeypatch):
    monkeypatch.setattr("pipeline.deploy.parity.ODD_SIZES_PX", ((65, 97),))

    class Wrong(OnnxStudent):
        def run(self, images, outputs=("depth_m",)):
            found = super().run(images, outputs)
            return [one * 1.01 if name == "high_m" else one for name, one in zip(outputs, found, strict=True)]

    student = Wrong(exported[0].read_bytes(), "wrong", threads=1)
    with pytest.raises(ValueError, match=r"high_m is off by more than 0.0001 at 100.00% of the pixels"):
        check_parity(run_of(), student, synthetic_images((64, 64)), 1e-4)


def test_the_file_says_what_it_is_and_nothing_of_the_machine_that_made_it(exported):
    out, summary = exported
    student = open_onnx(out)
    assert student.card.name == "tiny"
    assert str(student.card.view) == "full"
    assert np.array_equal(student.card.bin_edges_m, run_of().bin_edges_m)
    facts = student.card.facts
    assert facts == summary["metadata"]
    assert facts["depth_range_m"] == "1:40"
    assert facts["weights_sha256"] == "1" * 64
    assert json.loads(facts["teacher"]) == TEACHER
    assert "CC-BY-4.0" in facts["licence"]
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", facts["pipeline_version"])
    for path in (out, out.parent / "small.onnx"):
        model = onnx.load(path)
        assert model.producer_name == "tiekd-pipeline"
        assert not any(one.metadata_props or one.doc_string for one in (model.graph, *model.graph.node))
        assert not re.search(rb"\w\.py\b|/site-packages/|/pipeline/", path.read_bytes())


def test_the_summary_tells_how_it_was_compared(exported):
    out, summary = exported
    assert json.loads(summary_path(out).read_text()) == summary
    assert summary["bytes"] == out.stat().st_size
    assert summary["parity"]["images"] == 2
    assert summary["parity"]["of"] == "2 images of scenes, split test"
    assert 0 <= summary["parity"]["max_rel_error"] < 1e-4
    assert summary["latency"]["threads"] == 1
    assert summary["latency"]["float32_ms"] > 0


def test_int8_costs_little_and_its_cost_is_measured(exported):
    out, summary = exported
    small = summary["int8"]
    assert small["bytes"] == (out.parent / "small.onnx").stat().st_size < 0.6 * summary["bytes"]
    assert 0 < small["against_float"]["median"] < 0.05
    assert small["against_float"]["median"] < small["against_float"]["p99"]
    assert small["metrics"]["frames"] == 2
    assert small["metrics"]["protocol"]["flip_average"] is False
    assert small["metrics"]["int8"]["abs_rel"] == pytest.approx(small["metrics"]["float32"]["abs_rel"], rel=0.1)
    assert not small["shares_images"]
    assert open_onnx(out.parent / "small.onnx").card.precision == "int8"


def test_the_tail_of_an_int8_file_stays_in_float(exported):
    model = onnx.load(exported[0].parent / "small.onnx")
    kinds = [node.op_type for node in model.graph.node]
    softmax = kinds.index("Softmax")
    assert "QuantizeLinear" in kinds[:softmax]
    assert "QuantizeLinear" not in kinds[softmax:]


def test_a_file_of_one_size_takes_no_other_and_resizes_the_view(tmp_path):
    out = tmp_path / "fixed.onnx"
    export_student(run_of("center:80x96"), out, ExportOptions(size_px=(64, 72), opset=18))
    student = open_onnx(out)
    assert student.size_px == (64, 72)
    assert str(student.card.view) == "center:80x96,resize:64x72"
    assert student.run(np.zeros((2, 3, 64, 72), np.float32))[0].shape == (2, 64, 72)
    with pytest.raises(ValueError, match="takes images of 64x72 px, got 64x80; export it without `size_px`"):
        student.run(np.zeros((1, 3, 64, 80), np.float32))
    assert {one.version for one in onnx.load(out).opset_import if one.domain == ""} == {18}


def test_what_cannot_be_is_refused_before_any_work(tmp_path):
    run, out = run_of(), tmp_path / "a.onnx"
    with pytest.raises(ValueError, match=r"must end in .onnx"):
        export_student(run, tmp_path / "a.bin")
    with pytest.raises(ValueError, match="`int8=.*` is the same file as `out`"):
        export_student(run, out, int8=out)
    with pytest.raises(ValueError, match="needs real images for its ranges"):
        export_student(run, out, int8=tmp_path / "b.onnx", calibration=synthetic_images(None))
    with pytest.raises(ValueError, match="this student has none"):
        export_student(run_of(head="depth"), out, ExportOptions(uncertainty=True))
    with pytest.raises(ValueError, match="`opset=9`: expected 18 to 23"):
        ExportOptions(opset=9)
    with pytest.raises(ValueError, match="`max_rel_error=0`"):
        ExportOptions(max_rel_error=0)
    out.touch()
    with pytest.raises(ValueError, match=r"a.onnx already exists; refusing to overwrite: .*`overwrite`"):
        export_student(run, out)


def test_a_missing_package_is_one_error_with_the_command_that_installs_it(tmp_path, monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr("pipeline.deploy.onnx_model.import_module", missing)
    with pytest.raises(
        PipelineError, match=r"the package onnx is not installed; run: pip install 'tiekd-pipeline\[onnx\]'"
    ):
        export_student(run_of(), tmp_path / "a.onnx")


def test_what_is_no_file_of_ours_is_named(tmp_path):
    path = tmp_path / "a.onnx"
    path.write_bytes(b"not a model")
    with pytest.raises(ValueError, match=r"a.onnx: onnxruntime cannot load it .* expected a file from"):
        open_onnx(path)
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", [INPUT], ["depth_m"])],
        "g",
        [value(INPUT, 1, [1, 3, 4, 4])],
        [value("depth_m", 1, [1, 3, 4, 4])],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ValueError, match=r"metadata format 'None', expected 'tiekd-student-1'"):
        open_onnx(path)
    for name, text in {"format": "tiekd-student-1", "bin_edges_m": "[1, 2, 2]"}.items():
        model.metadata_props.add(key=name, value=text)
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ValueError, match=r"bin_edges_m: expected ascending numbers; export the run again"):
        open_onnx(path)
    with pytest.raises(ValueError, match="No such file"):
        open_onnx(tmp_path / "absent.onnx")


@pytest.mark.slow
def test_the_command_exports_a_trained_student_and_says_how_near_it_is(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    edges = bin_edges(8, 1, 40, "log").tolist()
    (run / "config.json").write_text(json.dumps({"student": "lean", "view": "full", "bin_edges_m": edges}))
    save_weights(build_student("lean", 8), run / "student.safetensors")
    source = fakes.make_scenes_folder(tmp_path / "scenes", 8, (64, 96))
    arguments = [run, "--out", tmp_path / "a.onnx", "--source", f"scenes:{source}", "--split", "test"]
    done = CliRunner().invoke(command, [str(one) for one in [*arguments, "--int8", tmp_path / "b.onnx"]])
    assert done.exit_code == 0, done.output
    assert "against PyTorch on 2 images of scenes, split test" in done.output
    assert re.search(r"largest relative depth error \d\.\de-0[5-9] \(at most 0.0001\)", done.output)
    assert re.search(r"int8 against float depth: \d\.\d\d% at the median", done.output)
    assert "AbsRel" in done.output
    for more, message in (
        (["--source", f"scenes:{source}"], "--source and --split belong together"),
        ([*arguments[3:], "--images", source], "give one of them"),
        (["--calibration-split", "train"], "give its data set with --source and --split"),
        (["--images", source, "--frames", "0"], "expected at least 1"),
    ):
        done = CliRunner().invoke(command, [str(one) for one in [run, "--out", tmp_path / "c.onnx", *more]])
        assert done.exit_code == 1
        assert message in done.output


def test_images_for_calibration_are_others_where_there_are_any(tmp_path):
    source = open_source(f"scenes:{fakes.make_scenes_folder(tmp_path / 'scenes', 8, (64, 96))}")
    seen = [one.name for one in images_of_source(source, "all", View(), 3).images]
    others = [one.name for one in images_of_source(source, "all", View(), 8, seen).images]
    assert sorted(seen + others) == [f"{number:06d}" for number in range(8)]
    assert [one.name for one in images_of_source(source, "test", View(), 8, ["000006", "000007"]).images] == [
        "000006",
        "000007",
    ]


def test_the_lines_of_the_document_run_a_file_without_our_package(tmp_path, exported):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "export.md").read_text(), re.DOTALL)
    assert "import pipeline" not in code
    assert len([line for line in code.splitlines() if line]) == 12
    image = smooth((65, 97), 1, seed=3)
    Image.fromarray(image[0]).save(tmp_path / "photo.png")
    (tmp_path / "student.onnx").write_bytes(exported[0].read_bytes())
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"tiny: \d+\.\d to \d+\.\d m\n", done.stdout)
    depth_m = reference(run_of(), as_input(image), ["depth_m"])[0][0]
    assert np.abs(read_depth_png_m(str(tmp_path / "depth.png"), 1 / 256) - depth_m).max() < 1 / 256


@pytest.mark.parametrize("readout", ["geometric", "median", "absrel"])
def test_a_file_reads_its_map_as_asked(tmp_path, readout):
    summary = export_student(run_of(), tmp_path / "student.onnx", ExportOptions(uncertainty=True, readout=readout))
    assert summary["metadata"]["readout"] == readout
    quantile = readout in {"median", "absrel"}
    assert (summary["parity"]["max_rel_error"] < 1e-4) or quantile
    assert summary["parity"]["of_map"].get("depth_m", 0) < 1e-3
    images = as_input(smooth((70, 90), 2, seed=3))
    (depth_m,) = open_onnx(tmp_path / "student.onnx", threads=1).run(images)
    (expected,) = reference(run_of(), images, ["depth_m"], readout)
    (mean,) = reference(run_of(), images, ["depth_m"])
    assert np.quantile(np.abs(depth_m / expected - 1), 0.999 if quantile else 1) < 1e-4
    assert np.abs(expected / mean - 1).max() > 0.01


@pytest.mark.parametrize("head", ["gaussian", "laplace"])
def test_a_head_of_two_outputs_is_exported_with_its_uncertainty_and_quantized(tmp_path, head):
    run = run_of(head=head)
    torch.manual_seed(0)
    run = LoadedRun(Tiny(2).eval(), run.bin_edges_m, run.weights_sha256, run.config)
    source = open_source(f"scenes:{fakes.make_scenes_folder(tmp_path / 'scenes', 8, (64, 96))}")
    given, calibration = (images_of_source(source, split, View(), 3) for split in ("test", "train"))
    options = ExportOptions(uncertainty=True)
    out = tmp_path / "student.onnx"
    summary = export_student(run, out, options, given=given, int8=tmp_path / "small.onnx", calibration=calibration)
    assert summary["outputs"] == ["depth_m", *OF_MAP]
    assert summary["metadata"]["readout"] == "geometric"
    assert summary["int8"]["against_float"]["median"] < 0.05
    plain = export_student(
        run, tmp_path / "plain.onnx", given=given, int8=tmp_path / "int8.onnx", calibration=calibration
    )
    assert plain["int8"]["against_float"]["median"] < 0.05
    assert "Softmax" not in {node.op_type for node in onnx.load(str(tmp_path / "plain.onnx")).graph.node}
