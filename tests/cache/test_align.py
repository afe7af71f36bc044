"""A relative teacher's store gets its metres from sparse truth, says why where it does not, and loses nothing by it."""

import json
import shutil
from pathlib import Path

import fakes
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from stores_v2 import ALIGNMENT, FITS, make_store_v2
from tiny_stores import folder_bytes, make_store

from pipeline.cache.align import AlignOptions, align_store, unalign_store
from pipeline.cache.plan import CacheOptions
from pipeline.cache.run import cache_teacher
from pipeline.cli.main import main
from pipeline.common.fileio import pretty_json
from pipeline.depth import alignment
from pipeline.depth.alignment import Verdict
from pipeline.errors import DamagedStoreError
from pipeline.sources.registry import open_source
from pipeline.store import open_store
from pipeline.store.format.layout import ALIGNMENT_DTYPES
from pipeline.store.read.alignment import AlignmentColumns
from pipeline.store.tools.diff import compare_stores
from pipeline.store.tools.stats import describe_statistics, store_statistics
from pipeline.store.tools.subset import subset_store
from pipeline.store.tools.verify import verify_store
from pipeline.teachers.base import TeacherCard, TeacherOutput

SPACES = ["affine_disparity", "affine_depth", "scale_invariant"]
SIZE_PX = (24, 64)
KEPT = Path(__file__).parents[1] / "data" / "v2_aligned.zarr"


class Relative:
    """A teacher that knows the depth of the fake images, and tells it in another unit for each."""

    needs_images = True
    bin_edges_m = None

    def __init__(self, space="affine_disparity", scale=1):
        self.card = TeacherCard(kind="python", name="relative", depth_space=space)
        self._fake = fakes.FakeTeacher(scale=scale)

    def predict(self, images, ids):
        depth = self._fake(images)
        for number, name in enumerate(ids):
            unit, shift = 10.0 ** (hash_of(name) % 5 - 2), 0.1 * (hash_of(name) % 7)
            own = 1 / depth[number] if self.card.depth_space == "affine_disparity" else depth[number]
            depth[number] = unit * (own + (0 if self.card.depth_space == "scale_invariant" else shift))
        return TeacherOutput(depth)


