"""Every depth architecture of transformers gives what the library's own code gives, over the view, with its maps."""

from __future__ import annotations

import ast
import os
from pathlib import Path
from types import SimpleNamespace

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported: the suite asks no network

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_transformers import FIELD_OF_VIEW, METRIC, TWO_HEADS, build_processor, save_model
from transformers_cases import IDS, VIEWS, opened, refuses

from pipeline.depth.dpm import expected_depth
from pipeline.teachers.huggingface import distributions as transformers_maps
from pipeline.teachers.huggingface.distributions import edges_between

transformers = pytest.importorskip("transformers")

PROMPT = {"depth_space": "affine_depth"}
EVERY = [
    # family, configuration, options, what its numbers mean, size of its depth of a view of 37x61
    ("depth_anything", METRIC, {}, "metric_m", (28, 42)),
    ("depth_anything", {}, {}, "affine_disparity", (28, 42)),
    ("depth_pro", FIELD_OF_VIEW, {}, "metric_m", (37, 61)),
    ("depth_pro", {}, {}, "scale_invariant", (37, 61)),
    ("dpt", {}, {}, "affine_disparity", (32, 32)),
    ("dpt_dinov2", {}, {"depth_space": "metric_m"}, "metric_m", (16, 16)),
    ("glpn", {"max_depth": 80}, {}, "metric_m", (32, 32)),
    ("prompt_depth_anything", {}, PROMPT, "affine_depth", (28, 42)),
    ("tipsv2_dpt", {}, {}, "metric_m", (32, 32)),
    ("zoedepth", {}, {}, "metric_m", (37, 61)),
    ("zoedepth", TWO_HEADS, {}, "metric_m", (37, 61)),
]
NAMES = [f"{family}-{space}{'-two' * (config is TWO_HEADS)}" for family, config, _, space, _ in EVERY]
every_family = pytest.mark.parametrize(("family", "config", "options"), [one[:3] for one in EVERY], ids=NAMES)
ODD = torch.randint(0, 256, (3, 3, 37, 61), generator=torch.Generator().manual_seed(1)) / 255


def pictures(views):
    return [(view * 255).round().byte().permute(1, 2, 0).numpy() for view in views]


def upright(values, size):
    """(B, h, w) resized to the view, as whoever compares it with truth would."""
    return F.interpolate(values[:, None], size, mode="bilinear", align_corners=False)[:, 0]


def mean_of(dpm, edges_m):
    """Mean (B, h, w) of maps over the middles of their bins."""
    return (dpm * (edges_m[:, 1:] + edges_m[:, :-1]) / 2).sum(dim=1)


