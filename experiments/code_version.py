"""Which code made a result: the commit, and a hash of the code that decides a student's weights.

The hash is of the syntax tree without docstrings, so that text does not change it.
"""

from __future__ import annotations

import ast
import hashlib
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]
TRAINING = ("pipeline/depth/dpm.py", "pipeline/depth/readout.py", "pipeline/depth/log_distribution.py")
TRAINING_FOLDERS = ("pipeline/losses", "pipeline/networks", "pipeline/train")


def training_sha256() -> str:
    """Return the hash of losses, students and trainer."""
    files = [ROOT / name for name in TRAINING]
    for folder in TRAINING_FOLDERS:
        files += sorted((ROOT / folder).rglob("*.py"))
    digest = hashlib.sha256()
    for file in files:
        digest.update(str(file.relative_to(ROOT)).encode())
        digest.update(ast.dump(_without_docstrings(ast.parse(file.read_text()))).encode())
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


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [  # type: ignore[attr-defined]  # every node with a list as its body
                part
                for part in body
                if not (
                    isinstance(part, ast.Expr)
                    and isinstance(part.value, ast.Constant)
                    and isinstance(part.value.value, str)
                )
            ]
    return tree
