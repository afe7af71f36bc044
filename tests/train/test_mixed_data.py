"""Training on several data sets at once, with different views, teachers and bins."""

import csv
import json

import fakes
import numpy as np
import pytest
import torch
from click import BadParameter
from click.testing import CliRunner
from report_runs import make_run
from tiny_stores import folder_bytes

import pipeline as tiekd
from pipeline.cache.plan import CacheOptions
from pipeline.cache.run import cache_teacher
from pipeline.cli.data_set import DATA_SET, DataFields
from pipeline.cli.main import main
from pipeline.common.progress import Silent
from pipeline.networks.saved_run import licences_of_run, load_run, trained_focal_px, view_of
from pipeline.report.load import read_results
from pipeline.report.table import learned_from
from pipeline.sources.registry import open_source
from pipeline.store import Store, open_store
from pipeline.train.build import build_data, build_sampler
from pipeline.train.loader import Batches
from pipeline.train.mixed_data import DataSet, Part
from pipeline.train.mixed_recipe import mixed_recipe, probabilities
from pipeline.train.options import TrainOptions
from pipeline.train.run import Interrupted, Validation, train_network
from pipeline.train.sampler import EpochBatchSampler, MixedBatchSampler

CPU = torch.device("cpu")
OPTIONS = {"student": "lean-small", "epochs": 2, "batch_size": 2, "learning_rate": 3e-3, "seed": 1}
CROP_PX = (24, 32)
RESULTS = ("student.safetensors", "steps.csv", "epochs.csv", "config.json")


class Notes(Silent):
    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


class Halved(fakes.FakeTeacher):
    """Predicts half of the depth."""

    def __call__(self, images):
        return super().__call__(images) / 2


class Sets:
    """`wide`: 6 scenes of 24x48 px, sparse maps of 16 bins. `small`: 4 images of 24x32 px, half the depth, 8 bins."""

    def __init__(self, folder):
        self.folder = folder
        self.scenes = open_source(f"scenes:{fakes.make_scenes_folder(folder / 'scenes', 8, (32, 64))}")
        ids = ("a/0001", "a/0002", "b/0001", "b/0002", "b/0003")
        self.images = open_source(f"folder:{fakes.make_folder(folder / 'images', ids)}")
        self.wide = self.cache(self.scenes, "all", fakes.factory_with_dpm(), "wide", view="center:24x48")
        self.small = self.cache(self.images, "train", Halved(name="half"), "small", bins="log:8:0.4:6", sigma_m=0.3)

    def cache(self, source, split, teacher, name, **options):
        cache_teacher(source, split, teacher, self.folder / f"{name}.zarr", CacheOptions(batch_size=2, **options))
        return open_store(self.folder / f"{name}.zarr")

    @property
    def data(self):
        return [DataSet(self.scenes, "train", self.wide), DataSet(self.images, "train", self.small)]

    @property
    def parts(self):
        return [Part(each.source, each.source.samples(each.split), each.store, each.weight) for each in self.data]


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    return Sets(tmp_path_factory.mktemp("sets"))


def options(**changes):
    return TrainOptions(**{**OPTIONS, "crop_px": CROP_PX, **changes})


def train(sets, out, data=None, progress=None, workers=None, **changes):
    train_network(
        None, None, out, options(**changes), data=data or sets.data, workers=workers, progress=progress or Silent()
    )
    return json.loads((out / "config.json").read_text())


# order


def order_of(sampler, epoch, first_batch=0):
    sampler.set_epoch(epoch, first_batch)
    return [key for batch in sampler for key in batch]


def test_the_order_depends_on_seed_and_epoch_alone():
    def order(epoch, seed=3):
        keys = order_of(MixedBatchSampler([40, 9], [0.6, 0.4], 7, seed), epoch)
        assert all(of == epoch for of, _ in keys)
        return [draw for _, draw in keys]

    assert order(1) == order(1)
    assert order(1) != order(2)
    assert order(1) != order(1, seed=4)


