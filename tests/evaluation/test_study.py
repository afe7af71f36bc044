"""Studies: their files, resuming, results and tables."""

import csv
import json
import os
import re
from dataclasses import replace

import numpy as np
import pytest
import yaml
from click.testing import CliRunner

from pipeline.cli.main import main
from pipeline.common.locks import TargetLock
from pipeline.depth.metrics import METRICS
from pipeline.evaluation.study import gather, unfinished
from pipeline.evaluation.study_file import Study, read_study
from pipeline.evaluation.study_table import markdown

SECTION = {
    "train": {"loss": "tiekd", "epochs": 2},
    "evaluate": {"split": "test"},
    "seeds": [0, 1, 2],
    "runs": {"tiekd": {}, "ssim": {"loss": "ssim"}, "mse": {"loss": "mse"}},
    "tables": {"losses": {"title": "Losses", "first": "tiekd", "runs": ["ssim", "mse"]}},
}


@pytest.fixture
def write(tmp_path):
    """Write a study file with changes, and read it."""

    def write(**changes):
        path = tmp_path / "params.yaml"
        path.write_text(yaml.safe_dump({"studies": {"small": {**SECTION, **changes}}}, sort_keys=False))
        return read_study(path, "small")

    return write


def write_results(folder, study, abs_rel):
    """Results as the commands write them; `abs_rel(run, seed, frame)` is the metric."""
    for run in study.runs:
        for seed in study.seeds:
            values = [abs_rel(run, seed, frame) for frame in range(30)]
            (folder / f"{run}-{seed}").mkdir(parents=True)
            (folder / f"{run}-{seed}" / "metrics.json").write_text(json.dumps({"seconds": 2.0, "parameters": 7}))
            metrics = dict.fromkeys(METRICS, float(np.mean(values)))
            result = {"metrics": metrics, "against_teacher": {"abs_rel": 0.125}}
            result |= {"protocol": {"name": "plain"}, "source": "scenes"}
            (folder / f"{run}-{seed}.json").write_text(json.dumps(result))
            with (folder / f"{run}-{seed}.csv").open("w", newline="") as file:
                rows = csv.writer(file)
                rows.writerow(["id", *METRICS])
                rows.writerows([[f"f{frame}", *[value] * len(METRICS)] for frame, value in enumerate(values)])


def test_runs_merge_shared_flags_and_their_own_seed_by_seed(write):
    runs = write().runs_to_do()
    assert [run.stem for run in runs[:4]] == ["tiekd-0", "ssim-0", "mse-0", "tiekd-1"]
    assert runs[1].train == {"loss": "ssim", "epochs": 2, "seed": 0}
    assert runs[1].evaluate == {"split": "test"}


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"runs": {}}, "expected a mapping with `runs`"),
        ({"train_flags": {}}, "key 'train_flags', expected one of block"),
        ({"seeds": "0,1"}, "seeds '0,1', expected a list"),
        (
            {"tables": {"a": {"first": "tiekd", "runs": [], "metric": "d1"}}},
            "metric 'd1', expected one of abs_rel, rmse",
        ),
        ({"tables": {"a": {"first": "tiekd", "runs": ["none"]}}}, "run 'none', expected one of tiekd, ssim, mse"),
    ],
)
def test_an_invalid_study_is_refused(write, changes, match):
    with pytest.raises(ValueError, match=match):
        write(**changes)


def test_an_unknown_study_or_file_is_refused(tmp_path, write):
    write()
    with pytest.raises(ValueError, match="study 'large' is not in .*: expected one of small"):
        read_study(tmp_path / "params.yaml", "large")
    with pytest.raises(ValueError, match="no.yaml: .*No such file"):
        read_study(tmp_path / "no.yaml", "small")
    (tmp_path / "odd.yaml").write_text("[1, 2")
    with pytest.raises(ValueError, match="expected YAML with a section `studies`"):
        read_study(tmp_path / "odd.yaml", "small")


