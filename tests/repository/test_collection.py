"""Every process collects the same tests: xdist stops if they differ."""

import os
import subprocess
import sys

import pytest
from paths import ROOT


def collected(seed):
    """Return the ids of all tests, collected by a new process."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider"]
    environment = os.environ | {"PYTHONHASHSEED": seed, "PYTEST_ADDOPTS": ""}
    environment.pop("PYTEST_XDIST_WORKER", None)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout[-2000:]
    return [line for line in done.stdout.splitlines() if "::" in line]


@pytest.mark.slow
def test_two_collections_agree_and_ids_have_no_raw_bytes():
    first, second = collected("1"), collected("2")
    assert first == second
    assert len(first) == len(set(first)) > 3000
    assert not [name for name in first if "\\x" in name.partition("[")[2] and "PK" in name]
