"""Stage two: it learns, it resumes to the same weights, and it never sees the teacher."""

import csv
import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import fakes
import numpy as np
import pytest
import torch
from conftest import folder_bytes

from pipeline.recipe import TrainOptions
from pipeline.store import open_store
from pipeline.students.run import load_run
from pipeline.train import Interrupted, Validation, train_network

OPTIONS = TrainOptions(student="lean", epochs=2, batch_size=2, learning_rate=3e-3, seed=1)


def options(**changes):
    return TrainOptions(**{**OPTIONS.__dict__, **changes})


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("loss", ["tiekd", "tiekd-released", "ssim+si", "si", "truth-si", "truth-nll"])
def test_every_loss_trains_from_a_store(tmp_path, scenes, teacher_store, loss):
    out = tmp_path / "run"
    metrics = train_network(scenes, "train", out, options(loss=loss), store=open_store(teacher_store))
    assert metrics["steps"] == 6
    run = load_run(out)
    assert run.config["loss"] == loss
    assert run.config["stored_maps"] is (loss == "tiekd")
    assert run.bin_edges_m == pytest.approx(np.linspace(0, fakes.BLACK_M, 17))
    assert [row["step"] for row in rows(out / "steps.csv")] == [str(step) for step in range(6)]
    assert sorted(path.name for path in out.iterdir()) == [
        "config.json",
        "epochs.csv",
        "metrics.json",
        "steps.csv",
        "student.safetensors",
    ]


@pytest.mark.slow
def test_a_student_learns_the_teacher_from_its_store(tmp_path, scenes, teacher_store):
    validation = Validation(scenes, "test")
    chosen = options(epochs=40, batch_size=6, learning_rate=1e-2, colour=False)
    train_network(scenes, "train", tmp_path / "run", chosen, store=open_store(teacher_store), validation=validation)
    epochs = rows(tmp_path / "run" / "epochs.csv")
    assert float(epochs[-1]["train_loss"]) < 0.4 * float(epochs[0]["train_loss"])
    assert float(epochs[-1]["val_abs_rel"]) < 0.15 < float(epochs[0]["val_abs_rel"])


class StopAt:
    """Progress that sends Ctrl-C to this process at a step."""

    def __init__(self, step):
        self.step = step

    def task(self, title, total, unit, done=0):
        self.done = done
        return self

    def note(self, text):
        self.said = text

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def update(self, done=1, **facts):
        self.done += done
        if self.done == self.step:
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("step", [1, 3, 5])
@pytest.mark.parametrize("workers", [0, 2])
def test_interrupted_training_comes_to_the_same_weights_and_losses(tmp_path, scenes, teacher_store, step, workers):
    store = open_store(teacher_store)
    validation = Validation(scenes, "test")
    chosen = options(rotate_deg=2.0)
    train_network(scenes, "train", tmp_path / "whole", chosen, store=store, validation=validation)
    out = tmp_path / "run"
    with pytest.raises(Interrupted, match=f"stopped at step {step} of 6; run the same command again"):
        train_network(
            scenes, "train", out, chosen, store=store, validation=validation, workers=workers, progress=StopAt(step)
        )
    assert not out.exists()
    again = StopAt(None)
    train_network(scenes, "train", out, chosen, store=store, validation=validation, workers=workers, progress=again)
    assert again.said.startswith(f"going on from step {step} of 6")
    whole, resumed = folder_bytes(tmp_path / "whole"), folder_bytes(out)
    for name in ("student.safetensors", "steps.csv", "epochs.csv", "config.json"):
        assert resumed[name] == whole[name], name


def test_a_run_of_other_settings_is_not_resumed(tmp_path, scenes, teacher_store):
    store = open_store(teacher_store)
    with pytest.raises(Interrupted):
        train_network(scenes, "train", tmp_path / "run", OPTIONS, store=store, progress=StopAt(2))
    fresh = StopAt(None)
    train_network(scenes, "train", tmp_path / "run", options(weight=0.5), store=store, progress=fresh)
    assert fresh.done == 6
    assert not hasattr(fresh, "said")


def test_a_finished_run_is_never_written_over(tmp_path, scenes, teacher_store):
    (tmp_path / "run").mkdir()
    with pytest.raises(ValueError, match="run exists: .*choose another --out"):
        train_network(scenes, "train", tmp_path / "run", OPTIONS, store=open_store(teacher_store))