def test_a_real_difference_is_significant_and_noise_is_not(tmp_path, write):
    study = write()
    random = np.random.default_rng(0)
    hard = random.uniform(0.1, 0.3, 30)
    noise = random.normal(0, 0.002, (3, 3, 30))
    order = list(study.runs)

    def abs_rel(run, seed, frame):
        better = 0.9 if run == "ssim" else 1.0
        return hard[frame] * better + noise[order.index(run), seed, frame]

    write_results(tmp_path / "out", study, abs_rel)
    results = gather(study, tmp_path / "out")
    against = results["tables"]["losses"]["against_first"]
    assert against["ssim"]["difference_percent"] == pytest.approx(-10, abs=0.5)
    assert against["ssim"]["low_percent"] < -10 < against["ssim"]["high_percent"] < 0
    assert against["ssim"]["p_holm"] < 0.01
    assert against["mse"]["low_percent"] < 0 < against["mse"]["high_percent"]
    assert against["mse"]["p_holm"] > 0.05
    text = markdown(results)
    (row,) = [line for line in text.splitlines() if line.startswith("| `ssim`")]
    assert "-10." in row or "-9.9" in row
    assert "0.1250" in row


def test_pairing_seeds_removes_their_common_effect(tmp_path, write):
    study = write()
    random = np.random.default_rng(0)
    hard, luck = random.uniform(0.1, 0.3, 30), (0.0, 0.03, -0.02)
    factors = {"tiekd": 1.0, "ssim": 0.97, "mse": 1.0}
    noise = random.normal(0, 0.0005, (3, 3, 30))

    def abs_rel(run, seed, frame):
        return hard[frame] * factors[run] + luck[seed] + noise[list(factors).index(run), seed, frame]

    write_results(tmp_path / "out", study, abs_rel)
    results = gather(study, tmp_path / "out")
    against = results["tables"]["losses"]["against_first"]["ssim"]
    assert against["low_percent"] < -3 < against["high_percent"] < 0
    assert results["runs"]["ssim"]["high"] > results["runs"]["tiekd"]["low"], "alone, their intervals overlap"


def test_collapsed_runs_with_equal_numbers_are_tabulated(tmp_path, write):
    study = write()
    write_results(tmp_path / "out", study, lambda _run, _seed, frame: 0.9 + frame / 100)
    results = gather(study, tmp_path / "out")
    assert results["runs"]["mse"]["seeds_sd"] == 0
    assert results["tables"]["losses"]["against_first"]["mse"]["p_holm"] == 1


def test_runs_over_different_frames_are_not_compared(tmp_path, write):
    study = write()
    write_results(tmp_path / "out", study, lambda run, seed, _: 0.2 + len(run) + seed)
    path = tmp_path / "out" / "mse-1.csv"
    path.write_text(path.read_text().replace("f7,", "f77,"))
    with pytest.raises(ValueError, match="mse-1.json cannot be compared with .*tiekd-0.json.*'f7'"):
        gather(study, tmp_path / "out")


@pytest.mark.slow
def test_a_study_trains_evaluates_and_resumes_after_a_failure(tmp_path, scenes, teacher_store):
    source = f"scenes:{scenes.root}"
    store = str(teacher_store)
    section = {
        "train": {"source": source, "split": "train", "store": store, "student": "lean", "epochs": 1, "batch-size": 2},
        "evaluate": {"source": source, "split": "test", "protocol": "plain"},
        "seeds": [0],
        "runs": {"tiekd": {"flip": False}, "ssim": {"loss": "sim"}},
        "tables": {"losses": {"first": "tiekd", "runs": ["ssim"]}},
    }
    path, out = tmp_path / "params.yaml", tmp_path / "out"

    def run():
        path.write_text(yaml.safe_dump({"studies": {"small": section}}))
        words = ["study", f"{path}:small", "--out", str(out), "--jobs", "2", "--results", str(tmp_path / "r.json")]
        return CliRunner().invoke(main, words)

    done = run()
    assert done.exit_code == 1
    assert "run ssim-0 of study small: loss 'sim': expected one of tiekd" in done.output
    assert not out.exists()
    weights = tmp_path / ".out.partial" / "tiekd-0" / "student.safetensors"
    before = weights.stat().st_mtime_ns
    section["runs"]["ssim"]["loss"] = "ssim"
    done = run()
    assert done.exit_code == 0, done.output
    assert (out / "tiekd-0" / "student.safetensors").stat().st_mtime_ns == before, "what was finished is kept"
    results = json.loads((tmp_path / "r.json").read_text())
    assert set(results["runs"]) == {"tiekd", "ssim"}
    assert results == json.loads((out / "results.json").read_text())
    assert "--no-flip" in (out / "tiekd-0.log").read_text()
    assert (tmp_path / "r.md").read_text() in done.output
    assert run().exit_code == 1  # the output exists


