"""Every loss, its parts and its gradient are those of the formulas, computed in NumPy and float64 beside ours."""

from __future__ import annotations

import math

import loss_formulas
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pipeline.depth.bins import bin_edges
from pipeline.losses.registry import LOSSES, build_loss
from pipeline.sources.view import View
from pipeline.store import open_store
from pipeline.train.config import Recipe
from pipeline.train.dataset import Augmentation, TrainingData
from pipeline.train.options import TrainOptions

EDGES = bin_edges(12, 0.5, 20.0, "log")
SETTINGS = {"sigma_m": 0.8, "weight": 0.3}
EVERY_LOSS = sorted(name for name, entry in LOSSES.items() if "dpm" in entry.heads)
HOLES = torch.tensor([math.nan, 0.0, -1.0, math.inf, -math.inf, math.nan])


def made(height=14, width=9, scale=1, *, holes=False):
    """Logits and a smooth target that lies partly outside the bins, `scale` times as large as the logits."""
    random = torch.Generator().manual_seed(height * width)
    logits = torch.randn(2, 12, height, width, generator=random, dtype=torch.float64)
    rows = torch.linspace(0.3, 24, height * scale, dtype=torch.float64).view(1, 1, -1, 1)
    target = rows + torch.rand(2, 1, height * scale, width * scale, generator=random, dtype=torch.float64)
    if holes:
        target[:, :, 6:8, 1:7] = HOLES
        target[0, 0, 1] = target[1, 0, -1] = math.nan
        target[:, :, 9::2, 1::3] = math.nan
    return logits, target


CASES = {
    "whole": (made(), 0),
    "holes": (made(holes=True), 0),
    "skipped rows": (made(), 5),
    "holes and skipped rows": (made(holes=True), 3),
    "half resolution": (made(7, 5, scale=2), 0),
    "half resolution, holes and skipped rows": (made(7, 5, scale=2, holes=True), 3),
}


def the_loss(name, skip_rows=0):
    """The loss of a name, made as a run makes it."""
    return build_loss(name, EDGES, **SETTINGS, skip_rows=skip_rows, centered=False)


def expected(name, logits, target, skip_rows=0, edges=EDGES, filler_m=None):
    arrays = (logits.detach().numpy(), target.double().numpy(), edges.numpy())
    return loss_formulas.loss_terms(name, *arrays, **SETTINGS, skip_rows=skip_rows, filler_m=filler_m)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", EVERY_LOSS)
def test_every_loss_and_each_of_its_parts_is_its_formula(name, case):
    (logits, target), skip_rows = CASES[case]
    found = the_loss(name, skip_rows=skip_rows).terms(logits, target)
    assert {part: float(value) for part, value in found.items()} == pytest.approx(
        expected(name, logits, target, skip_rows), rel=1e-9
    )


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", EVERY_LOSS)
def test_every_gradient_is_the_slope_of_the_formula(name, case):
    (logits, target), skip_rows = CASES[case]
    logits = logits.clone().requires_grad_()
    the_loss(name, skip_rows=skip_rows)(logits, target).backward()
    # In SSIM an absent target is the student's own depth, held fast: the formula is given it as it was.
    filler_m = loss_formulas.student_depth_m(logits.detach().numpy(), EDGES.numpy(), target.shape[2:])
    random = torch.Generator().manual_seed(1)
    step = 1e-5
    for _ in range(3):
        way = torch.randn(logits.shape, generator=random, dtype=torch.float64)
        ahead, behind = (
            expected(name, logits + sign * step * way, target, skip_rows, filler_m=filler_m)["loss"] for sign in (1, -1)
        )
        assert float((logits.grad * way).sum()) == pytest.approx((ahead - behind) / (2 * step), rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("name", EVERY_LOSS)
def test_a_loss_on_truth_is_its_formula_with_sparse_ground_truth_as_target(name, scenes):
    # The way of `--loss truth-NAME`: the recipe's choices, and targets as training reads them.
    samples = scenes.samples("all")[:2]
    recipe = Recipe.make(TrainOptions(loss=f"truth-{name}", **SETTINGS), scenes, samples, None, "sparse")
    data = TrainingData(
        scenes, samples, View.parse(recipe.view), store=None, maps_px=None, augmentation=Augmentation(), seed=0
    )
    target = torch.stack([data[0, number].target_depth_m for number in range(2)])[:, :, ::2, ::2].clone()
    target[:, :, ::3] = math.nan
    assert 0.1 < float(target.isfinite().double().mean()) < 0.9
    edges = torch.tensor(recipe.bin_edges_m, dtype=torch.float64)
    random = torch.Generator().manual_seed(0)
    coarse = torch.randn(2, len(edges) - 1, 2, 3, generator=random, dtype=torch.float64)
    logits = F.interpolate(coarse, (8, 16), mode="bilinear")
    found = recipe.build_loss().terms(logits, target)
    wanted = expected(name, logits, target, recipe.skip_rows, edges)
    assert {part: float(value) for part, value in found.items()} == pytest.approx(wanted, rel=1e-9)


def test_a_run_on_truth_has_no_use_for_the_store_it_is_given(scenes, teacher_store):
    samples = scenes.samples("all")
    alone = Recipe.make(TrainOptions(loss="truth-tiekd"), scenes, samples, None, None)
    beside = Recipe.make(TrainOptions(loss="truth-tiekd"), scenes, samples, open_store(teacher_store), None)
    assert (beside.store, beside.stored_maps, beside.truth_of) == (None, False, "default")
    assert alone.build_loss().kind == beside.build_loss().kind == "gaussian"


def test_the_formulas_know_a_map_in_closed_form():
    # One of their own: two bins of equal mass, a depth on the middle edge.
    edges = np.array([0.0, 1.0, 2.0])
    assert loss_formulas.gaussian_map(1.0, edges, 0.7) == pytest.approx([0.5, 0.5])
    assert loss_formulas.kl([0.5, 0.5], [0.25, 0.75]) == pytest.approx(0.5 * math.log(4 / 3))
    assert loss_formulas.resized(np.array([[0.0, 4.0]]), (1, 4)) == pytest.approx(np.array([[0, 1, 3, 4]]))
    assert loss_formulas.blur(np.ones((13, 13)))[6, 6] == pytest.approx(1)
