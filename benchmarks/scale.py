"""Estimate and simulate stores of up to ten million images: planning, opening, look-up by id, and resuming.

    python benchmarks/scale.py [--largest 10000000] [--out FILE.json]

A simulated store has everything that grows with the number of samples except maps: metadata, manifest, ids, journal,
and empty shard files of the right length. Each measurement runs in a fresh process, which reports its memory. The
plan's inputs are bytes and milliseconds per sample from docs/benchmarks.md and list prices cited in docs/scale.md.
Writes FILE.json and FILE.md.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from common import RESULTS, markdown, memory_mb, reset_peak_memory, write

from pipeline.common.fileio import pretty_json, sha256_bytes
from pipeline.sources.base import Sample
from pipeline.sources.sample_table import SampleTable
from pipeline.store import open_store
from pipeline.store.format.codec import encode_chunk
from pipeline.store.format.layout import MANIFEST, StoreLayout
from pipeline.store.format.shard_size import default_samples_per_shard
from pipeline.store.format.spec import StoreSpec
from pipeline.store.tools.estimate import reference_costs
from pipeline.store.write.journal import ShardRecord
from pipeline.store.write.writer import StoreWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

SIZES = (10_000, 100_000, 1_000_000, 10_000_000)
IN_MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108 - on a disk the files take minutes
NATIVE_PX, FULL_PX = (192, 640), (352, 1216)
BINS = 64
GPUS, GPUS_PER_NODE, WORKERS_PER_GPU = 64, 8, 8
MS_PER_IMAGE = (50, 200)
NETWORK_BYTES_PER_S = 1.25e9
"""10 Gbit/s, of the one machine that uploads."""
HASH_MS_PER_MB = 0.7
DECODE_MS = 1.42
PART_BYTES = 8 * 2**20
"""The AWS command line transfers larger objects in parts of this size, one request each."""
S3_GETS_PER_S = 5500
USD_PER_PUT, USD_PER_GET = 0.005 / 1000, 0.0004 / 1000
USD_PER_GB_MONTH = ((50e3, 0.023), (450e3, 0.022), (math.inf, 0.021))
USD_PER_GB_OUT = ((0.1e3, 0.0), (9.9e3, 0.09), (40e3, 0.085), (100e3, 0.07), (math.inf, 0.05))


def tiered(gigabytes: float, prices: tuple[tuple[float, float], ...]) -> float:
    """Return the US dollars for an amount with tiered prices."""
    total = 0.0
    for width, price in prices:
        total += min(gigabytes, width) * price
        gigabytes -= min(gigabytes, width)
    return total


def spec_of(kind: str, samples: int) -> StoreSpec:
    """Return the spec of a simulated store."""
    return StoreSpec(
        teacher={"kind": "python", "name": "simulated"},
        depth_space="metric_m",
        source={"name": "simulated", "samples": samples, "ids_sha256": "0" * 64},
        view="full",
        view_size_px=FULL_PX,
        max_rel_error=5e-4,
        code_range=(0.1, 300.0),
        dpm_kind=kind,
        bin_edges=tuple(np.linspace(1e-3, 80, BINS + 1).tolist()),
        sigma_m=0.5 if kind == "gaussian" else None,
        max_dpm_kl=0.01 if kind == "sparse" else None,
        samples_per_shard=default_samples_per_shard(kind, samples, BINS),
    )


def id_of(number: int) -> str:
    """Return an id of 31 characters."""
    return f"drive_{number // 1000:05d}/image_02/{number:010d}"


def make_store(root: Path, spec: StoreSpec) -> int:
    """Write manifest, metadata and ids of a store without shards; return the size of the manifest in bytes."""
    layout = StoreLayout(spec, NATIVE_PX, len(id_of(0)))
    manifest = dict.fromkeys(layout.files(), (10**4, "0" * 64))
    small = {path: pretty_json(node) for path, node in layout.metadata().items()}
    small[layout.edges().file(0)] = encode_chunk(np.array(spec.bin_edges))
    ids = next(array for array in layout.rows() if array.path == "sample/id")
    for number in range(ids.files):
        first = number * ids.chunk[0]
        rows = "".join([id_of(row) for row in range(first, min(first + ids.chunk[0], spec.samples))])
        part = np.zeros(ids.chunk, np.uint8).reshape(-1)
        part[: len(rows)] = np.frombuffer(rows.encode(), np.uint8)
        small[ids.file(number)] = encode_chunk(part.reshape(ids.chunk))
    for path, data in small.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)
        manifest[path] = (len(data), sha256_bytes(data))
    data = pretty_json({"version": spec.version, "files": manifest})
    (root / MANIFEST).write_bytes(data)
    return len(data)


def make_staging(target: Path, spec: StoreSpec) -> tuple[int, float]:
    """Write the staging folder of a run killed at its end; return the bytes of the journal and its write time."""
    staging = StoreWriter(target, spec, ["x"] * spec.samples).staging
    arrays = StoreLayout(spec, NATIVE_PX, len(id_of(0))).sharded()
    random, seconds = np.random.default_rng(0), 0.0
    columns = ["max_rel_error", "clipped_share", "invalid_share"]
    if spec.dpm_kind == "sparse":
        columns += ["dpm_kl_nats", "dpm_max_kl_nats"]
    count = spec.samples_per_shard
    rows: dict[str, Any] = {name: random.random(count).tolist() for name in columns}
    rows |= {"image_sha256": [random.bytes(32).hex() for _ in range(count)], "image_size_px": [[375, 1242]] * count}
    rows |= {"dpm_planes": [BINS] * count} if spec.dpm_kind == "sparse" else {}
    staging.mkdir()
    with (staging / "journal").open("wb") as journal:
        for shard in range(spec.shards):
            files = {array.file(shard): (10**5, f"{shard:064x}") for array in arrays}
            for path, (size, _) in files.items():
                (staging / "store" / path).parent.mkdir(parents=True, exist_ok=True)
                with (staging / "store" / path).open("wb") as file:
                    file.truncate(size)
            used = len(spec.shard_samples(shard))
            begin = time.perf_counter()
            record = ShardRecord(shard, NATIVE_PX, files, {name: values[:used] for name, values in rows.items()})
            journal.write(record.line())
            seconds += time.perf_counter() - begin
    return (staging / "journal").stat().st_size, seconds


# --- in a fresh process --------------------------------------------------------------------------------------------


def timed_open(path: str) -> dict[str, float]:
    """Return seconds and memory for opening a store, and for the first look-up by id."""
    before_mb, begin = reset_peak_memory(), time.perf_counter()
    store = open_store(path)
    opened, opened_mb, begin = time.perf_counter() - begin, memory_mb("VmHWM") - before_mb, time.perf_counter()
    assert store.index_of(id_of(len(store) - 1)) == len(store) - 1
    looked_up = time.perf_counter() - begin
    return {
        "open_s": opened,
        "open_mb": opened_mb,
        "look_up_s": looked_up,
        "look_up_mb": memory_mb("VmHWM") - before_mb,
    }


def timed_resume(target: str, kind: str, samples: str) -> dict[str, float]:
    """Return seconds and memory for resuming a killed run, without the source's list of samples."""
    spec, ids = spec_of(kind, int(samples)), ["x"] * int(samples)
    before_mb, begin = reset_peak_memory(), time.perf_counter()
    with StoreWriter(Path(target), spec, ids) as writer:
        seconds = time.perf_counter() - begin
        assert len(writer.finished) == spec.shards
    return {"resume_s": seconds, "resume_mb": memory_mb("VmHWM") - before_mb}


