"""Doubt beside error: every figure against a slow and plain computation, and where the answer is known."""

import csv
import json
import math

import fakes
import numpy as np
import pytest
import torch
from click.testing import CliRunner

from pipeline.cli.evaluate import evaluate_student as command
from pipeline.common.fileio import pretty_json
from pipeline.depth.bins import bin_edges
from pipeline.depth.dpm import entropy_nats, expected_depth, gaussian_dpm, interval_m
from pipeline.depth.map_statistics import LEVELS, map_at, map_statistics
from pipeline.depth.metrics import PROTOCOLS
from pipeline.depth.risk_coverage import (
    COVERAGES,
    ErrorHistogram,
    constant_widths,
    relative_difference,
    risk_coverage,
    spearman,
)
from pipeline.depth.uncertainty import UncertaintyMeter, Views
from pipeline.evaluation.protocol import choose_protocol
from pipeline.evaluation.result import write_result
from pipeline.evaluation.run import evaluate_student
from pipeline.networks.predict import predict_depth_m, predict_views
from pipeline.networks.reader import Reader
from pipeline.networks.registry import build_student
from pipeline.networks.saved_run import CONFIG, WEIGHTS, LoadedRun, save_weights
from pipeline.sources.registry import open_source

EDGES_M = bin_edges(16, 1.0, 20.0, "log").numpy()
CENTERS_M = (EDGES_M[1:] + EDGES_M[:-1]) / 2


def random_map(size_px=(6, 9), seed=0):
    """A map (K, h, w) of float32 with all sorts of widths."""
    logits = np.random.default_rng(seed).normal(0, 3, (len(CENTERS_M), *size_px))
    return torch.softmax(torch.from_numpy(logits).float(), dim=0)


def all_pixels(size_px):
    """Rows and columns of every pixel."""
    return np.ones(size_px, bool).nonzero()


# --- one pixel -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("view_px", [(6, 9), (12, 18), (25, 21), (4, 5)])
def test_a_map_between_its_pixels_is_what_interpolation_of_the_whole_map_gives(view_px):
    dpm = random_map()
    whole = torch.nn.functional.interpolate(dpm[None].double(), view_px, mode="bilinear", align_corners=False)[0]
    rows, columns = all_pixels(view_px)
    assert np.allclose(map_at(dpm, rows, columns, view_px), whole[:, rows, columns].T.numpy(), atol=1e-12)


def test_the_mean_of_a_map_between_its_pixels_is_the_depth_that_is_measured():
    dpm, view_px = random_map(), (12, 18)
    depth_m = expected_depth(dpm[None], torch.from_numpy(EDGES_M))
    depth_m = torch.nn.functional.interpolate(depth_m, view_px, mode="bilinear", align_corners=False)[0, 0]
    rows, columns = all_pixels(view_px)
    assert np.allclose(
        map_at(dpm, rows, columns, view_px).numpy() @ CENTERS_M, depth_m[rows, columns].numpy(), rtol=1e-6
    )


def test_doubt_is_what_the_pure_formulas_say():
    dpm, edges = random_map(), torch.from_numpy(EDGES_M)
    rows, columns = all_pixels((6, 9))
    facts = map_statistics(dpm, EDGES_M, rows, columns, (6, 9), np.full(54, 5.0), (0.3, 0.9))
    whole = dpm[None].double()
    depth_m = expected_depth(whole, edges)[0, 0].numpy()
    assert np.allclose(facts.entropy_nats, entropy_nats(whole).flatten().numpy(), atol=1e-6)
    for place, level in enumerate((0.3, 0.9)):
        low, high = interval_m(whole, edges, level)
        assert np.allclose(facts.widths[:, place], ((high - low)[0, 0].numpy() / depth_m).flatten(), rtol=1e-5)
    for pixel in (0, 17, 53):
        p = dpm[:, rows[pixel], columns[pixel]].double().numpy()
        mean = sum(p[k] * CENTERS_M[k] for k in range(16)) / p.sum()
        variance = sum(p[k] * (CENTERS_M[k] - mean) ** 2 for k in range(16)) / p.sum()
        assert facts.deviation[pixel] == pytest.approx(math.sqrt(variance) / mean, rel=1e-6)


