"""Write tar shards in WebDataset's layout."""

from __future__ import annotations

import io
import tarfile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

BLOCK = 512


def write_shard(
    path: Path, members: Mapping[str, bytes] | list[tuple[str, bytes]], tar_format: int = tarfile.USTAR_FORMAT
) -> Path:
    """Write members, by name, to a tar file with its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tar_format) as archive:
        for name, data in dict(members).items() if not isinstance(members, list) else members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def shards_of_folder(folder: Path, root: Path, per_shard: int = 3, depth: str = "depth") -> Path:
    """Pack a `folder` data set into shards `part-000.tar`, ..., sorted by id, with its dataset.json."""
    images = sorted(path for path in (folder / "rgb").rglob("*") if path.is_file())
    for start in range(0, len(images), per_shard):
        members = {}
        for image in images[start : start + per_shard]:
            key = image.relative_to(folder / "rgb").with_suffix("").as_posix()
            members[f"{key}{image.suffix}"] = image.read_bytes()
            members[f"{key}.json"] = b"{}"
            for truth in (folder / depth).glob(f"{key}.*"):
                members[f"{key}.depth{truth.suffix}"] = truth.read_bytes()
        write_shard(root / f"part-{start // per_shard:03d}.tar", members)
    if (folder / "dataset.json").is_file():
        (root / "dataset.json").write_bytes((folder / "dataset.json").read_bytes())
    return root


def header(name: str = "a.png", size: int = 1, kind: bytes = tarfile.REGTYPE, link: str = "") -> bytes:
    """Return the header block of a member."""
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = size, kind, link
    return info.tobuf(tarfile.USTAR_FORMAT)


def with_checksum(block: bytes) -> bytes:
    """Return a header block whose checksum fits its other bytes."""
    blank = block[:148] + b" " * 8 + block[156:]
    return blank[:148] + f"{sum(blank):06o}\0 ".encode() + blank[156:]
