"""The analysis of the experiments: verdicts, and the check of the protocol."""

from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
FRAMES, SEEDS = 80, 16


@pytest.fixture
def analysis(monkeypatch, tmp_path):
    """The module, with an empty folder of results."""
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    import analysis

    monkeypatch.setattr(analysis, "RESULTS", tmp_path)
    analysis.results.cache_clear()
    yield analysis
    analysis.results.cache_clear()


def write(analysis, student, *, abs_rel=1.0, delta1=1.0, rmse=1.0, seed_sd=0.02, seed=0):
    """Write results of a student: these times the metrics of a common base."""
    import results_file

    hard = np.random.default_rng(7).lognormal(0, 0.4, FRAMES)  # frames that are hard for every student
    random = np.random.default_rng(seed)
    seeds = {}
    for number in range(SEEDS):
        luck = 1 + seed_sd * random.normal()
        noise = 1 + 0.03 * random.normal(size=FRAMES)
        frames = {"abs_rel": 0.2 * abs_rel * hard * luck * noise, "rmse": 6 * rmse * hard * luck * noise}
        frames["delta1"] = np.clip(0.7 * delta1 / luck / noise, 0, 1)
        both = {prefix + name: list(values) for name, values in frames.items() for prefix in ("", "scaled_")}
        measured = {"commit": "c", "training_sha256": "s", "torch": "2", "store": None, "secondary": {}}
        measured["readouts"] = {"mean": {"factor": 1.0, "frames": both}}
        seeds[str(number)] = results_file.packed(measured)
    results_file.write(analysis.RESULTS / "street" / f"{student}.json", {"loss": student}, {}, seeds)


def verdict(analysis, seeds=None):
    analysis.results.cache_clear()
    one, other = analysis.reading("one"), analysis.reading("other")
    return analysis.compare("street", one, other, analysis.DECIDING if seeds is None else seeds).verdict


def test_better_in_one_metric_and_no_worse_in_the_others_is_a_win(analysis):
    write(analysis, "one", abs_rel=0.9, seed=2, seed_sd=0.001)
    write(analysis, "other", seed=1, seed_sd=0.001)
    assert verdict(analysis) == "win"
    assert verdict(analysis, analysis.REPEATING) == "win"


def test_a_gain_in_one_metric_that_another_pays_for_is_no_win(analysis):
    write(analysis, "other", seed=1, seed_sd=0.001)
    write(analysis, "one", abs_rel=0.9, delta1=0.97, seed=2, seed_sd=0.001)
    assert verdict(analysis) == "-"


def test_the_other_way_round_it_is_a_loss(analysis):
    write(analysis, "other", abs_rel=0.9, seed=1, seed_sd=0.001)
    write(analysis, "one", seed=2, seed_sd=0.001)
    assert verdict(analysis) == "loss"


def test_equal_students_neither_win_nor_lose(analysis):
    write(analysis, "other", seed=1)
    write(analysis, "one", seed=2)
    assert verdict(analysis) == "-"


def test_halves_of_one_recipe_differ_as_often_as_their_intervals_say(analysis):
    write(analysis, "one", seed=3)
    inside, total = analysis.halves("street", analysis.reading("one"), "abs_rel", 8, 200)
    assert total == 200
    assert inside / total > 0.9
    assert analysis.halves("street", analysis.reading("one"), "abs_rel", 9, 200) == (0, 0)


def test_results_of_other_code_are_marked(analysis):
    write(analysis, "one", seed=3)
    assert "have changed since" in analysis.made_with("street", ["one"])


@pytest.mark.usefixtures("analysis")  # for the path of imports
def test_the_hash_of_the_training_code_ignores_text_and_sees_code(monkeypatch, tmp_path):
    import code_version

    for name in (*code_version.TRAINING, "pipeline/losses/a.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text('"""Text."""\n\nX = 1  # why\n')
    monkeypatch.setattr(code_version, "ROOT", tmp_path)
    before = code_version.training_sha256()
    other = '"""Other text."""\nimport math\n\nX = 1\nif X > 2:\n    raise ValueError\n'
    (tmp_path / "pipeline/losses/a.py").write_text(other)
    assert code_version.training_sha256() == before
    (tmp_path / "pipeline/losses/a.py").write_text('"""Text."""\n\nX = 2\n')
    assert code_version.training_sha256() != before
