"""Kill stage one repeatedly, resume it, and compare every finished store with an uninterrupted one.

    python tests/faults/kill.py [--kills 200] [--workers 1] [--images | --changed-code]

A process that has imported everything forks a child for each try, which runs `cache_teacher` and gets SIGKILL at a
random moment; some get it just before the store is renamed to its final path. The next child resumes, and may be killed
too. Kills are survived if the store has the bytes of an uninterrupted run, nothing else is left next to it, and another
run refuses to overwrite it. `--images` kills `cache_images` instead. `--changed-code` uses a `python:` teacher and
changes its module between runs: the store must have the bytes of the code that finished it.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

import fakes
import torch
from tiny_stores import folder_bytes

from pipeline.cache.images import cache_images
from pipeline.cache.plan import CacheOptions
from pipeline.cache.run import cache_teacher
from pipeline.sources.registry import open_source
from pipeline.teachers.options import TeacherOptions
from pipeline.teachers.registry import open_teacher

FRAMES = 8
ARRAYS = {False: 4, True: 1}
"""Number of sharded arrays: depth, gap, weight and tail of a sparse store; one of an image cache (True)."""
PHASES = (
    "before there is a staging directory",
    "the teacher at work, before the next shard",
    "inside a shard",
    "between a shard and the journal",
    "finishing: shards are read back",
    "finishing: rows and metadata",
    "finishing: manifest is there, name is not",
    "after the rename, staging is there",
    "after the rename, staging is gone",
)


MODULE = """
class Code:
    card = {"name": "code", "depth_space": "metric_m", "weights": []}

    def __call__(self, images):
        return OFFSET + images.mean(1)
"""
OFFSETS_M = (2, 5)


class Trials:
    """Runs of `cache_teacher` or `cache_images` over a small source, in child processes."""

    def __init__(self, folder, workers, *, images, changed_code=False):
        self.images = images
        self.module = folder / "killed_teacher.py" if changed_code else None
        self.scenes = fakes.make_scenes_folder(folder / "scenes", FRAMES, (16, 32))
        self.workers = workers
        self.target = folder / "out" / "s.zarr"
        self.log = folder / "log"

    def start(self):
        """Fork a run; its exit status is 0 if it finished, 4 if the store existed, 3 for any other error."""
        child = os.fork()
        if child:
            return child
        status = 3
        try:
            torch.set_num_threads(1)
            source = open_source(f"scenes:{self.scenes}")
            if self.images:
                cache_images(source, "all", self.target, samples_per_shard=1, workers=self.workers)
            else:
                bins = {"bins": "nyu", "sigma_m": 0.2} if self.module else {}
                options = CacheOptions(samples_per_shard=1, batch_size=1, workers=self.workers, **bins)
                cache_teacher(source, "all", self.teacher(), self.target, options)
            status = 0
        except ValueError as error:
            status = 4 if "already exists; refusing to overwrite" in str(error) else 3
            self.log.write_text(traceback.format_exc())
        except BaseException:  # noqa: BLE001 - the child must not continue as its parent
            self.log.write_text(traceback.format_exc())
        finally:
            os._exit(status)

    def teacher(self):
        """Return the teacher of a run. The child imports the module, and so its current code."""
        if self.module is None:
            return fakes.factory_with_dpm()
        os.chdir(self.module.parent)
        return open_teacher("python:killed_teacher:Code", device=torch.device("cpu"), options=TeacherOptions())

    def write_code(self, version):
        """Change the teacher's module, if there is one."""
        if self.module is not None:
            self.module.write_text(MODULE.replace("OFFSET", str(OFFSETS_M[version])))

    def finish(self):
        """Run without a kill; returns the exit status."""
        return os.waitstatus_to_exitcode(os.waitpid(self.start(), 0)[1])

    def kill(self, wait):
        """Start a run and kill it after `wait(child)`; returns the exit status, -9 if it was still running."""
        child = self.start()
        wait(child)
        os.kill(child, signal.SIGKILL)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    def phase(self):
        """Return the phase in which the last run was killed, from the files it left."""
        staging = next(self.target.parent.glob(".s.zarr.*.staging"), None) if self.target.parent.exists() else None
        if self.target.exists():
            return PHASES[7 if staging else 8]
        if staging is None:
            return PHASES[0]
        store, journal = staging / "store", staging / "journal"
        noted = journal.read_bytes().count(b"\n") if journal.exists() else 0
        if noted == FRAMES:
            if (store / "MANIFEST.json").exists():
                return PHASES[6]
            return PHASES[5 if (store / "zarr.json").exists() else 4]
        # Runs write their shards in order, with any number of workers.
        files = [path for path in store.glob(f"**/c/{noted}/**/*") if path.is_file()]
        whole = [path for path in files if path.suffix != ".tmp"]
        if len(whole) == ARRAYS[self.images]:
            return PHASES[3]
        return PHASES[2 if list(store.glob(f"*/c/{noted}")) else 1]

    def fault(self, reference):
        """Return what is wrong with the finished store, or None."""
        if folder_bytes(self.target) != reference:
            return "other bytes than those of an uninterrupted run"
        if self.finish() != 4:
            return f"a run over a finished store was not refused: {self.log.read_text()}"
        left = [path.name for path in self.target.parent.iterdir() if path != self.target]
        if self.module is not None:  # unfinished work of the other code is never touched
            left = [name for name in left if not name.endswith(".staging")]
        return f"{left} were left" if left else None


