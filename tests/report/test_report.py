"""The report is one page that loads nothing, trusts no name, and is the same for the same inputs."""

import json
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from fakes import FakeTeacher, make_folder, make_scenes_folder
from report_runs import make_run
from tiny_stores import BINS, make_store

from pipeline.cache.plan import CacheOptions
from pipeline.cache.run import cache_teacher
from pipeline.cli.main import main
from pipeline.common.fileio import pretty_json
from pipeline.depth.dpm import entropy_nats, expected_depth, interval_m
from pipeline.depth.metrics import METRICS, PROTOCOLS
from pipeline.depth.uncertainty import COVERAGES, LEVELS
from pipeline.networks.saved_run import METRICS as RUN_METRICS
from pipeline.networks.saved_run import load_run
from pipeline.report.distributions import Map, teacher_map
from pipeline.report.images import Scale, is_dense, map_uri, spread
from pipeline.report.load import read_results
from pipeline.report.page import write_report
from pipeline.report.probe_pixels import Criteria, ProbePixel, choose_probe_pixels
from pipeline.report.table import DASH
from pipeline.report.units import choose_units
from pipeline.sources.registry import open_source
from pipeline.store import open_store

VOID = {"meta", "link", "img", "br", "hr", "input"}


class Page(HTMLParser):
    """What a page is made of, and whether its tags close."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.texts, self.open = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.texts.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", " ".join(self.texts))


def identity(store, **changes):
    """What a run's configuration says of the store that it learned from."""
    return {"teacher": store.spec.teacher, "digest": store.spec.digest(), **changes}


def uncertainty_of(abs_rel, ause, *, mapped=True, constant=True):
    """What the evaluation says of uncertainty, with curves that are straight lines."""

    def measure(area, spearman=None):
        risk = [abs_rel * (0.5 + 0.5 * fraction) for fraction in COVERAGES]
        return {"risk": risk, "aurc": abs_rel * (1 - area), "ause": area, "spearman": spearman}

    def interval(width):
        levels = list(LEVELS)
        equal = {"observed": [0.5, 0.9], "width": [None, width]}
        widths = [width * level for level in levels]
        return {"nominal": levels, "observed": levels, "width": widths, "ece": 0.0321, "equal": equal}

    measures = {"flip": measure(ause + 0.1, 0.1), "oracle": measure(0.0), "random": measure(0.6)}
    if mapped:
        measures |= {name: measure(ause, 0.2) for name in ("entropy", "width", "deviation")}
    intervals = ({"map": interval(1.11)} if mapped else {}) | ({"constant": interval(0.77)} if constant else {})
    return {"frames": 2, "coverages": list(COVERAGES), "measures": measures, "intervals": intervals}


