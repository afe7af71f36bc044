"""Image cache: the same pixels as the files, refused where they are not, and written as safely as a store of depth."""

import json
import pickle
import warnings

import fakes
import numpy as np
import pytest
import torch
import zarr
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from tiny_stores import folder_bytes

from pipeline.cache.images import cache_images
from pipeline.cli.cache_images import cache_images as command
from pipeline.cli.main import main
from pipeline.common.fileio import pretty_json, sha256_bytes
from pipeline.errors import DamagedStoreError
from pipeline.sources.registry import open_source
from pipeline.sources.view import View
from pipeline.store import open_store
from pipeline.store.format.layout import MANIFEST
from pipeline.store.images.codec import image_of_residual, residual_of_image
from pipeline.store.images.reader import open_images
from pipeline.store.images.spec import ImageSpec
from pipeline.train.augment import Augmentation
from pipeline.train.dataset import TrainingData
from pipeline.train.options import TrainOptions
from pipeline.train.run import train_network

VARIED = Augmentation(crop_px=(16, 48), rotate_deg=3.0, flip=True, color=True)


@pytest.fixture
def kept(tmp_path, scenes):
    """The images of `scenes`, three a shard."""
    cache_images(scenes, "all", tmp_path / "images.zarr", samples_per_shard=3)
    return tmp_path / "images.zarr"


def make_data(scenes, store, kept=None, view="full"):
    images = None if kept is None else open_images(kept)
    samples = scenes.samples("all")
    view = View.parse(view)
    given = {"store": store, "maps_px": None, "augmentation": VARIED, "seed": 0, "images": images}
    return TrainingData(scenes, samples, view, **given)


shapes = st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(3))


@given(arrays(np.uint8, shapes, elements=st.integers(0, 255)))
def test_an_image_comes_back_from_its_residual_bit_for_bit(image):
    before = image.copy()
    assert np.array_equal(image_of_residual(residual_of_image(image)), image)
    assert np.array_equal(image, before)


def test_a_slope_down_the_image_has_one_residual():
    image = np.arange(200, 100, -1, np.uint8).reshape(100, 1, 1).repeat(6, 1).repeat(3, 2)
    assert set(residual_of_image(image)[1:].ravel().tolist()) == {255}  # -1


def test_training_on_kept_images_is_training_on_the_files(scenes, teacher_store, kept):
    store = open_store(teacher_store)
    files, fast = make_data(scenes, store), make_data(scenes, store, kept)
    fast.source = None  # not even asked
    for epoch in range(3):
        for number in range(8):
            one, other = files[epoch, number], fast[epoch, number]
            assert torch.equal(one.image, other.image)
            assert torch.equal(one.color_tables, other.color_tables)
            assert torch.equal(one.target_depth_m.nan_to_num(), other.target_depth_m.nan_to_num())


def test_images_of_a_view_are_the_view(tmp_path, scenes):
    out = tmp_path / "half.zarr"
    told = cache_images(scenes, "train", out, view="full,resize:16x32,mirror")
    images = open_images(out)
    samples = scenes.samples("train")
    assert (len(images), told.samples, told.samples_before) == (len(samples), len(samples), 0)
    for number, sample in zip(images.numbers([one.id for one in samples]), samples, strict=True):
        whole, sha256 = scenes.read_image(sample)
        assert np.array_equal(images.image(number), View.parse("full,resize:16x32,mirror").of_image(whole))
        assert images.image_sha256[number].tobytes().hex() == sha256


def test_readers_can_be_sent_to_workers(kept):
    images = open_images(kept)
    images.numbers(["000001"])
    again = pickle.loads(pickle.dumps(images))
    assert "_table" in vars(images)
    assert "_table" not in vars(again)
    assert np.array_equal(again.image(5), images.image(5))


def test_any_zarr_reader_opens_them(kept):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        group = zarr.open_group(kept, mode="r")
        assert np.array_equal(image_of_residual(group["rgb"][4]), open_images(kept).image(4))
        assert group["sample/id"][2].tobytes() == b"000002"


def test_an_image_that_the_teacher_did_not_see_is_refused(tmp_path, scenes, teacher_store):
    fakes.write_image(type(tmp_path)(scenes.samples("all")[2].image_path), np.zeros((32, 64, 3), np.uint8))
    cache_images(scenes, "all", tmp_path / "later.zarr")
    with pytest.raises(ValueError, match=r"later.zarr and .*teacher.zarr were made from different images of '000002'"):
        make_data(scenes, open_store(teacher_store), tmp_path / "later.zarr")