def test_an_epoch_resumes_at_any_batch_in_the_same_order():
    sampler = MixedBatchSampler([40, 9], [0.6, 0.4], 7, 3)
    whole = order_of(sampler, 5)
    assert order_of(MixedBatchSampler([40, 9], [0.6, 0.4], 7, 3), 5, first_batch=3) == whole[21:]


def test_ranks_divide_the_same_batches():
    sets = ([40, 9], [0.6, 0.4], 12, 3)
    alone = MixedBatchSampler(*sets, accumulate=3)
    ranks = [MixedBatchSampler(*sets, accumulate=3, rank=rank, world_size=2) for rank in range(2)]
    for sampler in (alone, *ranks):
        sampler.set_epoch(2)
    for whole, first, second in zip(alone, *ranks, strict=True):
        parts = [first[part : part + 2] + second[part : part + 2] for part in (0, 2, 4)]
        assert [key for part in parts for key in part] == whole


@pytest.mark.parametrize("chances", [[0.7, 0.3], [0.1, 0.9]])
def test_data_sets_are_drawn_by_their_probabilities(chances):
    sampler = MixedBatchSampler([50_000, 200], chances, 1, 0)
    indices = np.concatenate([sampler.batch_indices(0, batch) for batch in range(len(sampler))])
    assert len(indices) == 50_200
    assert np.mean(indices < 50_000) == pytest.approx(chances[0], abs=0.01)
    assert indices.max() == 50_199


def test_a_data_set_gives_each_sample_before_one_again():
    sampler = MixedBatchSampler([200, 5], [0.5, 0.5], 1, 0)
    small = [int(sampler.batch_indices(0, batch)[0]) for batch in range(len(sampler))]
    small = [index for index in small if index >= 200]
    rounds = [small[start : start + 5] for start in range(0, len(small) - 4, 5)]
    assert len(rounds) > 10
    assert all(set(each) == set(range(200, 205)) for each in rounds)
    assert len({tuple(each) for each in rounds}) > 5
    large = [int(sampler.batch_indices(0, batch)[0]) for batch in range(len(sampler))]
    large = [index for index in large if index < 200]
    assert len(set(large)) == len(large)


def test_no_key_comes_twice_in_an_epoch():
    keys = order_of(MixedBatchSampler([20, 3], [0.2, 0.8], 1, 0), 0)
    assert len(set(keys)) == len(keys) == 23


def test_a_sampler_of_one_data_set_keeps_its_order():
    sampler = EpochBatchSampler(10, 3, seed=1)
    order = np.random.default_rng([1, 2]).permutation(10)[:9]
    assert [index for _, index in order_of(sampler, 2)] == order.tolist()


def test_the_default_probability_is_proportional_to_n_to_the_power_of_a_fifth():
    parts = [Part(None, range(n), None) for n in (1, 32, 1024)]
    assert probabilities(parts) == pytest.approx([1 / 7, 2 / 7, 4 / 7])


def test_a_weight_replaces_the_default_of_its_data_set():
    parts = [Part(None, range(32), None), Part(None, range(1024), None, 6.0)]
    assert probabilities(parts) == pytest.approx([0.25, 0.75])


# content


def built(sets, **changes):
    recipe = mixed_recipe(options(**changes), sets.parts, Silent())
    return recipe, build_data(recipe, sets.parts, None, None, None, CPU)


def window_of(whole, part):
    """Row and column at which `part` is a window of `whole`."""
    windows = np.lib.stride_tricks.sliding_window_view(whole, part.shape).reshape(-1, *part.shape)
    (place,) = np.flatnonzero((windows == part).all(axis=tuple(range(1, windows.ndim))))
    return int(place)


