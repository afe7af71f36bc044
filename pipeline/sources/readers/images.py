"""Reads image and depth files. Whatever is wrong with one is a ValueError that names it and what to do.

An image that its EXIF says is turned is turned upright, as every viewer shows it, and its ground truth with it: see
`turned_as`. Only PNG, JPEG and WebP are opened, because some other decoders of Pillow start programs.

Shape legend: H, W pixels.
"""

from __future__ import annotations

import io
import logging
import os
import warnings
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from PIL import ExifTags, Image

from ...common.fileio import open_regular, printable, sha256_bytes
from ...errors import PipelineError
from .image_damage import check_jpeg, check_png

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from numpy.typing import NDArray

T = TypeVar("T", bound=np.generic)
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
OTHER_IMAGES = (".bmp", ".gif", ".tif", ".tiff", ".heic", ".avif", ".jp2", ".ppm", ".pgm")
"""Images that are not read: left out, but not in silence."""
FORMATS = ("PNG", "JPEG", "WEBP")
LIMIT_PIXELS = 2**25
"""A frame of 8K. Some kilobytes of PNG can say so too, and decoding takes 14 bytes a pixel."""
LIMIT_BYTES = 2**28
LIMIT_SCANS = 64
"""Of a JPEG; encoders write one, or about ten."""
JPEG_SCAN = b"\xff\xda"
CHECKS = {"PNG": check_png, "JPEG": check_jpeg}
TURNS: dict[int, Callable[[NDArray[Any]], NDArray[Any]]] = {
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: pixels[::-1].swapaxes(0, 1),
    7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1),
    8: lambda pixels: pixels[:, ::-1].swapaxes(0, 1),
}
"""EXIF orientation -> the upright picture (H, W, ...) of the file's pixels."""
FIRST_QUARTER_TURN = 5
"""From this orientation on, height and width change places."""
LOG = logging.getLogger(__name__)
warnings.filterwarnings("ignore", "Corrupt EXIF data", UserWarning)  # of Pillow; then nothing is turned
_turned_is_said = False


def resolve_image(path: str) -> str:
    """The image file that is really there: `path`, or the same name with another of IMAGE_SUFFIXES.

    KITTI lists say `.png` where many disks hold `.jpg`. Raises PipelineError if there is none.
    """
    if os.path.exists(path):  # noqa: PTH110 - text in, text out: a Path for each of a million reads costs more
        return path
    stem, suffix = os.path.splitext(path)  # noqa: PTH122 - as above
    for other in (*IMAGE_SUFFIXES, *map(str.upper, IMAGE_SUFFIXES)):
        if other != suffix and os.path.exists(stem + other):  # noqa: PTH110 - as above
            return stem + other
    tried = ", ".join(other for other in IMAGE_SUFFIXES if other != suffix)
    raise PipelineError(
        f"image {path}: no such file (nor with {tried}); check the root given to `source`, and that the "
        "split lists only images you have"
    )


def read_rgb(path: str) -> NDArray[np.uint8]:
    """Image (H, W, 3) uint8 RGB, upright; a greyscale or palette image is spread to RGB, transparency is dropped.

    Raises PipelineError for a file that is missing, does not decode, is cut off, has 16 bits, or is too large.
    """
    path = resolve_image(path)
    return _decode_rgb(path, read_bytes(path, "image"))[0]


def read_image_with_sha256(path: str) -> tuple[NDArray[np.uint8], str]:
    """As `read_rgb`, with the sha256 of the file's bytes; the file is read once.

    Of an image that was turned, it is the sha256 of the upright pixels: stores that were made of it lying on its side,
    by releases that did not turn it, are then of another image, and are refused.
    """
    path = resolve_image(path)
    data = read_bytes(path, "image")
    image, turned = _decode_rgb(path, data)
    return image, sha256_bytes(image.tobytes() if turned else data)


def turned_as(path: str, values: NDArray[T], what: str) -> NDArray[T]:
    """Numbers (H, W) of the pixels of an image file, upright as `read_rgb` gives the image.

    A depth file has no EXIF: its numbers may lie as the image's file does or as the image is seen, and their shape
    tells which. Raises PipelineError, which names `what`, where the shape does not tell.
    """
    orientation, (height, width) = _orientation_and_size(path)
    if orientation == 1:
        return values
    rows, columns = values.shape
    if orientation >= FIRST_QUARTER_TURN and height != width and rows != columns:
        if (rows > columns) != (height > width):  # it lies as the upright image does
            return values
        return np.ascontiguousarray(TURNS[orientation](values))
    raise PipelineError(
        f"{what}: {rows}x{columns} px do not tell whether it is turned as its image is ({path}: EXIF orientation "
        f"{orientation}); turn the image upright in its file, for example with `exiftran -ai` or ImageMagick's "
        "`mogrify -auto-orient`, and the depth as it then lies"
    )


def orientation_of(path: str) -> int:
    """How EXIF says the pixels of an image file lie, 1 to 8; 1 is upright, and a file that cannot be read."""
    return _orientation_and_size(path)[0]


def read_png16(path: str, what: str = "depth") -> NDArray[np.uint16]:
    """The numbers (H, W) uint16 of a greyscale PNG of 16 bits. Raises PipelineError for any other file."""
    image = _open(path, read_bytes(path, what), what)
    if image.format != "PNG" or image.mode not in {"I;16", "I;16B"}:
        raise PipelineError(
            f"{what} {path}: {image.format} of Pillow mode {image.mode!r}, expected a greyscale PNG of 16 "
            "bits; a colour map or an 8-bit copy holds no distances: write the depth as uint16"
        )
    return np.array(image, dtype=np.uint16)


