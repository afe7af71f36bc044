"""What the three benchmarks of overhead share: data that the project renders, and tables.

`stage_one.py`, `stage_two.py` and `online.py` use it.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import platform
import statistics
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from pipeline.depth.dpm import expected_depth
from pipeline.networks.registry import build_student
from pipeline.networks.saved_run import normalise
from pipeline.sources.registry import open_source
from pipeline.teachers.base import TeacherCard, TeacherOutput
from scenes.dataset import make_scenes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.sources.base import Source

RESULTS = Path(__file__).parent / "results"
BINS = 64
RANGE_M = (1e-3, 80.0)


def render(place: Path, count: int, size_px: tuple[int, int]) -> Source:
    """A source of so many rendered frames, all in the split `all`."""
    make_scenes(place, count=count, size_px=size_px)
    return open_source(f"scenes:{place}")


class RandomTeacher:
    """A network with random weights, whose time is that of a trained one.

    Its logits are scaled, so that its maps are as peaked as those of a trained network: a mass of 0.9 or so in
    some ten bins. Flat maps would be larger than any that is stored in practice.
    """

    needs_images = True

    def __init__(self, name: str, *, maps: bool) -> None:
        torch.manual_seed(0)
        self.card = TeacherCard(kind="python", name=f"random-{name}", depth_space="metric_m")
        self.network = build_student(name, BINS).eval()
        self.edges_m = torch.linspace(*RANGE_M, BINS + 1, dtype=torch.float64)
        self.bin_edges_m = self.edges_m.numpy() if maps else None

    @torch.no_grad()
    def predict(self, images: torch.Tensor | None, ids: Sequence[str]) -> TeacherOutput:  # noqa: ARG002 - the protocol
        """Depth (B, h, w) metres, and maps (B, K, h, w) where it was made to give them."""
        assert images is not None
        logits = self.network(normalise(images))
        # About a depth that varies as the image does, from near at the bottom to far at the top
        grey = F.avg_pool2d(F.interpolate(images.mean(1, keepdim=True), logits.shape[2:], mode="area"), 9, 1, 4)
        far = torch.linspace(0.7, 0.1, logits.shape[2]).view(-1, 1)
        number = torch.arange(BINS).view(1, -1, 1, 1)
        maps = torch.softmax(-(number - BINS * (far + 0.2 * grey)).square() / 8 + 0.1 * torch.tanh(logits), dim=1)
        depth_m = expected_depth(maps, self.edges_m)[:, 0].float()
        return TeacherOutput(depth_m, None if self.bin_edges_m is None else maps)


def ratio(times_s: list[float], of_s: list[float]) -> float:
    """Median of the ratios of two series that were measured in turn."""
    return statistics.median(one / other for one, other in zip(times_s, of_s, strict=True))


def machine(threads: int) -> dict[str, object]:
    """What figures depend on."""
    return {
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "threads": threads,
        "torch": torch.__version__,
        "load_average": round(os.getloadavg()[0], 2),
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
    }


def write(
    name: str, about: dict[str, object], head: Sequence[str], rows: Sequence[Sequence[str]], data: object
) -> None:
    """Print a table, and write it as Markdown, and all figures as JSON."""
    lines = [f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *rows)]
    print(", ".join(f"{key} {value}" for key, value in about.items()) + "\n")
    print("\n".join(lines))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.md").write_text("\n".join(lines) + "\n")
    (RESULTS / f"{name}.json").write_text(json.dumps({**about, "rows": data}, indent=2) + "\n")
