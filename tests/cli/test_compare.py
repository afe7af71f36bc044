"""`pipeline compare`: differences between results, and refusal of results that cannot be compared."""

import json
from functools import partial

import numpy as np
import pytest
from click.testing import CliRunner

from pipeline.cli.compare import compare
from pipeline.depth.metrics import METRICS, PROTOCOLS, mean_metrics
from pipeline.evaluation.comparison import join, read_result
from pipeline.evaluation.multiple_testing import holm
from pipeline.evaluation.result import write_result
from pipeline.evaluation.significance import paired_difference

IDS = [f"{number:03d}" for number in range(12)]


def evaluation(path, values, ids=IDS, protocol="plain", source="scenes", truth="depth", coverage=None, **changes):
    """Write an evaluation as the commands do; all metrics of a frame are its entry of `values`."""
    rows = [{"id": sample, **dict.fromkeys(METRICS, value)} for sample, value in zip(ids, values, strict=True)]
    result = {
        "protocol": PROTOCOLS[protocol].as_json() | changes,
        "source": source,
        "truth": truth,
        "frames": len(rows),
        "frames_without_truth": 1,
        "metrics": mean_metrics([{name: row[name] for name in METRICS} for row in rows]),
        "per_image": [*rows, {"id": "without truth"}],
    }
    if coverage is not None:
        result["coverage"] = coverage
    write_result(result, path)
    return path


@pytest.fixture
def measured(tmp_path):
    """Three students: `good` and `poor` with two seeds, and `alone` with one."""
    random = np.random.default_rng(0)
    hard = random.uniform(0.1, 0.3, 12)
    for name, factor in (("good", 0.8), ("poor", 1.0)):
        for seed in range(2):
            noise = random.normal(0, 0.002, 12)
            evaluation(tmp_path / f"{name}-{seed}.json", factor * hard * (1 + 0.003 * seed) + noise)
    evaluation(tmp_path / "alone.json", hard * 1.1)
    return tmp_path


def run(*arguments):
    return CliRunner().invoke(compare, [str(argument) for argument in arguments])


def refused(*arguments, status=1):
    done = run(*arguments)
    assert done.exit_code == status, done.output
    assert done.output.count("Error:") == 1
    return done.output


def test_compare_prints_and_writes_means_intervals_and_corrected_p_values(measured):
    files = {name: f"{name}={measured}/{name}-0.json,{measured}/{name}-1.json" for name in ("good", "poor")}
    out = measured / "sub" / "out.json"
    done = run(files["good"], files["poor"], measured / "alone.json", "--out", out)
    assert done.exit_code == 0, done.output
    assert "AbsRel, lower is better; 12 frames of scenes" in done.output
    assert "poor - good" in done.output
    assert "alone - good" in done.output
    assert "One seed of alone:" in done.output
    written = json.loads(out.read_text())
    assert [(group["name"], group["seeds"]) for group in written["groups"]] == [("good", 2), ("poor", 2), ("alone", 1)]
    assert written["groups"][2]["seeds_sd"] is None
    values = [[list(read_result(measured / f"{name}-{seed}.json", "abs_rel").by_id.values()) for seed in range(2)]
              for name in ("poor", "good")]  # fmt: skip
    expected = paired_difference(*values)
    first = written["comparisons"][0]
    assert first["difference"] == pytest.approx(expected.difference, rel=1e-12)
    assert (first["low"], first["p_value"]) == (expected.low, expected.p_value)
    assert first["p_holm"] == holm([item["p_value"] for item in written["comparisons"]])[0]
    assert written["protocol"]["name"] == "plain"
    assert (written["frames"], written["block"], written["lower_is_better"]) == (12, 1, True)


def test_a_pattern_is_expanded_and_all_pairs_compares_every_pair(measured):
    done = run(f"good={measured}/good-*.json", f"poor={measured}/poor-*.json", measured / "alone.json", "--all-pairs")
    assert done.exit_code == 0, done.output
    assert all(pair in done.output for pair in ("good - poor", "good - alone", "poor - alone"))


