"""Measure compression levels of a store: size, and time to encode and decode an image.

    python benchmarks/compression.py [--rounds 5] [--data DIR] [--out FILE.json]

Real predictions over KITTI frames (352x1216), one thread; levels in turn, medians over rounds. Decoding is
decompression alone; the sums that follow take the same time at every level.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

from common import KITTI, RESULTS, machine, markdown, write

from pipeline.sources.readers.images import read_depth_png_m
from pipeline.store.format.codec import LogCodec, decode_chunk, encode_chunk, residual_of_codes

ERRORS = (5e-4, 1e-2)
LEVELS = (1, 3, 5, 7, 9)


def main() -> None:
    """Measure, print a table, and write JSON and Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--data", type=Path, default=KITTI)
    parser.add_argument("--out", type=Path, default=RESULTS / "compression.json")
    arguments = parser.parse_args()
    paths = sorted((arguments.data / "teacher_png16").glob("*.png"))[::4]
    depths_m = [read_depth_png_m(str(path), 80 / 65535) for path in paths]
    rows = []
    for max_rel_error in ERRORS:
        codec = LogCodec.for_error(max_rel_error, 0.1, 300.0)
        residuals = [residual_of_codes(codec.encode(depth_m)[0])[None] for depth_m in depths_m]
        encode_s: dict[int, list[float]] = {level: [] for level in LEVELS}
        decode_s: dict[int, list[float]] = {level: [] for level in LEVELS}
        chunks = {level: [encode_chunk(residual, level) for residual in residuals] for level in LEVELS}
        for number in range(arguments.rounds):
            for level in LEVELS:
                begin = time.perf_counter()
                for residual in residuals if level < 9 or number == 0 else residuals[:2]:
                    encode_chunk(residual, level)
                count = len(residuals) if level < 9 or number == 0 else 2
                encode_s[level].append((time.perf_counter() - begin) / count)
                begin = time.perf_counter()
                for chunk, residual in zip(chunks[level], residuals, strict=True):
                    decode_chunk(chunk, residual.shape, residual.dtype, reuse=True)
                decode_s[level].append((time.perf_counter() - begin) / len(residuals))
        rows += [
            {
                "max_rel_error": max_rel_error,
                "level": level,
                "kb": statistics.mean(map(len, chunks[level])) / 1e3,
                "encode_ms": 1e3 * statistics.median(encode_s[level]),
                "decode_ms": 1e3 * statistics.median(decode_s[level]),
            }
            for level in LEVELS
        ]
    head = ["largest error", "level", "KB per image", "encode, ms", "decode, ms"]
    body = [
        [
            f"{100 * row['max_rel_error']:g} %",
            f"{row['level']}",
            *(f"{row[name]:.2f}" for name in ("kb", "encode_ms", "decode_ms")),
        ]
        for row in rows
    ]
    table = markdown(head, body)
    facts = {**machine(1), "images": len(depths_m)}
    print(facts, "", table, sep="\n")
    write(arguments.out, table, {**facts, "rows": rows})


if __name__ == "__main__":
    main()
