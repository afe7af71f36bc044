"""Rectified stereo pairs: geometry, light, noise, and the folder that holds them.

Shape legend: H, W pixels.
"""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from pipeline.sources import registry
from scenes import dataset as scenes_module
from scenes.__main__ import make_scenes as make_scenes_command
from scenes.builder import Builder
from scenes.camera import Camera
from scenes.dataset import make_scenes
from scenes.fog import draw_foggy_scene
from scenes.indoors import interior_light
from scenes.interior import draw_interior
from scenes.pairs import right_of
from scenes.room import Cell, Finish, Room
from scenes.shade import expose
from scenes.shapes import Kind, Material, Solids
from scenes.trace import first_hits
from scenes.world import draw_scene
from scenes.worlds import WORLDS

SMALL = (32, 64)
BASELINES_M = {"street": 0.54, "fog": 0.54, "rooms": 0.12}
SIZES_PX = {"street": (128, 416), "fog": (128, 416), "rooms": (96, 128)}
NEAR_EDGE_PX = 3
DRAW = {"street": draw_scene, "fog": draw_foggy_scene, "rooms": draw_interior}
SHELL = Cell((-20.0, -20.0, -20.0), (20.0, 20.0, 20.0), (Finish(Material.WALL, (0.5, 0.5, 0.5)),) * 6)


@pytest.fixture(scope="module", params=list(BASELINES_M))
def pairs(request, tmp_path_factory):
    """Return (left, right, disparity in pixels, 0 for sky) of each frame of a world, read from its folder."""
    out, world = tmp_path_factory.mktemp("pairs") / "scenes", request.param
    make_scenes(out, count=5, world=world, size_px=SIZES_PX[world], baseline_m=BASELINES_M[world], workers=1)
    facts = json.loads((out / "dataset.json").read_text())
    frames = []
    for row in (out / "intrinsics.csv").read_text().split()[1:]:
        name, focal_px = row.split(",")[:2]
        left, right, depth = (pixels(out / folder / f"{name}.png") for folder in ("rgb", "rgb_right", "depth"))
        depth_m = depth * facts["metres_per_unit"]
        with np.errstate(divide="ignore"):
            frames.append((left, right, np.where(depth > 0, float(focal_px) * facts["baseline_m"] / depth_m, 0)))
    return frames


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image).astype(np.float64)


def at_columns(image, columns):
    """Sample (H, W, 3) bilinearly at columns (H, W) of the same rows."""
    low = np.clip(np.floor(columns).astype(int), 0, image.shape[1] - 2)
    weight = np.clip(columns - low, 0, 1)[..., None]
    rows = np.arange(len(image))[:, None]
    return image[rows, low] * (1 - weight) + image[rows, low + 1] * weight


def seen_in_both(disparity):
    """Return which pixels (H, W) of the left image the right one shows, from left disparity alone."""
    columns = np.arange(disparity.shape[1]) - disparity
    # A surface is hidden if another one to its right in the left image is further left in the right image.
    leftmost = np.minimum.accumulate(columns[:, ::-1], axis=1)[:, ::-1]
    return (columns <= leftmost + 0.5) & (columns > NEAR_EDGE_PX) & (disparity > 0)


def mismatch(frames, change=lambda disparity: disparity, *, swapped=False, rows=0):
    """Return the median difference of the left image and the right one warped to it, at textured visible pixels."""
    differences = []
    for left, right, disparity in frames:
        target, source = (right, left) if swapped else (left, right)
        warped = at_columns(np.roll(source, rows, axis=0), np.arange(disparity.shape[1]) - change(disparity))
        slopes = np.gradient(left.mean(axis=2), axis=(0, 1))
        textured = np.hypot(*slopes) > 6
        inner = np.zeros(disparity.shape, dtype=bool)
        inner[NEAR_EDGE_PX:-NEAR_EDGE_PX, NEAR_EDGE_PX:-NEAR_EDGE_PX] = True
        differences.append(abs(warped - target).mean(axis=2)[inner & textured & seen_in_both(disparity)])
    return np.median(np.concatenate(differences))


def vertex(before, at, after):
    """Return where a parabola through values at -1, 0 and 1 has its minimum."""
    return (before - after) / (2 * (before - 2 * at + after))


