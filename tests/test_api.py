"""The Python API: fast to import, typed, documented, with examples that run."""

import doctest
import inspect
import subprocess
import sys
from pathlib import Path

import fakes
import numpy as np
import pytest
from PIL import Image

import pipeline as tiekd
from pipeline import errors

FUNCTIONS = [name for name in tiekd.__all__ if inspect.isfunction(getattr(tiekd, name))]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with the files of the examples: scenes, a store of the training split, a trained student, an image."""
    root = tmp_path_factory.mktemp("api")
    scenes = fakes.make_scenes_folder(root / "scenes", 8, (32, 64))
    source = tiekd.open_source("scenes", scenes)
    tiekd.cache_teacher(fakes.FakeTeacher(scale=2), source, "train", root / "train.zarr", bins="log:64:1:100")
    tiekd.train_student(
        source,
        "train",
        tiekd.open_store(root / "train.zarr"),
        root / "runs" / "lean",
        student="lean-small",
        epochs=1,
        batch_size=2,
        device="cpu",
    )
    (root / "images").mkdir()
    image, _ = source.read_image(source.samples("test")[0])
    Image.fromarray(image).save(root / "images" / "0.jpg")
    return root


@pytest.fixture
def source(home):
    return tiekd.open_source("scenes", home / "scenes")


@pytest.mark.parametrize("name", tiekd.__all__)
def test_each_public_name_has_an_example_that_runs(name, home, monkeypatch, tmp_path):
    for path in home.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "runs").unlink()
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "lean").symlink_to(home / "runs" / "lean")
    monkeypatch.chdir(tmp_path)
    value = getattr(tiekd, name)
    results = [test for test in doctest.DocTestFinder(recurse=False).find(value, name) if test.examples]
    assert results, f"{name} has no example"
    runner = doctest.DocTestRunner(verbose=False)
    output = []
    for test in results:
        runner.run(test, out=output.append)
    assert not runner.summarize(verbose=False).failed, "".join(output)


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, pipeline; assert not {'torch', 'zarr', 'numpy', 'click'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_help_shows_the_public_names():
    done = subprocess.run([sys.executable, "-c", "import pipeline; help(pipeline)"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name in tiekd.__all__:
        assert name in done.stdout


@pytest.mark.parametrize("name", FUNCTIONS)
def test_each_public_function_is_typed_and_documents_its_errors(name):
    function = getattr(tiekd, name)
    signature = inspect.signature(function)
    assert signature.return_annotation is not inspect.Signature.empty
    for parameter in signature.parameters.values():
        assert parameter.annotation is not inspect.Parameter.empty, parameter
    if signature.parameters:
        assert "Raises" in inspect.getdoc(function)


def test_the_package_has_a_py_typed_marker():
    assert (Path(tiekd.__file__).parent / "py.typed").is_file()


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'open_stroe'"):
        _ = tiekd.open_stroe


def test_an_unknown_option_is_refused_with_the_nearest_name(source, tmp_path):
    expected = "`epoch=3`: expected an option of TrainOptions, such as `epochs`"
    with pytest.raises(errors.OptionError, match=expected) as caught:
        tiekd.train_student(source, "train", None, tmp_path / "run", epoch=3)
    assert caught.value.option == "epoch"


def test_a_student_predicts_the_same_from_a_file_an_image_and_an_array(home):
    student = tiekd.load_student(home / "runs" / "lean", device="cpu")
    path = home / "images" / "0.jpg"
    with Image.open(path) as image:
        depth_m = student.predict(image)
        assert np.array_equal(depth_m, student.predict(np.array(image)))
    assert np.array_equal(depth_m, student.predict(path))
    assert depth_m.dtype == np.float32
    assert np.isfinite(depth_m).all()
    assert np.allclose(student.dpm(path).sum(axis=0), 1, atol=1e-5)


@pytest.mark.parametrize(
    "image",
    [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), 7],
    ids=["grey", "float", "number"],
)
def test_input_that_is_not_an_image_is_refused(home, image):
    student = tiekd.load_student(home / "runs" / "lean", device="cpu")
    with pytest.raises(tiekd.PipelineError, match="expected a path, a PIL image, or an array"):
        student.predict(image)


def test_a_store_is_evaluated_as_its_teacher(home, source):
    result = tiekd.evaluate(tiekd.open_store(home / "train.zarr"), source, "train")
    assert result.frames == 6
    assert 0 <= result.metrics["delta1"] <= 1
