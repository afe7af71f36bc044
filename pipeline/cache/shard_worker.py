"""Make the shards of a store: run the teacher on batches of images, encode its predictions.

Reading, the teacher and encoding overlap in threads (decoding and encoding release the GIL), and the teacher has its
next batch before it finishes the last. Batches never cross a shard, so the bytes of a shard do not depend on which
process makes it.

Shape legend: B batch, K bins, H W pixels of the view, h w pixels of the teacher's own output.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from threading import Event, Lock
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from ..common.parallel import Aside, worker_threads
from ..common.profile import Profile
from ..depth.rebin import RebinCost, rebin
from ..errors import PipelineError
from ..store.write.writer import EncodedSample, encode_sample
from ..teachers.base import NONPOSITIVE_REMEDY, POSITIVE_SPACES, Framing, may_lack_values, nonfinite_remedy, run_teacher
from .batches import BatchReader
from .outcome import row_of
from .probe import check_repeats

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Self

    from numpy.typing import NDArray

    from ..common.progress import Waits
    from ..sources.base import Sample, Source
    from ..sources.view import View
    from ..store.format.spec import StoreSpec
    from ..teachers.base import Teacher
    from .batches import Batch, Frame
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
REBIN_ROWS = ("dpm_carried_kl_nats", "carried_depth_share", "carried_clipped_share")
"""Journal columns of a sample's rebinning cost, so that a resumed run can report all samples. The first is stored."""


