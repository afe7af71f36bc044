"""Networks of Hugging Face transformers: what is loaded, refused and recorded, on tiny ones."""

from __future__ import annotations

import json
import os
import re
import sys

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported: the suite asks no network

import pytest
import torch
from tiny_transformers import METRIC, OWN_PROCESSORS, build_network, build_processor, save_model
from transformers_cases import IDS, VIEWS, opened, refuses

from pipeline.teachers.huggingface.families import FAMILIES, REFUSED, rows

transformers = pytest.importorskip("transformers")


def test_the_card_says_weights_processor_and_precision_but_no_path(tmp_path):
    save_model(tmp_path / "net", "depth_anything", **METRIC)
    card = opened(tmp_path / "net", licence="Apache-2.0").card
    from pipeline.common.fileio import canonical_json, sha256_file

    assert (card.kind, card.name, card.precision, card.licence) == (
        "transformers",
        "net",
        "float32",
        "Apache-2.0",
    )
    assert (card.revision, card.weights_sha256) == (None, sha256_file(tmp_path / "net/model.safetensors"))
    assert card.preprocessing["processor"] == "DPTImageProcessorPil"
    assert card.preprocessing["settings"]["size"] == {"height": 28, "width": 28}
    assert str(tmp_path) not in canonical_json(card.as_json()).decode()


def test_another_configuration_of_the_same_weights_is_another_teacher(tmp_path):
    save_model(tmp_path, "depth_anything", **METRIC)
    path = tmp_path / "config.json"
    before, config = opened(tmp_path).card, json.loads(path.read_text())
    path.write_text(json.dumps(config | {"_name_or_path": "elsewhere", "transformers_version": "0"}))
    assert opened(tmp_path).card == before
    path.write_text(json.dumps(config | {"max_depth": 4 * config["max_depth"]}))
    after = opened(tmp_path).card
    assert after.weights_sha256 == before.weights_sha256
    assert after != before


def test_an_asked_input_size_is_what_the_network_sees(tmp_path):
    save_model(tmp_path, "depth_anything")
    teacher = opened(tmp_path, input_size_px=(42, 56))
    assert teacher.predict(VIEWS, IDS).depth.shape == (2, 42, 56)
    assert teacher.card.preprocessing["input_size_px"] == [42, 56]


def test_an_input_size_that_the_patches_do_not_divide_is_refused_with_the_next(tmp_path):
    save_model(tmp_path, "depth_anything")
    with refuses("42x56 px instead of 40x60", "`input_size_px=42x56`"):
        opened(tmp_path, input_size_px=(40, 60)).predict(VIEWS, IDS)


def test_an_input_size_for_a_processor_without_one_is_refused(tmp_path):
    save_model(tmp_path, "glpn")
    with refuses("takes no size", "`view`"):
        opened(tmp_path, input_size_px=(64, 64))


def test_an_overflow_in_float16_is_refused(tmp_path):
    network = build_network("depth_anything")
    with torch.no_grad():
        network.neck.convs[0].weight.fill_(1e6)
    network.save_pretrained(tmp_path)
    build_processor("depth_anything").save_pretrained(tmp_path)
    with refuses("overflows in float16", "a, b", "`precision=bfloat16`"):
        opened(tmp_path, precision="float16").predict(VIEWS, IDS)


def test_an_unknown_precision_is_refused(tmp_path):
    save_model(tmp_path, "glpn")
    with refuses("precision 'int8'", "auto", "bfloat16"):
        opened(tmp_path, precision="int8")


def test_a_space_that_the_configuration_does_not_say_must_be_given(tmp_path):
    save_model(tmp_path, "dpt_dinov2")
    with refuses("does not specify", "`depth_space=metric_m`", "affine_disparity"):
        opened(tmp_path)
    assert opened(tmp_path, depth_space="metric_m").card.depth_space == "metric_m"


def test_a_space_other_than_the_configurations_is_refused(tmp_path):
    save_model(tmp_path, "depth_anything", **METRIC)
    with refuses("`depth_space=affine_depth`", "contradicts metric_m", "omit it"):
        opened(tmp_path, depth_space="affine_depth")


@pytest.mark.parametrize("key", ["do_pad", "do_center_crop"])
def test_a_processor_that_changes_the_area_is_refused(tmp_path, key):
    save_model(tmp_path, "dpt")
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: True, "size_divisor": 16}))
    with refuses("preprocessor_config.json", key, "another area", "`view`"):
        opened(tmp_path)


def test_pickled_weights_are_refused(tmp_path):
    save_model(tmp_path, "glpn")
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with refuses("only pytorch_model.bin", "pickle", "save_pretrained"):
        opened(tmp_path, trust_code=True)


def test_a_directory_without_weights_is_refused(tmp_path):
    with refuses(tmp_path, "no weights", "model.safetensors"):
        opened(tmp_path)


