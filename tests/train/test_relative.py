"""Relative teachers: targets and losses without a scale, and students that are evaluated after alignment."""

import json
from dataclasses import replace

import fakes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.cache.align import align_store
from pipeline.cache.plan import CacheOptions
from pipeline.cache.run import cache_teacher
from pipeline.deploy.export import export_student
from pipeline.deploy.predict_folder import FolderOptions, predict_folder
from pipeline.deploy.runners import open_model
from pipeline.depth.bins import parse_bins
from pipeline.depth.relative import ALIGN, BINS, MIN_PIXELS, WHOLE, Range, in_own_space
from pipeline.evaluation.protocol import choose_protocol
from pipeline.evaluation.run import evaluate_student, evaluate_teacher
from pipeline.losses.relative import ScaleShiftInvariantLoss
from pipeline.networks.saved_run import load_run
from pipeline.report.model import Belief
from pipeline.report.page import write_report
from pipeline.report.units import DepthUnits
from pipeline.store import open_store
from pipeline.teachers.options import TeacherOptions
from pipeline.teachers.registry import open_teacher
from pipeline.train.config import Recipe
from pipeline.train.options import TrainOptions
from pipeline.train.run import Validation, train_network

SPACES = tuple(BINS)
OPTIONS = TrainOptions(student="lean-small", epochs=2, batch_size=2, learning_rate=3e-3, seed=1)


def ranged(space):
    edges = parse_bins(BINS[space]).edges()
    return Range(space, float(edges[0]), float(edges[-1]))


def relative_store(tmp_path, scenes, space="affine_disparity", name="relative.zarr", **changes):
    teacher = fakes.RelativeTeacher(space, **changes)
    cache_teacher(scenes, "all", teacher, tmp_path / name, CacheOptions(samples_per_shard=3, batch_size=2))
    return open_store(tmp_path / name)


# Targets


@pytest.mark.parametrize("space", SPACES)
@given(seed=st.integers(0, 99), scale=st.floats(1e-3, 1e3), shift=st.floats(-100, 100))
def test_a_target_does_not_depend_on_the_teachers_scale_and_shift(space, seed, scale, shift):
    values = fakes.smooth_depth_m((12, 20), seed)
    shift = 0.0 if space == "scale_invariant" else shift
    here, there = (ranged(space).of(one) for one in (values, (values * scale + shift).astype(np.float32)))
    # A large shift leaves float32 few digits of the shape
    tolerance = 1e-5 + 20 * np.spacing(np.float32(abs(shift) + scale * 10)) / (scale * np.ptp(values))
    own = [in_own_space(one.astype(np.float64), space) for one in (here, there)]
    assert np.abs(own[0] - own[1]).max() <= tolerance * max(own[0].max(), 1)


@pytest.mark.parametrize("space", ["affine_disparity", "affine_depth"])
def test_a_target_is_an_affine_function_of_the_teachers_numbers_in_their_own_space(space):
    values = fakes.smooth_depth_m((12, 20))
    own = in_own_space(ranged(space).of(values, WHOLE).astype(np.float64), space)
    slope, level = np.polyfit(values.ravel(), own.ravel(), 1)
    assert slope > 0
    assert np.abs(slope * values + level - own).max() < 1e-4 * np.abs(own).max()


def test_near_is_1_and_far_is_the_last_edge():
    disparity = np.linspace(-3, 8, 600, dtype=np.float32).reshape(20, 30)
    relative = ranged("affine_disparity").of(disparity)
    assert (relative[0, 0], relative[-1, -1]) == (100, 1)
    assert np.all(np.diff(relative.ravel()) <= 0)
    assert (relative == 100).mean() == pytest.approx(0.02, abs=0.003)


def test_scale_invariant_depth_has_its_median_at_the_geometric_mean_of_the_range():
    relative = ranged("scale_invariant").of(np.array([[1, 2, 4] * 7], np.float32))
    assert np.unique(relative) == pytest.approx([5, 10, 20])


@pytest.mark.parametrize("values", [np.full((8, 8), 3.0), np.full((8, 8), np.nan), np.arange(MIN_PIXELS - 1.0)[None]])
@pytest.mark.parametrize("space", ["affine_disparity", "affine_depth"])
def test_a_flat_or_empty_image_has_no_target(space, values):
    assert np.isnan(ranged(space).of(values.astype(np.float32))).all()