def waiting(trials, chance, whole_s):
    """Return a function that waits for the kill: until any moment of the run, or one near its end."""

    def until(there):
        def wait(child):
            while not there() and os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                time.sleep(0)
            time.sleep(chance.uniform(0, 0.002))

        return wait

    kind = chance.random()
    if kind < 0.1:
        return until(trials.target.exists)
    if kind < 0.2:
        return until(lambda: any(trials.target.parent.glob(".s.zarr.*.staging/store/MANIFEST.json")))
    delay_s = chance.uniform(0, whole_s)
    return lambda _: time.sleep(delay_s)


def main():
    """Run the kills; exits with 1 if a store did not survive."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--workers", type=int, default=1, help="threads that read and encode")
    parser.add_argument("--images", action="store_true", help="kill cache_images")
    parser.add_argument("--changed-code", action="store_true", help="change the code of a python: teacher between runs")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    chance = random.Random(asked.seed)  # noqa: S311 - nothing is secret here
    kills, survived, pending, phases, faults = 0, 0, 0, Counter(), []
    with tempfile.TemporaryDirectory() as folder:  # on a real disk: most of the time goes into its syncs
        trials = Trials(Path(folder), asked.workers, images=asked.images, changed_code=asked.changed_code)
        references = []
        for version in range(len(OFFSETS_M) if asked.changed_code else 1):
            trials.write_code(version)
            begin = time.monotonic()
            assert trials.finish() == 0, trials.log.read_text()
            whole_s = time.monotonic() - begin
            references.append(folder_bytes(trials.target))
            shutil.rmtree(trials.target.parent)
        while kills < asked.kills or pending:
            version = chance.randrange(len(references))
            trials.write_code(version)
            if kills < asked.kills and chance.random() < 0.7:
                status = trials.kill(waiting(trials, chance, whole_s))
                if status == -signal.SIGKILL:
                    kills, pending = kills + 1, pending + 1
                    phases[trials.phase()] += 1
            else:
                status = trials.finish()
            fault = trials.log.read_text() if status not in {0, -signal.SIGKILL} else None
            if fault is None and trials.target.exists():
                fault = trials.fault(references[version])
            elif fault is None:
                continue
            survived += 0 if fault else pending
            faults += [fault] if fault else []
            pending = 0
            shutil.rmtree(trials.target.parent)
    print(f"{survived} of {kills} kills survived, {asked.workers} workers; a whole run took {whole_s:.2f} s")  # noqa: T201 - a script for maintainers
    for phase in PHASES:
        print(f"{phases[phase]:5d}  {phase}")  # noqa: T201 - as above
    for fault in faults[:20]:
        print(fault)  # noqa: T201 - as above
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