class _Prediction(NamedTuple):
    """Prediction for one frame."""

    depth: NDArray[np.float32]
    dpm: NDArray[np.float32] | None
    bin_edges_m: NDArray[np.floating] | None
    """Edges of the map; None if they are the store's."""


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
            needs_images=teacher.needs_images,
            threads=threads,
        )
        self._encoders = ThreadPoolExecutor(threads, "encode")
        self._counting = Lock()
        self._encoded, self._encoded_bytes = 0, 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._reader.close()
        self._encoders.shutdown(wait=False, cancel_futures=True)
        self._aside.close()

    @property
    def encoded(self) -> tuple[int, int]:
        """Number of samples that this process encoded, and their bytes."""
        with self._counting:
            return self._encoded, self._encoded_bytes

    def batches(self, shards: Sequence[int]) -> Iterator[Future[Batch]]:
        """Yield the batches of these shards, as `BatchReader.batches`."""
        return self._reader.batches(shards)

    def answers(
        self, batches: Iterator[Future[Batch]], waits: Waits, beat: Callable[[], None] = lambda: None
    ) -> Iterator[list[tuple[Frame, _Prediction]]]:
        """Yield the predictions of each batch, in order, while the teacher works on the next batch.

        `beat` is called every second. Raises PipelineError that names an invalid image or prediction.
        """
        flying: deque[Future[list[tuple[Frame, _Prediction]]]] = deque()
        failed = Event()

        def predict(call: Callable[[], list[tuple[Frame, _Prediction]]]) -> list[tuple[Frame, _Prediction]]:
            if failed.is_set():  # by the previous batch, whose error is about to be raised
                raise CancelledError
            try:
                return call()
            except BaseException:
                failed.set()
                raise

        def land() -> list[tuple[Frame, _Prediction]]:
            with waits.while_at("teacher") as count_so_far:
                return self._aside.wait(flying.popleft(), BEAT_S, partial(_both, count_so_far, beat))

        for future in batches:
            try:
                with waits.while_at("reading"):
                    batch = future.result()
            except Exception:
                while flying:  # these may complete the previous shard
                    yield land()
                raise
            flying.append(self._aside.submit(partial(predict, self._on_device(batch))))
            if len(flying) >= IN_FLIGHT:
                yield land()
        while flying:
            yield land()

    def teach(
        self,
        shard: int,
        answers: Iterator[list[tuple[Frame, _Prediction]]],
        waits: Waits,
        after: Callable[[int, Sequence[Future[EncodedSample]]], None] | None = None,
    ) -> list[Future[EncodedSample]]:
        """Take the predictions of `shard` and submit them for encoding.

        `after` is called after each batch, with its size and the futures of the whole shard. Raises as `answers`.
        """
        count = len(self.spec.shard_samples(shard))
        encoded: list[Future[EncodedSample]] = []
        checked = 0
        while len(encoded) < count:
            batch = next(answers)
            encoded += [self._encoders.submit(self._encode, frame, answer) for frame, answer in batch]
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
            return [answer.depth for _, answer in answers]

        check_repeats(
            ask,
            range(len(frames)),
            teacher=self._teacher.card.name,
            precision=self._teacher.card.precision,
            max_rel_error=self.spec.max_rel_error,
            metric=self.spec.depth_space in POSITIVE_SPACES,
            batch_size=self._batch_size,
        )

    def _on_device(self, batch: Batch) -> Callable[[], list[tuple[Frame, _Prediction]]]:
        """Return a call of `_predict` for the teacher's thread; the main thread stays free for Ctrl-C."""
        cuda = torch.cuda.current_device() if torch.cuda.is_initialized() else None  # type: ignore[no-untyped-call]

        def predict() -> list[tuple[Frame, _Prediction]]:
            if cuda is not None:  # the current device is set per thread
                torch.cuda.set_device(cuda)
            with torch.no_grad():
                return list(zip(batch.frames, self._predict(batch), strict=True))

        return predict

    def _predict(self, batch: Batch) -> list[_Prediction]:
        frames = batch.frames
        framing = Framing(self._view, [frame.image_size_px for frame in frames])
        with self.profile.span("teacher"):
            depth, dpm, edges = run_teacher(self._teacher, batch.images, [frame.sample.id for frame in frames], framing)
        self._check_shapes(depth, edges, len(frames))
        depths = depth.float().numpy()
        if self.spec.dpm_kind == "gaussian":
            return [_Prediction(depth_of_image, None, None) for depth_of_image in depths]
        if dpm is None or (edges is not None) != (self.spec.carried_from in ADAPTIVE):
            returned = "no map" if dpm is None else f"a map {'without' if edges is None else 'with'} adaptive bins"
            raise PipelineError(
                f"teacher {self._teacher.card.name!r} returned {returned} for {frames[0].sample.id}, but not for the "
                "first sample, expected the same for all: correct its code, or use `dpm=gaussian`"
            )
        maps = dpm.float().numpy()
        if edges is None:
            own_m = self._teacher.bin_edges_m if self.spec.carried_from else None
            return [_Prediction(*each, own_m) for each in zip(depths, maps, strict=True)]
        return [_Prediction(*each) for each in zip(depths, maps, edges.numpy(), strict=True)]

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

    def _check_values(self, sample_id: str, depth: NDArray[np.float32]) -> None:
        """Raise PipelineError for invalid depth of a network; files are checked when read."""
        if not self._teacher.needs_images:
            return
        card = self._teacher.card
        wrong = np.isinf(depth) if may_lack_values(self._teacher) else ~np.isfinite(depth)
        if wrong.any():
            raise PipelineError(
                f"teacher {card.name!r} predicted NaN or inf at {np.count_nonzero(wrong)} pixels of {sample_id}, "
                f"expected finite depth: {nonfinite_remedy(card)}"
            )
        below = depth <= 0
        if self.spec.depth_space == "metric_m" and below.any():
            raise PipelineError(
                f"teacher {card.name!r} predicted {float(depth[below][0]):g} m for {sample_id} (0 or less at "
                f"{np.count_nonzero(below)} of {depth.size} pixels), expected positive depth: {NONPOSITIVE_REMEDY}"
            )

    def _encode(self, frame: Frame, answer: _Prediction) -> EncodedSample:
        with self.profile.span("encode"):
            return self._encode_answer(frame, answer)

    def _encode_answer(self, frame: Frame, answer: _Prediction) -> EncodedSample:
        depth, dpm, edges_m = answer
        self._check_values(frame.sample.id, depth)
        cost: RebinCost | None = None
        try:
            if dpm is not None and edges_m is not None:
                dpm, cost = rebin(dpm, edges_m, np.array(self.spec.bin_edges))
            encoded = encode_sample(self.spec, depth, dpm, None if cost is None else cost.kl_nats)
        except ValueError as error:
            raise PipelineError(f"{frame.sample.id}, teacher {self._teacher.card.name!r}: {error}") from error
        if cost is not None:
            encoded.row.update(zip(REBIN_ROWS, cost, strict=True))
        with self._counting:
            self._encoded += 1
            self._encoded_bytes += encoded.size_bytes
        encoded.row.update(row_of(self.spec, depth))
        encoded.row["image_sha256"] = frame.sha256
        encoded.row["image_size_px"] = list(frame.image_size_px)
        return encoded


def _both(first: Callable[[], None], second: Callable[[], None]) -> None:
    first()
    second()
