"""Train and measure the students of the protocol, and write what was measured to experiments/results/.

    python experiments/students.py experiments/params.yaml             # all worlds, all seeds
    python experiments/students.py experiments/params.yaml --seeds 0-7

Finished results are kept and committed: the command goes on with what is missing, seed by seed, so that every finished
seed is a whole comparison. `--again` repeats results of other losses, students or trainer.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean
from typing import Any

import click
import results_file
import torch
import yaml
from code_version import ROOT, commit, training_sha256
from measure import TestSet, measure_student, readouts_of

from pipeline.cli.console import Console
from pipeline.cli.train import train_student
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


def _shared_flags(job: Job) -> dict[str, Any]:
    return {name: value for name, value in job.flags.items() if name != "seed"}


def _measured_on(job: Job) -> dict[str, Any]:
    sets = {"test": job.test, "shifted": job.shifted}
    return {"scale": job.scale, **{name: None if chosen is None else asdict(chosen) for name, chosen in sets.items()}}


def _is_of(job: Job) -> bool:
    """Whether the file of results is of the same flags and frames."""
    content = results_file.read(job.result)
    return bool(content["flags"] == _shared_flags(job) and content["measured_on"] == _measured_on(job))


def is_done(job: Job, code: str | None) -> bool:
    """Whether a result with the same flags exists, and, with `code`, of the same code."""
    kept = results_file.read(job.result)["seeds"].get(str(job.seed)) if _is_of(job) else None
    if kept is None:
        return False
    return code is None or kept["training_sha256"] == code


def add_result(job: Job, measured: dict[str, Any]) -> None:
    """Add a seed to the file of a student; results of other flags are dropped."""
    seeds = results_file.read(job.result)["seeds"] if _is_of(job) else {}
    seeds = {**seeds, str(job.seed): results_file.packed(measured)}
    results_file.write(job.result, _shared_flags(job), _measured_on(job), seeds)


def _is_trained(job: Job) -> bool:
    """Whether the run of a job is there, trained with its flags."""
    kept = results_file.read(job.result)
    return (job.folder / "metrics.json").exists() and bool(kept["flags"] == _shared_flags(job))


def run_job(job: Job, code: tuple[str, str], *, train: bool) -> dict[str, Any]:
    """Train (if asked) and measure one student in this process; output goes to its log."""
    torch.set_num_threads(1)
    if train:
        _train(job)
    begin = time.monotonic()
    flags = job.flags
    readouts = readouts_of(str(flags["loss"]), str(flags.get("head", "dpm")), flags.get("readout"))
    measured = measure_student(job.folder, job.test, job.scale, job.shifted, readouts)
    trained = json.loads((job.folder / "metrics.json").read_text())
    store = json.loads((job.folder / "config.json").read_text())["store"]
    return {
        "commit": code[0],
        "training_sha256": code[1],
        "torch": torch.__version__,
        "store": None if store is None else store["manifest_sha256"][:16],
        "parameters": trained["parameters"],
        "train_seconds": trained["seconds"],
        "measure_seconds": round(time.monotonic() - begin, 1),
        **measured,
    }


def _train(job: Job) -> None:
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


@click.command()
@click.argument("params", type=click.Path(path_type=Path, exists=True))
@click.option("--seeds", help="Seeds instead of the file's, such as 0-7 or 0,1.")
@click.option("--again", is_flag=True, help="Repeat results of other losses, students or trainer.")
@click.option("--measure", help="Only measure again the runs of this student that are in data/experiments/runs.")
def main(params: Path, seeds: str | None, measure: str | None, *, again: bool) -> None:
    """Train and measure the students of a file that have no result yet."""
    os.chdir(ROOT)
    code = commit(), training_sha256()
    jobs = read_jobs(params.absolute(), None if seeds is None else seeds_of(seeds))
    if measure is None:
        todo = [job for job in jobs if not is_done(job, code[1] if again else None)]
    else:
        todo = [job for job in jobs if job.student == measure and _is_trained(job)]
    pool = ProcessPoolExecutor(cores(), get_context("spawn"))
    with Console().task("students", len(jobs), "run", done=len(jobs) - len(todo)) as task:
        try:
            futures = {pool.submit(run_job, job, code, train=measure is None): job for job in todo}
            for future in as_completed(futures):
                job, measured = futures[future], future.result()
                if measure is not None:  # of the code that trained it
                    before = results_file.read(job.result)["seeds"].get(str(job.seed), {})
                    measured |= {key: before[key] for key in ("commit", "training_sha256", "torch") if key in before}
                add_result(job, measured)
                frames = next(iter(measured["readouts"].values()))["frames"]
                task.update(1, last=f"{job.world}/{job.student}-{job.seed}", AbsRel=f"{fmean(frames['abs_rel']):.4f}")
        finally:
            pool.shutdown(cancel_futures=True)


if __name__ == "__main__":
    sys.exit(main())
