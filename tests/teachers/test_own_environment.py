"""A `python:` teacher in another environment is the same teacher: the same card, values, stores and refusals."""

import ast
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import fakes
import pytest
import torch
from click.testing import CliRunner
from environments import DECOY, make_environment, numpy_alone
from tiny_stores import folder_bytes

import pipeline as tiekd
from pipeline.cache.plan import CacheOptions
from pipeline.cache.run import cache_teacher, plan_cache
from pipeline.cli.main import main
from pipeline.sources.registry import open_source
from pipeline.store import open_store
from pipeline.teachers.base import TeacherOutput
from pipeline.teachers.options import TeacherOptions
from pipeline.teachers.registry import open_teacher

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
OPTIONS = CacheOptions(bins="nyu", sigma_m=0.2, samples_per_shard=2, batch_size=2)
VERSIONED = """
import conflicting
import pipeline


class ByVersion:
    card = {"name": "mine", "depth_space": "metric_m"}

    def __call__(self, images):
        return images.mean(1) + float(conflicting.__version__)


def by_version():
    assert getattr(pipeline, "WHO", "none") == conflicting.PIPELINE, pipeline
    return ByVersion()
"""
TEACHERS = '''
import torch
from helper import mean
try:
    import conflicting
except ModuleNotFoundError:  # of the environment of the tests
    conflicting = None

CARD = {"name": "mine", "depth_space": "metric_m", "weights": ["net.bin"]}


def plain():
    def call(images):
        return mean(images) + 1

    call.card = {"name": "plain", "depth_space": "metric_m", "weights": []}
    return call


class Maps(torch.nn.Module):
    card = CARD
    bin_edges_m = [0.5, 2, 4, 9]

    def __init__(self, device):
        super().__init__()
        self.drop = torch.nn.Dropout(0.5)
        self.net = torch.nn.Conv2d(3, 3, 3, padding=1).to(device)
        torch.nn.init.constant_(self.net.weight, 0.3)
        torch.nn.init.zeros_(self.net.bias)

    def forward(self, images):
        print("to stdout")
        logits = self.net(self.drop(images)) * torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1)
        return 2 + mean(images), logits.softmax(1)


class Keeps:
    """Keeps every batch that it saw, and returns the mean of the first."""
    card = CARD

    def __init__(self):
        self.seen = []

    def __call__(self, images):
        self.seen.append(images)
        return self.seen[0].mean(1) + 2


class Cases:
    """Returns one case after another."""
    card = CARD

    def __init__(self):
        depth = torch.full((2, 8, 10), 3.0)
        maps = torch.full((2, 4, 8, 10), 0.25)
        self.cases = [
            None, 5.0, "text", [depth], {"depth": 1}, {"depths": depth}, (depth,) * 4, (depth, depth, depth),
            depth[:1], depth.long(), depth[:, :, :4], depth[:, None], torch.empty(2, 0, 10), (depth, maps),
            depth.bool(), depth.to(torch.complex64), object, (depth, None, maps[:, :, 0, 0]), depth.half(),
            depth.bfloat16(), depth.double(), (depth, None),
        ]

    def __call__(self, images):
        return self.cases.pop(0)
'''
NUMPY = """
import collections
import importlib.util
import numpy as np
Answer = collections.namedtuple("Answer", "depth confidence")


class Mine:
    card = {"name": "mine", "depth_space": "metric_m", "weights": []}

    def __call__(self, images):
        assert importlib.util.find_spec("torch") is None
        assert isinstance(images, np.ndarray) and images.dtype == np.float32 and images.flags.writeable
        return np.array(images.mean(1) + 2, dtype=">f8")


class Structured(Mine):
    def __call__(self, images):
        return Answer(super().__call__(images), np.ones((2, 3, 4), np.float32))
"""


