"""Writes data sets of rendered scenes.

A frame depends on (world, seed, index, size) and the baseline of stereo pairs alone, so a longer set begins with the
same frames. Frames are written to a hidden folder next to the target, which is renamed at the end: a folder at its
final path is complete, and an interrupted run resumes.
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
RIGHT_FOLDER = "rgb_right"
ALL_FOLDERS = (*FOLDERS, RIGHT_FOLDER)


def make_scenes(
    out: Path,
    *,
    count: int,
    world: str = "street",
    size_px: tuple[int, int] = (128, 416),
    seed: int = 0,
    test_share: float = 0.15,
    baseline_m: float | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> None:
    """Render `count` frames into a new folder `out`.

    The folder has rgb/ID.png (8 bits), depth/ID.png (exact planar depth, 16 bits, 0 for none), depth_sparse/ID.png
    (depth of a simulated sensor), train.txt, test.txt and all.txt (ids), intrinsics.csv, and dataset.json with the
    content and unit of the depth files; with a baseline also rgb_right/ID.png, the right image of a rectified pair.

    Args:
        out: must not exist; parents are created.
        count: number of frames, at least 2.
        world: `street` (a town and its surroundings, depth to 200 m) or `rooms` (furnished, 0.5 to 10 m).
        size_px: (height, width), each 32 to 4096.
        seed: 0 or more; selects the town or the rooms.
        test_share: fraction of the frames in test.txt, spread evenly; between 0 and 1.
        baseline_m: distance of the two cameras of stereo pairs, above 0 and at most 2 m (0.3 m in rooms). Default: no
            right images.
        workers: number of processes. Default: one per available core.
        progress: reports each frame.

    Raises:
        PipelineError: for an invalid argument, if `out` exists, or if another run is writing it.
        ChildProcessError: if a worker dies, for example out of memory; finished frames are kept.
    """
    out = Path(out).absolute()
    _check(out, count, world, size_px, seed, test_share, workers)
    _check_baseline(baseline_m, world)
    progress = progress or Silent()
    height, width = size_px
    size_px = (int(height), int(width))
    out.parent.mkdir(parents=True, exist_ok=True)
    settings = _settings(world, seed, size_px, count, baseline_m)
    with _staging_folder(out, settings, progress) as staging:
        # The picture is the last file of a frame.
        todo = [index for index in range(count) if not (staging / "rgb" / f"{_frame_id(index)}.png").exists()]
        with progress.task("render", count, "frame", done=count - len(todo)) as task:
            _render_all(staging, settings, todo, workers or cores(), task)
        _write_lists(staging, count, world, size_px, seed, test_share)
        staging.rename(out)
        sync_directory(out.parent)


def _frame_id(index: int) -> str:
    return f"{index:06d}"


def _check(
    out: Path, count: int, world: str, size_px: tuple[int, int], seed: int, test_share: float, workers: int | None
) -> None:
    if world not in WORLDS:
        raise PipelineError(f"unknown `world={world!r}`; choose from {', '.join(WORLDS)}")
    if not 2 <= count <= MOST_FRAMES:
        raise PipelineError(f"`count` must be from 2 (one training and one test frame) to {MOST_FRAMES}, got {count}")
    if len(size_px) != 2 or not all(32 <= side <= 4096 for side in size_px):
        size = "x".join(map(str, size_px))
        raise PipelineError(f"`size` must be HEIGHTxWIDTH, each from 32 to 4096, such as 128x416, got {size}")
    if seed < 0:
        raise PipelineError(f"`seed` must be at least 0, got {seed}")
    if not 0 < test_share < 1:
        raise PipelineError(f"`test_share` must be between 0 and 1, such as 0.15, got {test_share}")
    if workers is not None and workers < 1:
        raise PipelineError(f"`workers` must be at least 1, got {workers}; omit it to use all cores")
    if os.path.lexists(out):
        raise PipelineError(f"{out} already exists; refusing to overwrite: remove it, or choose another folder")
    ancestor = next(path for path in out.parents if os.path.lexists(path))
    if not ancestor.is_dir():
        raise PipelineError(f"cannot create {out}: {ancestor} is not a folder; choose another folder")


def _check_baseline(baseline_m: float | None, world: str) -> None:
    most_m = WORLDS[world].most_baseline_m
    if baseline_m is not None and not 0 < baseline_m <= most_m:
        raise PipelineError(
            f"`baseline_m` must be above 0 and at most {most_m} in the world {world}, where the right camera of each "
            f"frame is in the open, got {baseline_m}"
        )


@contextmanager
def _staging_folder(out: Path, settings: dict[str, Any], progress: Progress) -> Iterator[Path]:
    """Lock and yield the hidden folder next to `out`, with the finished frames of an interrupted run."""
    staging = out.with_name(f".{out.name}.staging")
    if staging.is_symlink() or (staging.exists() and not staging.is_dir()):
        raise PipelineError(f"{staging} is not a folder; remove it, since {out} is prepared there")
    with locked(out, progress):
        if os.path.lexists(out):
            raise PipelineError(f"another run has just written {out}; use it, or choose another folder")
        make_own_folder(staging)
        _prepare(staging, settings, progress)
        yield staging


def _settings(world: str, seed: int, size_px: tuple[int, int], count: int, baseline_m: float | None) -> dict[str, Any]:
    chosen = WORLDS[world]
    pairs = {} if baseline_m is None else {"baseline_m": float(baseline_m)}
    return pairs | {
        "count": count,
        "generator_version": chosen.generator_version,
        "metres_per_unit": 1 / chosen.units_per_m,
        "seed": seed,
        "size_px": list(size_px),
        "truths": chosen.truths,
        "world": world,
    }


def _frame_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that a frame depends on."""
    names = ("baseline_m", "generator_version", "metres_per_unit", "seed", "size_px", "world")
    return {name: settings.get(name) for name in names}