def test_another_view_is_refused(scenes, kept):
    with pytest.raises(ValueError, match=r"holds the view full, but training uses full,mirror: run .*`view=full,mirr"):
        make_data(scenes, None, kept, view="full,mirror")


def test_a_split_that_was_not_kept_is_refused(tmp_path, scenes):
    cache_images(scenes, "train", tmp_path / "train.zarr")
    with pytest.raises(ValueError, match=r"train.zarr has no image '00000\d' \(6 images, such as '000000'\)"):
        make_data(scenes, None, tmp_path / "train.zarr")


def test_a_store_of_depth_is_no_store_of_images(tmp_path, teacher_store):
    with pytest.raises(
        ValueError, match=r"teacher.zarr: not the attributes of an image cache .*pass a depth store as `store`"
    ):
        open_images(teacher_store)
    with pytest.raises(ValueError, match=r"nothing.zarr is not a complete image cache: .*cache-images"):
        open_images(tmp_path / "nothing.zarr")


def test_images_of_two_sizes_are_refused_and_named(tmp_path, scenes):
    fakes.write_image(type(tmp_path)(scenes.samples("all")[5].image_path), np.zeros((30, 64, 3), np.uint8))
    with pytest.raises(ValueError, match=r"000005.png: its view full is 30x64 px, that of the first image 32x64"):
        cache_images(scenes, "all", tmp_path / "images.zarr")
    assert not (tmp_path / "images.zarr").exists()


class Falling:
    """A source that cannot read its seventh image."""

    def __init__(self, source):
        self.source = source
        self.name, self.defaults, self.samples = source.name, source.defaults, source.samples

    def read_image(self, sample):
        if sample.id == "000006":
            raise OSError("the disk fell")
        return self.source.read_image(sample)


def test_an_interrupted_run_goes_on_and_ends_in_the_same_bytes(tmp_path, scenes, kept):
    out = tmp_path / "cut" / "images.zarr"
    with pytest.raises(OSError, match="the disk fell"):
        cache_images(Falling(scenes), "all", out, samples_per_shard=3)
    assert not out.exists()
    told = cache_images(scenes, "all", out, samples_per_shard=3)
    assert (told.samples, told.samples_before) == (8, 6)
    assert folder_bytes(out) == folder_bytes(kept)
    assert [path.name for path in out.parent.iterdir()] == ["images.zarr"]


def test_a_shard_that_changed_on_disk_is_made_again(tmp_path, scenes, kept):
    out = tmp_path / "cut" / "images.zarr"
    with pytest.raises(OSError, match="the disk fell"):
        cache_images(Falling(scenes), "all", out, samples_per_shard=3)
    (shard,) = out.parent.glob(".images.zarr.*.staging/store/rgb/c/1/0/0/0")
    shard.write_bytes(bytes(shard.stat().st_size))
    with pytest.raises(ValueError, match=r"shards \[1\] in .* changed since they were written"):
        cache_images(scenes, "all", out, samples_per_shard=3)
    assert cache_images(scenes, "all", out, samples_per_shard=3).samples_before == 5
    assert folder_bytes(out) == folder_bytes(kept)


def test_finished_images_are_never_written_over(scenes, kept):
    with pytest.raises(ValueError, match=r"images.zarr already exists; refusing to overwrite"):
        cache_images(scenes, "all", kept)


@pytest.mark.parametrize("place", [40, 200, -5])
def test_damage_is_noticed_and_named(kept, place):
    file = kept / "rgb" / "c" / "1" / "0" / "0" / "0"
    data = bytearray(file.read_bytes())
    data[place] ^= 16
    file.write_bytes(data)
    images = open_images(kept)
    with pytest.raises(DamagedStoreError, match=r"images.zarr/rgb/c/1/0/0/0, sample \d: .*run `pipeline cache-images`"):
        for number in range(3, 6):
            images.image(number)
    images.image(0)


def test_a_chunk_in_the_place_of_another_is_noticed(kept):
    shards = [kept / "rgb" / "c" / str(number) / "0" / "0" / "0" for number in (0, 1)]
    shards[1].write_bytes(shards[0].read_bytes())
    with pytest.raises(DamagedStoreError, match="sample 3"):
        open_images(kept).image(3)


