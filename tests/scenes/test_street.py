"""The renderer: intersections, exactness of depth, and the folder it writes.

Shape legend: H, W pixels, R sample rows (3 a pixel row).
"""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.common.locks import TargetLock
from pipeline.common.progress import Silent
from scenes import dataset as scenes_module
from scenes import shade
from scenes.builder import Builder
from scenes.camera import Camera, draw_camera
from scenes.dataset import is_test, make_scenes
from scenes.ground import Road
from scenes.shade import render
from scenes.shapes import Kind, Material, Solids, box_span, cylinder_span, ellipsoid_span, plane_y
from scenes.trace import GROUND, SKY, first_hits, sunlit
from scenes.world import draw_scene

UNIT_M = 1 / 256
SMALL = (32, 64)
FLAT = Road(0.0, 50.0, 20.0, 4.0, 0.0, 0.0, 3.2, 1, 999.0, 3.5)
LEVEL = Camera((64, 96), 60.0, 47.5, 31.5, (0.0, 1.5, 0.0), 0.0, 0.0, 0.0)

coordinate = st.floats(-4, 4, width=32)
share = st.floats(0, 1, width=32)


# What a solid is, told without rays: negative inside, in units of its local frame.


def box_value(p, taper):
    narrow = (1 + p[1]) / 2
    sides = abs(p[0]) - 1 + taper[0] * narrow, p[2] - 1 + taper[1] * narrow, -p[2] - 1 + taper[2] * narrow
    return max(abs(p[1]) - 1, *sides)


def ellipsoid_value(p, _taper):
    return math.sqrt(p[0] ** 2 + p[1] ** 2 + p[2] ** 2) - 1


def cylinder_value(p, taper):
    return max(abs(p[1]) - 1, math.hypot(p[0], p[2]) - 1 + taper[0] * (1 + p[1]) / 2)


def check_span(span, value, taper, origin, direction):
    """Compare an analytic span of a convex solid with a walk along the ray."""
    near, far = float(span[0]), float(span[1])

    def at(t):
        return value([o + t * d for o, d in zip(origin, direction, strict=True)], taper)

    walk = np.linspace(-9, 9, 721)
    inside = [t for t in walk if at(t) < -1e-6]
    if inside:
        assert near <= inside[0] + 1e-6
        assert far >= inside[-1] - 1e-6
    if near < far - 1e-6:
        assert at((near + far) / 2) < 1e-6
        assert abs(at(near)) < 1e-5
        assert abs(at(far)) < 1e-5


def ray_of(origin, aim):
    length = math.sqrt(sum((a - o) ** 2 for o, a in zip(origin, aim, strict=True)))
    return None if length < 0.1 else [(a - o) / length for o, a in zip(origin, aim, strict=True)]


@given(st.tuples(*[coordinate] * 3), st.tuples(*[coordinate] * 3), st.tuples(share, share, share))
@settings(max_examples=120, deadline=None)
def test_a_ray_meets_a_tapered_box_where_a_walk_along_it_does(origin, aim, taper):
    if (direction := ray_of(origin, aim)) is not None:
        parts = [np.float64(o) for o in origin], [np.float64(d) for d in direction]
        check_span(box_span(*parts, taper), box_value, taper, origin, direction)


@given(st.tuples(*[coordinate] * 3), st.tuples(*[coordinate] * 3))
@settings(max_examples=80, deadline=None)
def test_a_ray_meets_an_ellipsoid_where_a_walk_along_it_does(origin, aim):
    if (direction := ray_of(origin, aim)) is not None:
        parts = [np.float64(o) for o in origin], [np.float64(d) for d in direction]
        check_span(ellipsoid_span(*parts), ellipsoid_value, None, origin, direction)


@given(st.tuples(*[coordinate] * 3), st.tuples(*[coordinate] * 3), share)
@settings(max_examples=120, deadline=None)
def test_a_ray_meets_a_cylinder_or_cone_where_a_walk_along_it_does(origin, aim, taper):
    if (direction := ray_of(origin, aim)) is not None:
        parts = [np.float64(o) for o in origin], [np.float64(d) for d in direction]
        check_span(cylinder_span(*parts, taper), cylinder_value, (taper,), origin, direction)


