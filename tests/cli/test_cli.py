"""The commands as users type them: messages, exit status, resuming."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import fakes
import numpy as np
import pytest
from click.testing import CliRunner
from tiny_stores import make_store

from pipeline.cli.flags import with_flags
from pipeline.cli.main import COMMANDS, STORE_COMMANDS, main
from pipeline.common.fileio import sha256_file

ROOT = Path(__file__).parents[2]


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def fails(match, *arguments, status=1):
    """Run a command that must fail with one message that matches, and no traceback."""
    done = run(*arguments)
    assert done.exit_code == status, done.output
    assert re.search(match, done.output), done.output
    assert "Traceback" not in done.output
    assert done.output.count("Error:") == 1
    return done


@pytest.fixture
def folder(tmp_path):
    """A plain folder of three images."""
    return fakes.make_folder(tmp_path / "folder", size_px=(32, 64))


def cache(folder, out, *more, split="train", teacher="python:fakes:factory"):
    return [
        *("cache-teacher", "--source", f"folder:{folder}", "--split", split, "--teacher", teacher, "--out", out),
        *("--bins", "nyu", "--sigma-m", "0.2", *more),
    ]


def train(folder, store, out, *more, split="train"):
    return [
        *("train-student", "--source", f"folder:{folder}", "--split", split, "--store", store, "--out", out),
        *("--student", "lean", "--epochs", "1", "--batch-size", "2", *more),
    ]


def test_commands_lead_from_images_to_metrics(tmp_path, folder):
    store, out, metrics = tmp_path / "s.zarr", tmp_path / "run", tmp_path / "m.json"
    cached = run(*cache(folder, store, split="all"))
    assert cached.exit_code == 0, cached.output
    assert "3 samples of 32x64 px" in cached.output
    trained = run(*train(folder, store, out, "--validation-split", "test"))
    assert trained.exit_code == 0, trained.output
    assert "validation AbsRel" in trained.output
    arguments = ["--source", f"folder:{folder}", "--split", "test", "--store", store, "--out", metrics]
    measured = run("evaluate-student", out, *arguments)
    assert measured.exit_code == 0, measured.output
    assert "AbsRel" in measured.output
    assert "protocol name plain" in measured.output
    assert 0 < json.loads(metrics.read_text())["metrics"]["abs_rel"] < 10
    teacher = run("evaluate-teacher", store, *arguments[:4], "--out", tmp_path / "t.json")
    assert teacher.exit_code == 0, teacher.output
    info = run("store", "info", store)
    assert "metric_m: depth along the optical axis in metres" in info.output
    assert run("store", "verify", store).output.endswith(": OK\n")


def test_every_command_and_option_has_help_and_every_command_an_example():
    for name in COMMANDS:
        command = main.get_command(None, name)
        parts = {name: command}
        if name == "store":
            parts = {f"store {sub}": command.get_command(None, sub) for sub in STORE_COMMANDS}
        for full, part in parts.items():
            assert f"Example: pipeline {full}" in part.help, full
            assert all(option.help for option in part.params if isinstance(option, click.Option)), full
    listed = run("--help").output
    assert all(name in listed for name in COMMANDS)


def test_help_takes_under_half_a_second_and_imports_nothing_heavy():
    code = (
        "import sys; from pipeline.cli.main import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'zarr', 'numpy', 'dask', 'PIL', 'transformers'} & set(sys.modules); assert not heavy, heavy"
    )
    times = []
    for _ in range(3):
        begin = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        times.append(time.perf_counter() - begin)
        assert done.returncode == 0, done.stderr
    assert min(times) < 0.5


def test_wrong_usage_exits_2(tmp_path):
    fails("Missing option '--source'", "cache-teacher", status=2)
    fails("No such command 'cash-teacher'", "cash-teacher", status=2)
    fails(
        "expected height x width in pixels, such as 128x416",
        *cache("x", tmp_path / "x"),
        "--input-size",
        "big",
        status=2,
    )


def test_a_traceback_is_shown_only_with_debug(tmp_path, folder):
    arguments = cache(folder, tmp_path / "s.zarr", split="nowhere")
    fails("nowhere", *arguments)
    done = run(*arguments, "--debug")
    assert isinstance(done.exception, ValueError)


def test_an_empty_split_is_refused(tmp_path, folder):
    (folder / "train.txt").write_text("\n# nothing\n")
    fails(r"train.txt.*(empty|no )", *cache(folder, tmp_path / "s.zarr"))


def test_a_duplicate_id_is_refused_with_both_lines(tmp_path, folder):
    (folder / "train.txt").write_text("a/0001\na/0002\na/0001\n")
    fails(r"line 3: duplicate id 'a/0001' \(first on line 1\)", *cache(folder, tmp_path / "s.zarr"))


def test_an_image_that_does_not_decode_is_named_and_finished_shards_are_kept(tmp_path, folder):
    (folder / "rgb" / "a" / "0002.png").write_bytes(b"no image")
    more = ("--batch-size", "1", "--samples-per-shard", "1")
    fails(r"a/0002.png: does not decode", *cache(folder, tmp_path / "s.zarr", *more))
    assert list(tmp_path.glob(".s.zarr.*.staging/store/depth/c/0/0/0"))


def test_a_missing_image_is_named(tmp_path, folder):
    (folder / "rgb" / "a" / "0002.png").unlink()
    fails(r"a/0002", *cache(folder, tmp_path / "s.zarr"))


def predictions(folder, name, ids=("a_0001", "a_0002"), size_px=(32, 64)):
    path = folder / name
    for number, sample_id in enumerate(ids):
        fakes.write_depth(path / f"{sample_id}.png", fakes.smooth_depth_m(size_px, number), 0.001)
    return path


def test_predictions_take_their_scale_from_a_flag_or_predictions_json(tmp_path, folder):
    path = predictions(tmp_path, "teacher")
    fails(r"metres_per_unit|--metres-per-unit", *cache(folder, tmp_path / "s.zarr", teacher=f"predictions:{path}"))
    done = run(*cache(folder, tmp_path / "a.zarr", "--metres-per-unit", "mm", teacher=f"predictions:{path}"))
    assert done.exit_code == 0, done.output
    (path / "predictions.json").write_text('{"metres_per_unit": 0.001}')
    done = run(*cache(folder, tmp_path / "b.zarr", teacher=f"predictions:{path}"))
    assert done.exit_code == 0, done.output


def test_a_prediction_of_another_size_is_refused(tmp_path, folder):
    path = predictions(tmp_path, "teacher", ids=("a_0001",))
    fakes.write_depth(path / "a_0002.png", fakes.smooth_depth_m((16, 64)), 0.001)
    more = ("--metres-per-unit", "mm", "--batch-size", "1")
    fails(r"16x64", *cache(folder, tmp_path / "s.zarr", *more, teacher=f"predictions:{path}"))


@pytest.mark.parametrize("value", [np.inf, -2.0])
def test_an_infinite_or_negative_prediction_is_refused(tmp_path, folder, value):
    path = tmp_path / "teacher"
    path.mkdir()
    for sample_id in ("a_0001", "a_0002"):
        depth_m = fakes.smooth_depth_m((32, 64))
        depth_m[3, 3] = value if sample_id == "a_0002" else 5
        np.save(path / f"{sample_id}.npy", depth_m)
    fails(r"a_0002.npy", *cache(folder, tmp_path / "s.zarr", "--metres-per-unit", "1", teacher=f"predictions:{path}"))


def test_an_existing_target_is_not_changed(tmp_path, folder):
    store = make_store(tmp_path / "s.zarr")
    before = sha256_file(store / "MANIFEST.json")
    fails(r"s.zarr already exists; .*choose another --out", *cache(folder, store))
    assert sha256_file(store / "MANIFEST.json") == before
    (tmp_path / "run").mkdir()
    run(*cache(folder, tmp_path / "t.zarr"))
    fails(r"run already exists; .*choose another --out", *train(folder, tmp_path / "t.zarr", tmp_path / "run"))


def test_a_store_that_lacks_a_sample_of_the_split_is_refused(tmp_path, folder):
    run(*cache(folder, tmp_path / "s.zarr"))
    fails(
        r"s.zarr has no sample 'b/0001' .*run `pipeline cache-teacher`",
        *train(folder, tmp_path / "s.zarr", tmp_path / "run", split="all"),
    )


def test_a_store_of_other_images_is_refused(tmp_path, folder):
    run(*cache(folder, tmp_path / "s.zarr"))
    fakes.write_image(folder / "rgb" / "a" / "0001.png", np.zeros((32, 64, 3), np.uint8))
    fails(r"0001.png is not the image that the teacher saw", *train(folder, tmp_path / "s.zarr", tmp_path / "run"))


def test_a_path_that_is_not_a_store_or_run_is_refused(tmp_path, folder):
    fails(r"is not a complete store", *train(folder, tmp_path / "nothing.zarr", tmp_path / "run"))
    arguments = ["--source", f"folder:{folder}", "--split", "test", "--out", tmp_path / "m.json"]
    fails(r"is not a complete run", "evaluate-student", tmp_path / "nothing", *arguments)


def test_a_missing_device_is_refused(tmp_path, folder):
    fails(
        r"--device cuda:63: this machine has \d+ CUDA devices",
        *cache(folder, tmp_path / "s.zarr", "--device", "cuda:63"),
    )


def test_verify_names_damage_and_exits_with_status_1(tmp_path):
    store = make_store(tmp_path / "s.zarr")
    shard = store / "depth/c/1/0/0"
    data = bytearray(shard.read_bytes())
    data[-5] ^= 1
    shard.write_bytes(data)
    done = fails(r"1 files are damaged", "store", "verify", store)
    assert "depth/c/1/0/0: sha256 differs from the manifest; samples a/003, a/004, a/005" in done.output


def test_a_folder_that_cannot_be_written_is_one_message(folder):
    done = run(*cache(folder, Path("/proc/s.zarr")))
    assert done.exit_code == 1
    assert "/proc" in done.output
    assert "Traceback" not in done.output


SLOW_TEACHER = """
import pathlib
import time

