"""Runs for the report, without training."""

import torch

from pipeline.common.fileio import pretty_json
from pipeline.depth.bins import bin_edges
from pipeline.networks.registry import build_student
from pipeline.networks.saved_run import CONFIG, WEIGHTS, save_weights
from pipeline.networks.saved_run import METRICS as RUN_METRICS

EDGES_M = bin_edges(8, 1.0, 12.0, "log")


def make_run(
    path, *, view="full", target="teacher", loss="tiekd", seed=0, epochs=2, steps=9, head=None, taught_by=None
):
    """Write a finished run with random weights."""
    path.mkdir(parents=True)
    torch.manual_seed(seed)
    edges_m = EDGES_M if head != "depth" else torch.tensor([1.0, 6.0, 12.0])
    network = build_student("lean", len(edges_m) - 1)
    save_weights(network, path / WEIGHTS)
    config = {
        "student": "lean",
        "bin_edges_m": edges_m.tolist(),
        "view": view,
        "loss": loss,
        "truth_of": "sparse" if target == "truth" else None,
        "store": taught_by if target == "teacher" else None,
    }
    if head is not None:  # absent in older runs
        config["head"] = head
    (path / CONFIG).write_bytes(pretty_json(config))
    (path / RUN_METRICS).write_bytes(pretty_json({"parameters": 230_000, "images_per_second": 12.34, "device": "cpu"}))
    rows = [f"{step},0,{3 + seed - step / 9}" for step in range(steps)]
    (path / "steps.csv").write_text("\n".join(["step,epoch,loss", *rows]) + "\n")
    rows = [f"{epoch},{0.5 - epoch / 9},3.0,0.4" for epoch in range(epochs)]
    (path / "epochs.csv").write_text("\n".join(["epoch,val_abs_rel,val_rmse,val_delta1", *rows]) + "\n")
    return path
