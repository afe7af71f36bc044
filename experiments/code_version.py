"""Which code made a result: the commit, and a hash of the code of losses, students and trainer.

The hash is of the syntax tree without docstrings, imports and refusals (an `if` that only raises an error), none of
which changes a result that was reached.
"""

from __future__ import annotations

import ast
import hashlib
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]
TRAINING = tuple(f"pipeline/depth/{name}.py" for name in ("bins", "dpm", "log_distribution", "readout", "relative"))
TRAINING_FOLDERS = ("pipeline/losses", "pipeline/networks", "pipeline/train")


def training_sha256(root: Path | None = None) -> str:
    """Return the hash of losses, students and trainer."""
    root = root or ROOT
    files = [root / name for name in TRAINING]
    for folder in TRAINING_FOLDERS:
        files += sorted((root / folder).rglob("*.py"))
    digest = hashlib.sha256()
    for file in files:
        digest.update(str(file.relative_to(root)).encode())
        digest.update(ast.dump(_essential(ast.parse(file.read_text()))).encode())
    return digest.hexdigest()[:16]


def commit() -> str:
    """Return the commit of the working tree, with `+` if its code differs."""
    head = _git("rev-parse", "--short=10", "HEAD")
    changed = _git("status", "--porcelain", "--", "pipeline", "scenes", "experiments/measure.py")
    return head + ("+" if changed else "")


def _git(*arguments: str) -> str:
    return subprocess.run(
        ["git", "-C", str(ROOT), *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()


def _essential(tree: ast.Module) -> ast.Module:
    """Remove docstrings, imports and refusals."""
    for node in ast.walk(tree):
        for name in ("body", "orelse"):
            parts = getattr(node, name, None)
            if isinstance(parts, list):
                setattr(node, name, [part for part in parts if not _is_inessential(part)])
    return tree


def _is_inessential(node: ast.AST) -> bool:
    if isinstance(node, ast.Import | ast.ImportFrom):
        return True
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    return isinstance(node, ast.If) and not node.orelse and all(isinstance(part, ast.Raise) for part in node.body)