def test_a_ray_meets_a_plane_only_when_it_comes_down_to_it():
    slopes = np.array([-0.5, -0.01, 0.0, 0.3])
    assert plane_y(1.5, slopes, 0.5).tolist() == pytest.approx([2.0, 100.0, math.inf, math.inf])


def test_depth_is_the_distance_along_the_optical_axis_not_along_the_ray():
    to = Builder()
    to.box((0, 5, 12), (40, 5, 2), (0.5, 0.5, 0.5))
    depth, ids = first_hits(LEVEL, LEVEL.rays(0, 64), 0, Solids(to.solids), FLAT)
    wall = ids == 0
    assert wall.mean() > 0.3
    np.testing.assert_allclose(depth[wall], 10.0, atol=1e-5)


def world_points(camera, depth_m):
    """World points (3, H, W) of planar depth (H, W), by the intrinsics and the pose alone."""
    height, width = depth_m.shape
    column, row = np.meshgrid(np.arange(width), np.arange(height))
    across, down = (column - camera.cx_px) / camera.focal_px, (row - camera.cy_px) / camera.focal_px
    seen = np.stack([across * depth_m, down * depth_m, depth_m])
    turned = np.einsum("ij,jhw->ihw", camera.world_from_camera, seen)
    return turned + np.array(camera.position_m)[:, None, None]


@pytest.mark.parametrize("index", [5, 8])
def test_every_depth_of_a_frame_lies_on_the_surface_that_is_seen_there(index):
    scene = draw_scene(0, index, (64, 208))
    camera, road, solids = scene.camera, scene.road, scene.solids
    depth, ids = first_hits(camera, camera.rays(0, 64), 0, solids, road)
    depth, ids = depth[1::3].astype(np.float64), ids[1::3]
    x, y, z = point = world_points(camera, np.where(ids == SKY, 0, depth))
    ground = ids == GROUND
    off = road.off_road_m(x, z)
    tolerance = 2e-5 * np.maximum(depth, 1)
    on_road = (off <= tolerance) & (abs(y) < tolerance)
    on_pavement = (off >= -tolerance) & (abs(y - road.kerb_m) < tolerance)
    on_kerb = (abs(off) < tolerance) & (y > -tolerance) & (y < road.kerb_m + tolerance)
    assert ground.mean() > 0.2
    assert (on_road | on_pavement | on_kerb)[ground].all()
    values = {Kind.BOX: box_value, Kind.ELLIPSOID: ellipsoid_value, Kind.CYLINDER: cylinder_value}
    numbers = np.unique(ids[ids >= 0])
    assert len(numbers) > 20
    for number in numbers:
        row = solids.rows[number]
        for at in np.argwhere(ids == number)[:10]:
            local = row.turn.T @ (point[:, at[0], at[1]] - row.centre_m) / row.half_m
            assert abs(values[row.kind](local, row.taper)) * row.half_m.min() < 2e-3


def test_each_ray_sees_the_nearest_of_all_solids_that_it_meets():
    scene = draw_scene(0, 12, (32, 104))
    camera = scene.camera
    solids = Solids([row for row in scene.solids.rows if row.material is not Material.LEAF])
    rays = camera.rays(0, 32)
    depth, _ = first_hits(camera, rays, 0, solids, scene.road)
    expected = scene.road.hit_m(camera.position_m, rays).astype(np.float64)
    for row in solids.rows:
        origin = list(row.turn.T @ (np.array(camera.position_m) - row.centre_m) / row.half_m)
        direction = list(np.einsum("ij,jrw->irw", row.turn.T / row.half_m[:, None], rays))
        if row.kind is Kind.BOX:
            near, far = box_span(origin, direction, row.taper)
        elif row.kind is Kind.ELLIPSOID:
            near, far = ellipsoid_span(origin, direction)
        else:
            near, far = cylinder_span(origin, direction, row.taper[0])
        expected = np.where((near <= far) & (near > 0) & (near < expected), near, expected)
    seen = np.isfinite(expected)
    off = abs(depth[seen] / expected[seen] - 1)
    # Single and double precision may differ on a ray that grazes an edge.
    assert (np.isfinite(depth) == seen).mean() > 0.9995
    assert (off < 1e-4).mean() > 0.9995


