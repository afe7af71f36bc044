"""Measure both stages on a GPU, against the network alone and plain PyTorch.

    python benchmarks/gpu.py [--only stage-one,maps,loss,step,loop,repeat] [--small] [--out FILE.json]

Needs the package and a GPU, makes its own images and random networks, and prints each figure as soon as it has it.
With 16 cores and one GPU all sections together take at most 8 minutes; each stops at its own limit. Sections:

- `stage-one` (150 s): a depth network of ViT-L size (335 M parameters, 518x1792) and one of ViT-S size, depth alone.
  With transformers installed they are Depth Anything networks, else a plain transformer.
- `maps` (90 s): sparse maps of 64 and 257 bins at 352x1216.
- `loss` (90 s): time and peak memory of TIE-KD, forward and backward, in plain PyTorch, blocks and Triton.
- `step` (60 s): a training step of `mobilenetv2`, batch 16, 352x704, with a `tiekd` and a `truth-si` loss.
- `loop` (60 s): images per second of training `lean` with an image cache.
- `repeat` (30 s): whether two runs give the same store and the same weights, with and without `deterministic`.

`--small` runs every section at a size for a CPU, to test this script.
"""

from __future__ import annotations

import argparse
import gc
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import loss as plain_losses
import loss_gpu
import numpy as np
import torch
from common import RESULTS, machine, markdown, write
from gpu_networks import MapTeacher, depth_teacher, plain_teacher
from PIL import Image

from pipeline.cache.plan import CacheOptions
from pipeline.cache.run import cache_teacher
from pipeline.common.device import autocast_type
from pipeline.common.fileio import sha256_file
from pipeline.losses.registry import build_loss
from pipeline.networks.registry import build_student
from pipeline.sources.registry import open_source
from pipeline.sources.view import View
from pipeline.store import open_store
from pipeline.store.images.reader import open_images
from pipeline.train.options import TrainOptions
from pipeline.train.run import train_network

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

    from pipeline.sources.base import Source
    from pipeline.teachers.base import Teacher

LIMITS_S = {"stage-one": 150, "maps": 90, "loss": 90, "step": 60, "loop": 60, "repeat": 30}
WARM_UP, ROUNDS = 3, 10


class Deadline:
    """Time limit of a section."""

    def __init__(self, section: str) -> None:
        self.section, self.end_s = section, time.monotonic() + LIMITS_S[section]

    def allows(self, what: str, needs_s: float = 5.0) -> bool:
        """Return whether there is time left for a measurement; prints what is left out."""
        allowed = time.monotonic() + needs_s < self.end_s
        if not allowed:
            print(f"  left out, no time: {what}", flush=True)
        return allowed


class Sizes:
    """Sizes of all sections, for a GPU or, with `small`, for a CPU."""

    def __init__(self, *, small: bool) -> None:
        self.small = small
        self.image_px = (60, 200) if small else (375, 1242)
        self.images = 6 if small else 192
        self.batch = 2 if small else 16
        self.crop_px = (48, 96) if small else (352, 704)
        self.map_view = "center:48x160" if small else "kb"


def seconds_each(device: torch.device, call: Callable[[], object], rounds: int = ROUNDS) -> float:
    """Return the median time of a call, once it is warm."""
    clock = loss_gpu.Clock(device)
    for _ in range(WARM_UP):
        call()
    return statistics.median(clock.seconds(call) for _ in range(rounds))


def say(rows: list[dict[str, Any]], section: str, what: str, **figures: float | str | bool) -> None:
    """Record a row and print it."""
    rows.append({"section": section, "what": what, **figures})
    print(f"  {what}: {text_of(figures)}", flush=True)


def text_of(figures: dict[str, Any]) -> str:
    """Return figures as text."""
    shown = {name: f"{value:.3g}" if isinstance(value, float) else value for name, value in figures.items()}
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in shown.items())


