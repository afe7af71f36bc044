"""Compute on a GPU what a store keeps of a batch of predictions, so that only that is copied to the host.

Only `get`, which runs in the threads that compress, waits for the GPU.

Shape legend: B batch, K bins, M planes, P pixels, h w pixels of the teacher's own output.
"""

from __future__ import annotations

import os
from contextlib import nullcontext
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from ..store.format.codec import LogCodec
from ..store.format.sparse import SparseMap, encode_pixels
from ..store.write.encode_torch import DepthCounts, DepthEncoder, counts_of

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from numpy.typing import NDArray
    from torch import Tensor

    from ..store.format.spec import StoreSpec
    from ..store.write.select_triton import SelectedMaps
    from ..teachers.base import TeacherOutput

DEVICES = {"cuda"}
"""Types of devices that compute the selection. Others lack float64, or are the CPU."""
MAX_PLANES = 64
"""Planes of a map that have room on the device. A map that needs more is encoded by the CPU."""
MAX_UNCERTAIN = 0.01
"""Fraction of pixels left to the CPU, above which it encodes the whole image."""


class _Download:
    """A copy of tensors to the host that may not be finished."""

    def __init__(self, *tensors: Tensor) -> None:
        self._done: torch.cuda.Event | None = None
        if tensors[0].is_cuda:
            self._host = [torch.empty(each.shape, dtype=each.dtype, pin_memory=True) for each in tensors]
            for host, tensor in zip(self._host, tensors, strict=True):
                host.copy_(tensor, non_blocking=True)
            self._done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            self._done.record()
        else:
            self._host = list(tensors)

    def get(self) -> list[NDArray[Any]]:
        """Wait for the copy and return its arrays."""
        if self._done is not None:
            self._done.synchronize()
        return [host.numpy() for host in self._host]


class StoredPart(NamedTuple):
    """What is stored of one image, on the host."""

    residual: NDArray[np.uint16]
    """(h, w)."""
    row: dict[str, Any]
    stored: SparseMap | None


class Selected(NamedTuple):
    """The stored part of one image's prediction, on its way to the host."""

    download: _Download
    number: int
    """In the batch."""
    depth: Tensor
    """(h, w), still on the device, as is `dpm` (K, h, w)."""
    dpm: Tensor | None
    maps: SelectedMaps | None
    spec: StoreSpec

    def get(self, *, may_lack_values: bool) -> StoredPart | None:
        """Wait for the stored part; None where the CPU must encode the image or report what is wrong with it."""
        residuals, statistics, *map_counts = self.download.get()
        residual, counts = residuals[self.number].view(np.uint16), counts_of(statistics[self.number])
        if counts.infinite or counts.nonpositive or (counts.invalid and not may_lack_values):
            return None
        row = row_of_counts(counts, residual.size)
        if self.maps is None:
            return StoredPart(residual, row, None)
        sparse = self._sparse_map(*map_counts[0][self.number].tolist())
        if sparse is None:
            return None
        stored, divergence = sparse
        known = divergence[~np.isnan(divergence)]
        row["dpm_kl_nats"] = float(known.mean()) if known.size else 0.0
        row["dpm_max_kl_nats"] = float(known.max(initial=0.0))
        row["dpm_planes"] = len(stored.gap)
        return StoredPart(residual, row, stored)

    def _sparse_map(self, planes: int, uncertain: int, improper: int) -> tuple[SparseMap, NDArray[np.float64]] | None:
        """Return the map and its divergence (P,) from the kernel's result."""
        maps, dpm = self.maps, self.dpm
        assert maps is not None
        assert dpm is not None
        bins, height, width = dpm.shape
        limit = maps.bin_plus_one.shape[1]
        if improper or planes > limit or uncertain > MAX_UNCERTAIN * height * width:
            return None
        assert self.spec.max_dpm_kl is not None
        with _side_stream(dpm.device):  # the default stream already has the next batch
            columns = [each[self.number].cpu().numpy() for each in (maps.tail, maps.divergence)]
            bin_plus_one = maps.bin_plus_one[self.number, :planes].cpu().numpy().view(np.uint16)
            weight = maps.weight[self.number, :planes].cpu().numpy().view(np.uint16)
            (pixels,) = np.nonzero(maps.uncertain[self.number].cpu().numpy()) if uncertain else (np.zeros(0, np.intp),)
            given = dpm.flatten(1)[:, torch.from_numpy(pixels).to(dpm.device)].T.cpu().numpy() if uncertain else None
        tail, divergence = columns[0].view(np.uint16), columns[1]
        gap = bin_plus_one.copy()
        np.subtract(gap[1:], bin_plus_one[:-1], out=gap[1:], where=bin_plus_one[1:] > 0)
        if given is not None:
            own_gap, own_weight, tail[pixels], divergence[pixels] = encode_pixels(
                np.ascontiguousarray(given), self.spec.max_dpm_kl, self.spec.weight_bits
            )
            missing = [(0, max(0, own_gap.shape[1] - planes)), (0, 0)]
            gap, weight = np.pad(gap, missing), np.pad(weight, missing)
            for whole, own in ((gap, own_gap), (weight, own_weight)):
                whole[:, pixels] = 0
                whole[: own.shape[1], pixels] = own.T
        known = divergence[~np.isnan(divergence)]
        if known.size and known.mean() > self.spec.max_dpm_kl:
            return None
        shape, is_byte = (-1, height, width), self.spec.weight_bits == 8
        return SparseMap(
            _unsigned(gap.reshape(shape), is_byte=bins < 256),
            _unsigned(weight.reshape(shape), is_byte=is_byte),
            _unsigned(tail.reshape(height, width), is_byte=is_byte),
        ), divergence