def test_training_that_explodes_stops_at_once_and_says_so(tmp_path, scenes, teacher_store):
    with pytest.raises(ValueError, match=r"the loss is (nan|inf) at step \d: lower --learning-rate"):
        chosen = options(learning_rate=1e30, epochs=4)
        train_network(scenes, "train", tmp_path / "run", chosen, store=open_store(teacher_store))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"student": "vgg"}, "student 'vgg': expected one of mobilenetv2"),
        ({"loss": "l1"}, "loss 'l1': expected one of tiekd"),
        ({"epochs": 0}, "--epochs 0: expected at least 1"),
        ({"crop_px": (64, 64)}, "--crop 64x64 px is larger than the view, 32x64 px"),
        ({"maps": "stored", "loss": "si"}, "this loss has no use for a map"),
        ({"bins": "nyu"}, "--bins and --view are the store's"),
        ({"precision": "int8"}, "--precision int8: expected auto"),
    ],
)
def test_settings_that_cannot_be_are_told(tmp_path, scenes, teacher_store, changes, match):
    with pytest.raises(ValueError, match=match):
        train_network(scenes, "train", tmp_path / "run", options(**changes), store=open_store(teacher_store))


def test_a_device_that_is_not_there_is_told(tmp_path, scenes, teacher_store):
    if torch.cuda.device_count() > 7:
        pytest.skip("this machine has it")
    with pytest.raises(ValueError, match=r"--device cuda:7: this machine has \d CUDA devices; use --device auto"):
        train_network(scenes, "train", tmp_path / "r", OPTIONS, store=open_store(teacher_store), device="cuda:7")


WITHOUT_TEACHERS = """
import sys
from pathlib import Path

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"transformers", "fakes"} or name.startswith("pipeline.teachers"):
            raise ImportError(f"{name} is not here")

sys.meta_path.insert(0, Refuse())
from pipeline.cli.main import main
try:
    main(sys.argv[1:])
finally:
    loaded = [name for name in sys.modules if name.startswith(("pipeline.teachers", "transformers", "onnxruntime"))]
    assert not loaded, loaded
"""


def test_a_student_trains_where_no_teacher_can_be_imported(tmp_path, scenes, teacher_store):
    arguments = ["--source", f"scenes:{scenes.root}", "--split", "train", "--store", str(teacher_store)]
    arguments += ["--student", "lean", "--epochs", "1", "--batch-size", "2", "--out", str(tmp_path / "run")]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TEACHERS, "train-student", *arguments],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "assert" not in done.stderr
    assert (tmp_path / "run" / "student.safetensors").exists()


def test_ctrl_c_on_the_command_goes_on_with_the_same_command(tmp_path, scenes, teacher_store):
    command = [str(Path(sys.executable).with_name("pipeline")), "train-student", "--source", f"scenes:{scenes.root}"]
    command += ["--split", "train", "--store", str(teacher_store), "--student", "lean", "--epochs", "400"]
    command += ["--batch-size", "2", "--out", str(tmp_path / "run")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        partial = None
        while partial is None:
            partial = next(tmp_path.glob(".run.*.partial/config.json"), None)
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        said = process.stderr.read()
    assert process.returncode == 130
    assert "run the same command again to go on" in said
    assert "Traceback" not in said
    assert (partial.parent / "checkpoint.pt").exists()


def test_a_run_says_nothing_of_the_machine(tmp_path, scenes, teacher_store):
    train_network(scenes, "train", tmp_path / "run", OPTIONS, store=open_store(teacher_store))
    config = (tmp_path / "run" / "config.json").read_text()
    assert str(tmp_path) not in config
    assert json.loads(config)["store"]["teacher"]["name"] == "fake-dpm"


def test_the_stop_flag_is_left_alone_outside_the_main_thread(tmp_path, scenes, teacher_store):
    thread = threading.Thread(
        target=train_network,
        args=(scenes, "train", tmp_path / "run", OPTIONS),
        kwargs={"store": open_store(teacher_store)},
    )
    thread.start()
    thread.join()
    assert (tmp_path / "run").exists()
