"""Opens a source written as KIND:ROOT. Each module of datasets/ with a constant `SOURCE` is a kind."""

from __future__ import annotations

import pkgutil
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import PipelineError
from .base import SourceKind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .base import Source

DATASETS = Path(__file__).parent / "datasets"


def source_kinds() -> dict[str, SourceKind]:
    """Return every kind by its name before the colon, sorted."""
    names = sorted(module.name for module in pkgutil.iter_modules([str(DATASETS)]))
    kinds = {name.replace("_", "-"): _kind(name) for name in names}
    return {name: kind for name, kind in kinds.items() if kind is not None}


def open_source(spec: str, truth: str | None = None, invalid: Sequence[float] = ()) -> Source:
    """Open `kitti:ROOT`, `folder:ROOT`, or another of `source_kinds()`.

    `truth` selects one of several ground truths. `invalid` are stored values, before scaling, that also mean no
    measurement. Raises PipelineError for an unknown kind, a missing root, or a root without the expected files.
    """
    name, _, root = spec.partition(":")
    kind = _kind(name.replace("-", "_"))
    if kind is None:
        raise PipelineError(f"source {spec!r}: unknown kind {name!r}, expected one of {', '.join(source_kinds())}")
    if not root:
        raise PipelineError(f"source {spec!r}: root is missing; expected {name}:ROOT, for example {name}:data/{name}")
    path = Path(root).expanduser()  # a shell expands ~ only at the start of a word
    folder = path.parent if kind.takes_files and not path.is_dir() else path
    if not folder.is_dir():
        state = "is not a directory" if folder.exists() else "does not exist"
        raise PipelineError(f"source {spec!r}: {folder} {state}; expected the directory of the data set")
    source = kind.open(path, truth)
    if invalid:
        declared = getattr(source, "invalid", None)
        if declared is None:
            raise PipelineError(
                f"source {spec!r}: ground truth {source.truth} does not support invalid values; remove `invalid`"
            )
        source.invalid = tuple(dict.fromkeys((*declared, *invalid)))  # type: ignore[attr-defined]  # of `Declared`
    return source


def _kind(module: str) -> SourceKind | None:
    """Return the `SOURCE` of a module of datasets/, None if there is none."""
    if not module.isidentifier() or not (DATASETS / f"{module}.py").is_file():
        return None
    kind = getattr(import_module(f".datasets.{module}", __package__), "SOURCE", None)
    return kind if isinstance(kind, SourceKind) else None