def read_depth_png_m(path: str, metres_per_unit: float, invalid: Iterable[float] | None = None) -> NDArray[np.float32]:
    """Depth (H, W) float32 metres of a 16-bit PNG, NaN where the file holds 0 or one of `invalid`.

    Raises PipelineError for a file that is missing, does not decode, or is no greyscale PNG of 16 bits.
    """
    units = read_png16(path)
    depth_m = (units * np.float64(metres_per_unit)).astype(np.float32)
    for number in (0, *(invalid or ())):
        depth_m[units == number] = np.nan
    return depth_m


def read_bytes(path: str, what: str, limit_bytes: int | None = None) -> bytes:
    """All of a regular file. Raises PipelineError where it is missing, not readable, or larger than the limit."""
    limit_bytes = LIMIT_BYTES if limit_bytes is None else limit_bytes
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > limit_bytes:
                raise PipelineError(
                    f"{what} {path}: {size} bytes, expected at most {limit_bytes}; is this a frame at all?"
                )
            return file.read(limit_bytes)
    except FileNotFoundError as error:
        raise PipelineError(
            f"{what} {path}: no such file; check the root given to `source`, and what the split lists"
        ) from error
    except OSError as error:
        raise PipelineError(f"{what} {path}: {error.strerror}; expected a readable file") from error


def check_pixels(height: int, width: int, where: str) -> None:
    """Raises PipelineError for a declared size that no frame has; to be asked before anything is allocated."""
    if not (height > 0 and width > 0 and height * width <= LIMIT_PIXELS):
        raise PipelineError(f"{where}: declares {height}x{width} pixels, expected 1 to {LIMIT_PIXELS}")


def _decode_rgb(path: str, data: bytes) -> tuple[NDArray[np.uint8], bool]:
    """The upright image, and whether it was turned for that."""
    image = _open(path, data, "image")
    if image.mode.startswith(("I", "F")):
        raise PipelineError(
            f"image {path}: Pillow mode {image.mode!r}, expected 8 bits a channel; is this a depth file? "
            "Convert an image to 8 bits first"
        )
    orientation = _orientation(image)
    pixels = np.array(image.convert("RGB"), dtype=np.uint8)
    if orientation == 1:
        return pixels, False
    global _turned_is_said  # noqa: PLW0603 - said once a process, not for each of a million photographs
    if not _turned_is_said:
        _turned_is_said = True
        LOG.warning(
            "%s: turned upright, as its EXIF says (orientation %d); so is every image like it",
            printable(path),
            orientation,
        )
    return np.ascontiguousarray(TURNS[orientation](pixels)), True


def _orientation(image: Image.Image) -> int:
    """How the file's pixels lie, 1 to 8; 1 is upright, and what EXIF that cannot be read is taken for."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # noqa: BLE001 - as many kinds of error as decoders raise; viewers pass over broken EXIF too
        return 1
    return value if value in TURNS else 1


def _orientation_and_size(path: str) -> tuple[int, tuple[int, int]]:
    """Orientation and (height, width) of a file, without its pixels."""
    try:
        path = resolve_image(path)
        with open_regular(path) as file:
            image = Image.open(file, formats=FORMATS)
            size = image.height, image.width
            # Asked for EXIF, Pillow decodes a PNG, because a chunk with it may come last.
            if image.format == "PNG" and not _may_have_exif(path):
                return 1, size
            return _orientation(image), size
    except Exception:  # noqa: BLE001 - reading the image itself says what is wrong with it
        return 1, (0, 0)


def _may_have_exif(path: str) -> bool:
    """Whether a PNG has a chunk from which Pillow reads an orientation; walks the chunks, 8 bytes of each."""
    with open_regular(path) as file:
        file.seek(8)
        while len(head := file.read(8)) == 8:
            size, name = int.from_bytes(head[:4], "big"), head[4:]
            if name == b"eXIf":
                return True
            start = file.read(min(size, 64)) if name in {b"tEXt", b"zTXt", b"iTXt"} else b""
            if start.startswith((b"Raw profile type", b"XML:com.adobe.xmp")):
                return True
            file.seek(size - len(start) + 4, os.SEEK_CUR)  # and its checksum
    return False


def _open(path: str, data: bytes, what: str) -> Image.Image:
    """Decode from memory, after checking the declared size."""
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        # Each scan of a progressive JPEG is a pass over all pixels, and may be a few bytes.
        if image.format == "JPEG" and data.count(JPEG_SCAN) > LIMIT_SCANS:
            raise PipelineError(f"{data.count(JPEG_SCAN)} scans, expected at most {LIMIT_SCANS}")  # noqa: TRY301 - told below
        pixels = image.width * image.height
        if pixels <= LIMIT_PIXELS:
            if image.format in CHECKS:
                CHECKS[image.format](data)
            image.load()
            return image
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        pixels = None
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, zlib.error ...
        raise PipelineError(
            f"{what} {path}: does not decode ({error}), expected a whole {', '.join(FORMATS)} file of "
            f"{len(data)} bytes; copy or download it again"
        ) from error
    size = "too many" if pixels is None else str(pixels)
    raise PipelineError(
        f"{what} {path}: declares {size} pixels, expected at most {LIMIT_PIXELS}; make it smaller, or take "
        "it out of the split"
    )
