"""Weights from a file into a student's encoder: torchvision's or timm's own, as `.pth` or safetensors. No code is run.

Such a file may come from anybody: its sizes are looked at before its content.
"""

from __future__ import annotations

import os
import warnings
import zipfile
from pickletools import genops  # names a pickle's instructions, and follows none
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch
from torch import Tensor, nn

from ..common.fileio import open_regular, printable, sha256_file
from ..errors import PipelineError
from .encoders import load_imagenet
from .registry import WITH_ENCODER
from .saved_run import MAX_HEADER_BYTES, MAX_WEIGHTS_BYTES, check_safetensors

if TYPE_CHECKING:
    from pathlib import Path
    from typing import BinaryIO

    from .encoders import Encoder
    from .registry import Student

TORCH_SUFFIXES = (".pth", ".pt", ".bin")
_TENSORS = (Tensor, nn.Parameter)
_DTYPES = {torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64}
_ZIP = b"PK\x03\x04"
_OLD_PARTS = 5
"""Pickles at the start of a file that torch wrote before 1.6: magic, protocol, machine, names, order."""


def load_encoder_weights(student: Student, path: Path) -> str:
    """Load pretrained weights into a student's encoder, and return the file's sha256.

    The file holds the state dict of a whole classifier, as torchvision (for a `timm:` student: timm) writes it; what
    the encoder has no use for is dropped, all else must fit.

    Raises PipelineError for a student without an encoder, and for a file that is absent, too large, holds anything but
    tensors, is damaged, or belongs to another network.
    """
    encoder = student.encoder
    if encoder is None:
        raise PipelineError(
            f"student {student.name!r} has no encoder that weights fit: expected one of {', '.join(WITH_ENCODER)}, or "
            "timm:NAME; or leave the weights out"
        )
    try:
        state = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
        load_imagenet(encoder, _checked(state))
        _check_finite(encoder)
    except OSError as error:
        raise PipelineError(f"{path}: {error.strerror or error}; expected a file of {encoder.weights_are}") from error
    except ValueError as error:
        raise PipelineError(f"{path}: {printable(str(error))[:1000]}") from error
    return sha256_file(path)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    check_safetensors(path)
    try:
        return safetensors.torch.load_file(path)
    except safetensors.SafetensorError as error:
        raise PipelineError(f"no safetensors ({error}): is the file whole?") from error


def _read_torch(path: Path) -> Any:  # noqa: ANN401 - a stranger's file
    """Whatever torch reads from a file without running code. Raises OSError or ValueError."""
    if path.suffix not in TORCH_SUFFIXES:
        raise PipelineError(f"expected a name that ends in {', '.join(TORCH_SUFFIXES)} or .safetensors")
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > MAX_WEIGHTS_BYTES:
            raise PipelineError(f"{size} bytes, expected at most {MAX_WEIGHTS_BYTES}")
        try:
            is_zip = file.read(len(_ZIP)) == _ZIP  # which is how torch decides
            file.seek(0)
            _check_zip(file) if is_zip else _check_old(file)
            file.seek(0)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about TorchScript, which is refused
                return torch.load(file, map_location="cpu", weights_only=True)
        except _TooLargeError:
            raise
        except Exception as error:  # what is no state dict makes torch raise anything
            first = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
            raise PipelineError(
                f"it does not load without running code that it may hold ({first}): expected tensors alone; where the "
                "file is whole and you trust it, write it anew as torch.save(network.state_dict(), FILE)"
            ) from error


class _TooLargeError(PipelineError):
    """A file that would take more memory than weights can need."""


def _check_zip(file: BinaryIO) -> None:
    """Refuse what torch.save does not write: it compresses nothing, and its pickle is small. Each list is 64 bytes."""
    with zipfile.ZipFile(file) as archive:
        for part in archive.infolist():
            pickled = part.filename.endswith(".pkl")
            if part.compress_type != zipfile.ZIP_STORED or (pickled and part.file_size > MAX_HEADER_BYTES):
                raise _TooLargeError(
                    f"part {part.filename[:80]} of {part.file_size} bytes: expected parts as torch.save writes them, "
                    f"not compressed, with at most {MAX_HEADER_BYTES} bytes of names"
                )


def _check_old(file: BinaryIO) -> None:
    """The same for the layout before torch 1.6, whose pickles end where their last instruction says."""
    for _ in range(_OLD_PARTS):
        for _ in genops(file):
            if file.tell() > MAX_HEADER_BYTES:
                raise _TooLargeError(f"over {MAX_HEADER_BYTES} bytes of names: expected a file as torch.save writes it")


def _checked(state: Any) -> dict[str, Tensor]:  # noqa: ANN401 - a stranger's file
    """A state dict: names and dense tensors. Raises PipelineError."""
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        what = f"it holds a {type(state).__name__}, expected a state dict: names and tensors"
        raise PipelineError(what)
    others = [
        f"{name[:80]!r} is a {type(value).__name__}" for name, value in state.items() if type(value) not in _TENSORS
    ]
    if others:
        raise PipelineError(
            f"{others[0]}, expected tensors alone; where the state dict lies under a name of its own, save that alone"
        )
    for name, value in state.items():
        if value.layout != torch.strided or value.device.type != "cpu" or value.dtype not in _DTYPES:
            raise PipelineError(
                f"{name[:80]!r} is {value.dtype}, {value.layout}, on {value.device}: expected dense numbers"
            )
    return state


def _check_finite(encoder: Encoder) -> None:
    for name, value in encoder.state_dict().items():
        if not bool(torch.isfinite(value).all()):
            raise PipelineError(f"{name} holds numbers that are not finite: is the file whole?")
