"""The commands and snippets of README and docs run, and their tables match the results."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import fakes
import numpy as np
import pytest
from click.testing import CliRunner
from paths import REAL
from stores_v3 import make_store_v3
from tiny_stores import make_store

import pipeline as tiekd
from pipeline.cli.main import main
from pipeline.losses import registry
from pipeline.store import open_store

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def blocks(text, language):
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def commands(text=README):
    """Return every shell line of a document, by default README."""
    return [line for block in blocks(text, "sh") for line in block.strip().splitlines()]


def test_make_commands_of_readme_are_targets():
    targets = [line.split()[1] for line in commands() if line.startswith("make ")]
    assert {"demo", "test"} <= set(targets)
    for target in targets:
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), target


@pytest.mark.realdata
@pytest.mark.slow
def test_every_command_of_readme_runs(tmp_path, monkeypatch):
    # README finds the real data in ../shared; the transformers command has its own test.
    monkeypatch.chdir(tmp_path)
    shared = tmp_path.parent / "shared"
    if not shared.exists():
        shared.symlink_to(ROOT.parent / "shared")
    small = small_splits(tmp_path)
    ran = run_on_a_few_frames(commands(), small)
    stages = {"cache-teacher", "evaluate-teacher", "train-student", "evaluate-student", "report", "store"}
    assert stages | {"export-student", "predict"} == set(ran)


@pytest.mark.realdata
@pytest.mark.slow
def test_the_litert_commands_of_the_teachers_page_run(tmp_path, monkeypatch):
    pytest.importorskip("ai_edge_litert")
    monkeypatch.chdir(tmp_path)
    shared = tmp_path.parent / "shared"
    if not shared.exists():
        shared.symlink_to(ROOT.parent / "shared")
    text = (ROOT / "docs" / "teachers.md").read_text()
    (block,) = [block for block in blocks(text, "sh") if "litert:" in block]
    ran = run_on_a_few_frames(block.strip().splitlines(), small_splits(tmp_path))
    assert set(ran) == {"cache-teacher", "evaluate-teacher", "train-student", "evaluate-student", "report"}
    assert (tmp_path / "office.html").stat().st_size > 50_000


def run_on_a_few_frames(lines, small):
    """Run the pipeline commands on a few frames for one epoch; returns their names."""
    ran = []
    for line in lines:
        words = shlex.split(line)
        if words[0] != "pipeline" or "transformers:" in line:
            continue
        # An epoch over all frames at 352x1216 takes minutes on two cores.
        words = [small.get(word, word) for word in words[1:]]
        if "--epochs" in words:
            words[words.index("--epochs") + 1] = "1"
        if "--block" in words:
            words[words.index("--block") + 1] = "2"
        done = CliRunner().invoke(main, words)
        assert done.exit_code == 0, f"{line}\n{done.output}"
        ran.append(words[0])
    return ran


def small_splits(folder):
    """Write lists of the first frames of README's splits; returns their paths by README's names."""
    kitti, indoor = Path("../shared/data/kitti/splits"), Path("../shared/data/indoor")
    named = {f"{kitti}/sample_train.txt": 4, f"{kitti}/sample_test.txt": 2}
    small = {}
    for name, count in named.items():
        path = folder / Path(name).name
        path.write_text("\n".join(Path(name).read_text().splitlines()[:count]))
        small[name] = str(path)
    for split in ("train", "test"):
        path = folder / f"indoor_{split}.txt"
        path.write_text("\n".join((indoor / f"{split}.txt").read_text().splitlines()[:8]))
        small[split] = str(path)
    (folder / "indoor_all.txt").write_text("\n".join(Path(small[split]).read_text() for split in ("train", "test")))
    small["all"] = str(folder / "indoor_all.txt")
    return small


PAGES = sorted(path.name for path in (ROOT / "docs").glob("*.md") if path.name not in {"cli.md", "teachers.md"})


@pytest.mark.realdata
@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if commands((ROOT / "docs" / page).read_text())])
def test_every_command_of_a_page_runs_in_its_order(page, tmp_path, monkeypatch):
    (tmp_path / "shared").symlink_to(REAL.parent)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    fakes.make_folder(Path("MY_IMAGES"), size_px=(64, 96))
    lines = commands((ROOT / "docs" / page).read_text())
    if page == "export.md":  # continues README's run
        lines = [line for line in commands() if "runs/kitti" in line or "--out train.zarr" in line][:2] + lines
    assert run_on_a_few_frames(lines, small_splits(tmp_path))


def test_extras_in_install_commands_exist():
    lines = [
        line for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")] for line in commands(path.read_text())
    ]
    extras = {extra for line in lines for extra in re.findall(r"^pip install .*\[(.+)\]", line)}
    assert extras >= {"transformers", "onnx", "litert"}
    for extra in extras:
        assert re.search(rf"^{extra} = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)


def test_the_transformers_command_of_readme_runs_with_a_tiny_model(tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    from tiny_transformers import METRIC, save_model

    (line,) = [line for line in commands() if "transformers:" in line and line.startswith("pipeline")]
    model = tmp_path / "model"
    save_model(model, "depth_anything", **METRIC)
    fakes.make_folder(tmp_path / "MY_IMAGES", size_px=(28, 42))
    monkeypatch.chdir(tmp_path)
    words = re.sub(r"transformers:\S+", f"transformers:{model}", line).split()[1:]
    words = [word.strip("'") for word in words]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    assert open_store(tmp_path / "teacher.zarr").spec.teacher["kind"] == "transformers"


def test_the_teacher_of_readme_works(tmp_path):
    (code,) = [block for block in blocks(README, "python") if "my_teacher" in block]
    (tmp_path / "my_teacher.py").write_text(code)
    fakes.make_folder(tmp_path / "images", size_px=(24, 32))
    command = [Path(sys.executable).with_name("pipeline"), "cache-teacher", "--source", "folder:images"]
    command += ["--split", "all", "--teacher", "python:my_teacher:load", "--bins", "nyu", "--sigma-m", "0.2"]
    done = subprocess.run([*command, "--out", "s.zarr"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert open_store(tmp_path / "s.zarr").spec.teacher["name"] == "mine"


def test_the_source_of_the_extending_page_works_in_both_stages(tmp_path):
    (code,) = [block for block in blocks((ROOT / "docs" / "extending.md").read_text(), "python") if "SOURCE" in block]
    package = tmp_path / "pipeline"
    shutil.copytree(ROOT / "pipeline", package, ignore=shutil.ignore_patterns("__pycache__"))
    (package / "sources" / "datasets" / "pairs.py").write_text(code)
    (tmp_path / "images").mkdir()
    for number in range(6):
        depth_m = fakes.smooth_depth_m((32, 48), number)
        fakes.write_image(tmp_path / f"images/{number}.jpg", fakes.image_of(depth_m))
        np.save(tmp_path / f"images/{number}.npy", depth_m)
    shutil.copy(ROOT / "tests" / "support" / "fakes.py", tmp_path)
    where = ["--source", "pairs:images", "--split"]
    for words, expected in (
        (
            ["cache-teacher", *where, "all", "--teacher", "python:fakes:factory", "--out", "s.zarr"],
            "6 samples of 32x48",
        ),
        (
            [
                *["train-student", *where, "train", "--store", "s.zarr", "--student", "lean-small"],
                *["--epochs", "1", "--batch-size", "2", "--out", "run"],
            ],
            "2 steps",
        ),
        (["evaluate-student", "run", *where, "test", "--out", "m.json"], "protocol name plain"),
        (
            ["cache-teacher", "--source", "pear:x", "--split", "all", "--teacher", "x:y", "--out", "t.zarr"],
            "pairs, scenes",
        ),
    ):
        command = [sys.executable, "-m", "pipeline.cli.main", *words]
        done = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": "."}
        )
        assert expected in done.stdout + done.stderr, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("page", "least"),
    [
        ("benchmarks.md", 6),
        ("experiments.md", 12),
        ("protocol.md", 1),
        ("scale.md", 4),
        ("sources.md", 1),
        ("teachers.md", 4),
    ],
)
def test_tables_of_a_page_match_results_and_code(monkeypatch, page, least):
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    import tables

    text = (ROOT / "docs" / page).read_text()
    assert tables.filled(text, tables.tables()) == text, "run `python experiments/tables.py`"
    assert text.count("<!-- table ") >= least


@pytest.mark.realdata
@pytest.mark.slow
def test_the_term_of_the_extending_page_trains(tmp_path, scenes, teacher_store, monkeypatch):
    page = (ROOT / "docs" / "extending.md").read_text()
    (code,) = [block for block in blocks(page, "python") if "build_term" in block]
    (entry,) = [block for block in blocks(page, "text") if "TermEntry" in block]
    module = ModuleType("pipeline.losses.terms.smoothness")
    module.__package__ = "pipeline.losses.terms"
    exec(code, module.__dict__)  # noqa: S102 - from our own page
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for name, value in eval(f"{{{entry}}}", {"TermEntry": registry.TermEntry}).items():  # noqa: S307 - as above
        monkeypatch.setitem(registry.TERMS, name, value)
    student = tiekd.train_student(
        scenes, "train", open_store(teacher_store), tmp_path / "run", student="lean-small", epochs=1, add=["smoothness"]
    )
    assert student.config["add"] == ["smoothness=0.001"]
    assert "smoothness" in (tmp_path / "run" / "steps.csv").read_text().splitlines()[0]


@pytest.mark.parametrize("page", ["README.md", "docs/python.md"])
def test_the_python_snippets_of_readme_and_the_python_page_run(tmp_path, monkeypatch, capsys, page):
    import torch

    import pipeline as tiekd

    (code,) = [block for block in blocks((ROOT / page).read_text(), "python") if "TieKdLoss" in block]
    (tmp_path / "here").mkdir()
    (tmp_path / "shared").symlink_to(REAL.parent)
    monkeypatch.chdir(tmp_path / "here")
    if page == "README.md":  # whose commands write the store
        source = tiekd.open_source("kitti", "../shared/data/kitti")
        teacher = tiekd.open_teacher("predictions:../shared/data/kitti/teacher_png16", metres_per_unit=80 / 65535)
        tiekd.cache_teacher(teacher, source, "../shared/data/kitti/splits/sample_train.txt", "train.zarr")
    values = {}
    exec(code.replace('"epochs": 15', '"epochs": 1'), values)  # noqa: S102 - our own README
    assert float(capsys.readouterr().out) > 0
    depth_m = torch.from_numpy(values["store"].depth_m(0))[None, None]
    logits = torch.zeros(1, values["store"].spec.bin_count, *depth_m.shape[2:], requires_grad=True)
    values["loss"](logits, depth_m).backward()
    assert torch.isfinite(logits.grad).all()


def test_the_reader_of_the_format_page_reads_the_same_depth_without_this_package(tmp_path):
    code, _ = blocks((ROOT / "docs" / "store.md").read_text(), "python")
    assert len(code.strip().splitlines()) <= 20
    assert "pipeline" not in code
    path = make_store(tmp_path / "teacher.zarr")
    program = tmp_path / "read.py"
    program.write_text(code.replace("000042", "a/004") + "\nnp.save('depth_m.npy', depth_m.astype('float32'))\n")
    done = subprocess.run([sys.executable, "-W", "error", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert np.array_equal(np.load(tmp_path / "depth_m.npy"), open_store(path).depth_m("a/004"), equal_nan=True)


def test_the_format_page_reads_signals_and_features_without_this_package(tmp_path):
    _, code = blocks((ROOT / "docs" / "store.md").read_text(), "python")
    assert "pipeline" not in code
    store = open_store(make_store_v3(tmp_path / "signals.zarr"))
    program = (
        "import numpy as np\nimport zarr\n"
        + code
        + "\nnp.savez('read.npz', confidence=confidence, features=features)\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "read.npz") as read:
        assert read["confidence"] == pytest.approx(store.signal("confidence", 0), abs=1e-6)
        assert read["features"] == pytest.approx(store.feature("11", 0), abs=1e-5)


def test_linked_files_exist():
    for document in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name}: {target}"
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_the_site_builds_without_warnings_and_without_a_network(tmp_path):
    pytest.importorskip("zensical")
    for name in ("docs", "pipeline", "mkdocs.yml"):
        source = ROOT / name
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, tmp_path / name)
    page = subprocess.run(
        [sys.executable, "-m", "pipeline.cli.reference"], cwd=tmp_path, capture_output=True, text=True
    )
    assert "## pipeline store verify" in page.stdout, page.stderr
    (tmp_path / "docs" / "cli.md").write_text(page.stdout)
    # Nothing listens on this proxy, so any use of the network fails.
    env = {**os.environ, "http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
    build = [sys.executable, "-m", "zensical", "build", "--clean", "--strict"]
    done = subprocess.run(build, cwd=tmp_path, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "pipeline.open_store" in (tmp_path / "site" / "python" / "index.html").read_text()
    named = set(re.findall(r"[\w-]+\.md", (ROOT / "mkdocs.yml").read_text()))
    assert named == {path.name for path in (tmp_path / "docs").glob("*.md")}, "every page is in the menu"
