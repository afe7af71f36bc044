"""A store is shared between DVC repositories unchanged, and trains a student there without the teacher."""

import os
import shutil
import subprocess
import sys
import time

import pytest
from tiny_stores import folder_bytes

from pipeline.store import open_store
from pipeline.store.tools.verify import verify_store
from pipeline.train.options import TrainOptions
from pipeline.train.run import train_network

pytest.importorskip("dvc")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("git") is None, reason="git is absent"),
]


@pytest.fixture
def run(tmp_path):
    """Run a command in a repository without the user's configuration; prints the time of each dvc command."""
    home = tmp_path / "home"
    home.mkdir()
    (home / ".gitconfig").write_text('[user]\nname = a\nemail = a@example.org\n[protocol "file"]\nallow = always\n')
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("GIT_", "DVC_", "XDG_"))}
    environment |= {
        "HOME": str(home),
        "DVC_NO_ANALYTICS": "1",
        "DVC_SITE_CACHE_DIR": str(tmp_path / "site"),
        "DVC_GLOBAL_CONFIG_DIR": str(home),
        "DVC_SYSTEM_CONFIG_DIR": str(home),
    }

    def run(folder, *command):
        command = [str(part) for part in command]
        begin = time.perf_counter()
        words = [sys.executable, "-m", *command] if command[0] == "dvc" else command
        done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        if command[0] == "dvc":
            print(f"{time.perf_counter() - begin:.1f} s  {' '.join(command[:2])}")  # noqa: T201 - shown by pytest -s

    return run


def repository(run, path):
    path.mkdir()
    run(path, "git", "init", "-q")
    run(path, "dvc", "init", "-q")
    return path


def test_a_store_pushed_from_one_repository_is_imported_into_another(tmp_path, run, scenes, teacher_store):
    ours, theirs = (repository(run, tmp_path / name) for name in ("ours", "theirs"))
    shutil.copytree(teacher_store, ours / "teacher.zarr")
    run(ours, "dvc", "remote", "add", "-d", "shared", tmp_path / "remote")
    run(ours, "dvc", "add", "teacher.zarr")
    run(ours, "dvc", "push")
    run(ours, "git", "add", "-A")
    run(ours, "git", "commit", "-q", "-m", "a store")
    shutil.rmtree(ours / "teacher.zarr")  # so that the others read from the remote
    shutil.rmtree(ours / ".dvc" / "cache")
    run(theirs, "dvc", "get", ours, "teacher.zarr", "--out", "got.zarr")
    run(theirs, "dvc", "import", ours, "teacher.zarr", "--out", "imported.zarr")
    expected = folder_bytes(teacher_store)
    for name in ("got.zarr", "imported.zarr"):
        assert folder_bytes(theirs / name) == expected, name
        assert verify_store(theirs / name) == []
    assert (theirs / "imported.zarr.dvc").is_file()
    options = TrainOptions(student="lean", epochs=1, batch_size=2)
    weights = []
    for number, path in enumerate((teacher_store, theirs / "imported.zarr")):
        out = tmp_path / f"run{number}"
        train_network(scenes, "train", out, options, store=open_store(path))
        weights.append((out / "student.safetensors").read_bytes())
    assert weights[0] == weights[1]
