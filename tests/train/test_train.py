"""Stage two: it learns, resumes to the same weights, and needs no teacher."""

import csv
import json
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import fakes
import numpy as np
import pytest
import torch
from tiny_stores import folder_bytes
from torch import nn

from pipeline.common.device import choose_device
from pipeline.common.fileio import sha256_file
from pipeline.losses.base import DepthLoss
from pipeline.networks.predict import predict_depth_m, validate
from pipeline.networks.reader import Reader
from pipeline.networks.registry import build_student
from pipeline.networks.saved_run import load_run, normalize
from pipeline.sources.view import View
from pipeline.store import open_store
from pipeline.train.config import Recipe
from pipeline.train.optimizer import Optimizer
from pipeline.train.options import TrainOptions
from pipeline.train.run import Interrupted, Validation, train_network

CPU = torch.device("cpu")
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


def test_images_per_second_count_a_smaller_split(tmp_path, scenes, teacher_store):
    settings = options(epochs=8, batch_size=60)  # of 6 images
    metrics = train_network(scenes, "train", tmp_path / "run", settings, store=open_store(teacher_store))
    assert metrics["images_per_second"] * metrics["seconds"] == pytest.approx(8 * 6, rel=0.05)


@pytest.mark.slow
def test_a_student_learns_the_teacher_from_its_store(tmp_path, scenes, teacher_store):
    validation = Validation(scenes, "test")
    settings = options(epochs=40, batch_size=6, learning_rate=1e-2, colour=False)
    train_network(scenes, "train", tmp_path / "run", settings, store=open_store(teacher_store), validation=validation)
    epochs = rows(tmp_path / "run" / "epochs.csv")
    assert float(epochs[-1]["train_loss"]) < 0.4 * float(epochs[0]["train_loss"])
    assert float(epochs[-1]["val_abs_rel"]) < 0.15 < float(epochs[0]["val_abs_rel"])


@pytest.mark.parametrize("step", [1, 3, 5])
@pytest.mark.parametrize("workers", [0, 2])
def test_interrupted_training_gives_the_same_weights_and_losses(tmp_path, scenes, teacher_store, step, workers):
    store = open_store(teacher_store)
    validation = Validation(scenes, "test")
    settings = options(rotate_deg=2.0, ema=0.9, accumulate=2)
    train_network(scenes, "train", tmp_path / "whole", settings, store=store, validation=validation)
    out = tmp_path / "run"
    with pytest.raises(Interrupted, match=f"stopped at step {step} of 6; run the same command again"):
        train_network(
            scenes,
            "train",
            out,
            settings,
            store=store,
            validation=validation,
            workers=workers,
            progress=fakes.StopAt(step),
        )
    assert not out.exists()
    again = fakes.StopAt(None)
    train_network(scenes, "train", out, settings, store=store, validation=validation, workers=workers, progress=again)
    assert again.said.startswith(f"resuming from step {step} of 6")
    whole, resumed = folder_bytes(tmp_path / "whole"), folder_bytes(out)
    for name in ("student.safetensors", "steps.csv", "epochs.csv", "config.json"):
        assert resumed[name] == whole[name], name


def test_float16_resumes_with_its_loss_scale(tmp_path, scenes, teacher_store, monkeypatch):
    # Overflows in the first steps, and is halved each time
    monkeypatch.setattr("pipeline.train.optimizer.INITIAL_LOSS_SCALE", 2.0**20)
    store = open_store(teacher_store)
    settings = options(precision="float16", epochs=5)
    train_network(scenes, "train", tmp_path / "whole", settings, store=store)
    out = tmp_path / "run"
    with pytest.raises(Interrupted):
        train_network(scenes, "train", out, settings, store=store, progress=fakes.StopAt(3))
    (partial,) = tmp_path.glob(".run.*.partial")
    scale = torch.load(partial / "checkpoint.pt", weights_only=True)["scaler"]["scale"]
    assert 2.0**10 < scale < 2.0**20
    train_network(scenes, "train", out, settings, store=store)
    assert folder_bytes(out)["student.safetensors"] == folder_bytes(tmp_path / "whole")["student.safetensors"]
    assert float(rows(out / "epochs.csv")[-1]["train_loss"]) < 0.9 * float(rows(out / "epochs.csv")[0]["train_loss"])


