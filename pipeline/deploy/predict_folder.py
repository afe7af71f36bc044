"""A trained student, or its ONNX file, over a folder of images: depth as files that can teach in their turn.

    OUT/ID.png             depth, 16 bits, 0 where there is none: outside of the view, or beyond what 16 bits hold
    OUT/ID.npy             float32 metres, NaN where there is none
    OUT/predictions.json   the scale, and who predicted: `--teacher predictions:OUT` reads it
    OUT/colour/ID.jpg      a picture, the same range for all
    OUT/colour-bar.jpg     that range

With both PNG and `.npy` each has a folder of its own, `png` and `npy`: a folder of predictions holds one format. Until
all is there it lies in `.NAME.HASH.partial` beside OUT, with a journal of what is done; the same call goes on from it.

Shape legend: B batch, H W pixels of an image, h w of its view.
"""

from __future__ import annotations

import io
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from ..common.device import is_out_of_memory
from ..common.fileio import (
    append_durably,
    canonical_json,
    has_control,
    pretty_json,
    printable,
    sha256_file,
    write_durably,
)
from ..common.locks import locked
from ..common.outputs import refuse_existing_target
from ..common.own_files import make_folder, make_folder_below, make_own_folder, sync_directory
from ..common.parallel import in_order, worker_threads
from ..common.progress import Silent
from ..common.signals import Interrupted, stop_flag
from ..common.unfinished import note_others, partial_folder
from ..depth.relative import METRIC, in_own_space
from ..errors import OptionError, PipelineError
from ..sources.readers.images import IMAGE_SUFFIXES, read_image_with_sha256
from .depth_files import MOST_UNITS, color_bar_jpeg, color_jpeg, depth_png, on_image
from .done import read_done

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from ..common.progress import Progress
    from ..sources.view import View

PNG_UNITS = {"256": 1 / 256, "mm": 0.001}
"""--depth-png -> metres that a value of 1 stands for; `none` writes no PNG."""
OTHER_IMAGES = (".bmp", ".gif", ".tif", ".tiff", ".heic", ".avif", ".jp2", ".ppm", ".pgm")
"""Images that are not read (see `sources.images`): passed over, but not in silence."""
JOURNAL = "journal"
SETTINGS = "settings.json"
"""What was asked for, in an unfinished folder."""
COLOR_SPAN = 100.0
"""How many times the nearest colour's depth the farthest is at most, unless a range is asked for."""