def test_a_truth_lies_inside_exactly_the_intervals_whose_ends_enclose_it():
    dpm, edges = random_map((20, 30)), torch.from_numpy(EDGES_M)
    truth_m = np.exp(np.random.default_rng(1).uniform(np.log(0.8), np.log(25), (20, 30)))  # some beyond the bins
    rows, columns = all_pixels((20, 30))
    facts = map_statistics(dpm, EDGES_M, rows, columns, (20, 30), truth_m[rows, columns])
    for level in LEVELS:
        low, high = (end[0, 0].numpy() for end in interval_m(dpm[None].double(), edges, level))
        inside = (low <= truth_m) & (truth_m <= high)
        assert 0 < inside.sum() < inside.size
        assert np.array_equal(facts.truth_level.reshape(20, 30) <= level, inside)
    assert np.all(facts.truth_level[(truth_m < EDGES_M[0]).flatten() | (truth_m > EDGES_M[-1]).flatten()] == 1)


def test_pixels_are_taken_some_at_a_time_without_a_seam(monkeypatch):
    dpm, truth_m = random_map(), np.linspace(2, 18, 54)
    rows, columns = all_pixels((6, 9))
    whole = map_statistics(dpm, EDGES_M, rows, columns, (6, 9), truth_m)
    monkeypatch.setattr("pipeline.depth.map_statistics._CHUNK", 7)
    parts = map_statistics(dpm, EDGES_M, rows, columns, (6, 9), truth_m)
    assert all(np.allclose(one, other, rtol=1e-12) for one, other in zip(whole, parts, strict=True))


def test_a_map_of_other_bins_is_refused():
    with pytest.raises(ValueError, match=r"map of shape \(16, 6, 9\): expected .* K = 4 bins"):
        map_statistics(random_map(), np.arange(5.0), *all_pixels((6, 9)), (6, 9), np.ones(54))


# --- many pixels -----------------------------------------------------------------------------------------------------


def plain_risk(doubt, error, share):
    """Mean error of the least doubtful share, pixel by pixel; the last pixel may count in part."""
    left, total = share * len(error), 0.0
    for place in sorted(range(len(error)), key=lambda place: doubt[place]):
        taken = min(1.0, left)
        total, left = total + taken * error[place], left - taken
    return total / (share * len(error))


def test_risk_by_coverage_is_the_mean_error_of_the_least_doubtful():
    random = np.random.default_rng(0)
    doubt, error = random.uniform(size=137), random.exponential(size=137)
    curve = risk_coverage(doubt, error)
    assert curve.risk == pytest.approx([plain_risk(doubt, error, share) for share in COVERAGES])
    ranked = error[np.argsort(doubt)]
    assert curve.aurc == pytest.approx(np.mean([ranked[:count].mean() for count in range(1, 138)]))
    assert curve.risk[-1] == pytest.approx(error.mean())


def test_equal_doubt_gives_the_mean_over_every_order():
    random = np.random.default_rng(0)
    doubt, error = random.integers(0, 4, 60).astype(float), random.exponential(size=60)
    orders = [risk_coverage(doubt + 1e-9 * random.uniform(size=60), error) for _ in range(4000)]
    curve = risk_coverage(doubt, error)
    assert curve.aurc == pytest.approx(np.mean([one.aurc for one in orders]), rel=5e-3)
    assert curve.risk == pytest.approx(np.mean([one.risk for one in orders], axis=0), rel=2e-2)


def test_the_order_of_pixels_never_matters():
    random = np.random.default_rng(0)
    doubt, error = random.integers(0, 5, 200).astype(float), random.exponential(size=200)
    order = random.permutation(200)
    assert risk_coverage(doubt, error).aurc == pytest.approx(risk_coverage(doubt[order], error[order]).aurc, rel=1e-12)