def test_weights_that_would_stay_random_are_refused(tmp_path):
    network = save_model(tmp_path, "depth_anything")
    weights = {name: value for name, value in network.state_dict().items() if not name.startswith("head.conv3")}
    from safetensors.torch import save_file

    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with refuses("2 weights are missing", "head.conv3.bias", "random"):
        opened(tmp_path)


def test_weights_that_depth_never_uses_may_be_absent(tmp_path):
    network = save_model(tmp_path, "dpt")
    unused = "neck.fusion_stage.layers.0.residual_layer1."
    weights = {name: value for name, value in network.state_dict().items() if not name.startswith(unused)}
    assert len(weights) < len(network.state_dict())
    from safetensors.torch import save_file

    whole = opened(tmp_path).predict(VIEWS, IDS).depth
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    torch.testing.assert_close(opened(tmp_path).predict(VIEWS, IDS).depth, whole)


def test_weights_in_several_files_are_one_digest_and_load(tmp_path):
    network = build_network("glpn")
    network.save_pretrained(tmp_path, max_shard_size="20KB")
    build_processor("glpn").save_pretrained(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    teacher = opened(tmp_path)
    assert re.fullmatch("[0-9a-f]{64}", teacher.card.weights_sha256)
    assert teacher.predict(VIEWS, IDS).depth.shape == (2, 32, 96)


def test_the_height_of_trees_is_refused_as_no_depth(tmp_path):
    save_model(tmp_path, "glpn")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "chmv2"}))
    with refuses("a chmv2 network", "not a depth teacher: it predicts canopy height", "glpn", "python:module:factory"):
        opened(tmp_path)


def test_every_architecture_that_the_library_maps_is_used_or_refused():
    from transformers.models.auto.modeling_auto import MODEL_FOR_DEPTH_ESTIMATION_MAPPING_NAMES

    assert {*FAMILIES, *REFUSED} == set(MODEL_FOR_DEPTH_ESTIMATION_MAPPING_NAMES)
    assert [row.family for row in rows()] == [*sorted({*FAMILIES, *REFUSED}), "any other"]
    assert all(all(row) for row in rows())


@pytest.mark.parametrize("text", ["{}", "{", '{"model_type": "bert"}', '{"model_type": "no-such"}'])
def test_a_directory_of_something_else_is_refused(tmp_path, text):
    save_model(tmp_path, "glpn")
    (tmp_path / "config.json").write_text(text)
    with refuses(tmp_path):
        opened(tmp_path)


# Code that lies beside the weights

CODE = """
import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import DepthEstimatorOutput

open({marker!r}, "w").close()


class Config(PreTrainedConfig):
    model_type = "mine"


class Net(PreTrainedModel):
    config_class = Config

    def __init__(self, config):
        super().__init__(config)
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.post_init()

    def forward(self, pixel_values):
        return DepthEstimatorOutput(predicted_depth=self.weight + pixel_values[:, 0])
"""


@pytest.fixture
def with_code(tmp_path, monkeypatch):
    """A folder of a network of no known family, whose code writes a file `ran` when it is imported."""
    from safetensors.torch import save_file

    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
        monkeypatch.delitem(sys.modules, name)
    folder = tmp_path / "net"
    folder.mkdir()
    auto_map = {"AutoConfig": "mine.Config", "AutoModelForDepthEstimation": "mine.Net"}
    (folder / "config.json").write_text(json.dumps({"model_type": "mine", "auto_map": auto_map}))
    (folder / "mine.py").write_text(CODE.format(marker=str(folder / "ran")))
    save_file({"weight": torch.full((1,), 3.0)}, folder / "model.safetensors", metadata={"format": "pt"})
    build_processor("dpt", do_normalize=False).save_pretrained(folder)
    return folder


def test_code_beside_the_weights_does_not_run_unless_it_is_trusted(with_code):
    with refuses(with_code, "transformers cannot load it"):
        opened(with_code, depth_space="metric_m")
    assert not (with_code / "ran").exists()
    teacher = opened(with_code, depth_space="metric_m", trust_code=True)
    assert (with_code / "ran").exists()
    depth = teacher.predict(VIEWS, IDS).depth
    assert depth.shape == (2, 32, 32)
    assert 3 <= depth.min() < depth.max() <= 4


def test_an_architecture_of_the_future_needs_its_depth_space_and_float32(with_code):
    with refuses("does not specify its depth space", "`depth_space=metric_m`"):
        opened(with_code, trust_code=True)
    with refuses("`precision=float16`", "use float32"):
        opened(with_code, trust_code=True, depth_space="metric_m", precision="float16")


def test_the_card_tells_other_code_beside_the_same_weights(with_code):
    options = {"depth_space": "metric_m", "trust_code": True}
    before = opened(with_code, **options).card
    assert re.fullmatch("[0-9a-f]{64}", before.preprocessing["code_sha256"])
    with (with_code / "mine.py").open("a") as file:
        file.write("# a line\n")
    after = opened(with_code, **options).card
    assert after.preprocessing["code_sha256"] != before.preprocessing["code_sha256"]
    assert after.weights_sha256 == before.weights_sha256


