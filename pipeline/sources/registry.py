"""Opens a source by its written form KIND:ROOT. A new kind is one file in this folder that has a `SOURCE`."""

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
    """Every kind there is, by the name that stands before the colon, sorted."""
    names = sorted(module.name for module in pkgutil.iter_modules([str(DATASETS)]))
    found = {name.replace("_", "-"): _kind(name) for name in names}
    return {name: kind for name, kind in found.items() if kind is not None}


def open_source(spec: str, truth: str | None = None, invalid: Sequence[float] = ()) -> Source:
    """Open `kitti:ROOT`, `folder:ROOT`, or another of `source_kinds()`.

    `truth` chooses among several ground truths, where a source has them. `invalid` are numbers of its files that say
    that there is no measurement, besides the usual ones. Raises PipelineError for an unknown
    kind, a missing root, or a root without the files that the source expects.
    """
    name, _, root = spec.partition(":")
    kind = _kind(name.replace("-", "_"))
    if kind is None:
        raise PipelineError(f"source {spec!r}: unknown kind {name!r}, expected one of {', '.join(source_kinds())}")
    if not root:
        raise PipelineError(f"source {spec!r}: no root, expected {name}:ROOT, for example {name}:data/{name}")
    path = Path(root).expanduser()  # a shell expands ~ at the beginning of a word alone
    if not path.is_dir():
        state = "is not a directory" if path.exists() else "does not exist"
        raise PipelineError(f"source {spec!r}: {path} {state}; expected the directory of the data set")
    source = kind.open(path, truth)
    if invalid:
        declared = getattr(source, "invalid", None)
        if declared is None:
            raise PipelineError(
                f"source {spec!r}: its ground truth {source.truth} holds no numbers that can be declared invalid: "
                "leave `invalid` out"
            )
        source.invalid = tuple(dict.fromkeys((*declared, *invalid)))  # type: ignore[attr-defined]  # of `Declared`
    return source


def _kind(module: str) -> SourceKind | None:
    """What a module of this folder registers, None where there is no such module or it is no source."""
    if not module.isidentifier() or not (DATASETS / f"{module}.py").is_file():
        return None
    kind = getattr(import_module(f".datasets.{module}", __package__), "SOURCE", None)
    return kind if isinstance(kind, SourceKind) else None