def sample_list(count: str) -> dict[str, float]:
    """Return bytes per row of a split as a list and as a table, in its process and in a forked worker."""
    begin = private_bytes()
    ids = [id_of(number) for number in range(int(count))]
    rows = [Sample(name, f"/data/kitti/input/{name}.png", f"/data/kitti/gt_depth/{name}.png", 721.5) for name in ids]
    result = {"list_bytes": (private_bytes() - begin) / len(rows), "list_worker_bytes": copied_by_touch(rows)}
    begin = private_bytes()
    table = SampleTable(rows)
    table_bytes = (private_bytes() - begin) / len(rows)
    return {**result, "table_bytes": table_bytes, "table_worker_bytes": copied_by_touch(table)}


def private_bytes() -> int:
    """Return the private memory of this process."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_"))


def copied_by_touch(rows: Sequence[Sample]) -> float:
    """Return the bytes per row that a forked process copies when it reads each row."""
    reader, writer = os.pipe()
    if not os.fork():
        begin = private_bytes()
        for row in rows:
            _ = row.id
        os.write(writer, str(private_bytes() - begin).encode())
        os._exit(0)
    os.wait()
    return int(os.read(reader, 32)) / len(rows)


PARTS = {"open": timed_open, "resume": timed_resume, "list": sample_list}


def in_fresh_process(*arguments: object) -> dict[str, float]:
    """Run one of PARTS in a fresh process."""
    command = [sys.executable, __file__, "--part", *map(str, arguments)]
    result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)  # noqa: S603 - ourselves
    return json.loads(result.stdout)


def simulate(kind: str, samples: int) -> dict[str, Any]:
    """Return one row of the first table."""
    begin = time.perf_counter()
    spec = spec_of(kind, samples)
    files = sum(1 for _ in StoreLayout(spec, NATIVE_PX, len(id_of(0))).files())
    row: dict[str, Any] = {"maps": kind, "samples": samples, "samples_per_shard": spec.samples_per_shard}
    row |= {"files": files, "plan_s": time.perf_counter() - begin}
    with tempfile.TemporaryDirectory(dir=IN_MEMORY) as folder:
        row["manifest_bytes"] = make_store(Path(folder) / "s.zarr", spec)
        row |= in_fresh_process("open", Path(folder) / "s.zarr")
    with tempfile.TemporaryDirectory(dir=IN_MEMORY) as folder:
        row["journal_bytes"], row["journal_s"] = make_staging(Path(folder) / "s.zarr", spec)
        row |= in_fresh_process("resume", Path(folder) / "s.zarr", kind, samples)
    return row


# --- estimates -----------------------------------------------------------------------------------------------------


def plan(name: str, kind: str, size_px: tuple[int, int], samples: int) -> dict[str, Any]:
    """Return bytes, files, requests, hours and dollars of one store."""
    upsampled, native, *_ = reference_costs(5e-4, kind, BINS)
    each = (native if size_px == NATIVE_PX else upsampled).bytes(1, size_px)
    spec = spec_of(kind, samples)
    arrays = StoreLayout(spec, size_px, len(id_of(0))).sharded()
    size, shards = each * samples, spec.shards * len(arrays)
    parts = max(1, math.ceil(size / shards / PART_BYTES))
    transfers = shards * (1 if parts == 1 else parts + 2)  # a multipart upload is opened and closed
    gets = samples * len(arrays) + GPUS // GPUS_PER_NODE * shards
    return {
        "store": name,
        "bytes_per_sample": each,
        "bytes": size,
        "shard_bytes": each * spec.samples_per_shard,
        "files": sum(array.files for array in StoreLayout(spec, size_px, len(id_of(0))).arrays()),
        "puts": transfers,
        "gets_first_epoch": gets,
        "write_bytes_per_s": [size / (samples * ms / 1e3 / GPUS) for ms in MS_PER_IMAGE],
        "upload_h": size / NETWORK_BYTES_PER_S / 3600,
        "finish_h": size / 1e6 * HASH_MS_PER_MB / 3.6e6,
        "samples_per_s_and_gpu": S3_GETS_PER_S / len(arrays) / GPUS,
        "usd_puts": transfers * USD_PER_PUT,
        "usd_gets_first_epoch": gets * USD_PER_GET,
        "usd_month": tiered(size / 1e9, USD_PER_GB_MONTH),
        "usd_out": tiered(size / 1e9, USD_PER_GB_OUT),
    }


def amount(number: float, unit: str = "B") -> str:
    """Format a number with three digits and a prefix."""
    for power, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k" if not unit else "K")):
        if number >= power:
            return f"{number / power:.3g} {prefix}{unit}".strip()
    return f"{number:.3g} {unit}".strip()


def measured_cells(row: dict[str, Any]) -> list[str]:
    """Return the cells of one row of the first table."""
    return [
        row["maps"],
        f"{row['samples']:,}",
        str(row["samples_per_shard"]),
        f"{row['files']:,}",
        amount(row["manifest_bytes"]),
        f"{row['plan_s']:.2f} s",
        f"{row['open_s']:.2f} s, {row['open_mb']:.0f} MB",
        f"{row['look_up_s']:.2f} s, {row['look_up_mb']:.0f} MB",
        f"{amount(row['journal_bytes'])}, written in {row['journal_s']:.1f} s",
        f"{row['resume_s']:.2f} s, {row['resume_mb']:.0f} MB",
    ]


def plan_table(plans: list[dict[str, Any]]) -> str:
    """Return the table of bytes, files, requests, hours and dollars."""

    def line(name: str, cell: Callable[[dict[str, Any]], str]) -> list[str]:
        return [name, *(cell(store) for store in plans)]

    return markdown(
        ["", *(store["store"] for store in plans)],
        [
            line("per sample; total", lambda store: f"{amount(store['bytes_per_sample'])}; {amount(store['bytes'])}"),
            line("files; shard of all arrays", lambda store: f"{store['files']:,}; {amount(store['shard_bytes'])}"),
            line(
                "write rate while the teacher runs, per second",
                lambda store: " to ".join(amount(rate) for rate in reversed(store["write_bytes_per_s"])),
            ),
            line("final check, one core", lambda store: f"{store['finish_h']:.2f} h"),
            line("upload at 10 Gbit/s", lambda store: f"{store['upload_h']:.2f} h"),
            line("PUT", lambda store: f"{store['puts']:,}; ${store['usd_puts']:.2f}"),
            line("storage per month", lambda store: f"${store['usd_month']:,.0f}"),
            line(
                "GET in the first epoch",
                lambda store: f"{store['gets_first_epoch']:,}; ${store['usd_gets_first_epoch']:.2f}",
            ),
            line("samples per second and GPU at 5,500 GET/s", lambda store: f"{store['samples_per_s_and_gpu']:.0f}"),
            line("one download over the Internet", lambda store: f"${store['usd_out']:,.0f}"),
        ],
    )


def memory_table(results: dict[str, Any]) -> str:
    """Return the table of memory per process."""
    count, rows = results["largest"], results["list"]
    each = {name: rows[f"{name}_bytes"] for name in ("list", "table", "table_worker")}
    listed, process, worker = (each[name] * count for name in each)
    last = results["simulated"][-1]
    peak = last["look_up_mb"] - last["open_mb"]
    return markdown(
        ["memory", "per sample", f"{count:,} samples", "process"],
        [
            [
                "rows of the split, while reading",
                f"{each['list']:.0f} B",
                amount(listed),
                "each GPU's process, briefly",
            ],
            ["rows of the split, afterwards", f"{each['table']:.0f} B", amount(process), "each GPU's process"],
            ["copied rows", f"{each['table_worker']:.1f} B", amount(worker), "each loader worker"],
            ["manifest", "", f"{last['open_mb']:.0f} MB", "each GPU's process"],
            ["table of ids", "20 B", f"{amount(20 * count)}, {peak:.0f} MB briefly", "each GPU's process"],
            ["sha256 of the images", "32 B", amount(32 * count), "each GPU's process"],
            ["rows of the journal", "", f"{last['resume_mb']:.0f} MB", "the writer"],
        ],
    )


def hours(results: dict[str, Any]) -> str:
    """Return a sentence about the hours of teacher and verification, and the memory of a machine."""
    count, rows = results["largest"], results["list"]
    process, worker = rows["table_bytes"] * count, rows["table_worker_bytes"] * count
    node = GPUS_PER_NODE * (process + WORKERS_PER_GPU * worker)
    slow, fast = MS_PER_IMAGE[::-1]
    return (
        f"Teacher: {count * fast / 3.6e6:.0f} to {count * slow / 3.6e6:.0f} GPU hours at {fast} to {slow} ms per "
        f"image, {count * fast / 3.6e6 / GPUS:.1f} to {count * slow / 3.6e6 / GPUS:.1f} h on {GPUS} GPUs. `store "
        f"verify` of gaussian maps: {count * DECODE_MS / 3.6e6:.1f} h at {DECODE_MS} ms per sample. Rows of the split "
        f"on a machine with {GPUS_PER_NODE} GPUs and {WORKERS_PER_GPU} loader workers per GPU: {amount(node)}."
    )


def tables(results: dict[str, Any]) -> dict[str, str]:
    """Return Markdown tables by name."""
    head = ["maps", "samples", "samples per shard", "files", "manifest", "plan", "open", "first look-up by id"]
    return {
        "scale": markdown([*head, "journal", "resume"], [measured_cells(row) for row in results["simulated"]]),
        "scale:plan": plan_table(results["plans"]),
        "scale:memory": memory_table(results),
        "scale:hours": hours(results),
    }


def main() -> None:
    """Measure, print the tables, and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--largest", type=int, default=SIZES[-1])
    parser.add_argument("--out", type=Path, default=RESULTS / "scale.json")
    parser.add_argument("--part", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        name, *rest = arguments.part
        print(json.dumps(PARTS[name](*rest)))
        return
    sizes = sorted({size for size in SIZES if size < arguments.largest} | {arguments.largest})
    results: dict[str, Any] = {
        "machine": f"{os.cpu_count()} {platform.machine()} cores",
        "date": date.today().isoformat(),  # noqa: DTZ011 - the machine's
        "largest": arguments.largest,
        "simulated": [simulate(kind, size) for kind in ("gaussian", "sparse") for size in sizes],
        "list": in_fresh_process("list", 200_000),
        "plans": [
            plan(f"gaussian, {NATIVE_PX[0]}x{NATIVE_PX[1]}", "gaussian", NATIVE_PX, arguments.largest),
            plan(f"gaussian, {FULL_PX[0]}x{FULL_PX[1]}", "gaussian", FULL_PX, arguments.largest),
            plan(f"sparse, {BINS} bins, {NATIVE_PX[0]}x{NATIVE_PX[1]}", "sparse", NATIVE_PX, arguments.largest),
        ],
    }
    text = "\n\n".join(f"<!-- {name} -->\n{table.strip()}" for name, table in tables(results).items())
    print(text)
    write(arguments.out, text + "\n", results)


if __name__ == "__main__":
    main()