def test_rank_correlation_is_the_pearson_correlation_of_mean_ranks():
    random = np.random.default_rng(0)
    one = random.integers(0, 9, 80).astype(float)
    other = one + random.normal(0, 4, 80).round()

    def ranks(values):
        return [1 + sum(each < value for each in values) + (sum(values == value) - 1) / 2 for value in values]

    assert spearman(one, other) == pytest.approx(np.corrcoef(ranks(one), ranks(other))[0, 1])
    assert spearman(one, one**3) == pytest.approx(1)
    assert spearman(one, -one) == pytest.approx(-1)
    assert spearman(one, np.ones(80)) is None


def test_quantiles_of_errors_count_every_image_the_same():
    random = np.random.default_rng(0)
    images = [random.exponential(scale, count) for scale, count in ((0.1, 4000), (0.5, 50), (0.02, 900))]
    spread = ErrorHistogram()
    for errors in images:
        spread.add(errors)
    for share, found in zip((0.1, 0.5, 0.9), spread.quantiles((0.1, 0.5, 0.9)), strict=True):
        assert np.mean([(errors <= found * 1.005).mean() for errors in images]) >= share
        assert np.mean([(errors <= found / 1.005).mean() for errors in images]) <= share


def test_a_constant_interval_never_reaches_below_zero():
    assert constant_widths(np.array([0.2, 1.0, 1.5])) == pytest.approx([0.4, 2.0, 2.5])


def test_errors_of_no_image_have_no_quantiles():
    with pytest.raises(ValueError, match="no image to fit intervals on"):
        ErrorHistogram().quantiles((0.5,))


# --- known answers ---------------------------------------------------------------------------------------------------


def meter_of(truth_m, predicted_m, dpm=None, mirrored_m=None, edges_m=EDGES_M, calibration=None):
    """A meter that has seen one image."""
    meter = UncertaintyMeter(edges_m, calibration)
    views = Views(dpm, predicted_m, predicted_m if mirrored_m is None else mirrored_m)
    row = meter.add(predicted_m, truth_m, np.ones(truth_m.shape, bool), views)
    return meter.result(), row


def test_truth_that_was_drawn_from_the_map_is_inside_as_often_as_the_map_says():
    random = np.random.default_rng(0)
    edges_m = bin_edges(400, 1.0, 41.0).numpy()
    depth_m = random.uniform(12, 28, (60, 80))
    for sigma_m in (1.0, 3.0):
        dpm = gaussian_dpm(torch.from_numpy(depth_m)[None, None], torch.from_numpy(edges_m), sigma_m)[0]
        truth_m = depth_m + random.normal(0, sigma_m, depth_m.shape)
        found = meter_of(truth_m, depth_m, dpm, edges_m=edges_m)[0]["intervals"]["map"]
        four_sigma = 4 * np.sqrt(0.25 / depth_m.size)
        assert np.allclose(found["observed"], found["nominal"], atol=four_sigma)
        assert found["ece"] < four_sigma / 2
        expected = 2 * 1.6449 * sigma_m * np.mean(1 / depth_m)
        assert found["width"][LEVELS.index(0.9)] == pytest.approx(expected, rel=0.01)
        assert found["equal"]["width"][2] == pytest.approx(expected, rel=0.06)


