"""Compares the Triton kernels with `fused` and prints JSON; test_fused_triton.py runs it in fresh processes.

    TRITON_INTERPRET=1 python tests/triton_cases.py agree
    python tests/triton_cases.py compile

`agree` runs the kernels in Triton's interpreter and reports the differences of kernels and blocks, both in float32,
from `fused` in float64. `compile` compiles them without a GPU and reports registers and spills.
"""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import torch
import torch.nn.functional as F

from pipeline.depth.bins import parse_bins
from pipeline.losses.base import StoredMaps
from pipeline.losses.blockwise import fused
from pipeline.losses.targets import GaussianTarget, GivenTarget, StoredTarget
from pipeline.store.format.sparse import encode_sparse, weight_table

LAST = torch.channels_last
DEFAULT = {"bins": "linear:49:0.001:10", "size": (5, 9), "order": torch.contiguous_format, "dtype": torch.float32}
GAUSSIAN = {"target": "gaussian", "sigma": 0.5, "in_bins": False, "centered": False}
CASES = {
    "no target": {"target": None},
    "no target, a thousand bins and more": {"target": None, "bins": "log:1030:0.1:80", "size": (1, 2), "order": LAST},
    "gaussian": GAUSSIAN,
    "gaussian, the paper's bins": {**GAUSSIAN, "bins": "kitti", "size": (10, 13)},
    "gaussian, channels last": {**GAUSSIAN, "bins": "linear:150:1:80", "size": (3, 5), "order": LAST},
    "gaussian, narrower than a bin": {**GAUSSIAN, "sigma": 0.02},
    "gaussian, as wide as the range": {**GAUSSIAN, "sigma": 10.0},
    "gaussian, in bins, centered": {**GAUSSIAN, "bins": "log:64:1:100", "in_bins": True, "centered": True},
    "gaussian, part of an image, channels last": {**GAUSSIAN, "size": (3, 5), "order": LAST, "part": True},
    "gaussian, three bins of a single pixel": {**GAUSSIAN, "bins": "linear:3:0.001:10", "size": (1, 1)},
    "gaussian, bfloat16": {**GAUSSIAN, "dtype": torch.bfloat16},
    "gaussian, float16, channels last": {**GAUSSIAN, "dtype": torch.float16, "size": (3, 5), "order": LAST},
    "given": {"target": "given"},
    "given, channels last": {"target": "given", "order": LAST},
    "given, of another size": {"target": "given", "map_size": (10, 13), "dtype": torch.float16},
    "stored": {"target": "stored"},
    "stored, channels last, bfloat16": {"target": "stored", "order": LAST, "dtype": torch.bfloat16},
    "stored, the paper's bins": {"target": "stored", "bins": "kitti", "size": (3, 5)},
    "depth alone": {**GAUSSIAN, "asked": (1, 0)},
    "divergence alone": {**GAUSSIAN, "asked": (0, 1)},
    "huge logits": {**GAUSSIAN, "offset": 3e4},
    "logits of minus infinity": {**GAUSSIAN, "bins": "linear:90:1:80", "ruled_out": True},
}


def depths_m(edges_m, size):
    """Return depth (2, 1, h, w): inside the range, slightly and far beyond both ends, and invalid."""
    random = torch.Generator().manual_seed(0)
    depth_m = torch.rand(2, 1, *size, generator=random) * (float(edges_m[-1]) + 10) - 5
    odd = torch.tensor([math.nan, 1e30, -1e30, math.inf])
    depth_m.view(2, -1)[:, 1 : 1 + len(odd)] = odd[: depth_m[0].numel() - 1]
    return depth_m