@pytest.mark.parametrize(("family", "config", "options", "space", "size"), EVERY, ids=NAMES)
def test_a_network_comes_back_with_its_space_and_a_batch_is_one_by_one(tmp_path, family, config, options, space, size):
    save_model(tmp_path, family, **config)
    teacher = opened(tmp_path, **options)
    together = teacher.predict(ODD, ["a", "b", "c"])
    assert teacher.card.depth_space == space
    assert (together.depth.shape, together.depth.dtype) == ((3, *size), torch.float32)
    assert together.depth.isfinite().all()
    assert not torch.equal(together.depth[0], together.depth[1])
    for number, view in enumerate(ODD):
        alone = teacher.predict(view[None], ["x"])
        torch.testing.assert_close(alone.depth[0], together.depth[number], rtol=1e-5, atol=1e-5)
        assert (alone.dpm is None) == (together.dpm is None)
        if alone.dpm is not None:
            edges_m = [together.bin_edges_m, alone.bin_edges_m]
            if edges_m[0] is None:
                edges_m = [torch.from_numpy(teacher.bin_edges_m).float().view(1, -1, 1, 1)] * 2
            # Bins whose centres are nearly the same may change places, so the sums over them are compared.
            torch.testing.assert_close(edges_m[1][0], edges_m[0][min(number, len(edges_m[0]) - 1)])
            means = [mean_of(dpm, edges) for dpm, edges in zip([together.dpm, alone.dpm], edges_m, strict=True)]
            torch.testing.assert_close(means[1][0], means[0][number], rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("family", ["depth_anything", "dpt", "glpn", "prompt_depth_anything"])
def test_depth_is_what_the_library_computes_from_its_own_processor(tmp_path, family):
    network = save_model(tmp_path, family)
    options = PROMPT if family == "prompt_depth_anything" else {}
    depth = opened(tmp_path, **options).predict(VIEWS, IDS).depth
    with torch.no_grad():
        raw = network(**build_processor(family)(images=pictures(VIEWS), return_tensors="pt")).predicted_depth
    torch.testing.assert_close(depth, raw)


@every_family
def test_depth_lies_over_the_view(tmp_path, family, config, options):
    save_model(tmp_path, family, **config)
    teacher = opened(tmp_path, **options)
    across = torch.linspace(0.1, 0.9, 61).expand(37, 61)
    down = torch.linspace(0.1, 0.9, 37)[:, None].expand(37, 61)
    images = torch.stack([across, down, 1 - across, 1 - down])[:, None].expand(-1, 3, -1, -1)
    mean, std = (0, 1) if family in {"glpn", "tipsv2_dpt"} else (0.5, 0.5)

    def looks(pixel_values):
        """A network whose depth is the brightness of what it sees."""
        bright = pixel_values[:, 0] * std + mean
        field = torch.full((len(bright),), 90.0) if config is FIELD_OF_VIEW else None
        if family == "zoedepth":  # bins from 0 to 1, and all mass in the first and the last
            centers = torch.linspace(0, 1, 8).view(1, 8, 1, 1).expand(len(bright), 8, *bright.shape[1:])
            dpm = torch.zeros_like(centers).index_fill(1, torch.tensor([0]), 1) * (1 - bright[:, None])
            dpm += torch.zeros_like(centers).index_fill(1, torch.tensor([7]), 1) * bright[:, None]
            teacher._reader._captured.update(dpm=dpm, centers_m=centers)
        if family == "tipsv2_dpt":
            teacher._reader._captured.update(weight=torch.zeros(1))
        return SimpleNamespace(predicted_depth=bright, field_of_view=field)

    if family == "tipsv2_dpt":
        teacher.bin_edges_m = None  # its maps are at the pixels of its depth
    teacher._network = looks
    given = teacher.predict(images, ["a", "b", "c", "d"])
    depth = given.depth
    if family == "depth_pro":
        depth = 1 / depth / (2 if config is FIELD_OF_VIEW else 1)
    off = upright(depth, (37, 61)) - images[:, 0]
    # The processors' own resizes move by up to half a pixel at the borders; a step is 0.022 down and 0.013 across.
    assert off.abs().max() < 0.02
    assert off.mean(dim=(1, 2)).abs().max() < 0.002
    if given.dpm is not None:
        torch.testing.assert_close(given.dpm.sum(dim=1), torch.ones(4, 37, 61))
        assert (given.dpm[:, -1] - images[:, 0]).abs().max() < 0.02


@every_family
def test_half_precision_keeps_the_digits_of_depth(tmp_path, family, config, options):
    save_model(tmp_path, family, **config)
    exact = opened(tmp_path, **options).predict(ODD, ["a", "b", "c"]).depth
    teacher = opened(tmp_path, precision="bfloat16", **options)
    depth = teacher.predict(ODD, ["a", "b", "c"]).depth
    assert teacher.card.precision == "bfloat16"
    assert not torch.equal(depth, exact)
    assert ((depth - exact).abs() / exact.abs().clamp_min(0.01)).median() < 0.03
    # Of a head in bfloat16, no depth would have more digits than that.
    assert (depth[depth != 0] != depth[depth != 0].bfloat16().float()).float().mean() > 0.9


# ZoeDepth


def test_zoedepth_is_post_processed_as_by_the_library(tmp_path, monkeypatch):
    from transformers.models.zoedepth import image_processing_pil_zoedepth as module

    class Functional:
        """What the library's post-processing calls of torchvision."""

        InterpolationMode = SimpleNamespace(BICUBIC="bicubic")

        @staticmethod
        def resize(values, size, *, interpolation, antialias):
            return F.interpolate(values[None], size, mode=interpolation, antialias=antialias)[0]

    monkeypatch.setattr(module, "tvF", Functional, raising=False)
    for padded in (True, False):
        processor = build_processor("zoedepth", do_pad=padded)
        network = save_model(tmp_path, "zoedepth", processor={"do_pad": padded})
        with torch.no_grad():
            raw = network(**processor(images=pictures(VIEWS), return_tensors="pt"))
        expected = processor.post_process_depth_estimation(raw, source_sizes=[(40, 100)] * 2)
        depth = opened(tmp_path).predict(VIEWS, IDS).depth
        torch.testing.assert_close(depth, torch.stack([one["predicted_depth"] for one in expected]))


@pytest.fixture
def means(monkeypatch):
    """What the check of means was shown: maps, centres, and the network's depth."""
    seen = []
    check = transformers_maps._check_mean

    def note(*given):
        seen.append(given)
        check(*given)

    monkeypatch.setattr(transformers_maps, "_check_mean", note)
    return seen


@pytest.mark.parametrize("config", [{}, TWO_HEADS, {"bin_centers_type": "normed"}], ids=["one", "two", "normed"])
def test_the_maps_of_zoedepth_are_those_whose_mean_is_its_depth(tmp_path, means, config):
    save_model(tmp_path, "zoedepth", **config)
    teacher = opened(tmp_path)
    given = teacher.predict(ODD, ["a", "b", "c"])
    assert (teacher.emits_maps, teacher.bin_edges_m) == (True, None)
    for dpm, centers_m, depth in means:
        torch.testing.assert_close((dpm * centers_m).sum(dim=1), depth, rtol=1e-5, atol=1e-5)
    assert given.dpm.shape == (3, 8, 37, 61)
    assert given.bin_edges_m.shape == (3, 9, 37, 61)
    assert given.dpm.min() >= 0
    torch.testing.assert_close(given.dpm.sum(dim=1), torch.ones(3, 37, 61))
    assert given.bin_edges_m.diff(dim=1).min() >= 0
    assert given.bin_edges_m.min() >= 0
    span_m = float(given.bin_edges_m[:, -1].max() - given.bin_edges_m[:, 0].min())
    off = (mean_of(given.dpm, given.bin_edges_m) - given.depth).abs()
    assert off.max() < 0.1 * span_m  # half-way edges move a centre by a quarter of the second difference


def test_centers_that_do_not_ascend_are_sorted_with_their_probabilities(tmp_path, means):
    save_model(tmp_path, "zoedepth", processor={"do_pad": False})
    teacher = opened(tmp_path)
    given = teacher.predict(torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)), ["a"])
    [(dpm, centers_m, depth)] = means
    assert given.depth.shape == (1, 64, 64)  # the network's own pixels: nothing was resized
    assert (centers_m.diff(dim=1) < 0).any()
    at = dpm.argmax(dim=1, keepdim=True)
    held = given.dpm.argmax(dim=1, keepdim=True)
    likeliest_m = centers_m.gather(1, at)
    assert (given.bin_edges_m.gather(1, held) <= likeliest_m).all()
    assert (likeliest_m <= given.bin_edges_m.gather(1, held + 1)).all()
    torch.testing.assert_close(given.depth, depth)