def test_a_run_whose_flags_changed_is_repeated(tmp_path):
    folder = tmp_path / ".out.partial"
    study = Study("small", {}, {}, (0,), 1, {}, {"tiekd": {"loss": "tiekd"}}, ())
    (run,) = study.runs_to_do()
    folder.mkdir()
    (folder / "tiekd-0.json").write_text("{}")
    (folder / "tiekd-0").mkdir()
    (folder / "tiekd-0.flags.json").write_bytes(run.flags_json())
    assert unfinished(study, folder) == []
    (changed,) = (other := replace(study, evaluate={"split": "test"})).runs_to_do()
    assert unfinished(other, folder) == [changed]
    assert not (folder / "tiekd-0.json").exists()
    assert not (folder / "tiekd-0").exists()


# --- malformed and malicious files ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["/etc/x", "../x", "a/b", "..", ".hidden", "", "a\\b", "a\n", "x" * 101, "dot.", " a"], ids=repr
)
def test_a_name_that_is_unsafe_as_a_file_name_is_refused(write, name):
    with pytest.raises(ValueError, match="its files have this name"):
        write(runs={name: {}, **SECTION["runs"]})
    with pytest.raises(ValueError, match="its files have this name"):
        write(teachers={name: "exact.json"})


def test_safe_names_are_accepted(write):
    names = ["ssim+si", "sigma-0.5", "w_2", "größe", "a b", "lr=0.1", "50%"]
    assert set(names) <= set(write(runs={**SECTION["runs"], **{name: {} for name in names}}).runs)


def test_a_study_removes_nothing_outside_its_folder(tmp_path):
    precious = tmp_path / "precious-0"
    precious.mkdir()
    path = tmp_path / "s.yaml"
    path.write_text(yaml.safe_dump({"studies": {"s": {"runs": {str(tmp_path / "precious"): {}}}}}))
    done = CliRunner().invoke(main, ["study", f"{path}:s", "--out", str(tmp_path / "out")])
    assert done.exit_code == 1
    assert "its files have this name" in done.output
    assert precious.is_dir()
    assert sorted(one.name for one in tmp_path.iterdir()) == ["precious-0", "s.yaml"]


def test_a_run_folder_that_is_a_link_is_removed_as_a_link(tmp_path):
    folder, precious = tmp_path / ".out.partial", tmp_path / "precious"
    for one in (folder, precious):
        one.mkdir()
    (precious / "thesis.txt").touch()
    (folder / "tiekd-0").symlink_to(precious)
    unfinished(Study("small", {}, {}, (0,), 1, {}, {"tiekd": {}}, ()), folder)
    assert (precious / "thesis.txt").exists()
    assert not (folder / "tiekd-0").exists()