@pytest.fixture(scope="module")
def environments(tmp_path_factory):
    """Two environments with conflicting packages; the second also has a package named `pipeline`."""
    folder = tmp_path_factory.mktemp("environments")
    versions = {
        version: f'__version__ = "{version}"\nPIPELINE = "{who}"' for version, who in (("3", "none"), ("5", "decoy"))
    }
    first = make_environment(folder / "first", {"conflicting": versions["3"]})
    second = make_environment(folder / "second", {"conflicting": versions["5"], "pipeline": DECOY})
    return first, second


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A folder with teachers and images, where the user works; PYTHONPATH has this package, as in a checkout."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (tmp_path / "own_teachers.py").write_text(TEACHERS)
    (tmp_path / "numpy_teachers.py").write_text(NUMPY)
    (tmp_path / "versioned.py").write_text(VERSIONED)
    (tmp_path / "helper.py").write_text("def mean(images):\n    return images.mean(1)\n")
    (tmp_path / "net.bin").write_bytes(b"weights")
    fakes.make_scenes_folder(tmp_path / "scenes", 6, (16, 32))
    yield tmp_path
    for name in ("own_teachers", "versioned", "helper"):
        sys.modules.pop(name, None)


def opened(factory, python=None, **options):
    module = "" if ":" in factory else "own_teachers:"
    return open_teacher(
        f"python:{module}{factory}", device=CPU, options=TeacherOptions(teacher_python=python, **options)
    )


def command(*words):
    done = CliRunner().invoke(main, ["cache-teacher", "--source", "scenes:scenes", "--split", "all", *words])
    assert done.exit_code == 0, done.output


BINS = ["--bins", "nyu", "--sigma-m", "0.2", "--batch-size", "2"]


@pytest.mark.slow
@pytest.mark.usefixtures("home")
def test_two_environments_with_conflicting_packages_make_two_stores(environments):
    for python, version in zip(environments, (3, 5), strict=True):
        out = f"{version}.zarr"
        command(*BINS, "--teacher", "python:versioned:by_version", "--teacher-python", python, "--out", out)
        means = [float(open_store(out).depth_m(index).mean()) for index in range(6)]
        assert all(version < mean < version + 1 for mean in means)


@pytest.mark.slow
def test_a_store_says_nothing_about_the_environment(home, environments):
    for python in environments:
        cache_teacher(open_source("scenes:scenes"), "all", opened("Maps", python), home / "s.zarr", OPTIONS)
        assert not any(b"environments" in data for data in folder_bytes(home / "s.zarr").values())
        before = folder_bytes(home / "s.zarr")
        (home / "s.zarr").rename(home / f"{Path(python).parents[1].name}.zarr")
    assert before == folder_bytes(home / "first.zarr")


def test_the_store_has_the_bytes_of_a_teacher_in_this_process(home):
    source = open_source("scenes:scenes")
    cache_teacher(source, "all", opened("Maps"), home / "here.zarr", OPTIONS)
    cache_teacher(source, "all", opened("Maps", sys.executable), home / "there.zarr", OPTIONS)
    assert folder_bytes(home / "here.zarr") == folder_bytes(home / "there.zarr")


@pytest.mark.usefixtures("home")
def test_a_model_may_keep_its_images():
    model = opened("Keeps", sys.executable)
    first = torch.rand(2, 3, 8, 10)
    expected = model.predict(first, ["a", "b"]).depth.clone()
    for _ in range(4):
        staged = model.stage(torch.rand(2, 3, 8, 10))
        torch.testing.assert_close(model.predict(staged, ["a", "b"]).depth, expected, rtol=0, atol=0)


@pytest.mark.usefixtures("home")
def test_predictions_that_are_held_are_not_overwritten():
    model = opened("Maps", sys.executable)
    batches = [torch.rand(2, 3, 8, 10) for _ in range(5)]
    outputs = [model.predict(images, ["a", "b"]).depth for images in batches]
    for images, depth in zip(batches, outputs, strict=True):
        torch.testing.assert_close(depth, images.mean(1) + 2)