KILLED = """
import sys
from pathlib import Path
import pipeline.train.run
from pipeline.train.options import TrainOptions
from pipeline.sources.registry import open_source
from pipeline.store import open_store

root, workers = Path(sys.argv[1]), int(sys.argv[2])
class Printing:
    def task(self, *_, **__): return self
    def note(self, text): pass
    def __enter__(self): return self
    def __exit__(self, *_): pass
    def update(self, *_, **__): print("step", flush=True)
source, store = open_source(f"scenes:{root / 'scenes'}"), open_store(root / "teacher.zarr")
options = TrainOptions(**eval(sys.argv[3]))
pipeline.train.run.train_network(
    source, "all", root / "killed", options, store=store, workers=workers, checkpoint_every_s=0.03, progress=Printing()
)
"""


@pytest.mark.parametrize(
    ("kernel", "loss", "message"),
    [
        (
            "triton",
            "tiekd",
            "(`loss_kernel=triton` needs a CUDA device, got cpu|kernel 'triton': the package triton is not installed)",
        ),
        ("cuda", "tiekd", "`loss_kernel=cuda`: expected one of blocks, triton"),
    ],
)
def test_a_kernel_that_cannot_run_is_refused_at_the_start(tmp_path, scenes, teacher_store, kernel, loss, message):
    with pytest.raises(ValueError, match=message):
        train_network(
            scenes, "train", tmp_path / "run", options(loss=loss), store=open_store(teacher_store), loss_kernel=kernel
        )
    assert not list(tmp_path.glob(".run*"))


@pytest.mark.parametrize("loss", ["tiekd-released", "truth-nll"])
def test_a_loss_without_a_triton_kernel_is_refused(tmp_path, scenes, teacher_store, monkeypatch, loss):
    monkeypatch.setattr("pipeline.losses.blockwise.check_kernel", lambda *_: None)  # as on a GPU
    with pytest.raises(ValueError, match="`loss_kernel=triton`: this loss only has `loss_kernel=blocks`"):
        train_network(
            scenes, "train", tmp_path / "run", options(loss=loss), store=open_store(teacher_store), loss_kernel="triton"
        )


@pytest.mark.parametrize("workers", [0, 1])
def test_a_changed_image_is_one_clear_error_with_and_without_workers(tmp_path, scenes, teacher_store, workers):
    sample = scenes.samples("train")[3]
    Path(sample.image_path).write_bytes(Path(scenes.samples("test")[0].image_path).read_bytes())
    with pytest.raises(ValueError, match="is not the image that the teacher saw") as raised:
        train_network(scenes, "train", tmp_path / "run", options(), store=open_store(teacher_store), workers=workers)
    assert str(raised.value).startswith(sample.image_path)
    assert "\n" not in str(raised.value)


