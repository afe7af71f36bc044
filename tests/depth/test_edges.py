"""Error and F1 near depth edges, and the constant that depth is multiplied by."""

import numpy as np
import pytest

from pipeline.depth.edges import edge_metrics
from pipeline.depth.scale import ScaleFit


def step(near_m=4.0, far_m=8.0, size=(20, 40), column=20):
    depth_m = np.full(size, near_m)
    depth_m[:, column:] = far_m
    return depth_m


ALL = np.ones((20, 40), bool)


def test_a_perfect_prediction_has_no_error_and_an_f1_of_one():
    assert edge_metrics(step(), step(), ALL) == {"edge_abs_rel": 0.0, "edge_f1": 1.0}


def test_only_pixels_within_5_px_of_an_edge_count():
    predicted = step()
    predicted[:, :14] *= 2  # the band is columns 14 to 25
    predicted[:, 26:] *= 2
    assert edge_metrics(predicted, step(), ALL)["edge_abs_rel"] == pytest.approx(0.0)
    predicted = step()
    predicted[:, 14:26] *= 1.5
    assert edge_metrics(predicted, step(), ALL)["edge_abs_rel"] == pytest.approx(0.5)


def test_a_blurred_an_absent_and_a_shifted_edge_lower_f1():
    blurred = step()
    blurred[:, 17:23] = np.geomspace(4, 8, 6)  # steps of 15 %: edges of some thresholds
    found = edge_metrics(blurred, step(), ALL)["edge_f1"]
    assert 0 < found < 1
    assert edge_metrics(np.full((20, 40), 6.0), step(), ALL)["edge_f1"] == 0.0
    assert edge_metrics(step(column=22), step(), ALL)["edge_f1"] == 0.0


def test_an_edge_of_the_other_direction_is_none():
    assert edge_metrics(step(8.0, 4.0), step(), ALL)["edge_f1"] == 0.0


def test_rows_and_columns_are_treated_alike():
    blurred = step()
    blurred[:, 18:22] = 6.0
    both = [edge_metrics(a, b, mask) for a, b, mask in ((blurred, step(), ALL), (blurred.T, step().T, ALL.T))]
    assert both[0] == pytest.approx(both[1])


def test_sparse_truth_and_flat_truth_have_no_edges():
    sparse = ALL.copy()
    sparse[:, ::2] = False
    sparse[::2] = False
    assert edge_metrics(step(), step(), sparse) == {}
    assert edge_metrics(step(), np.full((20, 40), 5.0), ALL) == {}


def test_values_outside_the_mask_do_not_matter():
    truth, mask = step(), ALL.copy()
    truth[:3], mask[:3] = np.nan, False
    assert edge_metrics(step(), truth, mask) == {"edge_abs_rel": 0.0, "edge_f1": 1.0}


def test_the_constant_has_the_smallest_relative_error():
    random = np.random.default_rng(0)
    truth = random.uniform(2, 60, (3, 5000))
    depth = truth * np.exp(random.normal(0.2, 0.3, truth.shape))
    fit = ScaleFit()
    for one, other in zip(depth, truth, strict=True):
        fit.add(one, other)
    factor = fit.factor()

    def error(scale):
        return np.mean(np.abs(scale * depth - truth) / truth)

    grid = np.arange(0.5, 1.2, 0.001)
    assert factor == pytest.approx(grid[np.argmin([error(scale) for scale in grid])], abs=0.003)
    assert fit.frames == 3


def test_every_image_has_the_same_weight_in_the_constant():
    fit = ScaleFit()
    fit.add(np.full(10_000, 10.0), np.full(10_000, 20.0))
    fit.add(np.full(10, 10.0), np.full(10, 5.0))
    fit.add(np.full(10, 10.0), np.full(10, 5.0))
    assert fit.factor() == pytest.approx(0.5, rel=2e-3)
    with pytest.raises(ValueError, match="no image to fit a scale on"):
        ScaleFit().factor()
