"""Write metrics_golden.npz and metrics_golden.json: depth maps, and every metric of them under each protocol.

The metrics are computed here pixel by pixel, in plain Python with exactly rounded sums (`math.fsum`), from the field's
definitions and without the package. `python tests/data/metrics_golden.py` writes both files anew, byte for byte.

Maps are (H, W) float32 metres, NaN or 0 where the truth has a hole. Each of their pixels is repeated `repeat` times in
both directions, so that 480x640 takes little space.
"""

import json
import math
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
REPEAT = {"street": 1, "room": 10, "edges": 1}
PROTOCOLS = {
    "kitti_eigen_garg80": {"crop": "garg", "max_m": 80.0},
    "nyu_eigen": {"crop": "eigen_nyu", "max_m": 10.0},
    "plain": {"crop": "none", "max_m": None},
    "plain to 10 m": {"crop": "none", "max_m": 10.0},
}
MIN_M = 1e-3
LEAST_TRUTH_M = float(np.float32(MIN_M))
"""The end of the range in the truth's own precision: 1e-3 as float32 is 1e-3, although it is 5e-11 above."""
UNDER = {
    "street": ("kitti_eigen_garg80", "plain", "plain to 10 m"),
    "room": ("nyu_eigen", "plain", "plain to 10 m"),
    "edges": ("plain", "plain to 10 m"),
}


def make_maps():
    """Predicted and true depth of a street, a room, and of pixels that lie exactly on an edge of a definition."""
    random = np.random.default_rng(2402)
    maps = {}
    for name, (height, width), far in (("street", (44, 152), 110.0), ("room", (48, 64), 11.0)):
        rows, columns = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
        truth = far / (1 + 12 * rows) * (1 + 0.3 * np.sin(7 * columns)) + random.uniform(0, 0.2, (height, width))
        predicted = truth * np.exp(random.normal(0.05, 0.25, (height, width)))
        predicted[3:5, ::7] = -1.0  # below any range
        predicted[-5:, 10::9] = 500.0  # above any cap
        holes = random.random((height, width)) < 0.4
        truth[holes] = np.where(random.random(holes.sum()) < 0.5, np.nan, 0.0)
        predicted[holes & (random.random((height, width)) < 0.1)] = np.nan  # no matter where there is no truth
        maps[f"{name}_predicted_m"], maps[f"{name}_truth_m"] = predicted, truth
    # Truth at the ends of the ranges, which do not count; ratios of exactly 1.25 and its powers, which are not within.
    maps["edges_truth_m"] = np.array([[MIN_M, 10.0, 80.0, 4.0, 5.0, 16.0], [64.0, 2.0, 9.5, 0.5, np.inf, 3.0]])
    maps["edges_predicted_m"] = np.array([[1.0, 9.0, 80.0, 5.0, 4.0, 25.0], [125.0, 2.0, 9.0, 1e-9, 7.0, 3.7]])
    return {name: depth_m.astype(np.float32) for name, depth_m in maps.items()}


def inside(crop, row, column, height, width):
    """Whether a pixel lies in the crop."""
    if crop == "garg":
        top, bottom = int(0.40810811 * height), int(0.99189189 * height)
        left, right = int(0.03594771 * width), int(0.96405229 * width)
    elif crop == "eigen_nyu":
        top, bottom, left, right = 45, 471, 41, 601
    else:
        return True
    return top <= row < bottom and left <= column < right


def metrics(predicted_m, truth_m, repeat, crop, max_m):
    """The nine metrics of one image."""
    high = math.inf if max_m is None else max_m
    pairs = []
    height, width = len(truth_m) * repeat, len(truth_m[0]) * repeat
    for row in range(height):
        for column in range(width):
            truth = truth_m[row // repeat][column // repeat]
            if LEAST_TRUTH_M < truth < high and inside(crop, row, column, height, width):
                pairs.append((min(max(predicted_m[row // repeat][column // repeat], MIN_M), high), truth))
    count = len(pairs)
    logs = [math.log(p) - math.log(t) for p, t in pairs]
    mean_log = math.fsum(logs) / count
    worse = [max(p / t, t / p) for p, t in pairs]
    return {
        "abs_rel": math.fsum(abs(p - t) / t for p, t in pairs) / count,
        "sq_rel": math.fsum((p - t) ** 2 / t for p, t in pairs) / count,
        "rmse": math.sqrt(math.fsum((p - t) ** 2 for p, t in pairs) / count),
        "rmse_log": math.sqrt(math.fsum(g * g for g in logs) / count),
        "log10": math.fsum(abs(math.log10(p) - math.log10(t)) for p, t in pairs) / count,
        "silog": 100 * math.sqrt(math.fsum((g - mean_log) ** 2 for g in logs) / count),
        "delta1": sum(factor < 1.25 for factor in worse) / count,
        "delta2": sum(factor < 1.25**2 for factor in worse) / count,
        "delta3": sum(factor < 1.25**3 for factor in worse) / count,
    }


def golden(maps, names=tuple(REPEAT)):
    """Metrics of each map under its protocols."""
    found = {}
    for name in names:
        both = [maps[f"{name}_{side}_m"].astype(np.float64).tolist() for side in ("predicted", "truth")]
        found[name] = {protocol: metrics(*both, REPEAT[name], **PROTOCOLS[protocol]) for protocol in UNDER[name]}
    return found


def main():
    """Write both files."""
    maps = make_maps()
    np.savez_compressed(HERE / "metrics_golden.npz", **maps)
    value = {"repeat": REPEAT, "protocols": PROTOCOLS, "metrics": golden(maps)}
    (HERE / "metrics_golden.json").write_text(json.dumps(value, indent=2) + "\n")


if __name__ == "__main__":
    main()
