"""Writes a data set of rendered scenes: the one that `make demo` runs on, with no download.

A frame depends on (world, seed, index, size) alone, so a longer set begins with the same frames, whoever renders
them. Frames go into a hidden folder beside the target, which is renamed at the end: a folder at its final
path is complete, and an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import io
import os
import signal
import threading
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from pipeline.common.fileio import pretty_json, read_json, write_durably
from pipeline.common.locks import locked
from pipeline.common.own_files import make_own_folder, remove_own, sync_directory
from pipeline.common.parallel import cores
from pipeline.common.progress import Silent
from pipeline.errors import PipelineError

from .worlds import WORLDS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from pipeline.common.progress import Progress, Task

    from .camera import F32

MOST_FRAMES = 1_000_000
FOLDERS = ("depth", "depth_sparse", "rgb")


def make_scenes(
    out: Path,
    *,
    count: int,
    world: str = "street",
    size_px: tuple[int, int] = (128, 416),
    seed: int = 0,
    test_share: float = 0.15,
    workers: int | None = None,
    progress: Progress | None = None,
) -> None:
    """Render `count` frames into a new folder `out`.

    It holds rgb/ID.png (8 bits), depth/ID.png (exact planar depth, 16 bits, 0 for none), depth_sparse/ID.png (the
    same as a sensor would see it), train.txt, test.txt, all.txt (ids), intrinsics.csv, dataset.json, which says what
    the depth files hold and in which unit.

    Args:
        out: must not exist; its parents are made.
        count: 2 or more frames.
        world: `street` (a town and its surroundings, depth to 200 m) or `rooms` (furnished, 0.5 to 10 m).
        size_px: (height, width), each 32 to 4096.
        seed: 0 or more; another seed is another town, or other rooms.
        test_share: of the frames in test.txt, spread evenly; between 0 and 1.
        workers: processes; by default one for each core that this process may use.
        progress: told of each frame.

    Raises:
        PipelineError: a bad argument, `out` exists, or another run is writing it.
        ChildProcessError: a worker died, perhaps for want of memory; finished frames are kept.
    """
    out = Path(out).absolute()
    _check(out, count, world, size_px, seed, test_share, workers)
    progress = progress or Silent()
    height, width = size_px
    size_px = (int(height), int(width))
    out.parent.mkdir(parents=True, exist_ok=True)
    with _staging_folder(out, _settings(world, seed, size_px, count), progress) as staging:
        # The picture is written last of a frame's three files.
        todo = [index for index in range(count) if not (staging / "rgb" / f"{_frame_id(index)}.png").exists()]
        with progress.task("render", count, "frame", done=count - len(todo)) as task:
            _render_all((staging, seed, size_px, world), todo, workers or cores(), task)
        _write_lists(staging, count, world, size_px, seed, test_share)
        if os.path.lexists(out):
            raise PipelineError(f"output appeared meanwhile: {out}: move it away and run again, the frames are kept")
        staging.rename(out)
        sync_directory(out.parent)


def _frame_id(index: int) -> str:
    return f"{index:06d}"


def _check(
    out: Path, count: int, world: str, size_px: tuple[int, int], seed: int, test_share: float, workers: int | None
) -> None:
    if world not in WORLDS:
        raise PipelineError(f"world is {world!r}, expected one of {', '.join(WORLDS)}: give one of them")
    if not 2 <= count <= MOST_FRAMES:
        raise PipelineError(
            f"count is {count}, expected 2 (one to train on, one to test) to {MOST_FRAMES}: give another"
        )
    if len(size_px) != 2 or not all(32 <= side <= 4096 for side in size_px):
        raise PipelineError(
            f"size is {'x'.join(map(str, size_px))}, expected HEIGHTxWIDTH, each 32 to 4096: give one such as 128x416"
        )
    if seed < 0:
        raise PipelineError(f"seed is {seed}, expected 0 or more: give another number")
    if not 0 < test_share < 1:
        raise PipelineError(f"test share is {test_share}, expected more than 0 and less than 1: give one such as 0.15")
    if workers is not None and workers < 1:
        raise PipelineError(f"workers is {workers}, expected 1 or more: leave it out to use every core")
    if os.path.lexists(out):
        raise PipelineError(f"output exists: {out}: remove it or choose another folder")
    ancestor = next(path for path in out.parents if os.path.lexists(path))
    if not ancestor.is_dir():
        raise PipelineError(f"{ancestor} is no folder, so {out} cannot be made in it: choose another folder")


@contextmanager
def _staging_folder(out: Path, settings: dict[str, Any], progress: Progress) -> Iterator[Path]:
    """The hidden folder beside `out`, locked, holding only finished frames of this very set."""
    staging = out.with_name(f".{out.name}.staging")
    if staging.is_symlink() or (staging.exists() and not staging.is_dir()):
        raise PipelineError(f"{staging} is no folder: remove it, its name is where {out} is prepared")
    with locked(out, progress):
        if os.path.lexists(out):
            raise PipelineError(f"another run has just written {out}: use it, or choose another folder")
        make_own_folder(staging)
        _prepare(staging, settings, progress)
        yield staging


def _settings(world: str, seed: int, size_px: tuple[int, int], count: int) -> dict[str, Any]:
    facts = WORLDS[world]
    return {
        "count": count,
        "generator_version": facts.generator_version,
        "metres_per_unit": 1 / facts.units_per_m,
        "seed": seed,
        "size_px": list(size_px),
        "truths": facts.truths,
        "world": world,
    }


def _of_pixels(settings: dict[str, Any]) -> dict[str, Any]:
    """Those settings that a frame depends on; a folder that names no world is a street."""
    named = {"world": "street", **settings}
    return {name: named.get(name) for name in ("generator_version", "metres_per_unit", "seed", "size_px", "world")}


def _prepare(staging: Path, settings: dict[str, Any], progress: Progress) -> None:
    """Keep what an interrupted run of the same settings left, and nothing else."""
    described = staging / "dataset.json"
    if described.exists():
        before = read_json(described, "settings of an interrupted run")
        if not isinstance(before, dict) or _of_pixels(before) != _of_pixels(settings):
            progress.note(f"discarding frames of an interrupted run with other settings in {staging}")
            described.unlink()
            for folder in FOLDERS:
                remove_own(staging / folder)
    elif any(path.name not in FOLDERS and path.name != ".dataset.json.tmp" for path in staging.iterdir()):
        raise PipelineError(f"{staging} holds other files: remove it, its name is where the frames are prepared")
    else:
        for folder in FOLDERS:  # frames that nothing describes: a run killed while it discarded them
            remove_own(staging / folder)
    write_durably(described, pretty_json(settings))
    wanted = {f"{_frame_id(index)}.png" for index in range(settings["count"])}
    for folder in FOLDERS:
        make_own_folder(staging / folder)  # never a link: what is not wanted in it is removed
        for path in (staging / folder).iterdir():
            if path.name not in wanted:
                path.unlink()


def _render_all(given: tuple[Path, int, tuple[int, int], str], todo: list[int], workers: int, task: Task) -> None:
    """Render frames; `given` is what `write_frame` takes beside the index."""
    staging, seed, size_px, world = given
    workers = min(workers, len(todo))
    if workers <= 1:
        for index in todo:
            write_frame(staging, seed, index, size_px, world)
            task.update()
        return
    # Spawned, not forked: the parent may hold torch, threads and gigabytes. The renderer's array work is
    # element-wise, so BLAS starts no threads of its own and one process keeps to one core.
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_follow_parent)
    waiting: set[Future[None]] = set()
    try:
        remaining = iter(todo)
        while True:
            # Few at a time, so that an interrupt is obeyed within a frame or two.
            for index in islice(remaining, 2 * workers - len(waiting)):
                waiting.add(pool.submit(write_frame, staging, seed, index, size_px, world))
            if not waiting:
                break
            finished, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in finished:
                future.result()
                task.update()
    except BrokenProcessPool as error:
        raise ChildProcessError(
            "a rendering process died, perhaps for want of memory: run the same command again with fewer "
            "workers, the finished frames are kept"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _follow_parent() -> None:
    """Leave Ctrl-C to the parent, and do not outlive it: a killed parent cannot tell its workers to end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def write_frame(staging: Path, seed: int, index: int, size_px: tuple[int, int], world: str) -> None:
    """Render one frame and write its three files, the picture last."""
    frame, units_per_m = WORLDS[world].frame(seed, index, size_px), WORLDS[world].units_per_m
    name = f"{_frame_id(index)}.png"
    write_durably(staging / "depth" / name, _png(_units(frame.depth_m, units_per_m)))
    write_durably(staging / "depth_sparse" / name, _png(_units(frame.sparse_m, units_per_m)))
    write_durably(staging / "rgb" / name, _png(frame.picture))


