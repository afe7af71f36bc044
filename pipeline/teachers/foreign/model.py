"""The model of a `python:` teacher that runs in another environment.

Shape legend: B batch, K bins, H W pixels of the view, h w pixels of the teacher's own output.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ...common.device import is_out_of_memory
from ...errors import PipelineError
from ..base import TeacherOutput
from ..python_source import Modules, Source, module_source
from .process import PACKAGE, WorkerProcess, search_folders

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

LIMIT_BYTES = 16 * 2**30
"""Most bytes that a model may return for a batch."""
MEMORY_ERRORS = {"MemoryError", "OutOfMemoryError"}


class ForeignModel:
    """Calls a user's model in another environment. It has the attributes that the user's object has.

    Raises PipelineError for everything that the user's code or its process does wrong, and MemoryError.
    """

    def __init__(self, argument: str, python: str, device: torch.device, example: str) -> None:
        """Start `python` and call the factory that `argument` (`module:factory`) names."""
        self._where, self._device = f"teacher python:{argument}", str(device)
        self._process = WorkerProcess(python, self._where)
        self._lock = Lock()
        try:
            opened = self._open(argument, example)
            self.card = self._card(opened["card"])
            self.bin_edges_m = self._decoded(opened["edges"])
            self.emits_maps: bool = opened["emits_maps"]
            self.source = self._source(opened)
            self.package_versions: dict[str, str] = self._answer("versions", names=self.source.packages)
        except BaseException:
            self._process.close()
            raise

    def _open(self, argument: str, example: str) -> dict[str, Any]:
        module, _, factory = argument.partition(":")
        first, last = search_folders()
        opened: dict[str, Any] = self._answer(
            "open",
            module=module,
            factory=factory,
            device=self._device,
            threads=torch.get_num_threads(),
            first=first,
            last=last,
            limits={"bytes": LIMIT_BYTES, "fields": TeacherOutput._fields},
        )
        if "module" not in opened:
            raise PipelineError(self._refusal(opened, factory, example))
        return opened

    def __call__(self, images: Tensor, **inputs: Tensor) -> Any:  # noqa: ANN401 - whatever the user returned
        """Return what the model returns for images (B, 3, H, W) float32, with CPU tensors for arrays and tensors.

        `inputs` are small tensors (B, n) of numbers, such as `intrinsics_px`.
        """
        with self._lock:
            entry = self._entry_of(images)
            if entry is None:
                images = self.stage(images)
                entry = self._entry_of(images)
            assert entry is not None, "stage makes it"
            self._process.images.lend(entry["at"])
            last = _is_channels_last(images)
            small = {name: [_without_nan(row) for row in values.tolist()] for name, values in inputs.items()}
            request = {"images": entry, "channels_last": last, "device": self._device, "inputs": small}
            return self._decoded(self._answer("predict", **request))

    def stage(self, images: Tensor) -> Tensor:
        """Return a copy of a batch (B, 3, H, W) float32 in memory that the process reads too."""
        stored = _stored(images)
        _, array = self._process.images.empty(tuple(stored.shape), np.dtype(np.float32).str)
        copy = torch.from_numpy(array).copy_(stored)
        return copy.permute(0, 3, 1, 2) if _is_channels_last(images) else copy

    def _entry_of(self, images: Tensor) -> dict[str, Any] | None:
        """Return the entry of a batch that `stage` returned; None for another."""
        stored = _stored(images)
        if not stored.is_contiguous():
            return None
        return self._process.images.entry_of(stored.data_ptr(), stored.shape)

    def _answer(self, name: str, **request: Any) -> Any:  # noqa: ANN401 - any JSON value
        message = self._process.call(name, **request)
        error = message.get("error")
        if error is None:
            return message["answer"]
        if error.get("too_large"):
            raise PipelineError(
                f"{self._where}: its model returned more than {LIMIT_BYTES / 2**30:.3g} GiB for one batch: use a "
                "smaller `batch_size`, or return less"
            )
        if error["type"] in MEMORY_ERRORS or is_out_of_memory(RuntimeError(error["text"])):
            raise MemoryError(error["text"])
        place = f" ({error['at']})" if error["at"] else ""
        raise PipelineError(
            f"{self._where}: its code raised {error['type']}: {error['text']}{place}; the end of its traceback:\n"
            f"{error['trace'].rstrip()}"
        )

    def _refusal(self, opened: dict[str, Any], factory: str, example: str) -> str:
        """Return the message for a module or factory that cannot be used."""
        python = self._process.python
        if "missing" in opened:
            return (
                f"{self._where}: module {opened['missing']!r} is neither in {Path.cwd()} nor installed for {python}: "
                "run from its folder, or install it there"
            )
        if "no_factory" in opened:
            return f"{self._where}: {opened['no_factory']} has no function {factory!r}, {example}"
        returned = self._decoded(opened["not_callable"])
        quoted = f"{type(returned).__name__} {str(returned)[:60]!r}"
        return f"{self._where}: the factory returned {quoted}, expected a callable, {example}"

    def _card(self, card: dict[str, Any]) -> Any:  # noqa: ANN401 - the user's object
        if "not_json" in card:
            raise PipelineError(
                f"{self._where}: its card is not valid JSON ({card['not_json']}): use numbers, text and lists"
            )
        return self._decoded(card)

    def _source(self, opened: dict[str, Any]) -> Source:
        """Hash the user's code, as the modules of that process have it."""
        files: dict[str, str] = opened["files"]
        theirs = Path(files.get(PACKAGE.name, ""))
        known = set(opened["standard"] or sys.stdlib_module_names)
        if theirs.is_file() and theirs.read_bytes() == (PACKAGE / "__init__.py").read_bytes():
            known.add(PACKAGE.name)
        name, file, is_package = opened["module"]
        return module_source(name, file, Modules(files.get, frozenset(known)), is_package=is_package)

    def _decoded(self, value: dict[str, Any]) -> Any:  # noqa: ANN401 - whatever the user returned
        (form, content), *_ = value.items()
        if form == "array":
            return self._tensor(content)
        if form == "tuple":
            return tuple(map(self._decoded, content))
        if form in {"dict", "output"}:
            items = {name: self._decoded(item) for name, item in content}
            return items if form == "dict" else TeacherOutput(**items)
        if form == "other":
            name, text = content
            return type(name, (), {"__str__": lambda _: text})()
        return content

    def _tensor(self, entry: dict[str, Any]) -> Any:  # noqa: ANN401 - or an array of a type that torch lacks
        array = self._process.array(entry)
        try:
            return torch.from_numpy(array)
        except TypeError:
            return array


def _is_channels_last(images: Tensor) -> bool:
    return not images.is_contiguous() and images.permute(0, 2, 3, 1).is_contiguous()


def _stored(images: Tensor) -> Tensor:
    """Return a batch in the order of its memory: the last bits of a network's output depend on it."""
    return images.permute(0, 2, 3, 1) if _is_channels_last(images) else images


def _without_nan(row: Sequence[float]) -> list[float | None]:
    """Return numbers for JSON, which has no NaN."""
    return [None if math.isnan(value) else value for value in row]
