"""Training samples: one geometry for image, teacher and ground truth; reproducible augmentation; batch sampler."""

import fakes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.cache.plan import CacheOptions
from pipeline.cache.run import cache_teacher
from pipeline.depth.resize import upsampled
from pipeline.losses.base import StoredMaps
from pipeline.losses.targets import StoredTarget
from pipeline.networks.saved_run import normalize
from pipeline.sources.registry import open_source
from pipeline.sources.view import View
from pipeline.store import open_store
from pipeline.store.format.sparse import decode_sparse, weight_table
from pipeline.train.augment import Augmentation, ColorJitter, Geometry, apply_tables, identity_table
from pipeline.train.dataset import Item, TrainingData, collate
from pipeline.train.sampler import EpochBatchSampler

VIEW_PX = (24, 40)
geometries = st.builds(
    Geometry,
    angle_rad=st.sampled_from([0.0, 0.03, -0.1]),
    mirrored=st.booleans(),
    top=st.integers(0, 8),
    left=st.integers(0, 10),
    size_px=st.just((16, 30)),
)


@settings(deadline=None)
@given(geometries)
def test_image_and_maps_agree_at_every_pixel(geometry):
    # Each pixel's value is its position; the image is a ramp, so bilinear sampling keeps it to half a value.
    rows, columns = np.mgrid[0 : VIEW_PX[0], 0 : VIEW_PX[1]]
    image = np.stack([rows * 4, columns * 4, rows * 0 + 200], -1).astype(np.uint8)
    turned = geometry.warp_image(image).numpy().astype(np.float32)
    mapped = geometry.warp_map(np.stack([rows, columns]).astype(np.float32), VIEW_PX, geometry.size_px, np.nan)
    inside = ~np.isnan(mapped[0]) & (turned[2] == 200)
    assert inside.mean() > 0.8
    assert np.abs(turned[:2][:, inside] / 4 - mapped[:, inside]).max() <= 0.5 + 0.5 / 4 + 1e-3
    if geometry.angle_rad == 0:
        assert np.array_equal(turned[:2] / 4, mapped)


@given(geometries)
def test_teacher_and_truth_take_the_same_pixels(geometry):
    number = np.arange(VIEW_PX[0] * VIEW_PX[1], dtype=np.float32).reshape(VIEW_PX)
    truth = geometry.warp_map(number, VIEW_PX, geometry.size_px, np.nan)
    stacked = geometry.warp_map(np.stack([number, number * 2]), VIEW_PX, geometry.size_px, np.nan)
    assert np.array_equal(stacked[0], truth, equal_nan=True)
    assert np.array_equal(stacked[1], truth * 2, equal_nan=True)


@given(geometries)
def test_a_map_of_half_the_resolution_aligns_with_a_full_one(geometry):
    half = np.arange(12 * 20, dtype=np.float32).reshape(12, 20)
    full = half.repeat(2, 0).repeat(2, 1)
    coarse = geometry.warp_map(half, VIEW_PX, geometry.size_px, np.nan)
    fine = geometry.warp_map(full, VIEW_PX, geometry.size_px, np.nan)
    assert np.array_equal(coarse, fine, equal_nan=True)


@given(geometries, st.sampled_from([(24, 40), (12, 20), (31, 17)]), st.sampled_from([(16, 30), (8, 15)]))
def test_a_map_is_sampled_at_the_pixel_that_contains_each_position(geometry, map_px, out_px):
    values = np.random.default_rng(0).integers(1, 200, (2, *map_px)).astype(np.uint8)
    result = geometry.warp_map(values, VIEW_PX, out_px, 0)
    rows, columns = geometry.source_positions(VIEW_PX, out_px)
    for y in range(out_px[0]):
        for x in range(out_px[1]):
            row = int(np.floor((rows[y, x] + 0.5) * (map_px[0] / VIEW_PX[0])))
            column = int(np.floor((columns[y, x] + 0.5) * (map_px[1] / VIEW_PX[1])))
            inside = 0 <= row < map_px[0] and 0 <= column < map_px[1]
            assert (result[:, y, x] == (values[:, row, column] if inside else 0)).all()


@given(geometries)
def test_a_rotated_image_is_sampled_bilinearly_and_rounded(geometry):
    image = np.random.default_rng(1).integers(0, 256, (*VIEW_PX, 3), np.uint8)
    turned = geometry.warp_image(image).numpy()
    padded = np.pad(image.astype(np.float64), ((2, 2), (2, 2), (0, 0)))
    rows, columns = (at + 2 for at in geometry.source_positions(VIEW_PX, geometry.size_px))
    rows, columns = np.clip(rows, 0, VIEW_PX[0] + 2), np.clip(columns, 0, VIEW_PX[1] + 2)  # black outside
    row, column = rows.astype(int), columns.astype(int)
    down, right = (rows - row)[..., None], (columns - column)[..., None]
    above = padded[row, column] * (1 - right) + padded[row, column + 1] * right
    below = padded[row + 1, column] * (1 - right) + padded[row + 1, column + 1] * right
    assert np.abs(turned.transpose(1, 2, 0) - (above * (1 - down) + below * down)).max() < 0.5 + 0.02