def make_images(folder: Path, sizes: Sizes) -> Source:
    """Write PNG images with the detail of photographs, and ground truth at a few pixels."""
    random = np.random.default_rng(0)
    for kind in ("rgb", "depth"):
        (folder / kind).mkdir(parents=True)
    height, width = sizes.image_px
    for number in range(sizes.images):
        coarse = Image.fromarray(random.integers(0, 256, (height // 12, width // 12, 3), np.uint8))
        smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.int16)
        pixels = np.clip(smooth + random.integers(-6, 7, smooth.shape), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "rgb" / f"{number:05}.png", compress_level=1)
        truth_mm = np.where(random.random((height, width)) < 0.05, random.integers(3000, 60000, (height, width)), 0)
        Image.fromarray(truth_mm.astype(np.uint16)).save(folder / "depth" / f"{number:05}.png", compress_level=1)
    return open_source(f"folder:{folder}")


def stage_one_s(source: Source, teacher: Teacher, out: Path, options: CacheOptions) -> float:
    """Return the seconds of stage one per image."""
    begin = time.perf_counter()
    done = cache_teacher(source, "all", teacher, out, options)
    return (time.perf_counter() - begin) / done.samples


def stage_one(rows: list[dict[str, Any]], source: Source, folder: Path, device: torch.device, sizes: Sizes) -> None:
    """Depth alone."""
    deadline = Deadline("stage-one")
    input_px = (28, 84) if sizes.small else (518, 1792)
    for name in ("ViT-L", "ViT-S"):
        if not deadline.allows(name, 60):
            continue
        teacher, alone, kind = depth_teacher(name, folder / name, input_px, device, small=sizes.small)
        alone_s = seconds_each(device, lambda alone=alone: alone(sizes.batch), 5) / sizes.batch
        say(rows, "stage-one", f"{name} ({kind}), network alone", ms=1e3 * alone_s)
        options = CacheOptions(view="full", bins="kitti", sigma_m=0.5, batch_size=sizes.batch, accept_noise=True)
        ours_s = stage_one_s(source, teacher, folder / f"{name}.zarr", options)
        say(rows, "stage-one", f"{name}, stage one", ms=1e3 * ours_s, ratio=ours_s / alone_s)
        del teacher, alone
        release()


def maps(rows: list[dict[str, Any]], source: Source, folder: Path, device: torch.device, sizes: Sizes) -> None:
    """Sparse maps."""
    deadline = Deadline("maps")
    height, width = View.parse(sizes.map_view).size_px(*sizes.image_px)
    for bins in (64, 257):
        if not deadline.allows(f"{bins} bins", 30):
            continue
        teacher, batch = MapTeacher(bins, device), 2 if sizes.small else 8
        images = torch.rand(batch, 3, height, width, device=device)
        alone_s = seconds_each(device, lambda t=teacher, i=images, b=batch: t.predict(i, [""] * b), 5) / batch
        say(rows, "maps", f"{bins} bins, network alone", ms=1e3 * alone_s)
        options = CacheOptions(view=sizes.map_view, dpm="sparse", batch_size=batch, accept_noise=True)
        ours_s = stage_one_s(source, teacher, folder / f"maps-{bins}.zarr", options)
        after_20_ms = (20e-3 + max(0.0, ours_s - alone_s)) / 20e-3
        say(
            rows, "maps", f"{bins} bins, stage one",
            ms=1e3 * ours_s, ratio=ours_s / alone_s, ratio_to_a_network_of_20_ms=after_20_ms,
        )  # fmt: skip
        del teacher, images
        release()


def losses(rows: list[dict[str, Any]], device: torch.device, sizes: Sizes) -> None:
    """TIE-KD and its depth and KL, forward and backward."""
    deadline = Deadline("loss")
    shape = (1, 257, 24, 48) if sizes.small else (4, 257, 352, 704)
    bandwidth = loss_gpu.copy_bytes_per_s(device, 2**22 if sizes.small else loss_gpu.COPIED_BYTES)
    say(rows, "loss", "copy", tb_per_s=bandwidth / 1e12)
    kernels = ("blocks", "triton") if device.type == "cuda" else ("blocks",)
    plain = {
        "tiekd": plain_losses.plain_tiekd,
        "depth and KL": lambda *inputs: sum(part.mean() for part in plain_losses.plain_depth_and_kl(*inputs)),
    }
    for dtype in loss_gpu.TYPES:
        for kind, call in plain.items():
            if not deadline.allows(f"{kind}, {dtype}", 15):
                continue
            logits, depth_m = (part.to(device) for part in plain_losses.make_inputs(shape))
            named = loss_gpu.losses({kind: call}, plain_losses.SIGMA_M, kernels, compiled=False)
            for row in loss_gpu.measure(named, logits.to(dtype), depth_m, bandwidth, 3 if sizes.small else ROUNDS):
                figures = {name: row[name] for name in ("median_ms", "faster_than_plain", "of_bandwidth")}
                if row["peak_by_logits"] is not None:
                    figures["peak_by_logits"] = row["peak_by_logits"]
                say(rows, "loss", f"{row['loss']}, {row['logits']}", **figures)
            del logits, depth_m
            release()


def one_step(network: nn.Module, loss: Any, images: Tensor, depth_m: Tensor) -> Callable[[], None]:  # noqa: ANN401 - a loss
    """Return a call of forward, loss, backward, clipping and update."""
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3, fused=True)
    dtype = autocast_type("auto", images.device)

    def call() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(images.device.type, dtype=dtype, enabled=dtype is not None):
            logits = network(images)
        loss(logits, depth_m).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 35)
        optimizer.step()

    return call


