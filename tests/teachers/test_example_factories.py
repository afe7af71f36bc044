"""The factories of examples/teachers with stand-ins for the networks: units, cameras, directions, and their stores."""

import importlib
import shutil
import sys

import fakes
import numpy as np
import public_networks
import pytest
import torch
from click.testing import CliRunner
from paths import ROOT

from pipeline.cli.main import main
from pipeline.store import open_store

EXAMPLES = ROOT / "examples" / "teachers"
FACTORIES = [
    ("moge_2", "teacher"),
    ("unidepth_v2", "teacher"),
    ("metric3d_v2", "teacher"),
    ("depth_anything_v3", "teacher"),
    ("depth_anything_v3", "nested"),
    ("rt_monodepth", "teacher"),
    ("rt_monodepth", "monocular"),
]
HEIGHT, WIDTH = 60, 128
CPU = torch.device("cpu")
CAMERAS = torch.tensor([[100.0, 120.0, 64.0, 30.0], [200.0, 200.0, np.nan, np.nan]])


@pytest.fixture
def load(monkeypatch, tmp_path):
    """A function that opens a factory: `load("moge_2")`. The working folder has the examples and the weights."""
    public_networks.install(monkeypatch, tmp_path)
    for path in EXAMPLES.glob("*.py"):
        shutil.copy(path, tmp_path)
        monkeypatch.delitem(sys.modules, path.stem, raising=False)
    monkeypatch.syspath_prepend(tmp_path)

    def open_factory(name, factory="teacher", device=CPU):
        return getattr(importlib.import_module(name), factory)(device)

    yield open_factory
    for path in EXAMPLES.glob("*.py"):
        sys.modules.pop(path.stem, None)


@pytest.fixture
def images():
    """Two views (2, 3, H, W) of whole bytes: a ramp, and its mirror image; the top left corner is white."""
    ramp = torch.linspace(20, 240, WIDTH).round().repeat(3, HEIGHT, 1)
    both = torch.stack([ramp, ramp.flip(-1)])
    both[:, :, :10, :10] = 255
    return both / 255


def call(model, images, cameras=CAMERAS):
    with torch.no_grad():
        if "intrinsics" in model.card.get("inputs", ()):
            return model(images, intrinsics_px=cameras[: len(images)])
        return model(images)


# --- all -----------------------------------------------------------------------------------------------------------


def test_every_example_is_tested():
    others = {"sgbm"}  # tests/cache/test_pairs.py
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {name for name, _ in FACTORIES} | others


@pytest.mark.parametrize(("name", "factory"), FACTORIES)
def test_the_network_is_put_on_the_device(load, name, factory):
    model = load(name, factory, torch.device("meta"))
    networks = [value for value in vars(model).values() if isinstance(value, torch.nn.Module)]
    assert networks
    assert all(network.weight.device.type == "meta" for network in networks)


@pytest.mark.parametrize(("name", "factory"), FACTORIES)
def test_every_output_covers_the_view_and_is_in_its_range(load, images, name, factory):
    output = call(load(name, factory), images)
    assert output.keys() <= {"depth", "confidence", "sky", "intrinsics_px"}
    for key, values in output.items():
        assert values.dtype == torch.float32
        assert len(values) == 2
        assert torch.isfinite(values).all()
        assert values.ndim == (2 if key == "intrinsics_px" else 3)
        if key in {"confidence", "sky"}:
            assert (values >= 0).all()
            assert (values <= 1).all()


@pytest.mark.parametrize(("name", "factory"), FACTORIES)
def test_an_image_gets_the_same_depth_alone_and_in_a_batch(load, images, name, factory):
    model = load(name, factory)
    alone = [call(model, images[n : n + 1], CAMERAS[n : n + 1])["depth"] for n in (0, 1)]
    torch.rand(7)  # another state of the random numbers
    assert torch.equal(torch.cat(alone), call(model, images)["depth"])


