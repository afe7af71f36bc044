"""Predict a folder of images with a trained student or its ONNX file. The depth files can teach again.

    OUT/ID.png             depth, 16 bits; 0 outside the view, or beyond the range of 16 bits
    OUT/ID.npy             float32 metres, NaN outside the view
    OUT/predictions.json   scale and model: `--teacher predictions:OUT` reads it
    OUT/colour/ID.jpg      a picture, with the same range for all
    OUT/colour-bar.jpg     the color bar

With both PNG and `.npy`, each format has its own folder, `png` or `npy`. Until all images are done, the files are in
`.NAME.HASH.partial` next to OUT, with a journal of finished images; the same call resumes from it.

Shape legend: B batch, H W pixels of an image, h w of its view.
"""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from ..common.device import is_out_of_memory
from ..common.fileio import (
    append_durably,
    canonical_json,
    pretty_json,
    sha256_file,
    write_durably,
)
from ..common.outputs import locked_target, publish, refuse_existing_target
from ..common.own_files import make_folder_below, make_own_folder, sync_directory
from ..common.parallel import in_order, worker_threads
from ..common.progress import Silent
from ..common.signals import Interrupted, stop_flag
from ..common.unfinished import note_others, partial_folder
from ..depth.relative import METRIC, in_own_space
from ..errors import OptionError, PipelineError
from ..sources.readers.images import read_image_with_sha256
from .depth_files import MAX_UNITS, color_bar_jpeg, color_jpeg, depth_png, on_image
from .done import read_done
from .focal import check_focal, depth_scale
from .image_files import find_images

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from ..common.progress import Progress
    from ..sources.view import View

PNG_UNITS = {"256": 1 / 256, "mm": 0.001}
"""--depth-png -> metres per unit; `none` writes no PNG."""
JOURNAL = "journal"
SETTINGS = "settings.json"
"""Arguments of the call, in an unfinished folder."""
COLOR_SPAN = 100.0
"""Maximum ratio of farthest to nearest color, unless a range is given."""


