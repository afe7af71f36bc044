"""Cache and evaluate every kind of teacher; for some also train a student and write its report.

Run `python experiments/any_teacher.py WORK [NAME ...]` after the demo (`dvc repro`); it also needs ../shared/data. It
works in the folder WORK, reuses stores and runs there, and writes experiments/results/teachers.json and .md, which
docs/teachers.md shows. With names it runs these cases only; the others keep their figures.
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
    """A teacher, the images it runs over, and the steps that follow."""

    name: str
    teacher: str
    what: str
    """Description in the table."""
    source: str = SCENES
    split: str = "test"
    evaluation: list[str] = field(default_factory=lambda: list(CAP))
    """Flags of the evaluation."""
    flags: list[str] = field(default_factory=list)
    """Flags of cache-teacher."""
    align: list[str] | None = None
    """Flags of `store align`, for a relative teacher; None without alignment."""
    student: list[str] | None = None
    """Flags of train-student over split `train`; None trains no student."""
    also: list[str] = field(default_factory=list)
    """Additional flags of a second evaluation."""
    flips: bool = False
    """Whether to cache predictions for the mirrored images too."""


def cases(work: Path) -> list[Case]:
    """Return all cases; `prepare` makes the files that they read in `work`."""
    kitti, indoor = f"kitti:{SHARED / 'kitti'}", f"folder:{SHARED / 'indoor'}"
    nyu = ["--bins", "nyu", "--sigma-m", "0.2"]
    lean = ["--student", "lean", "--batch-size", "4", "--learning-rate", "0.004"]
    garg = ["--protocol", "kitti_eigen_garg80"]
    sample = str(SHARED / "kitti/splits/sample_train.txt")
    return [
        Case("checkpoint", f"checkpoint:{TEACHER}", "the demo's teacher, with its maps", flips=True),
        Case(
            "checkpoint, --flip-average",
            f"checkpoint:{TEACHER}",
            "the same, averaged with the mirrored image",
            flags=["--flip-average"],
        ),
        Case(
            "ensemble",
            f"ensemble:checkpoint:{TEACHER},checkpoint:{STUDENT}",
            "the demo's teacher and its student tiekd",
        ),
        Case("onnx", f"onnx:{work / 'teacher.onnx'}", "the same network by export-student"),
        Case(
            "torchscript",
            f"torchscript:{work / 'teacher.pt'}",
            "the same network, traced",
            flags=["--trust-code", "--depth-space", "metric_m", "--normalise", "unit"],
        ),
        Case("python", "python:any_teacher_example:load", "the same network, as ten lines of Python"),
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
            "the same, with its predictions for mirrored images",
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
            "the demo teacher's disparities, each image with its own scale and shift",
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
    """Write the inputs of the cases: the demo's teacher in other formats, and relative predictions with known truth."""
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
    """Run a pipeline command and return its output. Raises RuntimeError with its error."""
    command = [*PIPELINE, *map(str, arguments)]
    print("$ pipeline", *map(str, arguments), flush=True)
    result = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError(result.stderr)
    return result.stdout


def run(case: Case, work: Path) -> dict[str, object]:
    """Cache, align, train and evaluate one case; return its figures."""
    folder = work / case.name.translate(str.maketrans(" ,.", "___"))
    folder.mkdir(exist_ok=True)
    images = ["--source", case.source, "--split", case.split]
    store = folder / "teacher.zarr"
    if not store.exists():
        flags = [*case.flags, *(["--cache-flips"] if case.flips else [])]
        pipeline("cache-teacher", *images, "--teacher", case.teacher, *flags, "--out", store, cwd=work)
    if case.align is not None:
        aligned = folder / "aligned.zarr"
        if not aligned.exists():
            pipeline("store", "align", store, *images, *case.align, "--out", aligned, cwd=work)
        store = aligned
    evaluation = ["--source", case.source, "--split", "test" if case.student else case.split, *case.evaluation]
    opened = open_store(store)
    figures: dict[str, object] = {
        "kind": case.teacher.partition(":")[0],
        "what": case.what,
        "depth_space": opened.spec.depth_space,
        "maps": opened.spec.dpm_kind,
        "aligned": case.align is not None,
        "frames": len(opened),
        "kb_per_frame": sum(size for size, _ in opened.manifest.values()) / len(opened) / 1e3,
        "teacher": evaluated("evaluate-teacher", store, [*evaluation, "--out", folder / "teacher.json"], work),
    }
    if case.flips:
        gap = compare_stores(opened, open_store(mirrored_path(store)))
        figures["flips"] = {"images": gap.compared, "median": gap.median_rel_difference, "max": gap.max_rel_difference}
    if case.also:
        flags = [*evaluation, *case.also, "--out", folder / "also.json"]
        figures["also"] = evaluated("evaluate-teacher", store, flags, work)
    if case.student is not None:
        figures["students"] = students_of(case, store, folder, evaluation, work)
    return figures


