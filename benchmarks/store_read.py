"""Compare cached depth with other formats: bytes per frame, and one random frame from disk to float32 metres.

    python benchmarks/store_read.py [--predictions DIR] [--native DIR] [--out FILE.json]

Each format holds the same frames with at most the same error and is read in the same order in the same run, in one
thread, with files in the page cache. `--predictions` is a folder of 16-bit PNGs where 65535 is 80 m, as the released
TIE-KD code stores them. `--native` is a folder of `.npy` in metres, the network's output before upsampling. The default
is ../shared/data/kitti, or rendered frames without it. Writes FILE.json, and the table as FILE.md.

MosaicML streaming cannot be installed with current torch: it needs torchvision, transformers below 5 and numpy below
2.2. Its shards hold the encoded bytes of each sample behind offsets, as a tar does, so the tar row stands for both.
"""

from __future__ import annotations

import argparse
import io
import os
import platform
import statistics
import tarfile
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import h5py
import numpy as np
import zarr
from common import KITTI, RESULTS, markdown, median_ratio, render, write
from PIL import Image

from pipeline.store import open_store
from pipeline.store.format.codec import LogCodec, codes_of_residual
from pipeline.store.format.spec import StoreSpec, digest_of_ids
from pipeline.store.write.writer import StoreWriter, encode_sample

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROUNDS = 15
METRES_PER_UNIT = 80 / 65535
MAX_REL_ERROR = 5e-4
PNG = "16-bit PNG, Pillow (what the released code stores)"
OURS = "ours: `open_store`"
# Not compressed peers: our own store, and uncompressed files.
EXCLUDED = (OURS, "our store through zarr-python", "float32 `.npy`, uncompressed", "float16 `.npy`, uncompressed")


def load_frames(folder: Path | None) -> tuple[np.ndarray, str]:
    """Return frames (N, H, W) in float32 metres, and a description."""
    default = KITTI / "teacher_png16"
    folder = folder or (default if default.is_dir() else None)
    if folder is None:
        with tempfile.TemporaryDirectory() as temporary:
            render(Path(temporary) / "scenes", 16, (352, 1216))
            files = sorted((Path(temporary) / "scenes" / "depth").glob("*.png"))
            frames = np.stack([np.asarray(Image.open(file), np.float32) / 256 for file in files])
        return np.where(frames > 0, np.minimum(frames, 80), 80).astype(np.float32), "16 rendered frames"
    files = sorted(folder.glob("*.png"))
    frames = np.stack([np.asarray(Image.open(file)).astype(np.float32) * np.float32(METRES_PER_UNIT) for file in files])
    return frames, f"{len(files)} frames of {folder.name}"


def size_of(path: Path) -> int:
    """Return the bytes of a file, or of all files in a folder."""
    return path.stat().st_size if path.is_file() else sum(p.stat().st_size for p in path.rglob("*") if p.is_file())


def write_store(path: Path, frames: np.ndarray) -> StoreSpec:
    """Write frames (N, H, W) in metres as a store, with our defaults."""
    count, height, width = frames.shape
    ids = [f"{number:06d}" for number in range(count)]
    spec = StoreSpec(
        teacher={"kind": "predictions", "name": "benchmark"},
        depth_space="metric_m",
        source={"name": "benchmark", "samples": count, "ids_sha256": digest_of_ids(ids)},
        view="full",
        view_size_px=(height, width),
        max_rel_error=MAX_REL_ERROR,
        code_range=(0.1, 300.0),
        dpm_kind="gaussian",
        bin_edges=tuple(np.linspace(1e-3, 80, 258).tolist()),
        sigma_m=0.5,
    )
    with StoreWriter(path, spec, ids) as writer:
        for shard in writer.todo:
            encoded = [encode_sample(spec, frames[number], None) for number in spec.shard_samples(shard)]
            for sample in encoded:
                sample.row.update(image_sha256="00" * 32, image_size_px=[height, width])
            writer.write_shard(shard, encoded)
        writer.finish()
    return spec


