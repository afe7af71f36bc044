"""The renderer of rooms: shell, depth, furniture, light, and the simulated sensor.

Shape legend: H, W pixels, R sample rows (3 per pixel row).
"""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from scenes import indoors
from scenes.builder import Builder
from scenes.camera import Camera
from scenes.dataset import make_scenes
from scenes.indoors import render_interior
from scenes.infrared import PROJECTOR_M, RANGE_M, sense, sigma_m
from scenes.interior import KINDS, draw_interior, draw_lens
from scenes.occlusion import free_fraction
from scenes.room import Cell, Finish, Portal, Room
from scenes.shapes import Kind, Material, Solids
from scenes.trace import first_hits, span_of

TINY = (24, 32)
SMALL = (48, 64)
MM = 0.001
PAINT = (Finish(Material.WALL, (0.5, 0.5, 0.5)),) * 6
HALL = Cell((-2.0, 0.0, -3.0), (2.0, 2.5, 3.0), PAINT)
LEVEL = Camera((48, 64), 56.0, 31.5, 23.5, (0.0, 1.5, -2.0), 0.0, 0.0, 0.0)


def centers(camera):
    """Return world rays (3, H, W) of the pixel centres."""
    return camera.rays(0, camera.size_px[0])[:, 1::3]


@pytest.fixture(scope="module")
def tiny_views():
    """Thirty rooms without pictures: scene, depth and ids at pixel centres."""
    views = []
    for index in range(30):
        scene = draw_interior(3, index, TINY)
        depth, ids = first_hits(scene.camera, scene.camera.rays(0, TINY[0]), 0, scene.solids, scene.room)
        views.append((scene, depth[1::3].astype(np.float64), ids[1::3]))
    return views


# The shell


def test_a_level_camera_sees_floor_ceiling_and_walls_where_they_are():
    rays = centers(LEVEL)
    depth = Room((HALL,), ()).hit_m(LEVEL.position_m, rays)
    row, column = np.mgrid[:48, :64]
    down, across = (row - 23.5) / 56, (column - 31.5) / 56
    vertical = np.where(down > 0, 1.5 / down, -1.0 / down)
    expected = np.minimum(np.minimum(vertical, 2 / abs(across)), 5.0)
    np.testing.assert_allclose(depth, expected, rtol=1e-5)


def test_a_ray_through_a_doorway_ends_in_the_room_beyond_and_others_at_the_wall():
    beyond = Cell((-2.0, 0.0, 3.0), (2.0, 2.5, 4.5), PAINT)
    doorway = Portal(0, 5, (-0.4, 0.0), (0.4, 2.0), 1)
    rays = centers(LEVEL)
    depth = Room((HALL, beyond), (doorway,)).hit_m(LEVEL.position_m, rays)
    wall = Room((HALL,), ()).hit_m(LEVEL.position_m, rays)
    across, high = 5 * rays[0], 1.5 + 5 * rays[1]
    through = (wall > 4.999) & (abs(across) < 0.39) & (high < 1.99)
    outside = (wall > 4.999) & ((abs(across) > 0.41) | (high > 2.01))
    assert through.sum() > 50
    # From the doorway on: floor, side walls or the far wall, 6.5 m ahead.
    assert (depth[through] > 5).all()
    np.testing.assert_allclose(depth[24, 31], 6.5, rtol=1e-5)
    np.testing.assert_array_equal(depth[outside], wall[outside])


# Scenes


def value_in(solid, local):
    """Negative inside the solid, in units of its local frame."""
    x, y, z = local
    narrow = (1 + y) / 2
    if solid.kind is Kind.ELLIPSOID:
        return np.sqrt(x * x + y * y + z * z) - 1
    if solid.kind is Kind.CYLINDER:
        return max(abs(y) - 1, np.hypot(x, z) - 1 + solid.taper[0] * narrow)
    sides, front, back = solid.taper
    return max(abs(y) - 1, abs(x) - 1 + sides * narrow, z - 1 + front * narrow, -z - 1 + back * narrow)


