"""How a shard comes to be: images are read, the teacher is shown them batch by batch, its answers are encoded.

Images are decoded and maps encoded in threads (both release the interpreter lock), ahead of the teacher and behind it.
Batches never cross a shard, so that a shard is the same bytes whoever makes it, and after whatever other.

Shape legend: B batch, K bins, H W pixels of the view, h w pixels of the teacher's own output.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from itertools import islice
from threading import Lock
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from ..common.parallel import Aside, in_order, worker_threads
from ..depth.rebin import CarryCost, carry
from ..errors import PipelineError
from ..store.write.writer import EncodedSample, encode_sample
from ..teachers.base import NEVER_0, REMEDY_OF_NONPOSITIVE, Framing, answer_of, may_lack_values, remedy_of_infinity
from .outcome import row_of
from .probe import check_repeats

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
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
MOVING = {"image", "pixel"}
"""What a store is `carried_from` whose teacher has other bins in each answer."""
CARRIED_ROWS = ("dpm_carried_kl_nats", "carried_depth_share", "carried_clipped_share")
"""Where a sample's CarryCost stands in the journal, so that a run that goes on can tell of all. The first is stored."""


class Frame(NamedTuple):
    """An image as the teacher sees it."""

    sample: Sample
    view: NDArray[np.uint8]
    sha256: str
    image_size_px: tuple[int, int]