def _units(depth_m: F32, units_per_m: int) -> NDArray[np.uint16]:
    return np.asarray(np.rint(depth_m * units_per_m), dtype=np.uint16)


def _png(pixels: NDArray[np.uint8] | NDArray[np.uint16]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=4)
    return buffer.getvalue()


def is_test(index: int, test_share: float) -> bool:
    """Whether a frame is in the test split: evenly spread, and the same however long the set."""
    return int((index + 1) * test_share + 0.5) > int(index * test_share + 0.5)


def _write_lists(staging: Path, count: int, world: str, size_px: tuple[int, int], seed: int, test_share: float) -> None:
    test = [is_test(index, test_share) for index in range(count)]
    # A set too short for its share still gets one frame of each.
    if all(test) or not any(test):
        test[-1] = not test[-1]
    for name, chosen in (("all", [True] * count), ("test", test), ("train", [not t for t in test])):
        rows = "".join(f"{_frame_id(index)}\n" for index in range(count) if chosen[index])
        write_durably(staging / f"{name}.txt", rows.encode())
    lines = ["id,fx_px,fy_px,cx_px,cy_px\n"]
    for index in range(count):
        camera = WORLDS[world].draw_camera(seed, index, size_px)
        focal = f"{camera.focal_px:.4f}"
        lines.append(f"{_frame_id(index)},{focal},{focal},{camera.cx_px:.4f},{camera.cy_px:.4f}\n")
    write_durably(staging / "intrinsics.csv", "".join(lines).encode())
