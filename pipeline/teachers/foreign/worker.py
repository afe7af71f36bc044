"""Runs the factory of a `python:` teacher in another environment. `process.py` starts this file by its path there.

It needs Python 3.8 or newer and numpy, and nothing of ours: `pipeline` may be another package in that environment.
torch is used if it is installed.

Protocol (`messages.py`): the worker says `hello`, and `alive` every BEAT_S seconds while it works. It answers each
request {"call": name, ...} with {"answer": value} or {"error": ...}. Arrays are in two shared files (`arrays.py`).
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import select
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import ModuleType

BEAT_S = 1.0
OLDEST = (3, 8)


def beside(name: str) -> Any:
    """Import a file of this folder. It gets no entry in sys.modules, where it could replace a module of the user."""
    spec = importlib.util.spec_from_file_location("tiekd_" + name, Path(__file__).with_name(name + ".py"))
    if spec is None or spec.loader is None:
        raise ImportError(name)
    module: ModuleType = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


messages = beside("messages")


class Pipes:
    """Requests of the other process and answers to them, with a thread that gives signs of life."""

    def __init__(self, requests: int, answers: int) -> None:
        self._requests = os.fdopen(requests, "rb")
        self._answers = answers
        self._writing = threading.Lock()
        self.busy = threading.Event()
        """Set while the other process waits for an answer."""
        self.busy.set()
        threading.Thread(target=self._beat, daemon=True).start()

    def receive(self) -> dict[str, Any] | None:
        """Wait for a request; None if the other process has ended."""
        head = self._requests.read(messages.LENGTH.size)
        if len(head) < messages.LENGTH.size:
            return None
        request: dict[str, Any] = json.loads(self._requests.read(messages.LENGTH.unpack(head)[0]).decode())
        self.busy.set()
        return request

    def answer(self, message: dict[str, Any]) -> None:
        """Send the answer to the last request."""
        self.busy.clear()
        self._send(message)

    def _beat(self) -> None:
        while True:
            time.sleep(BEAT_S)
            if self.busy.is_set():
                self._send({"alive": True})

    def _send(self, message: dict[str, Any]) -> None:
        data = memoryview(messages.packed(message))
        try:
            with self._writing:
                while data:
                    data = data[os.write(self._answers, data) :]
        except OSError:  # the other process has ended
            os._exit(1)


class Worker:
    """Opens a teacher and calls it."""

    def __init__(self, images: int, results: int) -> None:
        arrays = beside("arrays")
        self._numbers = arrays.numbers
        self._encoding, self._factories = beside("encoding"), beside("factories")
        self._images, self._results = arrays.Receiver(images), arrays.Sender(results)
        self._model: Any = None
        self._limits: dict[str, Any] = {}

    def answer_to(self, request: dict[str, Any]) -> dict[str, Any]:
        """Return the answer to a request."""
        self._results.settle(request["held"])
        calls = {"open": self._open, "versions": self._versions, "predict": self._predict}
        try:
            answer = {"answer": calls[request["call"]](request)}
        except self._encoding.TooLargeError:
            answer = {"error": {"too_large": True}}
        except BaseException as error:  # noqa: BLE001 - raised by the other process; sys.exit too
            answer = {"error": self._encoding.described(error)}
        return {"held": self._images.held(), **answer}

    def _open(self, request: dict[str, Any]) -> dict[str, Any]:
        torch = sys.modules.get("torch")
        if torch is not None:
            torch.set_num_threads(request["threads"])
        self._limits = request["limits"]
        sys.path[:0] = request["first"]
        sys.path += request["last"]
        try:
            module = importlib.import_module(request["module"])
        except ModuleNotFoundError as error:
            return {"missing": error.name or request["module"]}
        factory = getattr(module, request["factory"], None)
        if not callable(factory):
            return {"no_factory": str(getattr(module, "__file__", None))}
        device = request["device"] if torch is None else torch.device(request["device"])
        self._model = model = factory(device) if self._factories.takes_device(factory) else factory()
        if not callable(model):
            return {"not_callable": self._encoder().encode(model)}
        for network in self._factories.networks_of(model):
            network.eval()
        return {
            "card": self._card(getattr(model, "card", None)),
            "edges": self._edges(getattr(model, "bin_edges_m", None)),
            "emits_maps": bool(getattr(model, "emits_maps", False)),
            "module": [module.__name__, getattr(module, "__file__", None), hasattr(module, "__path__")],
            **loaded_modules(),
        }

    def _card(self, card: Any) -> Any:
        """Return a card as JSON: a dict, or an object of dataclass fields."""
        if hasattr(card, "__dataclass_fields__"):
            card = {name: getattr(card, name) for name in card.__dataclass_fields__}
        if not isinstance(card, dict):
            return self._encoder().encode(card)
        card = dict(card)
        weights = card.get("weights")
        if isinstance(weights, (list, tuple)):
            card["weights"] = [str(item) if isinstance(item, PurePath) else item for item in weights]
        elif isinstance(weights, PurePath):
            card["weights"] = str(weights)
        try:
            json.dumps(card)
        except (TypeError, ValueError) as error:
            return {"not_json": str(error)}
        return {"json": card}

    def _edges(self, edges: Any) -> Any:
        import numpy as np

        if isinstance(edges, (list, tuple)):
            with suppress(TypeError, ValueError):
                edges = np.asarray(edges, dtype=np.float64)
        return self._encoder().encode(edges)

    def _versions(self, request: dict[str, Any]) -> dict[str, str]:
        return {name: version_of(name) for name in request["names"]}

    def _predict(self, request: dict[str, Any]) -> Any:
        torch = sys.modules.get("torch")
        images = self._images.get(request["images"])
        if request["channels_last"]:
            images = images.transpose(0, 3, 1, 2)
        inputs = {name: self._numbers(rows) for name, rows in request["inputs"].items()}
        if torch is None:
            return self._encoder().encode(self._model(images, **inputs))
        images, inputs = (
            torch.from_numpy(images).to(request["device"]),
            {name: torch.from_numpy(values).to(request["device"]) for name, values in inputs.items()},
        )
        with torch.no_grad():
            return self._encoder().encode(self._model(images, **inputs))

    def _encoder(self) -> Any:
        return self._encoding.Encoder(self._results, self._limits["bytes"], self._limits["fields"])


def hello() -> dict[str, Any]:
    """Import numpy and torch, and return what this environment has, or lacks."""
    version = "{}.{}.{}".format(*sys.version_info[:3])
    if sys.version_info < OLDEST:
        return {"python": version, "lacks": "Python 3.8 or newer"}
    try:
        import numpy  # noqa: F401, ICN001 - of this environment
    except ImportError as error:
        return {"python": version, "lacks": f"numpy ({error})"}
    with suppress(ImportError, OSError):  # absent, or broken
        import torch  # noqa: F401 - before folders of the user come first in sys.path
    return {"python": version}


def loaded_modules() -> dict[str, Any]:
    """Return the files of all modules, where `pipeline` would come from, and the names of the standard library."""
    files = {name: getattr(module, "__dict__", {}).get("__file__") for name, module in list(sys.modules.items())}
    files.pop("__main__", None)
    if "pipeline" not in files:
        with suppress(ImportError, ValueError, AttributeError):
            files["pipeline"] = getattr(importlib.util.find_spec("pipeline"), "origin", None)
    return {
        "files": {name: file for name, file in files.items() if isinstance(file, str)},
        "standard": sorted(getattr(sys, "stdlib_module_names", ())),  # Python 3.10
    }


def version_of(package: str) -> str:
    """Return the version of an import package, or `unknown`."""
    from importlib import metadata

    with suppress(metadata.PackageNotFoundError):
        return metadata.version(package)
    find: Callable[[], Mapping[str, list[str]]] = getattr(metadata, "packages_distributions", dict)  # Python 3.10
    for name in find().get(package, []):
        with suppress(metadata.PackageNotFoundError):
            return metadata.version(name)
    return "unknown"


def end_with(life: int) -> None:
    """End this process group when the other process does, even inside a call of C code that never returns.

    `life` is a pipe that is never written to: its other end closes with that process, and the system sends SIGIO. Where
    it does not (macOS), the next sign of life fails.
    """
    import fcntl

    with suppress(OSError, AttributeError):
        fcntl.fcntl(life, fcntl.F_SETOWN, -os.getpid())
        fcntl.fcntl(life, fcntl.F_SETFL, fcntl.fcntl(life, fcntl.F_GETFL) | os.O_ASYNC)
    if select.select([life], [], [], 0)[0]:
        os._exit(1)


def main() -> None:
    """Run with file descriptors as arguments: requests, answers, images, results, life."""
    requests, answers, images, results, life = descriptors = [int(text) for text in sys.argv[1:6]]
    for descriptor in descriptors:
        os.set_inheritable(descriptor, False)  # noqa: FBT003 - its only form
    end_with(life)
    here = str(Path(__file__).resolve().parent)
    sys.path[:] = [entry for entry in sys.path if os.path.realpath(entry or ".") != here]
    del sys.argv[1:]
    pipes = Pipes(requests, answers)
    greeting = hello()
    pipes.answer({"hello": greeting})
    if "lacks" in greeting:
        return
    worker = Worker(images, results)
    request = pipes.receive()
    while request is not None:
        pipes.answer(worker.answer_to(request))
        request = pipes.receive()


if __name__ == "__main__":
    main()