def test_a_single_student_has_an_interval(measured):
    done = run(f"good={measured}/good-*.json")
    assert done.exit_code == 0, done.output
    assert row_of(done.output, "good")[:2] == ["good", "2"]
    assert " p " not in done.output


def row_of(text, name):
    (line,) = [line for line in text.splitlines() if line.startswith(f"{name} ")]
    return line.split()


def test_higher_delta1_is_better(measured):
    fractions = {}
    for metric in ("abs_rel", "delta1"):
        out = measured / f"{metric}.out"
        done = run(f"{measured}/alone.json", f"{measured}/good-0.json", "--metric", metric, "--out", out)
        assert done.exit_code == 0, done.output
        fractions[metric] = json.loads(out.read_text())["comparisons"][0]["share_better"]
    assert fractions == {"abs_rel": 1.0, "delta1": 0.0}


def test_a_file_may_have_an_equals_sign_or_a_comma_in_its_path(measured):
    folder = measured / "lr=0.1,wd=0"
    evaluation(folder / "run.json", np.linspace(0.1, 0.2, 12))
    done = run(f"{folder}/run.json", f"second={measured}/alone.json")
    assert done.exit_code == 0, done.output
    assert "second - run" in done.output


def test_frames_are_joined_by_id(measured):
    values = np.linspace(0.1, 0.2, 12)
    evaluation(measured / "a.json", values)
    evaluation(measured / "b.json", values[::-1] + 1, ids=IDS[::-1])
    found = join([("a", [measured / "a.json"]), ("b", [measured / "b.json"])], "abs_rel")
    assert found.ids == tuple(IDS)
    assert found.groups[1].values == pytest.approx(found.groups[0].values + 1)


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"protocol": "kitti_eigen_garg80"}, "protocol name is kitti_eigen_garg80, not plain"),
        ({"max_m": 80.0}, "protocol max_m is 80.0, not None"),
        ({"source": "folder"}, "source is folder, not scenes"),
        ({"truth": "depth_sparse"}, "ground truth is depth_sparse, not depth"),
        ({"ids": ["other", *IDS[1:]]}, "for frame '000' of"),
    ],
)
def test_different_protocols_or_data_are_refused_with_the_first_difference(measured, change, difference):
    evaluation(measured / "other.json", np.linspace(0.1, 0.2, 12), **change)
    output = refused(measured / "alone.json", measured / "other.json")
    assert difference in output
    assert "cannot be compared with" in output


def test_a_frame_without_truth_in_one_result_is_refused(measured):
    evaluation(measured / "fewer.json", np.linspace(0.1, 0.2, 11), ids=IDS[:11])
    for files in (("alone", "fewer"), ("fewer", "alone")):
        output = refused(*(measured / f"{name}.json" for name in files))
        assert "fewer.json has no ground truth or no row for frame '011'" in output


def test_results_with_and_without_flip_averaging_are_compared_with_a_note(measured):
    for name, flip in (("student", True), ("teacher", False)):
        evaluation(measured / f"{name}.json", np.linspace(0.1, 0.2, 12) + flip, flip_average=flip)
    done = run(measured / "student.json", measured / "teacher.json")
    assert done.exit_code == 0, done.output
    assert "Averaged with the mirrored image: student" in done.output


def test_a_result_whose_means_and_rows_disagree_is_refused(measured):
    (measured / "alone.csv").write_text((measured / "good-0.csv").read_text())
    assert "do not have the mean abs_rel" in refused(measured / "alone.json")
    (measured / "alone.csv").write_text("id,rmse\n1,2\n")
    assert "expected the columns id and abs_rel" in refused(measured / "alone.json")
    (measured / "alone.csv").write_text("id,abs_rel\n1,x\n")
    assert "could not convert string to float: 'x'" in refused(measured / "alone.json")
    (measured / "alone.csv").write_text("id,abs_rel\n1,2\n1,2\n")
    assert "2 rows of 1 images" in refused(measured / "alone.json")
    (measured / "alone.csv").unlink()
    assert "keep both files together" in refused(measured / "alone.json")
    assert "No such file" in refused(measured / "absent.json")
    (measured / "run.json").write_text('{"epochs": 1}')
    assert "a file from `pipeline evaluate-student" in refused(measured / "run.json")


