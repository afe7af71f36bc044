"""The examples of docs/teachers.md run: every command, with the Python factory and the JSON files of the page."""

import json
import re
import shlex
import shutil

import fakes
import pytest
import torch
from click.testing import CliRunner
from paths import ROOT
from tiny_networks import make_onnx

from pipeline.cli.main import main
from pipeline.store import open_store
from pipeline.teachers.options import TeacherOptions
from pipeline.teachers.registry import open_teacher

pytest.importorskip("onnxruntime")
helper = pytest.importorskip("onnx").helper
PAGE = (ROOT / "docs/teachers.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def run(line):
    words = shlex.split(line)[1:]
    if words[0] == "train-student":
        words += ["--epochs", "1", "--batch-size", "2", "--student", "lean-small"]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, f"{line}\n{done.output}"


class Positive(torch.nn.Module):
    """A network whose depth (B, h, w) is positive."""

    def forward(self, images):
        return torch.nn.functional.softplus(images.mean(dim=1))


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A folder with the images, network files and runs that the page names."""
    monkeypatch.chdir(tmp_path)
    root = fakes.make_scenes_folder(tmp_path / "MY_IMAGES", count=6, size_px=(64, 96))
    shutil.copytree(root / "depth", tmp_path / "PREDICTIONS")
    make_onnx(tmp_path / "net.onnx", after=[helper.make_node("Softplus", ["sum"], ["depth"])])
    torch.jit.save(torch.jit.trace(Positive(), torch.zeros(1, 3, 8, 8)), "net.pt")
    (tmp_path / "my_net.py").write_text(blocks("python")[0])
    where = "--source folder:MY_IMAGES --split train"
    run(f"pipeline cache-teacher {where} --teacher python:fakes:factory --bins nyu --sigma-m 0.2 --out first.zarr")
    for name in "ab":
        seed = "ab".index(name)
        run(f"pipeline train-student {where} --store first.zarr --seed {seed} --out runs/{name}")
    return tmp_path


def test_the_commands_of_the_page_run_in_their_order(home):
    kinds = set()
    for line in "".join(block for block in blocks("sh") if "litert:" not in block).splitlines():
        if line.startswith("pipeline") and "transformers:" not in line:
            run(line)
            kinds |= set(re.findall(r"--teacher (\w+):", line))
    assert kinds == {"checkpoint", "ensemble", "onnx", "predictions", "python", "torchscript"}
    card = open_store(home / "python.zarr").spec.teacher
    assert (card["name"], len(card["weights_sha256"])) == ("my-net", 64)


def test_the_json_files_of_the_page_are_accepted(home):
    of_file, of_predictions, of_ensemble = map(json.loads, blocks("json"))
    common = "pipeline cache-teacher --source folder:MY_IMAGES --split train --bins nyu --sigma-m 0.2"
    (home / "members.json").write_text(json.dumps(of_ensemble))
    run(f"{common} --teacher ensemble:members.json --out ensemble.zarr")
    (home / "net.onnx.json").write_text(json.dumps(of_file | {"input_size": [64, 96], "output": "depth"}))
    run(f"{common} --teacher onnx:net.onnx --out onnx.zarr")
    (home / "PREDICTIONS" / "predictions.json").write_text(
        json.dumps(of_predictions | {"view": "full", "input_size": [64, 96]})
    )
    run(f"{common} --teacher predictions:PREDICTIONS --out saved.zarr")


def test_the_dict_of_the_page_is_accepted(monkeypatch):
    half, images = torch.full((2, 4, 6), 0.5), torch.rand(2, 3, 8, 12)
    values = {"depth": torch.ones(2, 8, 12), "confidence": half, "sky": half, "K": torch.full((2, 4), 9.0)}
    names = {**values, "tokens": half[:, None]}
    exec(blocks("python")[1], names)  # noqa: S102 - a page of this repository
    model = type("Model", (), {"card": {"name": "mine", "depth_space": "metric_m"}, "__call__": names["__call__"]})
    monkeypatch.setattr(fakes, "of_the_page", model, raising=False)
    options = TeacherOptions(features=("deep",))
    teacher = open_teacher("python:fakes:of_the_page", device=torch.device("cpu"), options=options)
    output = teacher.predict(images, ["a", "b"])
    assert torch.equal(output.intrinsics_px, values["K"])
    assert list(output.features) == ["deep"]
