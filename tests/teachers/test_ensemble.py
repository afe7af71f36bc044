"""Answers mixed: of a teacher and its mirrored self, and of several teachers, as a map and as a store."""

from __future__ import annotations

import json
import math
import re
from dataclasses import fields

import fakes
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from tiny_stores import folder_bytes

from pipeline.cli.main import main
from pipeline.depth.dpm import gaussian_dpm
from pipeline.depth.rebin import rebin
from pipeline.store import open_store
from pipeline.teachers.base import TeacherCard, TeacherOutput
from pipeline.teachers.options import TeacherOptions
from pipeline.teachers.registry import open_teacher

CPU = torch.device("cpu")
EDGES_M = tuple(np.linspace(0, 12, 13).tolist())
MIXED = {"map_edges_m": EDGES_M, "map_sigma_m": 0.8}
IMAGES = torch.rand(2, 3, 8, 10, generator=torch.Generator().manual_seed(0))
IDS = ["a", "b"]
OWN_M = np.linspace(0, 12, 7)
SOFT = torch.rand(2, 6, 8, 10, generator=torch.Generator().manual_seed(1)).softmax(1)


class Fixed:
    """A teacher that gives what it was made with, for any image; its own mirror image is not what it would say."""

    needs_images = True

    def __init__(self, name, depth_m=3.0, dpm=None, moving=None, **card):
        self.card = TeacherCard("python", name, **{"depth_space": "metric_m", "weights_sha256": name * 8, **card})
        self.bin_edges_m = OWN_M if dpm is not None and moving is None else None
        self.emits_maps = moving is not None
        self.gives = (depth_m, dpm) if moving is None else (depth_m, dpm, moving)
        self.asked = []

    def __call__(self, images):
        self.asked.append(images)
        depth_m = self.gives[0] if torch.is_tensor(self.gives[0]) else torch.full((len(images), 8, 10), self.gives[0])
        return (depth_m, *self.gives[1:]) if len(self.gives) > 2 or self.gives[1] is not None else depth_m


def without_code(card):
    """A card's preprocessing but for the hashes of the factory's source."""
    return {name: value for name, value in card.preprocessing.items() if name != "python"}


@pytest.fixture
def made(monkeypatch):
    """Makes teachers that `python:fakes:NAME` opens."""

    def make(name, *args, **attributes):
        teacher = Fixed(name, *args, **attributes)
        monkeypatch.setattr(fakes, name, lambda: teacher, raising=False)
        return teacher

    return make


def opened(spec, **options):
    return open_teacher(spec, device=CPU, options=TeacherOptions(**{**MIXED, **options}))


def both(*names):
    return "ensemble:" + ",".join(f"python:fakes:{name}" for name in names)


def refuses(*parts):
    return pytest.raises(ValueError, match="(?s)" + ".*".join(re.escape(str(part)) for part in parts))


def gaussian(depth_m, sigma_m=0.8):
    return gaussian_dpm(torch.as_tensor(depth_m)[:, None], torch.tensor(EDGES_M, dtype=torch.float64), sigma_m)


RAMP_M = torch.arange(1.0, 11).expand(2, 8, 10).contiguous()

# --- flip average ----------------------------------------------------------------------------------------------------


def test_flip_average_is_the_mean_of_the_answer_and_of_the_mirrored_one_mirrored_back(made):
    network = made("ramp", RAMP_M)
    teacher = opened("python:fakes:ramp", flip_average=True)
    depth, dpm, edges = teacher.predict(IMAGES, IDS)[:3]
    torch.testing.assert_close(depth, torch.full((2, 8, 10), 5.5))
    torch.testing.assert_close(dpm, (gaussian(RAMP_M) + gaussian(RAMP_M.flip(-1))) / 2)
    assert edges is None
    assert tuple(teacher.bin_edges_m) == EDGES_M
    torch.testing.assert_close(torch.cat(network.asked), torch.cat([IMAGES, IMAGES.flip(-1)]))


def test_flip_average_leaves_a_teacher_that_sees_left_and_right_alike():
    depth, dpm, _ = opened("python:fakes:factory_with_dpm", flip_average=True).predict(IMAGES, IDS)[:3]
    alone = fakes.factory_with_dpm().predict(IMAGES, IDS)
    torch.testing.assert_close(depth, alone.depth)
    torch.testing.assert_close(dpm, alone.dpm)


def test_flip_average_is_over_the_teachers_own_bins_where_it_has_some(made):
    made("soft", RAMP_M, SOFT)
    teacher = opened("python:fakes:soft", flip_average=True, map_edges_m=None, map_sigma_m=None)
    torch.testing.assert_close(teacher.predict(IMAGES, IDS).dpm, (SOFT + SOFT.flip(-1)) / 2)
    np.testing.assert_array_equal(teacher.bin_edges_m, OWN_M)


