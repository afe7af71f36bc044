"""Loading of ImageNet weights of torchvision or timm, as `.pth` or safetensors, into a student's encoder.

Files are untrusted: no code in them is executed, and sizes are checked before the content is read.
"""

from __future__ import annotations

import os
import warnings
import zipfile
from pickletools import genops  # lists the instructions of a pickle without executing them
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
"""Pickles at the start of a file of torch before 1.6: magic, protocol, machine, names, order."""


def load_encoder_weights(student: Student, path: Path) -> str:
    """Load pretrained weights into a student's encoder and return the sha256 of the file.

    The file is the state dict of a classifier, as torchvision (for `timm:NAME`: timm) writes it. Layers that the
    encoder does not have are ignored; all other tensors must match.

    Raises PipelineError for a student without an encoder, and for a file that is missing, too large, damaged, of
    another network, or contains anything but tensors.
    """
    encoder = student.encoder
    if encoder is None:
        raise PipelineError(
            f"student {student.name!r} has no pretrained encoder: use {', '.join(WITH_ENCODER)} or timm:NAME, or "
            "omit the weights"
        )
    try:
        state = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
        load_imagenet(encoder, _checked(state))
        _check_finite(encoder)
    except OSError as error:
        raise PipelineError(
            f"{path}: {error.strerror or error}; expected a file of {encoder.weights_source}"
        ) from error
    except ValueError as error:
        raise PipelineError(f"{path}: {printable(str(error))[:1000]}") from error
    return sha256_file(path)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    check_safetensors(path)
    try:
        return safetensors.torch.load_file(path)
    except safetensors.SafetensorError as error:
        raise PipelineError(f"not a valid safetensors file ({error}): download it again") from error


def _read_torch(path: Path) -> Any:  # noqa: ANN401 - an untrusted file
    """Return what torch reads from a file without executing code. Raises OSError or ValueError."""
    if path.suffix not in TORCH_SUFFIXES:
        raise PipelineError(f"expected a file name ending in {', '.join(TORCH_SUFFIXES)} or .safetensors")
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > MAX_WEIGHTS_BYTES:
            raise PipelineError(f"{size} bytes, expected at most {MAX_WEIGHTS_BYTES}")
        try:
            is_zip = file.read(len(_ZIP)) == _ZIP  # as torch decides
            file.seek(0)
            _check_zip(file) if is_zip else _check_old(file)
            file.seek(0)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about TorchScript, which is rejected
                return torch.load(file, map_location="cpu", weights_only=True)
        except _TooLargeError:
            raise
        except Exception as error:  # torch raises many types for other files
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
            raise PipelineError(
                f"it does not load without executing code ({reason}): expected only tensors; if you trust the file, "
                "rewrite it with torch.save(network.state_dict(), FILE)"
            ) from error


class _TooLargeError(PipelineError):
    """A file that needs more memory than any weights."""


def _check_zip(file: BinaryIO) -> None:
    """Reject files not written by torch.save: it does not compress, and its pickle is small."""
    with zipfile.ZipFile(file) as archive:
        for part in archive.infolist():
            pickled = part.filename.endswith(".pkl")
            if part.compress_type != zipfile.ZIP_STORED or (pickled and part.file_size > MAX_HEADER_BYTES):
                raise _TooLargeError(
                    f"part {part.filename[:80]} of {part.file_size} bytes: expected a file of torch.save, "
                    f"uncompressed and with a pickle of at most {MAX_HEADER_BYTES} bytes"
                )


def _check_old(file: BinaryIO) -> None:
    """Reject large pickles in the layout before torch 1.6, where a pickle ends at its last instruction."""
    for _ in range(_OLD_PARTS):
        for _ in genops(file):
            if file.tell() > MAX_HEADER_BYTES:
                raise _TooLargeError(f"pickle of over {MAX_HEADER_BYTES} bytes: expected a file of torch.save")


def _checked(state: Any) -> dict[str, Tensor]:  # noqa: ANN401 - an untrusted file
    """Return `state` if it is a state dict of dense tensors. Raises PipelineError otherwise."""
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        type_name = type(state).__name__
        raise PipelineError(f"contains a {type_name}, expected a state dict of names and tensors")
    others = [
        f"{name[:80]!r} is a {type(value).__name__}" for name, value in state.items() if type(value) not in _TENSORS
    ]
    if others:
        raise PipelineError(
            f"{others[0]}, expected only tensors; if the state dict is one entry of the file, save that entry"
        )
    for name, value in state.items():
        if value.layout != torch.strided or value.device.type != "cpu" or value.dtype not in _DTYPES:
            raise PipelineError(
                f"{name[:80]!r} is {value.dtype}, {value.layout}, on {value.device}: expected a dense tensor of numbers"
            )
    return state


def _check_finite(encoder: Encoder) -> None:
    for name, value in encoder.state_dict().items():
        if not bool(torch.isfinite(value).all()):
            raise PipelineError(f"{name} has values that are not finite: download the file again")
