"""Python environments for teachers of their own, made without a network."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

DECOY = """
WHO = "decoy"

def __getattr__(name):
    raise AttributeError(f"the decoy has no {name}")
"""


def make_environment(folder: Path, packages: dict[str, str], *, links: dict[str, Path] | None = None) -> str:
    """Make a virtual environment and return its Python.

    `packages` are the texts of the `__init__.py` of packages that are installed in it. It also finds the packages of
    this environment, or with `links` only these.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    for name, text in packages.items():
        (site / name).mkdir()
        (site / name / "__init__.py").write_text(text)
        metadata = re.search(r'__version__ = "(.+)"', text)
        if metadata is not None:
            (site / f"{name}-{metadata[1]}.dist-info").mkdir()
            (site / f"{name}-{metadata[1]}.dist-info" / "METADATA").write_text(
                f"Metadata-Version: 2.1\nName: {name}\nVersion: {metadata[1]}\n"
            )
    if links is None:
        (site / "parent.pth").write_text(str(Path(np.__file__).parents[1]))
    for name, path in (links or {}).items():
        (site / name).symlink_to(path)
    return str(folder / "bin" / "python")


def numpy_alone() -> dict[str, Path]:
    """Return the links of an environment with numpy and nothing else."""
    site = Path(np.__file__).parents[1]
    return {name: site / name for name in ("numpy", "numpy.libs") if (site / name).exists()}


def is_running(pid: int) -> bool:
    """Return whether there is a process, not even one that waits to be reaped."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def ends_within(pid: int, seconds: float) -> bool:
    """Return whether a process, which may be another's zombie, ends in time."""
    last = time.monotonic() + seconds
    while time.monotonic() < last:
        stat = Path(f"/proc/{pid}/stat")
        try:
            if stat.read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return not is_running(pid)
        time.sleep(0.02)
    return False