@pytest.mark.slow
@pytest.mark.usefixtures("teacher_store")
def test_a_run_killed_repeatedly_ends_like_an_uninterrupted_one(tmp_path, scenes):
    settings = {"student": "lean", "epochs": 12, "batch_size": 4, "accumulate": 2, "ema": 0.95, "rotate_deg": 2.0}
    store = open_store(tmp_path / "teacher.zarr")
    train_network(scenes, "all", tmp_path / "whole", TrainOptions(**settings), store=store)
    random = np.random.default_rng()
    for kill in (1, 2, 3, None):
        command = [sys.executable, "-c", KILLED, str(tmp_path), str((kill or 0) % 3), repr(settings)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            if kill:
                for _ in range(random.integers(1, 7)):
                    process.stdout.readline()
                time.sleep(random.uniform(0, 0.03))
                process.kill()
            else:
                process.communicate()
        assert process.returncode == (-signal.SIGKILL if kill else 0)
        assert (tmp_path / "killed").exists() is not bool(kill)
    whole, killed = folder_bytes(tmp_path / "whole"), folder_bytes(tmp_path / "killed")
    for name in ("student.safetensors", "steps.csv", "epochs.csv", "config.json"):
        assert killed[name] == whole[name], name


def test_parts_of_a_batch_add_up_to_the_gradient_of_the_whole():
    images, target = torch.rand(6, 3, 5, 7, dtype=torch.float64), torch.rand(6, 4, 5, 7, dtype=torch.float64)
    result = []
    for parts in (1, 3):
        torch.manual_seed(0)
        network = nn.Conv2d(3, 4, 1).double()
        optimizer = Optimizer(network, OPTIONS, 10, torch.device("cpu"))
        optimizer.zero_grad()
        for image, expected in zip(images.chunk(parts), target.chunk(parts), strict=True):
            with optimizer.autocast():
                loss = (network(image) - expected).square().mean()
            optimizer.backward(loss / parts)
        norm = optimizer.clip_gradients()
        result.append([norm, *(part.grad for part in network.parameters())])
    for one, other in zip(*result, strict=True):
        assert torch.allclose(one, other, rtol=1e-12, atol=0)


def test_the_loss_of_a_step_is_the_mean_of_its_parts(tmp_path, scenes, teacher_store, monkeypatch):
    given, backward = [], Optimizer.backward
    monkeypatch.setattr(
        Optimizer, "backward", lambda self, loss: given.append(float(loss.detach())) or backward(self, loss)
    )
    settings = options(batch_size=6, accumulate=3)
    train_network(scenes, "train", tmp_path / "run", settings, store=open_store(teacher_store))
    logged = [float(row["loss"]) for row in rows(tmp_path / "run" / "steps.csv")]
    assert logged == pytest.approx([sum(given[:3]), sum(given[3:])])


def test_the_average_of_the_weights_is_what_is_validated_and_saved(tmp_path, scenes, teacher_store):
    store, validation = open_store(teacher_store), Validation(scenes, "test")
    runs = {}
    for decay in (0.0, 0.9):
        out = tmp_path / f"{decay}"
        train_network(scenes, "train", out, options(ema=decay), store=store, validation=validation)
        runs[decay] = out
    assert rows(runs[0.9] / "steps.csv") == rows(runs[0.0] / "steps.csv")
    plain, averaged = (rows(run / "epochs.csv")[-1] for run in runs.values())
    assert plain["train_loss"] == averaged["train_loss"]
    assert plain["val_abs_rel"] != averaged["val_abs_rel"]
    result = validate(
        load_run(runs[0.9]).network, Reader(torch.linspace(0, fakes.BLACK_M, 17)), scenes, "test", View(), 32, CPU
    )
    assert result["abs_rel"] == pytest.approx(float(averaged["val_abs_rel"]), rel=1e-4)


def test_the_average_is_that_of_all_weights_with_a_decay_that_grows():
    network = nn.BatchNorm2d(1)
    optimizer = Optimizer(network, options(ema=0.25, weight_decay=0.0), 10, CPU)
    expected = None
    for step in range(5):
        optimizer.zero_grad()
        optimizer.backward(network(torch.randn(2, 1, 3, 3)).square().mean() + network.weight.sum())
        optimizer.clip_gradients()
        optimizer.step()
        now = torch.cat([network.weight.detach(), network.running_mean])
        decay = min(0.25, (1 + step) / (10 + step))
        expected = now if expected is None else decay * expected + (1 - decay) * now
        average = optimizer.average.module
        assert torch.allclose(torch.cat([average.weight, average.running_mean]), expected)


def test_encoder_weights_are_loaded_and_identified_by_content(tmp_path, scenes, teacher_store):
    store = open_store(teacher_store)
    torch.manual_seed(7)
    files = [tmp_path / "a.pth", tmp_path / "b" / "c.pth"]
    files[1].parent.mkdir()
    for file in files:
        torch.save(build_student("mobilenetv2-lean", 4).encoder.state_dict(), file)
    settings = [options(student="mobilenetv2-lean", encoder_weights=file, epochs=1) for file in files]
    samples = scenes.samples("train")
    first, other = (Recipe.make(one, scenes, samples, store, None) for one in settings)
    assert first.encoder_sha256 == sha256_file(files[0])
    assert first.digest() != other.digest()
    files[1].write_bytes(files[0].read_bytes())
    assert Recipe.make(settings[1], scenes, samples, store, None).digest() == first.digest()
    assert str(tmp_path) not in str(first.as_json())
    slow = replace(settings[0], learning_rate=1e-12, weight_decay=0.0)
    train_network(scenes, "train", tmp_path / "run", slow, store=store)
    name = "features.0.0.weight"
    expected = torch.load(files[0], weights_only=True)[name]
    assert torch.allclose(load_run(tmp_path / "run").network.encoder.state_dict()[name], expected, atol=1e-9)


def test_a_regression_trains_as_two_bins(tmp_path, scenes, teacher_store):
    train_network(
        scenes, "train", tmp_path / "run", options(head="depth", loss="ssim+si"), store=open_store(teacher_store)
    )
    run = load_run(tmp_path / "run")
    assert run.config["head"] == "depth"
    assert run.bin_edges_m == pytest.approx([-6, 6, 18])
    images = torch.rand(1, 3, 32, 64)
    logits = run.network(images)
    assert logits.shape[1] == 2
    depth_m = predict_depth_m(run.network, images, Reader(torch.tensor([-6.0, 6, 18])), flip_average=False)
    logits = run.network(normalize(images))
    expected_m = torch.nn.functional.interpolate(
        12 * torch.sigmoid(logits[:, 1:] - logits[:, :1]), (32, 64), mode="bilinear"
    )
    assert torch.allclose(depth_m, expected_m[:, 0], atol=1e-5)


def test_targets_of_a_regression_are_clamped_to_its_range(scenes, teacher_store):
    settings = options(head="depth", loss="mse")
    loss = Recipe.make(settings, scenes, scenes.samples("train"), open_store(teacher_store), None).build_loss()
    far = torch.tensor([-30.0, 30]).view(1, 2, 1, 1).expand(1, 2, 4, 4)
    assert float(loss(far, torch.full((1, 1, 4, 4), 17.0))) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("changes", "bins", "sigma_m", "sigma_bins"),
    [
        ({}, 16, 0.5, None),
        ({"maps": "from-depth", "sigma_bins": 2.0}, 16, 0.5, 2.0),
        ({"maps": "from-depth", "bins": "linear:24:0:12", "sigma_bins": 1.0}, 24, 0.5, 1.0),
        ({"maps": "from-depth", "bins": "log:3:1:8", "sigma_m": 0.25}, 3, 0.25, None),
        ({"loss": "ssim", "bins": "nyu"}, 49, 0.5, None),
        ({"loss": "truth-si", "bins": "nyu"}, 49, 0.5, None),
    ],
)
def test_bins_and_width_are_options_for_maps_made_from_depth(scenes, teacher_store, changes, bins, sigma_m, sigma_bins):
    recipe = Recipe.make(options(**changes), scenes, scenes.samples("train"), open_store(teacher_store), None)
    assert len(recipe.bin_edges_m) == bins + 1
    assert recipe.sigma_m == pytest.approx(sigma_m)
    if recipe.options.loss_name == "tiekd":
        assert recipe.build_loss().sigma_bins == sigma_bins