@given(geometries)
def test_a_warped_image_is_contiguous_for_any_memory_layout_of_its_source(geometry):
    image = np.random.default_rng(2).integers(0, 256, (*VIEW_PX, 3), np.uint8)
    by_color = np.ascontiguousarray(image.transpose(0, 2, 1)).transpose(0, 2, 1)
    result = geometry.warp_image(image)
    assert (result.dtype, result.is_contiguous()) == (torch.uint8, True)
    assert torch.equal(result, geometry.warp_image(by_color))


@given(st.floats(0.9, 1.1), st.tuples(*[st.floats(0.81, 1.21)] * 3))
def test_color_tables_match_gamma_and_scale_of_floats(gamma, scale):
    pixels = torch.arange(256, dtype=torch.uint8).repeat(2, 3, 3, 1)
    pixels[1] = 255 - pixels[1]
    tables = torch.stack([identity_table(), ColorJitter(gamma, scale).table()])
    result, unit = apply_tables(pixels, tables), pixels / 255
    assert torch.equal(result[0], unit[0])
    expected = (unit[1] ** gamma * torch.tensor(scale).view(3, 1, 1)).clamp(0, 1)
    assert torch.allclose(result[1], expected, rtol=2e-7, atol=0)  # the end of a SIMD vector rounds differently


def test_a_normalized_table_gives_the_normalized_image():
    images, tables = torch.arange(256, dtype=torch.uint8).repeat(1, 3, 2, 1), identity_table()[None]
    assert torch.equal(apply_tables(images, normalize(tables)), normalize(images / 255))


def test_the_corner_of_a_rotated_view_is_invalid():
    geometry = Geometry(0.2, mirrored=False, top=0, left=0, size_px=VIEW_PX)
    depth_m = geometry.warp_map(np.full(VIEW_PX, 5, np.float32), VIEW_PX, VIEW_PX, np.nan)
    assert np.isnan(depth_m[0, 0])
    assert depth_m[12, 20] == 5


def test_a_crop_larger_than_the_view_is_refused_with_both_sizes():
    with pytest.raises(ValueError, match="`crop_px=30x40` is larger than the view of 24x40 px"):
        Geometry.draw(Augmentation(crop_px=(30, 40)), VIEW_PX, np.random.default_rng(0))


def make_data(scenes, store, seed=3, maps_px=None, **augmentation):
    samples = scenes.samples("all")
    settings = Augmentation(**augmentation)
    return TrainingData(scenes, samples, View(), store=store, maps_px=maps_px, augmentation=settings, seed=seed)


def test_augmentation_depends_on_epoch_and_seed_alone(scenes, teacher_store):
    settings = {"crop_px": (16, 48), "rotate_deg": 3.0, "flip": True, "color": True}
    data = make_data(scenes, open_store(teacher_store), **settings)
    again = make_data(scenes, open_store(teacher_store), **settings)
    assert torch.equal(data[1, 4].image, again[1, 4].image)
    assert torch.equal(data[1, 4].color_tables, again[1, 4].color_tables)
    assert torch.equal(data[1, 4].target_depth_m.nan_to_num(), again[1, 4].target_depth_m.nan_to_num())
    assert not torch.equal(data[1, 4].image, data[2, 4].image)
    assert not torch.equal(
        data[1, 4].image, make_data(scenes, open_store(teacher_store), seed=4, **settings)[1, 4].image
    )


def test_color_jitter_changes_the_color_tables_alone(scenes, teacher_store):
    plain = make_data(scenes, open_store(teacher_store))
    colored = make_data(scenes, open_store(teacher_store), color=True)
    changed = [not torch.equal(plain[0, n].color_tables, colored[0, n].color_tables) for n in range(8)]
    assert any(changed)
    assert not all(changed)
    for number in range(8):
        assert torch.equal(plain[0, number].target_depth_m, colored[0, number].target_depth_m)
        assert torch.equal(plain[0, number].image, colored[0, number].image)


