from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path

import pytest
import torch

from pipeline.depth.bins import bin_edges
from pipeline.depth.dpm import entropy_nats, expected_depth, gaussian_dpm
from pipeline.losses.tiekd import TieKdLoss
from pipeline.networks.encoders import MobileNetV2, ResNet, load_imagenet
from pipeline.networks.registry import STUDENTS, build_student
from pipeline.networks.saved_run import load_run, view_of
from pipeline.store import open_store
from pipeline.train.options import TrainOptions
from pipeline.train.run import train_network

RUNS = Path(__file__).parents[2] / "data" / "runs"
PAPER = ("mobilenetv2", "resnet18", "resnet50")
LEAN = ("lean", "lean-large", "lean-small", "mobilenetv2-lean", "resnet18-lean")


def on_meta(make):
    """Shapes without memory or time: a 78 M parameter network is built and run in a blink."""
    with torch.device("meta"):
        return make()


def count(network):
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(
    ("name", "parameters", "thousands"),
    [
        ("mobilenetv2", 17_646_465, 17_646),
        ("resnet18", 16_487_617, 16_488),
        ("resnet50", 78_097_857, 78_098),
    ],
)
def test_the_papers_students_have_its_parameter_counts_to_the_thousand_at_257_bins(name, parameters, thousands):
    found = count(on_meta(lambda: build_student(name, 257)))
    assert found == parameters
    assert round(found / 1000) == thousands


@pytest.mark.parametrize("name", STUDENTS)
def test_the_maps_of_an_encoder_have_the_strides_that_the_student_states(name):
    student = on_meta(lambda: build_student(name, 8))
    maps = on_meta(lambda: student.encoded(torch.empty(2, 3, 64, 96)))
    assert [encoded.shape[2:] for encoded in maps] == [(64 // stride, 96 // stride) for stride in student.strides]


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("lean-small", 78_328),
        ("lean", 223_544),
        ("lean-large", 1_185_216),
        ("mobilenetv2-lean", 1_964_384),
        ("resnet18-lean", 11_388_256),
    ],
)
def test_the_lean_students_are_as_small_as_they_are_said_to_be(name, parameters):
    assert count(on_meta(lambda: build_student(name, 64))) == parameters


def test_the_light_decoder_is_a_small_part_of_a_student_with_an_encoder():
    for name in ("mobilenetv2-lean", "resnet18-lean"):
        student = on_meta(lambda name=name: build_student(name, 64))
        assert count(student.decoder) < 0.1 * count(student)


@pytest.mark.parametrize(
    ("name", "entries", "digest"),
    [
        ("lean", 195, "26adaeaae4c33cbb"),
        ("lean-large", 251, "287965ee96a12932"),
        ("mobilenetv2", 330, "8a67e4b896d8c6c3"),
    ],
)
def test_the_names_shapes_and_order_of_saved_weights_never_change(name, entries, digest):
    state = on_meta(lambda: build_student(name, 64)).state_dict()
    text = "\n".join(f"{key} {tuple(value.shape)}" for key, value in state.items())
    assert len(state) == entries
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == digest, text


def test_runs_of_the_demo_still_load():
    runs = sorted(path.parent for path in RUNS.glob("*/config.json"))
    if not runs:
        pytest.skip("the demo was not run here")
    for run in runs:
        assert load_run(run).network.bin_count > 1


@pytest.mark.parametrize("size", [(352, 1216), (65, 97), (33, 40)])
@pytest.mark.parametrize("name", PAPER)
def test_the_papers_students_give_logits_at_the_images_resolution(name, size):
    logits = on_meta(lambda: build_student(name, 9).eval()(torch.empty(2, 3, *size)))
    assert logits.shape == (2, 9, *size)