@pytest.mark.parametrize("index", [1, 4, 9])
def test_every_depth_lies_on_the_surface_that_is_seen_there(tiny_views, index):
    scene, depth, ids = tiny_views[index]
    camera, room = scene.camera, scene.room
    row, column = np.mgrid[: TINY[0], : TINY[1]]
    across, down = (column - camera.cx_px) / camera.focal_px, (row - camera.cy_px) / camera.focal_px
    seen = np.stack([across * depth, down * depth, depth])
    point = np.einsum("ij,jhw->ihw", camera.world_from_camera, seen) + np.array(camera.position_m)[:, None, None]
    shell = ids < 0
    gaps = [
        np.minimum(abs(point - np.array(cell.low_m)[:, None, None]), abs(point - np.array(cell.high_m)[:, None, None]))
        for cell in room.cells
    ]
    assert shell.mean() > 0.1
    assert (np.stack(gaps).min(axis=(0, 1))[shell] < 1e-4).all()
    numbers = np.unique(ids[~shell])
    assert len(numbers) > 5
    for number in numbers:
        solid = scene.solids.rows[number]
        for at in np.argwhere(ids == number)[:10]:
            local = solid.turn.T @ (point[:, at[0], at[1]] - solid.center_m) / solid.half_m
            assert abs(value_in(solid, local)) * solid.half_m.min() < 1e-3


def test_depths_spread_as_in_a_room(tiny_views):
    seen = np.stack([depth for _, depth, _ in tiny_views])
    first, middle, last = np.percentile(seen, [1, 50, 99])
    assert 0.55 < first < 1.0
    assert 2.0 < middle < 3.0
    assert 4.0 < last < 8.0
    assert 0.4 < seen.min() < seen.max() < 10


def test_the_camera_is_within_the_room_and_in_no_object(tiny_views):
    for scene, _, _ in tiny_views:
        position, cell = np.array(scene.camera.position_m), scene.room.cells[0]
        assert (np.array(cell.low_m) + 0.3 < position).all()
        assert (position < np.array(cell.high_m) - 0.3).all()
        for solid in scene.solids.rows:
            local = abs(solid.turn.T @ (position - solid.center_m)) - solid.half_m
            assert np.linalg.norm(np.maximum(local, 0)) > 0.15


def test_all_kinds_of_rooms_occur_and_are_furnished(tiny_views):
    assert {scene.kind for scene, _, _ in tiny_views} == set(KINDS)
    assert np.median([len(scene.solids.rows) for scene, _, _ in tiny_views]) > 80
    assert np.mean([(ids >= 0).mean() for _, _, ids in tiny_views]) > 0.35


def test_visible_surfaces_are_not_coplanar(tiny_views):
    twice = total = 0
    for scene, depth, ids in tiny_views[:6]:
        rays = centers(scene.camera).astype(np.float64)
        for number, solid in enumerate(scene.solids.rows):
            to_local = solid.turn.T / solid.half_m[:, None]
            origin = [np.float64(v) for v in to_local @ (np.array(scene.camera.position_m) - solid.center_m)]
            direction = list(np.einsum("ij,jhw->ihw", to_local, rays))
            near, far = span_of(scene.solids, number, origin, direction)
            twice += ((near <= far) & (abs(near - depth) < 3e-5) & (ids != number)).sum()
        total += ids.size
    assert twice / total < 2e-3


def test_a_scene_depends_on_its_three_arguments_alone():
    first = render_interior(draw_interior(3, 8, TINY))
    draw_interior(4, 0, SMALL)
    again = render_interior(draw_interior(3, 8, TINY))
    other = render_interior(draw_interior(3, 9, TINY))
    for one, two in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, two)
    assert not np.array_equal(first[0], other[0])


