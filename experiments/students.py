"""Train and measure the students of the protocol, and write what was measured to experiments/results/.

    python experiments/students.py experiments/params.yaml             # all worlds, all seeds
    python experiments/students.py experiments/params.yaml --seeds 0-7

Finished results are kept and committed: the command goes on with what is missing, seed by seed, so that every finished
seed is a whole comparison. `--again` repeats results whose losses, students or trainer have changed since.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean
from typing import Any

import click
import torch
import yaml
from code_version import ROOT, commit, training_sha256
from measure import TestSet, measure_student, readouts_of

from pipeline.cli.console import Console
from pipeline.cli.train import train_student
from pipeline.common.fileio import write_durably
from pipeline.common.parallel import cores
from pipeline.errors import PipelineError

RESULTS = ROOT / "experiments/results"
RUNS = ROOT / "data/experiments/runs"


@dataclass(frozen=True)
class Job:
    """One student with one seed."""

    world: str
    student: str
    seed: int
    flags: dict[str, Any]
    """Flags of train-student."""
    scale: dict[str, Any]
    test: TestSet
    shifted: TestSet | None

    @property
    def result(self) -> Path:
        """File of all seeds of the student."""
        return RESULTS / self.world / f"{self.student}.json"

    @property
    def folder(self) -> Path:
        """The run."""
        return RUNS / self.world / f"{self.student}-{self.seed}"


def read_jobs(path: Path, seeds: list[int] | None) -> list[Job]:
    """Return all jobs of a file, seeds outermost."""
    content = yaml.safe_load(path.read_text())
    worlds = content["worlds"]
    jobs = []
    for seed in content["seeds"] if seeds is None else seeds:
        for world, settings in worlds.items():
            shifted = settings.get("shifted")
            jobs += [
                Job(
                    world,
                    student,
                    seed,
                    {**content["train"], **settings["train"], **_of_world(flags, world), "seed": seed},
                    settings["scale"],
                    TestSet(**settings["test"]),
                    None if shifted is None else TestSet(**shifted),
                )
                for student, flags in {**content["students"], **settings.get("students", {})}.items()
            ]
    return jobs


def _of_world(flags: dict[str, Any], world: str) -> dict[str, Any]:
    """Flags with the name of the world in place of {world}."""
    return {name: value.format(world=world) if isinstance(value, str) else value for name, value in flags.items()}


def seeds_of(text: str) -> list[int]:
    """Seeds from `0-7` or `0,1,2`."""
    first, dash, last = text.partition("-")
    return list(range(int(first), int(last) + 1)) if dash else [int(part) for part in text.split(",")]


def is_done(job: Job, code: str | None) -> bool:
    """Whether a result with the same flags exists, and, with `code`, of the same code."""
    if not job.result.exists():
        return False
    content = json.loads(job.result.read_text())
    kept = content["seeds"].get(str(job.seed))
    flags = {name: value for name, value in job.flags.items() if name != "seed"}
    if kept is None or content["flags"] != flags:
        return False
    return code is None or kept["training_sha256"] == code


def add_result(job: Job, measured: dict[str, Any]) -> None:
    """Add a seed to the file of a student; results of other flags are dropped."""
    flags = {name: value for name, value in job.flags.items() if name != "seed"}
    content: dict[str, Any] = {"flags": flags, "seeds": {}}
    if job.result.exists():
        before = json.loads(job.result.read_text())
        if before["flags"] == flags:
            content = before
    content["seeds"][str(job.seed)] = measured
    content["seeds"] = dict(sorted(content["seeds"].items(), key=lambda item: int(item[0])))
    job.result.parent.mkdir(parents=True, exist_ok=True)
    write_durably(job.result, (_compact(content) + "\n").encode())


def _compact(content: dict[str, Any]) -> str:
    """JSON with a line for each seed and readout, for readable differences between commits."""
    lines = [f'{{"flags": {json.dumps(content["flags"])}, "seeds": {{']
    for number, (seed, measured) in enumerate(content["seeds"].items()):
        lines.append(f'{"," if number else ""}"{seed}": {json.dumps(measured)}')
    return "\n".join([*lines, "}}"])


def run_job(job: Job, code: tuple[str, str]) -> dict[str, Any]:
    """Train and measure one student in this process; output goes to its log."""
    torch.set_num_threads(1)
    job.folder.parent.mkdir(parents=True, exist_ok=True)
    if job.folder.exists():  # of a result that is missing or of other flags
        shutil.rmtree(job.folder)
    arguments = ["--out", str(job.folder)]
    for name, value in job.flags.items():
        arguments += [f"--{name}", str(value)]
    with (job.folder.parent / f"{job.folder.name}.log").open("a") as log, redirect_stdout(log), redirect_stderr(log):
        try:
            train_student.main(arguments, standalone_mode=False)
        except click.ClickException as error:
            raise PipelineError(f"{job.world}/{job.student}, seed {job.seed}: {error.format_message()}") from None
    begin = time.monotonic()
    readouts = readouts_of(str(job.flags["loss"]), str(job.flags.get("head", "dpm")))
    measured = measure_student(job.folder, job.test, job.scale, job.shifted, readouts)
    trained = json.loads((job.folder / "metrics.json").read_text())
    return {
        "commit": code[0],
        "training_sha256": code[1],
        "torch": torch.__version__,
        "parameters": trained["parameters"],
        "train_seconds": trained["seconds"],
        "measure_seconds": round(time.monotonic() - begin, 1),
        **measured,
    }


@click.command()
@click.argument("params", type=click.Path(path_type=Path, exists=True))
@click.option("--seeds", help="Seeds instead of the file's, such as 0-7 or 0,1.")
@click.option("--again", is_flag=True, help="Repeat results of other losses, students or trainer.")
def main(params: Path, seeds: str | None, *, again: bool) -> None:
    """Train and measure the students of a file that have no result yet."""
    os.chdir(ROOT)
    code = commit(), training_sha256()
    jobs = read_jobs(params.absolute(), None if seeds is None else seeds_of(seeds))
    todo = [job for job in jobs if not is_done(job, code[1] if again else None)]
    pool = ProcessPoolExecutor(cores(), get_context("spawn"))
    with Console().task("students", len(jobs), "run", done=len(jobs) - len(todo)) as task:
        try:
            futures = {pool.submit(run_job, job, code): job for job in todo}
            for future in as_completed(futures):
                job, measured = futures[future], future.result()
                add_result(job, measured)
                frames = next(iter(measured["readouts"].values()))["frames"]
                task.update(1, last=f"{job.world}/{job.student}-{job.seed}", AbsRel=f"{fmean(frames['abs_rel']):.4f}")
        finally:
            pool.shutdown(cancel_futures=True)


if __name__ == "__main__":
    sys.exit(main())