def step(rows: list[dict[str, Any]], device: torch.device, sizes: Sizes) -> None:
    """A training step with data on the device."""
    deadline = Deadline("step")
    edges_m = plain_losses.EDGES_M.double()
    images = torch.rand(sizes.batch, 3, *sizes.crop_px, device=device)
    depth_m = 3 + 60 * torch.rand(sizes.batch, 1, *sizes.crop_px, device=device)
    student = "lean" if sizes.small else "mobilenetv2"
    base_s = None
    for layout in (torch.contiguous_format, torch.channels_last):
        for name in ("truth-si", "tiekd"):
            what = f"{student}, {name}, {str(layout).removeprefix('torch.')}"
            if not deadline.allows(what, 12):
                continue
            network = build_student(student, len(edges_m) - 1).to(device).to(memory_format=layout)
            loss = build_loss(name.removeprefix("truth-"), edges_m, sigma_m=0.5)
            loss.use_kernel("auto", device)
            batch = images.contiguous(memory_format=layout)

            each_s = seconds_each(device, one_step(network, loss, batch, depth_m), 2 if sizes.small else ROUNDS)
            base_s = each_s if name == "truth-si" else base_s
            ratio = {} if base_s is None or name == "truth-si" else {"ratio_to_truth_si": each_s / base_s}
            say(rows, "step", what, ms=1e3 * each_s, **ratio)
            del network, loss
            release()


def loop(rows: list[dict[str, Any]], source: Source, folder: Path, device: torch.device, sizes: Sizes) -> None:
    """The whole training loop of `lean`, from a store and an image cache."""
    from pipeline.cache.images import cache_images

    deadline = Deadline("loop")
    options = CacheOptions(view=sizes.map_view, bins="kitti", sigma_m=0.5, batch_size=sizes.batch, accept_noise=True)
    cache_teacher(source, "all", plain_teacher(device), folder / "loop.zarr", options)
    cache_images(source, "all", folder / "images.zarr", view=sizes.map_view)
    store, images = open_store(folder / "loop.zarr"), open_images(folder / "images.zarr")
    for compiled in (False, True):
        if not deadline.allows(f"lean, compile {compiled}", 25) or (sizes.small and compiled):
            continue
        settings = TrainOptions(
            student="lean", loss="tiekd", epochs=2 if sizes.small else 8, batch_size=sizes.batch, crop_px=sizes.crop_px
        )
        out = folder / f"loop-{compiled}"
        done = train_network(
            source, "all", out, settings, store=store, images=images, device=str(device), compiled=compiled
        )
        say(rows, "loop", f"lean, image cache, compile {compiled}", images_per_s=float(done["images_per_second"]))


