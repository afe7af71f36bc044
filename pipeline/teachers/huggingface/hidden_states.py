"""Features of a transformers network: its hidden states by number, as maps over the view.

A vision transformer has one for its patch embeddings (0) and one for each block; other encoders one for each stage.

Shape legend: B batch, T tokens, D channels, a b sides of the grid of patches, H W pixels of the view.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch.nn.functional as F

from ...errors import PipelineError
from ..features import LAST, check_layers, token_map
from .preprocess import patch_px

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    Padding = Callable[[tuple[int, int]], tuple[int, int]]


class HiddenStates:
    """Reads the hidden states `layers` of a network's output.

    `padding_px` gives the rows and columns that the processor adds on each side of a view (H, W).
    """

    def __init__(self, where: str, config: Any, layers: Sequence[str], padding_px: Padding | None) -> None:  # noqa: ANN401 - the library ships no types
        self._where = where
        self._layers = layers
        self._padding_px = padding_px
        self._side: int | None = None
        """Patches along each side of the grid, if it does not depend on the input."""
        encoder = getattr(config, "backbone_config", None) or config
        self._patch_px = patch_px(config)
        if config.model_type == "depth_pro":  # of its image encoder, which sees the whole view at one size
            encoder = config.image_model_config
            self._side = encoder.image_size // encoder.patch_size
        self._special = 1 + getattr(encoder, "num_register_tokens", 0)

    def read(self, output: Any, input_px: tuple[int, int], view_px: tuple[int, int]) -> dict[str, Tensor]:  # noqa: ANN401 - as above
        """Return the features (B, D, a, b) float32 of each layer over a view (H, W), of which the network saw (h, w).

        Raises PipelineError for a layer that does not exist or is no map.
        """
        states = getattr(output, "hidden_states", None)
        if not states:
            raise PipelineError(
                f"{self._where}: its network gives no hidden states: omit `features`, or return them from a "
                "python:module:factory"
            )
        numbers = {**{str(number): number for number in range(len(states))}, LAST: len(states) - 1}
        check_layers(self._where, self._layers, numbers)
        maps = {layer: self._map(layer, states[numbers[layer]], input_px) for layer in self._layers}
        return {layer: self._over_view(values.float(), view_px) for layer, values in maps.items()}

    def _map(self, layer: str, state: Tensor, input_px: tuple[int, int]) -> Tensor:
        if state.ndim == 4:
            return state
        grid = None
        if self._side is not None:
            grid = self._side, self._side
        elif self._patch_px is not None:
            grid = input_px[0] // self._patch_px, input_px[1] // self._patch_px
        values = None if grid is None else token_map(state, grid, self._special)
        if values is None:
            expected = "a patch size" if grid is None else f"{self._special} + {grid[0]}x{grid[1]} tokens"
            raise PipelineError(
                f"{self._where}: layer {layer!r} is {tuple(state.shape)} for an input of {input_px[0]}x{input_px[1]} "
                f"px, expected {expected} or a map: choose another layer in `features`, or return it from a "
                "python:module:factory"
            )
        return values

    def _over_view(self, values: Tensor, view_px: tuple[int, int]) -> Tensor:
        """Cut (B, D, a, b) over the padded view to the view, by bilinear interpolation between patches."""
        padding = (0, 0) if self._padding_px is None else self._padding_px(view_px)
        if padding == (0, 0):
            return values
        # The padding is the same on both sides, so the view is centered.
        shown = [side / (side + 2 * extra) for side, extra in zip(view_px, padding, strict=True)]
        sides = [max(1, round(patches * part)) for patches, part in zip(values.shape[2:], shown, strict=True)]
        scales = values.new_tensor([[[shown[1], 0, 0], [0, shown[0], 0]]]).expand(len(values), -1, -1)
        grid = F.affine_grid(scales, [*values.shape[:2], *sides], align_corners=False)
        return F.grid_sample(values, grid, padding_mode="border", align_corners=False)