def test_a_map_that_is_too_sure_is_seen_and_pays_in_width_for_the_same_coverage():
    random = np.random.default_rng(0)
    edges_m = bin_edges(400, 1.0, 41.0).numpy()
    depth_m = np.full((60, 80), 20.0)
    dpm = gaussian_dpm(torch.from_numpy(depth_m)[None, None], torch.from_numpy(edges_m), 1.0)[0]
    truth_m = depth_m + random.normal(0, 2.0, depth_m.shape)
    found = meter_of(truth_m, depth_m, dpm, edges_m=edges_m)[0]["intervals"]["map"]
    # The 90 % interval reaches 1.645 of the map's sigma, 0.822 of the truth's, and holds erf(0.822 / sqrt 2).
    assert found["observed"][LEVELS.index(0.9)] == pytest.approx(0.589, abs=0.03)
    assert found["equal"]["width"][2] == pytest.approx(2 * 1.6449 * 2 / 20, rel=0.05)
    assert found["ece"] == pytest.approx(
        np.mean([abs(have - say) for have, say in zip(found["observed"], LEVELS, strict=True)])
    )
    assert found["ece"] > 0.1


def test_a_measure_that_is_the_error_is_the_oracle_and_one_that_is_constant_the_plain_mean():
    random = np.random.default_rng(0)
    truth_m = random.uniform(2, 20, (30, 40))
    predicted_m = truth_m * random.uniform(1, 1.5, (30, 40))
    error = predicted_m / truth_m - 1
    # The mirrored image's depth is as far off, by depth, as the truth by itself.
    found, row = meter_of(truth_m, predicted_m, mirrored_m=predicted_m * (1 - error))
    measures = found["measures"]
    assert measures["flip"]["ause"] == pytest.approx(0, abs=1e-12)
    assert row["ause_flip"] == measures["flip"]["ause"]
    assert measures["flip"]["risk"] == pytest.approx(measures["oracle"]["risk"])
    assert measures["flip"]["spearman"] == pytest.approx(1)
    assert measures["random"]["risk"] == pytest.approx([error.mean()] * 20)
    assert measures["random"]["aurc"] == pytest.approx(error.mean())
    flat = meter_of(truth_m, predicted_m)[0]["measures"]["flip"]  # both views agree everywhere
    assert flat["risk"] == pytest.approx([error.mean()] * 20)
    assert flat["spearman"] is None
    assert flat["ause"] == pytest.approx(measures["random"]["ause"])


def test_ause_is_the_area_between_the_normalized_curves():
    random = np.random.default_rng(0)
    truth_m, predicted_m, mirrored_m = random.uniform(2, 20, (3, 30, 40))
    found, _ = meter_of(truth_m, predicted_m, mirrored_m=mirrored_m)
    error = (np.abs(predicted_m - truth_m) / truth_m).flatten()
    doubt = (np.abs(predicted_m - mirrored_m) / predicted_m).flatten()
    area = 0.0
    for removed in range(len(error)):
        kept = len(error) - removed
        by_doubt, by_error = (error[np.argsort(order)][:kept].mean() for order in (doubt, error))
        area += (by_doubt - by_error) / error.mean() / len(error)
    assert found["measures"]["flip"]["ause"] == pytest.approx(area)


def test_images_count_the_same_however_many_pixels_they_have():
    random = np.random.default_rng(0)
    meter, images = UncertaintyMeter(EDGES_M), []
    for number, size_px in enumerate([(6, 9), (30, 40)]):
        truth_m, depth_m, mirrored_m = random.uniform(2, 18, (3, *size_px))
        dpm = random_map(size_px, number)
        meter.add(depth_m, truth_m, np.ones(size_px, bool), Views(dpm, depth_m, mirrored_m))
        images.append(meter_of(truth_m, depth_m, dpm, mirrored_m)[0])
    found = meter.result()
    for name in ("entropy", "width", "deviation", "flip", "oracle", "random"):
        for key in ("aurc", "ause", "risk"):
            each = [np.array(image["measures"][name][key]) for image in images]
            assert np.allclose(found["measures"][name][key], np.mean(each, axis=0))
    each = [image["intervals"]["map"]["observed"] for image in images]
    assert np.allclose(found["intervals"]["map"]["observed"], np.mean(each, axis=0))
    assert found["frames"] == 2