def test_samples_come_from_the_right_store_with_one_geometry_for_image_and_depth(sets):
    _, data = built(sets, flip=False, colour=False, rotate_deg=0)
    assert len(data) == 10
    for index in range(10):
        item, part = data[0, index], sets.parts[index >= 6]
        sample = part.samples[index - (6 if index >= 6 else 0)]
        image = part.source.read_image(sample)[0]
        image = image[4:28, 8:56] if index < 6 else image  # center:24x48
        depth_m = part.store.depth_m(part.store.indexes_of([sample.id])[0])
        if index < 6:  # stored at half of the view's size: compare where it is constant
            column = window_of(image[..., 0], item.image[0].numpy())
            expected = np.asarray(data.parts[0].whole_target_m(index))[:, column : column + 32]
        else:
            assert np.array_equal(item.image.permute(1, 2, 0).numpy(), image)
            expected = depth_m
        assert np.array_equal(item.target_depth_m[0].numpy(), expected, equal_nan=True)
        truth_m = part.source.read_truth_m(sample)
        assert np.nanmedian(expected / np.nanmedian(truth_m)) == pytest.approx(1 if index < 6 else 0.5, rel=0.2)


def test_a_sample_drawn_twice_in_an_epoch_is_augmented_differently(sets):
    _, data = built(sets)
    images = [data[0, 3 + 10 * times].image for times in range(8)]
    assert len({image.numpy().tobytes() for image in images}) > 2
    assert torch.equal(images[3], data[0, 33].image)


def test_samples_of_two_data_sets_are_augmented_differently(sets):
    same = [DataSet(sets.images, "train", sets.small)] * 2
    parts = [Part(each.source, each.source.samples("train"), each.store) for each in same]
    recipe = mixed_recipe(options(), parts, Silent())
    data = build_data(recipe, parts, None, None, None, CPU)
    assert any(not torch.equal(data[0, index].image, data[0, 4 + index].image) for index in range(4))


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_read_the_same_batches(sets, workers):
    recipe, data = built(sets)

    def batches(count):
        return list(Batches(data, build_sampler(recipe), count, CPU))

    for mine, theirs in zip(batches(0), batches(workers), strict=True):
        assert torch.equal(mine.image, theirs.image)
        assert torch.equal(mine.target_depth_m.nan_to_num(), theirs.target_depth_m.nan_to_num())


def test_stored_maps_of_equal_bins_are_used_together(sets, tmp_path):
    other = Sets.cache(sets, sets.images, "train", fakes.factory_with_dpm(), "equal")
    data = [DataSet(sets.scenes, "train", sets.wide), DataSet(sets.images, "train", other)]
    notes = Notes()
    config = train(sets, tmp_path / "run", data, notes, maps="stored")
    assert config["stored_maps"] is True
    assert not any("bins" in note or "from depth" in note for note in notes.notes)


# runs


def renamed(text, names):
    for name, short in names.items():
        text = text.replace(name, short)
    return text