def answers(model) -> Iterator[str]:
    """Yield what becomes of each case that a model returns."""
    for _ in range(22):
        try:
            output = model.predict(torch.zeros(2, 3, 8, 10), ["a", "b"])
            yield f"{output.depth.dtype} {output.depth.mean()} {output.dpm}"
        except tiekd.PipelineError as error:
            yield re.sub("torch.bfloat16", "torch.float32", str(error))


@pytest.mark.usefixtures("home")
def test_each_returned_value_is_accepted_or_refused_as_in_this_process():
    here, there = list(answers(opened("Cases"))), list(answers(opened("Cases", sys.executable)))
    assert there == here
    assert sum(answer.startswith("torch.float32 3.0 None") for answer in here) == 4


@pytest.fixture(scope="module")
def numpy_python(tmp_path_factory):
    """An environment without torch."""
    return make_environment(tmp_path_factory.mktemp("light") / "env", {}, links=numpy_alone())


@pytest.mark.usefixtures("home")
def test_an_environment_without_torch_gets_and_returns_arrays(numpy_python):
    images = torch.rand(2, 8, 10, 3).permute(0, 3, 1, 2)
    depth = opened("numpy_teachers:Mine", numpy_python).predict(images, ["a", "b"]).depth
    torch.testing.assert_close(depth, images.mean(1) + 2)
    assert depth.dtype == torch.float32


@pytest.mark.usefixtures("home")
def test_an_object_with_the_fields_of_an_output_is_one(numpy_python):
    model = opened("numpy_teachers:Structured", numpy_python)._model
    output = model(torch.zeros(2, 3, 8, 10))
    assert isinstance(output, TeacherOutput)
    assert (output.depth.shape, output.confidence.shape, output.sky) == ((2, 8, 10), (2, 3, 4), None)


@pytest.mark.usefixtures("home")
def test_the_card_has_the_same_hashes_and_the_run_the_versions_of_the_environment(environments):
    teacher = opened("Maps", environments[1])
    assert teacher.card == opened("Maps").card
    assert set(teacher.card.preprocessing["python"]["source"]) == {"own_teachers", "helper"}
    source = open_source("scenes:scenes")
    planned = plan_cache(source, source.samples("all"), opened("Maps", environments[1], flip_average=True), OPTIONS)
    assert planned.conditions["conflicting"] == "5"
    assert planned.conditions["torch"] == torch.__version__


def test_a_package_named_as_ours_in_the_current_folder_is_hashed(home, environments):
    (home / "pipeline").mkdir()
    (home / "pipeline" / "__init__.py").write_text('WHO = "decoy"')
    source = opened("versioned:by_version", environments[1]).card.preprocessing["python"]["source"]
    assert set(source) == {"versioned", "pipeline"}


def test_our_checkout_as_current_folder_does_not_hide_the_package_of_the_environment(home, environments, monkeypatch):
    (home / "checkout").mkdir()
    (home / "checkout" / "pipeline").symlink_to(ROOT / "pipeline")
    (home / "versioned.py").rename(home / "checkout" / "versioned.py")
    monkeypatch.chdir(home / "checkout")
    assert opened("versioned:by_version", environments[1]).card.name == "mine"


@pytest.mark.slow
def test_averaging_mirrored_images_and_ensembles_work_with_it(home, environments):
    for label, words in (
        ("flips", ["--teacher", "python:own_teachers:Maps", "--flip-average", "--cache-flips"]),
        ("both", ["--teacher", "ensemble:python:own_teachers:Maps,python:own_teachers:plain"]),
    ):
        command(*BINS, *words, "--out", f"{label}.here.zarr")
        command(*BINS, *words, "--teacher-python", environments[0], "--out", f"{label}.there.zarr")
        assert folder_bytes(home / f"{label}.here.zarr") == folder_bytes(home / f"{label}.there.zarr")


