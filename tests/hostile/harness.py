"""Opens every case in a separate process and judges the result: `python tests/hostile/harness.py [PART OF A NAME]`.

A case passes if it ends in one ValueError of this package with the words of the case in a printable message, within the
limits of time and memory, and if no other file was written. The parent imports everything once and forks, so a case
takes milliseconds.
"""

from __future__ import annotations

import faulthandler
import json
import os
import re
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "support"), str(HERE.parents[1])]

import torch  # noqa: E402 - after the path
from hostile import make  # noqa: E402
from range_server import Server  # noqa: E402

import pipeline  # noqa: E402
from pipeline.networks.saved_run import load_run  # noqa: E402
from pipeline.sources.readers.arrays import read_array  # noqa: E402
from pipeline.sources.readers.hdf5 import read_hdf5  # noqa: E402
from pipeline.sources.readers.images import read_png16, read_rgb  # noqa: E402
from pipeline.sources.registry import open_source  # noqa: E402
from pipeline.store import open_store  # noqa: E402
from pipeline.store.images.reader import open_images  # noqa: E402
from pipeline.store.tools.archive import unpack_store  # noqa: E402
from pipeline.store.tools.info import describe  # noqa: E402
from pipeline.store.tools.open_any import open_either  # noqa: E402
from pipeline.store.tools.verify import verify_store  # noqa: E402
from pipeline.teachers import predictions  # noqa: E402
from pipeline.teachers.options import TeacherOptions  # noqa: E402

LIMIT_S = 2.0
"""Limit of CPU time, since the machine may be busy."""
HANG_S = 15.0
"""Limit of wall time: waiting for a pipe uses no CPU time."""
LIMIT_MB = 500
PACKAGE = str(Path(pipeline.__file__).parent)


def read(folder: Path) -> None:
    """Open a store and read all samples."""
    store = open_store(folder / "s.zarr")
    for number, name in enumerate(store.ids):
        assert store.index_of(name) == number
        store.depth(name)
        store.dpm(name)


def read_images(folder: Path) -> None:
    """Open an image cache and read all of it, as training does."""
    cache = open_images(folder / "s.zarr")
    cache.numbers(["a/000"])
    assert cache.image_sha256.shape == (len(cache), 32)
    for number in range(len(cache)):
        cache.image(number)


def verify(folder: Path) -> list[str]:
    """Return the damage that `pipeline store verify` prints."""
    return [str(damage) for damage in verify_store(folder / "s.zarr")]


def source(kind: str, folder: Path, split: str = "train") -> None:
    """Read a whole split."""
    opened = open_source(f"{kind}:{folder}/root")
    for sample in opened.samples(split):
        opened.read_image(sample)
        opened.read_truth_m(sample)


def predict(folder: Path) -> None:
    """Read a prediction."""
    options = TeacherOptions(metres_per_unit=1.0)
    predictions.load(str(folder / "predictions"), torch.device("cpu"), options).predict(None, ["a"])


def read_url(folder: Path) -> None:
    """Open a store by URL and read all samples."""
    server = Server(folder)
    os.environ |= {"TIEKD_STORE_CACHE": str(folder / "out"), "NO_PROXY": "127.0.0.1"}
    try:
        store = open_store(server.url("s.zarr"))
        for number in range(len(store)):
            store.dpm(number)
    finally:
        server.shutdown()
        shutil.rmtree(folder / "out", ignore_errors=True)


WAYS = {
    "read": read,
    "images": read_images,
    "verify": verify,
    "url": read_url,
    "info": lambda folder: describe(open_either(folder / "s.zarr")) and None,
    "dpm": lambda folder: open_store(folder / "s.zarr").dpm(0),
    "image": lambda folder: read_rgb(str(folder / "a.png")),
    "depth": lambda folder: read_png16(str(folder / "a.png")),
    "folder": lambda folder: source("folder", folder),
    "kitti": lambda folder: source("kitti", folder),
    "nyu": lambda folder: source("nyu", folder, "all"),
    "nyu-split": lambda folder: source("nyu", folder, "test"),
    "diode": lambda folder: source("diode", folder),
    "hypersim": lambda folder: source("hypersim", folder),
    "array": lambda folder: read_array(next(folder.glob("a.*")), "depth") is None,
    "hdf5": lambda folder: read_hdf5(str(folder / "a.h5"), "x", 2, "depth") is None,
    "predictions": predict,
    "run": lambda folder: load_run(folder / "run"),
    "archive": lambda folder: unpack_store(folder / "s.zip", folder / "out" / "s.zarr"),
}


@dataclass(frozen=True)
class Outcome:
    """Result of a case."""

    name: str
    way: str
    fault: str
    """Description of a failure; empty if the case passed."""
    seconds: float
    megabytes: float
    message: str