def students_of(case: Case, store: Path, folder: Path, evaluation: list[str], work: Path) -> dict[str, object]:
    """Train and evaluate the students of a case and write their report; return their figures."""
    training = ["--source", case.source, "--split", "train", "--store", store, *(case.student or [])]
    training += ["--flips-store", mirrored_path(store)] if case.flips else []
    losses = ("tiekd",) if open_store(store).is_metric else ("tiekd", "ssi+grad")
    students: dict[str, object] = {}
    for loss in losses:
        out = folder / f"run-{loss}"
        if not out.exists():
            pipeline("train-student", *training, "--loss", loss, "--out", out, cwd=work)
        flags = [*evaluation, "--store", store, "--out", folder / f"run-{loss}.json"]
        students[loss] = evaluated("evaluate-student", out, flags, work)
        if case.also:
            flags = [*evaluation, *case.also, "--out", folder / f"run-{loss}-also.json"]
            students[f"{loss}, also"] = evaluated("evaluate-student", out, flags, work)
    page = folder / "report.html"
    runs = [folder / f"run-{loss}" for loss in losses]
    metrics = [flag for path in (*runs, folder / "teacher") for flag in ("--metrics", f"{path}.json")]
    if not page.exists():
        options = ["--source", case.source, "--split", "test", "--store", store, *metrics, "--frames", 2]
        pipeline("report", *runs, *options, "--out", page, cwd=work)
    return students


def evaluated(command: str, path: Path, flags: list[object], work: Path) -> dict[str, object]:
    """Run one evaluation and return its figures."""
    pipeline(command, path, *flags, cwd=work)
    result = json.loads(Path(str(flags[-1])).read_text())
    return {
        "align": result["protocol"].get("align", "none"),
        "frames": result["frames"],
        **{name: result["metrics"][name] for name in ("abs_rel", "rmse", "delta1")},
    }


def table(by_name: dict[str, dict[str, object]]) -> str:
    """Return the Markdown table of all cases."""
    lines = [
        "| teacher | description | depth | stored | KB per frame | teacher's AbsRel | student's AbsRel |",
        "| --- | --- | --- | --- | ---: | --- | --- |",
    ]
    for name, case in by_name.items():
        space = str(case["depth_space"]) + (", aligned" if case["aligned"] else "")
        maps = "depth" if case["maps"] == "gaussian" else f"depth and {case['maps']} maps"
        own = [figure(case[key]) for key in ("teacher", "also") if key in case]
        students = [
            f"{loss.removesuffix(', also')} {figure(result)}" for loss, result in case.get("students", {}).items()
        ]
        cells = [name, case["what"], space, maps, f"{case['kb_per_frame']:.1f}", "; ".join(own), "; ".join(students)]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def flips_table(by_name: dict[str, dict[str, object]]) -> str:
    """Return the Markdown table of differences between predictions for mirrored images and mirrored predictions."""
    lines = ["| teacher | images | median difference | largest |", "| --- | ---: | ---: | ---: |"]
    for name, case in by_name.items():
        if "flips" in case:
            gap = case["flips"]
            lines.append(f"| {name} | {gap['images']} | {gap['median']:.1%} | {gap['max']:.0%} |")
    return "\n".join(lines) + "\n"


def figure(result: dict[str, object]) -> str:
    """Return AbsRel and the alignment."""
    align = "" if result["align"] == "none" else f" (each image aligned: {result['align']})"
    return f"{result['abs_rel']:.4f}{align}"


def main() -> None:
    """Run the named cases, or all, and write the results."""
    work, names = Path(sys.argv[1]).resolve(), sys.argv[2:]
    by_name = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    prepare(work)
    all_cases = cases(work)
    unknown = set(names) - {case.name for case in all_cases}
    if unknown:
        raise SystemExit(
            f"unknown case {', '.join(sorted(unknown))}: choose from {', '.join(case.name for case in all_cases)}"
        )
    for case in all_cases:
        if not names or case.name in names:
            by_name[case.name] = run(case, work)
    results = {case.name: by_name[case.name] for case in all_cases if case.name in by_name}
    RESULT.write_text(json.dumps(results, indent=2) + "\n")
    RESULT.with_suffix(".md").write_text(f"<!-- teachers -->\n{table(results)}\n<!-- flips -->\n{flips_table(results)}")
    print(table(results))


if __name__ == "__main__":
    main()