@pytest.mark.parametrize(
    "wrong",
    [
        {"change": lambda disparity: 0 * disparity},
        {"change": lambda disparity: -disparity},
        {"change": lambda disparity: 2 * disparity},
        {"swapped": True},
    ],
    ids=["no disparity", "the other sign", "twice the baseline", "left and right swapped"],
)
def test_the_right_image_warped_by_disparity_is_the_left_image_and_not_so_if_it_is_wrong(pairs, wrong):
    assert mismatch(pairs) < 0.4 * mismatch(pairs, **wrong)


def test_disparity_is_exact_to_a_tenth_of_a_pixel(pairs):
    before, at, after = (mismatch(pairs, lambda disparity, by=by: disparity + by) for by in (-0.5, 0, 0.5))
    assert max(before, after) > at
    assert abs(vertex(before, at, after)) * 0.5 < 0.1


def test_points_are_in_the_same_row_of_both_images(pairs):
    before, at, after = (mismatch(pairs, rows=by) for by in (-1, 0, 1))
    assert at < 0.7 * min(before, after)
    assert abs(vertex(before, at, after)) < 0.1


def test_both_images_have_one_exposure(pairs):
    for left, right, disparity in pairs:
        warped = at_columns(right, np.arange(disparity.shape[1]) - disparity)
        # Exposure of each image by itself would make 2 to 5 levels of 255 in the worst of these frames.
        assert abs(np.median((warped - left).mean(axis=2)[seen_in_both(disparity)])) < 0.5


def test_noise_of_both_images_is_of_the_same_strength_and_independent():
    scene = draw_scene(0, 3, SMALL)
    right = right_of(scene, 0.54)
    gray = np.full((3, *SMALL), 0.4, dtype=np.float32)
    plain = replace(scene.sensor, shot=0.0, read=0.0)
    errors = [expose(gray, sensor) - expose(gray, plain).astype(float) for sensor in (scene.sensor, right.sensor)]
    assert errors[1].std() == pytest.approx(errors[0].std(), rel=0.05)
    assert abs(np.corrcoef(errors[0].ravel(), errors[1].ravel())[0, 1]) < 0.05


def test_the_right_camera_differs_by_the_baseline_along_its_x_axis_alone():
    scene = draw_scene(0, 3, SMALL)
    left, right = scene.camera, right_of(scene, 0.54).camera
    np.testing.assert_allclose(left.to_camera(np.array(right.position_m)), [0.54, 0, 0], atol=1e-12)
    assert replace(right, position_m=left.position_m, leaves_from_m=None) == left


def depth_of_crown_m(camera, solids):
    """Return depth (H, W) of the solid 0, infinite elsewhere."""
    depth, ids = first_hits(camera, camera.rays(0, camera.size_px[0]), 0, solids, Room((SHELL,), ()))
    return np.where(ids[1::3] == 0, depth[1::3], np.inf)


def test_both_images_show_the_same_gaps_between_leaves():
    to = Builder()
    to.ball((0, 0, 5), (1.5, 1.5, 1.5), (0.1, 0.3, 0.1), Material.LEAF, extra=(0.3,))
    left = Camera((300, 500), 400.0, 350.0, 150.0, (0.0, 0.0, 0.0), 0.0, 0.0, 0.0)
    right = left.moved_right(1.0)
    solids = Solids(to.solids)
    assert solids.kind[0] is Kind.ELLIPSOID
    left_m, right_m = (depth_of_crown_m(camera, solids) for camera in (left, right))
    rows, columns = np.nonzero(np.isfinite(left_m))
    depth_m = left_m[rows, columns]
    across = np.rint(columns - 400.0 * 1.0 / depth_m).astype(int)
    # Points that the crown itself hides from the right camera are left out: their normal looks away from it.
    points = np.stack([(columns - 350.0) / 400 * depth_m, (rows - 150.0) / 400 * depth_m, depth_m])
    normal = points - np.array([[0], [0], [5]])
    front = (normal * (points - np.array([[1.0], [0], [0]]))).sum(axis=0) < -0.5
    shown = np.isfinite(right_m)
    # The nearest pixel or one next to it: the points are between pixels of the right image.
    near = [np.roll(shown, by, axis=(0, 1))[rows, across] for by in np.ndindex(2, 2)]
    assert front.mean() > 0.9
    # Gaps by the direction of view of each camera would leave 94 %.
    assert np.any(near, axis=0)[front].mean() > 0.99