def target_of(case, edges_m, depth_m, dtype):
    """Return the target of a case, with maps of `dtype`."""
    if case["target"] is None:
        return None
    if case["target"] == "gaussian":
        kind = {name: case[name] for name in ("sigma", "in_bins", "centered")}
        return GaussianTarget(depth_m.to(dtype), edges_m, **kind)
    if case["target"] == "stored":
        return StoredTarget(stored_maps(len(edges_m) - 1, depth_m.shape[2:]), dtype)
    size = case.get("map_size", depth_m.shape[2:])
    maps = torch.rand(2, len(edges_m) - 1, *size, generator=torch.Generator().manual_seed(1))
    maps[:, ::3] = 0  # as in sparse maps
    maps = (maps / maps.sum(1, keepdim=True)).contiguous(memory_format=case["order"])
    maps[0, :, 0, 0], maps[1, 2, 0, 1], maps[1, 2, -1, -1] = 0, math.nan, math.inf
    return GivenTarget(maps, depth_m.shape[2:], dtype)


def stored_maps(bins, size):
    """Return sparse maps of two images, of which one pixel has none."""
    maps = torch.softmax(4 * torch.randn(2, bins, *size, generator=torch.Generator().manual_seed(1)), 1)
    maps[0, :, 0, 0] = math.nan
    parts = [encode_sparse(each.numpy(), 0.01, 8)[0] for each in maps]
    planes = max(len(part.gap) for part in parts)
    gap, weight = (
        torch.stack(
            [F.pad(torch.from_numpy(part[which]), (0, 0, 0, 0, 0, planes - len(part[which]))) for part in parts]
        )
        for which in (0, 1)
    )
    tail = torch.stack([torch.from_numpy(part.tail) for part in parts])
    return StoredMaps(gap, weight, tail, bins, torch.from_numpy(weight_table(8)))


def logits_of(case, edges_m):
    """Return logits (2, K, h, w) in the dtype and memory format of the case; `part` gives a view of a larger tensor."""
    size = [length + (4 if case.get("part") else 0) for length in case["size"]]
    random = torch.Generator().manual_seed(2)
    logits = 3 * torch.randn(2, len(edges_m) - 1, *size, generator=random) + case.get("offset", 0)
    if case.get("ruled_out"):
        logits[0, :40], logits[1, 70:] = -math.inf, -math.inf
    logits = logits.to(case["dtype"]).contiguous(memory_format=case["order"])
    return logits[..., 2:-2, 2:-2] if case.get("part") else logits


def run(logits, edges_m, target, kernel, asked, counts=None):
    """Return the outputs of `fused`, and the gradient of a weighted sum of the requested ones over counted pixels."""
    logits = logits.detach().requires_grad_()
    outputs = fused(logits, edges_m, target, kernel=kernel)
    parts = [part for part, wanted in zip(outputs[:2], asked, strict=True) if wanted and part is not None]
    weights = torch.linspace(-1, 1.5, parts[0].numel()).view_as(parts[0])
    counts = parts[-1].isfinite() if counts is None else counts
    torch.stack([(part.where(counts, 0) * weights).sum() for part in parts]).sum().backward()
    return [*outputs, logits.grad]


def largest(values):
    return float(values.abs().max()) if values.numel() else 0.0


def agree(case):
    """Report the differences from float64: depth and gradient relative, KL and mass absolute, where finite."""
    case = {**DEFAULT, **case}
    edges_m = parse_bins(case["bins"]).edges()
    logits, depth_m = logits_of(case, edges_m), depths_m(edges_m, case["size"])
    asked = case.get("asked", (1, 1))
    exact = run(logits.double(), edges_m, target_of(case, edges_m, depth_m, torch.float64), "blocks", asked)
    counts = exact[0].isfinite() if exact[1] is None else exact[1].isfinite()
    results = {
        kernel: run(logits, edges_m, target_of(case, edges_m, depth_m, torch.float32), kernel, asked, counts)
        for kernel in ("blocks", "triton")
    }
    report = {"pixels": int(counts.sum())}
    for kernel, (kernel_m, kl_nats, mass, gradient) in results.items():
        off = {"depth": largest(kernel_m.double() / exact[0] - 1)}
        if kl_nats is not None:
            off["kl"] = largest(kl_nats[counts].double() - exact[1][counts])
            off["mass"] = largest(mass.double() - exact[2])
        off["gradient"] = largest(gradient.double() - exact[3]) / largest(exact[3])
        report[kernel] = off
    blocks, triton = results["blocks"], results["triton"]
    if blocks[1] is not None:
        # 0 times infinity is NaN: blocks have no KL where a map is 0 in a bin with a logit of -inf; kernels do.
        apart = (blocks[1].isinf() != triton[1].isinf()) & ~blocks[1].isnan()
        report["infinite"], report["infinite_apart"] = int(blocks[1].isinf().sum()), int(apart.sum())
    report["same_kind"] = all(
        a is b or (a.dtype, a.shape, a.stride()) == (b.dtype, b.shape, b.stride())
        for a, b in zip(blocks, triton, strict=True)
    )
    return report


