"""A trained student for use from Python: an image in, depth out.

Shape legend: K bins, H W pixels of an image, h w of the map, which is smaller.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from ..common.fileio import read_json
from ..depth.relative import METRIC, in_own_space
from ..errors import PipelineError
from ..networks.predict import predict_map
from ..networks.saved_run import METRICS, has_map, load_run
from ..sources.readers.images import read_rgb
from .depth_files import on_image
from .focal import check_focal, depth_scale
from .runners import RunPredictor

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..networks.saved_run import LoadedRun


class Student:
    """A trained network. `load_student` opens one, and `train_student` returns one.

    Attributes:
        path: directory of the run.
        config: the configuration of the run, as in `config.json`.
        bin_edges_m: (K + 1,) edges of its depth bins in metres.
        depth_space: `metric_m` for metres, else the kind of relative depth.

    Example:
        >>> import pipeline as tiekd
        >>> student = tiekd.load_student("runs/lean", device="cpu")
        >>> student.predict("images/0.jpg").shape  # (H, W) metres
        (32, 64)
        >>> student.dpm("images/0.jpg").shape  # (K, h, w) probabilities
        (64, 16, 32)
    """

    def __init__(self, path: Path, run: LoadedRun, device: torch.device, readout: str | None = None) -> None:
        self.path = path
        self.run = run
        self.config: dict[str, Any] = run.config
        self.bin_edges_m: NDArray[np.float64] = run.bin_edges_m
        self.readout = readout
        """How depth is read from the map; None is as it was trained."""
        self._device = device
        self._predictor = RunPredictor(run, device, readout=readout)
        self.depth_space: str = self._predictor.depth_space

    def __repr__(self) -> str:
        return f"<Student {self.path}: {self.config['student']}, {len(self.bin_edges_m) - 1} bins, {self.depth_space}>"

    @property
    def metrics(self) -> dict[str, Any]:
        """Training figures: `steps`, `seconds`, `parameters`, `last_epoch` ... Empty if the file is missing."""
        path = self.path / METRICS
        return dict(read_json(path, "metrics of a run")) if path.exists() else {}

    def predict(
        self, image: str | Path | Image.Image | NDArray[np.uint8], *, focal_px: float | None = None
    ) -> NDArray[np.float32]:
        """Depth of an image.

        The network takes the view that it was trained on, such as a crop; its depth is mapped back to the pixels of
        the image.

        Args:
            image: a file, a PIL image, or an array (H, W, 3) uint8 RGB.
            focal_px: focal length of the camera, in pixels of the image: depth is rescaled from the focal length of
                the training images. None: the camera is one like theirs.

        Returns:
            (H, W) float32: metres, or relative depth in `depth_space`; NaN outside the view.

        Raises PipelineError for a file that does not decode, an array of another shape or type, an image smaller
        than the view, and a focal length for a student that does not record its own or predicts relative depth.
        """
        check_focal(self._predictor, focal_px)
        pixels = _pixels(image)
        view = self._predictor.view
        depth_m = self._predictor.predict_m(view.of_image(pixels)[None])[0]
        image_px = pixels.shape[0], pixels.shape[1]
        if focal_px is not None:
            depth_m *= np.float32(depth_scale(self._predictor, focal_px, image_px))
        whole = on_image(depth_m, view, image_px)
        return whole if self.depth_space == METRIC else in_own_space(whole, self.depth_space)

    def dpm(self, image: str | Path | Image.Image | NDArray[np.uint8]) -> NDArray[np.float32]:
        """Depth probability map (K, h, w) float32 of the view of an image; it sums to 1 over K.

        Raises PipelineError as `predict`, and for a student that was trained without a map.
        """
        if not has_map(self.config):
            raise PipelineError(f"{self.path} predicts one depth per pixel and no map; train it with `head='dpm'`")
        view = self._predictor.view.of_image(_pixels(image))
        tensor = torch.from_numpy(view).to(self._device).permute(2, 0, 1)[None].float() / 255
        reader = self.run.reader(self._device)
        maps: NDArray[np.float32] = predict_map(self.run.network, tensor, reader)[0].cpu().numpy()
        return maps


def load_student(path: str | Path, device: str = "auto", readout: str | None = None) -> Student:
    """Open the directory of a finished run.

    Args:
        path: a directory from `train_student` or `pipeline train-student`.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        readout: how `predict` reads depth from the map: `mean`, `geometric`, `median` or `absrel`; None is the run's.

    Raises PipelineError for a directory that is not a finished run.

    Example:
        >>> import pipeline as tiekd
        >>> student = tiekd.load_student("runs/lean")
        >>> student.predict("images/0.jpg").shape
        (32, 64)
    """
    from ..common.device import choose_device

    return Student(Path(path), load_run(Path(path)), choose_device(device), readout)


def _pixels(image: object) -> NDArray[np.uint8]:
    """Pixels (H, W, 3) uint8 RGB of an image."""
    if isinstance(image, str | Path):
        return read_rgb(str(image))
    if isinstance(image, Image.Image):
        return np.array(image.convert("RGB"), dtype=np.uint8)
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3:
        return image
    actual = f"{image.dtype} of shape {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
    raise PipelineError(f"image is {actual}; expected a path, a PIL image, or an array (H, W, 3) of uint8 RGB")