def test_flip_average_carries_over_bins_of_each_pixel_and_mirrors_them_too(made):
    moving = (torch.tensor(OWN_M)[None, :, None, None] * torch.linspace(0.5, 1, 10)).expand(2, -1, 8, -1).contiguous()
    made("moving", RAMP_M, SOFT, moving=moving)
    dpm = opened("python:fakes:moving", flip_average=True).predict(IMAGES, IDS).dpm
    seen = torch.from_numpy(rebin(SOFT[1].numpy(), moving[1].numpy(), np.array(EDGES_M))[0])
    torch.testing.assert_close(dpm[1], (seen + seen.flip(-1)) / 2)
    made("each", RAMP_M, SOFT, moving=moving[..., 0, 9])
    dpm = opened("python:fakes:each", flip_average=True).predict(IMAGES, IDS).dpm
    seen = torch.from_numpy(rebin(SOFT[1].numpy(), OWN_M, np.array(EDGES_M))[0])
    torch.testing.assert_close(dpm[1], (seen + seen.flip(-1)) / 2)


def test_the_card_says_flip_average_and_sigma_where_gaussians_stand_in(made):
    made("ramp", RAMP_M, preprocessing={"size": 7})
    made("soft", RAMP_M, SOFT)
    card = opened("python:fakes:ramp", flip_average=True).card
    assert without_code(card) == {"size": 7, "flip_average": True, "sigma_m": 0.8}
    assert (card.kind, card.name, card.weights_sha256) == ("python", "ramp", "ramp" * 8)
    assert without_code(opened("python:fakes:soft", flip_average=True).card) == {"flip_average": True}


def test_a_folder_of_predictions_cannot_be_mirrored(tmp_path):
    np.save(tmp_path / "a.npy", np.ones((8, 10), np.float32))
    with refuses("cannot predict mirrored images: omit `flip_average`"):
        opened(f"predictions:{tmp_path}", flip_average=True, metres_per_unit=1.0)


def test_answers_without_a_scale_are_not_mixed(made):
    made("ramp", RAMP_M, depth_space="affine_disparity")
    made("other", RAMP_M)
    for spec, flip in (("python:fakes:ramp", True), (both("other", "ramp"), False)):
        with refuses("'ramp' predicts affine_disparity, whose scale differs in every image"):
            opened(spec, flip_average=flip)


@pytest.mark.parametrize(
    ("lacks", "parts"),
    [
        ({"map_edges_m": None}, ["mixing needs bins", "`bins`, for example nyu"]),
        ({"map_sigma_m": None}, ["'ramp' predicts depth without maps", "no default width: give a positive `sigma_m`"]),
        ({"map_sigma_m": -1.0}, ["`sigma_m=-1.0` is not valid: give a positive `sigma_m`"]),
    ],
)
def test_bins_and_sigma_that_nobody_knows_are_asked_for(made, lacks, parts):
    made("ramp", RAMP_M)
    made("soft", RAMP_M, SOFT)
    for spec, flip in (("python:fakes:ramp", True), (both("soft", "ramp"), False)):
        with refuses(*parts):
            opened(spec, flip_average=flip, **lacks)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 0.0, -1.0])
def test_depth_that_is_none_does_not_vanish_in_a_mixture(made, bad):
    wrong = RAMP_M.clone()
    wrong[1, 2, 3] = bad
    made("wrong", wrong)
    made("ramp", RAMP_M)
    for spec, flip in (("python:fakes:wrong", True), (both("ramp", "wrong"), False)):
        with refuses(f"'wrong' predicted {bad} m for images a, b (1 such pixels)"):
            opened(spec, flip_average=flip).predict(IMAGES, IDS)


# --- ensembles -------------------------------------------------------------------------------------------------------


def test_an_ensemble_is_the_mean_of_depths_and_the_mixture_of_maps(made):
    made("near", 3.0)
    made("far", 9.0)
    teacher = opened(both("near", "far"))
    depth, dpm, _ = teacher.predict(IMAGES, IDS)[:3]
    torch.testing.assert_close(depth, torch.full((2, 8, 10), 6.0))
    expected = (gaussian(torch.full((2, 8, 10), 3.0)) + gaussian(torch.full((2, 8, 10), 9.0))) / 2
    torch.testing.assert_close(dpm, expected)
    assert (teacher.needs_images, teacher.emits_maps, tuple(teacher.bin_edges_m)) == (True, False, EDGES_M)


