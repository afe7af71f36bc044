"""One epoch of stage two beside the same student trained on ground truth alone.

    python benchmarks/stage_two.py [--threads N] [--students NAME ...] [--rounds N]

Every row trains the same student on the same frames with the same crops, for as many steps. `si` from the store and
`truth-si` have the same loss: their ratio is what the store costs, or saves, beside reading ground truth. `ssim+si` and
`tiekd` have larger losses, which is not the store's cost, and are there to be seen. Training reads ahead in a thread
where a core is free, and in turn with the network where none is; `the other way` is the other of the two. Rounds in
turn, ratios of each round.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from overheads import RandomTeacher, machine, ratio, render, write

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
"""Of an epoch, by student: the paper's own takes a second an image here."""
BATCH = 4
SIZE_PX = (128, 416)
TRUTH = "`truth-si`: ground truth"


class TheOtherWay(Batches):
    """Read in turn where training would read ahead, and ahead where it would read in turn."""

    def __iter__(self) -> Iterator[Item]:
        """Read each when it is asked for, or before."""
        return map(self._read, self.sampler) if has_free_core() else self._from_thread()


def epoch_s(source: Source, store: Store, loss: str, student: str, out: Path, batches: type[Batches]) -> float:
    """Seconds of an epoch: all that the training loop does, without its beginning and its end."""
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
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    times: dict[tuple[str, str], list[float]] = {}
    for who in arguments.students:
        with tempfile.TemporaryDirectory() as folder:
            for what, found in measure(who, arguments.rounds, Path(folder), Console()).items():
                times[who, what] = found
    rows, data = [], []
    for (who, what), found in times.items():
        base = times[who, TRUTH]
        median, least = statistics.median(found) / FRAMES[who], min(found) / min(base)
        one = {"student": who, "targets": what, "ms": 1e3 * median, "ratio": ratio(found, base), "least_ratio": least}
        data.append(one)
        rows.append([f"`{who}`", what, f"{1e3 * median:.1f}", f"{ratio(found, base):.3f}x", f"{least:.3f}x"])
    about = {**machine(arguments.threads), "frames": FRAMES, "batch": BATCH}
    write("stage_two", about, ["student", "targets", "ms an image", "of `truth-si`", "of minima"], rows, data)


def measure(who: str, rounds: int, place: Path, progress: Progress) -> dict[str, list[float]]:
    """Seconds of an epoch by each way, a figure a round."""
    source = render(place / "scenes", FRAMES[who], SIZE_PX)
    options = CacheOptions(bins="linear:64:0.001:80", sigma_m=0.5, samples_per_shard=16)
    cache_teacher(source, "all", RandomTeacher("lean", maps=False), place / "gaussian.zarr", options)
    cache_teacher(source, "all", RandomTeacher("lean", maps=True), place / "sparse.zarr", CacheOptions())
    gaussian, sparse = open_store(place / "gaussian.zarr"), open_store(place / "sparse.zarr")
    ways = {
        TRUTH: (gaussian, "truth-si", Batches),
        "`si` from the store": (gaussian, "si", Batches),
        "`ssim+si` from the store": (gaussian, "ssim+si", Batches),
        "`tiekd`, Gaussian maps": (gaussian, "tiekd", Batches),
        "`tiekd`, stored sparse maps": (sparse, "tiekd", Batches),
        "`truth-si`, read the other way": (gaussian, "truth-si", TheOtherWay),
        "`tiekd`, stored sparse maps, read the other way": (sparse, "tiekd", TheOtherWay),
    }
    times: dict[str, list[float]] = {what: [] for what in ways}
    with progress.task(who, (rounds + 1) * len(ways), "epoch") as task:
        for number in range(rounds + 1):  # the first warms up
            for row, (what, (store, loss, batches)) in enumerate(ways.items()):
                found = epoch_s(source, store, loss, who, place / f"run-{number}-{row}", batches)
                task.update()
                if number:
                    times[what].append(found)
    return times


if __name__ == "__main__":
    main()