def rewrite(root, file, change):
    """Change a JSON file and say so in the manifest, as somebody hostile would."""
    manifest = json.loads((root / MANIFEST).read_text())
    value = json.loads((root / file).read_text())
    change(value)
    data = pretty_json(value)
    (root / file).write_bytes(data)
    manifest["files"][file] = [len(data), sha256_bytes(data)]
    (root / MANIFEST).write_bytes(pretty_json(manifest))


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (
            "zarr.json",
            lambda v: v["attributes"]["image_store"].update(version=2),
            "image cache version 2: this program",
        ),
        ("zarr.json", lambda v: v["attributes"]["image_store"].update(version=True), "version True: this program"),
        ("zarr.json", lambda v: v["attributes"]["image_store"].update(more=1), "have unknown keys"),
        ("zarr.json", lambda v: v["attributes"]["image_store"]["view"].update(size_px=[10**6] * 2), "1 to 67108864"),
        ("zarr.json", lambda v: v["attributes"]["image_store"].update(samples_per_shard=0), "positive integer"),
        (
            "zarr.json",
            lambda v: v["attributes"]["image_store"]["source"].update(samples=9),
            "zarr.json is not the meta|invalid meta",
        ),
        ("zarr.json", lambda v: v["attributes"].pop("image_store"), "not the attributes of an image cache"),
        ("rgb/zarr.json", lambda v: v.update(fill_value=1), "rgb/zarr.json is not the metadata"),
    ],
)
def test_what_a_stranger_made_of_them_is_refused(kept, file, change, message):
    rewrite(kept, file, change)
    with pytest.raises(ValueError, match=message):
        open_images(kept)


def test_too_much_for_a_shard_or_a_view_is_refused():
    with pytest.raises(ValueError, match=r"`samples_per_shard` must be 1 to 65536, got 70000"):
        ImageSpec({"name": "a", "samples": 2, "ids_sha256": ""}, "full", (4, 4), 1, samples_per_shard=70000)
    with pytest.raises(ValueError, match=r"the view has 9000x9000 px"):
        ImageSpec({"name": "a", "samples": 2, "ids_sha256": ""}, "full", (9000, 9000), 1)


def test_the_command_keeps_images_and_says_what_they_take(tmp_path, scenes):
    out = tmp_path / "images.zarr"
    arguments = ["--source", f"scenes:{scenes.root}", "--split", "all", "--out", str(out)]
    done = CliRunner().invoke(command, arguments)
    assert done.exit_code == 0, done.output
    assert "8 images, " in done.output
    assert len(open_images(out)) == 8
    again = CliRunner().invoke(command, arguments)
    assert again.exit_code == 1
    assert "already exists; refusing to overwrite" in again.output


@pytest.mark.realdata
def test_real_frames_come_back_and_take_about_what_their_pngs_do(tmp_path, real):
    source = open_source(f"kitti:{real / 'kitti'}")
    rows = (real / "kitti" / "splits" / "sample_test.txt").read_text().splitlines()[:3]
    (tmp_path / "three.txt").write_text("\n".join(rows) + "\n")
    split = str(tmp_path / "three.txt")
    told = cache_images(source, split, tmp_path / "images.zarr")
    images = open_images(tmp_path / "images.zarr")
    samples = source.samples(split)
    for number, sample in enumerate(samples):
        assert np.array_equal(images.image(number), View.parse("kb").of_image(source.read_image(sample)[0]))
    sizes = [type(tmp_path)(sample.image_path).stat().st_size for sample in samples]
    assert told.bytes_in_all < 1.1 * sum(sizes)


def test_a_run_on_kept_images_has_the_weights_of_one_on_the_files(tmp_path, scenes, teacher_store, kept):
    options = TrainOptions(student="lean-small", epochs=1, batch_size=2, rotate_deg=2.0)
    for name, images in (("files", None), ("kept", open_images(kept))):
        train_network(scenes, "all", tmp_path / name, options, store=open_store(teacher_store), images=images)
    assert (
        folder_bytes(tmp_path / "files")["student.safetensors"]
        == (folder_bytes(tmp_path / "kept")["student.safetensors"])
    )
    words = ["train-student", "--source", f"scenes:{scenes.root}", "--split", "all", "--store", str(teacher_store)]
    words += ["--images", str(tmp_path / "none.zarr"), "--out", str(tmp_path / "run")]
    refused = CliRunner().invoke(main, words)
    assert refused.exit_code == 1
    assert "none.zarr" in refused.output