def write_metrics(path, abs_rel, *, alike=None, protocol="plain", frames=2, uncertainty=None):
    """Metrics as the evaluation writes them; all the others are made up from AbsRel."""
    metrics = dict.fromkeys(METRICS, abs_rel)
    value = {
        "protocol": PROTOCOLS[protocol].as_json(),
        "source": "scenes",
        "frames": frames,
        "frames_without_truth": 0,
        "metrics": metrics,
    }
    if alike is not None:
        value["against_teacher"] = dict.fromkeys(METRICS, alike)
    if uncertainty is not None:
        value["uncertainty"] = uncertainty
    path.write_text(json.dumps(value))
    return path


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Six frames, a store of all of them, two runs with metrics and one without. Read-only."""
    root = tmp_path_factory.mktemp("report")
    make_scenes_folder(root / "scenes", 6, (32, 64))
    source = open_source(f"scenes:{root / 'scenes'}")
    cache_teacher(source, "all", FakeTeacher(scale=2, with_dpm=True), root / "t.zarr", CacheOptions(batch_size=2))
    store = open_store(root / "t.zarr")
    make_run(root / "runs" / "taught", taught_by=identity(store))
    make_run(root / "runs" / "truth", target="truth", loss="si", seed=1)
    make_run(root / "runs" / "bare", seed=2, epochs=0)
    write_metrics(root / "taught.json", 0.1234, alike=0.0567)
    write_metrics(root / "truth.json", 0.2, alike=0.3)
    write_metrics(root / "teacher.json", 0.0789)
    return root


def report(root, out, runs=("taught", "truth", "bare"), metrics=("taught", "truth", "teacher"), **changes):
    """Write a page of a world."""
    arguments = {
        "runs": [root / "runs" / name for name in runs],
        "store": open_store(root / "t.zarr"),
        "source": open_source(f"scenes:{root / 'scenes'}"),
        "split": "all",
        "metrics_paths": [root / f"{name}.json" for name in metrics],
        "frames": 2,
    }
    return write_report(out, **(arguments | changes))


@pytest.fixture(scope="module")
def written(world, tmp_path_factory):
    """The world's page: its text, and the terminal's table."""
    out = tmp_path_factory.mktemp("out") / "pages" / "report.html"
    head, rows = report(world, out)
    return out.read_text(), head, rows


def test_the_page_loads_nothing(written):
    text = written[0]
    page = Page(text)
    for name, value in page.attributes:
        assert not name.startswith("on")
        if name in {"src", "href", "xlink:href", "srcset", "data", "poster", "action"}:
            assert value.startswith(("data:image/png;base64,", "#")) or value == "data:,"
    assert all(link == "url(#" for link in re.findall(r"url\(.", text))
    assert "://" not in text
    assert "@import" not in text
    assert "script" not in page.tags
    assert "default-src 'none'" in text


def test_the_page_has_every_run_frame_and_number(written):
    text = Page(written[0]).text
    for said in ("taught", "truth", "bare", "fake", "000000", "000003", "0.1234", "0.0789", "0.0567", "0.23 M"):
        assert said in text
    assert "The best student against ground truth is taught ." in text
    assert "Its mean relative error (AbsRel) is 12.3%, 38% lower than truth" in text
    assert "lean on sparse ground truth, loss si" in text
    assert "errors are against ground truth" in text
    for why in (
        "Near ground",
        "The teacher most uncertain",
        "Far away",
        "Largest error of taught against truth",
    ):
        assert text.count(why) == 2
    assert written[0].count("<svg") == 4 + 2 * 4


def test_the_best_student_of_each_column_is_marked(written):
    row = re.search(r"taught<small>.*?</tr>", written[0], re.DOTALL)[0]
    assert '<td class="best"><span>0.1234</span>' in row
    assert '<td class="best"><span>0.0567</span>' in row
    assert "best" not in re.search(r"fake<small>.*?</tr>", written[0], re.DOTALL)[0]


def test_the_table_for_the_terminal_has_the_teacher_first_and_dashes_where_nothing_is_known(written):
    _, head, rows = written
    assert head == ["", "parameters", "AbsRel", "RMSE", "δ1", "AbsRel to teacher", "training img/s"]
    assert rows[0] == ["fake (teacher)", DASH, "0.0789", "0.079", "0.0789", DASH, DASH]
    assert rows[1] == ["taught", "0.23 M", "0.1234", "0.123", "0.1234", "0.0567", "12.3"]
    assert rows[3] == ["bare", "0.23 M", DASH, DASH, DASH, DASH, "12.3"]


def test_same_inputs_in_another_place_give_the_same_bytes(written, world, tmp_path):
    shutil.copytree(world, tmp_path / "elsewhere")
    report(tmp_path / "elsewhere", tmp_path / "again.html")
    assert (tmp_path / "again.html").read_text() == written[0]
    assert str(world) not in written[0]


def test_a_folder_of_metrics_gives_those_that_belong_to_something(world, tmp_path):
    for name in ("taught", "truth", "teacher"):
        shutil.copy(world / f"{name}.json", tmp_path)
    write_metrics(tmp_path / "stranger.json", 0.5)
    runs = [world / "runs" / name for name in ("taught", "bare")]
    (taught, bare), teacher = read_results(runs, [tmp_path], open_store(world / "t.zarr"))
    assert taught.measured.metrics["abs_rel"] == 0.1234
    assert bare.measured is None
    assert teacher.metrics["abs_rel"] == 0.0789


def test_names_of_strangers_are_text_and_never_markup(tmp_path):
    ids = ("<script>alert(1)", "b\"><img src=x onerror='alert(2)'>", "c&amp;{{7*7}}")
    make_folder(tmp_path / "folder", ids, (32, 64))
    (tmp_path / "folder" / "all.txt").write_text("".join(f"{name}\n" for name in ids))
    source = open_source(f"folder:{tmp_path / 'folder'}")
    options = CacheOptions(bins="log:8:1:12", sigma_m=0.5)
    cache_teacher(source, "all", FakeTeacher(name="<i>$t_{</i>"), tmp_path / "<u>.zarr", options)
    name = "<script>alert(3)$x_{"
    write_metrics(tmp_path / f"{name}.json", 0.1)
    write_report(
        tmp_path / "r.html",
        runs=[make_run(tmp_path / "runs" / name)],
        store=open_store(tmp_path / "<u>.zarr"),
        source=source,
        split="all",
        metrics_paths=[tmp_path / f"{name}.json"],
        frames=2,
    )
    text = (tmp_path / "r.html").read_text()
    page = Page(text)
    assert not {"script", "i", "u"} & set(page.tags)
    assert not [key for key, _ in page.attributes if key.startswith("on")]
    for said in (ids[0], name, "<i>$t_{</i>", "<u>.zarr"):
        assert said in page.text
    assert "Sharpest edge of the teacher" in page.text  # the store is gaussian: entropy depends on the bins alone


def test_sparse_truth_leaves_the_students_to_be_compared_with_the_teacher(world, tmp_path):
    source = open_source(f"scenes:{world / 'scenes'}", "sparse")
    report(world, tmp_path / "r.html", runs=["taught"], metrics=(), source=source, frames=1)
    text = Page((tmp_path / "r.html").read_text()).text
    assert "the teacher's error is against it, the students' errors are against the teacher" in text
    assert "No metrics were given" in text


def test_a_frame_without_truth_is_shown_all_the_same(world, tmp_path):
    source = open_source(f"scenes:{world / 'scenes'}")
    source.read_truth_m = lambda _: None
    report(world, tmp_path / "r.html", runs=["taught"], metrics=(), source=source, frames=1)
    text = Page((tmp_path / "r.html").read_text()).text
    assert "no ground truth: the students' errors are against the teacher" in text


def test_metrics_of_different_protocols_name_no_winner(world, tmp_path):
    write_metrics(tmp_path / "taught.json", 0.1)
    write_metrics(tmp_path / "truth.json", 0.2, frames=3)
    report(
        world,
        tmp_path / "r.html",
        runs=["taught", "truth"],
        metrics_paths=[tmp_path / "taught.json", tmp_path / "truth.json"],
        frames=1,
    )
    text = (tmp_path / "r.html").read_text()
    assert "the students are not ranked" in text
    assert 'class="best"' not in text
    assert "3 frames of scenes: truth" in Page(text).text


def test_metrics_without_uncertainty_have_no_section_of_it(written):
    assert "Does it know when it is wrong?" not in written[0]


def uncertainty_part(path):
    """The section of uncertainty alone."""
    text = path.read_text()
    return text[text.index('<h2 id="uncertainty"') : text.index('<h2 id="frames"')]


def test_the_page_names_the_student_with_the_best_uncertainty(world, tmp_path):
    write_metrics(tmp_path / "taught.json", 0.2, uncertainty=uncertainty_of(0.2, 0.345))
    write_metrics(tmp_path / "truth.json", 0.1, uncertainty=uncertainty_of(0.1, 0.456))
    metrics_paths = [tmp_path / "taught.json", tmp_path / "truth.json"]
    report(world, tmp_path / "r.html", metrics_paths=metrics_paths, frames=1)
    section = uncertainty_part(tmp_path / "r.html")
    text = Page(section).text
    assert "The student with the best uncertainty is taught . AbsRel is 15.0% on the most confident half" in text
    assert "(by entropy), 20.0% on all pixels" in text
    for said in ("0.345", "0.456", "0.032", "90.0 %", "1.11", "0.77"):
        assert said in text
    assert '<td class="best"><span>0.345</span>' in section
    assert section.count("<svg") == 6
    assert "bare" not in section  # nobody measured it


def test_a_student_without_a_map_has_no_pictures_of_one_and_is_compared_by_the_mirrored_image(world, tmp_path):
    run = make_run(tmp_path / "plain", head="depth")
    write_metrics(tmp_path / "plain.json", 0.2, uncertainty=uncertainty_of(0.2, 0.3, mapped=False, constant=False))
    out = tmp_path / "r.html"
    report(world, out, runs=[run, world / "runs" / "taught"], metrics_paths=[tmp_path / "plain.json"], frames=1)
    page = Page(out.read_text())
    assert page.text.count("no map") == 2 + 4 + 1 + 1  # pictures, readings, the table, and the words above the frames
    assert "plain predicts one depth per pixel and no map." in page.text
    assert "0.400" in page.text
    section = uncertainty_part(out)
    assert section.count("<svg") == 1
    assert "entropy of its maps" not in section


def test_terms_that_were_added_to_the_loss_are_named(world, tmp_path):
    run = make_run(tmp_path / "added")
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"add": ["gradient=0.5", "trim=0.1"]}))
    report(world, tmp_path / "r.html", runs=[run], metrics_paths=[], frames=1)
    assert "loss tiekd + gradient=0.5 + trim=0.1" in Page((tmp_path / "r.html").read_text()).text


def test_the_area_of_one_student_alone_needs_no_winner(world, tmp_path):
    write_metrics(tmp_path / "taught.json", 0.2, uncertainty=uncertainty_of(0.2, 0.345, constant=False))
    report(world, tmp_path / "r.html", runs=["taught"], metrics_paths=[tmp_path / "taught.json"], frames=1)
    section = uncertainty_part(tmp_path / "r.html")
    assert "One student has uncertainty results: <strong>taught</strong>" in section
    assert "Constant intervals" not in section
    assert 'class="best"' not in section


@pytest.mark.parametrize(
    "change",
    [
        {"coverages": "x"},
        {"coverages": [0.5, 1.0]},
        {"measures": {}},
        {"measures": {"flip": None, "oracle": None}},
        {"intervals": {"map": {"nominal": [0.1, 0.9], "observed": [0.1], "width": [1, 2]}}},
        {"intervals": None},
    ],
)
def test_damaged_uncertainty_is_named(world, tmp_path, change):
    write_metrics(tmp_path / "taught.json", 0.2, uncertainty=uncertainty_of(0.2, 0.3) | change)
    with pytest.raises(ValueError, match=r"evaluation .*taught\.json.*expected a file from `pipeline evaluate-student"):
        report(world, tmp_path / "r.html", metrics_paths=[tmp_path / "taught.json"])


def test_an_existing_page_is_not_overwritten(world, tmp_path):
    (tmp_path / "r.html").write_text("mine")
    with pytest.raises(ValueError, match=r"r\.html already exists; .*`overwrite`"):
        report(world, tmp_path / "r.html")
    assert (tmp_path / "r.html").read_text() == "mine"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"runs": []}, "no runs given"),
        ({"frames": 0}, "`frames=0`"),
        ({"runs": ["taught", "taught"]}, "two runs are named 'taught'"),
        ({"runs": ["truth"]}, r"taught\.json match no run.*'taught' is not one of truth, teacher"),
        ({"metrics": ["taught", "taught"]}, "are both for 'taught'"),
    ],
)
def test_wrong_calls_are_refused_before_anything_is_written(world, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        report(world, tmp_path / "r.html", **changes)
    assert list(tmp_path.iterdir()) == []


def test_a_run_of_another_view_is_refused(world, tmp_path):
    run = make_run(tmp_path / "odd", view="center:16x32")
    with pytest.raises(ValueError, match=r"odd uses view 'center:16x32', store .* uses 'full'"):
        report(world, tmp_path / "r.html", runs=[run], metrics=())


@pytest.mark.parametrize(
    ("truth", "said"),
    [
        ("dense", "errors are against ground truth"),
        ("sparse", "ground truth is sparse: errors are against its points"),
        ("none", "no ground truth and no errors"),
    ],
)
def test_frames_that_the_store_lacks_are_shown_without_the_teacher(world, tmp_path, truth, said):
    make_scenes_folder(tmp_path / "scenes", 9, (32, 64))
    source = open_source(f"scenes:{tmp_path / 'scenes'}", "sparse" if truth == "sparse" else None)
    if truth == "none":
        source.read_truth_m = lambda _: None
    report(world, tmp_path / "r.html", runs=["taught", "truth"], metrics=(), source=source, frames=9)
    text = (tmp_path / "r.html").read_text()
    page = Page(text).text
    assert page.count("this frame is not in the store, so there is no teacher") == 3
    assert said in page
    articles = text.split("<article")[1:]
    shown = ['<div class="who"><span class="swatch teacher-colour"></span>teacher</div>' in one for one in articles]
    assert shown == 6 * [True] + 3 * [False]
    why = "Largest error of taught against truth"
    assert [why in one for one in articles[6:]] == 3 * [truth != "none"]


def test_a_page_of_held_out_frames_alone_shows_no_teacher(world, tmp_path):
    make_scenes_folder(tmp_path / "scenes", 9, (32, 64))
    (tmp_path / "scenes" / "late.txt").write_text("000007\n000008\n")
    source = open_source(f"scenes:{tmp_path / 'scenes'}")
    split = str(tmp_path / "scenes" / "late.txt")
    report(world, tmp_path / "r.html", runs=["taught"], metrics=(), source=source, split=split)
    text = (tmp_path / "r.html").read_text()
    assert "teacher-colour" not in text[text.index('<h2 id="frames"') :]


def test_another_image_of_the_same_id_is_refused(world, tmp_path):
    make_scenes_folder(tmp_path / "scenes", 6, (32, 64))
    shutil.copy(tmp_path / "scenes/rgb/000001.png", tmp_path / "scenes/rgb/000000.png")
    source = open_source(f"scenes:{tmp_path / 'scenes'}")
    with pytest.raises(ValueError, match="is not the image that the teacher saw"):
        report(world, tmp_path / "r.html", source=source)


@pytest.mark.parametrize("text", ["[]", '{"metrics": {}}', '{"protocol": {}, "source": "", "frames": "x"}'])
def test_a_json_that_is_no_metrics_file_is_named(world, tmp_path, text):
    (tmp_path / "taught.json").write_text(text)
    with pytest.raises(ValueError, match=r"evaluation .*taught\.json"):
        report(world, tmp_path / "r.html", metrics_paths=[tmp_path / "taught.json"])


@pytest.mark.parametrize("kind", ["gaussian", "sparse", "dense"])
def test_the_entropy_of_a_stored_map_is_the_same_in_strips(tmp_path, kind):
    store = open_store(make_store(tmp_path / "s.zarr", kind))
    whole = entropy_nats(torch.from_numpy(store.dpm(1))[None])[0, 0].numpy()
    assert np.allclose(teacher_map(store, 1, choose_units(store, [])).entropy_nats(), whole, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("kind", ["gaussian", "sparse", "dense"])
def test_the_width_of_a_stored_map_is_that_of_its_90_percent_interval_by_depth(tmp_path, kind):
    store = open_store(make_store(tmp_path / "s.zarr", kind))
    maps, edges_m = torch.from_numpy(store.dpm(1))[None].double(), torch.from_numpy(store.bin_edges_m)
    low_m, high_m = interval_m(maps, edges_m, 0.9)
    whole = ((high_m - low_m) / expected_depth(maps, edges_m))[0, 0].numpy()
    found = teacher_map(store, 1, choose_units(store, [])).relative_width()
    assert np.isfinite(whole).any()
    assert np.allclose(found, whole, rtol=1e-3, equal_nan=True)


def test_a_mark_is_looked_up_at_the_nearest_pixel_of_a_smaller_map(tmp_path):
    store = open_store(make_store(tmp_path / "s.zarr", "sparse"))
    belief = teacher_map(store, 0, choose_units(store, [])).belief(
        ProbePixel(7, 19, ""), (12, 20)
    )  # 6x10 px, half of the view
    assert np.array_equal(belief.probability, store.dpm(0)[:, 3, 9])
    assert belief.bin_edges_m.shape == (BINS + 1,)
    nothing = Map(lambda *_: torch.full((1, 3, 1, 1), torch.nan), (6, 10), np.arange(4.0))
    assert nothing.belief(ProbePixel(0, 0, ""), (12, 20)) is None


def test_marks_are_apart_allowed_and_the_same_each_time():
    random = np.random.default_rng(0)
    depth_m, uncertainty, error = (random.uniform(1, 50, (40, 120)).astype(np.float32) for _ in range(3))
    allowed = random.uniform(size=(40, 120)) < 0.3
    criteria = Criteria(depth_m, uncertainty, "uncertainty", error, "error", allowed)
    probe_pixels = choose_probe_pixels(criteria)
    assert [pixel.why for pixel in probe_pixels] == ["Near ground", "uncertainty", "Far away", "error"]
    assert probe_pixels == choose_probe_pixels(criteria)
    assert all(allowed[pixel.row, pixel.column] for pixel in probe_pixels)
    places = np.array([(pixel.row, pixel.column) for pixel in probe_pixels])
    gaps = np.hypot(*(places[:, None] - places[None]).transpose(2, 0, 1))
    assert gaps[np.triu_indices(4, 1)].min() > 0.07 * 120
    assert choose_probe_pixels(criteria._replace(allowed=np.zeros_like(allowed))) == []


def test_truth_with_a_sky_is_dense_and_scan_lines_are_not():
    covered = np.full((40, 60), 5, np.float32)
    covered[:15] = np.nan
    lines = np.full((40, 60), np.nan, np.float32)
    lines[::3] = 5
    assert is_dense(covered)
    assert not is_dense(lines)
    assert not is_dense(np.full((4, 4), np.nan, np.float32))
    grown = spread(lines)
    assert np.isfinite(grown).all()
    assert np.array_equal(grown[::3], lines[::3])


def test_a_scale_keeps_its_ends_and_a_map_without_value_is_transparent():
    scale = Scale("magma_r", 1.0, 100.0, logarithmic=True)
    unit = scale.unit(np.array([[0.5, 1, 10, 100, 500, np.nan]]))
    assert unit[0, :5] == pytest.approx([0, 0, 0.5, 1, 1])
    assert np.isnan(unit[0, 5])
    assert (50.0, "10\N{NO-BREAK SPACE}m") in scale.ticks("m")
    assert map_uri(np.full((2, 2), np.nan), scale) != map_uri(np.full((2, 2), 100.0), scale)


def test_no_name_on_a_page_holds_a_control_character(world, tmp_path):
    make_run(tmp_path / "a\x1b[2J\u202eb")
    write_report(
        tmp_path / "r.html",
        runs=[tmp_path / "a\x1b[2J\u202eb"],
        store=open_store(world / "t.zarr"),
        source=open_source(f"scenes:{world / 'scenes'}"),
        split="all",
        metrics_paths=[],
        frames=1,
    )
    text = (tmp_path / "r.html").read_text()
    assert not {"\x1b", "\u202e"} & set(text)
    assert "a\\x1b[2J\\u202eb" in text


def test_who_taught_a_student_is_told_by_identity_and_not_by_name(world, tmp_path):
    store = open_store(world / "t.zarr")
    card = store.spec.teacher
    taught_by = {
        "same": identity(store),
        "exact": identity(store, manifest_sha256=store.manifest_sha256),
        "remade": identity(store, manifest_sha256="0" * 64),
        "elsewhere": identity(store, digest="1" * 64),
        "namesake": {"teacher": card | {"weights_sha256": "2" * 64}, "digest": "3" * 64},
        "stranger": {"teacher": card | {"name": "big"}, "digest": "4" * 64},
        "unknown": {},
    }
    runs = [make_run(tmp_path / name, taught_by=one) for name, one in taught_by.items()]
    (tmp_path / "same" / RUN_METRICS).write_bytes(pretty_json({"epochs": 15}))
    report(world, tmp_path / "r.html", runs=[*runs, world / "runs" / "truth"], metrics=(), frames=1)
    text = Page((tmp_path / "r.html").read_text()).text
    assert "lean on the teacher, loss tiekd, 15 epochs" in text
    assert text.count("lean on the teacher, loss tiekd") == 2
    assert text.count("lean on another store of the teacher, loss tiekd") == 2
    assert f"lean on another teacher of the same name, {card['name']}, loss tiekd" in text
    assert "lean on another teacher, big, loss tiekd" in text
    assert "lean on another teacher, unknown, loss tiekd" in text
    assert re.search("same and exact learned from this store; remade and elsewhere learned from another store of", text)
    assert re.search("namesake , stranger and unknown learned from another teacher; truth learned from ground tr", text)


def test_a_page_without_a_student_of_its_teacher_does_not_say_that_it_taught_them(world, tmp_path):
    report(world, tmp_path / "r.html", runs=["truth"], metrics=(), frames=1)
    text = Page((tmp_path / "r.html").read_text()).text
    assert "What students learned" in text
    assert "truth learned from ground truth." in text


def test_metrics_may_be_given_by_the_name_of_the_run(world, tmp_path):
    write_metrics(tmp_path / "run7.json", 0.4321)
    words = ["report", str(world / "runs" / "taught"), "--store", str(world / "t.zarr")]
    words += ["--source", f"scenes:{world / 'scenes'}", "--split", "all", "--frames", "1", "--out"]
    done = CliRunner().invoke(main, [*words, str(tmp_path / "r.html"), "--metrics", f"taught={tmp_path}/run7.json"])
    assert done.exit_code == 0, done.output
    assert "0.4321" in done.output
    assert "--metrics taught=run7.json" in (tmp_path / "r.html").read_text()
    done = CliRunner().invoke(main, [*words, str(tmp_path / "s.html"), "--metrics", f"tought={tmp_path}/run7.json"])
    assert done.exit_code == 1
    assert "'tought' is not one of taught, teacher" in done.output


def add(path, **facts):
    """State more in a metrics file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | facts))
    return path


