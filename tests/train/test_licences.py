"""Licences go from a store into the run, the exported file and the report, and may be required."""

import json

import fakes
import pytest
from click.testing import CliRunner

import pipeline as tiekd
from pipeline.cache.plan import CacheOptions
from pipeline.cache.run import cache_teacher
from pipeline.cli.main import main
from pipeline.common.licences import check_licences
from pipeline.errors import PipelineError
from pipeline.networks.saved_run import licences_of_run, load_run
from pipeline.store import open_store
from pipeline.teachers.base import TeacherCard

SMALL = {"student": "lean-small", "epochs": 1, "batch_size": 2, "bins": "log:8:1:12"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A source, a store whose licences are stated, and a student of it."""
    folder = tmp_path_factory.mktemp("licences")
    source = tiekd.open_source("scenes", fakes.make_scenes_folder(folder / "scenes", 4, (32, 64)))
    teacher = fakes.FakeTeacher()
    teacher.card = TeacherCard("python", "fake", "metric_m", "0" * 64, licence="Apache-2.0")
    options = CacheOptions(bins="log:8:1:12", sigma_m=0.5, data_licence="CC BY 4.0")
    cache_teacher(source, "all", teacher, folder / "s.zarr", options)
    tiekd.train_student(source, "train", open_store(folder / "s.zarr"), folder / "run", **SMALL)
    return source, folder


def test_a_run_states_the_licences_of_its_store(made):
    assert licences_of_run(load_run(made[1] / "run").config) == {
        "the teacher's output": "Apache-2.0",
        "the images": "CC BY 4.0",
    }


def test_an_exported_file_states_both_licences(made):
    pytest.importorskip("onnxruntime")
    from pipeline.deploy.onnx_model import open_onnx

    out = made[1] / "student.onnx"
    done = CliRunner().invoke(main, ["export-student", str(made[1] / "run"), "--out", str(out), "--overwrite"])
    assert done.exit_code == 0, done.output
    facts = open_onnx(out).card.facts
    assert facts["licence"] == "of the teacher's output: Apache-2.0"
    assert facts["data_licence"] == "CC BY 4.0"


@pytest.mark.parametrize(
    ("patterns", "refused"),
    [(["apache-*", "cc by 4.0"], None), (["apache-*"], "the images is 'CC BY 4.0'"), (["mit"], "'Apache-2.0'")],
)
def test_training_refuses_a_store_whose_licences_are_not_allowed(made, tmp_path, patterns, refused):
    source, folder = made
    flags = [flag for pattern in patterns for flag in ("--require-licence", pattern)]
    command = ["train-student", "--source", f"scenes:{source.root}", "--split", "train", "--store", folder / "s.zarr"]
    command += ["--student", "lean-small", "--epochs", "1", "--batch-size", "2", "--out", tmp_path / "run", *flags]
    done = CliRunner().invoke(main, list(map(str, command)))
    assert (done.exit_code == 0) == (refused is None), done.output
    assert refused is None or refused in done.output
    assert (tmp_path / "run").exists() == (refused is None)


def test_exporting_refuses_a_run_whose_licences_are_not_allowed(made, tmp_path):
    out = tmp_path / "s.onnx"
    done = CliRunner().invoke(
        main, ["export-student", str(made[1] / "run"), "--out", str(out), "--require-licence", "mit"]
    )
    assert done.exit_code == 1
    assert "--require-licence" in done.output
    assert not out.exists()


def test_each_licence_of_a_merged_store_has_to_match():
    check_licences("s", {"the images": "CC0 and CC BY 4.0"}, ["cc*"])
    with pytest.raises(PipelineError, match="'CC BY-NC 4.0'"):
        check_licences("s", {"the images": "CC0 and CC BY-NC 4.0"}, ["cc0", "cc by 4.0"])


def test_what_is_not_stated_matches_no_pattern():
    with pytest.raises(PipelineError, match="is not stated"):
        check_licences("s", {"the images": None}, ["*"])


def test_a_store_without_a_data_licence_leaves_the_configuration_as_it_was(made, tmp_path):
    source, _ = made
    cache_teacher(source, "all", fakes.FakeTeacher(), tmp_path / "s.zarr", CacheOptions(bins="nyu", sigma_m=0.5))
    tiekd.train_student(source, "train", open_store(tmp_path / "s.zarr"), tmp_path / "run", **SMALL)
    assert set(json.loads((tmp_path / "run" / "config.json").read_text())["store"]) == {
        "teacher",
        "digest",
        "manifest_sha256",
    }