def test_the_sun_does_not_reach_what_stands_behind_something():
    to = Builder()
    to.box((0, 1, 10), (1, 1, 1), (0.5, 0.5, 0.5))
    points = np.zeros((3, 192, 96), dtype=np.float32)
    depth, ids = first_hits(LEVEL, LEVEL.rays(0, 64), 0, Solids(to.solids), FLAT)
    ground = ids == GROUND
    points[:, ground] = (LEVEL.rays(0, 64) * depth)[:, ground] + np.array([[0.0], [1.5], [0.0]])
    sun = np.array([math.sqrt(0.5), math.sqrt(0.5), 0.0])  # from the right, 45 degrees high
    lit = sunlit(LEVEL, 0, points, ground, Solids(to.solids), sun)
    # The box's upper left edge is at x = -1, y = 2, so its shadow ends 2 m further left.
    x, z = points[0], points[2]
    inside = ground & (x > -2.95) & (x < -1.05) & (z > 9.05) & (z < 10.95)
    outside = ground & ((x < -3.05) | (x > 1.05) | (z < 8.95) | (z > 11.05))
    assert inside.any()
    assert not lit[inside].any()
    assert lit[outside].all()


def test_a_picture_rendered_in_bands_is_the_picture_rendered_whole(monkeypatch):
    scene = draw_scene(3, 1, (48, 96))
    whole, depth = render(scene)
    monkeypatch.setattr(shade, "BAND_SAMPLES", 96 * 3 * 7)
    banded, banded_depth = render(scene)
    np.testing.assert_array_equal(banded, whole)
    np.testing.assert_array_equal(banded_depth, depth)


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    out = tmp_path_factory.mktemp("frames") / "new" / "scenes"
    make_scenes(out, count=10, seed=1, test_share=0.3)
    return out


def read_m(path):
    with Image.open(path) as image:
        pixels = np.asarray(image)
    assert pixels.dtype == np.uint16
    return pixels * UNIT_M


def depths(out, folder):
    return np.stack([read_m(path) for path in sorted((out / folder).iterdir())])


def test_pictures_have_eight_bits_and_three_channels_and_are_no_single_tone(frames):
    for path in sorted((frames / "rgb").iterdir()):
        with Image.open(path) as image:
            assert (image.mode, image.size) == ("RGB", (416, 128))
            assert np.asarray(image).std() > 20


def test_dense_depth_stays_below_its_limit_and_spreads_as_a_street_does(frames):
    dense_m = depths(frames, "depth")
    assert dense_m.shape == (10, 128, 416)
    assert dense_m.max() <= 200
    seen = dense_m[dense_m > 0]
    assert seen.min() > 1
    assert 5 < np.median(seen) < 30
    assert (dense_m == 0).mean(axis=(1, 2)).max() < 0.6
    assert np.percentile(seen, 95) > 40


def test_sparse_depth_is_dense_depth_within_the_scanner_noise(frames):
    dense_m, sparse_m = depths(frames, "depth"), depths(frames, "depth_sparse")
    hit = sparse_m > 0
    assert (dense_m[hit] > 0).all()
    error = (sparse_m - dense_m)[hit]
    assert abs(error).max() <= 0.06 + UNIT_M
    assert 0.01 < error.std() < 0.03
    assert sparse_m.max() <= 80.1


def test_the_scanner_hits_about_four_percent_of_the_pixels_and_nothing_high_up(frames):
    hit = depths(frames, "depth_sparse") > 0
    assert 0.03 < hit.mean() < 0.05
    assert not hit[:, :32].any()


def test_splits_cover_all_ids_without_overlap(frames):
    splits = {name: (frames / f"{name}.txt").read_text().split() for name in ("all", "train", "test")}
    assert splits["all"] == [f"{index:06d}" for index in range(10)]
    assert sorted(splits["train"] + splits["test"]) == splits["all"]
    assert len(splits["test"]) == 3