def test_the_lens_looks_about_sixty_degrees_across_at_four_to_three():
    angles = [np.degrees(2 * np.arctan(320 / draw_lens(0, index, (480, 640)).focal_px)) for index in range(40)]
    assert 56 < min(angles) < max(angles) < 65


# Light


def test_a_picture_rendered_in_bands_is_the_picture_rendered_whole(monkeypatch):
    scene = draw_interior(3, 2, TINY)
    whole = render_interior(scene)
    monkeypatch.setattr(indoors, "BAND_SAMPLES", TINY[1] * 3 * 5)
    for one, two in zip(render_interior(scene), whole, strict=True):
        np.testing.assert_array_equal(one, two)


def test_a_line_of_sight_is_free_up_to_the_first_thing_on_it():
    to = Builder()
    to.box((0, 1, 0), (0.5, 0.5, 0.1), (0.5, 0.5, 0.5))
    to.box((0, 1, -0.5), (0.5, 0.5, 0.1), (0.5, 0.5, 0.5), casts=False)
    across = np.linspace(-2, 2, 41, dtype=np.float32)[None, :].repeat(9, axis=0)
    start = np.stack([across, np.full_like(across, 1), np.full_like(across, -2)])
    end = start + np.array([0, 0, 4], dtype=np.float32)[:, None, None]
    free = free_fraction(start, end, np.ones(across.shape, dtype=bool), Solids(to.solids))
    behind = abs(across) < 0.49
    np.testing.assert_allclose(free[behind], 1.9 / 4, rtol=1e-5)
    assert (free[abs(across) > 0.51] == 1).all()


def test_the_floor_under_a_table_is_darker_than_the_floor_next_to_it():
    scene = draw_interior(3, 0, SMALL)
    lamp = replace(scene.lamps[0], center_m=(0.0, 2.4, 0.0), power=(3.0, 3.0, 3.0), shadows=True, normal=(0, 0, 0))
    lamp = replace(lamp, arm_m=(0.1, 0.0, 0.0), other_arm_m=(0.0, 0.0, 0.1))
    to = Builder()
    to.box((0, 0.7, 0), (0.5, 0.02, 0.5), (0.5, 0.5, 0.5))
    scene = replace(
        scene,
        camera=replace(LEVEL, position_m=(0.0, 0.4, -2.0)),
        room=Room((HALL,), ()),
        solids=Solids(to.solids),
        lamps=[lamp],
        ambient=(0.1, 0.1, 0.1),
        cell_light=[1.0],
        sun_light=(0.0, 0.0, 0.0),
    )
    picture, depth, _ = render_interior(scene)
    rays = centers(scene.camera)
    x, y, z = (rays[i] * depth + scene.camera.position_m[i] for i in range(3))
    floor = abs(y) < 1e-3
    under, outside = floor & (abs(x) < 0.4) & (abs(z) < 0.4), floor & (abs(x) > 0.9) & (abs(z) < 0.4)
    assert picture[under].mean() < 0.8 * picture[outside].mean()


# Sensor


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("rooms") / "rooms"
    make_scenes(out, count=6, world="rooms", size_px=SMALL, seed=5, test_share=0.3, workers=1)
    return out


def read_m(folder, name):
    paths = sorted((folder / name).iterdir())
    arrays = [np.asarray(Image.open(path)) for path in paths]
    assert {array.dtype for array in arrays} == {np.dtype(np.uint16)}
    return np.stack(arrays) * MM


def test_dense_depth_has_no_holes_and_sparse_depth_agrees_with_it_within_the_noise(folder):
    dense_m, sparse_m = read_m(folder, "depth"), read_m(folder, "depth_sparse")
    assert (dense_m > 0).all()
    holes = (sparse_m == 0).mean(axis=(1, 2))
    assert 0.01 < holes.min() < holes.max() < 0.6
    measured = sparse_m > 0
    error, sigma = (sparse_m - dense_m)[measured], sigma_m(dense_m[measured])
    assert (abs(error) <= 3 * sigma + MM).all()
    assert 0.8 < (error / np.hypot(sigma, MM / 3)).std() < 1.2
    near, far = dense_m[measured] < 1.5, dense_m[measured] > 3
    assert error[far].std() > 2 * error[near].std()


