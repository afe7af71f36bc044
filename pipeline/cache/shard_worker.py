"""Make the shards of a store: run the teacher on batches of images, encode its predictions.

Reading, the teacher and encoding overlap in threads (decoding and encoding release the GIL), and the teacher has its
next batch before it finishes the last. Batches never cross a shard, so the bytes of a shard do not depend on which
process makes it.

Shape legend: B batch, K bins, H W pixels of the view, h w pixels of the teacher's own output.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from functools import partial
from threading import Event
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..common.parallel import Aside, worker_threads
from ..common.profile import Profile
from ..errors import PipelineError
from ..teachers.base import (
    POSITIVE_SPACES,
    Framing,
    PreparingTeacher,
    device_of,
    images_of_views,
    on_cpu,
    run_teacher,
)
from .batches import BatchReader
from .encoder import Prediction, SampleEncoder
from .extras import extras_of_batch
from .probe import check_repeats
from .selection import Selected, Selector

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Self

    from numpy.typing import NDArray

    from ..common.progress import Waits
    from ..sources.base import Sample, Source
    from ..sources.view import View
    from ..store.format.spec import StoreSpec
    from ..store.write.encode import EncodedSample
    from ..store.write.encode_extras import SampleExtras
    from ..teachers.base import Teacher, TeacherOutput
    from .batches import Batch, Frame
    from .extras import Bases
    from .plan import CacheOptions

BEAT_S = 1.0
"""Interval of progress updates while a teacher works."""
IN_FLIGHT = 2
"""Batches submitted to the teacher: one runs while the result of the previous one is awaited."""
ENCODING = 2
"""Batches of predictions whose encoding may be pending, besides those of the shard before. Maps of 257 bins take
440 MB per image, so a fast teacher must wait for the encoder."""
ADAPTIVE = {"image", "pixel"}
"""Values of `carried_from` for a teacher with adaptive bins."""

_Predicted = tuple["Frame", "Prediction | Selected", "SampleExtras | None"]


class ShardMaker:
    """Makes shards of the store `spec`; a context manager that holds the threads."""

    def __init__(
        self,
        spec: StoreSpec,
        source: Source,
        samples: Sequence[Sample],
        view: View,
        teacher: Teacher,
        options: CacheOptions,
        profile: Profile | None = None,
        bases: Bases = (),
    ) -> None:
        self.spec = spec
        self.profile = profile or Profile()
        self._samples = samples
        self._view = view
        self._teacher = teacher
        self._batch_size = options.batch_size
        self._accept_noise = options.accept_noise
        self._aside = Aside("teacher")
        threads = worker_threads(options.workers)
        self._reader = BatchReader(
            spec,
            source,
            samples,
            view,
            self.profile,
            batch_size=options.batch_size,
            teacher=teacher,
            threads=threads,
        )
        self._selector = Selector(spec)
        self._encoder = SampleEncoder(spec, teacher, self.profile, threads, bases)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._reader.close()
        self._encoder.close()
        self._aside.close()

    @property
    def encoded(self) -> tuple[int, int]:
        """Number of samples that this process encoded, and their bytes."""
        return self._encoder.encoded

    def batches(self, shards: Sequence[int]) -> Iterator[Future[Batch]]:
        """Yield the batches of these shards, as `BatchReader.batches`."""
        return self._reader.batches(shards)

    def predictions(
        self, batches: Iterator[Future[Batch]], waits: Waits, beat: Callable[[], None] = lambda: None
    ) -> Iterator[list[_Predicted]]:
        """Yield the predictions of each batch, in order, while the teacher works on the next batch.

        `beat` is called every second. Raises PipelineError that names an invalid image or prediction.
        """
        submitted: deque[Future[list[_Predicted]]] = deque()
        failed = Event()
        # Freeing a batch of images takes milliseconds; held until later, they are freed here and not in the teacher's
        # thread.
        held: deque[Batch] = deque(maxlen=IN_FLIGHT + 1)

        def predict(call: Callable[[], list[_Predicted]]) -> list[_Predicted]:
            if failed.is_set():  # by the previous batch, whose error is about to be raised
                raise CancelledError
            try:
                return call()
            except BaseException:
                failed.set()
                raise

        def next_done() -> list[_Predicted]:
            with waits.while_at("teacher") as count_so_far:
                return self._aside.wait(submitted.popleft(), BEAT_S, partial(_both, count_so_far, beat))

        for future in batches:
            try:
                with waits.while_at("reading"):
                    batch = future.result()
            except Exception:
                while submitted:  # these may complete the previous shard
                    yield next_done()
                raise
            held.append(batch)
            submitted.append(self._aside.submit(partial(predict, self._on_device(batch))))
            if len(submitted) >= IN_FLIGHT:
                yield next_done()
        while submitted:
            yield next_done()

    def encode_shard(
        self,
        shard: int,
        predictions: Iterator[list[_Predicted]],
        waits: Waits,
        after: Callable[[int, Sequence[Future[EncodedSample]]], None] | None = None,
    ) -> list[Future[EncodedSample]]:
        """Take the predictions of `shard` and submit them for encoding.

        `after` is called after each batch, with its size and the futures of the whole shard. Raises as `predictions`.
        """
        count = len(self.spec.shard_samples(shard))
        encoded: list[Future[EncodedSample]] = []
        checked = 0
        while len(encoded) < count:
            batch = next(predictions)
            encoded += [self._encoder.submit(*predicted) for predicted in batch]
            if after:
                after(len(batch), encoded)
            with waits.while_at("encoding"):
                for future in encoded[checked : max(0, len(encoded) - ENCODING * self._batch_size)]:
                    future.result()
                    checked += 1
        return encoded

    def probe(self, waits: Waits, beat: Callable[[], None] = lambda: None) -> None:
        """Raise PipelineError for a teacher that does not repeat its predictions, see `probe`; skips files."""
        if not self._teacher.needs_images or self._accept_noise:
            return
        last = len(self._samples) - 1
        frames = [self._reader.read(self._samples[0])]
        for number in sorted({(last + 1) // 2, last} - {0}):
            with suppress(ValueError, OSError):  # raised later at its turn, when earlier shards are finished and kept
                frames.append(self._reader.read(self._samples[number]))

        def ask(numbers: Sequence[int]) -> list[NDArray[np.float32]]:
            call = self._on_device(self._reader.stack([frames[number] for number in numbers]))
            with waits.while_at("teacher") as count_so_far:
                answers = self._aside.call(call, BEAT_S, partial(_both, count_so_far, beat))
            return [np.asarray(torch.as_tensor(answer.depth).cpu()) for _, answer, _ in answers]

        check_repeats(
            ask,
            range(len(frames)),
            teacher=self._teacher.card.name,
            precision=self._teacher.card.precision,
            max_rel_error=self.spec.max_rel_error,
            metric=self.spec.depth_space in POSITIVE_SPACES,
            batch_size=self._batch_size,
        )

    def _on_device(self, batch: Batch) -> Callable[[], list[_Predicted]]:
        """Return a call of `_predict` for the teacher's thread; the main thread stays free for Ctrl-C."""
        cuda = torch.cuda.current_device() if torch.cuda.is_initialized() else None  # type: ignore[no-untyped-call]

        def predict() -> list[_Predicted]:
            if cuda is not None:  # the current device is set per thread
                torch.cuda.set_device(cuda)
            with torch.no_grad():
                return list(zip(batch.frames, *self._predict(batch), strict=True))

        return predict

    def _output(self, batch: Batch) -> TeacherOutput:
        """Put a batch onto the teacher's device and call the teacher."""
        ids = [frame.sample.id for frame in batch.frames]
        inputs = batch.inputs
        if inputs is not None:
            inputs = inputs.to(device_of(self._teacher), non_blocking=True)
            if isinstance(self._teacher, PreparingTeacher):
                return self._teacher.predict_prepared(inputs, self.spec.view_size_px, ids)
            if not inputs.is_floating_point():
                inputs = images_of_views(inputs)
        framing = Framing(
            self._view,
            [frame.image_size_px for frame in batch.frames],
            [frame.intrinsics for frame in batch.frames],
            batch.right,
            [frame.baseline_m for frame in batch.frames],
        )
        return run_teacher(self._teacher, inputs, ids, framing)

    def _predict(self, batch: Batch) -> tuple[list[Prediction] | list[Selected], list[SampleExtras | None]]:
        """Return the predictions of a batch, and what else the store keeps of each image."""
        frames = batch.frames
        with self.profile.span("teacher"):
            output = self._output(batch)
            self._check_shapes(output.depth, output.bin_edges_m, len(frames))
            extras = extras_of_batch(self.spec.extras, output, frames)
            selected = self._selector.select(output)
            if selected is not None:
                return selected, extras
            output = on_cpu(output._replace(features=None))
        return self._on_host(output, frames), extras

    def _on_host(self, output: TeacherOutput, frames: Sequence[Frame]) -> list[Prediction]:
        """Return the predictions of an output on the CPU."""
        depth, dpm, edges = output[:3]
        depths = depth.float().numpy()
        if self.spec.dpm_kind == "gaussian":
            return [Prediction(depth_of_image, None, None) for depth_of_image in depths]
        if dpm is None or (edges is not None) != (self.spec.carried_from in ADAPTIVE):
            returned = "no map" if dpm is None else f"a map {'without' if edges is None else 'with'} adaptive bins"
            raise PipelineError(
                f"teacher {self._teacher.card.name!r} returned {returned} for {frames[0].sample.id}, but not for the "
                "first sample, expected the same for all: correct its code, or use `dpm=gaussian`"
            )
        maps = dpm.float().numpy()
        if edges is None:
            own_m = self._teacher.bin_edges_m if self.spec.carried_from else None
            return [Prediction(*each, own_m) for each in zip(depths, maps, strict=True)]
        return [Prediction(*each) for each in zip(depths, maps, edges.numpy(), strict=True)]

    def _check_shapes(self, depth: torch.Tensor, edges: torch.Tensor | None, count: int) -> None:
        """Raise PipelineError unless there is one prediction for each of `count` images."""
        name = self._teacher.card.name
        if depth.ndim != 3 or len(depth) != count:
            raise PipelineError(
                f"teacher {name!r} returned depth of shape {tuple(depth.shape)} for {count} images, expected (B, h, w)"
            )
        if edges is not None and len(edges) != count:
            raise PipelineError(
                f"teacher {name!r} returned bin edges of {len(edges)} images for {count}, expected one row each: "
                "correct its code"
            )


def _both(first: Callable[[], None], second: Callable[[], None]) -> None:
    first()
    second()
