"""Teachers that depend on the camera: canonical cameras, teachers that take intrinsics, and their refusals."""

import json
import re

import fakes
import numpy as np
import pytest
import torch
from click.testing import CliRunner

from pipeline.cache.cluster_worker import ClusterWorker, WorkerConfig
from pipeline.cache.compare_teacher import compare_with_teacher
from pipeline.cache.flips import cache_with_flips, mirrored_path
from pipeline.cache.plan import CacheOptions
from pipeline.cache.run import StorePlan, cache_teacher, plan_cache
from pipeline.cli.main import main
from pipeline.sources.intrinsics import Intrinsics
from pipeline.sources.registry import open_source
from pipeline.sources.view import View
from pipeline.store import open_store
from pipeline.teachers.base import Framing, run_teacher
from pipeline.teachers.options import TeacherOptions
from pipeline.teachers.registry import open_teacher

SIZE_PX = (24, 32)
CAMERA = (60.0, 60.0, 15.0, 11.0)
VIEW = "center:20x32,resize:10x16"
"""Half of the pixels: a focal length of 30 px."""
OPTIONS = CacheOptions(view=VIEW, bins="log:16:0.05:40", sigma_m=0.05, batch_size=2)


def refuses(*parts):
    """Raises ValueError whose message holds all parts in this order."""
    return pytest.raises(ValueError, match="(?s)" + ".*".join(re.escape(str(part)) for part in parts))


class Net:
    """Predicts depth by darkness; `card` adds to its card. Remembers the intrinsics that it was given."""

    def __init__(self, card, edges_m=None):
        self.card = {"name": "net", "depth_space": "metric_m", "weights": [], **card}
        self.bin_edges_m = edges_m
        self.seen = []

    def __call__(self, images, **inputs):
        self.seen += [(name, values.clone()) for name, values in inputs.items()]
        depth = 1 + 3 * (1 - images.mean(dim=1))
        if self.bin_edges_m is None:
            return depth
        bins = torch.bucketize(depth, torch.from_numpy(self.bin_edges_m)).float() - 1
        return depth, torch.nn.functional.one_hot(bins.long(), len(self.bin_edges_m) - 1).movedim(-1, 1).float()


@pytest.fixture
def folder(tmp_path):
    """A folder of three images with a camera."""
    fakes.make_folder(tmp_path / "data", size_px=SIZE_PX)
    (tmp_path / "data/K.txt").write_text(" ".join(map(str, CAMERA)))
    return open_source(f"folder:{tmp_path / 'data'}")


@pytest.fixture
def net(monkeypatch):
    """Open a `python:` teacher of a card, and return it and its network."""

    def make(card, edges_m=None, name="camera_net", **options):
        model = Net(card, edges_m)
        monkeypatch.setattr(fakes, name, lambda: model, raising=False)
        return opened(f"python:fakes:{name}", **options), model

    return make


CANONICAL = {"preprocessing": {"canonical_focal_px": 300.0}}


def opened(spec, **options):
    return open_teacher(spec, device=torch.device("cpu"), options=TeacherOptions(**options))


def cached(tmp_path, source, teacher, name="s.zarr", **options):
    path = tmp_path / name
    cache_teacher(source, "all", teacher, path, CacheOptions(**{**OPTIONS.__dict__, **options}))
    return open_store(path)


def ratio(store, plain):
    """Depth of a store over that of the network's own output."""
    return np.median([np.median(store.depth(i) / plain.depth(i)) for i in range(len(store.ids))])


# Canonical cameras


def test_the_output_of_a_canonical_camera_is_stored_in_metres_of_the_view(tmp_path, folder, net):
    plain = cached(tmp_path, folder, net({})[0], "plain.zarr")
    store = cached(tmp_path, folder, net(CANONICAL)[0])
    assert ratio(store, plain) == pytest.approx(30 / 300, rel=1e-3)
    assert store.spec.teacher["preprocessing"]["canonical_focal_px"] == 300.0


