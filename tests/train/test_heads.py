"""Heads of two outputs, and readouts, from training to evaluation."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import pipeline as tiekd
from pipeline.cli.evaluate import evaluate_student as evaluate_command
from pipeline.cli.evaluate import evaluate_teacher as evaluate_teacher_command
from pipeline.cli.predict import predict as predict_command
from pipeline.cli.report import report as report_command
from pipeline.evaluation.protocol import choose_protocol
from pipeline.evaluation.run import evaluate_student, evaluate_teacher
from pipeline.networks.saved_run import load_run
from pipeline.store import open_store
from pipeline.teachers.options import TeacherOptions
from pipeline.teachers.registry import open_teacher
from pipeline.train.options import TrainOptions
from pipeline.train.run import train_network

CPU = torch.device("cpu")
OPTIONS = {"student": "lean", "epochs": 1, "batch_size": 2, "learning_rate": 3e-3, "seed": 1}


def trained(tmp_path, scenes, store, **changes):
    out = tmp_path / "run"
    train_network(scenes, "train", out, TrainOptions(**{**OPTIONS, **changes}), store=open_store(store))
    return out


@pytest.mark.parametrize(
    ("head", "loss"), [("gaussian", "nll"), ("laplace", "nll"), ("gaussian", "nll+ssim"), ("laplace", "truth-nll+ssim")]
)
def test_a_student_of_two_outputs_trains_predicts_and_gives_a_map(tmp_path, scenes, teacher_store, head, loss):
    out = trained(tmp_path, scenes, teacher_store, head=head, loss=loss)
    run = load_run(out)
    assert (run.config["head"], run.config["readout"]) == (head, "geometric")
    assert run.network.head.weight.shape[0] == 2
    student = tiekd.load_student(out, device="cpu")
    image = scenes.samples("test")[0].image_path
    depth_m, dpm = student.predict(image), student.dpm(image)
    assert depth_m.shape == (32, 64)
    assert np.isfinite(depth_m).all()
    assert dpm.shape == (16, 16, 32)
    assert dpm.sum(axis=0) == pytest.approx(1, abs=1e-5)
    result = evaluate_student(run, scenes, "test", choose_protocol("plain", scenes), uncertainty=True)
    assert np.isfinite(result["uncertainty"]["intervals"]["map"]["nll_nats"])
    assert result["measured"]["readout"] == "geometric"


def test_the_loss_learns(tmp_path, scenes, teacher_store):
    losses = {}
    for epochs in (1, 12):
        out = tmp_path / f"run{epochs}"
        options = TrainOptions(**{**OPTIONS, "epochs": epochs, "head": "gaussian", "loss": "nll"})
        losses[epochs] = train_network(scenes, "train", out, options, store=open_store(teacher_store))["last_epoch"]
    assert losses[12]["train_loss"] < losses[1]["train_loss"] - 0.2


def test_a_student_is_a_teacher_as_it_reads_its_depth(tmp_path, scenes, teacher_store):
    out = trained(tmp_path, scenes, teacher_store, loss="tiekd", readout="geometric")
    student = tiekd.load_student(out, device="cpu")
    sample = scenes.samples("test")[0]
    image = torch.from_numpy(scenes.read_image(sample)[0]).permute(2, 0, 1)[None].float() / 255
    for readout in (None, "mean", "absrel"):
        teacher = open_teacher(f"checkpoint:{out}", device=CPU, options=TeacherOptions(readout=readout))
        depth_m = teacher.predict(image, [sample.id]).depth[0].numpy()
        expected = tiekd.load_student(out, device="cpu", readout=readout).predict(sample.image_path)
        assert np.median(np.abs(np.repeat(np.repeat(depth_m, 2, 0), 2, 1) / expected - 1)) < 0.02
        stated = teacher.card.preprocessing.get("readout")
        assert stated == {None: "geometric", "mean": None, "absrel": "absrel"}[readout]
    assert student.config["readout"] == "geometric"


def test_a_run_with_the_default_readout_is_configured_as_before(tmp_path, scenes, teacher_store):
    out = trained(tmp_path, scenes, teacher_store, loss="tiekd")
    assert "readout" not in json.loads((out / "config.json").read_text())
    result = evaluate_student(load_run(out), scenes, "test", choose_protocol("plain", scenes))
    assert result["measured"] == {"weights_sha256": load_run(out).weights_sha256}


def test_commands_read_depth_in_another_way(tmp_path, scenes, teacher_store):
    out = trained(tmp_path, scenes, teacher_store, loss="tiekd")
    means = {}
    for readout in ("mean", "geometric", "median", "absrel"):
        target = tmp_path / f"{readout}.json"
        spec = ["--source", f"scenes:{tmp_path / 'scenes'}", "--split", "test", "--readout", readout]
        result = CliRunner().invoke(evaluate_command, [str(out), *spec, "--out", str(target)])
        assert result.exit_code == 0, result.output
        means[readout] = json.loads(target.read_text())["metrics"]["rmse"]
        folder = tmp_path / f"depth-{readout}"
        images = str(tmp_path / "scenes" / "rgb")
        arguments = [str(out), images, "--out", str(folder), "--npy", "--readout", readout]
        assert CliRunner().invoke(predict_command, arguments).exit_code == 0
    assert len(set(means.values())) == 4
    depth_m = {name: np.load(next((tmp_path / f"depth-{name}").rglob("*.npy"))) for name in ("mean", "absrel")}
    assert depth_m["mean"].mean() > depth_m["absrel"].mean()


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        (
            {"loss": "tiekd", "readout": "median"},
            "`readout=median` has no useful gradient: train with mean or geometric",
        ),
        ({"loss": "ssim+si", "head": "depth", "readout": "geometric"}, "predicts one depth"),
        ({"loss": "nll", "head": "gaussian", "readout": "mean"}, "trains with geometric"),
        ({"loss": "tiekd", "head": "gaussian"}, "`loss=tiekd` does not fit `head=gaussian`: use nll or nll\\+ssim"),
        ({"loss": "nll+ssim"}, "needs `head=gaussian or head=laplace`"),
        ({"loss": "nll", "head": "mixture"}, "`head='mixture'`"),
        ({"loss": "tiekd-released", "readout": "geometric"}, "reads the mean"),
    ],
)
def test_what_does_not_fit_is_refused_before_training(tmp_path, scenes, teacher_store, changes, why):
    with pytest.raises(ValueError, match=why):
        trained(tmp_path, scenes, teacher_store, **changes)
    assert not (tmp_path / "run").exists()


def test_one_constant_is_fitted_on_another_split(tmp_path, scenes, teacher_store):
    run = load_run(trained(tmp_path, scenes, teacher_store, loss="tiekd"))
    plain = evaluate_student(run, scenes, "test", choose_protocol("plain", scenes))
    protocol = choose_protocol("plain", scenes, scale_split="train")
    scaled = evaluate_student(run, scenes, "test", protocol)
    on_train = [evaluate_student(run, scenes, "train", choose_protocol("plain", scenes))]
    assert (scaled["scale"]["split"], scaled["scale"]["frames"]) == ("train", 6)
    assert scaled["protocol"] == {**plain["protocol"], "scale_split": "train"}
    assert "scale" not in plain
    assert scaled["metrics"]["silog"] == pytest.approx(plain["metrics"]["silog"], rel=1e-3)  # except where clipped
    assert scaled["metrics"]["abs_rel"] < on_train[0]["metrics"]["abs_rel"]
    teacher = evaluate_teacher(open_store(teacher_store), scenes, "test", protocol)
    assert teacher["scale"]["factor"] == pytest.approx(1, rel=0.05)
    with pytest.raises(ValueError, match="`scale_split=all` shares 2 images"):
        evaluate_student(run, scenes, "test", choose_protocol("plain", scenes, scale_split="all"))
    with pytest.raises(ValueError, match="leave it or `uncertainty` out"):
        evaluate_student(run, scenes, "test", protocol, uncertainty=True)
    with pytest.raises(ValueError, match="aligns each: leave one of the two out"):
        choose_protocol("plain", scenes, align="median", scale_split="train")


def test_a_scaled_result_is_not_compared_with_another(tmp_path, scenes, teacher_store):
    out = trained(tmp_path, scenes, teacher_store, loss="tiekd")
    depth_file = tmp_path / "scenes" / "depth" / "000006.png"
    depth = np.asarray(Image.open(depth_file)).copy()
    depth[:, 32:] *= 2  # a depth edge
    Image.fromarray(depth).save(depth_file)
    spec = ["--source", f"scenes:{tmp_path / 'scenes'}", "--split", "test"]
    for name, more in (("plain", []), ("scaled", ["--scale-split", "train"])):
        result = CliRunner().invoke(evaluate_command, [str(out), *spec, "--out", str(tmp_path / f"{name}.json"), *more])
        assert result.exit_code == 0, result.output
    assert "depth is multiplied by" in result.output
    assert "within 5 px of depth edges" in result.output
    saved = tiekd.EvaluationResult.load(tmp_path / "scaled.json")
    assert saved.edges["frames"] == 1
    assert saved.edges["edge_f1"] == saved.per_image[0]["edge_f1"]
    assert 0 < saved.scale["factor"] < 10
    from pipeline.evaluation.comparison import join

    with pytest.raises(ValueError, match="protocol scale_split is train, not None"):
        join([("a", [tmp_path / "plain.json"]), ("b", [tmp_path / "scaled.json"])], "abs_rel")
    again = CliRunner().invoke(evaluate_command, [str(out), *spec, "--out", str(tmp_path / "scaled.json")])
    assert again.exit_code == 1
    assert "its protocol is" in again.output
    of_teacher = [str(teacher_store), *spec, "--scale-split", "train", "--out", str(tmp_path / "teacher.json")]
    assert CliRunner().invoke(evaluate_teacher_command, of_teacher).exit_code == 0


def test_the_default_readout_of_an_old_run_is_the_mean(tmp_path, scenes, teacher_store):
    out = trained(tmp_path, scenes, teacher_store, loss="ssim+si")
    assert load_run(out).reader().readout == "mean"
    config = json.loads((out / "config.json").read_text())
    config["readout"] = "mode"
    (out / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="`readout='mode'`"):
        load_run(out)


def test_a_report_shows_pictures_as_the_metrics_were_read_and_says_so(tmp_path, scenes, teacher_store):
    pytest.importorskip("matplotlib")
    out = trained(tmp_path, scenes, teacher_store, head="gaussian", loss="nll")
    spec = ["--source", f"scenes:{tmp_path / 'scenes'}", "--split", "test"]
    for readout in ("geometric", "absrel"):
        metrics, page = tmp_path / f"{readout}.json", tmp_path / f"{readout}.html"
        measured = [str(out), *spec, "--readout", readout, "--scale-split", "train", "--out", str(metrics)]
        assert CliRunner().invoke(evaluate_command, measured).exit_code == 0
        shown = [str(out), *spec, "--store", str(teacher_store), "--metrics", f"run={metrics}", "--frames", "1"]
        result = CliRunner().invoke(report_command, [*shown, "--out", str(page)])
        assert result.exit_code == 0, result.output
        text = page.read_text()
        assert f"head gaussian, depth read as {readout}" in text
        assert "depth times one constant fitted on split train" in text