def dense_maps(batch, bins, table):
    """Dense maps of a batch, checked against blocks that do not end at the end of a row."""
    stored = StoredMaps(batch.gap, batch.weight, batch.tail, bins, table)
    target, pixels = StoredTarget(stored, torch.float32), stored.shape[2:].numel()
    parts = [
        torch.cat([target.block(image, at, min(at + 37, pixels)).maps for at in range(0, pixels, 37)], 1)
        for image in range(len(batch.gap))
    ]
    whole = torch.stack([target.block(image, 0, pixels).maps for image in range(len(batch.gap))])
    # Sums in blocks have another order
    assert torch.allclose(whole, torch.stack(parts), rtol=1e-6, atol=0)
    return whole.view(stored.shape)


def test_a_stored_map_is_warped_like_its_depth(scenes, teacher_store):
    store = open_store(teacher_store)
    data = make_data(scenes, store, maps_px=(16, 32), flip=True)
    table = torch.from_numpy(weight_table(store.spec.weight_bits))
    for number in range(8):
        item = data[0, number]
        dense = dense_maps(collate([item]), store.spec.bin_count, table)
        assert dense.sum(1) == pytest.approx(1, abs=1e-4)
        centers = torch.from_numpy((store.bin_edges_m[1:] + store.bin_edges_m[:-1]) / 2).float()
        mean_m = (dense[0] * centers[:, None, None]).sum(0)
        depth_m = torch.nn.functional.avg_pool2d(item.target_depth_m, 2)[0]
        assert (mean_m - depth_m).abs().max() < 0.4  # half a bin, and what mirroring shifts


def test_maps_decoded_on_the_device_match_the_store(teacher_store):
    store = open_store(teacher_store)
    stored = [store.sparse_dpm(number) for number in range(3)]
    parts = [
        Item(torch.zeros(3, 1, 1), torch.zeros(3, 1, 256), torch.zeros(1, 1, 1), *map(torch.from_numpy, one))
        for one in stored
    ]
    dense = dense_maps(collate(parts), store.spec.bin_count, torch.from_numpy(weight_table(store.spec.weight_bits)))
    for number, one in enumerate(stored):
        expected = decode_sparse(one, store.spec.bin_count, store.spec.weight_bits)
        assert dense[number].numpy() == pytest.approx(expected, abs=1e-6)


def test_an_image_other_than_the_teachers_is_refused(scenes, teacher_store):
    sample = scenes.samples("all")[2]
    fakes.write_image(type(teacher_store)(sample.image_path), np.zeros((32, 64, 3), np.uint8))
    data = make_data(scenes, open_store(teacher_store))
    data[0, 1]
    with pytest.raises(ValueError, match=r"000002.png is not the image that the teacher saw: its sha256 is"):
        data[0, 2]


def test_a_split_that_the_store_lacks_is_refused_before_reading(tmp_path, scenes):
    cache_teacher(scenes, "train", fakes.FakeTeacher(), tmp_path / "train.zarr", CacheOptions(bins="nyu"))
    with pytest.raises(ValueError, match=r"train.zarr has no sample '000006'"):
        make_data(scenes, open_store(tmp_path / "train.zarr"))


def test_a_list_row_without_ground_truth_is_invalid_everywhere(tmp_path):
    source = open_source(f"kitti:{fakes.make_kitti(tmp_path / 'kitti', 6)}")
    samples = source.samples("test")
    data = TrainingData(source, samples, View(), store=None, maps_px=None, augmentation=Augmentation(), seed=0)
    assert data[0, 0].target_depth_m.isfinite().any()
    assert data[0, 1].target_depth_m.isnan().all()


def test_upsampled_depth_is_invalid_next_to_an_invalid_pixel():
    depth_m = np.array([[1, 1, np.nan, 1]], np.float32)
    assert np.isnan(upsampled(depth_m, (1, 8))).tolist() == [[False, False, False, True, True, True, True, False]]


def test_the_sampler_depends_on_seed_and_epoch_and_starts_at_any_batch():
    sampler = EpochBatchSampler(10, 3, seed=1)
    sampler.set_epoch(2, 0)
    whole = list(sampler)
    sampler.set_epoch(2, 1)
    assert list(sampler) == whole[1:]
    assert len({number for batch in whole for _, number in batch}) == 9
    sampler.set_epoch(3, 0)
    assert [number for _, number in next(iter(sampler))] != [number for _, number in whole[0]]


def test_an_epoch_is_permuted_once(monkeypatch):
    drawn = []
    generator = np.random.default_rng
    monkeypatch.setattr(np.random, "default_rng", lambda seed: drawn.append(seed) or generator(seed))
    sampler = EpochBatchSampler(1000, 4, seed=1)
    for epoch in range(2):
        sampler.set_epoch(epoch, 0)
        assert len(list(sampler)) == 250
    assert drawn == [[1, 0], [1, 1]]
    assert sampler.batch_indices(0, 3).tolist() == generator([1, 0]).permutation(1000)[12:16].tolist()
