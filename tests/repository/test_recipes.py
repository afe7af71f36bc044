"""The recipes make their tables with one command, here on a few frames for one epoch."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from paths import REAL

from pipeline.cli.main import main
from pipeline.evaluation.study_file import read_study
from pipeline.sources.registry import open_source
from pipeline.train.options import TrainOptions

ROOT = Path(__file__).parents[2]
STUDIES = [("recipes/kitti/params.yaml", "kitti")]


@pytest.mark.parametrize(("file", "name"), STUDIES)
def test_the_flags_of_every_study_are_flags_of_the_commands(file, name):
    for run in read_study(ROOT / file, name).runs_to_do():
        for flags, command in ((run.train, "train-student"), (run.evaluate, "evaluate-student")):
            known = {
                option
                for parameter in main.get_command(None, command).params
                for option in (*parameter.opts, *parameter.secondary_opts)
            }
            assert {f"--{flag}" for flag in flags} <= known, run.stem


@pytest.fixture
def students(monkeypatch):
    """The command of the experiments."""
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    import students

    return students


@pytest.mark.parametrize("file", ["experiments/params.yaml", "experiments/more/params.yaml"])
def test_the_flags_of_every_student_are_flags_of_train_student(students, file):
    known = {option for parameter in main.get_command(None, "train-student").params for option in parameter.opts}
    jobs = students.read_jobs(ROOT / file, [0, 1])
    assert len({job.folder for job in jobs}) == len(jobs)
    for job in jobs:
        assert {f"--{flag}" for flag in job.flags} <= known, job.folder
        assert "{" not in "".join(map(str, job.flags.values()))
    assert [job.seed for job in jobs] == sorted(job.seed for job in jobs)  # a finished seed is a whole comparison


def test_a_result_of_other_flags_is_not_taken_for_a_finished_one(students, monkeypatch, tmp_path):
    monkeypatch.setattr(students, "RESULTS", tmp_path)
    job = students.read_jobs(ROOT / "experiments/params.yaml", [3])[0]
    frames = {
        name: [0.25, 0.5] for name in ("abs_rel", "scaled_abs_rel", "delta1", "scaled_delta1", "rmse", "scaled_rmse")
    }
    measured = {"training_sha256": "a", "readouts": {"mean": {"factor": 0.9, "frames": frames}}, "secondary": {}}
    assert not students.is_done(job, None)
    students.add_result(job, measured)
    assert students.is_done(job, None)
    assert students.is_done(job, "a")
    assert not students.is_done(job, "b")  # of other code
    assert not students.is_done(dataclasses.replace(job, flags={**job.flags, "epochs": 7}), None)
    assert not students.is_done(dataclasses.replace(job, seed=4), None)
    other = dataclasses.replace(job.test, max_depth_m=50)
    assert not students.is_done(dataclasses.replace(job, test=other), None)
    changed = dataclasses.replace(job, flags={**job.flags, "epochs": 7}, seed=4)
    students.add_result(changed, measured)
    assert students.is_done(changed, None)
    assert not students.is_done(job, None)  # one file holds one setting


def test_the_kitti_recipe_matches_the_paper():
    study = read_study(ROOT / "recipes/kitti/params.yaml", "kitti")
    defaults = TrainOptions()
    assert study.train["epochs"] == defaults.epochs == 24
    assert study.train["batch-size"] == defaults.batch_size == 16
    assert study.train["learning-rate"] == defaults.learning_rate == 1e-3
    teacher = yaml.safe_load((ROOT / "recipes/kitti/params.yaml").read_text())["teacher"]
    assert (teacher["view"], teacher["bins"], teacher["sigma-m"]) == ("kb", "kitti", 0.5)
    assert {flags.get("student", "mobilenetv2") for flags in study.runs.values()} == {
        "mobilenetv2",
        "resnet18",
        "resnet50",
    }


@pytest.mark.realdata
def test_the_full_eigen_lists_are_read_row_by_row():
    # Only a few of the frames are here; reading a list opens no image.
    source = open_source(f"kitti:{REAL / 'kitti'}")
    lists = REAL / "kitti" / "splits"
    for part, count in (("train", 23158), ("test", 697)):
        assert len(source.samples(str(lists / f"kitti_eigen_{part}.txt"))) == count


@pytest.fixture
def repository(tmp_path):
    """A copy of code and recipes as a DVC repository; gives its folder and a function that runs dvc in it."""
    pytest.importorskip("dvc")
    for folder in ("pipeline", "scenes", "stages", "recipes", "experiments"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("GIT_", "DVC_"))}
    environment |= {
        "DVC_NO_ANALYTICS": "1",
        "PYTHONPATH": str(tmp_path),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }

    def dvc(*words):
        command = [sys.executable, "-m", "dvc", *words]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    dvc("init", "--no-scm", "-q")
    return tmp_path, dvc


@pytest.mark.realdata
@pytest.mark.slow
def test_one_command_makes_the_kitti_table(repository):
    folder, dvc = repository
    (folder / "data").mkdir()
    (folder / "data" / "kitti").symlink_to(REAL / "kitti")
    path = folder / "recipes/kitti/params.yaml"
    params = yaml.safe_load(path.read_text())
    # Small enough for a test: the sample lists, a quarter of the size, the small student, one epoch.
    params["teacher"] |= {
        "teacher": "predictions:data/kitti/teacher_png16",
        "view": "kb,resize:88x304",
        "bins": "linear:32:0.001:80",
        "sigma-m": 2,
    }
    for name, flags in params["splits"].items():
        flags["split"] = f"data/kitti/splits/sample_{name}.txt"
    params["measure"]["split"] = "data/kitti/splits/sample_test.txt"
    study = params["studies"]["kitti"]
    study["train"] |= {
        "split": "data/kitti/splits/sample_train.txt",
        "student": "lean",
        "epochs": 1,
        "batch-size": 8,
        "crop": "88x176",
        "skip-rows": 28,
    }
    del study["train"]["encoder-weights"]
    study["evaluate"]["split"] = "data/kitti/splits/sample_test.txt"
    study["runs"] = {name: study["runs"][name] for name in ("tiekd", "ssim+si", "truth-si")}
    study["tables"] = {"losses": {"first": "tiekd", "runs": ["ssim+si", "truth-si"]}}
    path.write_text(yaml.safe_dump(params, sort_keys=False))
    shown = dvc("repro", "recipes/kitti/dvc.yaml")
    assert "| `ssim+si` |" in shown
    found = json.loads((folder / "data/recipes/kitti/runs/results.json").read_text())
    assert found["frames"] == 20
    assert found["protocol"]["name"] == "kitti_eigen_garg80"
    # The teacher's figure of ../shared/data/README.md is 0.0633 at full size.
    assert found["teachers"]["teacher"]["abs_rel"] == pytest.approx(0.0633, abs=0.005)
    assert set(found["runs"]) == {"tiekd", "ssim+si", "truth-si"}
    assert all(0 < run["abs_rel_to_teacher"] < 20 for run in found["runs"].values())
    assert "up to date" in dvc("repro", "recipes/kitti/dvc.yaml")


@pytest.mark.slow
def test_one_command_trains_and_measures_the_students_of_the_experiments(repository):
    folder, dvc = repository
    shutil.rmtree(folder / "experiments/results")
    path = folder / "experiments/params.yaml"
    params = yaml.safe_load(path.read_text())
    for world in ("street", "fog", "rooms"):
        params["scenes"][world] |= {"count": 8, "size": "32x48", "test-share": 0.5}
        params["teachers"][f"{world}-learned"]["flags"] |= {"student": "lean", "epochs": 1, "batch-size": 2}
        params["worlds"][world]["train"]["epochs"] = 1
    del (
        params["students"]["truth-si"],
        params["students"]["gaussian-geometric"],
        params["students"]["ssim+si-geometric"],
    )
    params["train"]["batch-size"] = 2
    params["seeds"] = [0]
    path.write_text(yaml.safe_dump(params, sort_keys=False))
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    subprocess.run(["git", "add", "pipeline"], cwd=folder, check=True)
    person = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", *person, "commit", "-qm", "code"], cwd=folder, check=True)
    dvc("repro", "experiments/dvc.yaml:students")
    for world in ("street", "fog", "rooms"):
        for student in params["students"]:
            found = json.loads((folder / f"experiments/results/{world}/{student}.json").read_text())["seeds"]["0"]
            readout = "geometric" if student in {"gaussian", "tiekd-geometric"} else "mean"
            assert next(iter(found["readouts"])) == readout
            assert len(found["readouts"][readout]["frames"]["scaled_abs_rel"]) == 4
            assert ("shifted" in found["readouts"][readout]) == (world != "rooms")
            assert 0 <= found["secondary"]["ece"] <= 1
    kept = folder / "experiments/results/fog/tiekd.json"
    before = kept.read_bytes()
    (folder / "experiments/results/street/tiekd.json").unlink()
    shutil.rmtree(folder / "data/experiments/runs")
    dvc("repro", "experiments/dvc.yaml:students")
    assert kept.read_bytes() == before  # goes on with what is missing
    assert [path.name for path in (folder / "data/experiments/runs").glob("*/*-0")] == ["tiekd-0"]