def test_a_head_that_computes_its_mean_in_another_way_is_refused(tmp_path):
    save_model(tmp_path, "zoedepth")
    teacher = opened(tmp_path)
    teacher._network.metric_head.attractors[-1].register_forward_hook(lambda *given: (given[2][0], given[2][1] * 1.01))
    with refuses("'" + tmp_path.name + "'", "differs from its depth by up to 0.0099", "constraints.txt"):
        teacher.predict(ODD, ["a", "b", "c"])
    teacher.emits_maps = False
    assert teacher.predict(ODD, ["a", "b", "c"]).dpm is None


def test_each_image_chooses_its_head_whatever_else_is_in_the_batch(tmp_path):
    save_model(tmp_path, "zoedepth", **TWO_HEADS)
    teacher = opened(tmp_path)
    seen = []
    route = teacher._network.metric_head.mlp_classifier
    route.register_forward_hook(lambda *given: seen.append(len(given[2])))
    torch.nn.init.constant_(route.linear2.bias, 0)
    teacher.predict(ODD, ["a", "b", "c"])
    assert seen == [1, 1, 1]


def test_heads_of_unequal_numbers_of_bins_give_depth_alone(tmp_path):
    bins = [TWO_HEADS["bin_configurations"][0], {**TWO_HEADS["bin_configurations"][1], "n_bins": 4}]
    save_model(tmp_path, "zoedepth", **{**TWO_HEADS, "bin_configurations": bins})
    teacher = opened(tmp_path)
    assert not teacher.emits_maps
    assert teacher.predict(ODD, ["a", "b", "c"]).dpm is None