class Predictor(Protocol):
    """A network with its view; `runners.open_model` opens one."""

    view: View
    facts: dict[str, Any]
    """Identity: goes into predictions.json, and into the name of an unfinished folder."""
    depth_range_m: tuple[float, float]
    depth_space: str
    """Metric or relative depth."""
    trained_focal_px: float | None
    """See `focal.TrainedModel`."""

    def predict_m(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Depth (B, h, w) metres for images (B, h, w, 3) in the view."""
        ...


@dataclass(frozen=True)
class FolderOptions:
    """Which files to write, and how."""

    depth_png: str = "256"
    npy: bool = False
    colour: bool = False
    colour_range_m: tuple[float, float] | None = None
    """None: the range of the network's bins."""
    grid: str = "image"
    """`image`: the pixels of the image; `view`: the pixels of the view."""
    batch_size: int = 4
    focal_px: float | None = None
    """Focal length of the camera, in pixels of the images: depth is rescaled from that of training."""

    def __post_init__(self) -> None:
        if self.depth_png not in {*PNG_UNITS, "none"}:
            raise OptionError("depth_png", self.depth_png, f"{', '.join(PNG_UNITS)} or none")
        if self.grid not in {"image", "view"}:
            raise OptionError("grid", self.grid, "image or view")
        if self.batch_size < 1:
            raise OptionError("batch_size", self.batch_size, "at least 1")
        if not (self.depth_png != "none" or self.npy or self.colour):
            raise PipelineError("nothing to write; omit `depth_png=none`, or add `npy` or `colour`")
        if self.colour_range_m is not None and not 0 < self.colour_range_m[0] < self.colour_range_m[1]:
            low, high = self.colour_range_m
            raise PipelineError(
                f"`colour_range_m={low:g}:{high:g}`: expected two ascending depths above 0, such as 1:80"
            )

    @property
    def formats(self) -> list[str]:
        """Formats of depth files to write."""
        return (["png"] if self.depth_png != "none" else []) + (["npy"] if self.npy else [])

    def folder(self, format_name: str) -> str:
        """Folder of a format below OUT, with a trailing slash; empty for OUT."""
        return "" if len(self.formats) == 1 and format_name != "colour" else f"{format_name}/"


class _Job(NamedTuple):
    id: str
    path: str


class _Read(NamedTuple):
    job: _Job
    sha256: str
    view: NDArray[np.uint8]
    """(h, w, 3)"""
    size_px: tuple[int, int]
    """(H, W) of the whole image."""


class Done(NamedTuple):
    """Result of a call."""

    images: int
    now: int
    """Images predicted by this call."""
    beyond: int
    """Pixels beyond the range of a PNG."""


def predict_folder(
    model: Predictor, images: Path, out: Path, options: FolderOptions | None = None, progress: Progress | None = None
) -> Done:
    """Predict every image below `images` into the folder `out`, which must not exist.

    Raises PipelineError for a bad image, and Interrupted after Ctrl-C. Finished images are kept, and the same call
    resumes.
    """
    options, progress = options or FolderOptions(), progress or Silent()
    refuse_existing_target(out)
    _check_range(model, options)
    check_focal(model, options.focal_px)
    jobs = [_Job(image_id, str(path)) for image_id, path in find_images(images, progress)]
    settings = asdict(options) | {"batch_size": 0}
    if options.focal_px is None:
        del settings["focal_px"]  # as in older releases, so that their unfinished folders resume
    request = {"model": model.facts, "images": str(images.resolve()), "options": settings}
    partial = partial_folder(out, request)
    with stop_flag() as stopped, locked_target(out, progress):
        note_others(partial, out, SETTINGS, request, JOURNAL, progress)
        make_own_folder(partial)
        write_durably(partial / SETTINGS, pretty_json(request))
        done = _predict_all(_Run(model, options, partial), jobs, stopped, progress)
        (partial / SETTINGS).unlink()
        (partial / JOURNAL).unlink()
        publish(partial, out)
    return done


def _predict_all(run: _Run, jobs: Sequence[_Job], stopped: threading.Event, progress: Progress) -> Done:
    """Predict what an earlier call did not finish. Raises Interrupted if `stopped` is set."""
    partial = run.folder
    before = read_done(partial / JOURNAL)
    finished = {job.id for job in jobs if job.id in before and before[job.id]["sha256"] == sha256_file(Path(job.path))}
    for stale in before.keys() - finished:
        _forget(partial, stale, run.options)
    beyond = sum(before[image_id]["beyond"] for image_id in finished)
    if finished:
        progress.note(f"resuming after {len(finished)} of {len(jobs)} images in {partial}")
    remaining = [job for job in jobs if job.id not in finished]
    with progress.task("predict", len(jobs), "img", done=len(finished)) as task:
        for rows in run.predict(remaining):
            beyond += sum(row["beyond"] for row in rows)
            task.update(len(rows))
            if stopped.is_set():
                break
    if len(finished) + run.done < len(jobs):
        raise Interrupted(f"stopped after {len(finished) + run.done} of {len(jobs)} images; run the same command again")
    run.finish(len(jobs), beyond)
    return Done(len(jobs), run.done, beyond)


def _check_range(model: Predictor, options: FolderOptions) -> None:
    """Refuse a PNG for relative depth, or with a range below that of the network."""
    if options.depth_png != "none" and model.depth_space != METRIC:
        raise PipelineError(
            f"`depth_png={options.depth_png}` needs metres, but this network predicts relative depth "
            f"({model.depth_space}); use `depth_png=none` with `npy` or `colour`"
        )
    if options.depth_png != "none" and model.depth_range_m[0] >= (max_m := MAX_UNITS * PNG_UNITS[options.depth_png]):
        raise PipelineError(
            f"`depth_png={options.depth_png}` holds up to {max_m:g} m, but the depth of this network starts at "
            f"{model.depth_range_m[0]:g} m; use `depth_png=none` with `npy`"
        )


def _forget(partial: Path, image_id: str, options: FolderOptions) -> None:
    """Remove the files of an image that was removed or changed."""
    for format_name in (*options.formats, "colour"):
        suffix = "jpg" if format_name == "colour" else format_name
        name = f"{options.folder(format_name)}{image_id}.{suffix}"
        make_folder_below(partial, name.rpartition("/")[0])  # raises for a link, which may lead outside
        (partial / name).unlink(missing_ok=True)


class _Run:
    """Predicts into one unfinished folder."""

    def __init__(self, model: Predictor, options: FolderOptions, folder: Path) -> None:
        self.model, self.options, self.folder = model, options, folder
        low, high = model.depth_range_m
        # Bins may start at 1 mm; a scale from there would leave few colors for typical depths.
        self.range_m = options.colour_range_m or (max(low, high / COLOR_SPAN), high)
        self.done = 0
        self._durable: set[str] = set()
        """Folders that are synced to disk."""

    def predict(self, jobs: Sequence[_Job]) -> Iterator[list[dict[str, Any]]]:
        """Predict in batches, reading ahead; yield the journal rows of each batch after it is written."""
        size = self.options.batch_size
        threads = worker_threads()
        with ThreadPoolExecutor(threads, "read") as readers, ThreadPoolExecutor(threads, "write") as writers:
            futures = in_order(readers, self._read, jobs, 2 * size)
            batch: list[_Read] = []
            for future in futures:
                read = future.result()
                if batch and read.view.shape != batch[0].view.shape:
                    yield self._predict(batch, writers)
                    batch = []
                batch.append(read)
                if len(batch) == size:
                    yield self._predict(batch, writers)
                    batch = []
            if batch:
                yield self._predict(batch, writers)

    def _predict(self, batch: list[_Read], writers: ThreadPoolExecutor) -> list[dict[str, Any]]:
        try:
            depths_m = self.model.predict_m(np.stack([read.view for read in batch]))
        except Exception as error:
            if is_out_of_memory(error):
                raise PipelineError(
                    f"out of memory with a batch of {len(batch)}; use a smaller `batch_size`, or `device=cpu`. The "
                    f"command resumes from the finished images in {self.folder}"
                ) from error
            raise
        rows = list(writers.map(self._write, batch, depths_m))
        append_durably(self.folder / JOURNAL, b"".join(canonical_json(row) + b"\n" for row in rows))
        self.done += len(rows)
        return rows

    def _read(self, job: _Job) -> _Read:
        image, sha256 = read_image_with_sha256(job.path)
        try:
            return _Read(job, sha256, self.model.view.of_image(image), (image.shape[0], image.shape[1]))
        except ValueError as error:
            raise PipelineError(f"{job.path}: {error}") from error

    def _write(self, read: _Read, view_m: NDArray[np.float32]) -> dict[str, Any]:
        if not np.isfinite(view_m).all():
            raise PipelineError(f"{read.job.path}: the network predicted NaN or inf; check its training")
        options, name, model = self.options, read.job.id, self.model
        if options.focal_px is not None:
            view_m = view_m * np.float32(depth_scale(model, options.focal_px, read.size_px))
        depth_m = view_m if options.grid == "view" else on_image(view_m, model.view, read.size_px)
        beyond = 0
        if options.depth_png != "none":
            data, beyond = depth_png(depth_m, PNG_UNITS[options.depth_png])
            self._put(f"{options.folder('png')}{name}.png", data)
        if options.npy:
            file = io.BytesIO()
            # A teacher's file is in its own depth space, such as disparity.
            np.save(file, depth_m if model.depth_space == METRIC else in_own_space(depth_m, model.depth_space))
            self._put(f"{options.folder('npy')}{name}.npy", file.getvalue())
        if options.colour:
            self._put(f"{options.folder('colour')}{name}.jpg", color_jpeg(depth_m, self.range_m))
        return {"id": name, "sha256": read.sha256, "beyond": beyond}

    def _put(self, name: str, data: bytes) -> None:
        below = name.rpartition("/")[0]
        make_folder_below(self.folder, below)
        if below not in self._durable:
            for folder in [self.folder / below, *(self.folder / below).parents]:
                if folder != self.folder and folder.is_relative_to(self.folder):
                    sync_directory(folder.parent)
            self._durable.add(below)
        write_durably(self.folder / name, data)

    def finish(self, images: int, beyond: int) -> None:
        """Write predictions.json and the color bar."""
        options = self.options
        facts = {
            **self.model.facts,
            "depth_space": self.model.depth_space,
            "view": str(self.model.view),
            "grid": options.grid,
            "images": images,
            **({} if options.focal_px is None else {"focal_px": options.focal_px}),
        }
        for format_name in options.formats:
            metric = self.model.depth_space == METRIC
            unit_m = PNG_UNITS[options.depth_png] if format_name == "png" else 1.0
            scale: dict[str, Any] = {"metres_per_unit": unit_m} if metric else {}
            if format_name == "png":
                scale |= {"farther_than_a_png_holds_px": beyond}
            self._put(f"{options.folder(format_name)}predictions.json", pretty_json(facts | scale))
        if options.colour:
            self._put("colour-bar.jpg", color_bar_jpeg(self.range_m, self.model.depth_space))