class _Answer(NamedTuple):
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
    ) -> None:
        self.spec = spec
        self._source = source
        self._samples = samples
        self._view = view
        self._teacher = teacher
        self._batch_size = options.batch_size
        self._accept_noise = options.accept_noise
        self._aside = Aside()
        self._threads = worker_threads(options.workers)
        self._readers = ThreadPoolExecutor(self._threads, "read")
        self._encoders = ThreadPoolExecutor(self._threads, "encode")
        self._counting = Lock()
        self._encoded, self._encoded_bytes = 0, 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._readers.shutdown(wait=False, cancel_futures=True)
        self._encoders.shutdown(wait=False, cancel_futures=True)
        self._aside.close()

    @property
    def encoded(self) -> tuple[int, int]:
        """How many samples were encoded here, and their bytes."""
        with self._counting:
            return self._encoded, self._encoded_bytes

    def frames(self, shards: Iterable[int]) -> Iterator[Future[Frame]]:
        """The images of these shards in their order, read ahead of their use once the first is asked for."""
        wanted = (self._samples[i] for shard in shards for i in self.spec.shard_samples(shard))
        return in_order(self._readers, self._read, wanted, ahead=2 * self._batch_size + self._threads)

    def teach(
        self,
        shard: int,
        frames: Iterator[Future[Frame]],
        waits: Waits,
        after: Callable[[int, Sequence[Future[EncodedSample]]], None] | None = None,
        beat: Callable[[], None] = lambda: None,
    ) -> list[Future[EncodedSample]]:
        """Show the teacher the next frames, those of `shard`, batch by batch; encoding goes on behind.

        `after` is called after each batch, with its size and all that is encoded, or will be; `beat` each second that
        the teacher takes. Raises PipelineError for an
        image or an answer that is at fault, naming it.
        """
        count = len(self.spec.shard_samples(shard))
        encoded: list[Future[EncodedSample]] = []
        while len(encoded) < count:
            size = min(self._batch_size, count - len(encoded))
            with waits.while_at("reading"):
                batch = [future.result() for future in islice(frames, size)]
            with waits.while_at("teacher") as count_so_far:
                answers = self._ask(batch, partial(_both, count_so_far, beat))
            encoded += [self._encoders.submit(self._encode, *both) for both in zip(batch, answers, strict=True)]
            if after:
                after(len(batch), encoded)
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
            with waits.while_at("teacher") as count_so_far:
                answers = self._ask([frames[number] for number in numbers], partial(_both, count_so_far, beat))
            return [answer.depth for answer in answers]

        check_repeats(
            ask,
            range(len(frames)),
            teacher=self._teacher.card.name,
            precision=self._teacher.card.precision,
            max_rel_error=self.spec.max_rel_error,
            metric=self.spec.depth_space in NEVER_0,
            batch_size=self._batch_size,
        )

    def _ask(self, batch: list[Frame], beat: Callable[[], None]) -> list[_Answer]:
        """`_predict` in a thread of its own, so that Ctrl-C works while a network is at work."""
        cuda = torch.cuda.current_device() if torch.cuda.is_initialized() else None  # type: ignore[no-untyped-call]

        def predict() -> list[_Answer]:
            if cuda is not None:  # of each thread its own
                torch.cuda.set_device(cuda)
            with torch.no_grad():
                return self._predict(batch)

        return self._aside.call(predict, BEAT_S, beat)

    def _read(self, sample: Sample) -> Frame:
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

    def _predict(self, batch: list[Frame]) -> list[_Answer]:
        images = None
        if self._teacher.needs_images:
            stacked = np.stack([frame.view for frame in batch])
            images = torch.from_numpy(stacked).permute(0, 3, 1, 2).float() / 255
        framing = Framing(self._view, [frame.image_size_px for frame in batch])
        depth, dpm, edges = answer_of(self._teacher, images, [frame.sample.id for frame in batch], framing)
        self._check_shapes(depth, edges, len(batch))
        for frame, one in zip(batch, depth, strict=True):
            self._check_values(frame.sample.id, one)
        depths = depth.float().numpy()
        if self.spec.dpm_kind == "gaussian":
            return [_Answer(one, None, None) for one in depths]
        if dpm is None or (edges is not None) != (self.spec.carried_from in MOVING):
            found = "no map" if dpm is None else f"a map {'without' if edges is None else 'with'} bins of its own"
            raise PipelineError(
                f"teacher {self._teacher.card.name!r} gave {found} for {batch[0].sample.id}, but not for the first "
                "sample: expected every answer to be of one kind; mend its code, or use `dpm=gaussian`"
            )
        if edges is None:
            own = self._teacher.bin_edges_m if self.spec.carried_from else None
            return [_Answer(one, its, own) for one, its in zip(depths, dpm.float().numpy(), strict=True)]
        return [_Answer(*each) for each in zip(depths, dpm.float().numpy(), edges.numpy(), strict=True)]

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

    def _check_values(self, sample_id: str, depth: torch.Tensor) -> None:
        """Raise PipelineError for numbers of a network that are no depth; those of files are looked at when read."""
        if not self._teacher.needs_images:
            return
        card = self._teacher.card
        wrong = depth.isinf() if may_lack_values(self._teacher) else ~depth.isfinite()
        if bool(wrong.any()):
            raise PipelineError(
                f"teacher {card.name!r} gave NaN or inf at {int(wrong.sum())} pixels of {sample_id}: expected finite "
                f"depth; {remedy_of_infinity(card)}"
            )
        below = depth <= 0
        if self.spec.depth_space == "metric_m" and bool(below.any()):
            raise PipelineError(
                f"teacher {card.name!r} gave {float(depth[below][0]):g} m, one of {int(below.sum())} pixels of "
                f"{depth.numel()} of {sample_id}: expected depth above 0; {REMEDY_OF_NONPOSITIVE}"
            )

    def _encode(self, frame: Frame, answer: _Answer) -> EncodedSample:
        depth, dpm, edges_m = answer
        cost: CarryCost | None = None
        try:
            if dpm is not None and edges_m is not None:
                dpm, cost = carry(dpm, edges_m, np.array(self.spec.bin_edges))
            encoded = encode_sample(self.spec, depth, dpm, None if cost is None else cost.kl_nats)
        except ValueError as error:
            raise PipelineError(f"{frame.sample.id}, teacher {self._teacher.card.name!r}: {error}") from error
        if cost is not None:
            encoded.row.update(zip(CARRIED_ROWS, cost, strict=True))
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
