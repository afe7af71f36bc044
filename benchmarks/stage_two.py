"""Compare an epoch of stage two with an epoch of the same student on ground truth alone.

    python benchmarks/stage_two.py [--threads N] [--students NAME ...] [--rounds N] [--out FILE.json]

Every row trains the same student on the same frames and crops for the same number of steps. `si` from the store and
`truth-si` have the same loss, so their ratio is the cost of the store. `ssim+si` and `tiekd` also have a more expensive
loss. Training reads ahead in a thread if a core is free, and in turn with the network otherwise; rows with "other
reading" do the opposite. Rows run in turn, and ratios are per round.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from common import RESULTS, RandomTeacher, machine, markdown, median_ratio, render, write

from pipeline.cache.plan import CacheOptions
from pipeline.cache.run import cache_teacher
from pipeline.cli.console import Console
from pipeline.store import open_store
from pipeline.train import trainer
from pipeline.train.loader import Batches, has_free_core
from pipeline.train.options import TrainOptions
from pipeline.train.run import train_network

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.common.progress import Progress
    from pipeline.sources.base import Source
    from pipeline.store import Store
    from pipeline.train.dataset import Item

FRAMES = {"lean": 24, "mobilenetv2-lean": 24, "mobilenetv2": 8}
"""Frames per epoch by student; mobilenetv2 takes more than a second per image on one core."""
BATCH = 4
SIZE_PX = (128, 416)
TRUTH = "`truth-si`: ground truth"


class OtherReading(Batches):
    """Read in turn where training would read ahead, and the reverse."""

    def __iter__(self) -> Iterator[Item]:
        return map(self._read, self.sampler) if has_free_core() else self._from_thread()


def epoch_s(source: Source, store: Store, loss: str, student: str, out: Path, batches: type[Batches]) -> float:
    """Return the seconds of one epoch of the training loop, without setup and saving."""
    options = TrainOptions(student=student, loss=loss, epochs=1, batch_size=BATCH)
    trainer.Batches = batches
    try:
        return float(train_network(source, "all", out, options, store=store)["seconds"])
    finally:
        trainer.Batches = Batches


def main() -> None:
    """Measure, print a table, and write JSON and Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--students", nargs="+", default=list(FRAMES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS / "stage_two.json")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    times: dict[tuple[str, str], list[float]] = {}
    for student in arguments.students:
        with tempfile.TemporaryDirectory() as folder:
            for targets, times_s in measure(student, arguments.rounds, Path(folder), Console()).items():
                times[student, targets] = times_s
    rows = []
    for (student, targets), times_s in times.items():
        base_s = times[student, TRUTH]
        row = {"student": student, "targets": targets, "ms": 1e3 * statistics.median(times_s) / FRAMES[student]}
        rows.append(row | {"ratio": median_ratio(times_s, base_s), "least_ratio": min(times_s) / min(base_s)})
    table = markdown(
        ["student", "targets", "ms per image", "ratio to `truth-si`", "ratio of minima"],
        [
            [f"`{row['student']}`", row["targets"], f"{row['ms']:.1f}"]
            + [f"{row[key]:.3f}x" for key in ("ratio", "least_ratio")]
            for row in rows
        ],
    )
    facts = {**machine(arguments.threads), "frames": FRAMES, "batch": BATCH}
    print(facts, "", table, sep="\n")
    write(arguments.out, table, {**facts, "rows": rows})


def measure(student: str, rounds: int, folder: Path, progress: Progress) -> dict[str, list[float]]:
    """Return the seconds of an epoch by kind of targets, one figure per round."""
    source = render(folder / "scenes", FRAMES[student], SIZE_PX)
    options = CacheOptions(bins="linear:64:0.001:80", sigma_m=0.5, samples_per_shard=16)
    cache_teacher(source, "all", RandomTeacher("lean", maps=False), folder / "gaussian.zarr", options)
    cache_teacher(source, "all", RandomTeacher("lean", maps=True), folder / "sparse.zarr", CacheOptions())
    gaussian, sparse = open_store(folder / "gaussian.zarr"), open_store(folder / "sparse.zarr")
    targets = {
        TRUTH: (gaussian, "truth-si", Batches),
        "`si` from the store": (gaussian, "si", Batches),
        "`ssim+si` from the store": (gaussian, "ssim+si", Batches),
        "`tiekd`, Gaussian maps": (gaussian, "tiekd", Batches),
        "`tiekd`, stored sparse maps": (sparse, "tiekd", Batches),
        "`truth-si`, other reading": (gaussian, "truth-si", OtherReading),
        "`tiekd`, stored sparse maps, other reading": (sparse, "tiekd", OtherReading),
    }
    times: dict[str, list[float]] = {name: [] for name in targets}
    with progress.task(student, (rounds + 1) * len(targets), "epoch") as task:
        for number in range(rounds + 1):  # the first warms up
            for row, (name, (store, loss, batches)) in enumerate(targets.items()):
                seconds = epoch_s(source, store, loss, student, folder / f"run-{number}-{row}", batches)
                task.update()
                if number:
                    times[name].append(seconds)
    return times


if __name__ == "__main__":
    main()
