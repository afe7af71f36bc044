"""Commands overwrite an existing file only with --overwrite or for the same measurement."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from report_runs import make_run
from tiny_stores import make_store

from pipeline.cli.main import main
from pipeline.common.outputs import named_after, refuse_existing


def invoke(*words):
    return CliRunner().invoke(main, [str(word) for word in words])


def refused(*words):
    done = invoke(*words)
    assert done.exit_code == 1, done.output
    return done.output.replace("\n", " ")


@pytest.mark.parametrize(
    ("name", "rows"),
    [("m.json", "m.csv"), ("M.JSON", "M.csv"), ("lr_0.001", "lr_0.001.csv"), ("r.csv", "r.csv.csv"), ("a", "a.csv")],
)
def test_only_the_suffix_json_is_replaced(name, rows):
    assert named_after(Path("x") / name, ".csv") == Path("x") / rows


def test_a_folder_is_refused_also_with_overwrite(tmp_path):
    with pytest.raises(ValueError, match="is a folder: expected the name of a file for `picture`"):
        refuse_existing(tmp_path, overwrite=True, option="picture")


def test_a_broken_link_counts_as_existing(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="link already exists; refusing to overwrite: .*`overwrite`"):
        refuse_existing(tmp_path / "link")


@pytest.fixture
def student(tmp_path, scenes):
    """Arguments of a command that evaluates a student on `scenes`."""
    make_run(tmp_path / "runs" / "a")
    return ["evaluate-student", tmp_path / "runs" / "a", "--source", f"scenes:{scenes.root}", "--split", "test"]


def test_the_same_run_split_and_protocol_are_overwritten_without_a_flag(tmp_path, student):
    out = tmp_path / "m.json"
    for _ in range(2):
        done = invoke(*student, "--out", out)
        assert done.exit_code == 0, done.output


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        (["--max-depth-m", "5"], "its protocol"),
        (["--split", "train"], 'its split is "test", not "train"'),
        (["--align", "median"], "its protocol"),
    ],
    ids=["cap", "split", "align"],
)
def test_another_measurement_overwrites_a_result_only_with_the_flag(tmp_path, student, changes, why):
    out = tmp_path / "m.json"
    assert invoke(*student, "--out", out).exit_code == 0
    before = [(path.name, path.read_bytes()) for path in (out, tmp_path / "m.csv")]
    said = refused(*student, *changes, "--out", out)
    assert why in said
    assert "choose another --out, or add --overwrite" in said
    assert [(path.name, path.read_bytes()) for path in (out, tmp_path / "m.csv")] == before
    assert invoke(*student, *changes, "--out", out, "--overwrite").exit_code == 0
    assert out.read_bytes() != before[0][1]


def test_another_run_of_the_same_name_counts_as_another_measurement(tmp_path, student):
    out = tmp_path / "m.json"
    assert invoke(*student, "--out", out).exit_code == 0
    make_run(tmp_path / "other" / "a", seed=7)
    other = ["evaluate-student", tmp_path / "other" / "a", *student[2:]]
    assert "its measured" in refused(*other, "--out", out)


@pytest.mark.parametrize("name", ["m.json", "m.csv"], ids=["the-result", "its-rows"])
def test_a_file_that_is_not_a_result_is_not_overwritten(tmp_path, student, name):
    (tmp_path / name).write_text("{}")
    assert "already exists" in refused(*student, "--out", tmp_path / "m.json")
    assert (tmp_path / name).read_text() == "{}"


def test_a_result_without_its_run_needs_the_flag(tmp_path, student):
    out = tmp_path / "m.json"
    assert invoke(*student, "--out", out).exit_code == 0
    result = json.loads(out.read_text())
    del result["measured"]
    out.write_text(json.dumps(result))
    assert "its measured is null" in refused(*student, "--out", out)
    assert invoke(*student, "--out", out, "--overwrite").exit_code == 0


def test_statistics_of_a_store_are_not_overwritten(tmp_path):
    make_store(tmp_path / "s.zarr")
    for flag, name in (("--out", "s.json"), ("--picture", "s.png")):
        target = tmp_path / "figures" / name
        words = ["store", "stats", tmp_path / "s.zarr", flag, target]
        assert invoke(*words).exit_code == 0
        assert f"{name} already exists; refusing to overwrite: choose another {flag}, or add" in refused(*words)
        assert invoke(*words, "--overwrite").exit_code == 0


def test_existing_results_of_a_study_are_refused_before_training(tmp_path):
    (tmp_path / "s.yaml").write_text("studies: {s: {runs: {a: {}}}}")
    (tmp_path / "r.md").write_text("mine")
    said = refused("study", f"{tmp_path}/s.yaml:s", "--out", tmp_path / "o", "--results", tmp_path / "r.json")
    assert "r.md already exists; refusing to overwrite: choose another --results, or add --overwrite" in said
    assert {path.name for path in tmp_path.iterdir()} == {"s.yaml", "r.md"}
