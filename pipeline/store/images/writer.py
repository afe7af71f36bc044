"""Write an image cache shard by shard.

Shape legend: H, W pixels of the view.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from ..format.codec import encode_chunk
from ..write.journal import ShardRecord
from ..write.staging import StagedWriter, write_shard_file
from .codec import residual_of_image
from .spec import ImageSpec

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray


class EncodedImage(NamedTuple):
    """One image ready for its shard."""

    chunk: bytes
    sha256: str
    """Hash of the source file."""
    file_size_px: tuple[int, int]
    """(height, width) of the source image, before the view."""


def encode_image(view: NDArray[np.uint8], sha256: str, file_size_px: tuple[int, int]) -> EncodedImage:
    """Encode the view (H, W, 3) uint8 of an image losslessly. Thread-safe."""
    return EncodedImage(encode_chunk(residual_of_image(view)[None]), sha256, file_size_px)


class ImageWriter(StagedWriter[ImageSpec]):
    """Writes one image cache; a context manager that holds the target's lock.

    Raises PipelineError on entry if the target exists or another process is writing it.
    """

    def write_shard(self, shard: int, images: Sequence[EncodedImage]) -> int:
        """Write a shard durably, then record it in the journal. Returns its bytes."""
        assert len(images) == len(self.spec.shard_samples(shard))
        file, facts = write_shard_file(self._store, self.spec.rgb, shard, [[image.chunk] for image in images])
        rows: dict[str, list[Any]] = {
            "image_sha256": [image.sha256 for image in images],
            "image_size_px": [list(image.file_size_px) for image in images],
        }
        record = ShardRecord(shard, self.spec.size_px, {file: facts}, rows)
        self._note(record)
        return record.size_bytes

    def _layout(self, size_px: tuple[int, int]) -> ImageSpec:
        assert size_px == self.spec.size_px
        return self.spec
