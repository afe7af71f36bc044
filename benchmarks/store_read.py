"""Cached depth beside its peers: bytes a frame, and one random frame from disk to float32 metres.

    python benchmarks/store_read.py [--predictions DIR] [--out FILE.json]

Each peer holds the same frames with at most the same error, and reads them in the same order in the same run, one
thread, files in the page cache. DIR is a folder of 16-bit PNGs of which 65535 is 80 m, as the released TIE-KD code
stores them; without it, ../shared/data/kitti/teacher_png16, or frames that the project renders.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np
import zarr
from PIL import Image

from pipeline.store import open_store
from pipeline.store.codec import LogCodec, codes_of_residual
from pipeline.store.spec import StoreSpec, digest_of_ids
from pipeline.store.writer import StoreWriter, encode_sample

ROUNDS = 15
METRES_PER_UNIT = 80 / 65535
MAX_REL_ERROR = 5e-4


def load_frames(folder: Path | None) -> tuple[np.ndarray, str]:
    """(N, H, W) float32 metres, and where they come from."""
    default = Path(__file__).parents[2] / "shared" / "data" / "kitti" / "teacher_png16"
    folder = folder or (default if default.is_dir() else None)
    if folder is None:
        from pipeline.render.scenes import make_scenes

        with tempfile.TemporaryDirectory() as place:
            make_scenes(Path(place) / "scenes", count=16, size_px=(352, 1216))
            files = sorted((Path(place) / "scenes" / "depth").glob("*.png"))
            frames = np.stack([np.asarray(Image.open(file), np.float32) / 256 for file in files])
        return np.where(frames > 0, np.minimum(frames, 80), 80).astype(np.float32), "16 rendered frames"
    files = sorted(folder.glob("*.png"))
    frames = np.stack([np.asarray(Image.open(file)).astype(np.float32) * np.float32(METRES_PER_UNIT) for file in files])
    return frames, f"{len(files)} frames of {folder.name}"


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files of a folder."""
    return path.stat().st_size if path.is_file() else sum(p.stat().st_size for p in path.rglob("*") if p.is_file())


def make_peers(frames: np.ndarray, place: Path) -> dict:
    """Name -> (bytes a frame, reader of one frame)."""
    count, height, width = frames.shape
    peers = {}

    ids = [f"{number:06d}" for number in range(count)]
    spec = StoreSpec(
        teacher={"kind": "predictions", "name": "benchmark"},
        depth_space="metric_m",
        source={"name": "benchmark", "samples": count, "ids_sha256": digest_of_ids(ids)},
        view="full",
        view_size_px=(height, width),
        max_rel_error=MAX_REL_ERROR,
        depth_range_m=(0.1, 300.0),
        dpm_kind="gaussian",
        bin_edges=tuple(np.linspace(1e-3, 80, 258).tolist()),
        sigma_m=0.5,
    )
    with StoreWriter(place / "ours.zarr", spec, ids) as writer:
        for shard in writer.todo:
            encoded = [encode_sample(spec, frames[number], None) for number in spec.shard_samples(shard)]
            for one in encoded:
                one.row.update(image_sha256="00" * 32, image_size_px=[height, width])
            writer.write_shard(shard, encoded)
        writer.finish()
    store = open_store(place / "ours.zarr")
    peers["ours: open_store"] = (size_of(place / "ours.zarr") / count, store.depth_m)

    codec = spec.depth_codec()
    assert isinstance(codec, LogCodec)
    array = zarr.open_group(place / "ours.zarr", mode="r")["depth"]
    peers["our store through zarr-python"] = (
        size_of(place / "ours.zarr") / count,
        lambda number: codec.decode(codes_of_residual(array[number])),
    )

    folder = place / "png"
    folder.mkdir()
    for number, frame in enumerate(frames):
        Image.fromarray(np.rint(frame / METRES_PER_UNIT).astype(np.uint16)).save(folder / f"{number}.png")
    peers["16-bit PNG, Pillow"] = (
        size_of(folder) / count,
        lambda number: (
            np.asarray(Image.open(folder / f"{number}.png")).astype(np.float32) * np.float32(METRES_PER_UNIT)
        ),
    )

    plain = zarr.create_array(place / "plain.zarr", shape=frames.shape, chunks=(1, height, width), dtype="float16")
    plain[:] = frames.astype(np.float16)
    peers["zarr-python float16, zstd"] = (
        size_of(place / "plain.zarr") / count,
        lambda number: plain[number].astype(np.float32),
    )

    with h5py.File(place / "frames.h5", "w") as file:
        file.create_dataset(
            "depth", data=frames.astype(np.float16), chunks=(1, height, width), compression="gzip", shuffle=True
        )
    handle = h5py.File(place / "frames.h5", "r")["depth"]
    peers["h5py float16, gzip, shuffle"] = (
        size_of(place / "frames.h5") / count,
        lambda number: handle[number].astype(np.float32),
    )

    folder_npy = place / "npy"
    folder_npy.mkdir()
    for number, frame in enumerate(frames):
        np.save(folder_npy / f"{number}.npy", frame)
    peers["float32 .npy, uncompressed"] = (
        size_of(folder_npy) / count,
        lambda number: np.load(folder_npy / f"{number}.npy"),
    )
    return peers


def main() -> None:
    """Measure, print a table, and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--predictions", type=Path)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/store_read.json"))
    arguments = parser.parse_args()
    frames, what = load_frames(arguments.predictions)
    with tempfile.TemporaryDirectory() as place:
        peers = make_peers(frames, Path(place))
        order = np.random.default_rng(0).permutation(len(frames))
        times: dict[str, list[float]] = {name: [] for name in peers}
        worst = {}
        for name, (_, read) in peers.items():
            worst[name] = max(float(np.abs(read(number) / frames[number] - 1).max()) for number in range(len(frames)))
        for _ in range(ROUNDS):  # in turn, so that the machine's moods meet all alike
            for name, (_, read) in peers.items():
                begin = time.perf_counter()
                for number in order:
                    read(int(number))
                times[name].append((time.perf_counter() - begin) / len(frames))
    png = "16-bit PNG, Pillow"
    rows = []
    for name, (size, _) in peers.items():
        median_s = statistics.median(times[name])
        speedups = [other / own for other, own in zip(times[png], times[name], strict=True)]
        rows.append(
            {
                "reader": name,
                "bytes_per_frame": round(size),
                "bytes_ratio_to_png": round(size / peers[png][0], 3),
                "median_ms": round(1e3 * median_s, 3),
                "min_ms": round(1e3 * min(times[name]), 3),
                "max_ms": round(1e3 * max(times[name]), 3),
                "faster_than_png": round(statistics.median(speedups), 2),
                "max_rel_error": worst[name],
            }
        )
    print(f"{what}, {frames.shape[1]}x{frames.shape[2]} px; {ROUNDS} rounds, {platform.machine()}, one thread\n")
    print(f"{'reader':<32}{'KB':>9}{'of PNG':>9}{'ms':>9}{'faster':>9}{'error':>10}")
    for row in rows:
        print(
            f"{row['reader']:<32}{row['bytes_per_frame'] / 1e3:>9.1f}{row['bytes_ratio_to_png']:>8.2f}x"
            f"{row['median_ms']:>9.2f}{row['faster_than_png']:>8.1f}x{row['max_rel_error']:>10.4%}"
        )
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps({"frames": what, "rounds": ROUNDS, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
