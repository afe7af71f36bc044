"""Every kind of teacher from its own form to measured depth, and three of them to a student and a page.

`python experiments/any_teacher.py WORK [NAME ...]` needs a finished demo (`dvc repro`) and ../shared/data, works in the
folder WORK, and writes experiments/results/teachers.json and .md, which docs/teachers.md shows. Anything that is there
already is not made again. With names, only these are run anew, and the others keep their figures.
"""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from pipeline.cache.flips import mirrored_path
from pipeline.deploy.export import Deployable
from pipeline.networks.saved_run import load_run
from pipeline.store import open_store
from pipeline.store.tools.diff import compare_stores

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared/data"
RESULT = ROOT / "experiments/results/teachers.json"
PIPELINE = [sys.executable, "-m", "pipeline.cli.main"]
SCENES = f"scenes:{ROOT / 'data/scenes'}"
TEACHER, STUDENT = ROOT / "data/runs/teacher", ROOT / "data/runs/tiekd"
CAP = ["--protocol", "plain", "--max-depth-m", "80"]


@dataclass
class Case:
    """A teacher, what it is run over, and what is done with its store."""

    name: str
    teacher: str
    what: str
    """What it is, for the table; the commands tell the rest."""
    source: str = SCENES
    split: str = "test"
    terms: list[str] = field(default_factory=lambda: list(CAP))
    """Of the evaluation."""
    flags: list[str] = field(default_factory=list)
    """Of cache-teacher."""
    align: list[str] | None = None
    """Flags of `store align`, for a relative teacher."""
    student: list[str] | None = None
    """Flags of train-student over split `train`, where a student is trained."""
    also: list[str] = field(default_factory=list)
    """More flags of a second evaluation of the teacher."""
    flips: bool = False
    """Whether it is asked about the mirrored images too."""


def cases(work: Path) -> list[Case]:
    """All of them; what they need in `work` is made by `prepare`."""
    kitti, indoor = f"kitti:{SHARED / 'kitti'}", f"folder:{SHARED / 'indoor'}"
    nyu = ["--bins", "nyu", "--sigma-m", "0.2"]
    lean = ["--student", "lean", "--batch-size", "4", "--learning-rate", "0.004"]
    garg = ["--protocol", "kitti_eigen_garg80"]
    sample = str(SHARED / "kitti/splits/sample_train.txt")
    return [
        Case("checkpoint", f"checkpoint:{TEACHER}", "the demo's teacher, with its maps", flips=True),
        Case(
            "checkpoint, --flip-average", f"checkpoint:{TEACHER}", "its maps of both images", flags=["--flip-average"]
        ),
        Case("ensemble", f"ensemble:checkpoint:{TEACHER},checkpoint:{STUDENT}", "that teacher and its student tiekd"),
        Case("onnx", f"onnx:{work / 'teacher.onnx'}", "the same network by export-student"),
        Case(
            "torchscript",
            f"torchscript:{work / 'teacher.pt'}",
            "the same network, traced",
            flags=["--trust-code", "--depth-space", "metric_m", "--normalise", "unit"],
        ),
        Case("python", "python:any_teacher_example:load", "the same network, called by ten lines"),
        Case(
            "predictions, 16-bit PNG",
            f"predictions:{SHARED / 'kitti/teacher_png16'}",
            "saved predictions in the layout of the released code, KITTI",
            kitti,
            sample,
            garg,
            ["--metres-per-unit", "tiekd-kitti"],
        ),
        Case(
            "predictions, .npy",
            f"predictions:{SHARED / 'kitti/teacher_native'}",
            "the same before upsampling",
            kitti,
            sample,
            garg,
            ["--metres-per-unit", "1", "--input-size", "192x640"],
        ),
        Case(
            "litert",
            f"litert:{SHARED / 'teachers/fast_depth_224.tflite'}",
            "FastDepth, int8, trained on NYU, over an office",
            indoor,
            "all",
            ["--protocol", "plain", "--max-depth-m", "10"],
            ["--depth-space", "metric_m", "--view", "center:328x438", *nyu],
            student=[*lean, "--crop", "256x320", "--epochs", "8"],
            also=["--align", "median"],
        ),
        Case(
            "litert, --cache-flips",
            f"litert:{SHARED / 'teachers/fast_depth_224.tflite'}",
            "the same, mirrored crops taught by its answers for the mirrored images",
            indoor,
            "all",
            ["--protocol", "plain", "--max-depth-m", "10"],
            ["--depth-space", "metric_m", "--view", "center:328x438", *nyu],
            student=[*lean, "--crop", "256x320", "--epochs", "8"],
            also=["--align", "median"],
            flips=True,
        ),
        Case(
            "relative, as it is",
            f"predictions:{work / 'disparities'}",
            "the demo teacher's disparities, each image with a scale and a shift of its own",
            split="all",
            student=[*lean, "--epochs", "5"],
        ),
        Case(
            "relative, aligned",
            f"predictions:{work / 'disparities'}",
            "the same, aligned to LiDAR-like truth",
            split="all",
            align=["--truth", "sparse"],
            student=[*lean, "--epochs", "5"],
        ),
    ]