def test_a_focal_length_by_hand_is_of_the_original_image_and_in_the_store(tmp_path, folder, net):
    plain = cached(tmp_path, folder, net({})[0], "plain.zarr")
    store = cached(tmp_path, folder, net(CANONICAL, focal_px=90.0)[0])
    assert ratio(store, plain) == pytest.approx(45 / 300, rel=1e-3)
    assert store.spec.teacher["preprocessing"]["focal_px"] == 90.0


def test_a_teacher_without_a_camera_has_the_card_that_it_had(net):
    teacher, _ = net({})
    assert set(teacher.card.as_json()["preprocessing"]) == {"python"}
    assert set(teacher.card.as_json()) == {
        *("kind", "name", "depth_space", "weights_sha256", "revision", "preprocessing", "precision", "licence")
    }


def test_each_image_is_scaled_by_its_own_focal_length(tmp_path, folder, net):
    (folder.root / "K.txt").unlink()
    rows = [f"{sample.id},{60 + 60 * n},{60 + 60 * n},15,11\n" for n, sample in enumerate(folder.samples("all"))]
    (folder.root / "intrinsics.csv").write_text("id,fx_px,fy_px,cx_px,cy_px\n" + "".join(rows))
    source = open_source(f"folder:{folder.root}")
    plain, store = cached(tmp_path, source, net({})[0], "plain.zarr"), cached(tmp_path, source, net(CANONICAL)[0])
    ratios = [np.median(store.depth(i) / plain.depth(i)) for i in range(3)]
    assert ratios == pytest.approx([0.1, 0.2, 0.3], rel=1e-3)


def test_maps_of_a_canonical_camera_move_with_its_depth(tmp_path, folder, net):
    edges_m = np.linspace(0.5, 4.5, 9)
    teacher, _ = net(CANONICAL, edges_m)
    store = cached(tmp_path, folder, teacher, bins="log:64:0.04:0.5", sigma_m=None)
    assert store.spec.carried_from == "image"
    edges = np.array(store.spec.bin_edges)
    expected_m = ((edges[1:] + edges[:-1])[:, None, None] / 2 * store.dpm(0)).sum(axis=0)
    np.testing.assert_allclose(expected_m, store.depth(0), atol=0.03)  # half of a bin of 0.05 m


def test_a_store_of_a_canonical_camera_agrees_with_its_live_teacher(tmp_path, folder, net):
    teacher, _ = net(CANONICAL)
    store = cached(tmp_path, folder, teacher)
    assert all(agreement.holds for agreement in compare_with_teacher(store, folder, "all", teacher, count=3))


def test_mirrored_views_are_scaled_alike(tmp_path, folder, net):
    teacher, _ = net(CANONICAL)
    cache_with_flips(folder, "all", teacher, tmp_path / "s.zarr", OPTIONS)
    plain, mirrored = open_store(tmp_path / "s.zarr"), open_store(mirrored_path(tmp_path / "s.zarr"))
    np.testing.assert_allclose(mirrored.depth(0), plain.depth(0)[:, ::-1], rtol=2e-3)


def test_a_flip_average_gets_the_camera_of_the_mirrored_view(tmp_path, folder, net):
    more = {"flip_average": True, "map_edges_m": tuple(np.geomspace(0.05, 5, 17)), "map_sigma_m": 0.05}
    teacher, model = net({"inputs": ["intrinsics"], **CANONICAL}, **more)
    plain = cached(tmp_path, folder, net({}, name="other")[0], "plain.zarr")
    store = cached(tmp_path, folder, teacher, sigma_m=None)
    assert ratio(store, plain) == pytest.approx(0.1, rel=1e-2)
    seen = {float(row[2]) for _, rows in model.seen for row in rows}
    assert seen == {7.25, 15 - 7.25}  # cx of the view, and of its mirror image


