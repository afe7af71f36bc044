"""Progress in a log and in a terminal."""

import sys

import fakes
import pytest

from pipeline.cli import console
from pipeline.cli.console import Console, table
from pipeline.common import progress
from pipeline.store import open_store
from pipeline.train.options import TrainOptions
from pipeline.train.run import Validation, train_network


class Clock:
    """A clock that the test advances."""

    now_s = 1000.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(console, "monotonic", clock)
    monkeypatch.setattr(progress.time, "monotonic", clock)
    return clock


def work(clock, total, seconds_each, *, done=0, unit="img", **facts):
    """Run a task whose units take `seconds_each`; facts may be functions of the unit's index."""
    with Console().task("cache teacher", total, unit, done=done) as task:
        for number in range(total - done):
            clock.now_s += seconds_each(number) if callable(seconds_each) else seconds_each
            task.update(1, **{name: fact(number) if callable(fact) else fact for name, fact in facts.items()})


def test_a_log_has_a_line_after_two_seconds_then_every_ten_and_at_the_end(clock, capsys):
    work(clock, 50, 0.5)
    assert capsys.readouterr().err.splitlines() == [
        "cache teacher: 4/50 img, 2.00 img/s, 0:23 left",
        "cache teacher: 24/50 img, 2.00 img/s, 0:13 left",
        "cache teacher: 44/50 img, 2.00 img/s, 0:03 left",
        "cache teacher: 50/50 img in 0:25, 2.00 img/s",
    ]


def test_a_short_task_is_one_line(clock, capsys):
    work(clock, 3, 0.1, kb_each=12.345)
    assert capsys.readouterr().err == "cache teacher: 3/3 img in 0:00, 10.0 img/s, 12.3 KB each\n"


def test_the_rate_and_the_time_left_are_those_of_the_last_minute(clock, capsys):
    work(clock, 1200, lambda number: 1.0 if number < 100 else 0.1)
    lines = capsys.readouterr().err.splitlines()
    assert "cache teacher: 92/1200 img, 1.00 img/s, 18:28 left" in lines
    assert lines[-2] == "cache teacher: 1131/1200 img, 10.0 img/s, 0:07 left"
    assert lines[-1] == "cache teacher: 1200/1200 img in 3:30, 5.71 img/s"


def test_work_of_an_earlier_run_does_not_change_the_rate(clock, capsys):
    work(clock, 1000, 1.0, done=990)
    assert capsys.readouterr().err.splitlines()[0] == "cache teacher: 992/1000 img, 1.00 img/s, 0:08 left"


def test_waits_are_shown_as_fractions_of_the_last_minute(clock, capsys):
    waits = {}

    def waited(number):
        waits["teacher" if number < 100 else "reading"] = waits.get("teacher" if number < 100 else "reading", 0.0) + 0.9
        waits["writing"] = waits.get("writing", 0.0) + 0.1
        return waits

    work(clock, 200, 1.0, waits_for=waited)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].endswith("left, waits: teacher 90 %, writing 10 %")
    assert lines[-2].endswith("left, waits: reading 90 %, writing 10 %")
    assert lines[-1].endswith("waits: teacher 45 %, reading 45 %, writing 10 %")


def test_a_rate_in_images_is_shown_for_units_of_several_images(clock, capsys):
    work(clock, 6, 0.5, unit="step", img_each=4, epoch="1/2", loss=3.21987)
    assert capsys.readouterr().err.splitlines() == [
        "cache teacher: 4/6 step, 8.00 img/s, 0:01 left, epoch 1/2, loss 3.22",
        "cache teacher: 6/6 step in 0:03, 8.00 img/s, epoch 1/2, loss 3.22",
    ]


def test_bytes_are_shown_in_larger_units(clock, capsys):
    with Console().task("pack", 2_500_000_000, "B") as task:
        clock.now_s += 4
        task.update(1_000_000_000)
    assert capsys.readouterr().err.splitlines() == [
        "pack: 1.00 GB/2.50 GB, 250 MB/s, 0:06 left",
        "pack: 1.00 GB/2.50 GB stopped after 0:04, 250 MB/s",
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0.00"),
        (0.01234, "0.0123"),
        (99.96, "100"),
        (1234.5, "1234"),
        (7, "7"),
        ("0.5", "0.5"),
        (1e-9, "1.00e-09"),
    ],
)
def test_a_float_has_three_digits_and_other_values_are_unchanged(value, text):
    assert console._number(value) == text


@pytest.mark.parametrize(
    ("count", "text"), [(820, "0.820 KB"), (82_400, "82.4 KB"), (999_600, "1.00 MB"), (3e15, "3000 TB")]
)
def test_a_size_has_the_unit_that_fits(count, text):
    assert console._bytes(count) == text


def test_an_interrupted_task_shows_how_much_was_done(clock, capsys):
    def broken():
        with Console().task("cache teacher", 400, "img") as task:
            clock.now_s += 1
            task.update(8)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        broken()
    assert capsys.readouterr().err == "cache teacher: 8/400 img stopped after 0:01, 8.00 img/s\n"


def test_a_terminal_has_one_line_with_the_same_text(clock, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    work(clock, 4, 1.0, loss=0.5)
    printed = capsys.readouterr().err
    assert "cache teacher  50%|" in printed
    assert "2/4 img, 1.00 img/s, 0:02 left, loss 0.500" in printed
    assert "4/4 img in 0:04, 1.00 img/s, loss 0.500" in printed
    assert printed.count("\n") == 1


def test_waits_are_counted_by_name(clock):
    waits = progress.Waits()

    def slow():
        for _ in range(3):
            clock.now_s += 2
            yield

    for _ in waits.before_each("data", slow()):
        with waits.while_at("network"):
            clock.now_s += 5
    assert waits == {"data": 6.0, "network": 15.0}


def test_training_reports_images_loss_and_waits(tmp_path, scenes, teacher_store):
    class Facts(fakes.StopAt):
        def update(self, done=1, **facts):
            super().update(done, **facts)
            self.facts = facts

    progress = Facts(None)
    options = TrainOptions(student="lean", epochs=2, batch_size=3)
    store, validation = open_store(teacher_store), Validation(scenes, "test")
    train_network(scenes, "train", tmp_path / "run", options, store=store, validation=validation, progress=progress)
    facts = progress.facts
    assert (facts["img_each"], facts["epoch"]) == (3, "2/2")
    assert facts["loss"] > 0
    assert set(facts["waits_for"]) == {"data", "network", "validation"}
    assert all(seconds > 0 for seconds in facts["waits_for"].values())


def test_names_in_notes_progress_and_tables_are_escaped(capsys):
    with Console().task("task", 2, "img") as task:
        task.update(2, last="\x1b[2J")
    Console().note("\x1b]0;title\x07")
    printed = capsys.readouterr().err
    assert "\x1b" not in printed
    assert "\\x1b[2J" in printed
    lines = table(["", "a"], [["x\x1b\ny", "1"], ["z", "2"]]).splitlines()
    assert lines[2:] == ["x\\x1b\\ny  1", "z         2"]
