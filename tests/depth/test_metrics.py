from __future__ import annotations

import json
import math
import runpy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.depth.metrics import METRICS, PROTOCOLS, Protocol, depth_metrics, evaluate_pair, mean_metrics

SHARED = Path(__file__).parents[3] / "shared" / "data" / "kitti"
GARG = PROTOCOLS["kitti_eigen_garg80"]
GOLDEN = Path(__file__).parents[1] / "data" / "metrics_golden"
GOLD = json.loads(GOLDEN.with_suffix(".json").read_text())


def test_metrics_of_two_pixels_are_those_computed_by_hand():
    predicted = np.array([[2.0, 9.0, 7.0]])
    truth = np.array([[1.0, 10.0, 0.0]])
    found = depth_metrics(predicted, truth, np.array([[True, True, False]]))
    a, b = math.log(2), math.log(0.9)
    mean = (a + b) / 2
    expected = {
        "abs_rel": (1 + 0.1) / 2,
        "sq_rel": (1 + 0.1) / 2,
        "rmse": 1.0,
        "rmse_log": math.sqrt((a * a + b * b) / 2),
        "log10": (math.log10(2) - math.log10(0.9)) / 2,
        "silog": 100 * math.sqrt(((a - mean) ** 2 + (b - mean) ** 2) / 2),
        "delta1": 0.5,
        "delta2": 0.5,
        "delta3": 0.5,
    }
    assert list(found) == list(METRICS)
    assert found == pytest.approx(expected, rel=1e-12)


def test_a_factor_of_a_half_is_as_wrong_as_a_factor_of_two():
    truth = np.full((1, 4), 10.0)
    ratio = np.array([[1.2, 1 / 1.3, 1.6, 1 / 2]])
    found = depth_metrics(truth * ratio, truth, np.ones((1, 4), bool))
    assert (found["delta1"], found["delta2"], found["delta3"]) == (0.25, 0.5, 0.75)


def test_a_common_factor_costs_nothing_in_silog():
    truth = np.array([[1.0, 5.0, 30.0]])
    mask = np.ones((1, 3), bool)
    assert depth_metrics(2 * truth, truth, mask)["silog"] == pytest.approx(0, abs=1e-6)
    assert depth_metrics(2 * truth, truth, mask)["rmse_log"] == pytest.approx(math.log(2))


def test_an_empty_mask_is_refused():
    with pytest.raises(ValueError, match="no pixel to evaluate"):
        depth_metrics(np.ones((2, 2)), np.ones((2, 2)), np.zeros((2, 2), bool))


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_a_depth_that_is_not_positive_and_finite_is_refused_on_either_side(bad):
    good, mask = np.ones((1, 2)), np.ones((1, 2), bool)
    with pytest.raises(ValueError, match="prediction of"):
        depth_metrics(np.array([[1.0, bad]]), good, mask)
    with pytest.raises(ValueError, match="truth of"):
        depth_metrics(good, np.array([[1.0, bad]]), mask)


def test_shapes_that_differ_are_refused():
    with pytest.raises(ValueError, match="expected equal shapes"):
        depth_metrics(np.ones((2, 2)), np.ones((2, 3)), np.ones((2, 2), bool))


def test_the_mean_gives_every_image_the_same_weight():
    assert mean_metrics([{"rmse": 1.0}, {"rmse": 2.0}, {"rmse": 6.0}]) == {"rmse": 3.0}
    with pytest.raises(ValueError, match="no image"):
        mean_metrics([])


def test_the_garg_crop_of_the_kb_crop_is_rows_143_to_349_and_columns_43_to_1172():
    rows, columns = np.nonzero(GARG.mask(np.full((352, 1216), 5.0)))
    assert (rows.min(), rows.max() + 1) == (143, 349)
    assert (columns.min(), columns.max() + 1) == (43, 1172)


def test_eigens_nyu_crop_is_rows_45_to_471_and_columns_41_to_601():
    rows, columns = np.nonzero(PROTOCOLS["nyu_eigen"].mask(np.full((480, 640), 5.0)))
    assert (rows.min(), rows.max() + 1) == (45, 471)
    assert (columns.min(), columns.max() + 1) == (41, 601)


def test_eigens_nyu_crop_refuses_another_size_and_names_the_way_out():
    with pytest.raises(ValueError, match=r"240x320.*`protocol=plain`"):
        PROTOCOLS["nyu_eigen"].mask(np.full((240, 320), 5.0))


def test_truth_counts_strictly_within_the_range_and_never_where_it_is_missing():
    truth = np.array([[0.0, 1e-3, 2e-3, 79.9, 80.0, 200.0, math.nan, math.inf]])
    bounded = replace(PROTOCOLS["plain"], max_m=80.0)
    assert bounded.mask(truth).tolist() == [[False, False, True, True, False, False, False, False]]
    assert PROTOCOLS["plain"].mask(truth)[0, 3:].tolist() == [True, True, True, False, False]