def test_only_pixels_of_the_mask_count():
    random = np.random.default_rng(0)
    truth_m, depth_m, mirrored_m = random.uniform(2, 18, (3, 6, 9))
    mask = random.uniform(size=(6, 9)) < 0.5
    meter = UncertaintyMeter(EDGES_M)
    meter.add(depth_m, np.where(mask, truth_m, np.nan), mask, Views(random_map(), depth_m, mirrored_m))
    rows, columns = mask.nonzero()
    facts = map_statistics(random_map(), EDGES_M, rows, columns, (6, 9), truth_m[mask], depth_m=depth_m[mask])
    error = np.abs(depth_m - truth_m)[mask] / truth_m[mask]
    doubts = {
        "entropy": facts.entropy_nats,
        "width": facts.widths[:, LEVELS.index(0.9)],
        "deviation": facts.deviation,
        "flip": relative_difference(depth_m, mirrored_m)[mask],
    }
    for name, doubt in doubts.items():
        found = meter.result()["measures"][name]
        assert found["aurc"] == pytest.approx(risk_coverage(doubt, error).aurc)
        assert found["spearman"] == pytest.approx(spearman(doubt, error))


def test_a_student_without_a_map_has_the_mirror_alone_and_constant_intervals_alone():
    random = np.random.default_rng(0)
    predicted_m = random.uniform(5, 10, (2, 60, 80))
    truth_m = predicted_m * (1 + random.uniform(-0.4, 0.4, (2, 60, 80)))
    calibration = ErrorHistogram()
    calibration.add(relative_difference(predicted_m[0], truth_m[0]).flatten())
    found, row = meter_of(truth_m[1], predicted_m[1], calibration=calibration)
    assert set(found["measures"]) == {"flip", "oracle", "random"}
    assert set(row) == {"ause_flip"}
    constant = found["intervals"].pop("constant")
    assert found["intervals"] == {}
    # Errors up to 0.4, evenly: q for 90 % is 0.36, and the interval 0.72 of depth.
    assert constant["calibration"]["relative_error"] == pytest.approx(np.multiply(LEVELS, 0.4), abs=0.01)
    assert constant["observed"] == pytest.approx(LEVELS, abs=0.03)
    assert constant["equal"]["width"] == pytest.approx([0.4, 0.64, 0.72, 0.76], abs=0.02)
    assert pretty_json(found)


def test_no_image_has_no_result():
    with pytest.raises(ValueError, match="no image was evaluated"):
        UncertaintyMeter(EDGES_M).result()


# --- of a run --------------------------------------------------------------------------------------------------------


class Lopsided(torch.nn.Module):
    """Logits at half resolution from brightness and place, so that a mirrored image is seen otherwise."""

    def forward(self, images):
        gray = torch.nn.functional.avg_pool2d(images.mean(dim=1, keepdim=True), 2)
        place = torch.linspace(0, 1, gray.shape[3])
        centers = torch.from_numpy(CENTERS_M).float().view(1, -1, 1, 1)
        return -((centers - 6 + 2 * gray - place) ** 2) / (1 + 4 * place)


def run_of(**config):
    return LoadedRun(Lopsided(), EDGES_M, "0", {"view": "full", "student": "lopsided", **config})


def test_maps_are_of_the_image_itself_and_depth_is_as_without_them():
    images = torch.rand(2, 3, 12, 20, generator=torch.Generator().manual_seed(0))
    edges_m = torch.from_numpy(EDGES_M)
    for flip_average in (False, True):
        views = predict_views(Lopsided(), images, Reader(edges_m), flip_average=flip_average)
        depth_m = predict_depth_m(Lopsided(), images, Reader(edges_m), flip_average=flip_average)
        assert torch.equal(views.depth_m, depth_m)
        assert torch.equal(views.direct_m, predict_depth_m(Lopsided(), images, Reader(edges_m), flip_average=False))
        flipped_m = predict_depth_m(Lopsided(), images.flip(-1), Reader(edges_m), flip_average=False).flip(-1)
        assert torch.allclose(views.mirrored_m, flipped_m)
        assert not torch.allclose(views.mirrored_m, views.direct_m, rtol=0.01)
        whole = torch.nn.functional.interpolate(expected_depth(views.maps, edges_m), (12, 20), mode="bilinear")
        assert torch.allclose(whole[:, 0], views.direct_m)


