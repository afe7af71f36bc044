r"""Metric3D v2: depth in metres for a known focal length, and confidence.

The network predicts for a camera of 1000 px: metres = output x focal length / 1000 px, the focal length being the mean
of fx and fy in pixels of its resized input. The source or `--focal-px` must give the camera.

Confidence is the network's own, clipped to 0..1; higher is better. Its loss (`training/mono/model/losses/
GRUSequenceLoss.py`) fits it to 1 - |output - truth| / truth, without a sigmoid.

Licence: code BSD 2-Clause; the repository states none for the weights, so read their page and give `--licence`.

Code that was read: https://github.com/YvanYin/Metric3D, commit eb5b6fac0dc155e4e52f576e304fbf11655ff339, `hubconf.py`
and `mono/`. Its ViT decoder needs CUDA.

Install, in an environment of its own (torch 2.0.1 and mmcv), and fetch the weights:

    python -m venv METRIC3D
    git clone https://github.com/YvanYin/Metric3D && git -C Metric3D checkout eb5b6fac0dc1
    METRIC3D/bin/pip install -r Metric3D/requirements_v2.txt
    curl -LO https://huggingface.co/JUGGHM/Metric3D/resolve/main/metric_depth_vit_large_800k.pth

Run, from the folder of this file, of the clone and of the weights:

    export PYTHONPATH=Metric3D
    pipeline cache-teacher --teacher python:metric3d_v2:teacher --teacher-python METRIC3D/bin/python --device cuda \
        --source folder:MY_IMAGES --split train --bins log:64:0.5:80 --sigma-m 0.3 --out metric3d_v2.zarr

Not run: the weights, which could not be had. That code ran through this file on a CPU (with its "cuda" replaced), as
ViT-S with random weights; the tests use a stand-in with the same calls and keys.

Shape legend: B batch, H W pixels of the view, h w pixels of the network's input without its padding.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from hubconf import metric3d_vit_large as build  # or metric3d_vit_small, metric3d_vit_giant2, with their weights

WEIGHTS = "metric_depth_vit_large_800k.pth"
INPUT_PX = (616, 1064)
CANONICAL_FOCAL_PX = 1000.0
MAX_DEPTH_M = 300.0
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


class Metric3D:
    """Calls Metric3D v2 on views, one by one: it keeps buffers of the size of its first batch."""

    def __init__(self, device: torch.device) -> None:
        self.net = build(pretrain=False)
        state = torch.load(WEIGHTS, map_location="cpu", weights_only=True)["model_state_dict"]
        if not state.keys() & self.net.state_dict().keys():
            raise ValueError(f"{WEIGHTS} has no parameter of {build.__name__}: expected the weights of this network")
        self.net.load_state_dict(state, strict=False)  # as hubconf.py does
        self.net.to(device)
        self.card = {
            "name": "metric3d_v2/" + build.__name__,
            "depth_space": "metric_m",
            "weights": [WEIGHTS],
            "licence": "code BSD-2-Clause, weights not stated",
            "inputs": ["intrinsics"],
            "preprocessing": {"padded_to_px": list(INPUT_PX), "network_focal_px": CANONICAL_FOCAL_PX},
        }

    def __call__(self, images: torch.Tensor, intrinsics_px: torch.Tensor) -> dict[str, Any]:
        """Return depth in metres and confidence (B, h, w) of images (B, 3, H, W) in 0..1 and intrinsics (B, 4)."""
        height, width = images.shape[2:]
        scale = min(INPUT_PX[0] / height, INPUT_PX[1] / width)
        h, w = int(height * scale), int(width * scale)
        resized = F.interpolate(images * 255, (h, w), mode="bilinear")
        mean, std = (torch.tensor(each, device=images.device).view(1, 3, 1, 1) for each in (MEAN, STD))
        below, beside = INPUT_PX[0] - h, INPUT_PX[1] - w
        top, left = below // 2, beside // 2
        # Padding of 0 after normalization is the repository's padding by the mean
        inputs = F.pad((resized - mean) / std, (left, beside - left, top, below - top))
        outputs = [self.net.inference({"input": each[None]})[:2] for each in inputs]
        depth, confidence = (
            torch.cat(maps)[:, 0, top : top + h, left : left + w].float() for maps in zip(*outputs, strict=True)
        )
        focal_px = intrinsics_px[:, :2].to(depth).mean(dim=1) * scale
        return {
            "depth": (depth * (focal_px / CANONICAL_FOCAL_PX)[:, None, None]).clamp(max=MAX_DEPTH_M),
            "confidence": confidence.clamp(0, 1),
        }


def teacher(device: torch.device) -> Metric3D:
    """For `--teacher python:metric3d_v2:teacher`."""
    return Metric3D(device)
