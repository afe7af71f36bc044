"""Imports between folders, DVC dependencies, content of a wheel, pinned requirements."""

import ast
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml
from imports import DVC_FILES, STAGES, closure, imports_of, modules

ROOT = Path(__file__).parents[2]

MAY_IMPORT = {
    "errors": set(),
    "common": set(),
    "depth": {"common"},
    "sources": {"common"},
    "networks": {"common", "depth", "sources"},
    "losses": {"common", "depth"},
    "store": {"common", "depth"},
    # A network trained with this package can be a teacher: only checkpoint.py imports networks.
    "teachers": {"common", "depth", "networks", "sources"},
    "cache": {"common", "depth", "sources", "store", "teachers"},
    "train": {"common", "depth", "losses", "networks", "sources", "store"},
    "evaluation": {"common", "depth", "networks", "sources", "store"},
    "report": {"common", "depth", "evaluation", "networks", "sources", "store"},
    "deploy": {"common", "depth", "evaluation", "networks", "sources", "store"},
    "cli": {
        "cache",
        "common",
        "deploy",
        "depth",
        "evaluation",
        "losses",
        "networks",
        "report",
        "sources",
        "store",
        "teachers",
        "train",
    },
    "scenes": {"cli", "common"},
    # The functions of `import pipeline`; each imports its stage when called.
    "api": {
        "cache",
        "cli",
        "common",
        "deploy",
        "depth",
        "evaluation",
        "networks",
        "sources",
        "store",
        "teachers",
        "train",
    },
}
"""Folder of the package -> folders it may import at run time, apart from `errors`. In `scenes`, only its command line
imports `cli`."""


def folder(name):
    """Return the folder of a module: `pipeline.store.read.ids` -> `store`; `scenes.camera` -> `scenes`."""
    parts = name.split(".")
    return parts[0] if parts[0] == "scenes" else parts[1] if len(parts) > 1 else ""


def test_folders_import_only_what_the_table_allows():
    known = modules()
    seen = set()
    for name in known:
        here = folder(name)
        seen.add(here)
        for other in imports_of(name, known):
            if other in known and other != "pipeline":
                allowed = {here, "errors"} | MAY_IMPORT.get(here, set())
                assert folder(other) in allowed, f"{name} imports {other}: {here} may import {sorted(allowed)}"
    assert seen - {""} == set(MAY_IMPORT)


def test_each_third_party_package_is_imported_only_by_its_folders():
    owners = {
        "zarr": {"store"},
        "numcodecs": {"store"},
        "click": {"cli", "scenes"},
        "transformers": {"teachers"},
        "tqdm": {"cli"},
        "fsspec": {"store"},
        "aiohttp": {"store"},
        "timm": {"networks"},
        "onnx": {"deploy"},
        "onnxruntime": {"deploy", "teachers"},
        "ai_edge_litert": {"teachers"},
        "distributed": {"cache"},
        "h5py": {"sources"},
        "OpenEXR": {"sources"},
        "triton": {"losses", "store"},
        "yaml": {"evaluation"},
    }
    known = modules()
    for name in known:
        for other in imports_of(name, known):
            top = other.split(".")[0]
            assert folder(name) in owners.get(top, {folder(name)}), f"{name} imports {top}"


def test_only_the_command_line_prints():
    for name, path in modules().items():
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        printing = [node for node in calls if isinstance(node.func, ast.Name) and node.func.id == "print"]
        assert not printing, name
        assert folder(name) == "cli" or "sys.stdout" not in path.read_text(), name


def test_commands_print_only_through_console():
    for name, path in modules().items():
        assert name == "pipeline.cli.console" or not re.search(r"click\.s?echo\b", path.read_text()), name


def test_packages_begin_with_a_docstring_and_no_code():
    for path in (ROOT / "pipeline").rglob("__init__.py"):
        if path.parent.name in {"pipeline", "store"}:  # public names
            continue
        tree = ast.parse(path.read_text())
        assert ast.get_docstring(tree), path
        assert len(tree.body) == 1, path