def test_invalid_pixels_stay_invalid_and_do_not_affect_others():
    values = fakes.smooth_depth_m((12, 20))
    holed = values.copy()
    holed[3:5] = np.nan
    relative = ranged("affine_depth").of(holed, WHOLE)
    assert np.isnan(relative[3:5]).all()
    assert np.isfinite(np.delete(relative, (3, 4), axis=0)).all()


# Losses


def logits_of(depth, edges):
    """Logits (B, K, H, W) whose expected depth is nearly `depth` (B, 1, H, W)."""
    centers = (edges[1:] + edges[:-1]) / 2
    return -400 * (centers.log().view(1, -1, 1, 1) - depth.log()) ** 2


@pytest.mark.parametrize("gradients", [False, True])
def test_the_loss_ignores_scale_and_shift(gradients):
    edges = parse_bins("inverse:256:1:100").edges().float()
    disparity = torch.rand(2, 1, 24, 32) * 0.5 + 0.2
    loss = ScaleShiftInvariantLoss(edges, gradients=gradients)
    same = loss(logits_of(1 / disparity, edges), 1 / (0.3 * disparity + 0.1))
    other = loss(logits_of(1 / disparity, edges), 1 / (0.3 * disparity.flip(3) + 0.1))
    assert same < 0.05
    assert other > 0.5


def test_gradients_are_finite_for_flat_and_empty_images():
    logits = torch.randn(3, 16, 8, 8, requires_grad=True)
    target = torch.stack([torch.rand(1, 8, 8) + 1, torch.full((1, 8, 8), 3.0), torch.full((1, 8, 8), torch.nan)])
    loss = ScaleShiftInvariantLoss(torch.linspace(1, 9, 17), gradients=True)(logits, target)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()
    assert logits.grad[2].abs().max() == 0


# Recipes


def test_a_relative_store_has_inverse_bins_and_a_width_in_bins(tmp_path, scenes):
    recipe = Recipe.make(OPTIONS, scenes, scenes.samples("train"), relative_store(tmp_path, scenes), None)
    assert recipe.depth_space == "affine_disparity"
    assert (recipe.relative, recipe.sigma_bins) == (Range("affine_disparity", 1.0, 100.0), 1.0)
    assert np.diff(1 / np.array(recipe.bin_edges_m)) == pytest.approx(-0.99 / 64)
    assert recipe.build_loss().depth_space == "affine_disparity"


def test_a_regression_has_the_same_range(tmp_path, scenes):
    settings = replace(OPTIONS, head="depth", loss="ssi")
    recipe = Recipe.make(settings, scenes, scenes.samples("train"), relative_store(tmp_path, scenes), None)
    assert recipe.relative == Range("affine_disparity", 1.0, 100.0)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"loss": "tiekd-released"}, "uses maps 0.5 m wide, but .*holds affine_disparity; use `loss=tiekd` or ssi"),
        ({"sigma_m": 0.3}, "`sigma_m=0.3` is in metres, but .*`sigma_bins`.* store align"),
        ({"maps": "stored"}, "the store has no sparse maps"),
    ],
)
def test_options_in_metres_are_refused(tmp_path, scenes, changes, why):
    store = relative_store(tmp_path, scenes)
    with pytest.raises(ValueError, match=why):
        Recipe.make(replace(OPTIONS, **changes), scenes, scenes.samples("train"), store, None)


# From the store to the page


@pytest.mark.parametrize("space", SPACES)
def test_a_relative_student_is_evaluated_after_alignment(tmp_path, scenes, space):
    store = relative_store(tmp_path, scenes, space)
    train_network(
        scenes, "train", tmp_path / "run", OPTIONS, store=store, validation=Validation(scenes, "test"), workers=2
    )
    run = load_run(tmp_path / "run")
    assert run.config["depth_space"] == space
    protocol = choose_protocol(None, scenes, depth_space=space)
    assert protocol.as_json()["align"] == ALIGN[space]
    result = evaluate_student(run, scenes, "test", protocol, store=store)
    assert result["frames"] == 2
    assert result["metrics"]["abs_rel"] < 0.5
    assert result["against_teacher"]["abs_rel"] < 0.5


@pytest.mark.parametrize("loss", ["tiekd", "ssi", "ssi+grad", "ssim+si"])
def test_every_loss_without_metres_trains(tmp_path, scenes, loss):
    store = relative_store(tmp_path, scenes)
    metrics = train_network(scenes, "train", tmp_path / "run", replace(OPTIONS, loss=loss), store=store)
    assert np.isfinite(metrics["last_epoch"]["train_loss"])