class Predictor(Protocol):
    """A network with its view; `predictors.open_model` opens them."""

    view: View
    facts: dict[str, Any]
    """Who it is: goes into predictions.json, and into the name of an unfinished folder."""
    depth_range_m: tuple[float, float]
    depth_space: str
    """What its depth is: metres, or relative depth."""

    def predict_m(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Depth (B, h, w) metres for images (B, h, w, 3) as the view shows them."""
        ...


@dataclass(frozen=True)
class FolderOptions:
    """Which files are written."""

    depth_png: str = "256"
    npy: bool = False
    colour: bool = False
    colour_range_m: tuple[float, float] | None = None
    """None takes the range of the network's bins."""
    grid: str = "image"
    """`image`: as large as the image; `view`: what the network saw, nothing around."""
    batch_size: int = 4

    def __post_init__(self) -> None:
        if self.depth_png not in {*PNG_UNITS, "none"}:
            raise OptionError("depth_png", self.depth_png, f"{', '.join(PNG_UNITS)} or none")
        if self.grid not in {"image", "view"}:
            raise OptionError("grid", self.grid, "image or view")
        if self.batch_size < 1:
            raise OptionError("batch_size", self.batch_size, "at least 1")
        if not (self.depth_png != "none" or self.npy or self.colour):
            raise PipelineError("nothing to write: leave `depth_png=none` out, or add `npy` or `colour`")
        if self.colour_range_m is not None and not 0 < self.colour_range_m[0] < self.colour_range_m[1]:
            low, high = self.colour_range_m
            raise PipelineError(
                f"`colour_range_m={low:g}:{high:g}`: expected two depths above 0, ascending, such as 1:80"
            )

    @property
    def formats(self) -> list[str]:
        """Formats of numbers that are written."""
        return (["png"] if self.depth_png != "none" else []) + (["npy"] if self.npy else [])

    def folder(self, kind: str) -> str:
        """Where a format lies below OUT, with a slash behind it unless it is OUT itself."""
        return "" if len(self.formats) == 1 and kind != "colour" else f"{kind}/"


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
    """What a call did."""

    images: int
    now: int
    """Of them, in this call."""
    beyond: int
    """Pixels farther than a PNG holds."""


def find_images(path: Path, progress: Progress | None = None) -> list[tuple[str, Path]]:
    """(id, file) of one image, or of all below a folder, sorted; the id is the path in it without its suffix.

    Folders behind links are read, each once. Hidden files are left out, and with a note images of formats that are not
    read and names that could be no id. Raises PipelineError where there is none, and for two images of one id.
    """
    if path.is_file():
        return [(path.stem, path)]
    if not path.is_dir():
        raise PipelineError(f"{path}: no such file or folder; expected an image, or a folder of images")
    found: dict[str, Path] = {}
    others: list[Path] = []
    unusable: list[Path] = []
    for file in _files_below(path):
        if file.suffix.lower() not in IMAGE_SUFFIXES:
            others += [file] if file.suffix.lower() in OTHER_IMAGES else []
            continue
        image_id = file.relative_to(path).with_suffix("").as_posix()
        if has_control(image_id):
            unusable.append(file)
        elif found.setdefault(image_id, file) != file:
            raise PipelineError(f"{found[image_id]} and {file} would both be written as {image_id}: move one away")
    left_out = [
        f"{len(files)} images left out, {why} ({printable(files[0].name)}{' ...' if len(files) > 1 else ''}): {remedy}"
        for files, why, remedy in (
            (others, "of formats that are not read", "convert them to PNG, JPEG or WebP"),
            (unusable, "whose names have control characters or are not UTF-8", "rename them"),
        )
        if files
    ]
    if not found:
        more = f"; {'; '.join(left_out)}" if left_out else ""
        raise PipelineError(f"{path}: no image in it, expected files that end in {', '.join(IMAGE_SUFFIXES)}{more}")
    if progress is not None:
        for text in left_out:
            progress.note(text)
    return sorted(found.items())


def _files_below(path: Path) -> Iterator[Path]:
    """Files below a folder that are not hidden, sorted; each real folder once, though links may lead in circles."""
    seen = set()
    for folder, folders, names in os.walk(path, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(folder, name) for name in sorted(names) if not name.startswith("."))


def predict_folder(
    model: Predictor, images: Path, out: Path, options: FolderOptions | None = None, progress: Progress | None = None
) -> Done:
    """Predict every image below `images` into the folder `out`, which must not be there.

    Raises PipelineError for an image at fault, which it names, and Interrupted after Ctrl-C: what is done is kept, and
    the same call goes on from it.
    """
    options, progress = options or FolderOptions(), progress or Silent()
    refuse_existing_target(out)
    _check_range(model, options)
    jobs = [_Job(image_id, str(path)) for image_id, path in find_images(images, progress)]
    asked = {"model": model.facts, "images": str(images.resolve()), "options": asdict(options) | {"batch_size": 0}}
    partial = partial_folder(out, asked)
    make_folder(out.parent)
    with stop_flag() as stopped, locked(out, progress):
        refuse_existing_target(out)  # another may have finished while we came to the lock
        note_others(partial, out, SETTINGS, asked, JOURNAL, progress)
        make_own_folder(partial)
        write_durably(partial / SETTINGS, pretty_json(asked))
        done = _predict_all(_Run(model, options, partial), jobs, stopped, progress)
        (partial / SETTINGS).unlink()
        (partial / JOURNAL).unlink()
        partial.rename(out)
        sync_directory(out.parent)
    return done


def _predict_all(run: _Run, jobs: Sequence[_Job], stopped: threading.Event, progress: Progress) -> Done:
    """Predict what an earlier call did not finish. Raises Interrupted where `stopped` is set."""
    partial = run.folder
    before = read_done(partial / JOURNAL)
    known = {job.id for job in jobs if job.id in before and before[job.id]["sha256"] == sha256_file(Path(job.path))}
    for stale in before.keys() - known:
        _forget(partial, stale, run.options)
    beyond = sum(before[image_id]["beyond"] for image_id in known)
    if known:
        progress.note(f"going on from {len(known)} of {len(jobs)} images in {partial}")
    left = [job for job in jobs if job.id not in known]
    with progress.task("predict", len(jobs), "img", done=len(known)) as task:
        for rows in run.predict(left):
            beyond += sum(row["beyond"] for row in rows)
            task.update(len(rows))
            if stopped.is_set():
                break
    if len(known) + run.done < len(jobs):
        raise Interrupted(f"stopped after {len(known) + run.done} of {len(jobs)} images; run the same command again")
    run.finish(len(jobs), beyond)
    return Done(len(jobs), run.done, beyond)


def _check_range(model: Predictor, options: FolderOptions) -> None:
    """Refuse to write what could hold hardly any of the network's depths, or would be taken for what it is not."""
    if options.depth_png != "none" and model.depth_space != METRIC:
        raise PipelineError(
            f"`depth_png={options.depth_png}` is of metres, and this network gives relative depth "
            f"({model.depth_space}): use `depth_png=none` `npy`, or `colour`"
        )
    if options.depth_png != "none" and model.depth_range_m[0] >= (most := MOST_UNITS * PNG_UNITS[options.depth_png]):
        raise PipelineError(
            f"`depth_png={options.depth_png}` holds up to {most:g} m, and this network begins at "
            f"{model.depth_range_m[0]:g} m: use `depth_png=none` `npy`"
        )


def _forget(partial: Path, image_id: str, options: FolderOptions) -> None:
    """Remove what was written for an image that is gone, or another by now."""
    for kind in (*options.formats, "colour"):
        name = f"{options.folder(kind)}{image_id}.{'jpg' if kind == 'colour' else kind}"
        make_folder_below(partial, name.rpartition("/")[0])  # raises for a link, which could lead elsewhere
        (partial / name).unlink(missing_ok=True)


class _Run:
    """The work on one unfinished folder."""

    def __init__(self, model: Predictor, options: FolderOptions, folder: Path) -> None:
        self.model, self.options, self.folder = model, options, folder
        low, high = model.depth_range_m
        # Bins may begin at 1 mm, and a scale from there on would have no colours left for what is seen.
        self.range_m = options.colour_range_m or (max(low, high / COLOR_SPAN), high)
        self.done = 0
        self._durable: set[str] = set()
        """Folders whose names are on the disk."""

    def predict(self, jobs: Sequence[_Job]) -> Iterator[list[dict[str, Any]]]:
        """Predict batch by batch, reading ahead; gives the journal's rows of each batch once it is written."""
        size = self.options.batch_size
        threads = worker_threads()
        with ThreadPoolExecutor(threads, "read") as readers, ThreadPoolExecutor(threads, "write") as writers:
            futures = in_order(readers, self._read, jobs, 2 * size)
            batch: list[_Read] = []
            for future in futures:
                one = future.result()
                if batch and one.view.shape != batch[0].view.shape:
                    yield self._predict(batch, writers)
                    batch = []
                batch.append(one)
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
                    f"out of memory with a batch of {len(batch)}: use a smaller `batch_size`, or `device=cpu`; the "
                    f"same command goes on from what is finished in {self.folder}"
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
            raise PipelineError(f"{read.job.path}: the network gave NaN or inf; look at its training")
        options, name, model = self.options, read.job.id, self.model
        depth_m = view_m if options.grid == "view" else on_image(view_m, model.view, read.size_px)
        beyond = 0
        if options.depth_png != "none":
            data, beyond = depth_png(depth_m, PNG_UNITS[options.depth_png])
            self._put(f"{options.folder('png')}{name}.png", data)
        if options.npy:
            file = io.BytesIO()
            # A teacher's numbers are its own: of relative disparity, disparity
            np.save(file, depth_m if model.depth_space == METRIC else in_own_space(depth_m, model.depth_space))
            self._put(f"{options.folder('npy')}{name}.npy", file.getvalue())
        if options.colour:
            self._put(f"{options.folder('colour')}{name}.jpg", color_jpeg(depth_m, self.range_m))
        return {"id": name, "sha256": read.sha256, "beyond": beyond}

    def _put(self, name: str, data: bytes) -> None:
        below = name.rpartition("/")[0]
        make_folder_below(self.folder, below)
        if below not in self._durable:
            for place in [self.folder / below, *(self.folder / below).parents]:
                if place != self.folder and place.is_relative_to(self.folder):
                    sync_directory(place.parent)
            self._durable.add(below)
        write_durably(self.folder / name, data)

    def finish(self, images: int, beyond: int) -> None:
        """Write what describes the folder."""
        options = self.options
        facts = {
            **self.model.facts,
            "depth_space": self.model.depth_space,
            "view": str(self.model.view),
            "grid": options.grid,
            "images": images,
        }
        for kind in options.formats:
            metric = self.model.depth_space == METRIC
            unit_m = PNG_UNITS[options.depth_png] if kind == "png" else 1.0
            scale: dict[str, Any] = {"metres_per_unit": unit_m} if metric else {}
            if kind == "png":
                scale |= {"farther_than_a_png_holds_px": beyond}
            self._put(f"{options.folder(kind)}predictions.json", pretty_json(facts | scale))
        if options.colour:
            self._put("colour-bar.jpg", color_bar_jpeg(self.range_m, self.model.depth_space))
