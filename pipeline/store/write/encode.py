"""Encode a teacher's output for one image as chunks and a row of a store.

Shape legend: K bins, h w pixels of the teacher's own output.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ...errors import PipelineError
from ..format.codec import AffineCodec, LogCodec, encode_chunk, residual_of_codes
from ..format.layout import PLANES_PER_CHUNK
from ..format.sparse import encode_sparse
from .encode_extras import SampleExtras, encode_extras

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from ..format.features import Basis
    from ..format.sparse import SparseMap
    from ..format.spec import StoreSpec


class EncodedSample(NamedTuple):
    """One sample ready for its shard."""

    size_px: tuple[int, int]
    chunks: dict[str, list[bytes | None]]
    """Chunks of each sharded array, by path."""
    row: dict[str, Any]

    def with_extras(self, spec: StoreSpec, extras: SampleExtras, bases: Mapping[str, Basis]) -> EncodedSample:
        """Return the sample with its optional parts, as `encode_extras`."""
        chunks, row = encode_extras(spec, extras, bases)
        return EncodedSample(self.size_px, self.chunks | chunks, self.row | row)

    @property
    def size_bytes(self) -> int:
        """Bytes of its chunks, as in `sizes.chunk_bytes`."""
        return sum(len(chunk or b"") for chunks in self.chunks.values() for chunk in chunks)


def encode_sample(
    spec: StoreSpec,
    depth: NDArray[np.float32],
    dpm: NDArray[np.float32] | None,
    carried_kl_nats: float | None = None,
) -> EncodedSample:
    """Encode depth (h, w), NaN where invalid, and for `sparse` and `dense` stores its map (K, h, w).

    `carried_kl_nats` is the mean divergence over pixels of rebinning the map; required if `spec.carried_from` is set.
    Deterministic and thread-safe; the slow parts release the GIL.
    Raises PipelineError for values that the depth space does not allow.
    """
    codes, row = _encode_depth(spec, depth)
    stored: SparseMap | None = None
    if spec.dpm_kind != "gaussian":
        assert dpm is not None
        assert dpm.shape == (spec.bin_count, *depth.shape)
    if spec.dpm_kind == "sparse":
        assert spec.max_dpm_kl is not None
        stored, divergence = encode_sparse(dpm, spec.max_dpm_kl, spec.weight_bits)  # type: ignore[arg-type]  # above
        known = divergence[~np.isnan(divergence)]
        row |= {
            "dpm_kl_nats": float(known.mean()) if known.size else 0.0,
            "dpm_max_kl_nats": float(known.max(initial=0.0)),
            "dpm_planes": len(stored.gap),
        }
    sample = compress(spec, residual_of_codes(codes), stored, row)
    if spec.dpm_kind == "dense":
        assert dpm is not None
        # Round tiny probabilities up to float16's smallest: 0 would make divergences infinite.
        half = np.where(dpm > 0, np.maximum(dpm, np.finfo(np.float16).smallest_subnormal), dpm).astype(np.float16)
        sample.chunks["dpm/probability"] = [encode_chunk(half[None], spec.compression_level)]
    assert (carried_kl_nats is None) == (spec.carried_from is None)
    if carried_kl_nats is not None:
        if not 0 <= carried_kl_nats < np.inf:
            raise PipelineError(
                f"divergence of rebinned maps is {carried_kl_nats} nats: expected a finite number, 0 or above"
            )
        row["dpm_carried_kl_nats"] = carried_kl_nats
    return sample


def compress(
    spec: StoreSpec, residual: NDArray[np.uint16], stored: SparseMap | None, row: dict[str, Any]
) -> EncodedSample:
    """Compress a residual (h, w) and a sparse map, as computed by `encode_sample` or on a GPU, with its columns."""
    chunks: dict[str, list[bytes | None]] = {"depth": [encode_chunk(residual[None], spec.compression_level)]}
    if stored is not None:
        blocks = -(-spec.bin_count // PLANES_PER_CHUNK)
        level = spec.compression_level
        chunks["dpm/gap"] = _plane_chunks(stored.gap, blocks, level)
        chunks["dpm/weight"] = _plane_chunks(stored.weight, blocks, level)
        chunks["dpm/tail"] = [encode_chunk(stored.tail[None], level)]
    return EncodedSample((residual.shape[0], residual.shape[1]), chunks, row)


def _encode_depth(spec: StoreSpec, depth: NDArray[np.float32]) -> tuple[NDArray[np.uint16], dict[str, Any]]:
    """Return codes (h, w) of depth (h, w), and its columns."""
    codec = spec.depth_codec()
    invalid = np.isnan(depth)
    row: dict[str, Any] = {"invalid_share": float(np.mean(invalid))}
    if isinstance(codec, LogCodec):
        codes, clipped = codec.encode(depth)
        counted = ~invalid & ~clipped
        error = np.abs(codec.decode(codes)[counted].astype(np.float64) / depth[counted] - 1)
        row["clipped_share"] = float(np.mean(clipped))
    else:
        assert isinstance(codec, AffineCodec)
        codes, scale, offset = codec.encode(depth)
        back = codec.decode(codes, scale, offset)[~invalid].astype(np.float64)
        span = max(scale * (2**codec.bits - 2), np.finfo(np.float64).tiny)
        error = np.abs(back - depth[~invalid]) / span
        row |= {"clipped_share": 0.0, "code_scale": scale, "code_offset": offset}
    row["max_rel_error"] = float(error.max(initial=0.0))
    return codes, row


def _plane_chunks(planes: NDArray[np.unsignedinteger], blocks: int, level: int) -> list[bytes | None]:
    chunks: list[bytes | None] = []
    for block in range(blocks):
        part = planes[block * PLANES_PER_CHUNK : (block + 1) * PLANES_PER_CHUNK]
        if len(part) == 0:
            chunks.append(None)
            continue
        whole = np.zeros((1, PLANES_PER_CHUNK, *planes.shape[1:]), planes.dtype)
        whole[0, : len(part)] = part
        chunks.append(encode_chunk(whole, level))
    return chunks