@given(st.floats(0.02, 0.98), st.integers(50, 400))
@settings(max_examples=40, deadline=None)
def test_test_frames_are_spread_evenly(test_share, count):
    chosen = [is_test(index, test_share) for index in range(count)]
    sums = np.cumsum(chosen)
    expected = test_share * np.arange(1, count + 1)
    assert abs(sums - expected).max() <= 1


def test_intrinsics_and_settings_are_written_beside_the_frames(frames):
    rows = (frames / "intrinsics.csv").read_text().splitlines()
    assert rows[0] == "id,fx_px,fy_px,cx_px,cy_px"
    camera = draw_camera(1, 4, (128, 416))
    assert rows[5].split(",")[0] == "000004"
    values = [float(value) for value in rows[5].split(",")[1:]]
    assert values == pytest.approx([camera.focal_px, camera.focal_px, camera.cx_px, camera.cy_px], abs=1e-3)
    described = json.loads((frames / "dataset.json").read_text())
    assert described["metres_per_unit"] == UNIT_M
    assert (described["seed"], described["count"], described["size_px"]) == (1, 10, [128, 416])


def contents(out):
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Five small frames by one worker."""
    out = tmp_path_factory.mktemp("alone") / "scenes"
    make_scenes(out, count=5, size_px=SMALL, seed=7, workers=1)
    return out


def test_two_workers_write_the_same_bytes_as_one(alone, tmp_path):
    make_scenes(tmp_path / "two", count=5, size_px=SMALL, seed=7, workers=2)
    assert contents(tmp_path / "two") == contents(alone)


def test_a_longer_set_begins_with_the_same_frames(alone, tmp_path):
    make_scenes(tmp_path / "short", count=2, size_px=SMALL, seed=7, workers=1)
    longer = contents(alone)
    shorter = {name: data for name, data in contents(tmp_path / "short").items() if name.endswith(".png")}
    assert len(shorter) == 6
    assert all(longer[name] == data for name, data in shorter.items())


def test_another_seed_is_another_picture(alone, tmp_path):
    make_scenes(tmp_path / "other", count=2, size_px=SMALL, seed=8, workers=1)
    first = "rgb/000000.png"
    assert (tmp_path / "other" / first).read_bytes() != (alone / first).read_bytes()


def test_even_two_frames_make_a_train_and_a_test_split(tmp_path):
    make_scenes(tmp_path / "two", count=2, size_px=SMALL, test_share=0.01, workers=1)
    assert (tmp_path / "two" / "train.txt").read_text() == "000000\n"
    assert (tmp_path / "two" / "test.txt").read_text() == "000001\n"


class Interrupting(Silent):
    """Presses Ctrl-C after two frames."""

    def task(self, title, total, unit, done=0):
        assert (title, total, unit, done) == ("render", 5, "frame", 0)
        task = super().task(title, total, unit, done)
        seen = []

        def update(done=1, **_facts):
            seen.append(done)
            if len(seen) == 2:
                raise KeyboardInterrupt

        task.update = update
        return task


def interrupt(out):
    with pytest.raises(KeyboardInterrupt):
        make_scenes(out, count=5, size_px=SMALL, seed=7, workers=1, progress=Interrupting())


def rendered_frames(monkeypatch):
    """Note the frames that are rendered from here on."""
    rendered, write = [], scenes_module.write_frame
    monkeypatch.setattr(scenes_module, "write_frame", lambda *a: (rendered.append(a[2]), write(*a))[1])
    return rendered


def test_an_interrupted_run_goes_on_where_it_stopped(alone, tmp_path, monkeypatch):
    out = tmp_path / "scenes"
    interrupt(out)
    assert not out.exists()
    (tmp_path / ".scenes.staging/rgb/.000003.png.tmp").write_bytes(b"half a pict")
    rendered = rendered_frames(monkeypatch)
    make_scenes(out, count=5, size_px=SMALL, seed=7, workers=1)
    assert rendered == [2, 3, 4]
    assert contents(out) == contents(alone)
    assert [path.name for path in tmp_path.iterdir()] == ["scenes"]


def test_a_frame_without_its_picture_is_rendered_again(alone, tmp_path, monkeypatch):
    out = tmp_path / "scenes"
    interrupt(out)
    (tmp_path / ".scenes.staging/rgb/000001.png").unlink()
    rendered = rendered_frames(monkeypatch)
    make_scenes(out, count=5, size_px=SMALL, seed=7, workers=1)
    assert rendered == [1, 2, 3, 4]
    assert contents(out) == contents(alone)


def test_frames_of_other_settings_are_not_kept(tmp_path, monkeypatch):
    out = tmp_path / "scenes"
    interrupt(out)
    rendered = rendered_frames(monkeypatch)
    make_scenes(out, count=3, size_px=SMALL, seed=8, workers=1)
    assert rendered == [0, 1, 2]
    assert len(list((out / "rgb").iterdir())) == 3


def test_frames_beyond_a_smaller_count_are_not_kept(tmp_path, monkeypatch):
    out = tmp_path / "scenes"
    interrupt(out)
    (tmp_path / ".scenes.staging/depth/000004.png").write_bytes(b"beyond")
    rendered = rendered_frames(monkeypatch)
    make_scenes(out, count=2, size_px=SMALL, seed=7, workers=1)
    assert rendered == []
    assert [path.name for path in sorted((out / "depth").iterdir())] == ["000000.png", "000001.png"]


def test_a_second_run_into_the_same_folder_is_refused(tmp_path):
    with TargetLock(tmp_path / "scenes"), pytest.raises(ValueError, match="scenes is being written by process"):
        make_scenes(tmp_path / "scenes", count=2, size_px=SMALL, workers=1)


def test_a_planted_link_in_the_staging_folder_costs_no_file_of_the_folder_that_it_leads_to(tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "wedding.png").write_bytes(b"dear")
    out = tmp_path / "scenes"
    interrupt(out)
    shutil.rmtree(tmp_path / ".scenes.staging" / "rgb")
    (tmp_path / ".scenes.staging" / "rgb").symlink_to(photos)
    with pytest.raises(ValueError, match="rgb is a symbolic link, expected a folder of this program"):
        make_scenes(out, count=4, size_px=SMALL, seed=7, workers=1)
    assert [path.name for path in photos.iterdir()] == ["wedding.png"]


def test_a_staging_folder_that_holds_something_else_is_left_alone(tmp_path):
    staging = tmp_path / ".scenes.staging"
    staging.mkdir()
    (staging / "thesis.txt").write_text("all of it")
    with pytest.raises(ValueError, match="holds other files"):
        make_scenes(tmp_path / "scenes", count=2, size_px=SMALL, workers=1)
    assert (staging / "thesis.txt").read_text() == "all of it"


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"count": 1}, "count is 1, expected 2"),
        ({"count": 10**7}, "count is 10000000, expected"),
        ({"size_px": (16, 64)}, "size is 16x64, expected HEIGHTxWIDTH"),
        ({"size_px": (64, 5000)}, "size is 64x5000, expected HEIGHTxWIDTH"),
        ({"test_share": 0.0}, "test share is 0.0, expected"),
        ({"test_share": 1.0}, "test share is 1.0, expected"),
        ({"test_share": math.nan}, "test share is nan, expected"),
        ({"seed": -1}, "seed is -1, expected"),
        ({"workers": 0}, "workers is 0, expected"),
    ],
)
def test_a_bad_argument_is_named_with_what_was_expected(tmp_path, bad, message):
    with pytest.raises(ValueError, match=message):
        make_scenes(tmp_path / "scenes", **{"count": 2, "size_px": SMALL, **bad})
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_exists_is_not_touched(tmp_path):
    with pytest.raises(ValueError, match=r"output exists: .*: remove it or choose another"):
        make_scenes(tmp_path, count=2)


def test_a_parent_that_is_a_file_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="file is no folder"):
        make_scenes(Path(tmp_path / "file" / "deeper" / "scenes"), count=2)