def _folders(settings: dict[str, Any]) -> tuple[str, ...]:
    return FOLDERS if settings.get("baseline_m") is None else ALL_FOLDERS


def _prepare(staging: Path, settings: dict[str, Any], progress: Progress) -> None:
    """Remove everything but the frames of an interrupted run with the same settings."""
    settings_file = staging / "dataset.json"
    if settings_file.exists():
        before = read_json(settings_file, "settings of an interrupted run")
        if not isinstance(before, dict) or _frame_settings(before) != _frame_settings(settings):
            progress.note(f"discarding frames of an interrupted run with other settings in {staging}")
            settings_file.unlink()
            for folder in ALL_FOLDERS:
                remove_own(staging / folder)
    elif any(path.name not in ALL_FOLDERS and path.name != ".dataset.json.tmp" for path in staging.iterdir()):
        raise PipelineError(f"{staging} has other files; remove it, since frames are prepared there")
    else:
        for folder in ALL_FOLDERS:  # frames without settings: a run was killed while discarding them
            remove_own(staging / folder)
    write_durably(settings_file, pretty_json(settings))
    wanted = {f"{_frame_id(index)}.png" for index in range(settings["count"])}
    for folder in _folders(settings):
        make_own_folder(staging / folder)  # not through a link, since other files in it are removed
        for path in (staging / folder).iterdir():
            if path.name not in wanted:
                path.unlink()


def _render_all(staging: Path, settings: dict[str, Any], todo: list[int], workers: int, task: Task) -> None:
    """Render the frames `todo`."""
    seed, size_px, world = settings["seed"], tuple(settings["size_px"]), settings["world"]
    baseline_m = settings.get("baseline_m")
    workers = min(workers, len(todo))
    if workers <= 1:
        for index in todo:
            write_frame(staging, seed, index, size_px, world, baseline_m)
            task.update()
        return
    # Spawned, not forked: the parent may have torch, threads and gigabytes. Rendering is element-wise, so BLAS starts
    # no threads and each process uses one core.
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_follow_parent)
    waiting: set[Future[None]] = set()
    try:
        remaining = iter(todo)
        while True:
            # Few at a time, so that an interrupt takes effect within two frames.
            for index in islice(remaining, 2 * workers - len(waiting)):
                waiting.add(pool.submit(write_frame, staging, seed, index, size_px, world, baseline_m))
            if not waiting:
                break
            finished, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in finished:
                future.result()
                task.update()
    except BrokenProcessPool as error:
        raise ChildProcessError(
            "a rendering process died, possibly out of memory; finished frames are kept, repeat with fewer `workers`"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _follow_parent() -> None:
    """Ignore Ctrl-C, which the parent handles, and exit when the parent dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def write_frame(
    staging: Path, seed: int, index: int, size_px: tuple[int, int], world: str, baseline_m: float | None = None
) -> None:
    """Render one frame and write its three files, or four of a pair, the picture last."""
    frame, units_per_m = WORLDS[world].frame(seed, index, size_px, baseline_m), WORLDS[world].units_per_m
    name = f"{_frame_id(index)}.png"
    write_durably(staging / "depth" / name, _png(_units(frame.depth_m, units_per_m)))
    write_durably(staging / "depth_sparse" / name, _png(_units(frame.sparse_m, units_per_m)))
    if frame.right is not None:
        write_durably(staging / RIGHT_FOLDER / name, _png(frame.right))
    write_durably(staging / "rgb" / name, _png(frame.picture))


def _units(depth_m: F32, units_per_m: int) -> NDArray[np.uint16]:
    return np.asarray(np.rint(depth_m * units_per_m), dtype=np.uint16)


def _png(pixels: NDArray[np.uint8] | NDArray[np.uint16]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=4)
    return buffer.getvalue()


def is_test(index: int, test_share: float) -> bool:
    """Return whether a frame is in the test split: spread evenly and independent of the count."""
    return int((index + 1) * test_share + 0.5) > int(index * test_share + 0.5)


def _write_lists(staging: Path, count: int, world: str, size_px: tuple[int, int], seed: int, test_share: float) -> None:
    test = [is_test(index, test_share) for index in range(count)]
    # A short set still gets one frame of each.
    if all(test) or not any(test):
        test[-1] = not test[-1]
    for name, selected in (("all", [True] * count), ("test", test), ("train", [not t for t in test])):
        rows = "".join(f"{_frame_id(index)}\n" for index in range(count) if selected[index])
        write_durably(staging / f"{name}.txt", rows.encode())
    lines = ["id,fx_px,fy_px,cx_px,cy_px\n"]
    for index in range(count):
        camera = WORLDS[world].draw_camera(seed, index, size_px)
        focal = f"{camera.focal_px:.4f}"
        lines.append(f"{_frame_id(index)},{focal},{focal},{camera.cx_px:.4f},{camera.cy_px:.4f}\n")
    write_durably(staging / "intrinsics.csv", "".join(lines).encode())