def test_two_data_sets_of_other_views_bins_and_teachers_train(sets, tmp_path):
    notes = Notes()
    config = train(sets, tmp_path / "run", progress=notes)
    names = {sets.wide.name: "WIDE", sets.small.name: "SMALL"}
    assert [renamed(note, names).split(":")[0] for note in notes.notes] == [
        "maps are made from depth, because SMALL holds no maps in metres",
        "the student has the bins of the first data set, WIDE",
        "an epoch draws 10 samples",
    ]
    assert config["view"] == "center:24x48"
    assert config["bin_edges_m"] == list(sets.wide.spec.bin_edges)
    assert config["stored_maps"] is False
    wide, small = config["data"]
    assert wide.keys() == {"source", "samples", "ids_sha256", "store", "view", "rotate_deg", "probability"}
    assert wide["store"] == config["store"]
    assert (small["source"], small["samples"], small["view"]) == ("folder", 4, "full")
    assert small["store"]["digest"] == sets.small.spec.digest()
    assert wide["probability"] == pytest.approx(6**0.2 / (6**0.2 + 4**0.2))
    with (tmp_path / "run" / "steps.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 2 * 5


def test_a_run_on_one_data_set_has_no_list_of_data_sets(sets, tmp_path):
    train_network(sets.images, "train", tmp_path / "run", options(), store=sets.small)
    assert "data" not in json.loads((tmp_path / "run" / "config.json").read_text())


@pytest.mark.parametrize(("step", "workers"), [(3, 0), (7, 2)])
def test_an_interrupted_run_ends_with_the_same_bytes(sets, tmp_path, step, workers):
    settings = {"rotate_deg": 2.0, "ema": 0.9, "add": ("gradient=0.5",)}
    train(sets, tmp_path / "whole", **settings)
    with pytest.raises(Interrupted):
        train(sets, tmp_path / "run", progress=fakes.StopAt(step), workers=workers, **settings)
    train(sets, tmp_path / "run", workers=workers, **settings)
    whole, resumed = folder_bytes(tmp_path / "whole"), folder_bytes(tmp_path / "run")
    for name in RESULTS:
        assert resumed[name] == whole[name], name


def test_another_weight_is_another_run(sets, tmp_path):
    with pytest.raises(Interrupted):
        train(sets, tmp_path / "run", progress=fakes.StopAt(2))
    notes = Notes()
    train(sets, tmp_path / "run", [sets.data[0], sets.data[1]._replace(weight=5.0)], notes)
    assert any("unfinished work with other settings" in note for note in notes.notes)


def test_the_student_is_evaluated_in_the_view_of_each_data_set(sets, tmp_path):
    train(sets, tmp_path / "run", epochs=1)
    student = tiekd.load_student(tmp_path / "run", device="cpu")
    # The first data set's view of 24x48 px does not fit into these images
    assert tiekd.evaluate(student, sets.images, "test", device="cpu").frames == 1
    assert tiekd.evaluate(student, sets.scenes, "test", device="cpu").frames == 2


def test_data_sets_of_one_source_with_two_views_need_to_be_told_which():
    config = {"view": "full", "data": [{"source": "folder", "view": view} for view in ("full", "center:8x8")]}
    with pytest.raises(tiekd.PipelineError, match="with the views center:8x8, full: say which one with `view`"):
        view_of(config, "folder")
    assert view_of(config, "scenes") == "full"


def test_a_student_may_be_evaluated_in_another_view(sets, tmp_path):
    train(sets, tmp_path / "run", epochs=1)
    student = tiekd.load_student(tmp_path / "run", device="cpu")
    own = tiekd.evaluate(student, sets.scenes, "test", device="cpu")
    other = tiekd.evaluate(student, sets.scenes, "test", view="center:16x32", device="cpu")
    assert other.frames == own.frames
    assert other.metrics["abs_rel"] != own.metrics["abs_rel"]


def test_a_report_with_the_store_of_each_data_set_shows_the_student(sets, tmp_path):
    train(sets, tmp_path / "run", epochs=1)
    for store in (sets.wide, sets.small):
        (result,), _ = read_results([tmp_path / "run"], [], store)
        assert learned_from(result, store) == "lean-small on the teacher and 1 more data set, loss tiekd, 1 epoch"


def test_rotation_is_the_default_of_each_source_unless_given(sets, monkeypatch):
    monkeypatch.setattr(sets.images, "defaults", sets.images.defaults.__class__(rotate_deg=2.5))
    recipe, data = built(sets)
    assert [each.rotate_deg for each in recipe.data] == [0.0, 2.5]
    assert [part.augmentation.rotate_deg for part in data.parts] == [0.0, 2.5]
    given = mixed_recipe(options(rotate_deg=1.0), sets.parts, Silent())
    assert [each.rotate_deg for each in given.data] == [1.0, 1.0]


def test_rejected_alignments_are_left_out_of_their_data_set(sets, tmp_path, monkeypatch):
    rejected = np.array([True, False, True, True])
    monkeypatch.setattr(Store, "accepted", property(lambda store: rejected if store is sets.small else None))
    config = train(sets, tmp_path / "run", epochs=1)
    assert [each["samples"] for each in config["data"]] == [6, 3]


@pytest.mark.parametrize(("weights", "median"), [((3.0, 1.0), 44.0), ((1.0, 3.0), 20.0)])
def test_the_focal_length_counts_each_data_set_by_its_probability(sets, tmp_path, monkeypatch, weights, median):
    for source, focal_px in ((sets.scenes, 44), (sets.images, 20)):
        rows = "".join(f"{sample.id},{focal_px},{focal_px},15.5,11.5\n" for sample in source.samples("train"))
        monkeypatch.setattr(source, "read_intrinsics", opened(source, rows, tmp_path).read_intrinsics)
    data = [each._replace(weight=weight) for each, weight in zip(sets.data, weights, strict=True)]
    config = train(sets, tmp_path / "run", data, epochs=1)
    assert config["trained_focal_px"] == {"median": median, "min": 20.0, "max": 44.0}
    assert trained_focal_px(load_run(tmp_path / "run").config) == median


def opened(source, rows, tmp_path):
    """The source with a table of intrinsics."""
    root = tmp_path / source.name
    root.mkdir()
    for file in source.root.iterdir():
        (root / file.name).symlink_to(file)
    (root / "intrinsics.csv").write_text("id,fx_px,fy_px,cx_px,cy_px\n" + rows)
    return open_source(f"{source.name}:{root}")


def test_a_failed_step_names_the_samples_and_their_stores(sets, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.train.optimizer.Optimizer.can_step", lambda *_: False)
    with pytest.raises(ValueError, match=r"at step 0 \(samples .*/000\d of small.zarr") as raised:
        train(sets, tmp_path / "run", batch_size=10)
    assert " of wide.zarr" in str(raised.value)


def test_a_data_set_of_constant_depth_is_refused_by_its_name(sets, tmp_path):
    root = fakes.make_folder(tmp_path / "flat")
    for file in (root / "rgb").rglob("*.png"):
        fakes.write_image(file, np.full((24, 32, 3), 99, np.uint8))
    source = open_source(f"folder:{root}")
    cache_teacher(
        source, "test", fakes.FakeTeacher(), tmp_path / "flat.zarr", CacheOptions(bins="log:8:1:12", sigma_m=0.3)
    )
    flat = DataSet(source, "test", open_store(tmp_path / "flat.zarr"))
    with pytest.raises(ValueError, match=r"nothing to learn from .*flat.zarr"):
        train(sets, tmp_path / "run", [*sets.data, flat])


def test_licences_of_all_stores_go_into_the_run(sets, tmp_path):
    licensed = Sets.cache(
        sets, sets.images, "train", fakes.FakeTeacher(), "cc", bins="log:8:1:12", sigma_m=0.3, data_licence="CC0"
    )
    data = [sets.data[0], DataSet(sets.images, "train", licensed)]
    train(sets, tmp_path / "run", data, epochs=1)
    assert licences_of_run(load_run(tmp_path / "run").config)["the images"] == "not stated and CC0"


@pytest.mark.parametrize(
    "data",
    ["wide", {"source": "a"}, [1], [{"source": "a", "view": "full"}], [{"source": [], "view": "full", "store": {}}]],
    ids=["text", "object", "numbers", "no store", "no name"],
)
def test_a_damaged_list_of_data_sets_in_a_run_is_one_clear_error(tmp_path, data):
    config = json.loads((make_run(tmp_path / "run") / "config.json").read_text())
    (tmp_path / "run" / "config.json").write_text(json.dumps({**config, "data": data}))
    with pytest.raises(tiekd.PipelineError, match=r"config.json: .*expected a configuration written by train-student"):
        load_run(tmp_path / "run")


# Python and the command line


def test_python_takes_a_list_of_data_sets(sets, tmp_path):
    data = [(sets.scenes, "train", sets.wide), (sets.images, "train", sets.small, 2.0)]
    fields = {**OPTIONS, "epochs": 1, "crop_px": CROP_PX, "device": "cpu"}
    student = tiekd.train_student(data=data, out=tmp_path / "run", **fields)
    assert student.config["data"][1]["probability"] == pytest.approx(2 / (2 + 6**0.2))


@pytest.mark.parametrize("entry", [("a", "b"), ("a", "b", "c", 1.0, 2.0), "abc"])
def test_python_refuses_an_entry_of_another_length(tmp_path, entry):
    with pytest.raises(ValueError, match=r"`data`: .*expected a list of \(source, split, store\)"):
        tiekd.train_student(data=[entry], out=tmp_path / "run")


def test_python_refuses_a_run_without_a_directory(sets):
    with pytest.raises(ValueError, match="give `out`"):
        tiekd.train_student(data=sets.data)


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("kitti:/k,train,k.zarr", ("kitti:/k", "train", "k.zarr", None)),
        ("kitti:/k,train,k.zarr,2.5", ("kitti:/k", "train", "k.zarr", 2.5)),
        ("wds:/t/a-{0,1}-{2,3}.tar,all,s3://b/k.zarr", ("wds:/t/a-{0,1}-{2,3}.tar", "all", "s3://b/k.zarr", None)),
    ],
)
def test_the_command_line_separates_fields_by_commas_outside_of_braces(text, fields):
    parsed = DATA_SET.convert(text, None, None)
    assert isinstance(parsed, DataFields)
    assert (parsed.source_name, parsed.split, str(parsed.store), parsed.weight) == fields