# --- each ----------------------------------------------------------------------------------------------------------


def test_moge_gives_metres_zero_where_masked_and_its_camera_in_pixels(load, images):
    output = call(load("moge_2"), images)
    depth = public_networks.depth_of(images)
    depth[:, :10, :10] = 0
    assert torch.equal(output["depth"], depth)
    expected = [0.8 * WIDTH, 1.2 * HEIGHT, 0.5 * WIDTH - 0.5, 0.5 * HEIGHT - 0.5]
    assert output["intrinsics_px"].tolist() == [pytest.approx(expected)] * 2
    assert "confidence" not in output


def test_unidepth_gives_metres_and_a_confidence_that_falls_with_the_predicted_error(load, images):
    output = call(load("unidepth_v2"), images)
    torch.testing.assert_close(output["depth"], public_networks.depth_of(images))
    error = 1 - images.mean(dim=1)
    torch.testing.assert_close(output["confidence"], torch.exp(-error))
    dark, bright = output["confidence"][0, 30, 0], output["confidence"][0, 30, -1]
    assert dark < bright
    assert output["intrinsics_px"][0].tolist() == [300, 310, WIDTH / 2 - 0.5, HEIGHT / 2 - 0.5]


def test_metric3d_scales_by_the_focal_length_of_its_resized_input(load, images):
    output = call(load("metric3d_v2"), images)
    scale = min(616 / HEIGHT, 1064 / WIDTH)
    assert output["depth"].shape[1:] == (int(HEIGHT * scale), int(WIDTH * scale))
    resized = torch.nn.functional.interpolate(images, output["depth"].shape[1:], mode="bilinear")
    metres = public_networks.depth_of(resized) * torch.tensor([110.0, 200.0])[:, None, None] * scale / 1000
    torch.testing.assert_close(output["depth"], metres, rtol=1e-5, atol=1e-5)
    brightness = resized.mean(dim=1)
    torch.testing.assert_close(output["confidence"], (1.5 * brightness - 0.25).clamp(0, 1), rtol=1e-5, atol=1e-5)


def test_metric3d_pads_a_tall_view_at_its_sides(load):
    tall = torch.linspace(0.1, 0.9, 90)[None, None, :, None].expand(1, 3, 90, 40)
    output = call(load("metric3d_v2"), tall)
    assert output["depth"].shape[1:] == (616, int(40 * 616 / 90))
    assert (output["depth"].diff(dim=1) < 1e-4).all()
    assert float(output["depth"][0, 0, 0]) > float(output["depth"][0, -1, -1])


def test_metric3d_is_at_most_300_m(load, images):
    far = call(load("metric3d_v2"), images, torch.full((2, 4), 1e5))
    assert float(far["depth"].max()) == 300


def test_metric3d_refuses_weights_of_another_network(load, tmp_path):
    torch.save({"model_state_dict": {"other": torch.ones(1)}}, tmp_path / "metric_depth_vit_large_800k.pth")
    with pytest.raises(ValueError, match="has no parameter of metric3d_vit_large"):
        load("metric3d_v2")


def test_depth_anything_metric_scales_by_the_focal_length_of_its_resized_input(load, images):
    output = call(load("depth_anything_v3"), images)
    h, w = output["depth"].shape[1:]
    assert (h, w) == (238, 504)
    focal_px = torch.stack([CAMERAS[:, 0] * w / WIDTH, CAMERAS[:, 1] * h / HEIGHT]).mean(dim=0)
    inputs = torch.nn.functional.interpolate(images, (h, w), mode="nearest-exact")
    metres = public_networks.depth_of(inputs) * focal_px[:, None, None] / 300
    is_sky = output["sky"] == 1
    torch.testing.assert_close(output["depth"][~is_sky], metres[~is_sky])
    assert torch.equal(is_sky, inputs.mean(dim=1) >= public_networks.WHITE)
    assert is_sky.any()


