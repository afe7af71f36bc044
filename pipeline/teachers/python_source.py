"""What decides the numbers of a `python:` teacher and can be hashed: its source, and the weights that its card names.

The source is the factory's module and, from there on, every module that is imported and not installed: what lies in
the same folder, or was put on the path by the code itself. It is read from the files alone, so that each process of a
run finds the same. Installed packages are listed by name; their versions belong to a run (`conditions`).
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..common.fileio import sha256_bytes, sha256_file
from ..errors import PipelineError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from importlib.machinery import ModuleSpec
    from types import ModuleType

INSTALLED = {"site-packages", "dist-packages"}
OURS = __name__.partition(".")[0]
"""The version of this package is in every store already."""
IMPORTERS = {"import_module", "__import__"}
_seen: dict[str, tuple[ModuleSpec | None, str]] = {}
"""Of each module that a teacher came from: how it was imported, and the sha256 of its file then."""


class Source(NamedTuple):
    """What a teacher is made of."""

    files: dict[str, str]
    """sha256 by the dotted name of the module; never a path, which would be of one machine."""
    packages: list[str]
    """Top-level names of what is imported and installed."""

    def as_json(self, factory: str) -> dict[str, Any]:
        """For a card."""
        return {"factory": factory, "source": self.files, "packages": self.packages}


def source_of(module: ModuleType) -> Source:
    """Hash a module and what it imports that is not installed.

    Raises PipelineError for a file that changed after this process imported it: the hash would be of other code than
    runs.
    """
    root = _root(module)
    files: dict[str, str] = {}
    packages: set[str] = set()
    pending = [module.__name__]
    while pending:
        name = pending.pop()
        path = _file(name, root)
        if name in files or path is None:
            continue
        data = path.read_bytes()
        files[name] = sha256_bytes(data)
        _refuse_stale(name, files[name], path)
        if path.suffix != ".py":
            continue
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        for imported in _imports(data, package):
            parts = imported.split(".")
            pending += [".".join(parts[: end + 1]) for end in range(len(parts))]
            if not _is_ours(parts[0], root):
                packages.add(parts[0])
    return Source(dict(sorted(files.items())), sorted(packages))


def weights_sha256(where: str, named: object) -> str | None:
    """The sha256 of a file of weights, or of the names and sha256 of several; None of an empty list.

    `named` is a path or a list of paths, relative ones from the current folder; of a folder all files count. Raises
    ValueError for anything else, and for what is not there.
    """
    given = named if isinstance(named, list | tuple) else [named]
    paths = [Path(path) for path in given if isinstance(path, str | Path)]
    if len(paths) != len(given):
        raise PipelineError(
            f'{where}: its card has weights {named!r}, expected a path or a list of paths, such as ["net.pth"]; [] '
            "where it has none"
        )
    digests = [line for path in paths for line in _digests(path, where)]
    if len(digests) < 2:
        return digests[0][1] if digests else None
    return sha256_bytes("".join(f"{name} {digest}\n" for name, digest in sorted(digests)).encode())


def _digests(path: Path, where: str) -> Iterator[tuple[str, str]]:
    inside = sorted(one for one in path.rglob("*") if one.is_file()) if path.is_dir() else [path]
    try:
        for file in inside:
            yield file.relative_to(path.parent).as_posix(), sha256_file(file)
    except OSError as error:
        raise PipelineError(
            f"{where}: its card names the weights {path}: {error.strerror}; correct the path"
        ) from error


def _root(module: ModuleType) -> Path | None:
    """The folder from which a module's dotted name leads to its file; None where it has none, or is installed."""
    file = getattr(module, "__file__", None)
    if file is None:
        return None
    above = module.__name__.count(".") + hasattr(module, "__path__")
    folder = Path(file).resolve().parents[above]
    return None if INSTALLED & set(folder.parts) else folder


def _file(name: str, root: Path | None) -> Path | None:
    """Where the source of a module is, if it is not installed: where it was imported from, or would be."""
    if name.partition(".")[0] in {OURS, *sys.stdlib_module_names}:
        return None
    loaded = getattr(sys.modules.get(name), "__file__", None)
    if loaded is not None:
        path = Path(loaded)
        return path if path.is_file() and not INSTALLED & set(path.parts) else None
    if root is None:
        return None
    base = root.joinpath(*name.split("."))
    return next((path for path in (base / "__init__.py", base.with_name(f"{base.name}.py")) if path.is_file()), None)


def _is_ours(top: str, root: Path | None) -> bool:
    """Whether a top-level name is not of an installed package: Python's, this package, or beside the module.

    A folder there needs no `__init__.py` to be imported from.
    """
    if top in {OURS, *sys.stdlib_module_names} or _file(top, root) is not None:
        return True
    return root is not None and getattr(sys.modules.get(top), "__file__", None) is None and (root / top).is_dir()


def _refuse_stale(name: str, sha256: str, path: Path) -> None:
    module = sys.modules.get(name)
    if module is None:
        return
    spec, before = _seen.setdefault(name, (module.__spec__, sha256))
    if before != sha256 and spec is module.__spec__:
        raise PipelineError(
            f"{path} changed after this process imported it: start the process (or the workers) again, so that the new "
            "code runs"
        )
    _seen[name] = (module.__spec__, sha256)


def _imports(source: bytes, package: str) -> Iterator[str]:
    """Dotted names that a module may import, anywhere in it; those of attributes too, which lead to no file."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):  # a template, or of another Python: hashed, and not read
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*filter(None, above), *filter(None, [node.module])])
            if base:
                yield base
            yield from (f"{base}.{alias.name}".lstrip(".") for alias in node.names if alias.name != "*" and base)
        elif isinstance(node, ast.Call) and node.args:
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", None)
            first = node.args[0]
            if called in IMPORTERS and isinstance(first, ast.Constant) and isinstance(first.value, str):
                yield first.value.lstrip(".")