@pytest.mark.parametrize("text", ["kitti:/k,train", "kitti:/k,train,", "a,b,c,1,2", ",b,c", "a,b,c,many"])
def test_the_command_line_refuses_other_fields_with_an_example(text):
    with pytest.raises(BadParameter, match="expected .* kitti:ROOT,train,kitti.zarr"):
        DATA_SET.convert(text, None, None)


def command(sets, out, *flags):
    data = [f"{each.source.name}:{each.source.root},train,{sets.folder / each.store.name}" for each in sets.data]
    fixed = ["--student", "lean-small", "--epochs", "1", "--batch-size", "2", "--out", str(out)]
    return ["train-student", "--data", data[0], "--data", f"{data[1]},3", *fixed, *flags]


def test_the_command_line_trains_and_evaluates_each_data_set(sets, tmp_path):
    done = CliRunner().invoke(main, command(sets, tmp_path / "run", "--crop", "24x32"))
    assert done.exit_code == 0, done.output
    assert "an epoch draws 10 samples: 32.3% from " in done.output
    for source in (sets.scenes, sets.images):
        flags = [
            "--source",
            f"{source.name}:{source.root}",
            "--split",
            "test",
            "--out",
            tmp_path / f"{source.name}.json",
        ]
        done = CliRunner().invoke(main, ["evaluate-student", str(tmp_path / "run"), *map(str, flags)])
        assert done.exit_code == 0, done.output


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--source", "folder:x"], "--source cannot be combined with --data"),
        (["--split", "train"], "--split cannot be combined with --data"),
        (["--store", "x.zarr"], "--store cannot be combined with --data"),
        (["--flips-store", "x.zarr"], "--flips-store cannot be combined with --data"),
        (["--images", "x.zarr"], "--images cannot be combined with --data"),
        (["--truth", "dense"], "--truth cannot be combined with --data"),
        (["--invalid", "0"], "--invalid cannot be combined with --data"),
        (["--validation-split", "test"], "evaluate-student` on each data set"),
    ],
)
def test_options_of_one_data_set_are_wrong_usage_with_several(sets, tmp_path, flags, message):
    done = CliRunner().invoke(main, command(sets, tmp_path / "run", *flags))
    assert done.exit_code == 2
    assert message in done.output


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "give --source, --split and --store; or --data"),
        (["--split", "train", "--store", "s.zarr"], "give --source, --split and --store; or --data"),
        (["--source", "folder:x", "--split", "train"], "Missing option '--store'"),
    ],
)
def test_no_data_set_is_wrong_usage(tmp_path, flags, message):
    done = CliRunner().invoke(main, ["train-student", "--out", str(tmp_path / "run"), *flags])
    assert done.exit_code == 2
    assert message in done.output