def test_metrics_of_other_weights_or_another_teacher_are_refused(world, tmp_path):
    run = load_run(world / "runs" / "taught")
    add(write_metrics(tmp_path / "taught.json", 0.1), measured={"weights_sha256": run.weights_sha256})
    report(world, tmp_path / "good.html", runs=["taught"], metrics_paths=[tmp_path / "taught.json"], frames=1)
    for measured, why in (
        ({"weights_sha256": "0" * 64}, "of other weights than run"),
        ({"store_digest": "0"}, "of a t"),
    ):
        add(tmp_path / "taught.json", measured=measured)
        with pytest.raises(ValueError, match=why):
            report(world, tmp_path / "r.html", runs=["taught"], metrics_paths=[tmp_path / "taught.json"])
    for measured in ({"weights_sha256": "0"}, {"store_digest": "0", "teacher_sha256": "1"}):
        add(write_metrics(tmp_path / "teacher.json", 0.1), measured=measured)
        with pytest.raises(ValueError, match="are not of the teacher of"):
            report(world, tmp_path / "r.html", runs=["taught"], metrics_paths=[tmp_path / "teacher.json"])
    assert not (tmp_path / "r.html").exists()


def test_likeness_to_another_teacher_is_not_shown_as_likeness_to_this_one(world, tmp_path):
    for digest, expected in ((open_store(world / "t.zarr").spec.digest(), "0.0567"), ("0" * 64, DASH)):
        path = write_metrics(tmp_path / "taught.json", 0.1234, alike=0.0567)
        add(path, teacher={"store_digest": digest, "teacher_sha256": "1" * 64})
        out = tmp_path / f"{digest[:4]}.html"
        _, rows = report(world, out, runs=["taught"], metrics_paths=[path], frames=1)
        assert rows[0][5] == expected


