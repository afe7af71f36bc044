"""The command line starts where another package named `pipeline` comes first on the path; Windows is refused."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from pipeline.cli.main import main

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("code", ["", "raise RuntimeError('not ours')"], ids=["empty", "raises"])
@pytest.mark.parametrize("where", ["PYTHONPATH", "working directory"])
def test_another_package_named_pipeline_is_not_imported(tmp_path, where, code):
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline" / "__init__.py").write_text(code)
    path = [str(tmp_path), str(ROOT)] if where == "PYTHONPATH" else [str(ROOT)]
    done = subprocess.run(
        [sys.executable, "-m", "tiekd_pipeline", "study", "absent.yaml:a", "--out", "x"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (1, "Error: study file absent.yaml: No such file or directory\n")


def test_child_processes_import_the_same_package(tmp_path):
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline" / "__init__.py").touch()
    script = tmp_path / "command"  # as an installer writes it
    script.write_text(
        "from tiekd_pipeline import main\n"
        "from concurrent.futures import ProcessPoolExecutor\n"
        "from multiprocessing import get_context\n"
        "from pipeline.common.parallel import cores\n"
        "if __name__ == '__main__':\n"
        "    with ProcessPoolExecutor(1, get_context('spawn')) as pool:\n"
        "        print(pool.submit(cores).result() == cores())\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True)
    assert done.stdout == "True\n", done.stderr


def test_windows_is_one_clear_message(monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")
    done = CliRunner().invoke(main, ["predict", "a", "b", "--out", "c"])
    assert done.exit_code == 1
    assert done.output == "Error: this program runs on Linux and macOS; on Windows run it in WSL 2\n"


def test_the_package_imports_without_unix_modules(tmp_path):
    code = (
        "import sys\n"
        "sys.modules['fcntl'] = sys.modules['resource'] = None\n"
        "from pathlib import Path\n"
        "import pipeline.common.device, pipeline.store\n"
        "from pipeline.common.locks import TargetLock\n"
        f"with TargetLock(Path({str(tmp_path / 's')!r})) as lock:\n"
        "    print(lock.note is not None)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "True\n", done.stderr


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "None")],
    ids=["default", "own count", "own policy"],
)
def test_commands_limit_spinning_before_torch_is_imported(given, expected):
    code = (
        "import os, sys\n"
        "from stages.train_student import train_student as command\n"
        "command.callback = lambda **_: print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules)\n"
        "assert 'GOMP_SPINCOUNT' not in set(os.environ) - set(sys.argv[1:])\n"
        "command('--source scenes:a --split b --store c --out d'.split())\n"
    )
    environment = {name: text for name, text in os.environ.items() if name not in {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}}
    command = [sys.executable, "-c", code, *given]
    done = subprocess.run(command, env=environment | given, capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == f"{expected} False\n", done.stderr