def twice():
    """Return whether two runs give the same bits."""
    case = {**DEFAULT, **GAUSSIAN}
    edges_m = parse_bins(case["bins"]).edges()
    target = target_of(case, edges_m, depths_m(edges_m, case["size"]), torch.float32)
    first, second = (run(logits_of(case, edges_m), edges_m, target, "triton", (1, 1)) for _ in range(2))
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


class NoGpu:
    """The part of a driver that Triton needs to compile."""

    def __init__(self, target):
        self.target = target

    def get_current_target(self):
        return self.target

    def get_current_device(self):
        return 0

    def get_current_stream(self, _):
        return 0


def compiled(capability, names):
    """Return registers and spilled bytes of each kernel, by dtype, layout and target, for a compute capability."""
    from triton.backends.compiler import GPUTarget
    from triton.knobs import nvidia
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    from pipeline.losses.triton.autograd import fused_triton

    driver.set_active(NoGpu(GPUTarget("cuda", capability, 32)))
    launch, made = JITFunction.run, []
    JITFunction.run = lambda *args, **kwargs: made.append(launch(*args, **{**kwargs, "warmup": True}))
    report = {}
    for dtype in (torch.float32, torch.bfloat16):
        for order in (torch.contiguous_format, LAST):
            for name in names:
                case = {**DEFAULT, **CASES[name], "bins": "kitti", "size": (16, 32), "order": order, "dtype": dtype}
                case = {**case, "map_size": (32, 64)} if "map_size" in case else case
                edges_m = parse_bins("kitti").edges()
                logits = logits_of(case, edges_m).requires_grad_()
                made.clear()
                outputs = fused_triton(
                    logits, edges_m[1:], target_of(case, edges_m, depths_m(edges_m, case["size"]), torch.float32)
                )
                sum(part.sum() for part in outputs[:2] if part is not None).backward()
                for way, kernel in zip(("forward", "backward"), made, strict=True):
                    report[f"{name}, {dtype}, {order}, {way}"] = resources(nvidia.cuobjdump.path, kernel)
    JITFunction.run = launch
    return report


def resources(cuobjdump, kernel):
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(kernel.asm["cubin"])
        result = subprocess.run(
            [cuobjdump, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True
        )
    registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", result.stdout).groups()
    wide = len(re.findall(r"ld\.global\.v4\.b32", kernel.asm["ptx"]))
    return {"registers": int(registers), "spilled_bytes": int(stack), "loads_of_16_bytes": wide}


def run_script(script, what, folder, **environment):
    """Run a script of this folder and return the JSON it prints.

    In a process of its own: Triton decides at import whether it interprets.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TRITON_CACHE_DIR": str(folder), **environment}
    path = Path(__file__).with_name(script)
    command = [sys.executable, str(path), what]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=path.parents[1])
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def main():
    warnings.simplefilter("ignore")
    if sys.argv[1] == "agree":
        report = {"cases": {name: agree(case) for name, case in CASES.items()}, "twice": twice()}
    else:
        report = {90: compiled(90, ("no target", "gaussian", "given", "given, of another size", "stored"))}
        report[80] = compiled(80, ("gaussian", "given"))
    sys.stdout.write(json.dumps(report))


if __name__ == "__main__":
    main()
