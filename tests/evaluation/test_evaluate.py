"""Evaluation of students and stores: metrics, coverage, comparison with the teacher, files."""

import csv
import json
import re

import fakes
import numpy as np
import pytest
import torch
from click.testing import CliRunner

from pipeline.cache.plan import CacheOptions
from pipeline.cache.run import cache_teacher
from pipeline.cli.main import main
from pipeline.depth.metrics import METRICS, depth_metrics
from pipeline.evaluation.protocol import choose_protocol
from pipeline.evaluation.result import write_result
from pipeline.evaluation.run import evaluate_student, evaluate_teacher
from pipeline.networks.predict import predict_depth_m
from pipeline.networks.reader import Reader
from pipeline.networks.saved_run import LoadedRun
from pipeline.sources.registry import open_source
from pipeline.sources.splits import evenly
from pipeline.store import open_store
from pipeline.teachers.options import TeacherOptions
from pipeline.teachers.registry import open_teacher


class Constant(torch.nn.Module):
    """Logits at half resolution: all on the left half of the image to one bin, on the right to another."""

    def forward(self, images):
        logits = torch.zeros(len(images), 4, images.shape[2] // 2, images.shape[3] // 2)
        middle = logits.shape[3] // 2
        logits[:, 1, :, :middle] = 100
        logits[:, 3, :, middle:] = 100
        return logits


EDGES_M = np.array([1.0, 3.0, 5.0, 7.0, 9.0])


def run_of(view="full"):
    return LoadedRun(Constant(), EDGES_M, "0", {"view": view, "student": "constant"})


def test_a_student_is_evaluated_at_the_size_of_the_view(scenes):
    result = evaluate_student(run_of(), scenes, "test", choose_protocol("plain", scenes))
    expected = []
    for sample in scenes.samples("test"):
        truth_m = scenes.read_truth_m(sample)
        depth_m = torch.nn.functional.interpolate(
            torch.from_numpy(np.repeat([[4.0, 8.0]], 16, 0).repeat(16, 1))[None, None], (32, 64), mode="bilinear"
        )
        expected.append(depth_metrics(depth_m[0, 0].numpy(), truth_m, truth_m > 0)["abs_rel"])
    assert result["metrics"]["abs_rel"] == pytest.approx(np.mean(expected))
    assert result["frames"] == 2
    assert result["protocol"]["name"] == "plain"
    assert [row["id"] for row in result["per_image"]] == ["000006", "000007"]


def test_flip_average_is_the_mean_with_the_mirrored_prediction():
    images = torch.zeros(1, 3, 8, 16)
    edges_m = torch.from_numpy(EDGES_M)
    plain = predict_depth_m(Constant(), images, Reader(edges_m), flip_average=False)
    both = predict_depth_m(Constant(), images, Reader(edges_m), flip_average=True)
    assert plain[0, 0, 0] == pytest.approx(4)
    assert both == pytest.approx(6.0)


def test_a_cached_teacher_evaluates_like_the_live_one(tmp_path, scenes):
    teacher = fakes.FakeTeacher()
    cache_teacher(scenes, "all", teacher, tmp_path / "s.zarr", CacheOptions(bins="nyu"))
    result = evaluate_teacher(open_store(tmp_path / "s.zarr"), scenes, "test", choose_protocol(None, scenes))
    live = []
    for sample in scenes.samples("test"):
        image = fakes.image_of(fakes.smooth_depth_m((32, 64), int(sample.id)))
        depth_m = teacher(torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255)[0].numpy()
        truth_m = scenes.read_truth_m(sample)
        live.append(depth_metrics(depth_m, truth_m, truth_m > 0)["abs_rel"])
    assert result["metrics"]["abs_rel"] == pytest.approx(np.mean(live), abs=5e-4)
    assert result["protocol"]["flip_average"] is False


def test_a_student_is_compared_with_its_teacher(scenes, teacher_store):
    protocol = choose_protocol(None, scenes)
    result = evaluate_student(run_of(), scenes, "test", protocol, store=open_store(teacher_store))
    assert set(result["against_teacher"]) == {*METRICS, "coverage"}
    assert result["against_teacher"]["abs_rel"] == pytest.approx(result["metrics"]["abs_rel"], abs=0.02)


def test_frames_without_truth_are_counted_and_a_split_without_any_is_an_error(tmp_path):
    source = open_source(f"kitti:{fakes.make_kitti(tmp_path / 'kitti', 6)}")
    result = evaluate_student(run_of(), source, "test", choose_protocol("plain", source))
    assert (result["frames"], result["frames_without_truth"]) == (1, 1)
    alone = tmp_path / "alone.txt"
    alone.write_text((source.root / "splits" / "test.txt").read_text().splitlines()[-1])
    with pytest.raises(ValueError, match="no image of split .* has ground truth within protocol plain"):
        evaluate_student(run_of(), source, str(alone), choose_protocol("plain", source))


def test_ground_truth_of_another_size_than_its_image_is_refused(scenes):
    fakes.write_depth(scenes.root / "depth" / "000006.png", np.ones((16, 64), np.float32), 1 / 256)
    with pytest.raises(ValueError, match=r"000006.png: ground truth has 16x64 px, its image .* 32x64 px"):
        evaluate_student(run_of(), scenes, "test", choose_protocol(None, scenes))


def test_an_image_other_than_the_teachers_is_refused(scenes, teacher_store):
    fakes.write_image(scenes.root / "rgb" / "000007.png", np.zeros((32, 64, 3), np.uint8))
    with pytest.raises(ValueError, match=r"000007.png is not the image that the teacher saw"):
        evaluate_teacher(open_store(teacher_store), scenes, "test", choose_protocol(None, scenes))


def test_an_unknown_protocol_or_another_depth_limit_is_refused(scenes):
    with pytest.raises(ValueError, match="protocol 'eigen': expected one of kitti_eigen_garg80, nyu_eigen, plain"):
        choose_protocol("eigen", scenes)
    with pytest.raises(ValueError, match="has a fixed limit of 80 m"):
        choose_protocol("kitti_eigen_garg80", scenes, 50.0)
    assert choose_protocol("plain", scenes, 50.0).max_m == 50


def test_a_result_is_written_as_json_and_csv(tmp_path, scenes):
    result = evaluate_student(run_of(), scenes, "test", choose_protocol(None, scenes))
    write_result(result, tmp_path / "m" / "constant.json")
    saved = json.loads((tmp_path / "m" / "constant.json").read_text())
    assert saved["metrics"] == result["metrics"]
    assert "per_image" not in saved
    with (tmp_path / "m" / "constant.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert float(rows[1]["abs_rel"]) == result["per_image"][1]["abs_rel"]


def store_with_holes(folder, scenes):
    """A store of a teacher without a value at the right half of each image."""
    for sample in scenes.samples("all"):
        depth_m = scenes.read_truth_m(sample).copy()
        depth_m[:, 32:] = 0
        fakes.write_depth(folder / "predictions" / f"{sample.id}.png", depth_m, 1 / 256)
    options = TeacherOptions(metres_per_unit=1 / 256)
    teacher = open_teacher(f"predictions:{folder / 'predictions'}", device=torch.device("cpu"), options=options)
    cache_teacher(scenes, "all", teacher, folder / "holes.zarr", CacheOptions(bins="nyu"))
    return open_store(folder / "holes.zarr")


def test_coverage_is_the_fraction_of_valid_truth_that_had_a_prediction(tmp_path, scenes):
    store = store_with_holes(tmp_path, scenes)
    protocol = choose_protocol(None, scenes)
    result = evaluate_teacher(store, scenes, "test", protocol)
    valid = [np.isfinite(truth) & (truth > 0) for truth in map(scenes.read_truth_m, scenes.samples("test"))]
    expected = sum(one[:, :32].sum() for one in valid) / sum(one.sum() for one in valid)
    assert result["coverage"] == pytest.approx(expected)
    assert result["per_image"][0]["coverage"] == pytest.approx(valid[0][:, :32].sum() / valid[0].sum())
    assert (result["frames_without_truth"], result["frames_without_prediction"]) == (0, 0)
    student = evaluate_student(run_of(), scenes, "test", protocol, store=store)
    assert student["coverage"] == 1
    assert student["against_teacher"]["coverage"] == pytest.approx(0.5)
    assert student["per_image"][1]["teacher_coverage"] == pytest.approx(0.5)


def test_the_command_shows_coverage_and_writes_it(tmp_path, scenes):
    store_with_holes(tmp_path, scenes)
    words = ["evaluate-teacher", str(tmp_path / "holes.zarr"), "--source", f"scenes:{scenes.root}", "--split", "test"]
    done = CliRunner().invoke(main, [*words, "--out", str(tmp_path / "t.json")])
    assert done.exit_code == 0, done.output
    assert re.search(r"d3 +coverage\n", done.output)
    coverage = json.loads((tmp_path / "t.json").read_text())["coverage"]
    assert f"{100 * coverage:.2f} %" in done.output
    assert 0.4 < coverage < 0.6
    with (tmp_path / "t.csv").open(newline="") as file:
        assert all(0.4 < float(row["coverage"]) < 0.6 for row in csv.DictReader(file))


def test_images_for_validation_are_spread_evenly(scenes):
    samples = scenes.samples("all")
    assert [sample.id for sample in evenly(samples, 4)] == ["000000", "000002", "000004", "000006"]
    assert len(evenly(samples, 100)) == 8


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("split", "abs_rel", "rmse"), [("sample_train", 0.0579, 3.474), ("sample_test", 0.0633, 2.518)]
)
@pytest.mark.parametrize("predictions", ["teacher_png16"])
def test_caching_real_predictions_costs_no_accuracy(tmp_path, real, split, abs_rel, rmse, predictions):
    kitti = real / "kitti"
    source = open_source(f"kitti:{kitti}")
    name = str(kitti / "splits" / f"{split}.txt")
    options = TeacherOptions(metres_per_unit=80 / 65535)
    teacher = open_teacher(f"predictions:{kitti / predictions}", device=torch.device("cpu"), options=options)
    done = cache_teacher(source, name, teacher, tmp_path / "s.zarr")
    result = evaluate_teacher(open_store(tmp_path / "s.zarr"), source, name, choose_protocol(None, source))
    assert result["metrics"]["abs_rel"] == pytest.approx(abs_rel, abs=5e-5)
    assert result["metrics"]["rmse"] == pytest.approx(rmse, abs=1e-3)
    assert done.bytes_written / done.samples < 0.23 * 418_000


@pytest.mark.realdata
def test_caching_the_native_output_is_smaller_and_as_good(tmp_path, real):
    kitti = real / "kitti"
    source = open_source(f"kitti:{kitti}")
    name = str(kitti / "splits" / "sample_test.txt")
    options = TeacherOptions(metres_per_unit=1.0, input_size_px=(192, 640))
    teacher = open_teacher(f"predictions:{kitti / 'teacher_native'}", device=torch.device("cpu"), options=options)
    done = cache_teacher(source, name, teacher, tmp_path / "s.zarr")
    result = evaluate_teacher(open_store(tmp_path / "s.zarr"), source, name, choose_protocol(None, source))
    assert done.size_px == (192, 640)
    assert result["metrics"]["abs_rel"] == pytest.approx(0.0633, abs=2e-4)
    assert done.bytes_written / done.samples < 0.11 * 418_000