@pytest.mark.parametrize("centred", [True, False])
def test_the_loss_has_the_option_centered(scenes, teacher_store, centred):
    settings = options(maps="from-depth", centred=centred)
    made = Recipe.make(settings, scenes, scenes.samples("train"), open_store(teacher_store), None)
    assert made.as_json()["centred"] is made.build_loss().centered is centred


def test_a_run_of_an_older_version_loads(tmp_path, scenes, teacher_store):
    out = tmp_path / "run"
    train_network(scenes, "train", out, options(epochs=1), store=open_store(teacher_store))
    config = json.loads((out / "config.json").read_text())
    old = {name: config[name] for name in ("student", "bin_edges_m", "loss", "store", "view")}
    (out / "config.json").write_text(json.dumps(old))
    assert load_run(out).config == old


def test_a_run_of_other_settings_is_not_resumed(tmp_path, scenes, teacher_store):
    store = open_store(teacher_store)
    with pytest.raises(Interrupted):
        train_network(scenes, "train", tmp_path / "run", OPTIONS, store=store, progress=fakes.StopAt(2))
    fresh = fakes.StopAt(None)
    train_network(scenes, "train", tmp_path / "run", options(weight=0.5), store=store, progress=fresh)
    assert fresh.done == 6
    assert "is unfinished work with other settings (weight: 0.1 there, 0.5 here)" in fresh.said