def test_edges_lie_half_way_and_the_ends_as_far_beyond():
    edges = edges_between(torch.tensor([1.0, 2.0, 2.0, 5.0, 11.0]))
    assert edges.tolist() == [0.5, 1.5, 2, 3.5, 8, 14]
    assert edges_between(torch.tensor([0.1, 1.0, 2.0]))[0] == 0  # not below
    for together_m in (0.001, 10.0, 79.9):
        edges = edges_between(torch.full((4, 1), together_m))
        assert (edges.diff(dim=0) >= 0).all()
        assert edges[-1] > edges[0]


# DepthPro


def library_post_processing():
    """The library's own method, without its module, which cannot be imported where torchvision is absent."""
    path = Path(transformers.__file__).parent / "models/depth_pro/image_processing_depth_pro.py"
    tree = ast.parse(path.read_text())
    [method] = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.name == "post_process_depth_estimation"
    ]
    method.returns = None
    for argument in method.args.args:
        argument.annotation = None
    names = {"torch": torch, "pil_torch_interpolation_mapping": {2: SimpleNamespace(value="bilinear")}}
    exec(compile(ast.Module([method], []), str(path), "exec"), names)  # noqa: S102 - a file of an installed package
    return names["post_process_depth_estimation"]


@pytest.mark.parametrize("config", [FIELD_OF_VIEW, {}], ids=["with", "without"])
def test_depth_pro_is_prepared_and_post_processed_as_by_the_library(tmp_path, config):
    network = save_model(tmp_path, "depth_pro", **config)
    depth = opened(tmp_path).predict(VIEWS, IDS).depth
    # The order of its processor: to numbers and normalised, then resized without antialiasing.
    pixels = F.interpolate((VIEWS - 0.5) / 0.5, (128, 128), mode="bilinear", antialias=False)
    with torch.no_grad():
        raw = network(pixels)
    expected = library_post_processing()(SimpleNamespace(resample=2), raw, target_sizes=[(40, 100)] * 2)
    torch.testing.assert_close(depth, torch.stack([one["predicted_depth"] for one in expected]), rtol=1e-4, atol=1e-5)


def test_depth_pro_gives_the_focal_length_of_the_library_in_pixels_of_the_view(tmp_path):
    network = save_model(tmp_path, "depth_pro", **FIELD_OF_VIEW)
    intrinsics_px = opened(tmp_path).predict(VIEWS, IDS).intrinsics_px
    with torch.no_grad():
        raw = network(F.interpolate((VIEWS - 0.5) / 0.5, (128, 128), mode="bilinear", antialias=False))
    expected = library_post_processing()(SimpleNamespace(resample=2), raw, target_sizes=[(40, 100)] * 2)
    focal_px = torch.stack([one["focal_length"] for one in expected])
    torch.testing.assert_close(intrinsics_px[:, :2], focal_px[:, None].expand(2, 2), rtol=1e-4, atol=1e-4)
    assert intrinsics_px[:, 2:].isnan().all()


def test_depth_pro_gives_no_focal_length_without_its_field_of_view(tmp_path):
    save_model(tmp_path, "depth_pro")
    assert opened(tmp_path).predict(VIEWS, IDS).intrinsics_px is None


def test_depth_pro_keeps_its_own_pixels_where_the_view_has_more(tmp_path):
    save_model(tmp_path, "depth_pro", **FIELD_OF_VIEW)
    assert opened(tmp_path).predict(torch.rand(1, 3, 40, 300), ["a"]).depth.shape == (1, 40, 256)