def test_predictions_are_clamped_to_the_range():
    predicted = np.array([[-3.0, 5.0, 900.0]], dtype=np.float32)
    assert GARG.clamp(predicted).tolist() == [[1e-3, 5.0, 80.0]]
    assert PROTOCOLS["plain"].clamp(predicted).tolist() == [[1e-3, 5.0, 900.0]]


def test_a_pair_is_clamped_before_it_is_measured():
    truth = np.array([[40.0, math.nan]])
    protocol = replace(PROTOCOLS["plain"], max_m=80.0)
    assert evaluate_pair(np.array([[500.0, 1.0]]), truth, protocol)["rmse"] == 40.0


def test_a_nan_prediction_where_there_is_truth_is_an_error_not_a_score():
    with pytest.raises(ValueError, match="prediction of nan"):
        evaluate_pair(np.array([[math.nan]]), np.array([[4.0]]), PROTOCOLS["plain"])


def test_a_protocol_says_all_of_itself_in_json():
    assert GARG.as_json() == {
        "name": "kitti_eigen_garg80",
        "crop": "garg",
        "min_m": 1e-3,
        "max_m": 80.0,
        "flip_average": True,
    }


def test_an_unknown_crop_or_an_empty_range_is_refused():
    with pytest.raises(ValueError, match="none, garg, eigen_nyu"):
        Protocol("x", crop="gorg", min_m=1.0, max_m=None, flip_average=False)
    with pytest.raises(ValueError, match="0 < min < max"):
        Protocol("x", crop="none", min_m=5.0, max_m=1.0, flip_average=False)


def golden_protocol(name):
    """A protocol of the golden file: one of ours by name, or `plain` with a cap."""
    settings = GOLD["protocols"][name]
    protocol = PROTOCOLS.get(name) or replace(PROTOCOLS["plain"], max_m=settings["max_m"])
    assert (protocol.crop, protocol.max_m, protocol.min_m) == (settings["crop"], settings["max_m"], 1e-3)
    return protocol


@pytest.mark.parametrize(
    ("image", "protocol"), [(image, protocol) for image, under in GOLD["metrics"].items() for protocol in under]
)
def test_every_metric_is_that_of_the_golden_file_to_12_digits(image, protocol):
    with np.load(GOLDEN.with_suffix(".npz")) as maps:
        repeat = np.ones((GOLD["repeat"][image],) * 2, np.float32)
        predicted, truth = (np.kron(maps[f"{image}_{side}_m"], repeat) for side in ("predicted", "truth"))
    found = evaluate_pair(predicted, truth, golden_protocol(protocol))
    assert set(found) == set(METRICS)
    assert found == pytest.approx(GOLD["metrics"][image][protocol], rel=1e-12, abs=0)


def test_every_protocol_has_golden_metrics():
    assert set(PROTOCOLS) < {protocol for under in GOLD["metrics"].values() for protocol in under}


def test_the_golden_file_is_what_its_script_writes():
    script = runpy.run_path(str(GOLDEN.with_suffix(".py")))
    maps = script["make_maps"]()
    with np.load(GOLDEN.with_suffix(".npz")) as stored:
        assert set(stored) == set(maps)
        assert all(stored[name].dtype == np.float32 for name in stored)
    assert script["golden"](maps, ["edges"]) == {"edges": GOLD["metrics"]["edges"]}


@pytest.mark.realdata
@pytest.mark.skipif(not SHARED.exists(), reason="no ../shared/data")
@pytest.mark.parametrize(
    ("split", "abs_rel", "rmse", "delta1"),
    [("sample_train", 0.0579, 3.4745, 0.9537), ("sample_test", 0.0633, 2.5179, 0.9531)],
)
def test_the_real_teacher_scores_what_its_readme_says(split, abs_rel, rmse, delta1):
    image = pytest.importorskip("PIL.Image")
    scores = []
    for line in (SHARED / "splits" / f"{split}.txt").read_text().splitlines():
        rgb, truth_path, _ = line.split()
        with image.open(SHARED / "gt_depth" / truth_path) as file:
            truth = np.asarray(file, dtype=np.float64) / 256
        left = (truth.shape[1] - 1216) // 2
        truth = truth[-352:, left : left + 1216]
        with image.open(SHARED / "teacher_png16" / rgb.replace("/", "_")) as file:
            predicted = np.asarray(file, dtype=np.float64) / 65535 * 80
        scores.append(evaluate_pair(predicted, truth, GARG))
    mean = mean_metrics(scores)
    assert mean["abs_rel"] == pytest.approx(abs_rel, abs=5e-5)
    assert mean["rmse"] == pytest.approx(rmse, abs=5e-5)
    assert mean["delta1"] == pytest.approx(delta1, abs=5e-5)