def test_a_finished_run_is_not_overwritten(tmp_path, scenes, teacher_store):
    (tmp_path / "run").mkdir()
    with pytest.raises(ValueError, match="run already exists; .*choose another `out`"):
        train_network(scenes, "train", tmp_path / "run", OPTIONS, store=open_store(teacher_store))


def test_a_loss_that_is_not_finite_stops_training(tmp_path, scenes, teacher_store):
    with pytest.raises(ValueError, match=r"the loss is (nan|inf) at step \d \(samples 00.*lower `learning_rate`"):
        settings = options(learning_rate=1e30, epochs=4)
        train_network(scenes, "train", tmp_path / "run", settings, store=open_store(teacher_store))


class BreakGradient(torch.autograd.Function):
    """Leaves the loss, and makes its gradient infinite."""

    @staticmethod
    def forward(ctx, value):  # noqa: ARG004 - autograd's shape
        return value.clone()

    @staticmethod
    def backward(ctx, gradient):  # noqa: ARG004 - as above
        return gradient * torch.inf


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_a_gradient_that_is_not_finite_is_refused_and_the_checkpoint_is_kept(
    tmp_path, scenes, teacher_store, monkeypatch, precision
):
    store, settings = open_store(teacher_store), options(precision=precision, epochs=7)
    train_network(scenes, "train", tmp_path / "whole", settings, store=store)
    with pytest.raises(Interrupted):
        train_network(scenes, "train", tmp_path / "run", settings, store=store, progress=fakes.StopAt(2))
    with monkeypatch.context() as broken:
        terms = DepthLoss.terms
        broken.setattr(DepthLoss, "terms", lambda *given: {"loss": BreakGradient.apply(terms(*given)["loss"])})
        # float16 first lowers its scale, from 65536 to below 1
        step = "2" if precision == "float32" else r"1\d"
        ids = "0000.., 0000.."
        match = (
            rf"gradient norm is (inf|nan) at step {step} \(samples {ids}\): lower `learning_rate`.*checkpoint is kept"
        )
        with pytest.raises(ValueError, match=match):
            train_network(scenes, "train", tmp_path / "run", settings, store=store)
    again = fakes.StopAt(None)
    train_network(scenes, "train", tmp_path / "run", settings, store=store, progress=again)
    assert again.said.startswith("resuming from step 2")
    assert (
        folder_bytes(tmp_path / "run")["student.safetensors"] == folder_bytes(tmp_path / "whole")["student.safetensors"]
    )