@pytest.mark.parametrize("degrees", [0.0, -3.0, 180.0, float("nan")])
def test_a_field_of_view_that_no_camera_has_is_refused(tmp_path, degrees):
    save_model(tmp_path, "depth_pro", **FIELD_OF_VIEW)
    teacher = opened(tmp_path)
    last = teacher._network.fov_model.head.layers[-1]
    torch.nn.init.zeros_(last.weight)
    torch.nn.init.constant_(last.bias, degrees)
    with refuses(tmp_path.name, "a: ", f"{degrees:g} degrees", "between 0 and 180"):
        teacher.predict(VIEWS, IDS)


def test_an_input_that_the_patches_of_depth_pro_do_not_cover_is_refused(tmp_path):
    save_model(tmp_path, "depth_pro")
    with refuses("an input of 160x160 px", "expected 128x128", "omit `input_size_px`"):
        opened(tmp_path, input_size_px=(160, 160))
    assert opened(tmp_path, input_size_px=(128, 128)).predict(VIEWS, IDS).depth.shape == (2, 40, 100)
    save_model(tmp_path, "depth_pro", processor={"size": {"height": 96, "width": 128}})
    with refuses("an input of 96x128 px", "expected 128x128", "correct its preprocessor_config.json"):
        opened(tmp_path)


# TIPSv2


def test_the_maps_of_tipsv2_are_over_its_own_linear_bins(tmp_path, means):
    save_model(tmp_path, "tipsv2_dpt", max_depth=15.001)
    teacher = opened(tmp_path)
    given = teacher.predict(ODD, ["a", "b", "c"])
    np.testing.assert_allclose(teacher.bin_edges_m, [0, *(0.501 + np.arange(15)), 15.501], rtol=1e-6)
    assert not teacher.emits_maps  # the bins do not move
    assert given.bin_edges_m is None
    [(dpm, centers_m, depth)] = means
    torch.testing.assert_close((dpm * centers_m).sum(dim=1), depth, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(given.depth, depth)
    mean_m = expected_depth(given.dpm, torch.from_numpy(teacher.bin_edges_m))[:, 0]
    # The first bin begins at 0, not at -0.499.
    torch.testing.assert_close(mean_m, depth + 0.2495 * given.dpm[:, 0], rtol=1e-4, atol=1e-4)


def test_tipsv2_is_prepared_as_by_the_library(tmp_path):
    network = save_model(tmp_path, "tipsv2_dpt")
    depth = opened(tmp_path).predict(VIEWS, IDS).depth
    # The order of its processor: bytes are resized with antialiasing, then made numbers of 0 to 1.
    small = F.interpolate((VIEWS * 255).round().byte(), (56, 56), mode="bilinear", antialias=True)
    with torch.no_grad():
        torch.testing.assert_close(depth, network(small / 255).predicted_depth)
    assert opened(tmp_path, input_size_px=(28, 70)).predict(VIEWS, IDS).depth.shape == (2, 16, 48)


# DPT


@pytest.mark.parametrize("backbone", [None, "beit", "dinov2", "dinov3_vit"])
def test_dpt_is_known_as_disparity_on_backbones_of_midas_alone(backbone):
    from pipeline.teachers.huggingface.families import FAMILIES

    config = SimpleNamespace(backbone_config=backbone and SimpleNamespace(model_type=backbone))
    known = FAMILIES["dpt"].depth_space(config)
    assert known == (None if backbone and "dino" in backbone else "affine_disparity")


def test_prompt_depth_anything_asks_what_its_numbers_mean_without_a_prompt(tmp_path):
    save_model(tmp_path, "prompt_depth_anything")
    with refuses("does not specify", "`depth_space=metric_m`", "a depth map as prompt", "affine_depth"):
        opened(tmp_path)


def test_a_view_that_a_processor_rounds_to_nothing_is_refused(tmp_path):
    save_model(tmp_path, "glpn")
    with refuses("a view of 20x100 px", "`view`"):
        opened(tmp_path).predict(VIEWS[:, :, :20], IDS)


def test_an_input_size_that_a_network_refuses_is_told(tmp_path):
    save_model(tmp_path, "dpt")
    teacher = opened(tmp_path, input_size_px=(32, 48))
    with refuses("its network refuses an input of 32x48 px", "`input_size_px`"):
        teacher.predict(VIEWS, IDS)