@pytest.mark.parametrize("space", SPACES)
def test_a_relative_teacher_evaluates_like_its_metric_counterpart(tmp_path, scenes, space):
    metric = relative_store(tmp_path, scenes, "metric_m", "metric.zarr", lopsided=True)
    relative = relative_store(tmp_path, scenes, space, lopsided=True)
    terms = choose_protocol(None, scenes, align=ALIGN[space])
    result = [evaluate_teacher(store, scenes, "test", terms)["metrics"] for store in (metric, relative)]
    assert result[0]["abs_rel"] > 0.005
    # 5e-4 of the range is what the codes of a relative store may be off
    assert result[1]["abs_rel"] == pytest.approx(result[0]["abs_rel"], abs=2e-3)


@pytest.mark.slow
def test_a_student_learns_the_shape(tmp_path, scenes):
    store = relative_store(tmp_path, scenes)
    settings = replace(OPTIONS, epochs=40, batch_size=6, learning_rate=1e-2, colour=False)
    protocol = choose_protocol(None, scenes, depth_space="affine_disparity")
    errors = []
    for epochs in (1, 40):
        out = tmp_path / f"run{epochs}"
        train_network(scenes, "train", out, replace(settings, epochs=epochs), store=store)
        errors.append(evaluate_student(load_run(out), scenes, "test", protocol)["metrics"]["abs_rel"])
    assert errors[1] < 0.7 * errors[0]


def test_a_student_of_an_aligned_store_predicts_metres(tmp_path, scenes):
    store = relative_store(tmp_path, scenes)
    align_store(store, scenes, "all", tmp_path / "aligned.zarr")
    aligned = open_store(tmp_path / "aligned.zarr")
    train_network(scenes, "train", tmp_path / "run", OPTIONS, store=aligned)
    run = load_run(tmp_path / "run")
    assert run.config["depth_space"] == "metric_m"
    assert run.bin_edges_m == pytest.approx(parse_bins("log:64:1:100").edges().numpy())  # the source's custom
    result = evaluate_student(run, scenes, "test", choose_protocol(None, scenes), store=aligned)
    assert "align" not in result["protocol"]
    with pytest.raises(ValueError, match="holds affine_disparity, but the student is measured in metres"):
        evaluate_student(run, scenes, "test", choose_protocol(None, scenes), store=store)


def test_relative_students_are_not_evaluated_without_alignment(tmp_path, scenes):
    with pytest.raises(ValueError, match="`align=median` does not fit affine_depth, which needs `align=depth`"):
        choose_protocol(None, scenes, align="median", depth_space="affine_depth")
    with pytest.raises(ValueError, match="align 'mean': expected one of none, median"):
        choose_protocol(None, scenes, align="mean")
    store = relative_store(tmp_path, scenes)
    train_network(scenes, "train", tmp_path / "run", OPTIONS, store=store)
    protocol = choose_protocol(None, scenes, depth_space="affine_disparity")
    with pytest.raises(ValueError, match="`uncertainty` needs metric depth"):
        evaluate_student(load_run(tmp_path / "run"), scenes, "test", protocol, uncertainty=True)


@pytest.mark.parametrize("aligned", [False, True])
def test_a_page_shows_students_of_a_relative_teacher(tmp_path, scenes, aligned):
    store = relative_store(tmp_path, scenes)
    if aligned:
        align_store(store, scenes, "all", tmp_path / "aligned.zarr")
        store = open_store(tmp_path / "aligned.zarr")
    train_network(scenes, "train", tmp_path / "run", OPTIONS, store=store)
    write_report(
        tmp_path / "report.html",
        runs=[tmp_path / "run"],
        store=store,
        source=scenes,
        split="test",
        metrics_paths=[],
        frames=1,
    )
    text = (tmp_path / "report.html").read_text()
    assert ("near ← relative depth → far" in text) is not aligned
    assert ("aligned to its ground truth by a robust scale and shift" in text) is aligned


def test_a_page_does_not_mix_metres_and_relative_depth(tmp_path, scenes, teacher_store):
    train_network(scenes, "train", tmp_path / "run", OPTIONS, store=open_store(teacher_store))
    with pytest.raises(ValueError, match="run predicts metric_m, but store .* has affine_disparity"):
        write_report(
            tmp_path / "report.html",
            runs=[tmp_path / "run"],
            store=relative_store(tmp_path, scenes),
            source=scenes,
            split="test",
            metrics_paths=[],
        )