# refusals


def refuse(sets, tmp_path, message, data=None, **changes):
    with pytest.raises(tiekd.PipelineError, match=message):
        train(sets, tmp_path / "run", data, **changes)
    assert not list(tmp_path.glob(".run*"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": "truth-si"}, "`loss=truth-si` learns from ground truth, but `data` names data sets with stores"),
        ({"view": "full"}, "`view` cannot be combined with `store`"),
        ({"maps": "stored"}, "`maps=stored`: .*small.zarr holds no maps in metres, and a batch needs maps of one kind"),
        ({"crop_px": None}, r"different sizes \(in pixels: .*wide.zarr 24x48, .*small.zarr 24x32\).* at most 24x32"),
        ({"crop_px": (24, 40)}, r"`crop_px=24x40` does not fit into every view of `data`.* at most 24x32"),
    ],
)
def test_options_that_do_not_fit_the_data_sets_are_refused(sets, tmp_path, changes, message):
    refuse(sets, tmp_path, message, **changes)


def test_stored_maps_of_other_bins_are_refused(sets, tmp_path):
    class Coarse(fakes.FakeTeacher):
        def __init__(self):
            super().__init__(with_dpm=True)
            self.bin_edges_m = np.linspace(0, fakes.BLACK_M, 9)

    coarse = Sets.cache(sets, sets.images, "train", Coarse(), "coarse")
    data = [sets.data[0], DataSet(sets.images, "train", coarse)]
    refuse(sets, tmp_path, "the maps of .*coarse.zarr have other bins than those of .*wide.zarr", data, maps="stored")


