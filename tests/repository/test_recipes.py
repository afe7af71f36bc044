"""The recipes make their tables with one command, here on a few frames for one epoch."""

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
STUDIES += [("experiments/params.yaml", name) for name in ("street", "rooms", "indoor", "kitti")]


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
def test_one_command_makes_a_table_of_the_experiments(repository):
    folder, dvc = repository
    path = folder / "experiments/params.yaml"
    params = yaml.safe_load(path.read_text())
    params["scenes"]["rooms"] |= {"count": 8, "size": "32x48", "test-share": 0.5}
    params["teachers"]["rooms-learned"]["flags"] |= {"student": "lean", "epochs": 1, "batch-size": 2}
    study = params["studies"]["rooms"]
    study["train"] |= {"epochs": 1, "batch-size": 2}
    study["seeds"], study["block"] = [0, 1], 1
    study["runs"] = {name: study["runs"][name] for name in ("tiekd", "centred-0.5", "regression-ssim+si")}
    study["tables"] = {"losses": {"first": "tiekd", "runs": ["centred-0.5", "regression-ssim+si"]}}
    path.write_text(yaml.safe_dump(params, sort_keys=False))
    shown = dvc("repro", "experiments/dvc.yaml:study@rooms")
    written = (folder / "experiments/results/rooms.md").read_text()
    assert written in shown
    assert [line.split("|")[1].strip() for line in written.splitlines() if line.startswith("| ")][1:] == [
        "---",
        "*learned*",
        "`tiekd`",
        "`centred-0.5`",
        "`regression-ssim+si`",
    ]