def test_a_result_given_twice_is_refused(measured):
    good = measured / "good-0.json"
    assert "given twice" in refused(good, good)
    assert "x is given twice" in refused(f"x={good}", f"x={measured}/poor-0.json")
    evaluation(measured / "copy.json", read_result(good, "abs_rel").by_id.values())
    assert "so they are not two seeds" in refused(f"good={good},{measured}/copy.json")


def test_wrong_usage_of_compare_is_refused(measured):
    wrong_usage = partial(refused, status=2)
    assert "name it, such as" in wrong_usage(f"{measured}/good-0.json,{measured}/good-1.json")
    assert "no JSON file matches" in wrong_usage(f"x={measured}/nothing-*.json")
    assert "after each comma too" in wrong_usage(f"x={measured}/good-0.json,")
    assert "'--metric'" in wrong_usage(measured / "alone.json", "--metric", "absrel")
    output = refused(measured / "alone.json", "--out", measured / "alone.json")
    assert "is one of the evaluations" in output
    assert "expected 1 to 12, the number of frames" in refused(measured / "alone.json", "--block", 13)


def test_too_few_frames_give_differences_without_intervals_and_the_reason(measured):
    few = {}
    for name, factor in (("good", 0.8), ("poor", 1.0)):
        few[name] = evaluation(measured / f"few-{name}.json", factor * np.linspace(0.1, 0.2, 9), ids=IDS[:9])
    done = run(few["poor"], few["good"], "--out", measured / "few.out")
    assert done.exit_code == 0, done.output
    assert row_of(done.output, "few-good  ") == ["few-good", "1", "0.1200", "unknown"]
    assert "-0.0300" in done.output
    assert "-20.0 %" in done.output
    assert "No intervals and no p values: 9 frames are too few" in done.output
    assert not any(word in done.output for word in ("Holm", "<0.001", "% interval"))
    found = json.loads((measured / "few.out").read_text())["comparisons"][0]
    assert (found["difference"], found["low"], found["p_holm"]) == (pytest.approx(-0.03), None, None)
    done = run(measured / "alone.json", measured / "good-0.json", "--block", 2)
    assert "12 frames in blocks of 2 (6 blocks) are too few" in done.output


def test_frames_of_a_video_are_sorted_by_number(measured):
    ids = [f"video/{number}" for number in range(12)]
    shuffled = sorted(ids)  # as text: 1, 10, 11, 2
    evaluation(measured / "a.json", [float(sample[6:]) + 1 for sample in shuffled], ids=shuffled)
    found = join([("a", [measured / "a.json"])], "abs_rel")
    assert found.ids == tuple(ids)
    assert found.groups[0].values[0] == pytest.approx(np.arange(12) + 1.0)


@pytest.mark.parametrize(("first", "second"), [(1.0, 0.02), (0.98, 0.9785)], ids=["2-percent", "a-little-more"])
def test_results_of_different_coverage_are_refused_without_any_coverage(measured, first, second):
    values = np.linspace(0.1, 0.2, 12)
    evaluation(measured / "dense.json", values, coverage=first)
    evaluation(measured / "picky.json", values / 100, coverage=second)
    output = refused(measured / "dense.json", measured / "picky.json")
    assert f"picky.json covers {second:.2%} of the valid ground truth" in output.replace("\n", " ")
    assert "add --any-coverage" in output
    done = run(measured / "dense.json", measured / "picky.json", "--any-coverage", "--out", measured / "c.out")
    assert done.exit_code == 0, done.output
    assert f"{100 * second:.2f} %" in done.output
    groups = json.loads((measured / "c.out").read_text())["groups"]
    assert [group["coverage"] for group in groups] == [first, second]