@pytest.mark.parametrize("size", [(128, 416), (65, 97), (33, 40), (2, 3)])
@pytest.mark.parametrize("name", LEAN)
def test_lean_students_give_logits_at_half_the_resolution_rounded_up(name, size):
    logits = on_meta(lambda: build_student(name, 9).eval()(torch.empty(2, 3, *size)))
    assert logits.shape == (2, 9, (size[0] + 1) // 2, (size[1] + 1) // 2)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ["mobilenetv2", "resnet18", *LEAN])
def test_a_fresh_student_is_nearly_uniform_so_its_depth_starts_amid_the_bins(name, training):
    torch.manual_seed(0)
    student = build_student(name, 32).train(training)
    with torch.no_grad():
        dpm = student(torch.randn(2, 3, 47, 70)).softmax(dim=1)
    assert float(entropy_nats(dpm).min()) > 0.9 * math.log(32)
    depth_m = expected_depth(dpm, bin_edges(32, 0.001, 80))
    assert 25 < float(depth_m.min()) <= float(depth_m.max()) < 55


def test_a_mobilenet_that_is_not_dilated_goes_down_to_a_32nd_and_gives_its_half_too():
    encoder = on_meta(lambda: MobileNetV2(dilated=False))
    shapes = [tuple(x.shape) for x in on_meta(lambda: encoder(torch.empty(1, 3, 64, 128)))]
    assert shapes == [(1, width, 32 >> i, 64 >> i) for i, width in enumerate((16, 24, 32, 96, 320))]
    assert encoder.widths == (16, 24, 32, 96, 320)
    assert all(part.dilation == (1, 1) for part in encoder.modules() if isinstance(part, torch.nn.Conv2d))


@pytest.mark.parametrize("make", [MobileNetV2, lambda: MobileNetV2(dilated=False), lambda: ResNet(18)])
def test_an_encoders_strides_are_those_of_its_outputs(make):
    encoder = on_meta(make)
    outputs = on_meta(lambda: encoder(torch.empty(1, 3, 64, 128)))
    assert [(x.shape[1], 64 // x.shape[2]) for x in outputs] == list(zip(encoder.widths, encoder.strides, strict=True))


def test_mobilenet_gives_24_channels_at_a_quarter_and_32_96_320_at_an_eighth():
    encoder = on_meta(MobileNetV2)
    shapes = [tuple(x.shape) for x in on_meta(lambda: encoder(torch.empty(1, 3, 64, 128)))]
    assert shapes == [(1, 24, 16, 32), (1, 32, 8, 16), (1, 96, 8, 16), (1, 320, 8, 16)]
    assert encoder.widths == (24, 32, 96, 320)


@pytest.mark.parametrize(("depth", "widths"), [(18, (64, 64, 128, 256, 512)), (50, (64, 256, 512, 1024, 2048))])
def test_resnet_gives_its_stem_at_a_half_and_its_stages_at_a_quarter_to_a_32nd(depth, widths):
    encoder = on_meta(lambda: ResNet(depth))
    shapes = [tuple(x.shape) for x in on_meta(lambda: encoder(torch.empty(1, 3, 64, 128)))]
    assert shapes == [(1, width, 32 >> i, 64 >> i) for i, width in enumerate(widths)]
    assert encoder.widths == widths


# Key, shape pairs and totals of torchvision's own state dicts, without what `load_imagenet` drops.
TORCHVISION = {
    "mobilenet_v2": (
        MobileNetV2,
        306,
        {
            "features.0.0.weight": (32, 3, 3, 3),
            "features.0.1.running_var": (32,),
            "features.1.conv.0.0.weight": (32, 1, 3, 3),
            "features.1.conv.1.weight": (16, 32, 1, 1),
            "features.1.conv.2.bias": (16,),
            "features.2.conv.0.0.weight": (96, 16, 1, 1),
            "features.2.conv.1.0.weight": (96, 1, 3, 3),
            "features.17.conv.1.1.weight": (960,),
            "features.17.conv.2.weight": (320, 960, 1, 1),
            "features.17.conv.3.num_batches_tracked": (),
        },
    ),
    "resnet18": (
        lambda: ResNet(18),
        120,
        {
            "conv1.weight": (64, 3, 7, 7),
            "bn1.running_mean": (64,),
            "layer1.1.conv2.weight": (64, 64, 3, 3),
            "layer2.0.downsample.0.weight": (128, 64, 1, 1),
            "layer4.1.bn2.weight": (512,),
        },
    ),
    "resnet50": (
        lambda: ResNet(50),
        318,
        {
            "layer1.0.downsample.1.bias": (256,),
            "layer2.3.conv1.weight": (128, 512, 1, 1),
            "layer3.5.conv2.weight": (256, 256, 3, 3),
            "layer4.2.conv3.weight": (2048, 512, 1, 1),
        },
    ),
}


@pytest.mark.parametrize("name", TORCHVISION)
def test_encoder_parameters_are_named_as_in_torchvision(name):
    make, entries, some = TORCHVISION[name]
    state = on_meta(make).state_dict()
    assert len(state) == entries
    assert {key: tuple(state[key].shape) for key in some if key in state} == some


def test_imagenet_weights_load_without_their_classifier_and_only_if_all_else_fits():
    source, target = MobileNetV2(), MobileNetV2()
    state = dict(source.state_dict())
    extra = {
        "classifier.1.weight": torch.ones(1000, 1280),
        "features.18.0.weight": torch.ones(1280, 320, 1, 1),
    }
    load_imagenet(target, {**state, **extra})
    assert torch.equal(target.features[3].conv[2].weight, source.features[3].conv[2].weight)
    with pytest.raises(ValueError, match="bogus"):
        load_imagenet(target, {**state, "bogus": torch.ones(1)})
    del state["features.0.0.weight"]
    with pytest.raises(ValueError, match=r"features\.0\.0\.weight"):
        load_imagenet(target, state)


def test_an_encoder_is_at_hand_where_there_is_one_and_the_lean_unet_has_none():
    for name, kind in (("resnet18", ResNet), ("resnet18-lean", ResNet), ("mobilenetv2-lean", MobileNetV2)):
        assert isinstance(on_meta(lambda name=name: build_student(name, 4)).encoder, kind)
    assert build_student("lean", 4).encoder is None


def test_a_stage_of_mobilenet_is_dilated_in_its_first_block_only():
    features = on_meta(MobileNetV2).features
    depthwise = [block.conv[-3][0] for block in list(features)[1:]]
    dilated = {i + 1: conv.dilation[0] for i, conv in enumerate(depthwise) if conv.dilation[0] > 1}
    assert dilated == {7: 2, 11: 2, 14: 4, 17: 4}
    assert [i + 1 for i, conv in enumerate(depthwise) if conv.stride[0] > 1] == [2, 4]


@pytest.mark.parametrize("name", ["lean", "mobilenetv2-lean"])
def test_a_lean_student_sees_the_whole_image(name):
    torch.manual_seed(0)
    student = build_student(name, 4).eval()
    images = torch.randn(1, 3, 128, 416, requires_grad=True)
    student(images)[0, 0, 2, 2].backward()
    assert float(images.grad[0, :, -8:, -8:].abs().max()) > 0


@pytest.mark.parametrize("name", ["lean", "mobilenetv2", "mobilenetv2-lean"])
def test_a_few_steps_on_one_batch_bring_the_loss_down(name):
    torch.manual_seed(0)
    student = build_student(name, 16)
    edges = bin_edges(16, 1, 40, "log")
    depth_m = torch.linspace(30, 2, 32).view(1, 1, 32, 1) + torch.linspace(0, 5, 48)
    images = torch.cat([depth_m, depth_m.flip(3), depth_m.square() / 30], dim=1) / 15 - 1
    loss = TieKdLoss(edges, sigma_m=1.0)
    steps = 25 if "lean" in name else 6
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-2 if name == "lean" else 1e-3)
    values = []
    for _ in range(steps):
        optimizer.zero_grad()
        value = loss(student(images), depth_m, gaussian_dpm(depth_m, edges, 1.0))
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] < 0.8 * values[0]


def test_the_same_seed_builds_the_same_student():
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        states.append(build_student("lean", 8).state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_every_listed_student_builds_and_an_unknown_one_is_refused_with_the_list():
    for name in STUDENTS:
        student = on_meta(lambda name=name: build_student(name, 5))
        assert (student.name, student.bin_count) == (name, 5)
    for name in ("leen", "timm:", "timm", 5):
        with pytest.raises(
            ValueError, match="one of mobilenetv2, resnet18, resnet50, lean, lean-large, .* or timm:NAME"
        ):
            build_student(name, 5)
    with pytest.raises(ValueError, match="expected at least 2"):
        build_student("lean", 1)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda _: [], "list, expected an object"),
        (lambda _: None, "NoneType, expected an object"),
        (lambda config: {key: config[key] for key in config if key != "student"}, "student is missing"),
        (lambda config: config | {"view": 7}, "view '7', expected a configuration written by train-student"),
        (lambda config: config | {"view": ["full"]}, "view .*full.*, expected a configuration"),
        (lambda config: config | {"student": {}}, "student '{}', expected a configuration"),
        (lambda config: config | {"head": []}, "head .*, expected a configuration"),
        (lambda config: config | {"depth_space": 7}, "depth_space '7', expected a configuration"),
        (lambda config: config | {"depth_space": "parsecs"}, "depth space 'parsecs': expected one of"),
        (lambda config: config | {"store": "x"}, "store 'x', expected a configuration"),
        (lambda config: config | {"store": {"teacher": [1]}}, "store .*teacher.*, expected a configuration"),
        (lambda config: config | {"source": {}}, "source '{}', expected a configuration"),
        (lambda config: config | {"sigma_m": True}, "sigma_m 'True', expected a configuration"),
        (lambda config: config | {"bin_edges_m": "x"}, "bin_edges_m: expected a list"),
    ],
    ids=[
        "a list", "null", "no name", "view of a number", "view of a list", "student", "head", "depth space of a number",
        "depth space of no name", "store of a text", "teacher of a list", "source", "sigma", "edges",
    ],
)  # fmt: skip
def test_a_malformed_configuration_is_one_clear_message(tmp_path, scenes, teacher_store, change, match):
    train_network(
        scenes,
        "train",
        tmp_path / "run",
        TrainOptions(student="lean", epochs=1, batch_size=6),
        store=open_store(teacher_store),
    )
    path = tmp_path / "run" / "config.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(ValueError, match=match):
        load_run(tmp_path / "run")


def test_a_configuration_without_a_view_is_refused_where_one_is_needed():
    with pytest.raises(ValueError, match="view is missing in the run's config.json"):
        view_of({"student": "lean", "bin_edges_m": [1, 2, 3]})
