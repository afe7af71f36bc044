"""Measure what a store's signals, features and intrinsics take, and the errors that they reach.

    python benchmarks/store_extras.py [--frames 44] [--epochs 4] [--out FILE.json]

Real KITTI frames (KB crop, 352x1216). The teacher is a network of this project (`lean`), trained here on rendered
streets: its maps give a confidence (mass within 10 % of the depth) and a probability of sky (mass of the farthest
tenth of the bins); features are those of its encoder. Peers: the signal as an 8-bit PNG, the features as float16, plain
and in a compressed .npz. Takes about two minutes on 2 cores.
"""

from __future__ import annotations

import argparse
import io
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from common import KITTI, RESULTS, machine, markdown, render, write
from PIL import Image

import pipeline as tiekd
from pipeline.cache.plan import CacheOptions
from pipeline.cache.run import cache_teacher
from pipeline.depth.bins import bin_centers
from pipeline.sources.registry import open_source
from pipeline.sources.view import View
from pipeline.store.format.sizes import chunk_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.store import Store
    from pipeline.teachers.base import Teacher, TeacherOutput

LAYERS = ("8", "16", "32")
COMPONENTS = 64
NEAR = 0.1
"""Relative distance from the depth within which mass counts as confidence."""
FAR = 0.1
"""Fraction of the bins, the farthest, whose mass counts as sky."""
SIGNALS = ("confidence", "sky")


class WithSignals:
    """A teacher with signals made from its maps."""

    needs_images = True

    def __init__(self, teacher: Teacher) -> None:
        assert teacher.bin_edges_m is not None
        self.card, self.bin_edges_m, self._teacher = teacher.card, teacher.bin_edges_m, teacher
        self._centers_m = bin_centers(torch.from_numpy(teacher.bin_edges_m)).float().view(-1, 1, 1)

    def predict(self, images: torch.Tensor | None, ids: Sequence[str]) -> TeacherOutput:
        """Return what the teacher gives, and both signals."""
        output = self._teacher.predict(images, ids)
        assert output.dpm is not None
        near = (self._centers_m / output.depth[:, None] - 1).abs() <= NEAR
        first = int(len(self._centers_m) * (1 - FAR))
        confidence, sky = (output.dpm * near).sum(1), output.dpm[:, first:].sum(1)
        return output._replace(confidence=confidence.clamp(0, 1), sky=sky.clamp(0, 1))


def trained_teacher(folder: Path, epochs: int) -> Teacher:
    """Train `lean` on rendered streets and open it with its features."""
    source = render(folder / "scenes", 120, (128, 416))
    options = {"student": "lean", "loss": "truth-nll", "bins": "log:64:1:80", "epochs": epochs, "batch_size": 8}
    tiekd.train_student(source, "train", None, folder / "run", progress=True, **options)
    return tiekd.open_teacher(f"checkpoint:{folder / 'run'}", device="cpu", features=LAYERS)


def png_bytes(values: np.ndarray) -> int:
    """Return the size of a signal as an 8-bit PNG."""
    buffer = io.BytesIO()
    Image.fromarray(np.rint(values * 255).astype(np.uint8)).save(buffer, "png", optimize=True)
    return buffer.tell()


def npz_bytes(values: np.ndarray) -> int:
    """Return the size of features as a compressed float16 .npz."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, values.astype(np.float16))
    return buffer.tell()


def rows_of(store: Store, teacher: WithSignals, images: Sequence[torch.Tensor]) -> list[dict[str, Any]]:
    """Return a row of figures for each part of the store."""
    sizes = {name: size / len(store) for name, size in chunk_bytes(store.layout.sharded(), store.manifest).items()}
    outputs = [teacher.predict(image, ["a"]) for image in images]
    rows = [
        {"part": "depth", "bytes": sizes["depth"], "stated": 5e-4, "reached": float(store.rows("max_rel_error").max())}
    ]
    for name in SIGNALS:
        png = float(np.mean([png_bytes(getattr(output, name)[0].numpy()) for output in outputs]))
        reached = float(store.rows(f"signal_{name}_error").max())
        rows.append(
            {"part": name, "bytes": sizes[f"signals/{name}"], "stated": 1 / 510, "reached": reached, "png": png}
        )
    for layer in LAYERS:
        features = [output.features[layer][0].numpy() for output in outputs if output.features is not None]
        spec = store.spec.extras.features[layer]
        rows.append(
            {
                "part": f"features, stride {layer}",
                "bytes": sizes[f"features/{layer}/code"] + sizes[f"features/{layer}/scale"],
                "channels": spec.channels,
                "components": spec.components,
                "cosine": float(store.rows(f"feature_{layer}_cosine").mean()),
                "variance": float(store.rows(f"feature_{layer}_variance").mean()),
                "float16": 2 * features[0].size,
                "npz": float(np.mean([npz_bytes(each) for each in features])),
            }
        )
    rows.append({"part": "intrinsics", "bytes": 16})
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the figures as a table."""
    lines = []
    for row in rows:
        error, peer = "", ""
        if "stated" in row:
            error = f"at most {row['stated']:.4f}, {row['reached']:.4f} reached"
        if "png" in row:
            peer = f"PNG {row['png'] / 1e3:.1f} KB"
        if "cosine" in row:
            error = f"mean cosine {row['cosine']:.4f}, explained variance {row['variance']:.4f}"
            error += f"; {row['components']} components of {row['channels']} channels"
            peer = f"float16 {row['float16'] / 1e3:.0f} KB, .npz {row['npz'] / 1e3:.0f} KB"
        lines.append([row["part"], f"{row['bytes'] / 1e3:.1f} KB" if row["bytes"] > 100 else "16 bytes", error, peer])
    return markdown(["part", "a frame", "error", "peers"], lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=44)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--out", type=Path, default=RESULTS / "store_extras.json")
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        teacher = WithSignals(trained_teacher(folder, flags.epochs))
        source, split = open_source(f"kitti:{KITTI}"), folder / "frames.txt"
        listed = [
            line for name in ("train", "test") for line in (KITTI / f"splits/sample_{name}.txt").read_text().split("\n")
        ]
        split.write_text("\n".join([line for line in listed if line][: flags.frames]))
        samples = source.samples(str(split))
        options = CacheOptions(
            view="kb",
            dpm="gaussian",
            bins="kitti",
            sigma_m=0.5,
            signals=SIGNALS,
            features=LAYERS,
            feature_components=COMPONENTS,
            intrinsics="source",
        )
        cache_teacher(source, str(split), teacher, folder / "s.zarr", options)
        store = tiekd.open_store(folder / "s.zarr")
        views = [View.parse("kb").of_image(source.read_image(sample)[0]) for sample in samples[:8]]
        images = [torch.from_numpy(view).permute(2, 0, 1)[None].float() / 255 for view in views]
        rows = rows_of(store, teacher, images)
    print(table(rows))
    facts = {**machine(torch.get_num_threads()), "frames": len(samples), "epochs": flags.epochs}
    write(flags.out, table(rows), {**facts, "rows": rows})


if __name__ == "__main__":
    main()
