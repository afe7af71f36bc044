r"""UniDepth V2: depth in metres, confidence and the camera of each image.

Confidence is 1 / c, at most 1, of the network's output c, named "confidence" there although it is higher where depth is
worse: its loss (`unidepth/ops/losses/confidence.py`) fits ln c to the absolute error of depth, so 1 / c is exp(-error).
The repository's `assets/docs/V2_README.md` says that it ranks pixels within one image and has no absolute meaning.

Licence: CC BY-NC 4.0.

Code that was read: https://github.com/lpiccinelli-eth/UniDepth, commit 8d8cfe4c7ee15297099983607febf0d4f32eb3d6,
`unidepth/models/unidepthv2/`.

Install, in an environment of its own (its requirements are many):

    python -m venv UNIDEPTH
    git clone https://github.com/lpiccinelli-eth/UniDepth && git -C UniDepth checkout 8d8cfe4c7ee1
    UNIDEPTH/bin/pip install -e UniDepth

Run, from this folder:

    pipeline cache-teacher --teacher python:unidepth_v2:teacher --teacher-python UNIDEPTH/bin/python \
        --source folder:MY_IMAGES --split train --bins log:64:0.5:80 --sigma-m 0.3 --out unidepth_v2.zarr

Not run: the weights, which could not be had; the model's repository on the Hub must hold model.safetensors. That code
ran through this file on a CPU, as ViT-S with random weights; the tests use a stand-in with the same calls and keys.

Shape legend: B batch, H W pixels of the view.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from unidepth.models import UniDepthV2

MODEL = "lpiccinelli/unidepth-v2-vitl14"
"""Or unidepth-v2-vitb14, unidepth-v2-vits14."""
FILES = ["config.json", "model.safetensors"]


class UniDepth:
    """Calls UniDepth V2 on batches of views."""

    def __init__(self, device: torch.device) -> None:
        folder = Path(snapshot_download(MODEL, allow_patterns=FILES))
        self.net = UniDepthV2.from_pretrained(str(folder)).to(device)
        self.card = {
            "name": MODEL,
            "depth_space": "metric_m",
            "weights": [str(folder / name) for name in FILES],
            "licence": "CC-BY-NC-4.0",
            "precision": "float16" if torch.device(device).type == "cuda" else "float32",  # `infer` sets autocast
        }

    def __call__(self, images: torch.Tensor) -> dict[str, Any]:
        """Return depth in metres and confidence (B, H, W), and intrinsics (B, 4), of images (B, 3, H, W) in 0..1."""
        output = self.net.infer(images * 255)  # it divides by 255
        camera = output["intrinsics"].float()  # (B, 3, 3) in pixels; the first has its center at 0.5, here at 0
        return {
            "depth": output["depth"][:, 0].float(),
            "confidence": (1 / output["confidence"][:, 0].float()).clamp(max=1),
            "intrinsics_px": torch.stack(
                [camera[:, 0, 0], camera[:, 1, 1], camera[:, 0, 2] - 0.5, camera[:, 1, 2] - 0.5], dim=1
            ),
        }


def teacher(device: torch.device) -> UniDepth:
    """For `--teacher python:unidepth_v2:teacher`."""
    return UniDepth(device)