@pytest.mark.parametrize("protocol", ["plain", "flip"])
def test_every_other_figure_stays_the_same(scenes, protocol):
    protocol = PROTOCOLS["plain"] if protocol == "plain" else PROTOCOLS["kitti_eigen_garg80"]
    without = evaluate_student(run_of(), scenes, "test", protocol)
    found = evaluate_student(run_of(), scenes, "test", protocol, uncertainty=True)
    assert found["metrics"] == without["metrics"]
    doubt = found["uncertainty"]
    assert doubt["measures"]["random"]["aurc"] == pytest.approx(found["metrics"]["abs_rel"])
    assert doubt["measures"]["entropy"]["risk"][-1] == pytest.approx(found["metrics"]["abs_rel"])
    assert doubt["frames"] == found["frames"]
    entropies = [row["ause_entropy"] for row in found["per_image"]]
    assert doubt["measures"]["entropy"]["ause"] == pytest.approx(np.mean(entropies))
    held = doubt["intervals"]["map"]["observed"][LEVELS.index(0.9)]
    assert held == pytest.approx(np.mean([row["coverage_90"] for row in found["per_image"]]))
    assert set(doubt["intervals"]) == {"map"}


def test_each_frame_of_a_batch_is_judged_by_its_own_map_and_its_own_mirrored_look(scenes):
    rows = {}
    for batch_size in (1, 2):
        found = evaluate_student(run_of(), scenes, "test", PROTOCOLS["plain"], uncertainty=True, batch_size=batch_size)
        rows[batch_size] = found["per_image"]
    for one, other in zip(rows[1], rows[2], strict=True):
        assert one == {"id": other["id"]} | {name: pytest.approx(other[name], rel=1e-4) for name in one if name != "id"}
    assert rows[2][0]["entropy_nats"] != pytest.approx(rows[2][1]["entropy_nats"], rel=1e-3)
    for row in rows[2]:
        image = torch.from_numpy(fakes.image_of(fakes.smooth_depth_m((32, 64), int(row["id"]))))
        image, edges_m = image.permute(2, 0, 1)[None].float() / 255, torch.from_numpy(EDGES_M)
        plain_m = predict_depth_m(Lopsided(), image, Reader(edges_m), flip_average=False)[0].numpy()
        mirrored_m = predict_depth_m(Lopsided(), image.flip(-1), Reader(edges_m), flip_average=False)[0].numpy()[
            :, ::-1
        ]
        truth_m = scenes.read_truth_m(next(sample for sample in scenes.samples("test") if sample.id == row["id"]))
        assert np.isfinite(truth_m).all()
        assert row["ause_flip"] == pytest.approx(meter_of(truth_m, plain_m, mirrored_m=mirrored_m)[1]["ause_flip"])


def test_constant_intervals_are_fitted_on_other_images(scenes):
    protocol = PROTOCOLS["plain"]
    found = evaluate_student(run_of(), scenes, "test", protocol, uncertainty=True, calibration_split="train")
    spread = ErrorHistogram()
    for sample in scenes.samples("train"):
        image = torch.from_numpy(fakes.image_of(fakes.smooth_depth_m((32, 64), int(sample.id))))
        network, edges_m = run_of().network, torch.from_numpy(EDGES_M)
        depth_m = predict_depth_m(
            network, image.permute(2, 0, 1)[None].float() / 255, Reader(edges_m), flip_average=False
        )
        truth_m = scenes.read_truth_m(sample)
        spread.add(relative_difference(depth_m[0].numpy()[truth_m > 0], truth_m[truth_m > 0]))
    constant = found["uncertainty"]["intervals"]["constant"]
    assert constant["calibration"]["relative_error"] == pytest.approx(spread.quantiles(LEVELS))
    assert (constant["calibration"]["split"], constant["calibration"]["frames"]) == ("train", 6)


