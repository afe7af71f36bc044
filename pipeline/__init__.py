"""TIE-KD: distill a large monocular depth network into a small one, in two offline stages (arXiv 2402.14340).

    import pipeline as tiekd

    source = tiekd.open_source("kitti", "data/kitti")
    teacher = tiekd.open_teacher("transformers:ID", device="cuda")
    store = tiekd.cache_teacher(teacher, source, "train", "teacher.zarr")  # stage one
    student = tiekd.train_student(source, "train", store, "runs/lean", student="lean")  # stage two
    depth_m = student.predict("image.jpg")  # (H, W) float32 metres
    result = tiekd.evaluate(student, source, "test")

The names in `__all__` and the store format are stable; everything else may change between releases. Errors that a user
can correct are `PipelineError`, with subclasses in `pipeline.errors`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import (
        cache_teacher,
        evaluate,
        list_networks,
        list_sources,
        list_teachers,
        open_source,
        open_teacher,
        train_student,
    )
    from .deploy.student import Student, load_student
    from .errors import PipelineError
    from .evaluation.result import EvaluationResult
    from .losses.registry import list_losses
    from .losses.tiekd import TieKdLoss
    from .store import Store, open_store

    __version__: str

__all__ = [
    "EvaluationResult",
    "PipelineError",
    "Store",
    "Student",
    "TieKdLoss",
    "cache_teacher",
    "evaluate",
    "list_losses",
    "list_networks",
    "list_sources",
    "list_teachers",
    "load_student",
    "open_source",
    "open_store",
    "open_teacher",
    "train_student",
]
_MODULES = {
    "EvaluationResult": "evaluation.result",
    "PipelineError": "errors",
    "Store": "store",
    "Student": "deploy.student",
    "TieKdLoss": "losses.tiekd",
    "list_losses": "losses.registry",
    "load_student": "deploy.student",
    "open_store": "store",
}
"""Module of each public name that is not in `api`. Names are imported on first use: torch alone takes a second."""


def __getattr__(name: str) -> Any:  # noqa: ANN401 - a module's attribute
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("tiekd-pipeline")
        except PackageNotFoundError:  # run from a source tree that was never installed
            return "unknown"
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_MODULES.get(name, 'api')}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__", "errors"]