def test_depth_anything_nested_gives_its_camera_in_pixels_of_the_view(load, images):
    output = call(load("depth_anything_v3", "nested"), images)
    h, w = output["depth"].shape[1:]
    x, y = WIDTH / w, HEIGHT / h
    expected = [400 * x, 420 * y, WIDTH / 2 - 0.5, HEIGHT / 2 - 0.5]
    assert output["intrinsics_px"].tolist() == [pytest.approx(expected)] * 2


def test_depth_anything_nested_gives_a_confidence_that_rises_with_its_own_and_is_0_in_the_sky(load, images):
    confidence = call(load("depth_anything_v3", "nested"), images)["confidence"]
    own = 1 + np.exp(4 * float(images[0, 0, 30, 0]) - 2)
    assert float(confidence[0, 119, 0]) == pytest.approx(1 - 1 / own)
    assert (confidence[0, 119].diff() >= 0).all()
    assert float(confidence[0, 0, 0]) == 0


@pytest.mark.parametrize(
    ("factory", "scale", "space"), [("teacher", 5.4, "metric_m"), ("monocular", 1, "scale_invariant")]
)
def test_rt_monodepth_gives_depth_of_its_disparity(load, images, factory, scale, space):
    model = load("rt_monodepth", factory)
    depth = call(model, images[:1])["depth"]
    assert depth.shape == (1, 192, 640)
    own = float(images[0, 0, 30, 64])
    assert float(depth[0, 96, 320]) == pytest.approx(scale / (0.01 + 9.99 * own), rel=0.02)
    assert (model.card["depth_space"], model.card["preprocessing"]["input_size_px"]) == (space, [192, 640])


# --- through the pipeline ------------------------------------------------------------------------------------------


def cached(name, factory, *options):
    """Run `cache-teacher` over the folder `images` into `s.zarr`."""
    words = ["cache-teacher", "--source", "folder:images", "--split", "train", "--device", "cpu", "--out", "s.zarr"]
    bins = [] if factory == "monocular" else ["--bins", "log:8:0.01:900", "--sigma-m", "1"]
    return CliRunner().invoke(main, [*words, *bins, "--teacher", f"python:{name}:{factory}", *options])


@pytest.mark.parametrize(("name", "factory"), FACTORIES)
def test_a_store_is_made_with_the_hash_of_the_weights_and_the_licence(load, tmp_path, name, factory):
    fakes.make_folder(tmp_path / "images", size_px=(HEIGHT, WIDTH))
    options = ["--drop-nonpositive"] if name == "moge_2" else []
    card = load(name, factory).card
    options += ["--focal-px", "150"] if "inputs" in card else []
    sys.modules.pop(name)
    done = cached(name, factory, *options)
    assert done.exit_code == 0, done.output
    teacher = open_store(tmp_path / "s.zarr").spec.teacher
    assert teacher["name"] == card["name"]
    assert teacher["licence"] == card["licence"]
    assert len(teacher["weights_sha256"]) == 64
    assert name in teacher["preprocessing"]["python"]["source"]


def test_masked_pixels_of_moge_are_missing_in_the_store_and_refused_without_the_option(load, tmp_path):
    root = fakes.make_folder(tmp_path / "images", size_px=(HEIGHT, WIDTH))
    for seed, path in enumerate(root.glob("rgb/*/*.png")):
        image = fakes.image_of(fakes.smooth_depth_m((HEIGHT, WIDTH), seed))
        image[:10] = 255
        fakes.write_image(path, image)
    load("moge_2")
    refused = cached("moge_2", "teacher")
    assert refused.exit_code == 1
    assert "--drop-nonpositive" in refused.output
    done = cached("moge_2", "teacher", "--drop-nonpositive")
    assert done.exit_code == 0, done.output
    depth_m = open_store(tmp_path / "s.zarr").depth_m(0)
    assert np.isnan(depth_m[:10]).all()
    assert np.isfinite(depth_m[10:]).all()
