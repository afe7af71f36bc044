"""Which of our files import which, read from the source."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]

DVC_FILES = ("dvc.yaml", "experiments/dvc.yaml", "recipes/kitti/dvc.yaml")
SOURCES = {
    "dvc.yaml": ["scenes"],
    "experiments/dvc.yaml": ["folder", "kitti", "scenes"],
    "recipes/kitti/dvc.yaml": ["kitti"],
}
"""The kinds of source that each file's stages open; the registry imports them by name."""
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
"""Stage -> the command's file, and the modules that it imports by name for the demo's settings."""


def modules() -> dict[str, Path]:
    """Dotted name -> file, of everything in the package."""
    found = {}
    for path in sorted([*(ROOT / "pipeline").rglob("*.py"), *(ROOT / "scenes").rglob("*.py")]):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


class _Imports(ast.NodeVisitor):
    """Imports that can happen at run time: those for type checkers alone do not."""

    def __init__(self, name: str, package: str) -> None:
        self.name, self.package, self.found = name, package, set()

    def visit_If(self, node: ast.If) -> None:
        if not (isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"):
            self.generic_visit(node)

    def visit_Import(self, node: ast.Import) -> None:
        self.found |= {alias.name for alias in node.names}

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        base = node.module or ""
        if node.level:
            parent = self.package.rsplit(".", node.level - 1)[0] if node.level > 1 else self.package
            base = f"{parent}.{base}" if base else parent
        self.found |= {base} | {f"{base}.{alias.name}" for alias in node.names}


def imports_of(name: str, known: dict[str, Path]) -> set[str]:
    """Everything that a module imports, ours and others', at its top and inside functions."""
    path = known[name]
    visitor = _Imports(name, name if path.name == "__init__.py" else name.rpartition(".")[0])
    visitor.visit(ast.parse(path.read_text()))
    return visitor.found


def closure(stage: str, file: str) -> list[str]:
    """Files that a stage's code consists of in a dvc.yaml, without the command line."""
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