def test_members_of_an_ensemble_are_scaled_one_by_one(tmp_path, folder, net):
    net({}, name="first")
    net(CANONICAL, name="second")
    more = {"map_edges_m": tuple(np.geomspace(0.05, 5, 17)), "map_sigma_m": 0.05}
    plain = cached(tmp_path, folder, opened("python:fakes:first"), "plain.zarr")
    both = opened("ensemble:python:fakes:first,python:fakes:second", **more)
    store = cached(tmp_path, folder, both, sigma_m=None)
    assert ratio(store, plain) == pytest.approx((1 + 0.1) / 2, rel=1e-2)
    by_hand = opened("ensemble:python:fakes:first,python:fakes:second", focal_px=120.0, **more)
    store = cached(tmp_path, folder, by_hand, "hand.zarr", sigma_m=None)
    assert ratio(store, plain) == pytest.approx((1 + 0.2) / 2, rel=1e-2)
    assert store.spec.teacher["preprocessing"]["focal_px"] == 120.0


def test_a_member_of_a_file_may_have_its_own_focal_length(tmp_path, folder, net):
    net({}, name="first")
    net(CANONICAL, name="second")
    members = [{"teacher": "python:fakes:first"}, {"teacher": "python:fakes:second", "focal-px": 120}]
    (tmp_path / "e.json").write_text(json.dumps({"members": members}))
    more = {"map_edges_m": tuple(np.geomspace(0.05, 5, 17)), "map_sigma_m": 0.05, "trust_code": True}
    store = cached(tmp_path, folder, opened(f"ensemble:{tmp_path / 'e.json'}", **more), sigma_m=None)
    plain = cached(tmp_path, folder, opened("python:fakes:first"), "plain.zarr")
    assert ratio(store, plain) == pytest.approx((1 + 0.2) / 2, rel=1e-2)


def test_a_worker_of_a_cluster_plans_and_runs_the_same_teacher(tmp_path, folder, net, monkeypatch):
    monkeypatch.chdir(tmp_path)
    teacher, _ = net(CANONICAL, focal_px=90.0)
    config = WorkerConfig(
        f"folder:{folder.root}", "all", "python:fakes:camera_net", TeacherOptions(focal_px=90.0), "cpu", str(tmp_path)
    )
    worker = ClusterWorker(config)
    planned = worker.plan(OPTIONS)  # probes the teacher too
    worker.close()
    assert isinstance(planned, StorePlan), planned
    assert planned.spec.digest() == plan_cache(folder, folder.samples("all"), teacher, OPTIONS).spec.digest()
    assert planned.spec.teacher["preprocessing"]["focal_px"] == 90.0


def test_pixels_without_a_value_stay_so(net):
    teacher, model = net({**CANONICAL}, drop_nonpositive=True)
    model.__class__ = type("Holes", (Net,), {"__call__": lambda _, images: images[:, 0] - 0.5})
    images = torch.tensor([0.25, 1.0]).expand(1, 3, 4, 2)
    framing = Framing(View.parse("full"), [(4, 2)], [Intrinsics.of_focal(600.0)])
    depth = run_teacher(teacher, images, ["a"], framing).depth
    assert depth[0, 0].isnan().tolist() == [True, False]
    assert float(depth[0, 0, 1]) == 1.0


# Network files


def test_a_network_file_may_be_of_a_canonical_camera(tmp_path, folder):
    class Depth(torch.nn.Module):
        def forward(self, images):
            return 1 + 3 * (1 - images.mean(dim=1))

    torch.jit.script(Depth()).save(tmp_path / "net.pt")
    options = {"depth_space": "metric_m", "normalise": "unit", "trust_code": True}
    plain = cached(tmp_path, folder, opened(f"torchscript:{tmp_path}/net.pt", **options), "plain.zarr")
    teacher = opened(f"torchscript:{tmp_path}/net.pt", canonical_focal_px=300.0, **options)
    assert ratio(cached(tmp_path, folder, teacher), plain) == pytest.approx(0.1, rel=1e-3)


# Intrinsics as an input


