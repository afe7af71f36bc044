"""Transformers networks give their hidden states as features, each token at its place in the view."""

from __future__ import annotations

import os
from types import SimpleNamespace

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported: the suite asks no network

import pytest
import torch
import torch.nn.functional as F
from tiny_transformers import FIELD_OF_VIEW, TWO_HEADS, build_processor, save_model
from transformers_cases import IDS, VIEWS, opened, refuses

from pipeline.teachers.huggingface.hidden_states import HiddenStates

transformers = pytest.importorskip("transformers")

SPACES = {"dpt_dinov2": {"depth_space": "metric_m"}, "prompt_depth_anything": {"depth_space": "affine_depth"}}
LOCAL = [
    # family, a view that is the network's input, its grid
    ("depth_anything", (28, 42), (2, 3)),
    ("dpt", (32, 32), (2, 2)),
    ("dpt_dinov2", (28, 28), (2, 2)),
    ("prompt_depth_anything", (28, 42), (2, 3)),
    ("tipsv2_dpt", (56, 56), (4, 4)),
    ("depth_pro", (128, 128), (4, 4)),
]
ALL = [*(family for family, *_ in LOCAL), "glpn", "zoedepth"]
by_place = pytest.mark.parametrize(("family", "view_px", "grid"), LOCAL, ids=[case[0] for case in LOCAL])


def configuration(family):
    return FIELD_OF_VIEW if family == "depth_pro" else {}


def features_of(folder, family, views, layers, **options):
    return opened(folder, features=layers, **SPACES.get(family, {}), **options).predict(views, ["a", "b"]).features


@by_place
def test_a_patch_that_changes_changes_the_embedding_at_its_row_and_column_alone(tmp_path, family, view_px, grid):
    save_model(tmp_path, family, **configuration(family))
    patch_px = view_px[0] // grid[0]
    teacher = opened(tmp_path, features=("0",), **SPACES.get(family, {}))
    if family == "dpt_dinov2":  # its processor makes 32x32
        teacher._processing = teacher._processing._replace(process=lambda images: images / 255)
    for row, column in ((0, 1), (grid[0] - 1, 0), (1, grid[1] - 1)):
        views = torch.full((2, 3, *view_px), 0.4)
        rows, columns = (slice(at * patch_px, (at + 1) * patch_px) for at in (row, column))
        views[1, :, rows, columns] = 0.8
        before, after = teacher.predict(views, IDS).features["0"]
        assert before.shape[1:] == grid
        changed = (after != before).any(dim=0)
        assert changed.nonzero().tolist() == [[row, column]]