EXAMPLE = """
from pathlib import Path
import torch
from pipeline.networks.saved_run import load_run, normalise
from pipeline.depth.dpm import expected_depth


def load(device):
    run = load_run(Path({run!r}))

    class Teacher:
        card = {{"name": "lean-large", "depth_space": "metric_m", "weights_sha256": run.weights_sha256}}

        def __call__(self, images):
            maps = torch.softmax(run.network(normalise(images)), dim=1)
            return expected_depth(maps, torch.from_numpy(run.bin_edges_m))[:, 0]

    return Teacher()
"""


def prepare(work: Path) -> None:
    """Make what the cases read: the demo's teacher in other forms, and relative predictions whose truth is known."""
    work.mkdir(parents=True, exist_ok=True)
    (work / "any_teacher_example.py").write_text(EXAMPLE.format(run=str(TEACHER)))
    if not (work / "teacher.onnx").exists():
        pipeline("export-student", TEACHER, "--out", work / "teacher.onnx", cwd=work)
    if not (work / "teacher.pt").exists():
        network = Deployable(load_run(TEACHER), uncertainty=False).eval()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the checks of shapes hold for every image of this size
            traced = torch.jit.trace(network, torch.rand(1, 3, 128, 416))
        torch.jit.save(traced, str(work / "teacher.pt"))
    folder = work / "disparities"
    if not (folder / "predictions.json").exists():
        store = open_store(ROOT / "data/stores/teacher.zarr")
        random = np.random.default_rng(0)
        folder.mkdir(exist_ok=True)
        for number, sample_id in enumerate(store.ids):
            scale, shift = np.exp(random.normal(0, 1.5)), random.normal(0, 5)
            np.save(folder / f"{sample_id}.npy", (scale / store.depth_m(number) + shift).astype(np.float32))
        facts = {"depth_space": "affine_disparity", "name": "disparities of lean-large"}
        (folder / "predictions.json").write_text(json.dumps(facts))


def pipeline(*arguments: object, cwd: Path) -> str:
    """Run one of our commands; returns what it printed. Raises RuntimeError with its error."""
    command = [*PIPELINE, *map(str, arguments)]
    print("$ pipeline", *map(str, arguments), flush=True)
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)  # noqa: S603 - our own
    if done.returncode:
        raise RuntimeError(done.stderr)
    return done.stdout


def run(case: Case, work: Path) -> dict[str, object]:
    """Cache, align, train and measure one case; returns its figures."""
    place = work / case.name.translate(str.maketrans(" ,.", "___"))
    place.mkdir(exist_ok=True)
    where = ["--source", case.source, "--split", case.split]
    store = place / "teacher.zarr"
    if not store.exists():
        flags = [*case.flags, *(["--cache-flips"] if case.flips else [])]
        pipeline("cache-teacher", *where, "--teacher", case.teacher, *flags, "--out", store, cwd=work)
    if case.align is not None:
        aligned = place / "aligned.zarr"
        if not aligned.exists():
            pipeline("store", "align", store, *where, *case.align, "--out", aligned, cwd=work)
        store = aligned
    measured = ["--source", case.source, "--split", "test" if case.student else case.split, *case.terms]
    opened = open_store(store)
    found: dict[str, object] = {
        "kind": case.teacher.partition(":")[0],
        "what": case.what,
        "depth_space": opened.spec.depth_space,
        "maps": opened.spec.dpm_kind,
        "aligned": case.align is not None,
        "frames": len(opened),
        "kb_per_frame": sum(size for size, _ in opened.manifest.values()) / len(opened) / 1e3,
        "teacher": evaluated("evaluate-teacher", store, [*measured, "--out", place / "teacher.json"], work),
    }
    if case.flips:
        gap = compare_stores(opened, open_store(mirrored_path(store)))
        found["flips"] = {"images": gap.compared, "median": gap.median_rel_difference, "max": gap.max_rel_difference}
    if case.also:
        flags = [*measured, *case.also, "--out", place / "also.json"]
        found["also"] = evaluated("evaluate-teacher", store, flags, work)
    if case.student is not None:
        found["students"] = students_of(case, store, place, measured, work)
    return found


