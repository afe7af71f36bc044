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

from pipeline import train
from pipeline.batches import Batches, a_core_is_free
from pipeline.cache import cache_teacher
from pipeline.plan import CacheOptions
from pipeline.recipe import TrainOptions
from pipeline.store import open_store

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.dataset import Item
    from pipeline.sources.base import Source
    from pipeline.store import Store

FRAMES, BATCH = 24, 4
SIZE_PX = (128, 416)


class TheOtherWay(Batches):
    """Read in turn where training would read ahead, and ahead where it would read in turn."""

    def __iter__(self) -> Iterator[Item]:
        """Read each when it is asked for, or before."""
        return map(self._read, self.order) if a_core_is_free() else self._in_a_thread()


def epoch_s(source: Source, store: Store, loss: str, student: str, out: Path, batches: type[Batches]) -> float:
    """Seconds of an epoch: all that the training loop does, without its beginning and its end."""
    options = TrainOptions(student=student, loss=loss, epochs=1, batch_size=BATCH)
    train.Batches = batches
    try:
        return float(train.train_network(source, "all", out, options, store=store)["seconds"])
    finally:
        train.Batches = Batches


def main() -> None:
    """Measure, print a table, and write JSON and Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--students", nargs="+", default=["lean", "mobilenetv2-lean"])
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        source = render(place / "scenes", FRAMES, SIZE_PX)
        options = CacheOptions(bins="linear:64:0.001:80", sigma_m=0.5, samples_per_shard=16)
        cache_teacher(source, "all", RandomTeacher("lean", maps=False), place / "gaussian.zarr", options)
        cache_teacher(source, "all", RandomTeacher("lean", maps=True), place / "sparse.zarr", CacheOptions())
        gaussian, sparse = open_store(place / "gaussian.zarr"), open_store(place / "sparse.zarr")
        ways = {
            "`truth-si`: ground truth": (gaussian, "truth-si", Batches),
            "`si` from the store": (gaussian, "si", Batches),
            "`ssim+si` from the store": (gaussian, "ssim+si", Batches),
            "`tiekd`, Gaussian maps": (gaussian, "tiekd", Batches),
            "`tiekd`, stored sparse maps": (sparse, "tiekd", Batches),
            "`truth-si`, read the other way": (gaussian, "truth-si", TheOtherWay),
            "`tiekd`, stored sparse maps, read the other way": (sparse, "tiekd", TheOtherWay),
        }
        times: dict[tuple[str, str], list[float]] = {(who, what): [] for who in arguments.students for what in ways}
        for number in range(arguments.rounds + 1):  # the first warms up
            for who in arguments.students:
                for row, (what, (store, loss, batches)) in enumerate(ways.items()):
                    found = epoch_s(source, store, loss, who, place / f"run-{who}-{number}-{row}", batches)
                    if number:
                        times[who, what].append(found)
    rows, data = [], []
    for (who, what), found in times.items():
        base = times[who, "`truth-si`: ground truth"]
        median, least = statistics.median(found) / FRAMES, min(found) / min(base)
        one = {"student": who, "targets": what, "ms": 1e3 * median, "ratio": ratio(found, base), "least_ratio": least}
        data.append(one)
        rows.append([f"`{who}`", what, f"{1e3 * median:.1f}", f"{ratio(found, base):.3f}x", f"{least:.3f}x"])
    about = {**machine(arguments.threads), "frames": FRAMES, "batch": BATCH}
    write("stage_two", about, ["student", "targets", "ms an image", "of `truth-si`", "of minima"], rows, data)


if __name__ == "__main__":
    main()