def test_weights_that_are_not_finite_are_not_saved(tmp_path, scenes, teacher_store):
    class Spoil(fakes.StopAt):
        def update(self, done=1, **facts):
            super().update(done, **facts)
            if self.done == 4:
                frame = sys._getframe(1)
                next(frame.f_locals["self"].network.parameters()).data.fill_(torch.inf)
                signal.raise_signal(signal.SIGINT)

    store = open_store(teacher_store)
    with pytest.raises(Interrupted):
        train_network(scenes, "train", tmp_path / "run", OPTIONS, store=store, progress=fakes.StopAt(2))
    with pytest.raises(ValueError, match=r"stem.0.weight is not finite at step 3 \(samples 0000"):
        train_network(scenes, "train", tmp_path / "run", OPTIONS, store=store, progress=Spoil(None))
    again = fakes.StopAt(None)
    train_network(scenes, "train", tmp_path / "run", OPTIONS, store=store, progress=again)
    assert again.said.startswith("resuming from step 2")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"student": "vgg"}, "student 'vgg': expected one of mobilenetv2"),
        ({"loss": "l1"}, "loss 'l1': expected one of tiekd"),
        ({"epochs": 0}, "`epochs=0`: expected at least 1"),
        ({"crop_px": (64, 64)}, "`crop_px=64x64` is larger than the view of 32x64 px"),
        ({"maps": "stored", "loss": "si"}, "`loss=si` does not use maps"),
        ({"bins": "nyu"}, "`bins=nyu` does not apply to the stored maps of .*; add `maps=from-depth`"),
        ({"sigma_bins": 1.0}, "`sigma_bins` does not apply to the stored maps of .*; add `maps=from-depth`"),
        ({"centred": True}, "`centred` does not apply to the stored maps of .*; add `maps=from-depth`"),
        ({"view": "kb"}, "`view` cannot be combined with `store`"),
        ({"precision": "int8"}, "`precision='int8'`: expected auto, float32, bfloat16, float16"),
        ({"accumulate": 0}, "`accumulate=0`: expected at least 1"),
        ({"batch_size": 4, "accumulate": 3}, "`batch_size=4` must be a multiple of `accumulate=3`"),
        ({"batch_size": 8, "accumulate": 2}, "`batch_size=8` is more than the 6 samples of the split"),
        ({"ema": 1.0}, r"`ema=1.0`: expected 0 \(none\) to less than 1"),
        ({"sigma_m": 0.5, "sigma_bins": 1.0}, "`sigma_m` and `sigma_bins` are mutually exclusive"),
        ({"sigma_bins": -1.0}, "`sigma_bins=-1.0`: expected a finite number above 0"),
        ({"head": "both"}, "`head='both'`: expected one of dpm, depth"),
        ({"head": "depth"}, "`loss=tiekd` compares maps, and `head=depth` predicts none"),
        ({"head": "depth", "loss": "truth-nll"}, "`loss=truth-nll` compares maps, and `head=depth` predicts none"),
        ({"encoder_weights": Path("/no/such.pth")}, "`encoder_weights=/no/such.pth`: no such file"),
        ({"encoder_weights": Path(__file__)}, "student 'lean' has no pretrained encoder"),
    ],
)
def test_invalid_options_are_refused(tmp_path, scenes, teacher_store, changes, match):
    with pytest.raises(ValueError, match=match):
        train_network(scenes, "train", tmp_path / "run", options(**changes), store=open_store(teacher_store))


def test_a_missing_device_is_refused(tmp_path, scenes, teacher_store):
    if torch.cuda.device_count() > 7:
        pytest.skip("this machine has it")
    with pytest.raises(ValueError, match=r"`device=cuda:7`: this machine has \d CUDA devices; use `device=auto`"):
        train_network(scenes, "train", tmp_path / "r", OPTIONS, store=open_store(teacher_store), device="cuda:7")


def test_each_rank_has_its_own_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [choose_device(name, 1) for name in ("auto", "cuda", "cpu")] == [torch.device("cuda:1")] * 2 + [CPU]
    with pytest.raises(ValueError, match="`device=cuda:2`: this machine has 2 CUDA devices"):
        choose_device("auto", 2)
    with pytest.raises(ValueError, match="`device=cuda:0`: each process needs its own GPU"):
        choose_device("cuda:0", 1)


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


def test_training_imports_no_teacher(tmp_path, scenes, teacher_store):
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


def test_ctrl_c_leaves_a_checkpoint_and_a_hint_to_resume(tmp_path, scenes, teacher_store):
    command = [str(Path(sys.executable).with_name("pipeline")), "train-student", "--source", f"scenes:{scenes.root}"]
    command += ["--split", "train", "--store", str(teacher_store), "--student", "lean", "--epochs", "400"]
    command += ["--batch-size", "2", "--out", str(tmp_path / "run")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        partial = None
        while partial is None:
            partial = next(tmp_path.glob(".run.*.partial/config.json"), None)
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        stderr = process.stderr.read()
    assert process.returncode == 130
    assert "run the same command again to resume" in stderr
    assert "Traceback" not in stderr
    assert (partial.parent / "checkpoint.pt").exists()


def test_a_run_holds_no_path_of_the_machine(tmp_path, scenes, teacher_store):
    train_network(scenes, "train", tmp_path / "run", OPTIONS, store=open_store(teacher_store))
    config = (tmp_path / "run" / "config.json").read_text()
    assert str(tmp_path) not in config
    assert json.loads(config)["store"]["teacher"]["name"] == "fake-dpm"


def test_training_runs_outside_the_main_thread(tmp_path, scenes, teacher_store):
    thread = threading.Thread(
        target=train_network,
        args=(scenes, "train", tmp_path / "run", OPTIONS),
        kwargs={"store": open_store(teacher_store)},
    )
    thread.start()
    thread.join()
    assert (tmp_path / "run").exists()
