r"""MoGe-2: depth in metres and the camera of each image.

Depth is 0 where the network's mask says that there is none (sky, say); `--drop-nonpositive` stores these pixels as
missing. MoGe gives no confidence: `infer` returns the mask alone.

Licence: code MIT, its `moge/model/dinov2` Apache-2.0; the repository states none for the weights, so read the model's
page and give `--licence`.

Code that was read: https://github.com/microsoft/MoGe, commit 07444410f1e33f402353b99d6ccd26bd31e469e8,
`moge/model/v2.py`.

Install, in an environment of its own, since it brings another package named `pipeline`:

    python -m venv MOGE
    MOGE/bin/pip install git+https://github.com/microsoft/MoGe.git@07444410f1e33f402353b99d6ccd26bd31e469e8

Run, from this folder:

    pipeline cache-teacher --teacher python:moge_2:teacher --teacher-python MOGE/bin/python --drop-nonpositive \
        --source folder:MY_IMAGES --split train --bins log:64:0.5:80 --sigma-m 0.3 --out moge_2.zarr

Not run: the weights, which could not be had. That code ran through this file on a CPU, as ViT-S with random weights;
the tests use a stand-in with the same calls and keys.

Shape legend: B batch, H W pixels of the view.
"""

from __future__ import annotations

from typing import Any

import torch
from huggingface_hub import hf_hub_download
from moge.model.v2 import MoGeModel

MODEL = "Ruicheng/moge-2-vitl-normal"
"""Or moge-2-vitl, moge-2-vitb-normal, moge-2-vits-normal."""


class MoGe2:
    """Calls MoGe-2 on batches of views."""

    def __init__(self, device: torch.device) -> None:
        weights = hf_hub_download(MODEL, "model.pt")
        self.net = MoGeModel.from_pretrained(weights).to(device)
        self.card = {
            "name": MODEL,
            "depth_space": "metric_m",
            "weights": [weights],
            "licence": "code MIT, weights not stated",
            "preprocessing": {"resolution_level": 9},
        }

    def __call__(self, images: torch.Tensor) -> dict[str, Any]:
        """Return depth (B, H, W) in metres, 0 where masked, and intrinsics (B, 4), of images (B, 3, H, W) in 0..1."""
        height, width = images.shape[2:]
        output = self.net.infer(images, resolution_level=9, use_fp16=False)
        camera = output["intrinsics"]  # (B, 3, 3) in widths and heights, from the border of the image
        return {
            "depth": torch.where(output["mask"], output["depth"], 0.0),  # infinity where masked
            "intrinsics_px": torch.stack(
                [
                    camera[:, 0, 0] * width,
                    camera[:, 1, 1] * height,
                    camera[:, 0, 2] * width - 0.5,  # the pipeline's first pixel has its center at 0
                    camera[:, 1, 2] * height - 0.5,
                ],
                dim=1,
            ),
        }


def teacher(device: torch.device) -> MoGe2:
    """For `--teacher python:moge_2:teacher`."""
    return MoGe2(device)
