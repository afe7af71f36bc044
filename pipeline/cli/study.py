"""`pipeline study`."""

from __future__ import annotations

import os
import shlex
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import PipelineError
from .console import Console, echo
from .options import OUT, OVERWRITE, PipelineCommand, option

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..evaluation.study_file import Run, Study


@click.command(cls=PipelineCommand)
@click.argument("study_name", metavar="FILE:NAME")
@OUT
@option("--jobs", type=int, help="Parallel runs; one per core, or per GPU, if omitted.")
@option("--seeds", help="Seeds instead of the file's, such as 0,1,2,3,4.")
@option("--results", type=click.Path(path_type=Path), help="Also write the results here, as JSON and as tables (.md).")
@OVERWRITE
def study(
    study_name: str, out: Path, jobs: int | None, seeds: str | None, results: Path | None, *, overwrite: bool
) -> None:
    """Train, evaluate and compare many students that differ in a few flags.

    \b
    Example: pipeline study experiments/params.yaml:street --out data/experiments/street

    The file has the flags of train-student and evaluate-student for each run. Runs are parallel processes that divide
    the cores. Run the same command again to continue an interrupted study with its unfinished runs.
    """
    from ..common.outputs import locked_target, named_after, publish, refuse_existing, refuse_existing_target
    from ..common.own_files import make_own_folder
    from ..evaluation.study import read_teacher

    chosen = _read(study_name, seeds)
    refuse_existing_target(out)
    if results is not None:
        refuse_existing(results, named_after(results, ".md"), overwrite=overwrite, option="results")
    _check_flags(chosen)
    for file in chosen.teachers.values():
        read_teacher(Path(file))
    partial = out.with_name(f".{out.name}.partial")
    with locked_target(out, Console()):
        make_own_folder(partial)
        _run_all(chosen, partial, jobs)
        text = _write_results(chosen, partial, results)
        publish(partial, out)
    echo(text)


def _read(study_name: str, seeds: str | None) -> Study:
    """Read the study FILE:NAME. Raises PipelineError."""
    from ..evaluation.study_file import read_study

    path, _, name = study_name.rpartition(":")
    if not path:
        raise PipelineError(f"study {study_name!r}: expected FILE:NAME, such as experiments/params.yaml:street")
    chosen = read_study(Path(path), name)
    if seeds is None:
        return chosen
    return replace(chosen, seeds=tuple(_whole(part) for part in seeds.split(",")))


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise PipelineError(f"--seeds {text!r}: expected whole numbers, such as 0,1,2") from None


def _write_results(chosen: Study, folder: Path, results: Path | None) -> str:
    """Write the results of all runs to the folder, and to `results`; returns the tables."""
    from ..common.fileio import open_regular, pretty_json, write_durably
    from ..common.outputs import named_after
    from ..evaluation.study import gather
    from ..evaluation.study_table import markdown

    names = {teacher: f"{teacher}.teacher.json" for teacher in chosen.teachers}
    for teacher, file in chosen.teachers.items():
        with open_regular(file) as result:
            write_durably(folder / names[teacher], result.read())
    gathered = gather(replace(chosen, teachers=names), folder)
    text = markdown(gathered)
    for target in [folder / "results.json", *([results] if results else [])]:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_durably(target, pretty_json(gathered))
        write_durably(named_after(target, ".md"), text.encode())
    return text


def _check_flags(chosen: Study) -> None:
    """Parse the flags of every run, so that a wrong one fails before hours of work. Raises PipelineError."""
    from .data_set import check_usage
    from .evaluate import evaluate_student
    from .train import train_student

    for run in chosen.runs_to_do():
        for command, arguments in (
            (train_student, [*_flags(run.train), "--out", run.stem]),
            (evaluate_student, [run.stem, *_flags(run.evaluate), "--out", f"{run.stem}.json"]),
        ):
            try:
                context = command.make_context(command.name, arguments)
                if command is train_student:
                    check_usage(**context.params)
            except click.ClickException as error:
                raise PipelineError(
                    f"run {run.name} of study {chosen.name}: {command.name}: {error.format_message()}"
                ) from error


def _run_all(chosen: Study, folder: Path, jobs: int | None) -> None:
    """Run the unfinished runs in parallel. Raises PipelineError for the first that fails; finished runs are kept."""
    import torch

    from ..common.parallel import cores as usable_cores
    from ..evaluation.study import unfinished

    gpus = torch.cuda.device_count()
    cores = usable_cores()
    jobs = jobs or gpus or cores
    if jobs < 1:
        raise PipelineError(f"--jobs {jobs}: expected 1 or more")
    runs, todo = chosen.runs_to_do(), unfinished(chosen, folder, Console())
    context = get_context("spawn")  # torch's threads do not survive a fork
    numbers = context.Queue()
    for number in range(jobs):
        numbers.put(number)
    pool = ProcessPoolExecutor(jobs, context, _begin_worker, (numbers, max(1, cores // jobs), gpus))
    with Console().task(f"study {chosen.name}", len(runs), "run", done=len(runs) - len(todo)) as task:
        try:
            futures = {pool.submit(_run_one, run, folder): run for run in todo}
            for future in as_completed(futures):
                run = futures[future]
                try:
                    abs_rel = future.result()
                except BrokenProcessPool as error:
                    raise PipelineError(
                        f"a run of study {chosen.name} was killed, probably for lack of memory: run the same command "
                        "again with fewer --jobs to continue"
                    ) from error
                except ValueError as error:
                    raise PipelineError(f"run {run.stem} of study {chosen.name}: {error}") from error
                task.update(1, last=run.stem, AbsRel=f"{abs_rel:.4f}")
        finally:
            pool.shutdown(cancel_futures=True)


def _begin_worker(numbers: Any, threads: int, gpus: int) -> None:
    """Set the number of threads of a worker process, and its GPU if there is one."""
    number = numbers.get()
    if gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = str(number % gpus)
    import torch

    torch.set_num_threads(threads)


def _run_one(run: Run, folder: Path) -> float:
    """Train and evaluate one student in this process; returns its AbsRel. Output goes to STEM.log."""
    from ..common.own_files import open_to_append
    from ..evaluation.result import EvaluationResult
    from .evaluate import evaluate_student
    from .train import train_student

    target, result = folder / run.stem, folder / f"{run.stem}.json"
    with (
        os.fdopen(open_to_append(folder / f"{run.stem}.log"), "a", encoding="utf-8") as log,
        redirect_stdout(log),
        redirect_stderr(log),
    ):
        try:
            if not target.exists():
                _call(train_student, [*_flags(run.train), "--out", str(target)])
            _call(evaluate_student, [str(target), *_flags(run.evaluate), "--out", str(result), "--overwrite"])
        except click.ClickException as error:
            # click's errors hold the command, which cannot be sent to another process
            raise PipelineError(error.format_message()) from None
    return EvaluationResult.load(result, rows=False).metrics["abs_rel"]


def _call(command: click.Command, arguments: list[str]) -> None:
    """Run a command as the command line does. Raises ClickException."""
    echo(f"$ {command.name} {shlex.join(arguments)}", err=True)
    status = command.main(arguments, standalone_mode=False)
    if status:
        raise click.ClickException(f"interrupted (status {status}); run the same command again to continue")


def _flags(values: Mapping[str, Any]) -> list[str]:
    """Return the flags of a mapping, as DVC unpacks a section of params.yaml; false is --no-NAME."""
    flags = []
    for name, value in values.items():
        if isinstance(value, bool):
            flags.append(f"--{name}" if value else f"--no-{name}")
        else:
            flags += [f"--{name}", str(value)]
    return flags
