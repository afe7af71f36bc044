"""Which part of an image a file of predictions shows, by what is stated of it, or else by its size.

Shape legend: H, W pixels of a file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ..errors import PipelineError
from ..sources.view import ALIKE_PX, KB_SIZE_PX, View, aspect_off_px, same_aspect

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

GRIDS = ("image", "view")
SURE_PX = 1.0
"""A file whose aspect is off the view's by less, and off the image's by more, is of the view."""


class Extent(NamedTuple):
    """What predictions.json and the flags state."""

    grid: str | None = None
    """`image`: the files show whole images; `view`: what the network saw of them."""
    view: View | None = None
    """What the network saw of an image."""
    input_px: tuple[int, int] | None = None
    """(height, width) to which the network's input was resized, whatever aspect that gave it."""

    def of_view(
        self, depth: NDArray[np.float32], view: View, image_px: tuple[int, int], where: str
    ) -> NDArray[np.float32]:
        """The part of a file (H, W) that a view of an image of `image_px` shows.

        A file of the view stays as it is, at its own resolution. One of the whole image is cropped, and resized where
        the view resizes, by nearest pixel. Where nothing is stated, predictions for a mirrored view are mirrored
        already. Raises PipelineError, with both sizes, for a file that shows another part, or that may show either.
        """
        size_px = (depth.shape[0], depth.shape[1])
        stated = self.grid is not None
        shows_view = self._stated if stated else self._guessed
        if shows_view(size_px, view, image_px, where):
            return depth
        in_image = depth if stated or not view.mirror else depth[:, ::-1]
        return view.of_depth(in_image, image_px, own_pixels=view.resize_px is None)

    def _stated(self, size_px: tuple[int, int], view: View, image_px: tuple[int, int], where: str) -> bool:
        """Whether a file shows the view, as is stated, and not the whole image."""
        seen = self.view or view
        whole = self.grid == "image"
        expected = [image_px] if whole else [seen.size_px(*image_px), seen.box_px(*image_px)[2:]]
        if not any(same_aspect(size_px, one) for one in [*expected, *([self.input_px] if self.input_px else [])]):
            raise PipelineError(
                f"{where}: {_times(size_px)} px, and predictions.json says that it shows the "
                f"{'whole image' if whole else f'view {seen}'}, {_times(expected[0])} px: expected that aspect, "
                f"within a pixel; {_resized(size_px)}"
            )
        if not whole and (seen.box_px(*image_px), seen.mirror) != (view.box_px(*image_px), view.mirror):
            raise PipelineError(
                f"{where}: predictions.json says that it shows the view {seen}, asked for is {view}: give `view={seen}`"
            )
        return not whole

    def _guessed(self, size_px: tuple[int, int], view: View, image_px: tuple[int, int], where: str) -> bool:
        """Whether a file shows the view, by its size, and not the whole image, of which the view is a part.

        Of the whole image is a file of its very size alone: 192x640 is KITTI's image within a pixel, and what many
        networks see of its crop.
        """
        box_px = view.box_px(*image_px)[2:]
        of_view = {view.size_px(*image_px), box_px}
        if size_px == image_px:
            return False
        if size_px in of_view or (self.input_px is not None and same_aspect(size_px, self.input_px)):
            return True
        off_view = min(aspect_off_px(size_px, one) for one in of_view)
        off_image = aspect_off_px(size_px, image_px)
        if off_view > ALIKE_PX:
            hint = "give `view=kb`, whose size it has; or " if size_px == KB_SIZE_PX and view.crop != "kb" else ""
            raise PipelineError(
                f"{where}: {_times(size_px)} px does not fit the view {view}, {_times(view.size_px(*image_px))} px, of "
                f"the image, {_times(image_px)} px: expected the same aspect, within a pixel; {hint}{_resized(size_px)}"
            )
        if box_px != image_px and off_image <= (SURE_PX if off_view <= SURE_PX else ALIKE_PX):
            raise PipelineError(
                f"{where}: {_times(size_px)} px may show the whole image, {_times(image_px)} px, or its view {view}, "
                f'{_times(box_px)} px: write "grid": "image" or "grid": "view" into predictions.json'
            )
        return True


def _resized(size_px: tuple[int, int]) -> str:
    height, width = size_px
    return (
        f"if its network saw the whole view, resized to that, give `input_size_px={height}x{width}`; if it saw the "
        "whole "
        f'image, write "grid": "image", "input_size": [{height}, {width}] into predictions.json'
    )


def _times(size_px: tuple[int, ...]) -> str:
    return "x".join(map(str, size_px))