@pytest.mark.usefixtures("home")
def test_a_member_of_an_ensembles_file_may_have_its_own_environment(environments):
    Path("envs").symlink_to(Path(environments[0]).parents[2])
    members = [
        {"teacher": "python:versioned:by_version", "teacher-python": f"../envs/{name}/bin/python"}
        for name in ("first", "second")
    ]
    Path("files").mkdir()
    Path("files/both.json").write_text(json.dumps({"members": members}))
    options = TeacherOptions(trust_code=True, map_edges_m=(1, 4, 9), map_sigma_m=0.5)
    teacher = open_teacher("ensemble:files/both.json", device=CPU, options=options)
    output = teacher.predict(torch.zeros(2, 3, 8, 10), ["a", "b"])
    assert float(output.depth.mean()) == 4
    assert teacher.package_versions["conflicting"] == "3 and 5"


@pytest.mark.slow
def test_workers_of_a_scheduler_use_it(home, environments):
    words = ["--teacher", "python:own_teachers:Maps", "--device", "cpu"]
    command(*BINS, *words, "--out", "here.zarr")
    command(*BINS, *words, "--teacher-python", environments[0], "--scheduler", "local:2", "--out", "there.zarr")
    assert folder_bytes(home / "here.zarr") == folder_bytes(home / "there.zarr")


@pytest.mark.usefixtures("home")
def test_a_relative_path_and_the_python_function_are_accepted(environments):
    relative = Path(environments[0]).relative_to(Path(environments[0]).parents[3])
    Path("envs").symlink_to(Path(environments[0]).parents[3])
    teacher = tiekd.open_teacher("python:own_teachers:Maps", device="cpu", teacher_python=f"envs/{relative}")
    assert teacher.card.name == "mine"


@pytest.mark.parametrize("name", ["arrays", "encoding", "factories", "messages", "worker"])
def test_what_runs_in_the_environment_is_python_3_8_and_imports_nothing_of_ours(name):
    tree = ast.parse((ROOT / f"pipeline/teachers/foreign/{name}.py").read_text(), feature_version=(3, 8))
    imported = {each for node in ast.walk(tree) if isinstance(node, ast.Import) for each in [node.names[0].name]}
    assert {top.split(".")[0] for top in imported} <= {*sys.stdlib_module_names, "numpy", "torch"}


def test_it_is_refused_for_a_teacher_of_another_kind():
    with pytest.raises(ValueError, match="`teacher_python='x'` does not apply to onnx teachers"):
        open_teacher("onnx:net.onnx", device=CPU, options=TeacherOptions(teacher_python="x"))


CAMERA = """
import torch


class Rich:
    card = {"name": "rich", "depth_space": "metric_m", "weights": [], "inputs": ["intrinsics"]}

    def __call__(self, images, intrinsics_px):
        gray = images.mean(1)
        return {
            "depth": gray + intrinsics_px[:, 0].view(-1, 1, 1) / 10,
            "confidence": gray,
            "intrinsics_px": intrinsics_px,
            "features": {"deep": images[..., ::4, ::4]},
        }
"""


def test_intrinsics_go_there_and_signals_and_features_come_back(tmp_path, monkeypatch):
    source = open_source(f"scenes:{fakes.make_scenes_folder(tmp_path / 'scenes', 4, (16, 32))}")
    (source.root / "intrinsics.csv").write_text(
        "id,fx_px,fy_px,cx_px,cy_px\n" + "".join(f"{number:06d},{40 + number},40,15.5,7.5\n" for number in range(4))
    )
    source = open_source(f"scenes:{source.root}")
    (tmp_path / "rich_camera.py").write_text(CAMERA)
    monkeypatch.chdir(tmp_path)
    options = CacheOptions(bins="nyu", sigma_m=0.2, signals=("confidence",), features=("deep",), intrinsics="teacher")
    for name, python in (("here", None), ("there", sys.executable)):
        given = TeacherOptions(teacher_python=python, features=("deep",))
        teacher = open_teacher("python:rich_camera:Rich", device=CPU, options=given)
        cache_teacher(source, "all", teacher, tmp_path / f"{name}.zarr", options)
    assert folder_bytes(tmp_path / "there.zarr") == folder_bytes(tmp_path / "here.zarr")
    assert open_store(tmp_path / "there.zarr").intrinsics_px(3)[0] == 43