def peak_mb() -> float:
    """Return the peak memory of this process."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1024


def around(folder: Path) -> dict[str, tuple]:
    """Return mode, size and time of everything in a folder, without following links."""
    files = {}
    for path in folder.rglob("*"):
        facts = path.lstat()
        files[str(path)] = (facts.st_mode, facts.st_size, facts.st_mtime_ns) if not path.is_dir() else facts.st_mode
    return files


def open_in_child(way: str, folder: Path) -> bytes:
    """Open the case, in the child; returns the result as JSON."""
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before, fault, message = peak_mb(), "", ""
    started = time.process_time()
    try:
        damage = WAYS[way](folder)
        if way == "verify" and damage:
            message = "; ".join(damage)
        else:
            fault = "was accepted"
    except ValueError as error:
        message = str(error)
        where = traceback.extract_tb(error.__traceback__)[-1].filename
        ours = type(error) is ValueError or type(error).__module__.startswith("pipeline.")
        if not (ours and where.startswith(PACKAGE)):
            fault = f"{type(error).__name__} of {where}"
    except BaseException as error:  # noqa: BLE001 - any other error is a fault
        fault, message = f"{type(error).__name__}", f"{error} {traceback.extract_tb(error.__traceback__)[-1]}"
    seconds = time.process_time() - started
    facts = {"fault": fault, "message": message[:5000], "seconds": seconds, "megabytes": peak_mb() - before}
    return json.dumps(facts).encode() + b"\n"


def run_case(case: make.Case, folder: Path) -> list[Outcome]:
    """Open a case in `folder` in each of its ways, and judge the results."""
    before = around(folder.parent)
    out, into = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.chdir(folder)
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            limit = pages * resource.getpagesize() + 2**31  # protects the machine
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
            for way in case.ways:
                os.write(into, open_in_child(way, folder))
        except BaseException:  # noqa: BLE001 - the child must not continue as its parent
            traceback.print_exc()
        finally:
            os._exit(0)
    os.close(into)
    data = b""
    until = time.monotonic() + HANG_S
    while select.select([out], [], [], max(0, until - time.monotonic()))[0] and (piece := os.read(out, 2**16)):
        data += piece
    hung = time.monotonic() >= until
    if hung:
        os.kill(child, signal.SIGKILL)
    os.close(out)
    _, status = os.waitpid(child, 0)
    results = [json.loads(line) for line in data.splitlines()]
    if len(results) < len(case.ways):
        fault = f"hung for {HANG_S:g} s" if hung else f"died with status {status}"
        results.append({"fault": fault, "message": "", "seconds": 0.0, "megabytes": 0.0})
    left = what_changed(before, around(folder.parent), folder)
    return [judge(case, way, facts, left) for way, facts in zip(case.ways, results, strict=False)]


def judge(case: make.Case, way: str, facts: dict, left: list[str]) -> Outcome:
    """Return the outcome of opening a case in one way."""
    fault, message = facts["fault"], facts["message"]
    if not fault and not any(words in message for words in case.words.split("|")):
        fault = f"the message lacks {case.words!r}"
    if not fault and (len(message) > 4000 or not message.replace("\n", "").isprintable()):
        fault = "the message is long or moves a terminal's cursor"
    if not fault and facts["seconds"] > LIMIT_S:
        fault = f"took more than {LIMIT_S:g} s"
    if not fault and facts["megabytes"] > LIMIT_MB:
        fault = f"took more than {LIMIT_MB} MB"
    if left:
        fault = fault or f"left or changed {left[0]}"
    return Outcome(case.name, way, fault, facts["seconds"], facts["megabytes"], message)


def what_changed(before: dict[str, tuple], after: dict[str, tuple], folder: Path) -> list[str]:
    """Return paths that are new, missing or changed, except for the output folder and its lock."""
    expected = {str(folder / "out"), str(folder / "out" / ".s.zarr.lock")}
    return sorted(
        path for path in before.keys() | after.keys() if before.get(path) != after.get(path) and path not in expected
    )


def run_all(root: Path, words: str = "") -> list[Outcome]:
    """Write every case whose name contains `words` below `root`, and open it in each of its ways."""
    warnings.simplefilter("ignore")  # numbers overflow before they are refused
    torch.set_num_threads(1)  # a forked child has only one thread
    outcomes = []
    for case, folder in make.write_all(root, words):
        outcomes += run_case(case, folder)
        shutil.rmtree(folder.parent)
    return outcomes


def table(outcomes: list[Outcome]) -> str:
    """Format the outcomes, one per line."""
    lines = [f"{'case':<44} {'way':<12} {'s':>5} {'MB':>5}  message"]
    for case in outcomes:
        start = "FAULT: " + case.fault + " | " if case.fault else ""
        message = re.sub(r"\s+", " ", case.message).encode("unicode_escape").decode()
        message = re.sub(r"\S*/tmp\S*/", ".../", message)
        lines.append(
            f"{case.name:<44} {case.way:<12} {case.seconds:5.2f} {case.megabytes:5.0f}  {start}{message[:110]}"
        )
    return "\n".join(lines)


def main() -> None:
    """Print a table, or JSON for the tests."""
    faulthandler.disable()
    arguments = [argument for argument in sys.argv[1:] if argument != "--json"]
    with tempfile.TemporaryDirectory() as root:
        outcomes = run_all(Path(root), " ".join(arguments))
    if "--json" in sys.argv:
        print(json.dumps([asdict(outcome) for outcome in outcomes]))  # noqa: T201 - a script for maintainers
        return
    print(table(outcomes))  # noqa: T201 - a script for maintainers
    faults = [outcome for outcome in outcomes if outcome.fault]
    slowest, largest = (max(outcomes, key=lambda outcome: getattr(outcome, key)) for key in ("seconds", "megabytes"))
    names = {outcome.name for outcome in outcomes}
    print(  # noqa: T201 - a script for maintainers
        f"{len(names)} cases, {len(outcomes)} openings, {len(faults)} faults; slowest {slowest.name} "
        f"{slowest.seconds:.2f} s, largest {largest.name} {largest.megabytes:.0f} MB"
    )
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