def test_a_teacher_gets_the_intrinsics_of_the_view_that_its_card_asks_for(tmp_path, folder, net):
    teacher, model = net({"inputs": ["intrinsics"]})
    cached(tmp_path, folder, teacher)
    assert {name for name, _ in model.seen} == {"intrinsics_px"}
    rows = torch.cat([values for _, values in model.seen])
    assert rows.dtype == torch.float32
    assert rows.unique(dim=0).tolist() == [[30.0, 30.0, 7.25, 4.25]]
    assert teacher.card.preprocessing["inputs"] == ["intrinsics"]


# Refusals


def test_an_unknown_focal_length_is_refused_with_the_image_and_what_to_do(tmp_path, folder, net):
    (folder.root / "K.txt").unlink()
    teacher, _ = net(CANONICAL)
    with refuses("'net' needs the focal length", "'a/0001'", "give `focal_px`", "original image"):
        cached(tmp_path, open_source(f"folder:{folder.root}"), teacher)


@pytest.mark.parametrize(
    ("card", "options", "parts"),
    [
        ({}, {"focal_px": 500.0}, ["`focal_px=500`", "does not depend on the focal length", "omit it"]),
        (CANONICAL, {"focal_px": -1.0}, ["`focal_px=-1.0`", "above 0"]),
        (CANONICAL, {"focal_px": float("nan")}, ["`focal_px=nan`", "above 0"]),
        ({"preprocessing": {"canonical_focal_px": 0}}, {}, ["canonical_focal_px 0", "positive number of pixels"]),
        ({"preprocessing": {"canonical_focal_px": "300"}}, {}, ["canonical_focal_px '300'"]),
        ({"inputs": ["left"]}, {}, ["inputs ['left']", "expected ['intrinsics', 'right', 'baseline']"]),
        ({"inputs": "intrinsics"}, {}, ["inputs 'intrinsics'", "expected ['intrinsics', "]),
        (
            {"depth_space": "affine_disparity", **CANONICAL},
            {},
            ["canonical_focal_px 300 scales metres", "affine_disparity"],
        ),
    ],
)
def test_what_cannot_be_meant_is_refused(net, card, options, parts):
    with refuses(*parts):
        net(card, **options)


def test_an_ensemble_that_does_not_depend_on_the_camera_refuses_a_focal_length(net):
    net({}, name="first")
    net({"name": "other"}, name="second")
    more = {"map_edges_m": (0.1, 1.0, 2.0), "map_sigma_m": 0.1}
    with refuses("`focal_px=500`", "no member", "omit it"):
        opened("ensemble:python:fakes:first,python:fakes:second", focal_px=500.0, **more)


def test_a_canonical_camera_of_python_code_is_stated_in_its_card():
    with refuses("`canonical_focal_px=300.0` does not apply to python teachers"):
        opened("python:fakes:factory", canonical_focal_px=300.0)


def test_the_command_takes_the_focal_length_and_verifies_with_it(tmp_path, folder, net, monkeypatch):
    monkeypatch.chdir(tmp_path)
    net(CANONICAL)
    where = ["--source", f"folder:{folder.root}", "--split", "all"]
    given = ["python:fakes:camera_net", "--focal-px", "90"]
    words = ["cache-teacher", *where, "--teacher", *given, "--bins", "log:16:0.05:40", "--sigma-m", "0.05"]
    done = CliRunner().invoke(main, [*words, "--out", "s.zarr"])
    assert done.exit_code == 0, done.output
    assert open_store(tmp_path / "s.zarr").spec.teacher["preprocessing"]["focal_px"] == 90.0
    done = CliRunner().invoke(main, ["store", "verify", "s.zarr", *where, "--against", *given])
    assert done.exit_code == 0, done.output
    done = CliRunner().invoke(main, ["store", "verify", "s.zarr", *where, "--against", given[0]])
    assert done.exit_code == 1
    assert "made from another teacher" in done.output
    (folder.root / "K.txt").unlink()
    done = CliRunner().invoke(main, [*[word for word in words if word not in given[1:]], "--out", "other.zarr"])
    assert done.exit_code == 1
    assert "give --focal-px, in pixels of the original image" in done.output