@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json"])
def test_code_of_another_repository_is_refused_even_if_trusted(with_code, file):
    settings = json.loads((with_code / file).read_text())
    auto_map = {"AutoConfig": "mine.Config", "AutoImageProcessor": [None, "some/one--evil.Processor"]}
    (with_code / file).write_text(json.dumps({**settings, "auto_map": auto_map}))
    with refuses(file, "another repository (some/one--evil.Processor)", "copy that code"):
        opened(with_code, depth_space="metric_m", trust_code=True)
    assert not (with_code / "ran").exists()


# Hub ids


def test_a_revision_of_a_directory_is_refused(tmp_path):
    with refuses("`revision='main'`", "directory", "omit it"):
        opened(tmp_path, revision="main")


def test_a_hub_id_that_cannot_be_had_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with refuses("transformers:nobody/no-such-depth", "it cannot be downloaded", "check the id"):
        opened("nobody/no-such-depth")


def test_what_is_neither_directory_nor_hub_id_is_refused():
    with refuses("/no/such/folder", "no such directory", "not a hub id like"):
        opened("/no/such/folder")


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize("revision", [None, "main", "v1", COMMIT])
def test_a_hub_id_is_pinned_to_the_commit_that_its_revision_means_now(tmp_path, monkeypatch, revision):
    # The layout of the hub's cache: huggingface_hub, guides/manage-cache.
    repository = tmp_path / "models--someone--glpn-tiny"
    (repository / "refs").mkdir(parents=True)
    for name in ("main", "v1"):
        (repository / "refs" / name).write_text(COMMIT)
    save_model(repository / "snapshots" / COMMIT, "glpn")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    card = opened("someone/glpn-tiny", revision=revision).card
    assert (card.name, card.revision) == ("someone/glpn-tiny", COMMIT)


@pytest.mark.parametrize(
    ("trusted", "patterns"),
    [(False, ["*.json", "*.safetensors"]), (True, ["*.json", "*.safetensors", "*.py"])],
)
def test_code_is_fetched_only_if_it_is_trusted(tmp_path, monkeypatch, trusted, patterns):
    asked = []

    def snapshot_download(repo, *, revision, allow_patterns):
        asked.append((repo, revision, allow_patterns))
        return str(tmp_path / COMMIT)

    save_model(tmp_path / COMMIT, "glpn")
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    opened("someone/glpn-tiny", revision="v1", trust_code=trusted)
    assert asked == [("someone/glpn-tiny", "v1", patterns)]


# Processors of ours, for families whose own needs torchvision


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({"do_pad": True}, ["do_pad", "another area"]),
        ({"size": {"shortest_edge": 56}}, ["size {'shortest_edge': 56}", '{"height": H, "width": W}']),
        ({"size": {"height": 10**9, "width": 56}}, ["size", "1000000000"]),
        ({"size": {"height": True, "width": 56}}, ["size {'height': True", "in pixels"]),
        ({"resample": 1}, ["resample 1", "2 or 3"]),
        ({"rescale_factor": "1/255"}, ["factor", "'1/255'", "expected numbers"]),
        ({"do_normalize": True}, ["image_mean None", "three numbers"]),
        ({"do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5, 0, 0.5]}, ["positive deviations"]),
        ({"size": {"height": 50, "width": 56}}, ["50x56 px", "patch size 14", "`input_size_px=56x56`"]),
    ],
)
def test_settings_that_our_processor_cannot_follow_are_refused(tmp_path, settings, parts):
    save_model(tmp_path, "tipsv2_dpt", processor=settings)
    with refuses(*parts):
        opened(tmp_path).predict(VIEWS, IDS)


def test_a_processor_file_that_is_no_object_is_refused(tmp_path):
    save_model(tmp_path, "tipsv2_dpt")
    (tmp_path / "preprocessor_config.json").write_text("[]")
    with refuses("preprocessor_config.json holds list", "expected an object"):
        opened(tmp_path)


def test_a_processor_file_that_is_missing_is_refused(tmp_path):
    save_model(tmp_path, "depth_pro")
    (tmp_path / "preprocessor_config.json").unlink()
    with refuses("preprocessor", "No such file"):
        opened(tmp_path)


def test_the_card_of_our_processor_holds_all_that_the_input_depends_on(tmp_path):
    save_model(tmp_path, "depth_pro")
    settings = opened(tmp_path).card.preprocessing["settings"]
    said = {key: value for key, value in OWN_PROCESSORS["depth_pro"].items() if key != "image_processor_type"}
    assert settings == said
    (tmp_path / "preprocessor_config.json").write_text('{"size": {"height": 128, "width": 128}, "rescale_factor": 0.5}')
    assert opened(tmp_path).card.preprocessing["settings"] == {**said, "rescale_factor": 0.5}