class Selector:
    """Selects for one store."""

    def __init__(self, spec: StoreSpec) -> None:
        self._spec = spec
        self._encoder: DepthEncoder | None = None
        codec = spec.depth_codec()
        if isinstance(codec, LogCodec) and spec.dpm_kind in {"gaussian", "sparse"} and spec.carried_from is None:
            self._encoder = DepthEncoder(codec, (spec.bin_edges[0], spec.bin_edges[-1]))

    def select(self, output: TeacherOutput) -> list[Selected] | None:
        """Start the selection of a batch; None where the CPU must encode it."""
        device = output.depth.device
        if self._encoder is None or device.type not in DEVICES:
            return None
        depth, dpm = output.depth.float(), None
        maps, tensors = None, []
        if self._spec.dpm_kind == "sparse":
            fits = output.dpm is not None and output.dpm.shape == (len(depth), self._spec.bin_count, *depth.shape[1:])
            if not fits or output.bin_edges_m is not None or not _has_triton(device):
                return None
            from ..store.write.select_triton import select  # an optional package

            assert output.dpm is not None
            assert self._spec.max_dpm_kl is not None
            dpm = output.dpm.float()
            maps = select(dpm, self._spec.max_dpm_kl, self._spec.weight_bits, min(self._spec.bin_count, MAX_PLANES))
            counts = maps.kept.masked_fill(maps.uncertain, 0).amax(dim=1)
            tensors = [torch.stack([counts.int(), maps.uncertain.sum(1).int(), maps.improper.sum(1).int()], dim=1)]
        download = _Download(*self._encoder.encode(depth), *tensors)
        return [
            Selected(download, number, depth[number], None if dpm is None else dpm[number], maps, self._spec)
            for number in range(len(depth))
        ]


def row_of_counts(counts: DepthCounts, pixels: int) -> dict[str, Any]:
    """Return the columns that `encode.encode_sample` and `outcome.row_of` compute from depth."""
    valid = pixels - counts.invalid
    return {
        "invalid_share": counts.invalid / pixels,
        "clipped_share": counts.clipped / pixels,
        "max_rel_error": counts.max_rel_error,
        "outside_bins_share": counts.outside_bins / valid if valid else 0.0,
        "is_constant": int(counts.is_constant),
    }


def _unsigned(values: NDArray[np.generic], *, is_byte: bool) -> NDArray[np.unsignedinteger]:
    """Return values with the type that `encode_sparse` stores."""
    return values.astype(np.uint8) if is_byte else values.astype(np.uint16)


def _has_triton(device: torch.device) -> bool:
    """Return whether Triton's kernels run on a device; its interpreter runs them on the CPU, for tests."""
    on_device = device.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1"
    return on_device and find_spec("triton") is not None


def _side_stream(device: torch.device) -> AbstractContextManager[Any]:
    return torch.cuda.stream(torch.cuda.Stream(device)) if device.type == "cuda" else nullcontext()  # type: ignore[no-untyped-call]