def repeat(rows: list[dict[str, Any]], source: Source, folder: Path, device: torch.device, sizes: Sizes) -> None:
    """Compare two runs of each stage."""
    deadline = Deadline("repeat")
    options = CacheOptions(view=sizes.map_view, bins="kitti", sigma_m=0.5, batch_size=sizes.batch, accept_noise=True)
    for number in (1, 2):
        cache_teacher(source, "all", plain_teacher(device), folder / f"repeat{number}.zarr", options)
    manifests = [(folder / f"repeat{number}.zarr" / "MANIFEST.json").read_bytes() for number in (1, 2)]
    say(rows, "repeat", "stage one twice", same_bytes=manifests[0] == manifests[1])
    settings = TrainOptions(student="lean", loss="tiekd", epochs=1, batch_size=sizes.batch, crop_px=sizes.crop_px)
    store = open_store(folder / "repeat1.zarr")
    for exact in (False, True):
        if not deadline.allows(f"deterministic {exact}", 8):
            continue
        weights, seconds = [], []
        for number in (1, 2):
            out = folder / f"repeat-{exact}-{number}"
            done = train_network(
                source, "all", out, settings, store=store, device=str(device), deterministic=exact, workers=0
            )
            weights.append(sha256_file(out / "student.safetensors"))
            seconds.append(done["seconds"])
        say(
            rows,
            "repeat",
            f"stage two twice, deterministic {exact}",
            same_weights=weights[0] == weights[1],
            s=float(min(seconds)),
        )


def release() -> None:
    """Free what the last measurement used."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def main() -> None:
    """Run the sections, and write JSON after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(LIMITS_S), help="sections, separated by commas")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULTS / "gpu.json")
    arguments = parser.parse_args()
    device, sizes = torch.device(arguments.device), Sizes(small=arguments.small)
    sections = arguments.only.split(",")
    unknown = [section for section in sections if section not in LIMITS_S]
    if unknown:
        parser.error(f"section {unknown[0]!r}: expected some of {', '.join(LIMITS_S)}")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    facts = {**machine(torch.get_num_threads()), "device": name, "small": sizes.small}
    print(facts, flush=True)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        source = make_images(folder / "images", sizes)
        begun_s = time.monotonic()
        calls: dict[str, Callable[[], None]] = {
            "stage-one": lambda: stage_one(rows, source, folder, device, sizes),
            "maps": lambda: maps(rows, source, folder, device, sizes),
            "loss": lambda: losses(rows, device, sizes),
            "step": lambda: step(rows, device, sizes),
            "loop": lambda: loop(rows, source, folder, device, sizes),
            "repeat": lambda: repeat(rows, source, folder, device, sizes),
        }
        for section in sections:
            print(f"{section} (at most {LIMITS_S[section]} s)", flush=True)
            try:
                calls[section]()
            except Exception as error:  # noqa: BLE001 - the other sections still say something
                say(rows, section, "failed", error=f"{type(error).__name__}: {error}"[:500])
            release()
            table = markdown(["section", "what", "figures"], [table_row(row) for row in rows])
            write(arguments.out, table, {**facts, "rows": rows})
        print(f"{time.monotonic() - begun_s:.0f} s; wrote {arguments.out}")


def table_row(row: dict[str, Any]) -> list[str]:
    """Return a row of the Markdown table."""
    return [row["section"], row["what"], text_of({name: row[name] for name in row if name not in {"section", "what"}})]


if __name__ == "__main__":
    main()
