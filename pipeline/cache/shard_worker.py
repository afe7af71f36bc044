"""How a shard comes to be: images are read, batches prepared, the teacher predicts, its predictions are encoded.

The four overlap in threads (decoding and encoding release the interpreter lock), and the teacher has its next batch
before it has answered the last, so that it need not wait.
Batches never cross a shard, so that a shard is the same bytes whoever makes it, and after whatever other.

Shape legend: B batch, K bins, H W pixels of the view, h w pixels of the teacher's own output.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from itertools import islice
from threading import Event, Lock
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from ..common.parallel import Aside, in_order, worker_threads
from ..common.profile import Profile
from ..depth.rebin import CarryCost, carry
from ..errors import PipelineError
from ..store.write.writer import EncodedSample, encode_sample
from ..teachers.base import NONPOSITIVE_REMEDY, POSITIVE_SPACES, Framing, may_lack_values, nonfinite_remedy, run_teacher
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
    from .plan import CacheOptions

BEAT_S = 1.0
"""So often progress shows life while a teacher is at work."""
IN_FLIGHT = 2
"""Batches handed to the teacher: it works on one while the answer before is waited for."""
PREPARED = 2
"""Batches ready for it. With those that are read ahead, at most 2 + 2 + 2 batches of images are in memory."""
ADAPTIVE = {"image", "pixel"}
"""What a store is `carried_from` whose teacher has other bins in each answer."""
REBIN_ROWS = ("dpm_carried_kl_nats", "carried_depth_share", "carried_clipped_share")
"""Where a sample's CarryCost stands in the journal, so that a run that goes on can tell of all. The first is stored."""


class Frame(NamedTuple):
    """An image as the teacher sees it."""

    sample: Sample
    view: NDArray[np.uint8]
    sha256: str
    image_size_px: tuple[int, int]


class Batch(NamedTuple):
    """Frames that the teacher is shown together."""

    frames: list[Frame]
    images: torch.Tensor | None
    """(B, 3, H, W) float32 in 0..1; None for a folder of predictions."""


class _Prediction(NamedTuple):
    """What the teacher said of one frame."""

    depth: NDArray[np.float32]
    dpm: NDArray[np.float32] | None
    bin_edges_m: NDArray[np.floating] | None
    """Of the map, where they are not the store's."""


