"""Cache the views of a split's images: decoded once, lossless, with checksums, quick to read.

Images are read and encoded in threads (both release the GIL) while shards are written.

Shape legend: H, W pixels of the view.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from ..common.parallel import in_order, worker_threads
from ..common.progress import Silent
from ..errors import PipelineError
from ..sources.view import View
from ..store.format.spec import digest_of_ids
from ..store.images.spec import ImageSpec
from ..store.images.writer import EncodedImage, ImageWriter, encode_image

if TYPE_CHECKING:
    from pathlib import Path

    from ..common.progress import Progress
    from ..sources.base import Sample, Source


class ImageSummary(NamedTuple):
    """Summary of an image cache."""

    samples: int
    samples_before: int
    """Samples finished by an earlier, interrupted run."""
    bytes_in_all: int
    """Size of all shards."""


def cache_images(
    source: Source,
    split: str,
    out: Path,
    *,
    view: str | None = None,
    samples_per_shard: int = 64,
    workers: int | None = None,
    progress: Progress | None = None,
) -> ImageSummary:
    """Write the views of a split's images to `out`; resume an interrupted run.

    `view` is text as in `View.parse`; None is the source's default.
    Raises PipelineError that names invalid input, and OSError for errors of the disk. Finished shards stay, and the
    same call resumes from them.
    """
    progress = progress or Silent()
    parsed_view = View.parse(view or source.defaults.view)
    samples = source.samples(split)
    first = source.read_image(samples[0])[0]
    ids = [sample.id for sample in samples]
    spec = ImageSpec(
        source={"name": source.name, "samples": len(samples), "ids_sha256": digest_of_ids(ids)},
        view=str(parsed_view),
        size_px=parsed_view.size_px(*first.shape[:2]),
        id_bytes=max(len(sample_id.encode()) for sample_id in ids),
        samples_per_shard=samples_per_shard,
    )

    threads = worker_threads(workers)
    with ImageWriter(out, spec, ids) as writer, ThreadPoolExecutor(threads, "image") as pool:
        for note in writer.notes:
            progress.note(note)
        before = writer.samples_done
        if before:
            progress.note(f"resuming: {before} of {len(samples)} images are finished in {writer.staging}")
        todo = (samples[number] for shard in writer.todo for number in spec.shard_samples(shard))
        images = in_order(pool, partial(_read, source, parsed_view, spec.size_px), todo, ahead=4 * threads)
        try:
            with progress.task("cache images", len(samples), "img", done=before) as task:
                for shard in list(writer.todo):
                    count = len(spec.shard_samples(shard))
                    encoded = []
                    for future in islice(images, count):
                        encoded.append(future.result())
                        task.update()
                    writer.write_shard(shard, encoded)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        writer.finish(progress)
        size = sum(record.size_bytes for record in writer.finished.values())
    return ImageSummary(len(samples), before, size)


def _read(source: Source, view: View, size_px: tuple[int, int], sample: Sample) -> EncodedImage:
    """Read and encode the view of an image. Raises PipelineError if it is not `size_px`."""
    image, sha256 = source.read_image(sample)
    try:
        pixels = view.of_image(image)
    except ValueError as error:
        raise PipelineError(f"{sample.image_path}: {error}") from error
    if pixels.shape[:2] != size_px:
        sizes = ["x".join(map(str, size)) for size in (pixels.shape[:2], size_px)]
        raise PipelineError(
            f"{sample.image_path}: its view {view} is {sizes[0]} px, that of the first image {sizes[1]}, and an image "
            "cache has one size: choose `view=kb`, center:HxW or full,resize:HxW"
        )
    return encode_image(pixels, sha256, (image.shape[0], image.shape[1]))
