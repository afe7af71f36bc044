"""The folder that the renderer writes: files, splits, resuming, refusals."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.common.locks import TargetLock
from pipeline.common.progress import Silent
from scenes import dataset as scenes_module
from scenes.__main__ import make_scenes as make_scenes_command
from scenes.camera import draw_camera
from scenes.dataset import is_test, make_scenes

UNIT_M = 1 / 256
SMALL = (32, 64)


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


def test_pictures_have_eight_bits_and_three_channels_and_vary(frames):
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


def test_intrinsics_and_settings_are_written_next_to_the_frames(frames):
    rows = (frames / "intrinsics.csv").read_text().splitlines()
    assert rows[0] == "id,fx_px,fy_px,cx_px,cy_px"
    camera = draw_camera(1, 4, (128, 416))
    assert rows[5].split(",")[0] == "000004"
    values = [float(value) for value in rows[5].split(",")[1:]]
    assert values == pytest.approx([camera.focal_px, camera.focal_px, camera.cx_px, camera.cy_px], abs=1e-3)
    written = json.loads((frames / "dataset.json").read_text())
    assert written["metres_per_unit"] == UNIT_M
    assert (written["seed"], written["count"], written["size_px"]) == (1, 10, [128, 416])


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


def test_another_seed_gives_another_picture(alone, tmp_path):
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
    """Record the frames that are rendered from now on."""
    rendered, write = [], scenes_module.write_frame
    monkeypatch.setattr(scenes_module, "write_frame", lambda *a: (rendered.append(a[2]), write(*a))[1])
    return rendered


def test_an_interrupted_run_resumes(alone, tmp_path, monkeypatch):
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


@pytest.mark.parametrize("change", [{"seed": 8}, {"world": "rooms"}, {"size_px": (64, 32)}])
def test_frames_of_other_settings_are_rendered_again(tmp_path, monkeypatch, change):
    out = tmp_path / "scenes"
    interrupt(out)
    rendered = rendered_frames(monkeypatch)
    make_scenes(out, **{"count": 3, "size_px": SMALL, "seed": 7, "workers": 1, **change})
    assert rendered == [0, 1, 2]
    assert len(list((out / "rgb").iterdir())) == 3


def test_frames_beyond_a_smaller_count_are_removed(tmp_path, monkeypatch):
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


def test_a_link_in_the_staging_folder_is_refused_and_its_target_kept(tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "wedding.png").write_bytes(b"dear")
    out = tmp_path / "scenes"
    interrupt(out)
    shutil.rmtree(tmp_path / ".scenes.staging" / "rgb")
    (tmp_path / ".scenes.staging" / "rgb").symlink_to(photos)
    with pytest.raises(ValueError, match="rgb is a symbolic link, expected a folder"):
        make_scenes(out, count=4, size_px=SMALL, seed=7, workers=1)
    assert [path.name for path in photos.iterdir()] == ["wedding.png"]


def test_a_staging_folder_with_other_files_is_refused(tmp_path):
    staging = tmp_path / ".scenes.staging"
    staging.mkdir()
    (staging / "thesis.txt").write_text("all of it")
    with pytest.raises(ValueError, match="has other files"):
        make_scenes(tmp_path / "scenes", count=2, size_px=SMALL, workers=1)
    assert (staging / "thesis.txt").read_text() == "all of it"


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"count": 1}, "`count` must be from 2 .* got 1"),
        ({"count": 10**7}, "`count` must be .* got 10000000"),
        ({"size_px": (16, 64)}, "`size` must be HEIGHTxWIDTH.* got 16x64"),
        ({"size_px": (64, 5000)}, "`size` must be HEIGHTxWIDTH.* got 64x5000"),
        ({"test_share": 0.0}, "`test_share` must be .* got 0.0"),
        ({"test_share": 1.0}, "`test_share` must be .* got 1.0"),
        ({"test_share": math.nan}, "`test_share` must be .* got nan"),
        ({"seed": -1}, "`seed` must be .* got -1"),
        ({"workers": 0}, "`workers` must be .* got 0"),
    ],
)
def test_an_invalid_argument_is_refused(tmp_path, bad, message):
    with pytest.raises(ValueError, match=message):
        make_scenes(tmp_path / "scenes", **{"count": 2, "size_px": SMALL, **bad})
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="already exists; refusing to overwrite: remove it, or choose another"):
        make_scenes(tmp_path, count=2)


def test_a_parent_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="file is not a folder"):
        make_scenes(Path(tmp_path / "file" / "deeper" / "scenes"), count=2)


def test_an_unknown_world_is_refused(tmp_path):
    with pytest.raises(ValueError, match="unknown `world='moon'`; choose from street, fog, rooms"):
        make_scenes(tmp_path / "scenes", count=2, world="moon")
    assert list(tmp_path.iterdir()) == []


def test_the_command_renders_rooms(tmp_path):
    out = tmp_path / "rooms"
    command = [str(out), "--world", "rooms", "--count", "2", "--size", "32x48", "--workers", "1"]
    result = CliRunner().invoke(make_scenes_command, command)
    assert result.exit_code == 0, result.output
    assert f"scenes:{out}" in result.output
    assert json.loads((out / "dataset.json").read_text())["world"] == "rooms"
    assert CliRunner().invoke(make_scenes_command, [*command[:1], "--world", "moon"]).exit_code == 2
