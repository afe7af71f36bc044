"""Many students that differ in a few flags: what a study file may say, that it goes on, and what its tables show."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import yaml
from click.testing import CliRunner

from pipeline.cli.main import main
from pipeline.metrics import METRICS
from pipeline.study import Study, gather, markdown, read_study, unfinished

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


def test_runs_are_the_shared_flags_with_their_own_seed_by_seed(write):
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
        ({"tables": {"a": {"first": "tiekd", "runs": ["none"]}}}, "names run 'none', expected one of tiekd, ssim, mse"),
    ],
)
def test_a_study_that_cannot_be_is_told(write, changes, match):
    with pytest.raises(ValueError, match=match):
        write(**changes)


def test_an_unknown_study_or_file_is_told_with_those_that_are_there(tmp_path, write):
    write()
    with pytest.raises(ValueError, match="study 'large' is not in .*: expected one of: small"):
        read_study(tmp_path / "params.yaml", "large")
    with pytest.raises(ValueError, match="no.yaml: .*No such file"):
        read_study(tmp_path / "no.yaml", "small")
    (tmp_path / "odd.yaml").write_text("[1, 2")
    with pytest.raises(ValueError, match="expected YAML with a section `studies`"):
        read_study(tmp_path / "odd.yaml", "small")


def test_a_difference_between_runs_is_found_with_its_size_and_chance_is_not(tmp_path, write):
    study = write()
    random = np.random.default_rng(0)
    hard = random.uniform(0.1, 0.3, 30)
    noise = random.normal(0, 0.002, (3, 3, 30))
    order = list(study.runs)

    def abs_rel(run, seed, frame):
        better = 0.9 if run == "ssim" else 1.0
        return hard[frame] * better + noise[order.index(run), seed, frame]

    write_results(tmp_path / "out", study, abs_rel)
    found = gather(study, tmp_path / "out")
    against = found["tables"]["losses"]["against_first"]
    assert against["ssim"]["difference_percent"] == pytest.approx(-10, abs=0.5)
    assert against["ssim"]["low_percent"] < -10 < against["ssim"]["high_percent"] < 0
    assert against["ssim"]["p_holm"] < 0.01
    assert against["mse"]["low_percent"] < 0 < against["mse"]["high_percent"]
    assert against["mse"]["p_holm"] > 0.05
    text = markdown(found)
    (row,) = [line for line in text.splitlines() if line.startswith("| `ssim`")]
    assert "-10." in row or "-9.9" in row
    assert "0.1250" in row


def test_seeds_that_are_good_or_bad_for_all_runs_hide_no_difference(tmp_path, write):
    study = write()
    random = np.random.default_rng(0)
    hard, luck = random.uniform(0.1, 0.3, 30), (0.0, 0.03, -0.02)
    factors = {"tiekd": 1.0, "ssim": 0.97, "mse": 1.0}
    noise = random.normal(0, 0.0005, (3, 3, 30))

    def abs_rel(run, seed, frame):
        return hard[frame] * factors[run] + luck[seed] + noise[list(factors).index(run), seed, frame]

    write_results(tmp_path / "out", study, abs_rel)
    found = gather(study, tmp_path / "out")
    against = found["tables"]["losses"]["against_first"]["ssim"]
    assert against["low_percent"] < -3 < against["high_percent"] < 0
    assert found["runs"]["ssim"]["high"] > found["runs"]["tiekd"]["low"], "alone, their intervals overlap"


def test_seeds_that_collapsed_to_the_same_depth_do_not_stop_the_table(tmp_path, write):
    study = write()
    write_results(tmp_path / "out", study, lambda _run, _seed, frame: 0.9 + frame / 100)
    found = gather(study, tmp_path / "out")
    assert found["runs"]["mse"]["seeds_sd"] == 0
    assert found["tables"]["losses"]["against_first"]["mse"]["p_holm"] == 1


def test_runs_measured_over_different_frames_are_never_compared(tmp_path, write):
    study = write()
    write_results(tmp_path / "out", study, lambda run, seed, _: 0.2 + len(run) + seed)
    path = tmp_path / "out" / "mse-1.csv"
    path.write_text(path.read_text().replace("f7,", "f77,"))
    with pytest.raises(ValueError, match="mse-1.json cannot be compared with .*tiekd-0.json.*'f7'"):
        gather(study, tmp_path / "out")


@pytest.mark.slow
def test_a_study_trains_measures_and_goes_on_after_a_failure(tmp_path, scenes, teacher_store):
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
    found = json.loads((tmp_path / "r.json").read_text())
    assert set(found["runs"]) == {"tiekd", "ssim"}
    assert found == json.loads((out / "results.json").read_text())
    assert "--no-flip" in (out / "tiekd-0.log").read_text()
    assert (tmp_path / "r.md").read_text() in done.output
    assert run().exit_code == 1  # never written over


def test_a_run_whose_flags_changed_is_made_anew(tmp_path):
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
