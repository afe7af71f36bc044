"""The GPU benchmark runs every section, here on a CPU at a small size."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_section_of_the_gpu_benchmark_gives_figures(tmp_path):
    command = [sys.executable, "benchmarks/gpu.py", "--small", "--device", "cpu", "--out", str(tmp_path / "gpu.json")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "gpu.json").read_text())
    sections = {row["section"] for row in found["rows"]}
    assert sections == {"stage-one", "maps", "loss", "step", "loop", "repeat"}
    assert not [row for row in found["rows"] if "error" in row]
    assert "left out" not in done.stdout
    repeats = {row["what"]: row for row in found["rows"] if row["section"] == "repeat"}
    assert repeats["stage one twice"]["same_bytes"]
    assert repeats["stage two twice, deterministic True"]["same_weights"]