DEEP = "studies: " + "[" * 500 + "]" * 500
BOMB = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))
MERGES = "a0: &a0 {x: 1}\n" + "".join(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}\n" for n in range(1, 12))


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"", "no section `studies`"),
        (b"[1, 2]", "no section `studies`"),
        (b"studies: 7", "studies: '7', expected a mapping"),
        (b"studies: {s: 7}", "expected a mapping with `runs`"),
        (b"studies: {s: {runs: [a, b]}}", "runs: .* expected a mapping"),
        (b"studies: {s: {runs: {a: 7}}}", "run 'a': '7', expected a mapping"),
        (b"studies: {s: {runs: {yes: {}}}}", "run: 'True', expected a string .in quotes"),
        (b"studies: {s: {runs: {a: {loss: [1]}}}}", "flag loss: .* expected a string, number, true or false"),
        (b"studies: {s: {runs: {a: {--loss: x}}}}", "flag '--loss', expected a name"),
        (b"studies: {s: {runs: {a: {}}, train: [x]}}", "train: .* expected a mapping"),
        (b"studies: {s: {runs: {a: {}}, block: many}}", "block 'many', expected a whole number"),
        (b"studies: {s: {runs: {a: {}}, seeds: [0, 0]}}", "duplicate seed 0"),
        (b"studies: {s: {runs: {a: {}}, tables: {t: {first: a, runs: a}}}}", "runs 'a', expected a list"),
        (b"studies: {s: {runs: {a: {}, a: {}}}}", "duplicate key 'a'"),
        (b"studies: {s: {runs: {a: {}}, teachers: {t: {}}}}", "teacher 't': .* expected a string"),
        (b"studies: \xff", "can't decode byte 0xff"),
        (b"studies: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
        (b"studies: &a [*a]", "alias .a refers to itself"),
        (DEEP.encode(), "nested deeper than 64"),
        (BOMB.encode(), "its aliases expand to more than 100000 values"),
        (MERGES.encode(), "its aliases expand to more than 100000 values"),
        (b"#" * 2**21, "more than 1048576 bytes"),
    ],
    ids=lambda value: None if isinstance(value, bytes) else value[:30],
)
def test_a_malformed_file_is_one_clear_message(tmp_path, data, match):
    path = tmp_path / "s.yaml"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=match):
        read_study(path, "s")


def test_a_study_file_that_is_a_pipe_is_refused(tmp_path):
    os.mkfifo(tmp_path / "s.yaml")
    with pytest.raises(ValueError, match="not a regular file"):
        read_study(tmp_path / "s.yaml", "s")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"runs": {"a": {"epohcs": 3}}}, "run a of study small: train-student: No such option.*--epohcs"),
        ({"runs": {"a": {"epochs": "many"}}}, "Invalid value for '--epochs'"),
        ({"evaluate": {"protocl": "plain"}}, "evaluate-student: No such option.*--protocl"),
        ({"train": {}}, "no data set to train on"),
        ({"teachers": {"t": "none.json"}}, "none.json: No such file"),
        (
            {"teachers": {"t": "odd.json"}},
            "odd.json: protocol is 'None', expected a file from `pipeline evaluate-student`",
        ),
    ],
    ids=["a flag", "a value", "an evaluation's flag", "a flag that is missing", "no teacher", "no result"],
)
def test_flags_and_teachers_are_checked_before_anything_runs(tmp_path, monkeypatch, changes, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "odd.json").write_text('{"metrics": [1]}')
    section = {
        "train": {"source": "scenes:s", "split": "train", "store": "t.zarr"},
        "evaluate": {"source": "scenes:s", "split": "test"},
        "runs": {"a": {}},
    }
    (tmp_path / "s.yaml").write_text(yaml.safe_dump({"studies": {"small": section | changes}}))
    done = CliRunner().invoke(main, ["study", "s.yaml:small", "--out", "out"])
    assert done.exit_code == 1
    assert re.search(message, done.output), done.output
    assert not (tmp_path / ".out.partial").exists()


def test_a_running_study_is_not_started_twice(tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text(
        "studies: {s: {runs: {a: {}}, train: {source: 's:s', split: a, store: a}, evaluate: {source: 's:s', split: a}}}"
    )
    with TargetLock(tmp_path / "out"):
        done = CliRunner().invoke(main, ["study", f"{path}:s", "--out", str(tmp_path / "out")])
    assert "out is being written by process" in done.output
