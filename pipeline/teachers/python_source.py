"""Hash a `python:` teacher: its source code, and the weights that its card names.

The source code is the factory's module and all modules that it imports, directly or not, except installed packages.
It is read from files, so all processes of a run get the same hashes. Installed packages are listed by name; their
versions are recorded for each run (`cache.conditions`).
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..common.fileio import sha256_bytes, sha256_file
from ..errors import PipelineError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from importlib.machinery import ModuleSpec
    from types import ModuleType

INSTALLED = {"site-packages", "dist-packages"}
OURS = __name__.partition(".")[0]
"""The version of this package is in every store already."""
IMPORTERS = {"import_module", "__import__"}
_seen: dict[str, tuple[ModuleSpec | None, str]] = {}
"""Module name -> its import spec, and the sha256 of its file when it was first hashed."""


class Source(NamedTuple):
    """The source code of a teacher."""

    files: dict[str, str]
    """Dotted module name -> sha256. No paths: they differ between machines."""
    packages: list[str]
    """Top-level names of imported installed packages."""

    def as_json(self, factory: str) -> dict[str, Any]:
        """Return the entry of a card."""
        return {"factory": factory, "source": self.files, "packages": self.packages}


class Modules(NamedTuple):
    """The modules of a process: this one, or that of another environment."""

    file_of: Callable[[str], str | None]
    """Returns the file of an imported module; None if it has none, or is not imported."""
    known: frozenset[str]
    """Top-level names that are neither hashed nor listed: the standard library, and this package."""


def source_of(module: ModuleType) -> Source:
    """Hash a module and the modules that it imports, except installed ones.

    Raises PipelineError for a file that changed after this process imported it: the hash would not match the running
    code.
    """
    here = Modules(
        lambda name: getattr(sys.modules.get(name), "__file__", None), frozenset({OURS, *sys.stdlib_module_names})
    )
    file = getattr(module, "__file__", None)
    return module_source(module.__name__, file, here, is_package=hasattr(module, "__path__"), imported_here=True)


def module_source(
    name: str, file: str | None, modules: Modules, *, is_package: bool, imported_here: bool = False
) -> Source:
    """Hash a module, given by its name and file, as `source_of`. Changes are only noticed if it is `imported_here`."""
    root = _root(name, file, is_package=is_package)
    files: dict[str, str] = {}
    packages: set[str] = set()
    pending = [name]
    while pending:
        name = pending.pop()
        path = _file(name, root, modules)
        if name in files or path is None:
            continue
        data = path.read_bytes()
        files[name] = sha256_bytes(data)
        if imported_here:
            _refuse_stale(name, files[name], path)
        if path.suffix != ".py":
            continue
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        for imported in _imports(data, package):
            parts = imported.split(".")
            pending += [".".join(parts[: end + 1]) for end in range(len(parts))]
            if not _is_ours(parts[0], root, modules):
                packages.add(parts[0])
    return Source(dict(sorted(files.items())), sorted(packages))


def weights_sha256(where: str, named: object) -> str | None:
    """Return the sha256 of a file of weights, or of the names and sha256 of several; None for an empty list.

    `named` is a path or a list of paths, relative to the current folder; a folder stands for all files in it. Raises
    PipelineError for anything else, and for a missing file.
    """
    given = named if isinstance(named, list | tuple) else [named]
    paths = [Path(path) for path in given if isinstance(path, str | Path)]
    if len(paths) != len(given):
        raise PipelineError(
            f'{where}: its card has weights {named!r}, expected a path or a list of paths such as ["net.pth"], or [] '
            "for none"
        )
    digests = [line for path in paths for line in _digests(path, where)]
    if len(digests) < 2:
        return digests[0][1] if digests else None
    return sha256_bytes("".join(f"{name} {digest}\n" for name, digest in sorted(digests)).encode())


def _digests(path: Path, where: str) -> Iterator[tuple[str, str]]:
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    try:
        for file in files:
            yield file.relative_to(path.parent).as_posix(), sha256_file(file)
    except OSError as error:
        raise PipelineError(f"{where}: weights {path} of its card: {error.strerror}; correct the path") from error


def _root(name: str, file: str | None, *, is_package: bool) -> Path | None:
    """Return the import root of a module; None if the module has no file or is installed."""
    if file is None:
        return None
    folder = Path(file).resolve().parents[name.count(".") + is_package]
    return None if INSTALLED & set(folder.parts) else folder


def _file(name: str, root: Path | None, modules: Modules) -> Path | None:
    """Return the source file of a module, imported or not; None if it is installed or has no file."""
    if name.partition(".")[0] in modules.known:
        return None
    loaded = modules.file_of(name)
    if loaded is not None:
        path = Path(loaded)
        return path if path.is_file() and not INSTALLED & set(path.parts) else None
    if root is None:
        return None
    base = root.joinpath(*name.split("."))
    return next((path for path in (base / "__init__.py", base.with_name(f"{base.name}.py")) if path.is_file()), None)


def _is_ours(top: str, root: Path | None, modules: Modules) -> bool:
    """Return whether a top-level name is not an installed package: standard library, this package, or user code.

    A folder of user code needs no `__init__.py`.
    """
    if top in modules.known or _file(top, root, modules) is not None:
        return True
    return root is not None and modules.file_of(top) is None and (root / top).is_dir()


def _refuse_stale(name: str, sha256: str, path: Path) -> None:
    module = sys.modules.get(name)
    if module is None:
        return
    spec, before = _seen.setdefault(name, (module.__spec__, sha256))
    if before != sha256 and spec is module.__spec__:
        raise PipelineError(
            f"{path} changed after this process imported it: start the process (or the workers) again to run the new "
            "code"
        )
    _seen[name] = (module.__spec__, sha256)


def _imports(source: bytes, package: str) -> Iterator[str]:
    """Yield dotted names that a module may import, anywhere in its code; some are attributes and have no file."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):  # not Python of this version: hashed, but not parsed
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*filter(None, parents), *filter(None, [node.module])])
            if base:
                yield base
            yield from (f"{base}.{alias.name}".lstrip(".") for alias in node.names if alias.name != "*" and base)
        elif isinstance(node, ast.Call) and node.args:
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", None)
            first = node.args[0]
            if called in IMPORTERS and isinstance(first, ast.Constant) and isinstance(first.value, str):
                yield first.value.lstrip(".")
