r"""Depth Anything 3: depth in metres, with sky (`teacher`) or with confidence and each camera (`nested`).

- `teacher` is DA3METRIC-LARGE. Metres = output x focal length / 300 px (README), the focal length being the mean of fx
  and fy in pixels of the resized input (`apply_metric_scaling`). The source or `--focal-px` must give the camera.
  Sky is 1 or 0: the API thresholds the head's output, which is no probability, at 0.5. The network has no confidence.
- `nested` is DA3NESTED-GIANT-LARGE-1.1, in metres by its own estimate of the camera. Confidence is 1 - 1 / c of the
  network's `conf` c, which is at least 1 and higher where depth is better. It sets c to 1 in the sky: confidence 0.

In the sky, the network's code sets depth to the 99th percentile of the rest, of random pixels: the seed is fixed here.
Each image is a call of its own; images of one call are views of one scene.

Licence: code and DA3METRIC-LARGE Apache-2.0, DA3NESTED-GIANT-LARGE-1.1 CC BY-NC 4.0 (README).

Code that was read: https://github.com/ByteDance-Seed/Depth-Anything-3, commit
2c21ea849ceec7b469a3e62ea0c0e270afc3281a, `src/depth_anything_3/`. The name of this file is not that of its package.

Install, in an environment of its own (numpy below 2, xformers):

    python -m venv DA3
    DA3/bin/pip install xformers 'torch>=2' torchvision
    DA3/bin/pip install \
        git+https://github.com/ByteDance-Seed/Depth-Anything-3@2c21ea849ceec7b469a3e62ea0c0e270afc3281a

Run, from this folder:

    pipeline cache-teacher --teacher python:depth_anything_v3:teacher --teacher-python DA3/bin/python --device cuda \
        --source folder:MY_IMAGES --split train --bins log:64:0.5:80 --sigma-m 0.3 --out depth_anything_3.zarr

Not run: the weights, which could not be had; their repositories on the Hub must hold model.safetensors. That code ran
through this file on a CPU with random weights, the nested network with da3-small in place of da3-giant; the tests use a
stand-in with the same calls and keys.

Shape legend: B batch, H W pixels of the view, h w pixels of the network's input.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from depth_anything_3.api import DepthAnything3
from huggingface_hub import snapshot_download

FILES = ["config.json", "model.safetensors"]
METRIC_FOCAL_PX = 300.0
SEED = 0


class _Network:
    """Calls a network of Depth Anything 3 on views, one by one."""

    def __init__(self, name: str, licence: str, device: torch.device, inputs: list[str]) -> None:
        folder = Path(snapshot_download(f"depth-anything/{name}", allow_patterns=FILES))
        self.device = torch.device(device)
        self.net = DepthAnything3.from_pretrained(str(folder)).to(device)
        self.card = {
            "name": f"depth-anything/{name}",
            "depth_space": "metric_m",
            "weights": [str(folder / file) for file in FILES],
            "licence": licence,
            "precision": "bfloat16",  # `forward` sets autocast; float16 on GPUs without bfloat16
            # The longer side becomes 504 px, and both are rounded to a multiple of 14
            "preprocessing": {"longer_side_px": 504, "multiple_px": 14, "covers_view": True, "seed": SEED},
            **({"inputs": inputs} if inputs else {}),
        }

    def predictions(self, images: torch.Tensor) -> list[Any]:
        """Return the predictions, of one view each, of images (B, 3, H, W) in 0..1."""
        views = (images * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
        found = []
        for view in views:
            with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
                torch.manual_seed(SEED)
                found.append(self.net.inference([view]))
        return found

    def stacked(self, arrays: list[Any]) -> torch.Tensor:
        """Return arrays (1, ...) of all views as a tensor (B, ...) float32 on the device."""
        return torch.cat([torch.from_numpy(array) for array in arrays]).float().to(self.device)


class Metric(_Network):
    """DA3METRIC-LARGE."""

    def __init__(self, device: torch.device) -> None:
        super().__init__("DA3METRIC-LARGE", "Apache-2.0", device, ["intrinsics"])

    def __call__(self, images: torch.Tensor, intrinsics_px: torch.Tensor) -> dict[str, Any]:
        """Return depth in metres and sky (B, h, w) of images (B, 3, H, W) in 0..1 and their intrinsics (B, 4)."""
        found = self.predictions(images)
        depth = self.stacked([each.depth for each in found])
        resize = torch.tensor([depth.shape[2] / images.shape[3], depth.shape[1] / images.shape[2]])
        focal_px = (intrinsics_px[:, :2].to(depth) * resize.to(depth)).mean(dim=1)
        return {
            "depth": depth * (focal_px / METRIC_FOCAL_PX)[:, None, None],
            "sky": self.stacked([each.sky for each in found]),
        }


class Nested(_Network):
    """DA3NESTED-GIANT-LARGE-1.1."""

    def __init__(self, device: torch.device) -> None:
        super().__init__("DA3NESTED-GIANT-LARGE-1.1", "CC-BY-NC-4.0", device, [])

    def __call__(self, images: torch.Tensor) -> dict[str, Any]:
        """Return depth in metres and confidence (B, h, w), and intrinsics (B, 4), of images (B, 3, H, W) in 0..1."""
        found = self.predictions(images)
        depth = self.stacked([each.depth for each in found])
        camera = self.stacked([each.intrinsics for each in found])  # (B, 3, 3) in pixels of the input, from its border
        x, y = images.shape[3] / depth.shape[2], images.shape[2] / depth.shape[1]
        return {
            "depth": depth,
            "confidence": 1 - 1 / self.stacked([each.conf for each in found]).clamp(min=1),
            "intrinsics_px": torch.stack(
                [
                    camera[:, 0, 0] * x,
                    camera[:, 1, 1] * y,
                    camera[:, 0, 2] * x - 0.5,  # the pipeline's first pixel has its center at 0
                    camera[:, 1, 2] * y - 0.5,
                ],
                dim=1,
            ),
        }


def teacher(device: torch.device) -> Metric:
    """For `--teacher python:depth_anything_v3:teacher`."""
    return Metric(device)


def nested(device: torch.device) -> Nested:
    """For `--teacher python:depth_anything_v3:nested`."""
    return Nested(device)