def make_peers(frames: np.ndarray, root: Path) -> Iterator[tuple[str, Path, Callable[[int], np.ndarray]]]:
    """Yield name, file or folder of all frames, and reader of one frame."""
    spec = write_store(root / "ours.zarr", frames)
    yield OURS, root / "ours.zarr", open_store(root / "ours.zarr").depth_m

    codec = spec.depth_codec()
    assert isinstance(codec, LogCodec)
    array = zarr.open_group(root / "ours.zarr", mode="r")["depth"]
    yield (
        "our store through zarr-python",
        root / "ours.zarr",
        lambda number: codec.decode(codes_of_residual(array[number])),
    )

    def metres_of_png(file: Path | io.BytesIO) -> np.ndarray:
        return np.asarray(Image.open(file)).astype(np.float32) * np.float32(METRES_PER_UNIT)

    folder = root / "png"
    folder.mkdir()
    for number, frame in enumerate(frames):
        Image.fromarray(np.rint(frame / METRES_PER_UNIT).astype(np.uint16)).save(folder / f"{number}.png")
    yield PNG, folder, lambda number: metres_of_png(folder / f"{number}.png")

    with tarfile.open(root / "frames.tar", "w") as tar:
        for number in range(len(frames)):
            tar.add(folder / f"{number}.png", f"{number:06d}.png")
    with tarfile.open(root / "frames.tar") as tar:
        members = [(member.offset_data, member.size) for member in tar.getmembers()]
    pngs = os.open(root / "frames.tar", os.O_RDONLY)
    yield (
        "tar of those PNGs, by offset (WebDataset, MosaicML)",
        root / "frames.tar",
        lambda number: metres_of_png(io.BytesIO(os.pread(pngs, members[number][1], members[number][0]))),
    )
    yield from make_array_peers(frames.astype(np.float16), root)
    yield from make_npy_peers(frames, root)


def make_array_peers(half: np.ndarray, root: Path) -> Iterator[tuple[str, Path, Callable[[int], np.ndarray]]]:
    """Yield formats that hold the frames as float16, with the same error."""
    chunk = (1, *half.shape[1:])
    array = zarr.create_array(root / "plain.zarr", shape=half.shape, chunks=chunk, dtype="float16")
    array[:] = half
    yield "zarr-python, float16, zstd", root / "plain.zarr", lambda number: array[number].astype(np.float32)

    for compression in ("gzip", "lzf"):
        path = root / f"{compression}.h5"
        with h5py.File(path, "w") as file:
            file.create_dataset("depth", data=half, chunks=chunk, compression=compression, shuffle=True)
        handle = h5py.File(path, "r")["depth"]
        yield (
            f"h5py, float16, {compression}, shuffle",
            path,
            lambda number, handle=handle: handle[number].astype(np.float32),
        )

    folder = root / "npz"
    folder.mkdir()
    for number, frame in enumerate(half):
        np.savez_compressed(folder / f"{number}.npz", depth=frame)

    def read_npz(number: int) -> np.ndarray:
        with np.load(folder / f"{number}.npz") as file:
            return file["depth"].astype(np.float32)

    yield "float16 `.npz`, compressed", folder, read_npz


def make_npy_peers(frames: np.ndarray, root: Path) -> Iterator[tuple[str, Path, Callable[[int], np.ndarray]]]:
    """Yield uncompressed formats."""
    for dtype in (np.float16, np.float32):
        name = np.dtype(dtype).name
        folder = root / name
        folder.mkdir()
        for number, frame in enumerate(frames):
            np.save(folder / f"{number}.npy", frame.astype(dtype))
        yield (
            f"{name} `.npy`, uncompressed",
            folder,
            lambda number, folder=folder: np.load(folder / f"{number}.npy").astype(np.float32, copy=False),
        )


