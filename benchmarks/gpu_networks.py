"""Random networks for `gpu.py`: depth networks of two sizes, and one with maps."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from pipeline.networks.registry import build_student
from pipeline.teachers.base import TeacherCard, TeacherOutput
from pipeline.teachers.options import TeacherOptions
from pipeline.teachers.registry import open_teacher

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from torch import Tensor

    from pipeline.teachers.base import Teacher


class PlainTransformer(nn.Module):
    """Patches of 14 pixels, transformer layers, one depth per patch, enlarged."""

    def __init__(self, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 14, 14)
        layer = nn.TransformerEncoderLayer(width, heads, 4 * width, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) -> depth (B, H, W) in 1 to 81."""
        patches = self.patches(images)
        depth = self.head(self.layers(patches.flatten(2).transpose(1, 2)))
        depth = depth.transpose(1, 2).unflatten(2, patches.shape[2:]).float()
        return 1 + 80 * torch.sigmoid(nn.functional.interpolate(depth, images.shape[2:], mode="bilinear")[:, 0])


class PlainTeacher:
    """A plain transformer as a teacher, prepared on its device."""

    needs_images, bin_edges_m = True, None

    def __init__(self, name: str, network: nn.Module, input_px: tuple[int, int], device: torch.device) -> None:
        self.card = TeacherCard("python", name, "metric_m", precision="float16" if device.type == "cuda" else "float32")
        self.device, self.input_px = device, input_px
        self.network = network.eval().to(device)

    @torch.no_grad()
    def predict(self, images: Tensor | None, ids: Sequence[str]) -> TeacherOutput:  # noqa: ARG002 - the protocol
        """Return depth at the size of the network's input."""
        assert images is not None
        resized = nn.functional.interpolate(images, self.input_px, mode="bilinear", antialias=True)
        with torch.autocast(self.device.type, torch.float16, enabled=self.device.type == "cuda"):
            return TeacherOutput(self.network(resized))


def depth_teacher(
    name: str, folder: Path, input_px: tuple[int, int], device: torch.device, *, small: bool
) -> tuple[Teacher, Callable[[int], object], str]:
    """Return a random depth network of a size, a call of it alone with a batch, and what it is."""
    width, layers, heads = {"ViT-L": (1024, 24, 16), "ViT-S": (384, 12, 6)}[name]
    if small:
        width, layers, heads = 32, 4, 2
    torch.manual_seed(0)
    try:
        import transformers as hf
    except ImportError:
        network = PlainTransformer(width, layers, heads)
        teacher = PlainTeacher(name, network, input_px, device)
        pixels = torch.rand(1, 3, *input_px, device=device)
        return (
            teacher,
            lambda batch: teacher.predict(pixels.expand(batch, -1, -1, -1), [""] * batch),
            "plain transformer",
        )
    backbone = hf.Dinov2Config(
        hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, image_size=518, patch_size=14,
        out_indices=[layers // 4, layers // 2, 3 * layers // 4, layers], reshape_hidden_states=False,
        apply_layernorm=True,
    )  # fmt: skip
    necks = [32] * 4 if small else ([256, 512, 1024, 1024] if name == "ViT-L" else [48, 96, 192, 384])
    config = hf.DepthAnythingConfig(
        backbone_config=backbone, reassemble_hidden_size=width, neck_hidden_sizes=necks,
        fusion_hidden_size=32 if small else (256 if name == "ViT-L" else 64), patch_size=14,
        depth_estimation_type="metric", max_depth=80,
    )  # fmt: skip
    hf.utils.logging.disable_progress_bar()
    network = hf.DepthAnythingForDepthEstimation(config)
    network.save_pretrained(folder)
    from transformers.models.dpt.image_processing_pil_dpt import DPTImageProcessorPil

    size = {"height": input_px[0], "width": input_px[1]}
    DPTImageProcessorPil(size=size, keep_aspect_ratio=False, ensure_multiple_of=14).save_pretrained(folder)
    teacher = open_teacher(f"transformers:{folder}", device=device, options=TeacherOptions())
    network = network.eval().to(device)
    pixels = torch.rand(1, 3, *input_px, device=device)

    @torch.no_grad()
    def alone(batch: int) -> object:
        with torch.autocast(device.type, torch.float16, enabled=device.type == "cuda"):
            return network(pixel_values=pixels.expand(batch, -1, -1, -1).contiguous())

    return teacher, alone, "Depth Anything"


class MapTeacher:
    """A student's network with random weights and peaked maps, on its device."""

    needs_images = True

    def __init__(self, bins: int, device: torch.device) -> None:
        torch.manual_seed(0)
        self.card = TeacherCard("python", f"maps-{bins}", "metric_m")
        self.device = device
        self.network = build_student("lean", bins).eval().to(device)
        self.edges_m = torch.linspace(1e-3, 80, bins + 1, dtype=torch.float64)
        self.bin_edges_m = self.edges_m.numpy()
        self.centers_m = ((self.edges_m[1:] + self.edges_m[:-1]) / 2).float().to(device).view(1, -1, 1, 1)

    @torch.no_grad()
    def predict(self, images: Tensor | None, ids: Sequence[str]) -> TeacherOutput:  # noqa: ARG002 - the protocol
        """Return maps with a mass of 0.9 in ten bins, around a depth that follows the brightness."""
        assert images is not None
        logits = self.network(images)
        gray = nn.functional.interpolate(images.mean(1, keepdim=True), images.shape[2:], mode="bilinear")
        logits = nn.functional.interpolate(logits.float(), images.shape[2:], mode="bilinear")
        mean_m = 4 + 60 * nn.functional.avg_pool2d(gray, 9, 1, 4)
        maps = torch.softmax(-((self.centers_m - mean_m).square() / 4) + 0.1 * torch.tanh(logits), dim=1)
        return TeacherOutput((maps * self.centers_m).sum(1), maps)


def plain_teacher(device: torch.device) -> PlainTeacher:
    """Return a small network that gives depth."""
    torch.manual_seed(0)
    return PlainTeacher("small", PlainTransformer(64, 2, 2), (112, 336), device)