def test_maps_over_other_bins_are_carried_over_and_shared_bins_are_kept(made):
    made("soft", RAMP_M, SOFT)
    made("again", RAMP_M, SOFT.flip(1))
    made("near", 3.0)
    dpm = opened(both("soft", "near")).predict(IMAGES, IDS).dpm
    carried = torch.from_numpy(np.stack([rebin(one, OWN_M, np.array(EDGES_M))[0] for one in SOFT.numpy()]))
    torch.testing.assert_close(dpm, (carried + gaussian(torch.full((2, 8, 10), 3.0))) / 2)
    alike = opened(both("soft", "again"), map_edges_m=None, map_sigma_m=None)
    np.testing.assert_array_equal(alike.bin_edges_m, OWN_M)
    torch.testing.assert_close(alike.predict(IMAGES, IDS).dpm, (SOFT + SOFT.flip(1)) / 2)


def test_smaller_answers_are_brought_to_the_largest_by_nearest_pixel(made):
    small = torch.arange(1.0, 41).view(2, 4, 5)
    made("small", small)
    made("large", 2.0)
    depth, dpm, _ = opened(both("small", "large")).predict(IMAGES, IDS)[:3]
    spread = small.repeat_interleave(2, 1).repeat_interleave(2, 2)
    torch.testing.assert_close(depth, (spread + 2) / 2)
    torch.testing.assert_close(dpm, (gaussian(spread) + gaussian(torch.full((2, 8, 10), 2.0))) / 2)


def predictions(folder, holes=True):
    depth_m = np.full((8, 10), 5000, np.uint16)
    depth_m[0, 0] = 0 if holes else 5000
    folder.mkdir()
    for name in IDS:
        np.save(folder / f"{name}.npy", depth_m)
    (folder / "predictions.json").write_text('{"metres_per_unit": "mm"}')
    return f"predictions:{folder}"


def test_where_a_folder_of_predictions_has_no_value_the_others_make_the_mixture(tmp_path, made):
    holed = predictions(tmp_path / "holed")
    made("near", 3.0)
    teacher = opened(f"ensemble:{holed},python:fakes:near")
    depth, dpm, _ = teacher.predict(IMAGES, IDS)[:3]
    assert (depth[0, 0, 0], depth[0, 4, 4], teacher.needs_images) == (3, 4, True)
    torch.testing.assert_close(dpm[:, :, 0, 0], gaussian(torch.full((2, 1, 1), 3.0))[:, :, 0, 0])
    whole = predictions(tmp_path / "whole", holes=False)
    folders = opened(f"ensemble:{holed},{whole}")
    assert not folders.needs_images
    assert folders.predict(None, IDS).depth.unique().tolist() == [5]


def test_a_pixel_that_no_member_has_a_value_for_has_none(tmp_path):
    depth, dpm, _ = opened(f"ensemble:{predictions(tmp_path / 'a')},{predictions(tmp_path / 'b')}").predict(None, IDS)[
        :3
    ]
    assert depth[:, 0, 0].isnan().all()
    assert dpm[:, :, 0, 0].isnan().all()
    assert (int(depth.isnan().sum()), int(dpm.isnan().any(1).sum())) == (2, 2)


def test_the_card_of_an_ensemble_holds_every_members_card_and_weight(made):
    made("near", 3.0, licence="MIT", preprocessing={"trained_view": "full,resize:8x10"})
    made("soft", RAMP_M, SOFT, licence="MIT", precision="float16")
    card = opened(both("near", "soft")).card
    assert (card.kind, card.name, card.depth_space) == ("ensemble", "near + soft", "metric_m")
    assert (card.precision, card.licence) == ("mixed", "MIT")
    assert opened(both("near", "soft"), licence="GPL").card.licence == "GPL"
    members = card.preprocessing.pop("members")
    assert card.preprocessing == {"sigma_m": 0.8, "trained_view": "full,resize:8x10"}
    assert [member["weight"] for member in members] == [0.5, 0.5]
    assert [member["card"]["weights_sha256"] for member in members] == ["near" * 8, "soft" * 8]
    made("soft", RAMP_M, SOFT, weights_sha256="f" * 64)
    assert opened(both("near", "soft")).card.weights_sha256 != card.weights_sha256


def test_an_ensemble_with_flip_average_has_members_with_flip_average(made):
    made("ramp", RAMP_M)
    made("near", 3.0)
    teacher = opened(both("ramp", "near"), flip_average=True)
    torch.testing.assert_close(teacher.predict(IMAGES, IDS).depth, torch.full((2, 8, 10), (5.5 + 3) / 2))
    assert teacher.card.preprocessing["sigma_m"] == 0.8
    for member in teacher.card.preprocessing["members"]:
        assert without_code(TeacherCard(**member["card"])) == {"flip_average": True, "sigma_m": 0.8}