def test_metrics_of_different_coverage_are_not_ranked(world, tmp_path):
    paths = [write_metrics(tmp_path / f"{name}.json", error) for name, error in (("taught", 0.1), ("truth", 0.2))]
    for path, coverage in zip(paths, (0.02, 1.0), strict=True):
        add(path, coverage=coverage)
    report(world, tmp_path / "r.html", runs=["taught", "truth"], metrics_paths=paths, frames=1)
    text = Page((tmp_path / "r.html").read_text()).text
    assert "the students are not ranked" in text
    assert re.search(r"coverage \(%\).* 2\.0 .* 100\.0 ", text)


def test_the_split_of_the_metrics_is_their_own_and_not_the_pages(world, tmp_path):
    paths = [write_metrics(tmp_path / f"{name}.json", error) for name, error in (("taught", 0.1), ("truth", 0.2))]
    for path in paths:
        add(path, split="held-out", split_sha256="0")
    report(world, tmp_path / "r.html", runs=["taught", "truth"], metrics_paths=paths, frames=1)
    text = Page((tmp_path / "r.html").read_text()).text
    assert "2 frames of scenes, split held-out." in text
    assert "the students are not ranked" not in text
    add(paths[0], split_sha256="1")
    report(world, tmp_path / "s.html", runs=["taught", "truth"], metrics_paths=paths, frames=1)
    assert "the students are not ranked" in Page((tmp_path / "s.html").read_text()).text