@pytest.mark.parametrize("family", ["depth_anything", "dpt", "prompt_depth_anything"])
def test_features_are_the_librarys_hidden_states_without_the_class_token(tmp_path, family):
    network = save_model(tmp_path, family)
    features = features_of(tmp_path, family, VIEWS, ("0", "2", "last"))
    pictures = [(view * 255).round().byte().permute(1, 2, 0).numpy() for view in VIEWS]
    pixels = build_processor(family)(images=pictures, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        states = network(pixel_values=pixels, output_hidden_states=True).hidden_states
    for layer, number in (("0", 0), ("2", 2), ("last", -1)):
        values = features[layer]
        tokens = values.flatten(2).transpose(1, 2)  # rows of patches follow each other
        torch.testing.assert_close(tokens, states[number][:, 1:])
        patch_px = 16 if family == "dpt" else 14
        assert values.shape[2:] == tuple(side // patch_px for side in pixels.shape[2:])


def test_the_stages_of_glpn_are_maps_at_their_strides(tmp_path):
    save_model(tmp_path, "glpn")
    features = features_of(tmp_path, "glpn", torch.rand(2, 3, 64, 96), ("0", "1", "3"))
    assert [values.shape[2:] for values in features.values()] == [(16, 24), (8, 12), (2, 3)]


@pytest.mark.parametrize("padded", [True, False])
def test_features_of_a_padded_view_lie_over_the_view(tmp_path, padded):
    save_model(tmp_path, "zoedepth", processor={"do_pad": padded})
    teacher = opened(tmp_path, features=("0",), input_size_px=(160, 240))
    teacher.emits_maps = False
    height, width = 100, 150
    across = torch.linspace(0.1, 0.9, width).expand(height, width)
    down = torch.linspace(0.2, 0.8, height)[:, None].expand(height, width)
    views = torch.stack([across, down])[:, None].expand(2, 3, -1, -1)

    def brightness(pixel_values, output_hidden_states):
        """A network whose tokens are the brightness of their patches."""
        assert output_hidden_states
        bright = pixel_values[:, :1] / 2 + 0.5
        teacher._reader._captured.update(dpm=bright, centers_m=bright)
        tokens = F.avg_pool2d(bright, 16).flatten(2).transpose(1, 2)
        tokens = torch.cat([torch.full((2, 1, 1), 9.0), tokens], dim=1)
        return SimpleNamespace(predicted_depth=bright[:, 0], hidden_states=(tokens,))

    teacher._network = brightness
    values = teacher.predict(views, IDS).features["0"]
    # The processor pads 21 rows and 25 columns on each side.
    assert values.shape[2:] == ((7, 11) if padded else (10, 15))
    expected = F.interpolate(views[:, :1], values.shape[2:], mode="bilinear", antialias=True)
    inner = (slice(None), slice(None), slice(1, -1), slice(1, -1))  # reflected at the border
    assert (values - expected)[inner].abs().max() < 0.015  # a patch is 0.06 to 0.07
    assert (values - expected).abs().max() < 0.04


@pytest.mark.parametrize("family", ALL)
def test_depth_has_the_same_bits_with_and_without_features(tmp_path, family):
    save_model(tmp_path, family, **configuration(family))
    without = opened(tmp_path, **SPACES.get(family, {})).predict(VIEWS, IDS)
    output = opened(tmp_path, features=("last",), **SPACES.get(family, {})).predict(VIEWS, IDS)
    assert without.features is None
    assert torch.equal(output.depth, without.depth)
    values = output.features["last"]
    assert (values.dtype, values.ndim, len(values)) == (torch.float32, 4, 2)
    assert values.isfinite().all()


def test_half_precision_gives_features_in_float32(tmp_path):
    save_model(tmp_path, "depth_anything")
    features = features_of(tmp_path, "depth_anything", VIEWS, ("last",), precision="bfloat16")
    assert features["last"].dtype == torch.float32


def test_images_that_run_one_by_one_give_the_features_of_all(tmp_path):
    save_model(tmp_path, "zoedepth", **TWO_HEADS)
    together = features_of(tmp_path, "zoedepth", VIEWS, ("1", "3"))
    turned = features_of(tmp_path, "zoedepth", VIEWS.flip(0), ("1", "3"))
    for layer, values in together.items():
        torch.testing.assert_close(values, turned[layer].flip(0))


@pytest.mark.parametrize(("family", "last"), [("depth_anything", 2), ("glpn", 3)])
def test_a_layer_that_does_not_exist_is_refused_with_those_that_do(tmp_path, family, last):
    save_model(tmp_path, family)
    listed = ", ".join(map(str, range(last + 1)))
    with refuses(f"'{tmp_path.name}' has no layer '11'", f"expected `features` among {listed}, last"):
        features_of(tmp_path, family, VIEWS, ("1", "11"))


# Networks of other shapes


def hidden_states(states, **config):
    config = SimpleNamespace(**{"model_type": "future", "patch_size": 4, **config})
    return HiddenStates("teacher 'x'", config, ("0",), None).read(
        SimpleNamespace(hidden_states=states), (8, 12), (8, 12)
    )


def test_register_tokens_are_dropped_with_the_class_token():
    backbone = SimpleNamespace(patch_size=4, num_register_tokens=4)
    tokens = torch.arange(11.0).view(1, 11, 1)
    assert hidden_states((tokens,), backbone_config=backbone)["0"].flatten().tolist() == [5, 6, 7, 8, 9, 10]


@pytest.mark.parametrize(
    ("states", "config", "parts"),
    [
        (None, {}, ["gives no hidden states", "omit `features`"]),
        ((torch.zeros(1, 9, 2),), {}, ["layer '0' is (1, 9, 2)", "8x12 px", "expected 1 + 2x3 tokens"]),
        ((torch.zeros(1, 7, 2),), {"patch_size": None}, ["expected a patch size or a map"]),
    ],
)
def test_hidden_states_that_are_no_maps_are_refused(states, config, parts):
    with refuses("teacher 'x'", *parts):
        hidden_states(states, **config)
