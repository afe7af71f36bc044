"""`checkpoint:RUN`: a network trained by this project as a teacher.

Shape legend: B batch, K bins, H W pixels of the view, h w pixels of the network's output.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..depth.readout import DEFAULT
from ..depth.relative import METRIC, depth_space_of, in_own_space
from ..networks.registry import Student
from ..networks.saved_run import IMAGENET_MEAN, IMAGENET_STD, has_map, load_run, normalize
from .base import VIEW, TeacherCard, TeacherOutput
from .features import LAST, check_layers

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from ..networks.saved_run import LoadedRun
    from .options import TeacherOptions


class CheckpointTeacher:
    """The network of a run: its maps, and their depth as the run reads it."""

    needs_images = True

    def __init__(
        self,
        run: LoadedRun,
        card: TeacherCard,
        device: torch.device,
        readout: str | None = None,
        layers: tuple[str, ...] = (),
    ) -> None:
        self.card = card
        # The bins of a relative network are not the bins of a store, so it gives depth alone.
        self._mapped = has_map(run.config) and card.depth_space == METRIC
        self.bin_edges_m: NDArray[np.float64] | None = run.bin_edges_m if self._mapped else None
        self._reader = run.reader(device, readout)
        self._network = run.network.to(device)
        self._layers = {layer: layers_of(run.network)[layer] for layer in layers}
        self.device = device

    @torch.no_grad()
    def predict(self, images: Tensor | None, ids: Sequence[str]) -> TeacherOutput:  # noqa: ARG002 - the protocol
        """Predict depth (B, h, w) in metres and maps (B, K, h, w), float32 on the device; regression gives no maps.

        A relative run gives depth in its teacher's depth space, without maps. Features are outputs of the encoder.
        """
        assert images is not None, "needs_images is True"
        outputs, features = self._run(normalize(images.to(self.device)))
        maps = self._reader.maps(outputs)
        depth_m = self._reader.depth_m(outputs, maps)
        if self.card.depth_space != METRIC:
            depth_m = in_own_space(depth_m, self.card.depth_space)
        return TeacherOutput(depth_m.squeeze(1), maps if self._mapped else None, features=features)

    def _run(self, images: Tensor) -> tuple[Tensor, dict[str, Tensor] | None]:
        """Return the network's outputs (B, C, h, w), and the features that were asked for."""
        if not self._layers:
            return self._network(images), None
        assert isinstance(self._network, Student), "layers_of refuses others"
        encoded = self._network.encoded(images)
        outputs = self._network.head(self._network.decoded(encoded, (images.shape[2], images.shape[3])))
        return outputs, {layer: encoded[number].float() for layer, number in self._layers.items()}


def layers_of(network: torch.nn.Module) -> dict[str, int]:
    """Return the layers of a network whose features it gives: name -> number of the encoder's map.

    A name is the stride of a map, `8` for one value each 8 pixels; of several maps of one stride, the deepest. `last`
    is the deepest map.
    """
    assert isinstance(network, Student), "networks of runs are students"
    layers = {str(stride): number for number, stride in enumerate(network.strides)}
    return {**layers, LAST: len(network.strides) - 1}


def load(argument: str, device: torch.device, options: TeacherOptions) -> CheckpointTeacher:
    """Open a run directory of train-teacher or train-student.

    Raises PipelineError if it is not a complete run, and for a layer that its network does not have.
    """
    run = load_run(Path(argument))
    if options.features:
        check_layers(f"teacher checkpoint:{argument}", options.features, layers_of(run.network))
    readout = run.reader(readout=options.readout).readout
    card = TeacherCard(
        kind="checkpoint",
        name=str(run.config["student"]),
        depth_space=depth_space_of(run.config),
        weights_sha256=run.weights_sha256,
        preprocessing={
            "mean": list(IMAGENET_MEAN),
            "std": list(IMAGENET_STD),
            **({VIEW: run.config["view"]} if isinstance(run.config.get("view"), str) else {}),
            **({"readout": readout} if readout != DEFAULT else {}),  # not stated in stores of older versions
        },
        licence=options.licence,
    )
    return CheckpointTeacher(run, card, device, readout, options.features)