def test_predictions_of_a_relative_student_are_disparity_files(tmp_path, scenes):
    train_network(scenes, "train", tmp_path / "run", OPTIONS, store=relative_store(tmp_path, scenes))
    model = open_model(tmp_path / "run", device="cpu")
    with pytest.raises(ValueError, match="`depth_png=256` needs metres, but this network predicts relative depth"):
        predict_folder(model, scenes.root / "rgb", tmp_path / "out")
    predict_folder(model, scenes.root / "rgb", tmp_path / "out", FolderOptions("none", npy=True, colour=True))
    facts = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert facts["depth_space"] == "affine_disparity"
    assert "metres_per_unit" not in facts
    disparity = np.load(next((tmp_path / "out").glob("*.npy")))
    assert disparity.min() >= 0.01
    assert disparity.max() <= 1


# What the page shows


@pytest.mark.parametrize("space", ["affine_disparity", "affine_depth"])
def test_a_students_scale_and_shift_are_removed_for_the_report(space):
    edges = parse_bins(BINS[space]).edges().numpy()
    units = DepthUnits("", ranged(space), edges, None, 1.0)
    teacher = ranged(space).of(fakes.smooth_depth_m((12, 20)), WHOLE)
    own = in_own_space(teacher.astype(np.float64), space)
    student = in_own_space((0.3 * own + 0.2 * own.max()).astype(np.float32), space)
    change = units.change(student, teacher)
    assert np.allclose(change.depth(student), teacher, rtol=1e-3)
    probability = np.full(64, 1 / 64, np.float32)
    belief = change.belief(Belief(probability, edges, float(student[3, 3])))
    assert belief.expected_m == pytest.approx(teacher[3, 3], rel=1e-3)
    assert np.all(np.diff(belief.bin_edges_m) > 0)
    assert len(belief.probability) == len(belief.bin_edges_m) - 1 < 64  # the rest lies beyond twice the range
    upside_down = in_own_space((own.max() * 1.1 - own).astype(np.float32), space)
    assert units.change(upside_down, teacher) is None


def test_ground_truth_is_shown_in_the_teachers_relative_depth():
    units = DepthUnits("", ranged("affine_disparity"), np.array([1.0, 10.0, 100.0]), None, 1.0)
    truth_m = fakes.smooth_depth_m((12, 20))
    teacher = ranged("affine_disparity").of(1 / truth_m, WHOLE)
    sparse_m = fakes.sparse(truth_m)
    result = units.truth(sparse_m, teacher)
    known = np.isfinite(sparse_m)
    assert np.allclose(result[known], teacher[known], rtol=1e-3)
    assert np.isnan(result[~known]).all()
    assert units.truth(np.full((12, 20), np.nan, np.float32), teacher) is None


# A student that teaches again


def test_a_relative_run_is_a_relative_teacher(tmp_path, scenes):
    train_network(scenes, "train", tmp_path / "run", OPTIONS, store=relative_store(tmp_path, scenes))
    teacher = open_teacher(f"checkpoint:{tmp_path / 'run'}", device=torch.device("cpu"), options=TeacherOptions())
    assert teacher.card.depth_space == "affine_disparity"
    assert teacher.bin_edges_m is None
    answer = teacher.predict(torch.rand(2, 3, 32, 64), ["a", "b"])
    assert answer.dpm is None
    assert float(answer.depth.min()) >= 0.01
    assert float(answer.depth.max()) <= 1


@pytest.mark.slow
def test_a_relative_student_is_exported_with_its_depth_space(tmp_path, scenes):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    train_network(scenes, "train", tmp_path / "run", OPTIONS, store=relative_store(tmp_path, scenes))
    summary = export_student(load_run(tmp_path / "run"), tmp_path / "student.onnx")
    assert summary["outputs"] == ["relative_depth"]
    assert summary["metadata"]["depth_space"] == "affine_disparity"
    for path in (tmp_path / "run", tmp_path / "student.onnx"):
        model, out = open_model(path, device="cpu"), tmp_path / f"of-{path.name}"
        predict_folder(model, scenes.root / "rgb", out, FolderOptions("none", npy=True))
    here, there = (np.load(tmp_path / name / "000001.npy") for name in ("of-run", "of-student.onnx"))
    assert np.allclose(here, there, rtol=1e-4)
