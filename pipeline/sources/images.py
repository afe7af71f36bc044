"""Reads image and depth files. Whatever is wrong with one is a ValueError that names it and what to do.

EXIF orientation is not applied: the pixel grid of the file is the grid of its ground truth. Only PNG, JPEG
and WebP are opened, because some other decoders of Pillow start programs.

Shape legend: H, W pixels.
"""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from ..fileio import open_regular, sha256_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
FORMATS = ("PNG", "JPEG", "WEBP")
LIMIT_PIXELS = 2**25
"""A frame of 8K. Some kilobytes of PNG can say so too, and decoding takes 14 bytes a pixel."""
LIMIT_BYTES = 2**28
LIMIT_SCANS = 64
"""Of a JPEG; encoders write one, or about ten."""
JPEG_SCAN = b"\xff\xda"


def resolve_image(path: str) -> str:
    """The image file that is really there: `path`, or the same name with another of IMAGE_SUFFIXES.

    KITTI lists say `.png` where many disks hold `.jpg`. Raises ValueError if there is none.
    """
    if os.path.exists(path):  # noqa: PTH110 - text in, text out: a Path for each of a million reads costs more
        return path
    stem, suffix = os.path.splitext(path)  # noqa: PTH122 - as above
    for other in IMAGE_SUFFIXES:
        if other != suffix and os.path.exists(stem + other):  # noqa: PTH110 - as above
            return stem + other
    tried = ", ".join(other for other in IMAGE_SUFFIXES if other != suffix)
    raise ValueError(
        f"image {path}: no such file (nor with {tried}); check the root given to --source, and that the "
        "split lists only images you have"
    )


def read_rgb(path: str) -> NDArray[np.uint8]:
    """Image (H, W, 3) uint8 RGB; a greyscale or palette image is spread to RGB, transparency is dropped.

    Raises ValueError for a file that is missing, does not decode, is cut off, has 16 bits, or is too large.
    """
    path = resolve_image(path)
    return _decode_rgb(path, read_bytes(path, "image"))


def read_image_with_sha256(path: str) -> tuple[NDArray[np.uint8], str]:
    """As `read_rgb`, with the sha256 of the file's bytes; the file is read once."""
    path = resolve_image(path)
    data = read_bytes(path, "image")
    return _decode_rgb(path, data), sha256_bytes(data)


def read_png16(path: str, what: str = "depth") -> NDArray[np.uint16]:
    """The numbers (H, W) uint16 of a greyscale PNG of 16 bits. Raises ValueError for any other file."""
    image = _open(path, read_bytes(path, what), what)
    if image.format != "PNG" or image.mode not in {"I;16", "I;16B"}:
        raise ValueError(
            f"{what} {path}: {image.format} of Pillow mode {image.mode!r}, expected a greyscale PNG of 16 "
            "bits; a colour map or an 8-bit copy holds no distances: write the depth as uint16"
        )
    return np.array(image, dtype=np.uint16)


def read_depth_png_m(path: str, metres_per_unit: float, invalid: Iterable[float] | None = None) -> NDArray[np.float32]:
    """Depth (H, W) float32 metres of a 16-bit PNG, NaN where the file holds 0 or one of `invalid`.

    Raises ValueError for a file that is missing, does not decode, or is no greyscale PNG of 16 bits.
    """
    units = read_png16(path)
    depth_m = (units * np.float64(metres_per_unit)).astype(np.float32)
    for number in (0, *(invalid or ())):
        depth_m[units == number] = np.nan
    return depth_m


def read_bytes(path: str, what: str, limit_bytes: int | None = None) -> bytes:
    """All of a regular file. Raises ValueError where it is missing, not readable, or larger than the limit."""
    limit_bytes = LIMIT_BYTES if limit_bytes is None else limit_bytes
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > limit_bytes:
                raise ValueError(
                    f"{what} {path}: {size} bytes, expected at most {limit_bytes}; is this a frame at all?"
                )
            return file.read(limit_bytes)
    except FileNotFoundError as error:
        raise ValueError(
            f"{what} {path}: no such file; check the root given to --source, and what the split lists"
        ) from error
    except OSError as error:
        raise ValueError(f"{what} {path}: {error.strerror}; expected a readable file") from error


def check_pixels(height: int, width: int, where: str) -> None:
    """Raises ValueError for a declared size that no frame has; to be asked before anything is allocated."""
    if not (height > 0 and width > 0 and height * width <= LIMIT_PIXELS):
        raise ValueError(f"{where}: declares {height}x{width} pixels, expected 1 to {LIMIT_PIXELS}")


def _decode_rgb(path: str, data: bytes) -> NDArray[np.uint8]:
    image = _open(path, data, "image")
    if image.mode.startswith(("I", "F")):
        raise ValueError(
            f"image {path}: Pillow mode {image.mode!r}, expected 8 bits a channel; is this a depth file? "
            "Convert an image to 8 bits first"
        )
    return np.array(image.convert("RGB"), dtype=np.uint8)


def _open(path: str, data: bytes, what: str) -> Image.Image:
    """Decode from memory, after checking the declared size."""
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        # Each scan of a progressive JPEG is a pass over all pixels, and may be a few bytes.
        if image.format == "JPEG" and data.count(JPEG_SCAN) > LIMIT_SCANS:
            raise ValueError(f"{data.count(JPEG_SCAN)} scans, expected at most {LIMIT_SCANS}")  # noqa: TRY301 - told below
        pixels = image.width * image.height
        if pixels <= LIMIT_PIXELS:
            image.load()
            return image
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        pixels = None
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, zlib.error ...
        raise ValueError(
            f"{what} {path}: does not decode ({error}), expected a whole {', '.join(FORMATS)} file of "
            f"{len(data)} bytes; copy or download it again"
        ) from error
    size = "too many" if pixels is None else str(pixels)
    raise ValueError(
        f"{what} {path}: declares {size} pixels, expected at most {LIMIT_PIXELS}; make it smaller, or take "
        "it out of the split"
    )