def test_shadows_of_rooms_are_not_in_a_pattern_of_the_image():
    scene = replace(draw_interior(0, 1, (48, 64)), every_sample=True)
    shifted = replace(scene, camera=replace(scene.camera, cx_px=scene.camera.cx_px - 1))
    light, moved = interior_light(scene)[0], interior_light(shifted)[0]
    # Taking turns, one in a hundred values differs by 30 %.
    assert np.percentile(abs(light[:, :, 2:-1] / moved[:, :, 1:-2] - 1), 99) < 0.01


@pytest.mark.parametrize("world", list(DRAW))
def test_the_right_camera_is_in_no_object_and_no_wall(world):
    for index in range(12):
        scene = DRAW[world](4, index, SMALL)
        for fraction in (0.5, 1.0):
            position = np.array(right_of(scene, fraction * WORLDS[world].most_baseline_m).camera.position_m)
            for solid in scene.solids.rows:
                beyond = abs(solid.turn.T @ (position - solid.center_m)) - solid.half_m
                assert np.linalg.norm(np.maximum(beyond, 0)) > 0.05
            if world == "rooms":
                cell = scene.room.cells[0]
                assert (np.array(cell.low_m) + 0.1 < position).all()
                assert (position < np.array(cell.high_m) - 0.1).all()


# The folder


def contents(out):
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def render(out, **options):
    make_scenes(out, **{"count": 4, "size_px": SMALL, "seed": 7, "workers": 1, **options})
    return contents(out)


@pytest.fixture(scope="module")
def paired(tmp_path_factory):
    out = tmp_path_factory.mktemp("paired") / "scenes"
    render(out, baseline_m=0.54)
    return out


def test_without_a_baseline_there_is_no_trace_of_pairs(tmp_path, paired):
    alone, both = render(tmp_path / "alone"), contents(paired)
    assert "baseline_m" not in json.loads(alone["dataset.json"])
    assert set(both) - set(alone) == {f"rgb_right/{index:06d}.png" for index in range(4)}
    assert [name for name in alone if alone[name] != both[name]] == ["dataset.json"]


def test_a_pair_that_lacks_its_left_picture_is_rendered_again_with_the_same_bytes(tmp_path, paired, monkeypatch):
    staging = tmp_path / ".scenes.staging"
    shutil.copytree(paired, staging)
    for name in ("rgb/000002.png", "rgb_right/000002.png", "rgb/000003.png", "all.txt"):
        (staging / name).unlink()
    rendered, write = [], scenes_module.write_frame
    monkeypatch.setattr(scenes_module, "write_frame", lambda *a: (rendered.append(a[2]), write(*a))[1])
    assert render(tmp_path / "scenes", baseline_m=0.54) == contents(paired)
    assert rendered == [2, 3]


@pytest.mark.parametrize("baseline_m", [None, 0.3])
def test_frames_of_another_baseline_are_rendered_again(tmp_path, paired, baseline_m):
    expected = render(tmp_path / "expected", baseline_m=baseline_m)
    staging = tmp_path / ".scenes.staging"
    shutil.copytree(paired, staging)
    assert render(tmp_path / "scenes", baseline_m=baseline_m) == expected


@pytest.mark.parametrize(
    ("world", "baseline_m"),
    [("street", 0.0), ("street", -0.54), ("street", math.nan), ("street", 2.1), ("rooms", 0.54)],
)
def test_a_baseline_that_the_world_has_no_room_for_is_refused(tmp_path, world, baseline_m):
    with pytest.raises(ValueError, match=rf"`baseline_m` must be above 0 and at most .* got {baseline_m}"):
        make_scenes(tmp_path / "scenes", count=2, size_px=SMALL, world=world, baseline_m=baseline_m)
    assert list(tmp_path.iterdir()) == []


def test_the_command_renders_pairs_that_the_source_reads(tmp_path):
    out = tmp_path / "scenes"
    command = [str(out), "--count", "2", "--size", "32x64", "--workers", "1"]
    result = CliRunner().invoke(make_scenes_command, [*command, "--baseline-m", "0.54"])
    assert result.exit_code == 0, result.output
    source = registry.open_source(f"scenes:{out}")
    sample = source.samples("all")[1]
    assert source.baseline_m(sample) == 0.54
    np.testing.assert_array_equal(source.read_right(sample), pixels(out / "rgb_right" / "000001.png"))