def load(device):
    class Teacher:
        card = {"kind": "python", "name": "slow", "depth_space": "metric_m"}

        def __call__(self, images):
            if pathlib.Path("slow").exists():
                time.sleep(0.2)
            return images.mean(1) * 8 + 1

    return Teacher()
"""


def test_ctrl_c_in_stage_one_keeps_finished_shards_and_the_same_command_resumes(tmp_path):
    fakes.make_folder(tmp_path / "images", ids=[f"{number:04d}" for number in range(60)], size_px=(24, 32))
    (tmp_path / "slow").touch()
    (tmp_path / "slow_teacher.py").write_text(SLOW_TEACHER)
    arguments = cache(
        "images", "s.zarr", "--batch-size", "1", "--samples-per-shard", "2", teacher="python:slow_teacher:load"
    )
    command = [str(Path(sys.executable).with_name("pipeline")), *arguments, "--split", "all"]
    # A shell ignores Ctrl-C for background processes, and these tests may run in one.
    interruptible = ["env", "--default-signal=INT", *command]
    with subprocess.Popen(interruptible, stderr=subprocess.PIPE, text=True, cwd=tmp_path) as process:
        while not list(tmp_path.glob(".s.zarr.*.staging/journal")):
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        stderr = process.stderr.read()
    assert process.returncode == 130
    assert "run the same command again to continue" in stderr
    assert "Traceback" not in stderr
    assert not (tmp_path / "s.zarr").exists()
    (tmp_path / "slow").unlink()
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    resumed = re.search(r"resuming: (\d+) of 60 samples", done.stderr)
    assert 2 <= int(resumed[1]) < 60


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"kind": "gaussian"}, "sigma 2 m, no bytes"),
        ({"kind": "sparse"}, "at most 0.01 nats away, 0.00"),
        ({"kind": "dense"}, "float16"),
        ({"kind": "gaussian", "depth_space": "affine_disparity"}, "sigma 2 of each sample's range"),
    ],
)
def test_info_describes_every_kind_of_store(tmp_path, changes, expected):
    done = run("store", "info", make_store(tmp_path / "s.zarr", **changes))
    assert done.exit_code == 0, done.output
    assert expected in done.output


def test_a_file_name_cannot_move_the_cursor(tmp_path):
    done = run("store", "info", tmp_path / "s\x1b[2Jevil.zarr")
    assert done.exit_code == 1
    assert "\x1b" not in done.output
    assert r"s\x1b[2Jevil.zarr" in done.output


def test_the_home_directory_is_expanded_after_a_colon(tmp_path, folder, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    arguments = cache(folder, "~/s.zarr")
    arguments[arguments.index(f"folder:{folder}")] = f"folder:~/{folder.relative_to(tmp_path)}"
    done = run(*arguments)
    assert done.exit_code == 0, done.output
    assert (tmp_path / "s.zarr" / "MANIFEST.json").is_file()
    assert run("store", "info", "~/s.zarr").exit_code == 0


def test_an_unexpected_error_is_reported_as_a_bug_with_its_traceback(tmp_path, folder, monkeypatch):
    def broken(*_, **__):
        return {}["nothing"]

    monkeypatch.setattr("pipeline.cache.plan.resolve_view", broken)
    monkeypatch.setattr("pipeline.cache.run.resolve_view", broken)
    done = run(*cache(folder, tmp_path / "s.zarr"))
    assert done.exit_code == 1
    assert "KeyError: 'nothing'" in done.output
    assert "Error: this is a bug in tiekd-pipeline" in done.output


def test_options_in_library_messages_become_flags():
    assert with_flags("`batch_size=0`: expected at least 1") == "--batch-size 0: expected at least 1"
    assert with_flags("leave `flip=False` out, or add `trust_code=True`") == "leave --no-flip out, or add --trust-code"
    assert with_flags("`input_size_px=56x56`, `depth_space='x'`") == "--input-size 56x56, --depth-space x"
    assert with_flags("run `pipeline store align`; `nothing` is no option") == (
        "run `pipeline store align`; `nothing` is no option"
    )
