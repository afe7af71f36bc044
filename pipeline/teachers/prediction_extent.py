"""Which part of an image a file of predictions covers: from predictions.json and options, or from the file's size.

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
MATCH_PX = 1.0
"""A file whose aspect differs by less from the view's, and by more from the image's, covers the view."""


class Extent(NamedTuple):
    """What predictions.json and the options state."""

    grid: str | None = None
    """`image`: files cover whole images; `view`: the view that the network saw."""
    view: View | None = None
    """The view that the network saw."""
    input_px: tuple[int, int] | None = None
    """(height, width) to which the network's input was resized, which may change the aspect ratio."""

    def of_view(
        self, depth: NDArray[np.float32], view: View, image_px: tuple[int, int], where: str
    ) -> NDArray[np.float32]:
        """Return the part of a file (H, W) that covers the view of an image of `image_px`.

        A file of the view is returned as it is. A file of the whole image is cropped, and resized by nearest pixel if
        the view resizes. Without a stated grid, predictions for a mirrored view are mirrored already.
        Raises PipelineError, with both sizes, for a file that covers another part, or is ambiguous.
        """
        size_px = (depth.shape[0], depth.shape[1])
        stated = self.grid is not None
        covers_view = self._stated_as_view if stated else self._has_view_size
        if covers_view(size_px, view, image_px, where):
            return depth
        in_image = depth if stated or not view.mirror else depth[:, ::-1]
        return view.of_depth(in_image, image_px, own_pixels=view.resize_px is None)

    def _stated_as_view(self, size_px: tuple[int, int], view: View, image_px: tuple[int, int], where: str) -> bool:
        """Return whether the stated grid is the view, after checking that the file's size fits it."""
        seen = self.view or view
        whole = self.grid == "image"
        expected = [image_px] if whole else [seen.size_px(*image_px), seen.box_px(*image_px)[2:]]
        if not any(same_aspect(size_px, size) for size in [*expected, *([self.input_px] if self.input_px else [])]):
            raise PipelineError(
                f"{where}: {_times(size_px)} px, but predictions.json states that it covers the "
                f"{'whole image' if whole else f'view {seen}'}, {_times(expected[0])} px: expected that aspect ratio "
                f"within a pixel; {_resized(size_px)}"
            )
        if not whole and (seen.box_px(*image_px), seen.mirror) != (view.box_px(*image_px), view.mirror):
            raise PipelineError(
                f"{where}: predictions.json states that it covers the view {seen}, not {view}: give `view={seen}`"
            )
        return not whole

    def _has_view_size(self, size_px: tuple[int, int], view: View, image_px: tuple[int, int], where: str) -> bool:
        """Return whether a file covers the view, judged by its size; otherwise it covers the whole image.

        Only a file of exactly the image's size covers the whole image: 192x640 has the aspect of KITTI's image within
        a pixel, but many networks get the crop at this size.
        """
        box_px = view.box_px(*image_px)[2:]
        view_sizes = {view.size_px(*image_px), box_px}
        if size_px == image_px:
            return False
        if size_px in view_sizes or (self.input_px is not None and same_aspect(size_px, self.input_px)):
            return True
        off_view = min(aspect_off_px(size_px, size) for size in view_sizes)
        off_image = aspect_off_px(size_px, image_px)
        if off_view > ALIKE_PX:
            hint = "give `view=kb`, which has this size; or " if size_px == KB_SIZE_PX and view.crop != "kb" else ""
            raise PipelineError(
                f"{where}: {_times(size_px)} px does not fit the view {view}, {_times(view.size_px(*image_px))} px, of "
                f"the image, {_times(image_px)} px: expected that aspect ratio within a pixel; {hint}"
                f"{_resized(size_px)}"
            )
        if box_px != image_px and off_image <= (MATCH_PX if off_view <= MATCH_PX else ALIKE_PX):
            raise PipelineError(
                f"{where}: {_times(size_px)} px fits both the whole image, {_times(image_px)} px, and its view {view}, "
                f'{_times(box_px)} px: add "grid": "image" or "grid": "view" to predictions.json'
            )
        return True


def _resized(size_px: tuple[int, int]) -> str:
    height, width = size_px
    return (
        f"if the network saw the view resized to this size, give `input_size_px={height}x{width}`; if it saw the "
        f'whole image, add "grid": "image", "input_size": [{height}, {width}] to predictions.json'
    )


def _times(size_px: tuple[int, ...]) -> str:
    return "x".join(map(str, size_px))
