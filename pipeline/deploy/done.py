"""Read the journal of an unfinished folder: the images that an earlier call finished."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..common.fileio import open_regular, parse_json
from ..errors import PipelineError

if TYPE_CHECKING:
    from pathlib import Path


def read_done(path: Path) -> dict[str, dict[str, Any]]:
    """Id -> row of each finished image. A truncated last line is ignored.

    Raises PipelineError for a file that `pipeline predict` did not write, because files of stale rows are removed.
    """
    if not path.exists():
        return {}
    try:
        with open_regular(path) as file:
            lines = file.read().split(b"\n")[:-1]
        return dict(_row(line) for line in lines)
    except (KeyError, TypeError, AttributeError, ValueError, OSError) as error:
        raise PipelineError(
            f"{path}: {error}; expected a journal from `pipeline predict`; remove {path.parent}"
        ) from error


def _row(line: bytes) -> tuple[str, dict[str, Any]]:
    row = parse_json(line)
    image_id = row["id"]
    if image_id.startswith("/") or ".." in image_id.split("/"):
        raise PipelineError(f"id {image_id!r} is outside the folder")
    return image_id, {"id": image_id, "sha256": str(row["sha256"]), "beyond": int(row["beyond"])}
