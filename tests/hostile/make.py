"""Writes and lists hostile stores and inputs: `python tests/hostile/make.py OUT`.

Checksums and manifests are valid, so that the checks behind them are tested. Never open OUT with other programs: it
contains decompression bombs, links to outside, and named pipes for which most programs wait forever.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))

from hostile import archives, arrays, images, inputs, stores
from hostile.forge import Case, Forged, make_sound, make_sound_images

if TYPE_CHECKING:
    from collections.abc import Iterator

CASES: list[Case] = [*stores.CASES, *images.CASES, *inputs.CASES, *arrays.CASES, *archives.CASES]
KINDS = ("gaussian", "sparse", "dense", "affine")


def write_all(root: Path, words: str = "") -> Iterator[tuple[Case, Path]]:
    """Write each case whose name contains `words` into ROOT/NAME/case, next to a folder that must not change."""
    Forged.sound = {kind: make_sound(root / "sound", kind) for kind in KINDS}
    Forged.sound["images"] = make_sound_images(root / "sound")
    for case in CASES:
        if words in case.name:
            folder = root / case.name / "case"
            folder.mkdir(parents=True)
            (folder.parent / "outside").mkdir()
            (folder.parent / "outside" / "secret").write_text("secret")
            case.write(folder)
            yield case, folder


def main() -> None:
    """Write all cases."""
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    for case, folder in write_all(Path(sys.argv[1])):
        print(f"{folder}  opened by {', '.join(case.ways)}: expect {case.words!r}")  # noqa: T201 - a script for maintainers


if __name__ == "__main__":
    main()