def test_nearly_equal_or_unknown_coverage_is_compared_with_a_note(measured):
    values = np.linspace(0.1, 0.2, 12)
    evaluation(measured / "a.json", values, coverage=0.999)
    evaluation(measured / "b.json", values + 0.1, coverage=0.9981)
    done = run(measured / "a.json", measured / "b.json", measured / "alone.json")
    assert done.exit_code == 0, done.output
    assert "Coverage unknown of alone" in done.output
    assert "99.81 %" in done.output


def test_any_coverage_leaves_out_frames_without_a_prediction(measured):
    evaluation(measured / "a.json", np.linspace(0.1, 0.2, 12), coverage=1.0)
    evaluation(measured / "b.json", np.linspace(0.3, 0.4, 11), ids=IDS[:11], coverage=1.0)
    with (measured / "b.csv").open("a") as file:
        file.write(f"{IDS[11]}{',' * (1 + len(METRICS))}0.0,,,,\n")
    assert f"b.json has no prediction of frame '{IDS[11]}'" in refused(measured / "a.json", measured / "b.json")
    done = run(measured / "a.json", measured / "b.json", "--any-coverage")
    assert done.exit_code == 0, done.output
    assert "11 frames of scenes" in done.output
    assert "1 frames are left out" in done.output


def test_names_that_differ_after_a_dot_have_separate_rows(tmp_path):
    for name, value in (("lr_0.001", 0.1), ("lr_0.004", 0.3), ("r.csv", 0.5), ("m.json", 0.7)):
        evaluation(tmp_path / name, np.full(12, value))
    for name, value in (("lr_0.001", 0.1), ("lr_0.004", 0.3), ("r.csv", 0.5), ("m.json", 0.7)):
        assert set(read_result(tmp_path / name, "abs_rel").by_id.values()) == {value}
    assert {path.name for path in tmp_path.iterdir()} == {
        *("lr_0.001", "lr_0.001.csv", "lr_0.004", "lr_0.004.csv", "r.csv", "r.csv.csv", "m.json", "m.csv")
    }


def test_rows_of_an_older_result_not_named_json_are_read(tmp_path):
    evaluation(tmp_path / "lr_0.001", np.linspace(0.1, 0.2, 12))
    (tmp_path / "lr_0.001.csv").rename(tmp_path / "lr_0.csv")
    assert len(read_result(tmp_path / "lr_0.001", "abs_rel").by_id) == 12


def test_a_comparison_overwrites_only_the_same_comparison_without_the_flag(measured):
    good, alone, out = measured / "good-0.json", measured / "alone.json", measured / "c.out"
    assert run(good, alone, "--out", out).exit_code == 0
    before = out.read_bytes()
    assert run(good, alone, "--out", out).exit_code == 0
    assert "c.out already exists; refusing to overwrite: choose another --out" in refused(alone, good, "--out", out)
    assert out.read_bytes() == before
    assert run(alone, good, "--out", out, "--overwrite").exit_code == 0
    assert out.read_bytes() != before


def test_text_of_a_result_cannot_move_the_cursor(measured):
    escape, line = "\x1b[2J\x9b31m\u202e", "\nprotocol forged"
    for name in ("a", "b"):
        evaluation(measured / f"{name}.json", np.linspace(0.1, 0.2, 12), source=f"{escape}{line}", name=escape)
    done = run(f"{escape}={measured}/a.json", measured / "b.json")
    assert done.exit_code == 0, done.output
    assert not {"\x1b", "\x9b", "\u202e"} & set(done.output)
    assert "\\x1b[2J\\x9b31m\\u202e\\nprotocol forged" in done.output
    assert "\nprotocol forged" not in done.output
    evaluation(measured / "c.json", np.linspace(0.1, 0.2, 12), source="plain", name=escape)
    assert "\x1b" not in refused(measured / "a.json", measured / "c.json")
