"""Tar shards in WebDataset's layout: ROOT/train-000000.tar with the members KEY.jpg and optionally KEY.depth.png.

A key is a member's path up to the first dot of its file name, and the id of the sample. Images end in .jpg, .jpeg, .png
or .webp, ground truth in .depth.png (or .npy, .npz, .pfm, .exr); other members are left out. Nothing is extracted.

Metres are as in `folder`: value * `metres_per_unit` of ROOT/dataset.json.

Shards on a server are not supported: copy them, or mount them.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import PipelineError
from ..base import Declared, Defaults, Sample, SourceKind
from ..readers.arrays import LIMIT_BYTES, decode_array, invalid_numbers, metres
from ..readers.images import decode_image_with_sha256, turned_as_data
from ..readers.tar_data import TarData
from ..splits import find_list
from .description import FACTS, metres_per_unit, read_facts
from .folder import MILLIMETRE
from .wds_rows import shard_rows
from .wds_shards import TAR, Shards
from .wds_table import WdsTable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

KEYS = ("invalid", "metres_per_unit")
"""Keys of dataset.json."""
PLACE = re.compile(r"(?P<shard>.+?\.tar)\[(?P<begin>\d+):(?P<end>\d+)\]/.*", re.DOTALL)
"""Path of a member in a `Sample`, below the root, with its bytes: `train-000.tar[1536:22016]/a/0001.jpg`."""


class WdsSource(Declared):
    """Tar shards below a folder, or those of a pattern such as `data/train-{000..099}.tar`.

    `truth` is the extension of ground truth, before its suffix. Raises PipelineError if there is no shard, or
    dataset.json is invalid.
    """

    name = "wds"
    defaults = Defaults()

    def __init__(self, root: Path, truth: str | None = None) -> None:
        pattern = None if root.is_dir() else root.name
        self.root = root if pattern is None else root.parent
        self.truth = truth or "depth"
        if not re.fullmatch(r"[\w-]+", self.truth):
            raise PipelineError(
                f"source wds:{root}: truth {truth!r}, expected the extension of depth files before their suffix, such "
                "as depth for KEY.depth.png"
            )
        self.shards = Shards(self.root, pattern)
        facts = read_facts(self.root, KEYS)
        self.invalid = invalid_numbers(facts.get("invalid"), f"data set description {self.root / FACTS}")
        self.metres_per_unit = metres_per_unit(self.root, facts)
        self._data = TarData()

    def samples(self, split: str) -> WdsTable:
        """Return the images of a split, shard by shard in the order of each.

        A split is ROOT/NAME.txt or a list file with one shard or pattern per line, else as `Shards.select`. The headers
        of each shard are read once, and kept in an index in the user's cache folder.

        Raises PipelineError for a split without shards or without images, a damaged or compressed shard, a key that is
        in two shards, and as `wds_rows.rows_of`.
        """
        named = re.fullmatch(r"[\w.-]+", split) and (self.root / f"{split}.txt").is_file()
        listed = named or split.endswith(".txt") or (Path(split).is_file() and not split.endswith(TAR))
        shards = self.shards.of_list(find_list(split, self.root)) if listed else self.shards.select(split)
        paths = [f"{self.root}/{shard}" for shard in shards]
        rows = shard_rows(paths, self.truth)
        self._data.stamps |= {path: of_shard.stamp for path, of_shard in zip(paths, rows, strict=True)}
        table = WdsTable(self.root, shards, rows, self.truth)
        if not len(table):
            raise PipelineError(
                f"split {split!r} of source wds:{self.root}: no image in {len(shards)} shards; expected members "
                "KEY.jpg (or .jpeg, .png, .webp), where KEY has no dot"
            )
        return table

    def read_image(self, sample: Sample) -> tuple[NDArray[np.uint8], str]:
        """See `Source.read_image`. Raises PipelineError also for a shard that was changed."""
        return decode_image_with_sha256(sample.image_path, self._read(sample.image_path, "image"))

    def read_truth_m(self, sample: Sample) -> NDArray[np.float32] | None:
        """Return ground truth (H, W) float32 metres, NaN without a measurement; None if the row has none.

        Raises PipelineError as `arrays.read_array`, and for a shard that was changed.
        """
        if sample.truth_path is None:
            return None
        suffix = sample.truth_path[sample.truth_path.rindex(".") :]
        values = decode_array(sample.truth_path, suffix, self._read(sample.truth_path, "depth"), "depth")
        default_m = MILLIMETRE if values.dtype.kind == "u" else 1.0
        unit_m = default_m if self.metres_per_unit is None else self.metres_per_unit
        truth_m = metres(values, unit_m, self.invalid)
        image = self._read(sample.image_path, "image")
        return turned_as_data(sample.image_path, image, truth_m, sample.truth_path)

    def _read(self, path: str, what: str) -> bytes:
        place = PLACE.fullmatch(path.removeprefix(f"{self.root}/"))
        if place is None:
            raise PipelineError(f"{what} {path}: expected a member of a shard of this source, as `samples` returns it")
        shard = f"{self.root}/{place['shard']}"
        begin, end = int(place["begin"]), int(place["end"])
        if what == "depth":
            return self._data.read(shard, begin, end, f"{what} {path}", LIMIT_BYTES)
        return self._data.read(shard, begin, end, f"{what} {path}")


SOURCE = SourceKind(
    WdsSource,
    data_set="your own tar shards, in WebDataset's layout",
    layout=(
        "*.tar, also in folders, with members KEY.jpg (or .jpeg, .png, .webp), optional KEY.depth.png (or .npy, .npz, "
        ".pfm, .exr); optional NAME.txt, dataset.json; ROOT may also be a pattern, such as DIR/train-{000..099}.tar"
    ),
    splits=(
        "`all`, NAME of NAME.txt, a list file with one shard or pattern per line, NAME of the shards NAME.tar, "
        "NAME-000.tar ... and NAME/*.tar, or a pattern such as train-{000..099}.tar"
    ),
    truth=(
        "`truth` is the extension before the suffix (default depth); metres = value * metres_per_unit of dataset.json "
        "(default 0.001 for 16 bits, 1 for float); 0, NaN, infinity and its `invalid` = none"
    ),
    licence="yours",
    defaults=Defaults(),
    takes_files=True,
)