def hash_of(name):
    """A number that is the same in every process."""
    return sum(name.encode())


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Six frames, the raw store of each space, and the first of them aligned: made once, never changed."""
    folder = tmp_path_factory.mktemp("made")
    root = fakes.make_scenes_folder(folder / "scenes", 6, SIZE_PX)
    for space in SPACES:
        raw_store(root, space)
    aligned_to(root, open_store(folder / "affine_disparity.zarr"))
    return folder


@pytest.fixture
def root(tmp_path, made):
    """The scenes of a copy of `made`, beside its stores."""
    shutil.copytree(made, tmp_path / "made")
    return tmp_path / "made" / "scenes"


def raw_store(root, space="affine_disparity", name=None, scale=1, **options):
    """The store of the relative teacher over all six frames, beside the scenes."""
    path = root.parent / (name or f"{space}.zarr")
    source = open_source(f"scenes:{root}")
    cache_teacher(source, "all", Relative(space, scale), path, CacheOptions(samples_per_shard=2, **options))
    return open_store(path)


def aligned_to(root, store, name="aligned.zarr", **options):
    """`store` aligned to the sparse truth of the scenes."""
    out = root.parent / name
    truth = open_source(f"scenes:{root}", "sparse")
    told = align_store(store, truth, "all", out, AlignOptions(min_points=20, workers=2, **options))
    return open_store(out), told


def truth_m(root, name):
    return np.array(Image.open(root / "depth" / f"{name}.png")) / 256.0


@pytest.mark.parametrize("space", SPACES)
def test_an_aligned_store_gives_metres_and_still_the_teachers_numbers(root, space):
    raw = open_store(root.parent / f"{space}.zarr")
    store, told = aligned_to(root, raw, "s.zarr")
    assert (told.accepted, told.samples, told.rejected) == (6, 6, {})
    assert (store.is_metric, raw.is_metric) == (True, False)
    assert store.accepted.all()
    assert raw.accepted is None
    for number, name in enumerate(store.ids):
        assert np.array_equal(store.depth(number), raw.depth(number))
        assert np.array_equal(store.dpm(number), raw.dpm(number))
        error = np.abs(store.depth_m(name) / truth_m(root, name) - 1)
        assert np.median(error) < 0.01
        found = store.alignment(name)
        own = 1 / store.depth_m(number) if space == "affine_disparity" else store.depth_m(number)
        undone = (own.astype(np.float64) - found.shift) / found.scale
        assert undone == pytest.approx(raw.depth(number), rel=1e-4, abs=1e-6 * float(np.abs(raw.depth(number)).max()))
    with pytest.raises(ValueError, match=f"{space}, which is not in metres: .*pipeline store align"):
        raw.depth_m(0)
    with pytest.raises(ValueError, match="not aligned to ground truth: run `pipeline store align"):
        raw.alignment(0)


def test_the_chunks_of_an_aligned_store_are_those_of_the_raw_one(root):
    before, after = (folder_bytes(root.parent / name) for name in ("affine_disparity.zarr", "aligned.zarr"))
    changed = {name for name in before.keys() & after.keys() if before[name] != after[name]}
    assert changed == {"MANIFEST.json", "zarr.json"}
    assert {name.split("/")[1] for name in after.keys() - before.keys()} == {
        f"align_{name}" for name in ("scale", "shift", "points", "residual", "verdict")
    }
    assert verify_store(root.parent / "aligned.zarr") == []


def test_undone_an_alignment_leaves_the_raw_store_byte_for_byte(root):
    first = open_store(root.parent / "aligned.zarr")
    assert unalign_store(first, root.parent / "undone.zarr") == 6
    assert folder_bytes(root.parent / "undone.zarr") == folder_bytes(root.parent / "affine_disparity.zarr")


def test_aligning_again_replaces_the_alignment(root):
    first = open_store(root.parent / "aligned.zarr")
    strict, told = aligned_to(root, first, "strict.zarr", max_residual=1e-9)
    assert told.rejected == {"residual too large": list(strict.ids)}
    assert strict.spec.alignment["max_residual"] == 1e-9
    aligned_to(root, strict, "again.zarr")
    assert folder_bytes(root.parent / "again.zarr") == folder_bytes(root.parent / "aligned.zarr")


@pytest.mark.parametrize("undo", [False, True])
def test_an_interrupted_alignment_goes_on_to_the_same_bytes(root, undo, monkeypatch):
    raw, whole = (open_store(root.parent / name) for name in ("affine_disparity.zarr", "aligned.zarr"))
    out = root.parent / "cut.zarr"
    stop = fakes.StopAt(4)

    def go(progress):
        if undo:
            return unalign_store(whole, out, progress)
        truth = open_source(f"scenes:{root}", "sparse")
        return align_store(raw, truth, "all", out, AlignOptions(min_points=20), progress)

    with pytest.raises(KeyboardInterrupt):
        go(stop)
    assert not out.exists()
    written = []
    write = "pipeline.store.write.writer.StoreWriter.write_shard"
    from pipeline.store.write.writer import StoreWriter

    real = StoreWriter.write_shard
    monkeypatch.setattr(write, lambda self, shard, samples: (written.append(shard), real(self, shard, samples))[1])
    go(None)
    assert written in ([1, 2], [2])
    expected = root.parent / ("affine_disparity.zarr" if undo else "aligned.zarr")
    assert folder_bytes(out) == folder_bytes(expected)


def test_each_sample_is_refused_for_its_own_reason_and_has_no_metres(root):
    raw = open_store(root.parent / "affine_disparity.zarr")
    (root / "depth_sparse" / "000001.png").unlink()
    fakes.write_depth(root / "depth_sparse" / "000002.png", np.full(SIZE_PX, np.nan, np.float32), 1 / 256)
    upside_down = fakes.smooth_depth_m(SIZE_PX, 3).max() + 2 - fakes.smooth_depth_m(SIZE_PX, 3)
    fakes.write_depth(root / "depth_sparse" / "000003.png", fakes.sparse(upside_down), 1 / 256)
    noise = np.random.default_rng(1).uniform(0.5, 80, SIZE_PX).astype(np.float32)
    fakes.write_depth(root / "depth_sparse" / "000004.png", noise, 1 / 256)
    store, told = aligned_to(root, raw, "s.zarr")
    assert told.accepted == 2
    assert told.rejected["no truth"] == ["000001"]
    assert told.rejected["too few points of truth"] == ["000002"]
    assert told.rejected["scale not above 0"][0] == "000003"
    assert sum(map(len, told.rejected.values())) == 4
    assert store.accepted.tolist() == [True, False, False, False, False, True]
    for number in range(6):
        assert np.isnan(store.depth_m(number)).all() != store.accepted[number]
        assert np.array_equal(store.depth(number), raw.depth(number))
    assert store.alignment("000001") == pytest.approx(alignment.NO_TRUTH, nan_ok=True)
    assert verify_store(root.parent / "s.zarr") == []


def test_truth_at_the_border_of_a_coarser_map_is_enough(root):
    raw = raw_store(root, scale=2, name="coarse.zarr")
    for number in range(6):
        depth_m = fakes.smooth_depth_m(SIZE_PX, number)
        border = np.full_like(depth_m, np.nan)
        border[0], border[-1], border[:, 0], border[:, -1] = depth_m[0], depth_m[-1], depth_m[:, 0], depth_m[:, -1]
        fakes.write_depth(root / "depth_sparse" / f"{number:06d}.png", border, 1 / 256)
    store, told = aligned_to(root, raw, "s.zarr")
    assert told.accepted == 6
    assert told.residual["max"] < 0.05
    for number in range(6):
        fine_m = fakes.smooth_depth_m(SIZE_PX, number)
        coarse_m = fine_m.reshape(12, 2, 32, 2).mean(axis=(1, 3))
        assert store.depth_m(number) == pytest.approx(coarse_m, rel=0.05)


@pytest.mark.parametrize("view", ["center:20x48", "full,resize:12x32", "center:20x48,resize:10x24"])
def test_truth_is_seen_through_the_view_of_the_store(root, view):
    store, told = aligned_to(root, raw_store(root, view=view, name="viewed.zarr"), "s.zarr")
    assert told.accepted == 6
    assert told.residual["max"] < 0.03
    if "resize" not in view:
        assert store.depth_m(0) == pytest.approx(fakes.smooth_depth_m(SIZE_PX, 0)[2:22, 8:56], rel=0.05)


def test_a_store_of_part_of_the_split_in_another_order_is_aligned(root):
    raw, whole = (open_store(root.parent / name) for name in ("affine_disparity.zarr", "aligned.zarr"))
    part = root.parent / "part.zarr"
    subset_store(raw, part, [4, 1, 3])
    store, told = aligned_to(root, open_store(part), "part_aligned.zarr")
    assert told.accepted == 3
    for name in ("000004", "000001", "000003"):
        assert store.alignment(name) == whole.alignment(name)


def test_a_sample_that_the_split_lacks_is_named(root):
    raw = open_store(root.parent / "affine_disparity.zarr")
    with pytest.raises(ValueError, match=r"split train has no row for 1 of the 6 samples .*'000005'.* store subset"):
        align_store(raw, open_source(f"scenes:{root}", "sparse"), "train", root.parent / "x.zarr")
    assert not list(root.parent.glob("*x.zarr*"))


def test_truth_of_another_image_is_refused(root):
    raw = open_store(root.parent / "affine_disparity.zarr")
    fakes.write_image(root / "rgb" / "000002.png", fakes.image_of(fakes.smooth_depth_m(SIZE_PX, 5)))
    with pytest.raises(ValueError, match=r"000002.png is not the image that the teacher saw: its sha256"):
        aligned_to(root, raw, "s.zarr")


def test_metres_are_not_aligned_and_what_is_not_aligned_is_not_undone(tmp_path, root):
    metric = open_store(make_store(tmp_path / "m.zarr"))
    assert (metric.is_metric, metric.accepted) == (True, None)
    with pytest.raises(ValueError, match="metric depth needs no alignment"):
        align_store(metric, open_source(f"scenes:{root}"), "all", tmp_path / "x.zarr")
    with pytest.raises(ValueError, match="is not aligned: there is nothing to undo"):
        unalign_store(metric, tmp_path / "x.zarr")


def test_depth_is_clipped_to_the_range_that_the_store_names(root):
    raw, free = (open_store(root.parent / name) for name in ("affine_disparity.zarr", "aligned.zarr"))
    store, _ = aligned_to(root, raw, "s.zarr", depth_range_m=(4.0, 6.0))
    assert store.spec.alignment["depth_range_m"] == [4.0, 6.0]
    assert np.array_equal(store.depth_m(0), np.clip(free.depth_m(0), 4, 6))
    assert free.depth_m(0).min() < 4
    assert free.depth_m(0).max() > 6


# --- what a store of somebody else may say -------------------------------------------------------------------------


def test_rows_of_every_verdict_are_read_back():
    store = open_store(KEPT)
    for number, expected in enumerate(FITS):
        assert store.alignment(number) == pytest.approx(expected, nan_ok=True)
    assert store.accepted.tolist() == [one.verdict == Verdict.ACCEPTED for one in FITS]
    values = store.depth(6)
    assert np.array_equal(np.isnan(store.depth_m(6)), np.isnan(values) | (values * 0.01 - 0.1 <= 0))


@pytest.mark.parametrize(
    "bad",
    [
        {"align_verdict": 6},
        {"align_verdict": 255},
        {"align_verdict": 2},  # refused, and yet with a scale
        {"align_scale": None},
        {"align_scale": 0.0},
        {"align_scale": -1.0},
        {"align_shift": None},
        {"align_points": -1},
        {"align_residual": np.inf},
        {"align_scale": np.inf},
        {"align_residual": None},
        {"align_residual": -0.5},
    ],
)
def test_a_row_that_no_fit_can_have_is_damage(bad):
    rows = {f"align_{name}": [value] for name, value in FITS[0]._asdict().items()} | {k: [v] for k, v in bad.items()}
    columns = AlignmentColumns(lambda name: np.array(rows[name], ALIGNMENT_DTYPES[name][0]))
    with pytest.raises(DamagedStoreError, match="expected"):
        columns[0]


def test_a_damaged_row_is_named_and_leaves_the_others_readable(tmp_path):
    path = make_store_v2(tmp_path / "s.zarr", "aligned", align_verdict=6)
    store = open_store(path)
    for read in (store.alignment, store.depth_m):
        with pytest.raises(DamagedStoreError, match=r"sample/align_verdict/c/0, sample 0 \(a/000\): invalid verdict 6"):
            read(0)
    store.alignment(1)
    store.depth_m(6)
    (damage,) = verify_store(path)
    assert damage.samples == ["a/000"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fit": 3}, "`fit` and `truth` of the alignment"),
        ({"truth": ""}, "`fit` and `truth` of the alignment"),
        ({"truth": "a\x1b[2J"}, "control characters"),
        ({"min_points": 0}, "positive integer"),
        ({"min_points": True}, "positive integer"),
        ({"max_residual": 0}, "`max_residual` of the alignment must be positive"),
        ({"max_residual": "x"}, "expected a number"),
        ({"depth_range_m": [3, 1]}, "`depth_range_m` of the alignment"),
        ({"depth_range_m": [0, 1]}, "`depth_range_m` of the alignment"),
        ({"depth_range_m": 3}, "`depth_range_m` of the alignment"),
        ({"more": 1}, "expected depth_range_m, fit, max_residual, min_points, truth"),
    ],
)
def test_an_alignment_that_is_none_is_refused(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        make_store(tmp_path / "s.zarr", depth_space="affine_depth", alignment=ALIGNMENT | change)


def test_metric_depth_cannot_claim_an_alignment(tmp_path):
    with pytest.raises(ValueError, match="metric_m has an alignment"):
        make_store(tmp_path / "s.zarr", alignment=ALIGNMENT)


# --- the other commands --------------------------------------------------------------------------------------------


def test_a_subset_keeps_the_alignment_of_its_samples(tmp_path):
    whole = open_store(KEPT)
    subset_store(whole, tmp_path / "all.zarr", range(7))
    assert folder_bytes(tmp_path / "all.zarr") == folder_bytes(KEPT)
    subset_store(whole, tmp_path / "part.zarr", [6, 4])
    part = open_store(tmp_path / "part.zarr")
    assert part.alignment(0) == FITS[6]
    assert part.alignment(1).verdict == Verdict.NO_TRUTH
    assert np.array_equal(part.depth_m(0), whole.depth_m(6), equal_nan=True)


def test_statistics_tell_what_was_accepted():
    found = store_statistics(KEPT)
    assert json.loads(pretty_json(found)) == found
    assert found["alignment"]["accepted"] == 2
    assert found["alignment"]["rejected"]["no truth"] == ["a/004"]
    assert found["alignment"]["residual"]["median"] == pytest.approx((0.03125 + 0.0625) / 2)
    assert found["each_sample"]["align_residual"] == [0.03125, None, None, 0.5, None, 0.125, 0.0625]
    assert "2 of 7 samples accepted" in dict(describe_statistics(found))["aligned"]


def test_two_alignments_of_one_store_differ_in_their_numbers_alone(tmp_path):
    other = make_store_v2(tmp_path / "t.zarr", "aligned", align_shift=0.06)
    assert compare_stores(open_store(KEPT), open_store(KEPT)).identical
    found = compare_stores(open_store(KEPT), open_store(other))
    assert (found.different_alignments, found.different_depth) == (1, 0)
    assert not [name for name, _, _ in found.fields if not name.startswith("producer")]
    assert not found.identical
    assert "alignment: 1 of 7 compared samples differ" in found.describe()


# --- the command ---------------------------------------------------------------------------------------------------


def run(*arguments, status=0):
    done = CliRunner().invoke(main, ["store", *map(str, arguments)])
    assert done.exit_code == status, done.output
    assert "Traceback" not in done.output
    return done.output


def test_the_command_aligns_tells_and_undoes(root):
    (root / "depth_sparse" / "000001.png").unlink()
    raw, out, back = (root.parent / name for name in ("affine_disparity.zarr", "a.zarr", "b.zarr"))
    truth = ["--source", f"scenes:{root}", "--split", "all", "--truth", "sparse"]
    said = run("align", raw, *truth, "--out", out, "--min-points", 20)
    assert "5 of 6 samples accepted, relative residual p05 0.0" in said
    assert "  no truth: 000001\n" in said
    info = run("info", out)
    assert "aligned      to scenes/depth_sparse by l1_tukey, 5 of 6 samples accepted" in info
    assert "1 no truth" in info
    assert run("verify", out).endswith(": OK\n")
    assert "alignment.truth" in run("diff", raw, out, status=1)
    run("align", out, "--undo", "--out", back)
    assert folder_bytes(back) == folder_bytes(raw)
    assert "identical in content" in run("diff", raw, back)
    assert "already exists" in run("align", raw, *truth, "--out", out, status=1)


def test_the_command_needs_truth_or_undo_and_not_both(root):
    raw = root.parent / "never-opened.zarr"
    assert "give the ground truth" in run("align", raw, "--out", root.parent / "x", status=2)
    assert "leave --source, --split, --truth, --invalid and --to out" in run(
        "align", raw, "--undo", "--split", "all", "--out", root.parent / "x", status=2
    )


def test_the_commands_defaults_are_the_librarys():
    command = main.get_command(None, "store").get_command(None, "align")
    defaults = {one.name: one.default for one in command.params}
    options = AlignOptions()
    assert (defaults["min_points"], defaults["max_residual"]) == (options.min_points, options.max_residual)
    assert tuple(map(float, defaults["depth_range_m"].split(":"))) == options.depth_range_m