def test_stored_maps_of_another_precision_are_refused(sets, tmp_path):
    fine = Sets.cache(sets, sets.images, "train", fakes.factory_with_dpm(), "fine", max_dpm_kl=1e-3)
    data = [sets.data[0], DataSet(sets.images, "train", fine)]
    refuse(sets, tmp_path, "the maps of .*fine.zarr have another precision", data, maps="stored")


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_a_weight_that_is_not_positive_is_refused(sets, tmp_path, weight):
    data = [sets.data[0], sets.data[1]._replace(weight=weight)]
    refuse(sets, tmp_path, f"`data`: the weight of .*small.zarr is {weight}, expected a finite number above 0", data)


def test_relative_depth_is_refused(sets, tmp_path):
    relative = Sets.cache(sets, sets.images, "train", fakes.RelativeTeacher(), "relative")
    data = [sets.data[0], DataSet(sets.images, "train", relative)]
    refuse(sets, tmp_path, "relative.zarr holds affine_disparity, but several data sets are learned in metres", data)


def test_different_rows_to_leave_out_have_to_be_given(sets, tmp_path, monkeypatch):
    monkeypatch.setattr(sets.images, "defaults", sets.images.defaults.__class__(skip_rows=4))
    refuse(sets, tmp_path, r"different defaults of `skip_rows` \(scenes 0, folder 4\).*give `skip_rows`")
    assert train(sets, tmp_path / "run", epochs=1, skip_rows=2)["skip_rows"] == 2


def test_views_of_one_size_need_no_crop(sets, tmp_path):
    data = [DataSet(sets.images, "train", sets.small)] * 2
    assert train(sets, tmp_path / "run", data, epochs=1, crop_px=None)["crop_px"] is None


def test_a_store_without_a_signal_is_named(sets, tmp_path, monkeypatch):
    monkeypatch.setattr(Store, "signals", property(lambda store: ("confidence",) if store is sets.wide else ()))
    message = "`add=confidence=1` needs the signal confidence, which .*small.zarr does not hold"
    refuse(sets, tmp_path, message, add=("confidence",))


def test_the_licence_of_every_store_is_required(sets, tmp_path):
    with pytest.raises(tiekd.PipelineError, match="small.zarr: the licence of the teacher's output is not stated"):
        train_network(
            None, None, tmp_path / "run", options(), data=sets.data[::-1], require_licence=["x"], progress=Silent()
        )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"flips": "store"}, "`flips_store` cannot be combined with `data`"),
        ({"images": "cache"}, "`images` cannot be combined with `data`"),
        ({"truth": "dense"}, "`truth` cannot be combined with `data`"),
        ({"validation": Validation(None, "test")}, "`validation_split` cannot be combined with `data`"),
        ({"store": "store"}, "`store` cannot be combined with `data`"),
    ],
)
def test_options_of_one_data_set_are_refused_with_several(sets, tmp_path, given, message):
    with pytest.raises(tiekd.PipelineError, match=message):
        train_network(None, None, tmp_path / "run", options(), data=sets.data, **given)


def test_no_data_set_is_refused(tmp_path):
    with pytest.raises(tiekd.PipelineError, match="no data set to train on"):
        train_network(None, None, tmp_path / "run", options())
