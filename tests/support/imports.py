"""Imports between our modules, parsed from the source."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]

DVC_FILES = ("dvc.yaml", "experiments/dvc.yaml", "experiments/more/dvc.yaml", "recipes/kitti/dvc.yaml")
SOURCES = {
    "dvc.yaml": ["scenes"],
    "experiments/dvc.yaml": ["scenes"],
    "experiments/more/dvc.yaml": ["kitti", "scenes"],
    "recipes/kitti/dvc.yaml": ["kitti"],
}
"""Sources that the stages of each file open; the registry imports them by name."""
STAGES = {
    "make_scenes": ("scenes/dataset.py", []),
    "train_teacher": ("pipeline/cli/train.py", ["pipeline/losses/likelihood.py"]),
    "cache_teacher": ("pipeline/cli/cache_teacher.py", ["pipeline/teachers/checkpoint.py"]),
    "evaluate_teacher": ("pipeline/cli/evaluate.py", []),
    "train_student": ("pipeline/cli/train.py", ["pipeline/losses/tiekd.py"]),
    "evaluate_student": ("pipeline/cli/evaluate.py", []),
    "write_report": ("pipeline/cli/report.py", []),
    "run_study": ("pipeline/cli/study.py", ["pipeline/losses/tiekd.py"]),
}
"""Per stage: the file of the command, and modules that it imports by name for the settings of the demo."""


def modules() -> dict[str, Path]:
    """Return the files of all modules by dotted name."""
    by_name = {}
    for path in sorted([*(ROOT / "pipeline").rglob("*.py"), *(ROOT / "scenes").rglob("*.py")]):
        parts = path.relative_to(ROOT).with_suffix("").parts
        by_name[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return by_name


class _Imports(ast.NodeVisitor):
    """Collects imports at run time, without those for type checkers."""

    def __init__(self, name: str, package: str) -> None:
        self.name, self.package, self.names = name, package, set()

    def visit_If(self, node: ast.If) -> None:
        if not (isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"):
            self.generic_visit(node)

    def visit_Import(self, node: ast.Import) -> None:
        self.names |= {alias.name for alias in node.names}

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        base = node.module or ""
        if node.level:
            parent = self.package.rsplit(".", node.level - 1)[0] if node.level > 1 else self.package
            base = f"{parent}.{base}" if base else parent
        self.names |= {base} | {f"{base}.{alias.name}" for alias in node.names}


def imports_of(name: str, known: dict[str, Path]) -> set[str]:
    """Return everything that a module imports, at its top and inside functions."""
    path = known[name]
    visitor = _Imports(name, name if path.name == "__init__.py" else name.rpartition(".")[0])
    visitor.visit(ast.parse(path.read_text()))
    return visitor.names


def closure(stage: str, file: str) -> list[str]:
    """Return the files that a stage of a dvc.yaml imports, without the command line."""
    known = modules()
    names = {path.relative_to(ROOT).as_posix(): name for name, path in known.items()}
    start, by_name = STAGES[stage]
    todo, seen = [names[start], *(names[path] for path in by_name)], set()
    while todo:
        name = todo.pop()
        shared_cli = name.startswith("pipeline.cli") and name != names[start]
        if name in seen or shared_cli:
            continue
        seen.add(name)
        packages = {name.rsplit(".", up)[0] for up in range(1, name.count(".") + 1)}
        todo += [other for other in imports_of(name, known) | packages if other in known]
        if name == "pipeline.sources.registry":
            todo += [f"pipeline.sources.datasets.{kind}" for kind in SOURCES[file]]
    files = [known[name] for name in seen if not name.startswith(("pipeline.cli", "scenes.__main__"))]
    with_code = [path for path in files if re.search(r"^(from|import|def|class) ", path.read_text(), re.MULTILINE)]
    templates = {template for path in with_code for template in path.parent.glob("*.j2")}
    return sorted(path.relative_to(ROOT).as_posix() for path in {*with_code, *templates})
