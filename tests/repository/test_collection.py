"""Every process that collects the tests finds the same ones: xdist compares them, and stops where they differ."""

import os
import subprocess
import sys

import pytest
from paths import ROOT


def collected(seed):
    """Ids of all tests, collected by a process of its own."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider"]
    environment = os.environ | {"PYTHONHASHSEED": seed, "PYTEST_ADDOPTS": ""}
    environment.pop("PYTEST_XDIST_WORKER", None)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout[-2000:]
    return [line for line in done.stdout.splitlines() if "::" in line]


@pytest.mark.slow
def test_two_collections_agree_and_no_id_holds_raw_bytes():
    first, second = collected("1"), collected("2")
    assert first == second
    assert len(first) == len(set(first)) > 3000
    assert not [one for one in first if "\\x" in one.partition("[")[2] and "PK" in one]