def test_the_head_depth_has_no_map(scenes):
    found = evaluate_student(run_of(head="depth"), scenes, "test", PROTOCOLS["plain"], uncertainty=True)["uncertainty"]
    assert set(found["measures"]) == {"flip", "oracle", "random"}
    assert found["intervals"] == {}


def test_a_calibration_split_is_of_other_images_has_truth_and_comes_with_the_flag(tmp_path, scenes):
    with pytest.raises(ValueError, match="`calibration_split=all` shares 2 images with split 'test' .'000006'."):
        evaluate_student(run_of(), scenes, "test", PROTOCOLS["plain"], uncertainty=True, calibration_split="all")
    with pytest.raises(ValueError, match="`calibration_split=train` is only used with `uncertainty`: add it"):
        evaluate_student(run_of(), scenes, "test", PROTOCOLS["plain"], calibration_split="train")
    source = open_source(f"kitti:{fakes.make_kitti(tmp_path / 'kitti', 6)}")
    first, last = tmp_path / "first.txt", tmp_path / "last.txt"
    lines = (source.root / "splits" / "test.txt").read_text().splitlines()
    first.write_text(lines[0])
    last.write_text(lines[1])
    with pytest.raises(ValueError, match="no image of calibration split .*last.txt' has ground truth"):
        evaluate_student(
            run_of(), source, str(first), PROTOCOLS["plain"], uncertainty=True, calibration_split=str(last)
        )


def test_rows_have_columns_of_doubt_only_where_it_was_measured(tmp_path, scenes):
    plain = choose_protocol("plain", scenes)
    write_result(evaluate_student(run_of(), scenes, "test", plain), tmp_path / "without.json")
    result = evaluate_student(run_of(), scenes, "test", plain, uncertainty=True)
    write_result(result, tmp_path / "with.json")
    rows = {}
    for name in ("without", "with"):
        with (tmp_path / f"{name}.csv").open(newline="") as file:
            rows[name] = list(csv.DictReader(file))
    added = ["entropy_nats", "ause_entropy", "ause_flip", "coverage_90"]
    assert list(rows["with"][0]) == [*rows["without"][0], *added]
    assert [float(rows["with"][1][name]) for name in added] == [result["per_image"][1][name] for name in added]
    assert json.loads((tmp_path / "with.json").read_text())["uncertainty"] == result["uncertainty"]


@pytest.mark.parametrize("head", ["dpm", "depth"])
def test_the_command_prints_what_it_found(tmp_path, scenes, head):
    torch.manual_seed(0)
    edges_m = EDGES_M if head == "dpm" else np.array([1.0, 5.0, 9.0])
    network = build_student("lean", len(edges_m) - 1)
    save_weights(network, tmp_path / WEIGHTS)
    config = {"student": "lean", "bin_edges_m": edges_m.tolist(), "view": "full", "head": head}
    (tmp_path / CONFIG).write_bytes(pretty_json(config))
    call = [str(tmp_path), "--source", f"scenes:{scenes.root}", "--split", "test", "--uncertainty"]
    done = CliRunner().invoke(command, [*call, "--out", str(tmp_path / "m.json")])
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "m.json").read_text())["uncertainty"]
    assert f"{found['measures']['flip']['ause']:.4f}" in done.output
    assert ("entropy" in done.output) == (head == "dpm")
    if head == "dpm":
        assert f"{found['intervals']['map']['observed'][LEVELS.index(0.9)]:.1%}" in done.output
    else:
        assert "predicts no map" in done.output
    done = CliRunner().invoke(command, [*call, "--calibration-split", "train", "--out", str(tmp_path / "m.json")])
    assert "constant" in done.output
