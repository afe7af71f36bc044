r"""RT-MonoDepth: depth of a small network, in metres (`teacher`) or up to a scale (`monocular`).

- `teacher` takes weights trained with stereo (`ms_640_192`). Metres = 5.4 / (0.01 + 9.99 s) of the network's output s
  in 0..1: disparities from 1 / 100 to 1 / 0.1, and the baseline of KITTI, 0.54 m, over that of the training, 0.1. So
  they are metres for images of KITTI's cameras alone.
- `monocular` takes weights trained on video (`m_640_192`), whose depth 1 / (0.01 + 9.99 s) has no scale (depth space
  `scale_invariant`).

Licence: LICENSE is Apache-2.0; README says "for non-commercial use" and "the same as that of Monodepth2", and the files
name Monodepth2's licence, for non-commercial use. The repository states none for the weights.

Code that was read: https://github.com/Ecalpal/RT-MonoDepth, commit 3ccc2256396b1478913864f18639ab8b377feced,
`networks/RTMonoDepth/RTMonoDepth.py`, `test_simple_full.py`, `layers.py`.

Install (its `networks` imports torchvision), and unpack the weights that its README links to, so that there is
`weights/RTMonoDepth/full/ms_640_192/encoder.pth`:

    git clone https://github.com/Ecalpal/RT-MonoDepth && git -C RT-MonoDepth checkout 3ccc22563964
    pip install torchvision

Run, from the folder of this file, of the clone and of the weights:

    export PYTHONPATH=RT-MonoDepth
    pipeline cache-teacher --teacher python:rt_monodepth:teacher --source kitti:ROOT --split train --out rt.zarr

Not run: the weights, which could not be had. That code ran through this file on a CPU with random weights; the tests
use a stand-in with the same calls and keys.

Shape legend: B batch, H W pixels of the view, h w pixels of the network's input.
"""

from __future__ import annotations

import numpy as np
import torch
from networks.RTMonoDepth.RTMonoDepth import DepthDecoder, DepthEncoder
from PIL import Image

WEIGHTS = "weights/RTMonoDepth/full"
LEAST_DISPARITY, LARGEST_DISPARITY = 1 / 100, 1 / 0.1
STEREO_SCALE = 5.4


class RtMonoDepth:
    """Calls RT-MonoDepth on batches of views."""

    def __init__(self, folder: str, depth_space: str, scale: float, device: torch.device) -> None:
        files = [f"{WEIGHTS}/{folder}/{part}.pth" for part in ("encoder", "depth")]
        encoder, decoder = (torch.load(file, map_location="cpu", weights_only=True) for file in files)
        self.scale, self.device = scale, device
        self.input_px = (int(encoder["height"]), int(encoder["width"]))
        self.encoder = DepthEncoder()
        self.encoder.load_state_dict({name: encoder[name] for name in self.encoder.state_dict()})
        self.decoder = DepthDecoder(self.encoder.num_ch_enc)
        self.decoder.load_state_dict(decoder)
        self.encoder.to(device)
        self.decoder.to(device)
        self.card = {
            "name": f"rt_monodepth/full/{folder}",
            "depth_space": depth_space,
            "weights": files,
            "licence": "non-commercial (README) and Apache-2.0 (LICENSE), weights not stated",
            "preprocessing": {"input_size_px": list(self.input_px), "resize": "lanczos"},
        }

    def __call__(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return depth (B, h, w) of images (B, 3, H, W) in 0..1."""
        views = (images * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
        size = self.input_px[::-1]
        resized = np.stack([np.asarray(Image.fromarray(view).resize(size, Image.Resampling.LANCZOS)) for view in views])
        inputs = torch.from_numpy(resized).permute(0, 3, 1, 2).to(self.device).float() / 255
        output = self.decoder(self.encoder(inputs))[("disp", 0)][:, 0]
        return {"depth": self.scale / (LEAST_DISPARITY + (LARGEST_DISPARITY - LEAST_DISPARITY) * output)}


def teacher(device: torch.device) -> RtMonoDepth:
    """For `--teacher python:rt_monodepth:teacher`."""
    return RtMonoDepth("ms_640_192", "metric_m", STEREO_SCALE, device)


def monocular(device: torch.device) -> RtMonoDepth:
    """For `--teacher python:rt_monodepth:monocular`."""
    return RtMonoDepth("m_640_192", "scale_invariant", 1.0, device)
