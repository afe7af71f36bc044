"""Numbers that are declared to be no measurement, keys that mean nothing, and units that cannot be right."""

import json
import re

import fakes
import layouts_indoor as indoors
import layouts_outdoor as layouts
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from pipeline.cli.main import main
from pipeline.depth.metrics import unit_hint, unit_ratio
from pipeline.evaluation.study_file import read_study
from pipeline.sources.base import truth_name
from pipeline.sources.readers.arrays import metres, parse_invalid
from pipeline.sources.readers.images import read_depth_png_m
from pipeline.sources.registry import open_source
from pipeline.store import open_store
from scenes.dataset import make_scenes

SIZE_PX = (24, 32)
BINS = ("--bins", "nyu", "--sigma-m", "0.2")


def command(*arguments):
    return CliRunner().invoke(main, list(map(str, arguments)))


def run(*arguments):
    done = command(*arguments)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture
def root(tmp_path):
    """Truth in millimetres with 65535 in a quarter of the pixels, as saturated depth cameras write it."""
    root = fakes.make_folder(tmp_path / "data", ("0", "1", "2", "3"), SIZE_PX)
    for number in range(4):
        path = root / "depth" / f"{number}.png"
        units = np.array(Image.open(path))
        units[: SIZE_PX[0] // 4] = 65535
        Image.fromarray(units).save(path)
    return root


def split_of(root):
    return ("--source", f"folder:{root}", "--split", "all")


def evaluated(store, root, tmp_path, *flags):
    out = tmp_path / f"m{len(list(tmp_path.glob('m*.json')))}.json"
    printed = run("evaluate-teacher", store, *split_of(root), *flags, "--out", out)
    return json.loads(out.read_text()), printed


@pytest.fixture
def store(root, tmp_path):
    path = tmp_path / "s.zarr"
    run("cache-teacher", *split_of(root), "--teacher", "python:fakes:factory", *BINS, "--out", path)
    return path


# Numbers that are no measurement


@pytest.mark.parametrize("way", ["flag", "file"])
def test_declared_numbers_do_not_count_in_an_evaluation(root, store, tmp_path, way):
    before, _ = evaluated(store, root, tmp_path)
    assert before["metrics"]["rmse"] > 20  # a quarter of the truth is said to be 65.535 m away
    if way == "file":
        (root / "dataset.json").write_text(json.dumps({"invalid": 65535}))
    after, _ = evaluated(store, root, tmp_path, *(("--invalid", "65535") if way == "flag" else ()))
    assert after["metrics"]["abs_rel"] < 0.02
    assert (before["truth"], after["truth"]) == ("depth", "depth without 65535")


def test_declared_numbers_are_not_learned_and_are_part_of_the_run(root, tmp_path):
    given = (*split_of(root), "--bins", "linear:16:0.5:80", "--student", "lean", "--epochs", "1", "--batch-size", "2")
    run("train-teacher", *given, "--invalid", "65535", "--crop", "16x32", "--out", tmp_path / "with")
    run("train-teacher", *given, "--crop", "16x32", "--out", tmp_path / "without")
    kinds = [json.loads((tmp_path / name / "config.json").read_text())["truth_of"] for name in ("with", "without")]
    assert kinds == ["default without 65535", "default"]


def test_declared_numbers_do_not_count_in_an_alignment(root, tmp_path):
    raw = tmp_path / "r.zarr"
    run("cache-teacher", *split_of(root), "--teacher", "python:fakes:relative", "--out", raw)
    told = run("store", "align", raw, *split_of(root), "--invalid", "65535,0", "--out", tmp_path / "a.zarr")
    assert "4 of 4 samples accepted" in told
    assert open_store(tmp_path / "a.zarr").spec.alignment["truth"] == "folder/depth without 65535, 0"
    assert open_store(tmp_path / "a.zarr").alignment(0).points == 24 * 32 * 3 // 4


@pytest.mark.parametrize("dtype", ["uint16", "float32", "float64", "float16"])
def test_a_declared_number_is_compared_as_the_files_type_holds_it(dtype):
    values = np.array([[0, 0.1, 2, 7]]).astype(dtype)
    expected = np.array([[np.nan, np.nan, 2, np.nan]], np.float32)
    np.testing.assert_array_equal(metres(values, 1.0, (0.1, 7)), expected)


def test_16_bit_truth_has_declared_numbers_besides_0(tmp_path):
    Image.fromarray(np.array([[0, 5000, 65535, 1]], np.uint16)).save(tmp_path / "a.png")
    read = read_depth_png_m(str(tmp_path / "a.png"), 1 / 5000, (65535, 1))
    np.testing.assert_array_equal(read, np.array([[np.nan, 1, np.nan, np.nan]], np.float32))


@pytest.mark.parametrize("text", ["", "a", "1,,2", "nan", "1;2", ",".join(["1"] * 17)], ids=range(6))
def test_a_flag_that_holds_no_numbers_is_refused(root, store, text):
    done = command("evaluate-teacher", store, *split_of(root), "--invalid", text, "--out", root / "m.json")
    assert done.exit_code == 2
    assert "such as 65535" in done.output


def test_numbers_are_read_from_a_flag():
    assert parse_invalid("65535") == (65535.0,)
    assert parse_invalid("65535,-1, 0.5") == (65535.0, -1.0, 0.5)


@pytest.mark.parametrize(
    "value", ["65535", True, [None], {}, list(range(17))], ids=["text", "bool", "null", "map", "many"]
)
def test_dataset_json_declares_numbers_alone(root, value):
    (root / "dataset.json").write_text(json.dumps({"invalid": value}))
    with pytest.raises(ValueError, match=r"dataset.json: invalid .*expected a number of the files' own"):
        open_source(f"folder:{root}")


def test_flag_and_file_declare_together(root):
    (root / "dataset.json").write_text(json.dumps({"invalid": [65535, 1]}))
    source = open_source(f"folder:{root}", None, (1, 2))
    assert source.invalid == (65535, 1, 2)
    assert truth_name(source) == "depth without 65535, 1, 2"


def test_a_source_whose_truth_holds_no_such_numbers_refuses_them(tmp_path):
    root = layouts.make_kitti_raw(tmp_path / "raw")
    with pytest.raises(ValueError, match="velodyne does not support invalid values"):
        open_source(f"kitti-raw:{root}", "velodyne", (65535,))


@pytest.mark.parametrize(
    ("kind", "make", "split", "metres_per_unit"),
    [
        ("kitti", fakes.make_kitti, "train", 1 / 256),
        ("kitti-raw", layouts.make_kitti_raw, "all", 1 / 256),
        ("tum", layouts.make_tum, "all", 1 / 5000),
        ("vkitti2", layouts.make_vkitti2, "all", 0.01),
        ("nyu", indoors.make_nyu_pngs, "test", 0.001),
        ("nyu", indoors.make_nyu_labeled, "all", None),
        ("nyu", indoors.make_fast_depth, "train", None),
        ("diode", indoors.make_diode, "train", None),
    ],
    ids=["kitti", "kitti-raw", "tum", "vkitti2", "nyu-png", "nyu-labelled", "nyu-h5", "diode"],
)
def test_sources_honor_declared_numbers_of_their_files(tmp_path, kind, make, split, metres_per_unit):
    (tmp_path / "root").mkdir()
    root = make(tmp_path / "root")
    source = open_source(f"{kind}:{root}")
    sample = next(one for one in source.samples(split) if source.read_truth_m(one) is not None)
    truth_m = source.read_truth_m(sample)
    first_m = float(truth_m[np.isfinite(truth_m)][0])
    number = first_m if metres_per_unit is None else round(first_m / metres_per_unit)
    declared_m = open_source(f"{kind}:{root}", None, (number,)).read_truth_m(sample)
    assert not (declared_m == np.float32(first_m)).any()
    kept = truth_m != np.float32(first_m)
    np.testing.assert_array_equal(declared_m[kept], truth_m[kept])


# Keys that mean nothing


@pytest.mark.parametrize("key", ["metre_per_unit", "Invalid", "depth_scale"])
def test_an_unknown_key_of_dataset_json_is_refused_with_those_there_are(root, key):
    (root / "dataset.json").write_text(json.dumps({key: 0.001}))
    with pytest.raises(
        ValueError, match=rf"dataset.json: unknown key '{key}', expected depth, intrinsics, invalid, metres_per_unit"
    ):
        open_source(f"folder:{root}")


def test_what_make_scenes_writes_is_no_unknown_key(tmp_path):
    make_scenes(tmp_path / "scenes", count=2, size_px=(32, 64), workers=1)
    for kind in ("scenes", "folder"):
        assert len(open_source(f"{kind}:{tmp_path / 'scenes'}").samples("all")) == 2


@pytest.mark.parametrize(
    "table",
    ["{first: a, runs: [a], titel: A}", "{first: a}", "{runs: [a]}", "[a]"],
    ids=["misspelt", "runs", "first", "list"],
)
def test_a_table_of_a_study_with_other_keys_is_refused(tmp_path, table):
    path = tmp_path / "s.yaml"
    path.write_text(f"studies:\n  s:\n    runs: {{a: {{}}}}\n    tables: {{t: {table}}}\n")
    with pytest.raises(ValueError, match="table 't' has .*expected first and runs, and optionally title and metric"):
        read_study(path, "s")


# Units


@pytest.mark.parametrize(
    ("ratios", "said"),
    [([5.0, 5.1, 4.9], "5"), ([0.001] * 3, "0.001"), ([1.9, 0.6, 1.0], None), ([float("nan")], None), ([], None)],
    ids=["five", "thousandth", "right", "none", "empty"],
)
def test_a_median_that_no_teacher_has_is_told_as_a_unit(ratios, said):
    hint = unit_hint(ratios)
    assert (hint is None) is (said is None)
    assert hint is None or hint.startswith(f"median ratio to truth {said}: wrong unit?")


def test_the_ratio_is_that_of_pixels_with_both_values():
    predicted_m, truth_m = np.array([5.0, np.nan, 10.0, 3.0]), np.array([1.0, 1.0, 2.0, np.nan])
    assert unit_ratio(predicted_m, truth_m) == 5
    assert np.isnan(unit_ratio(predicted_m, np.zeros(4)))


def test_a_wrong_unit_of_the_truth_is_told_in_an_evaluation(root, store, tmp_path):
    (root / "dataset.json").write_text(json.dumps({"metres_per_unit": 0.0002, "invalid": 65535}))
    _, printed = evaluated(store, root, tmp_path)
    assert re.search(r"median ratio to truth (4\.9\d|5(\.0\d)?): wrong unit\?", printed)


def test_a_wrong_unit_of_the_truth_is_told_in_an_alignment(root, tmp_path):
    raw = tmp_path / "r.zarr"
    run("cache-teacher", *split_of(root), "--teacher", "python:fakes:relative", "--out", raw)
    (root / "dataset.json").write_text(json.dumps({"metres_per_unit": 1, "invalid": 65535}))
    told = run("store", "align", raw, *split_of(root), "--out", tmp_path / "a.zarr")
    assert re.search(
        r"median truth of 4 of 4 samples, such as \S+ m, is outside --depth-range-m 0.1:300: check its unit", told
    )
