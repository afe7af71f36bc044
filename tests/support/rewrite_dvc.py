"""Puts each stage's import closure into the dvc.yaml files. Run it after modules were added or moved."""

from __future__ import annotations

import re

from imports import DVC_FILES, ROOT, closure


def rewritten(text: str, file: str) -> str:
    """A dvc.yaml with the code that each stage waits for as it is now."""
    lines: list[str] = []
    for line in text.splitlines():
        if re.match(r" +- (pipeline|scenes)/\S+$", line):
            continue
        lines.append(line)
        stage = re.match(r"( +)- stages/(\w+)\.py$", line)
        if stage:
            lines += [f"{stage[1]}- {path}" for path in closure(stage[2], file)]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    for path in DVC_FILES:
        (ROOT / path).write_text(rewritten((ROOT / path).read_text(), path))