class ShardMaker:
    """Makes shards of one store; a context manager that holds the threads.

    Attributes:
        spec: what the store is asked to be.
    """

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
        self._source = source
        self._samples = samples
        self._view = view
        self._teacher = teacher
        self._batch_size = options.batch_size
        self._accept_noise = options.accept_noise
        self._aside = Aside("teacher")
        self._threads = worker_threads(options.workers)
        self._readers = ThreadPoolExecutor(self._threads, "read")
        self._preparer = ThreadPoolExecutor(1, "prepare")
        self._encoders = ThreadPoolExecutor(self._threads, "encode")
        self._counting = Lock()
        self._encoded, self._encoded_bytes = 0, 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._readers.shutdown(wait=False, cancel_futures=True)
        self._preparer.shutdown(wait=False, cancel_futures=True)
        self._encoders.shutdown(wait=False, cancel_futures=True)
        self._aside.close()

    @property
    def encoded(self) -> tuple[int, int]:
        """How many samples were encoded here, and their bytes."""
        with self._counting:
            return self._encoded, self._encoded_bytes

    def batches(self, shards: Sequence[int]) -> Iterator[Future[Batch]]:
        """The batches of these shards in their order, made ready ahead of their use once the first is asked for."""
        wanted = (self._samples[i] for shard in shards for i in self.spec.shard_samples(shard))
        frames = in_order(self._readers, self._read, wanted, ahead=2 * self._batch_size + self._threads)
        grouped = (list(islice(frames, size)) for shard in shards for size in self._batch_sizes(shard))
        return in_order(self._preparer, self._prepare, grouped, ahead=PREPARED)

    def _batch_sizes(self, shard: int) -> Iterator[int]:
        """Batches never cross a shard."""
        left = len(self.spec.shard_samples(shard))
        while left > 0:
            yield min(self._batch_size, left)
            left -= self._batch_size

    def answers(
        self, batches: Iterator[Future[Batch]], waits: Waits, beat: Callable[[], None] = lambda: None
    ) -> Iterator[list[tuple[Frame, _Prediction]]]:
        """What the teacher predicts for each batch, in order; it works on the next one meanwhile.

        `beat` is called each second that it takes. Raises PipelineError for an image or an answer that is at fault,
        naming it.
        """
        flying: deque[Future[list[tuple[Frame, _Prediction]]]] = deque()
        failed = Event()

        def predict(call: Callable[[], list[tuple[Frame, _Prediction]]]) -> list[tuple[Frame, _Prediction]]:
            if failed.is_set():  # by the batch before, of which the run is about to learn
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
                while flying:  # the shard before may be whole with these
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
        after: Callable[[int, Sequence[Future[EncodedSample]]], None] | None = None,
    ) -> list[Future[EncodedSample]]:
        """Take the next answers, those of `shard`; encoding goes on behind.

        `after` is called after each batch, with its size and all that is encoded, or will be. Raises as `answers`.
        """
        count = len(self.spec.shard_samples(shard))
        encoded: list[Future[EncodedSample]] = []
        while len(encoded) < count:
            batch = next(answers)
            encoded += [self._encoders.submit(self._encode, frame, answer) for frame, answer in batch]
            if after:
                after(len(batch), encoded)
            for future in encoded:  # a fault ends the run now, and not when the shard is whole
                if future.done():
                    future.result()
        return encoded

    def probe(self, waits: Waits, beat: Callable[[], None] = lambda: None) -> None:
        """Raise PipelineError for a teacher that does not repeat itself: see `probe`. A folder of files does."""
        if not self._teacher.needs_images or self._accept_noise:
            return
        last = len(self._samples) - 1
        frames = [self._read(self._samples[0])]
        for number in sorted({(last + 1) // 2, last} - {0}):
            with suppress(ValueError, OSError):  # told when its turn comes, and what is finished by then is kept
                frames.append(self._read(self._samples[number]))

        def ask(numbers: Sequence[int]) -> list[NDArray[np.float32]]:
            call = self._on_device(self._prepared([frames[number] for number in numbers]))
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
        """`_predict` of a batch, to be called in the teacher's thread, so that Ctrl-C works while a network works."""
        cuda = torch.cuda.current_device() if torch.cuda.is_initialized() else None  # type: ignore[no-untyped-call]

        def predict() -> list[tuple[Frame, _Prediction]]:
            if cuda is not None:  # of each thread its own
                torch.cuda.set_device(cuda)
            with torch.no_grad():
                return list(zip(batch.frames, self._predict(batch), strict=True))

        return predict

    def _prepare(self, frames: Sequence[Future[Frame]]) -> Batch:
        """Wait for frames that are read elsewhere, and stack them."""
        return self._prepared([future.result() for future in frames])

    def _prepared(self, frames: list[Frame]) -> Batch:
        images = None
        if self._teacher.needs_images:
            with self.profile.span("prepare"):
                # Channels stay last in memory: the last bits of a network's output depend on it
                pixels = torch.from_numpy(np.stack([frame.view for frame in frames]))
                images = pixels.float().div_(255).permute(0, 3, 1, 2)
        return Batch(frames, images)

    def _read(self, sample: Sample) -> Frame:
        with self.profile.span("read"):
            return self._read_frame(sample)

    def _read_frame(self, sample: Sample) -> Frame:
        image, sha256 = self._source.read_image(sample)
        height, width = image.shape[:2]
        try:
            view = self._view.of_image(image)
        except ValueError as error:
            raise PipelineError(f"{sample.image_path}: {error}") from error
        if view.shape[:2] != self.spec.view_size_px:
            expected = "x".join(map(str, self.spec.view_size_px))
            raise PipelineError(
                f"{sample.image_path}: the view {self._view} of it is {view.shape[0]}x{view.shape[1]} px, of the "
                f"first image {expected}: a store holds one size; choose `view=kb`, center:HxW or full,resize:HxW"
            )
        return Frame(sample, view, sha256, (height, width))

    def _predict(self, batch: Batch) -> list[_Prediction]:
        frames = batch.frames
        framing = Framing(self._view, [frame.image_size_px for frame in frames])
        with self.profile.span("teacher"):
            depth, dpm, edges = run_teacher(self._teacher, batch.images, [frame.sample.id for frame in frames], framing)
        self._check_shapes(depth, edges, len(frames))
        depths = depth.float().numpy()
        if self.spec.dpm_kind == "gaussian":
            return [_Prediction(one, None, None) for one in depths]
        if dpm is None or (edges is not None) != (self.spec.carried_from in ADAPTIVE):
            found = "no map" if dpm is None else f"a map {'without' if edges is None else 'with'} bins of its own"
            raise PipelineError(
                f"teacher {self._teacher.card.name!r} gave {found} for {frames[0].sample.id}, but not for the first "
                "sample: expected every answer to be of one kind; mend its code, or use `dpm=gaussian`"
            )
        if edges is None:
            own = self._teacher.bin_edges_m if self.spec.carried_from else None
            return [_Prediction(one, its, own) for one, its in zip(depths, dpm.float().numpy(), strict=True)]
        return [_Prediction(*each) for each in zip(depths, dpm.float().numpy(), edges.numpy(), strict=True)]

    def _check_shapes(self, depth: torch.Tensor, edges: torch.Tensor | None, count: int) -> None:
        """Raise PipelineError for answers that are not one for each of `count` images."""
        name = self._teacher.card.name
        if depth.ndim != 3 or len(depth) != count:
            raise PipelineError(
                f"teacher {name!r} gave depth of shape {tuple(depth.shape)} for {count} images: expected (B, h, w)"
            )
        if edges is not None and len(edges) != count:
            raise PipelineError(
                f"teacher {name!r} gave bin edges of {len(edges)} images for {count}: expected one for each; mend its "
                "code"
            )

    def _check_values(self, sample_id: str, depth: NDArray[np.float32]) -> None:
        """Raise PipelineError for numbers of a network that are no depth; those of files are looked at when read."""
        if not self._teacher.needs_images:
            return
        card = self._teacher.card
        wrong = np.isinf(depth) if may_lack_values(self._teacher) else ~np.isfinite(depth)
        if wrong.any():
            raise PipelineError(
                f"teacher {card.name!r} gave NaN or inf at {np.count_nonzero(wrong)} pixels of {sample_id}: expected "
                f"finite depth; {nonfinite_remedy(card)}"
            )
        below = depth <= 0
        if self.spec.depth_space == "metric_m" and below.any():
            raise PipelineError(
                f"teacher {card.name!r} gave {float(depth[below][0]):g} m, one of {np.count_nonzero(below)} pixels of "
                f"{depth.size} of {sample_id}: expected depth above 0; {NONPOSITIVE_REMEDY}"
            )

    def _encode(self, frame: Frame, answer: _Prediction) -> EncodedSample:
        with self.profile.span("encode"):
            return self._encode_answer(frame, answer)

    def _encode_answer(self, frame: Frame, answer: _Prediction) -> EncodedSample:
        depth, dpm, edges_m = answer
        self._check_values(frame.sample.id, depth)
        cost: CarryCost | None = None
        try:
            if dpm is not None and edges_m is not None:
                dpm, cost = carry(dpm, edges_m, np.array(self.spec.bin_edges))
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
