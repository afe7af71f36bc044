"""Stand-ins for public networks, with the calls, shapes and keys of their code at the commits that examples/ names.

Each predicts from the brightness of its input, so that a test can compute what comes out. `install` makes them
importable.

Shape legend: B batch, N views of one scene, H W pixels of the images, h w pixels of the network's input.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from pathlib import Path

WHITE = 0.98
"""Brightness from which a pixel is sky, or masked."""


def depth_of(images: torch.Tensor) -> torch.Tensor:
    """Depth (B, H, W) of images (B, 3, H, W) in 0..1: from 1 (white) to 11 (black)."""
    return 11 - 10 * images.mean(dim=1)


class _Network(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))


class _Pretrained(_Network):
    @classmethod
    def from_pretrained(cls, path):
        network = cls()
        network.loaded_from = str(path)
        return network


class MoGeModel(_Pretrained):
    """`moge.model.v2.MoGeModel`."""

    @torch.inference_mode()
    def infer(
        self,
        image,
        num_tokens=None,
        resolution_level=9,
        force_projection=True,
        apply_mask=True,
        fov_x=None,
        use_fp16=True,
    ):
        assert image.dim() == 4
        depth, mask = depth_of(image), image.mean(dim=1) < WHITE
        camera = torch.tensor([[0.8, 0, 0.5], [0, 1.2, 0.5], [0, 0, 1]]).expand(len(image), 3, 3)
        depth = torch.where(mask, depth, torch.inf) if apply_mask else depth
        points = torch.stack([depth, depth, depth], dim=-1)
        return {"points": points, "intrinsics": camera, "depth": depth, "mask": mask, "normal": points}


class UniDepthV2(_Pretrained):
    """`unidepth.models.UniDepthV2`; the error that it predicts is 1 at black pixels and 0 at white ones."""

    @torch.no_grad()
    def infer(self, rgb, camera=None, normalize=True):
        assert normalize
        assert camera is None
        images = rgb.float() / 255.0
        depth = depth_of(images)[:, None]
        height, width = images.shape[2:]
        camera = torch.tensor([[300.0, 0, width / 2], [0, 310.0, height / 2], [0, 0, 1]]).expand(len(rgb), 3, 3)
        error = 1 - images.mean(dim=1, keepdim=True)
        return {
            "confidence": torch.exp(error),
            "intrinsics": camera.clone(),
            "radius": depth,
            "depth": depth,
            "points": depth.expand(-1, 3, -1, -1),
            "rays": depth.expand(-1, 3, -1, -1),
            "depth_features": depth,
        }


class Metric3DModel(_Network):
    """What `hubconf.metric3d_vit_large` returns; its output is at the size of its padded input."""

    input_px = (616, 1064)

    @torch.no_grad()
    def inference(self, data):
        inputs = data["input"]
        assert inputs.shape[2:] == self.input_px
        self.batch = getattr(self, "batch", len(inputs))
        assert len(inputs) <= self.batch, "the anchors are made for the first batch"
        mean, std = (
            torch.tensor(each).view(1, 3, 1, 1) for each in ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375])
        )
        images = (inputs * std + mean) / 255
        depth = depth_of(images)[:, None]
        confidence = 1.5 * images.mean(dim=1, keepdim=True) - 0.25  # no sigmoid: it leaves 0..1
        return depth, confidence, {"prediction": depth, "confidence": confidence}


def metric3d_vit_large(pretrain=False, **kwargs):  # noqa: ARG001 - its signature
    assert not pretrain, "it would unpickle a download"
    return Metric3DModel()


@dataclass
class Prediction:
    """`depth_anything_3.specs.Prediction`."""

    depth: np.ndarray
    is_metric: int
    sky: np.ndarray | None = None
    conf: np.ndarray | None = None
    extrinsics: np.ndarray | None = None
    intrinsics: np.ndarray | None = None


class DepthAnything3(_Pretrained):
    """`depth_anything_3.api.DepthAnything3`: several images are views of one scene."""

    def inference(self, image, extrinsics=None, intrinsics=None, process_res=504):
        assert len(image) == 1, "views of one scene"
        assert image[0].dtype == np.uint8
        views = torch.from_numpy(np.stack(image)).permute(0, 3, 1, 2).float() / 255
        height, width = views.shape[2:]
        h, w = (14 * round(process_res * side / max(height, width) / 14) for side in (height, width))
        inputs = F.interpolate(views, (h, w), mode="nearest-exact")
        depth, sky = depth_of(inputs), inputs.mean(dim=1) >= WHITE
        depth[sky] = float(depth.max() + torch.rand(1))  # a quantile over random pixels
        if "METRIC" in self.loaded_from:
            return Prediction(depth=depth.numpy(), is_metric=0, sky=sky.numpy())
        conf = torch.where(sky, 1.0, 1 + torch.exp(4 * inputs.mean(dim=1) - 2))
        camera = np.array([[[400.0, 0, w / 2], [0, 420.0, h / 2], [0, 0, 1]]], np.float32)
        return Prediction(depth=depth.numpy(), is_metric=1, conf=conf.numpy(), intrinsics=camera)


class DepthEncoder(_Network):
    """`networks.RTMonoDepth.RTMonoDepth.DepthEncoder`."""

    def __init__(self) -> None:
        super().__init__()
        self.num_ch_enc = [64, 64, 128, 256]

    def forward(self, x):
        return [x * self.weight]


class DepthDecoder(_Network):
    """`networks.RTMonoDepth.RTMonoDepth.DepthDecoder`."""

    def __init__(self, num_ch_enc, scales=range(4), use_skips=True) -> None:
        super().__init__()
        assert num_ch_enc == [64, 64, 128, 256]

    def forward(self, input_features):
        disparity = input_features[-1].mean(dim=1, keepdim=True) * self.weight
        return {("disp", scale): disparity for scale in range(4)}


def install(monkeypatch, folder: Path) -> None:
    """Make the stand-ins importable, and `folder` the working folder with files of weights."""
    monkeypatch.chdir(folder)

    def add(name, **attributes):
        module = ModuleType(name)
        module.__dict__.update(attributes, __path__=[])
        monkeypatch.setitem(sys.modules, name, module)

    for name in ("moge", "moge.model", "unidepth", "depth_anything_3", "networks", "networks.RTMonoDepth"):
        add(name)
    add("moge.model.v2", MoGeModel=MoGeModel)
    add("unidepth.models", UniDepthV2=UniDepthV2)
    add("hubconf", metric3d_vit_large=metric3d_vit_large)
    add("depth_anything_3.api", DepthAnything3=DepthAnything3)
    add("networks.RTMonoDepth.RTMonoDepth", DepthEncoder=DepthEncoder, DepthDecoder=DepthDecoder)

    def snapshot_download(name, allow_patterns):
        place = folder / "hub" / name.replace("/", "--")
        place.mkdir(parents=True, exist_ok=True)
        for file in allow_patterns:
            (place / file).write_bytes(f"{name} {file}".encode())
        return str(place)

    add(
        "huggingface_hub",
        hf_hub_download=lambda name, file: f"{snapshot_download(name, [file])}/{file}",
        snapshot_download=snapshot_download,
    )
    torch.save({"model_state_dict": Metric3DModel().state_dict()}, folder / "metric_depth_vit_large_800k.pth")
    for kind in ("ms_640_192", "m_640_192"):
        place = folder / "weights" / "RTMonoDepth" / "full" / kind
        place.mkdir(parents=True)
        torch.save({**DepthEncoder().state_dict(), "height": 192, "width": 640}, place / "encoder.pth")
        torch.save(DepthDecoder([64, 64, 128, 256]).state_dict(), place / "depth.pth")