def measure(frames: np.ndarray, root: Path) -> list[dict]:
    """Return one row per reader. Readers run in turn, so that other load affects all alike."""
    peers = {name: (size_of(path) / len(frames), read) for name, path, read in make_peers(frames, root)}
    order = np.random.default_rng(0).permutation(len(frames))
    times: dict[str, list[float]] = {name: [] for name in peers}
    cpu_s: dict[str, list[float]] = {name: [] for name in peers}
    worst = {
        name: max(float(np.abs(read(number) / frames[number] - 1).max()) for number in range(len(frames)))
        for name, (_, read) in peers.items()
    }
    for _ in range(ROUNDS):
        for name, (_, read) in peers.items():
            begin, begin_cpu = time.perf_counter(), time.process_time()
            for number in order:
                read(int(number))
            times[name].append((time.perf_counter() - begin) / len(frames))
            cpu_s[name].append((time.process_time() - begin_cpu) / len(frames))
    return [
        {
            "reader": name,
            "bytes_per_frame": round(size),
            "bytes_ratio_to_png": round(size / peers[PNG][0], 3),
            "median_ms": round(1e3 * statistics.median(times[name]), 3),
            "min_ms": round(1e3 * min(times[name]), 3),
            "max_ms": round(1e3 * max(times[name]), 3),
            "cpu_median_ms": round(1e3 * statistics.median(cpu_s[name]), 3),
            "faster_than_png": round(median_ratio(times[PNG], times[name]), 2),
            "max_rel_error": worst[name],
        }
        for name, (size, _) in peers.items()
    ]


def native_bytes(folder: Path | None, root: Path) -> tuple[str, float] | None:
    """Return the size of the network's output before upsampling, and bytes per frame of its store."""
    folder = folder or KITTI / "teacher_native"
    files = sorted(folder.glob("*.npy"))
    if not files:
        return None
    frames = np.stack([np.load(file).astype(np.float32) for file in files])
    write_store(root / "native.zarr", frames)
    return f"{frames.shape[1]}x{frames.shape[2]}", size_of(root / "native.zarr") / len(frames)


def table(rows: list[dict]) -> str:
    """Return the Markdown table."""
    body = []
    for row in rows:
        error = f"{row['max_rel_error']:.4%}".replace("%", " %") if row["max_rel_error"] > 1e-6 else "-"
        cells = [row["reader"], f"{row['bytes_per_frame'] / 1e3:.1f}", f"{row['bytes_ratio_to_png']:.2f}x"]
        body.append([*cells, f"{row['median_ms']:.2f}", f"{row['faster_than_png']:.1f}x", error])
    head = ["reader", "KB per frame", "size / PNG", "ms per frame", "speedup over PNG", "largest error"]
    return markdown(head, body)


def main() -> None:
    """Measure, print a table, and write JSON and Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--predictions", type=Path)
    parser.add_argument("--native", type=Path)
    parser.add_argument("--out", type=Path, default=RESULTS / "store_read.json")
    arguments = parser.parse_args()
    frames, description = load_frames(arguments.predictions)
    with tempfile.TemporaryDirectory() as temporary:
        rows = measure(frames, Path(temporary))
        native = native_bytes(arguments.native, Path(temporary))
    by_name = {row["reader"]: row for row in rows}
    peer = min((row for row in rows if row["reader"] not in EXCLUDED), key=lambda row: row["median_ms"])
    results = {
        "frames": f"{description}, {frames.shape[1]}x{frames.shape[2]} px",
        "rounds": ROUNDS,
        "machine": f"{os.cpu_count()} {platform.machine()} cores, one thread",
        "date": datetime.now(UTC).date().isoformat(),
        "rows": rows,
        "faster_than_fastest_compressed_peer": {
            "peer": peer["reader"],
            "ratio": round(peer["median_ms"] / by_name[OURS]["median_ms"], 2),
        },
    }
    print(f"{results['frames']}; {ROUNDS} rounds, {results['machine']}\n\n{table(rows)}")
    fastest = results["faster_than_fastest_compressed_peer"]
    print(f"Ours is {fastest['ratio']}x as fast as {fastest['peer']}, the fastest compressed peer.")
    if native is not None:
        size, bytes_per_frame = native
        ratio = bytes_per_frame / by_name[PNG]["bytes_per_frame"]
        results["native"] = {
            "size_px": size,
            "bytes_per_frame": round(bytes_per_frame),
            "bytes_ratio_to_png": round(ratio, 3),
        }
        print(f"At the network's output size {size}: {bytes_per_frame / 1e3:.1f} KB per frame, {ratio:.3f}x the PNG.")
    write(arguments.out, table(rows), results)


if __name__ == "__main__":
    main()
