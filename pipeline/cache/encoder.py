"""Encode predictions as samples of a store, in threads, and check their values.

Shape legend: K bins, h w pixels of the teacher's own output.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..depth.rebin import RebinCost, rebin
from ..errors import PipelineError
from ..store.write.encode import EncodedSample, compress, encode_sample
from ..teachers.base import NONPOSITIVE_REMEDY, may_lack_values, nonfinite_remedy
from .outcome import row_of
from .selection import Selected

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..common.profile import Profile
    from ..store.format.spec import StoreSpec
    from ..store.write.encode_extras import SampleExtras
    from ..teachers.base import Teacher
    from .batches import Frame
    from .extras import Bases

REBIN_ROWS = ("dpm_carried_kl_nats", "carried_depth_share", "carried_clipped_share")
"""Journal columns of a sample's rebinning cost, so that a resumed run can report all samples. The first is stored."""


class Prediction(NamedTuple):
    """Prediction for one frame, on the host."""

    depth: NDArray[np.float32]
    dpm: NDArray[np.float32] | None
    bin_edges_m: NDArray[np.floating] | None
    """Edges of the map; None if they are the store's."""


class SampleEncoder:
    """Encodes in `threads` threads."""

    def __init__(self, spec: StoreSpec, teacher: Teacher, profile: Profile, threads: int, bases: Bases = ()) -> None:
        self._spec, self._teacher, self._profile = spec, teacher, profile
        self._bases = dict(bases)
        self._threads = ThreadPoolExecutor(threads, "encode")
        self._counting = Lock()
        self._encoded, self._encoded_bytes = 0, 0

    def close(self) -> None:
        """Drop what is not encoded yet."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    @property
    def encoded(self) -> tuple[int, int]:
        """Number of encoded samples, and their bytes."""
        with self._counting:
            return self._encoded, self._encoded_bytes

    def submit(
        self, frame: Frame, prediction: Prediction | Selected, extras: SampleExtras | None = None
    ) -> Future[EncodedSample]:
        """Encode in a thread. The future raises PipelineError for invalid values."""
        return self._threads.submit(self._encode_all, frame, prediction, extras)

    def _encode_all(
        self, frame: Frame, prediction: Prediction | Selected, extras: SampleExtras | None
    ) -> EncodedSample:
        encoded = self._encode(frame, prediction)
        if extras is not None:
            try:
                with self._profile.span("encode"):
                    encoded = encoded.with_extras(self._spec, extras, self._bases)
            except ValueError as error:
                raise PipelineError(f"{frame.sample.id}, teacher {self._teacher.card.name!r}: {error}") from error
        with self._counting:
            self._encoded += 1
            self._encoded_bytes += encoded.size_bytes
        return encoded

    def _encode(self, frame: Frame, prediction: Prediction | Selected) -> EncodedSample:
        if isinstance(prediction, Selected):
            with self._profile.span("download"):
                part = prediction.get(may_lack_values=may_lack_values(self._teacher))
            if part is not None:
                with self._profile.span("encode"):
                    return self._finish(frame, compress(self._spec, part.residual, part.stored, part.row))
            dpm = None if prediction.dpm is None else prediction.dpm.cpu().numpy()
            prediction = Prediction(prediction.depth.cpu().numpy(), dpm, None)
        with self._profile.span("encode"):
            return self._encode_on_cpu(frame, prediction)

    def _encode_on_cpu(self, frame: Frame, prediction: Prediction) -> EncodedSample:
        depth, dpm, edges_m = prediction
        self._check_values(frame.sample.id, depth)
        cost: RebinCost | None = None
        try:
            if dpm is not None and edges_m is not None:
                dpm, cost = rebin(dpm, edges_m, np.array(self._spec.bin_edges))
            encoded = encode_sample(self._spec, depth, dpm, None if cost is None else cost.kl_nats)
        except ValueError as error:
            raise PipelineError(f"{frame.sample.id}, teacher {self._teacher.card.name!r}: {error}") from error
        if cost is not None:
            encoded.row.update(zip(REBIN_ROWS, cost, strict=True))
        encoded.row.update(row_of(self._spec, depth))
        return self._finish(frame, encoded)

    def _finish(self, frame: Frame, encoded: EncodedSample) -> EncodedSample:
        """Add the columns of the image."""
        encoded.row["image_sha256"] = frame.sha256
        encoded.row["image_size_px"] = list(frame.image_size_px)
        return encoded

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
        if self._spec.depth_space == "metric_m" and below.any():
            raise PipelineError(
                f"teacher {card.name!r} predicted {float(depth[below][0]):g} m for {sample_id} (0 or less at "
                f"{np.count_nonzero(below)} of {depth.size} pixels), expected positive depth: {NONPOSITIVE_REMEDY}"
            )