def students_of(case: Case, store: Path, place: Path, measured: list[str], work: Path) -> dict[str, object]:
    """Train the students of a case, measure them and write their page; returns their figures."""
    trained = ["--source", case.source, "--split", "train", "--store", store, *(case.student or [])]
    trained += ["--flips-store", mirrored_path(store)] if case.flips else []
    losses = ("tiekd",) if open_store(store).is_metric else ("tiekd", "ssi+grad")
    students: dict[str, object] = {}
    for loss in losses:
        out = place / f"run-{loss}"
        if not out.exists():
            pipeline("train-student", *trained, "--loss", loss, "--out", out, cwd=work)
        flags = [*measured, "--store", store, "--out", place / f"run-{loss}.json"]
        students[loss] = evaluated("evaluate-student", out, flags, work)
        if case.also:
            flags = [*measured, *case.also, "--out", place / f"run-{loss}-also.json"]
            students[f"{loss}, also"] = evaluated("evaluate-student", out, flags, work)
    page = place / "report.html"
    runs = [place / f"run-{loss}" for loss in losses]
    metrics = [flag for one in (*runs, place / "teacher") for flag in ("--metrics", f"{one}.json")]
    if not page.exists():
        shown = ["--source", case.source, "--split", "test", "--store", store, *metrics, "--frames", 2]
        pipeline("report", *runs, *shown, "--out", page, cwd=work)
    return students


def evaluated(command: str, what: Path, flags: list[object], work: Path) -> dict[str, object]:
    """The figures of one evaluation."""
    pipeline(command, what, *flags, cwd=work)
    result = json.loads(Path(str(flags[-1])).read_text())
    return {
        "align": result["protocol"].get("align", "none"),
        "frames": result["frames"],
        **{name: result["metrics"][name] for name in ("abs_rel", "rmse", "delta1")},
    }


def table(found: dict[str, dict[str, object]]) -> str:
    """Markdown of all cases."""
    lines = [
        "| teacher | over what | depth | stored | KB a frame | its AbsRel | student's AbsRel |",
        "| --- | --- | --- | --- | ---: | --- | --- |",
    ]
    for name, case in found.items():
        space = str(case["depth_space"]) + (", aligned" if case["aligned"] else "")
        maps = "depth" if case["maps"] == "gaussian" else f"depth and {case['maps']} maps"
        own = [figure(case[key]) for key in ("teacher", "also") if key in case]
        students = [f"{loss.removesuffix(', also')} {figure(one)}" for loss, one in case.get("students", {}).items()]
        cells = [name, case["what"], space, maps, f"{case['kb_per_frame']:.1f}", "; ".join(own), "; ".join(students)]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def flips_table(found: dict[str, dict[str, object]]) -> str:
    """Markdown of how far answers for mirrored images are from mirrored answers."""
    lines = ["| teacher | images | median difference | largest |", "| --- | ---: | ---: | ---: |"]
    for name, case in found.items():
        if "flips" in case:
            gap = case["flips"]
            lines.append(f"| {name} | {gap['images']} | {gap['median']:.1%} | {gap['max']:.0%} |")
    return "\n".join(lines) + "\n"


def figure(measured: dict[str, object]) -> str:
    """AbsRel, and how it was aligned."""
    align = "" if measured["align"] == "none" else f" (each image aligned: {measured['align']})"
    return f"{measured['abs_rel']:.4f}{align}"


def main() -> None:
    """Run what is asked for, and write the results."""
    work, names = Path(sys.argv[1]).resolve(), sys.argv[2:]
    found = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    prepare(work)
    order = cases(work)
    unknown = set(names) - {case.name for case in order}
    if unknown:
        raise SystemExit(f"{', '.join(unknown)}: expected some of {', '.join(case.name for case in order)}")
    for case in order:
        if not names or case.name in names:
            found[case.name] = run(case, work)
    kept = {case.name: found[case.name] for case in order if case.name in found}
    RESULT.write_text(json.dumps(kept, indent=2) + "\n")
    RESULT.with_suffix(".md").write_text(f"<!-- teachers -->\n{table(kept)}\n<!-- flips -->\n{flips_table(kept)}")
    print(table(kept))


if __name__ == "__main__":
    main()