def test_importing_stage_two_imports_no_teacher():
    code = (
        "import sys, pipeline.train.run, pipeline.evaluation.run, pipeline.losses.tiekd\n"
        "bad = [m for m in sys.modules if m.startswith(('pipeline.teachers', 'transformers', 'onnxruntime'))]\n"
        "assert not bad, bad"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_no_pickle_is_ever_loaded():
    for name, path in modules().items():
        text = path.read_text()
        assert not re.search(r"import (pickle|marshal|shelve)|allow_pickle=True|weights_only=False", text), name
        for call in re.findall(r"torch\.load\(.*\)", text):
            assert "weights_only=True" in call, name


# --- dvc -----------------------------------------------------------------------------------------------------------

DVC = {path: yaml.safe_load((ROOT / path).read_text())["stages"] for path in DVC_FILES}


def dvc_stages():
    """Yield (file, stage, script, dependencies) of the stages of every dvc.yaml."""
    for path, stages in DVC.items():
        for name, stage in stages.items():
            deps = stage.get("do", stage)["deps"]
            scripts = [dep for dep in deps if dep.startswith("stages/")]
            if not scripts:  # plots or tables, by a script in experiments/
                assert any(dep.startswith("experiments/") for dep in deps), name
                continue
            yield path, name, Path(scripts[0]).stem, deps


def covers(dep, path):
    """Return whether a dependency of a stage is the file or one of its folders."""
    return path == dep or path.startswith(f"{dep}/")


@pytest.mark.parametrize("listed", list(dvc_stages()), ids=lambda listed: f"{listed[0]}-{listed[1]}")
def test_the_imports_of_a_stage_are_among_its_dependencies(listed):
    file, _, script, deps = listed
    for path in closure(script, file):
        # Imported by name for a URL, which these stages do not read; and files with only names and messages.
        if path.startswith("pipeline/store/remote/") or path.endswith(
            ("/__init__.py", "pipeline/errors.py", "pipeline/api.py")
        ):
            continue
        assert any(covers(dep, path) for dep in deps), path


def test_every_stage_has_a_script_and_does_not_depend_on_the_whole_package():
    scripts = {script for _, _, script, _ in dvc_stages()}
    assert scripts == set(STAGES) == {path.stem for path in (ROOT / "stages").glob("*.py")}
    assert set(DVC["dvc.yaml"]) == scripts - {"run_study"}
    for _, _, _, deps in dvc_stages():
        assert not {"pipeline", "pipeline/cli"} & set(deps)
        assert all((ROOT / dep).exists() for dep in deps if dep.startswith(("pipeline/", "scenes", "stages/")))
    assert "__pycache__" in (ROOT / ".dvcignore").read_text().split()


@pytest.mark.parametrize(
    "path",
    [
        "pipeline/losses/tiekd.py",
        "pipeline/losses/ssim.py",
        "pipeline/report/page.py",
        "pipeline/deploy/export.py",
        "pipeline/store/remote/transport.py",
        "pipeline/evaluation/run.py",
        "pipeline/cli/cache_teacher.py",
    ],
)
@pytest.mark.parametrize("stage", ["train_teacher", "cache_teacher"])
def test_a_change_to_this_file_does_not_rerun_the_teacher(stage, path):
    assert (ROOT / path).is_file()
    assert not any(covers(dep, path) for dep in DVC["dvc.yaml"][stage]["deps"])


def test_a_change_to_the_trainer_does_not_rerun_stage_one():
    assert not any(covers(dep, "pipeline/train/trainer.py") for dep in DVC["dvc.yaml"]["cache_teacher"]["deps"])
    assert any(covers(dep, "pipeline/losses/tiekd.py") for dep in DVC["dvc.yaml"]["train_student"]["do"]["deps"])


def test_the_flags_in_params_are_flags_of_the_commands():
    from pipeline.cli.main import main

    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    commands = {
        "teacher": "train-teacher",
        "cache": "cache-teacher",
        "student": "train-student",
        "evaluate": "evaluate-student",
        "report": "report",
    }
    for section, name in commands.items():
        known = {option for parameter in main.get_command(None, name).params for option in parameter.opts}
        assert {f"--{flag}" for flag in params[section]} <= known, section
        if section == "student":
            assert {f"--{flag}" for flags in params["students"].values() for flag in flags} <= known


def test_the_stages_are_thin():
    for path in (ROOT / "stages").glob("*.py"):
        tree = ast.parse(path.read_text())
        assert len(tree.body) == (6 if path.stem == "make_scenes" else 3), path  # make_scenes looks for scenes/


# --- wheel ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_wheel_holds_only_the_package_and_its_help_runs(tmp_path):
    # From a copy: setuptools leaves a folder `build`, and would pack the content of an older one.
    source = tmp_path / "source"
    shutil.copytree(ROOT / "pipeline", source / "pipeline", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "tiekd_pipeline.py"):
        shutil.copy(ROOT / name, source)
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", "-w", tmp_path, source]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("tiekd_pipeline-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        tops = {name.split("/")[0] for name in archive.namelist()}
        assert {top for top in tops if not top.endswith(".dist-info")} == {"pipeline", "tiekd_pipeline.py"}
        packed = {name for name in archive.namelist() if name.startswith("pipeline/") and name.endswith(".py")}
        assert packed == {path.relative_to(ROOT).as_posix() for path in (ROOT / "pipeline").rglob("*.py")}
        archive.extractall(tmp_path / "site")
    import click

    code = (
        "import sys; sys.path[:] = [p for p in sys.path if 'site-packages' not in p and p != '']\n"
        f"sys.path += [{str(tmp_path / 'site')!r}, {str(tmp_path / 'click')!r}]\n"
        "from pipeline.cli.main import main; main(['--help'])"
    )
    (tmp_path / "click").mkdir()
    (tmp_path / "click" / "click").symlink_to(Path(click.__file__).parent)
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "cache-teacher" in done.stdout


# --- requirements, imports, flags -------------------------------------------------------------------------------------


def test_every_requirement_is_pinned():
    pinned = {
        line.split("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line
    }
    asked = re.findall(r'^    "([A-Za-z0-9_-]+)', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    names = {name.lower() for name in asked} - {"tiekd-pipeline", "ann", "td", "fix"}
    known = {"torch", "zarr", "numcodecs", "numpy", "click", "pillow", "h5py", "dask", "hypothesis", "pytest"}
    assert known <= names
    from_project = {name for name in names if name in known | {"safetensors", "tqdm", "matplotlib", "jinja2", "pyyaml"}}
    assert from_project <= pinned
    assert "torch==2.13.0" in (ROOT / "constraints.txt").read_text()


def test_no_module_imports_itself_through_others():
    known = modules()
    imported = {name: imports_of(name, known) & set(known) - {name, "pipeline"} for name in known}
    for name in known:
        seen, todo = set(), list(imported[name])
        while todo:
            other = todo.pop()
            if other not in seen:
                seen.add(other)
                todo += imported[other]
        assert name not in seen, name


def test_only_the_command_line_names_flags():
    for name, path in modules().items():
        if folder(name) == "cli" or path.name == "__main__.py":
            continue
        tree = ast.parse(path.read_text())
        prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
                # Flags of docker, and variables of the page's style
                text = re.sub(r"docker run --[\w=-]+, or --[\w=-]+|var\(--|`pipeline [^`]*`", "", node.value)
                assert not re.search(r"(^|[^\w-])--[a-z]", text), f"{name}: {node.value}"