@pytest.mark.parametrize(
    ("spec", "parts"),
    [
        (both("ramp"), ["1 members, expected 2 to 64 teachers KIND:WHAT"]),
        (both("ramp", "ramp"), ["python:fakes:ramp is the same model as python:fakes:ramp"]),
        (both("ramp", "copy"), ["python:fakes:copy is the same model as python:fakes:ramp", "larger weight"]),
        (both("ramp") + ",x", ["'x' is not a teacher", "if a path has a comma"]),
        (both("ramp", "gone"), ["member python:fakes:gone", "no function 'gone'"]),
        (both("ramp") + ",ensemble:" + both("ramp"), ["a member is itself an ensemble"]),
    ],
)
def test_a_list_of_members_that_makes_no_ensemble_is_refused(made, spec, parts):
    made("ramp", RAMP_M)
    made("copy", RAMP_M, weights_sha256="ramp" * 8)
    with refuses(f"teacher {spec}", *parts):
        opened(spec)


# --- a file of members -----------------------------------------------------------------------------------------------


def write(folder, *members, **more):
    path = folder / "members.json"
    path.write_text(json.dumps({"members": list(members), **more}))
    return f"ensemble:{path}"


def test_a_file_gives_weights_and_flags_and_paths_from_its_own_folder(tmp_path, made, monkeypatch):
    made("near", 3.0)
    predictions(tmp_path / "folder", holes=False)
    (tmp_path / "folder" / "predictions.json").unlink()
    monkeypatch.chdir("/")
    given = {"teacher": "predictions:folder", "metres-per-unit": "mm", "licence": "MIT", "weight": 3}
    spec = write(tmp_path, given, {"teacher": "python:fakes:near", "flip-average": True})
    teacher = opened(spec, trust_code=True)
    torch.testing.assert_close(teacher.predict(IMAGES, IDS).depth, torch.full((2, 8, 10), (3 * 5 + 3) / 4))
    first, second = teacher.card.preprocessing["members"]
    assert (first["weight"], second["weight"]) == (0.75, 0.25)
    assert (first["card"]["licence"], first["card"]["preprocessing"]["metres_per_unit"]) == ("MIT", 0.001)
    assert second["card"]["preprocessing"]["flip_average"] is True


@pytest.mark.parametrize(
    "key", sorted(field.name.replace("_", "-").replace("size-px", "size") for field in fields(TeacherOptions))
)
def test_every_flag_of_a_teacher_is_one_of_a_member_except_those_of_the_whole(tmp_path, key):
    member = {"teacher": "predictions:nowhere", key: {"flip-average": True, "input-size": "8x10"}.get(key, "x")}
    with pytest.raises(ValueError, match=r"expected|does not apply|no such") as told:
        opened(write(tmp_path, member, member))
    unknown = f"has {key!r}, expected teacher, weight" in str(told.value)
    assert unknown == (key in {"features", "trust-code", "map-edges-m", "map-sigma-m"})


NEAR = {"teacher": "python:fakes:near"}


@pytest.mark.parametrize(
    ("members", "parts"),
    [
        ([NEAR], ["1 members, expected 2 to 64"]),
        ([NEAR] * 65, ["65 members, expected 2 to 64"]),
        ([{**NEAR, "weight": 0}], ["has weight 0, expected a positive number"]),
        ([{**NEAR, "weight": True}], ["has weight True"]),
        ([{**NEAR, "weight": "1"}], ["has weight '1'"]),
        ([{**NEAR, "colour": 1}], ["has 'colour', expected teacher, weight,", "licence", "remove it"]),
        ([{**NEAR, "trust-code": True}], ["has 'trust-code'", "give `trust_code` on the command line"]),
        ([{**NEAR, "input-size": "0x7"}], ["has input-size '0x7', expected a value as on the command line"]),
        ([{**NEAR, "flip-average": "yes"}], ["has flip-average 'yes'"]),
        ([{**NEAR, "metres-per-unit": True}], ["has metres-per-unit True"]),
        ([{**NEAR, "metres-per-unit": "far"}], ["metres per unit 'far'"]),
        ([{"weight": 1}], ["needs the text `teacher`", '{"teacher": "checkpoint:runs/a", "weight": 1}']),
        ([7], ["member 7 needs the text `teacher`"]),
    ],
)
def test_a_wrong_file_of_members_is_refused(tmp_path, made, members, parts):
    made("near", 3.0)
    with refuses(*parts):
        opened(write(tmp_path, *members), trust_code=True)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"members": 1}', '{"members": [], "more": 1}'])