def test_the_sensor_has_no_reading_out_of_range_or_without_an_echo():
    depth_m = np.tile(np.linspace(0.3, 9.9, 64, dtype=np.float32), (48, 1))
    echo = np.full(depth_m.shape, 0.9, dtype=np.float32)
    echo[:10] = 0
    seen_m = sense(depth_m, echo, LEVEL, (1, 2))
    assert not seen_m[:, depth_m[0] > RANGE_M[1]].any()
    assert not seen_m[:, depth_m[0] < RANGE_M[0]].any()
    assert not seen_m[:10].any()
    assert (seen_m[10:, (depth_m[0] > 1) & (depth_m[0] < 6)] > 0).mean() > 0.9


def test_the_shadow_of_a_near_board_is_as_wide_as_the_projector_offset():
    camera = replace(LEVEL, size_px=(48, 640), focal_px=560.0, cx_px=319.5)
    depth_m = np.full((48, 640), 4.0, dtype=np.float32)
    depth_m[:, 300:400] = 1.0
    seen_m = sense(depth_m, np.ones_like(depth_m), camera, (1, 3))
    width = 560 * PROJECTOR_M * (1 / 1.0 - 1 / 4.0)
    first = 300 - round(width)
    assert not seen_m[:, first + 2 : 299].any()
    # Left of the shadow and right of the board, all but the edges themselves is seen.
    assert (seen_m[:, : first - 2] > 0).mean() > 0.98
    assert (seen_m[:, 402:] > 0).mean() > 0.98


def test_window_panes_have_no_echo():
    for index in range(20):
        scene = draw_interior(9, index, TINY)
        _, _, echo = render_interior(scene)
        rays = centers(scene.camera).reshape(3, -1)
        _, ids = first_hits(scene.camera, scene.camera.rays(0, TINY[0]), 0, scene.solids, scene.room)
        origin = np.array(scene.camera.position_m, dtype=np.float32)[:, None]
        _, walls = scene.room.walk(origin, rays, np.zeros(rays.shape[1], dtype=np.int64))
        pane = (scene.room.finish_columns()[0][walls] == Material.PANE) & (ids[1::3].reshape(-1) < 0)
        if pane.sum() > 20:
            assert (echo.reshape(-1)[pane] == 0).all()
            assert echo.mean() > 0.05
            return
    pytest.fail("no window in twenty rooms")


# The folder


def test_pictures_vary_and_the_folder_describes_its_files(folder):
    for path in sorted((folder / "rgb").iterdir()):
        with Image.open(path) as image:
            assert (image.mode, image.size) == ("RGB", (64, 48))
            assert np.asarray(image).std() > 15
    settings = json.loads((folder / "dataset.json").read_text())
    assert (settings["world"], settings["metres_per_unit"], settings["count"]) == ("rooms", MM, 6)
    assert set(settings["truths"]) == {"depth", "depth_sparse"}
    rows = (folder / "intrinsics.csv").read_text().splitlines()
    camera = draw_lens(5, 2, SMALL)
    values = [float(value) for value in rows[3].split(",")[1:]]
    assert values == pytest.approx([camera.focal_px, camera.focal_px, camera.cx_px, camera.cy_px], abs=1e-3)


def test_a_shorter_set_by_two_workers_begins_with_the_same_frames(folder, tmp_path):
    make_scenes(tmp_path / "short", count=2, world="rooms", size_px=SMALL, seed=5, workers=2)
    for name in ("rgb", "depth", "depth_sparse"):
        for path in (tmp_path / "short" / name).iterdir():
            assert path.read_bytes() == (folder / name / path.name).read_bytes()