def test_a_file_without_members_is_refused(tmp_path, text):
    (tmp_path / "m.json").write_text(text)
    with refuses(f"ensemble {tmp_path / 'm.json'}"):
        opened(f"ensemble:{tmp_path / 'm.json'}")


def test_a_file_names_no_code_that_the_user_did_not_trust(tmp_path, made):
    made("near", 3.0)
    made("far", 9.0)
    spec = write(tmp_path, NEAR, {"teacher": "python:fakes:far"})
    with refuses("member python:fakes:near runs code named by the file", "give `trust_code`"):
        opened(spec)
    assert opened(spec, trust_code=True).card.name == "near + far"


# --- as a store ------------------------------------------------------------------------------------------------------


def run(*words):
    done = CliRunner().invoke(main, list(map(str, words)))
    assert "Traceback" not in done.output
    return done


@pytest.fixture
def images(tmp_path):
    folder = fakes.make_folder(tmp_path / "folder", size_px=(16, 20))
    return ["--source", f"folder:{folder}", "--split", "train"]


@pytest.fixture
def left(monkeypatch):
    """A network that sees the left differently from the right, as `python:fakes:left`."""

    class Left(fakes.FakeTeacher):
        def predict(self, seen, ids):
            return TeacherOutput(*self(seen))

        def __call__(self, seen):
            return super().__call__(seen) * torch.linspace(1, 1.5, seen.shape[-1])

    monkeypatch.setattr(fakes, "left", lambda: Left(name="left"), raising=False)


TO_MIX = {
    "flip": ["python:fakes:left", "--flip-average"],
    "ensemble": ["ensemble:python:fakes:left,python:fakes:factory_with_own_sha"],
    "both": ["ensemble:python:fakes:left,python:fakes:factory_with_own_sha", "--flip-average"],
}


@pytest.mark.usefixtures("left")
@pytest.mark.parametrize("kind", TO_MIX)
def test_a_mixture_is_stored_as_sparse_maps_and_verified_against_its_teachers(tmp_path, images, monkeypatch, kind):
    other = fakes.FakeTeacher(name="other")
    other.card = TeacherCard("python", "other", "metric_m", weights_sha256="1" * 64)
    monkeypatch.setattr(fakes, "factory_with_own_sha", lambda: other, raising=False)
    store, teacher = tmp_path / "s.zarr", TO_MIX[kind]
    asked = run("cache-teacher", *images, "--teacher", *teacher, "--out", store)
    assert (asked.exit_code, "give --bins, for example nyu" in asked.output) == (1, True)
    bins = ["--bins", "linear:24:0.5:20", "--sigma-m", "0.4"]
    done = run("cache-teacher", *images, "--teacher", *teacher, *bins, "--out", store)
    assert done.exit_code == 0, done.output
    found = open_store(store)
    assert (found.spec.dpm_kind, found.spec.bin_count, found.spec.carried_from) == ("sparse", 24, None)
    assert found.spec.teacher["preprocessing"]["sigma_m"] == 0.4
    checked = run("store", "verify", store, "--against", *teacher, *images)
    assert checked.exit_code == 0, checked.output
    assert "store, maps" in checked.output
    alone = run("store", "verify", store, "--against", "python:fakes:left", *images)
    assert alone.exit_code == 1
    assert "was made from another teacher" in alone.output
    run("cache-teacher", *images, "--teacher", *teacher, *bins, "--out", tmp_path / "again.zarr")
    assert folder_bytes(tmp_path / "again.zarr") == folder_bytes(store)


def test_bins_that_a_user_names_are_reached_by_carrying_the_teachers_own_mixture_over(tmp_path, images):
    flip = ["--teacher", "python:fakes:factory_with_dpm", "--flip-average"]
    own, asked = tmp_path / "own.zarr", tmp_path / "asked.zarr"
    assert run("cache-teacher", *images, *flip, "--out", own).exit_code == 0
    done = run("cache-teacher", *images, *flip, "--bins", "log:8:1:12", "--out", asked)
    assert re.search(r"maps rebinned at [\d.e-]+ nats \(mean\), expected depth moved by [\d.]+%, ", done.output)
    assert (open_store(own).spec.bin_count, open_store(own).spec.carried_from) == (16, None)
    assert (open_store(asked).spec.bin_count, open_store(asked).spec.carried_from) == (8, "fixed")
    against = ["--against", "python:fakes:factory_with_dpm", "--flip-average", *images]
    for store in (own, asked):
        assert run("store", "verify", store, *against).exit_code == 0
