"""The files of a Hugging Face model: a directory, or a repository of the hub at a fixed commit."""

from __future__ import annotations

import re
from pathlib import Path

import huggingface_hub

from ..fileio import sha256_bytes, sha256_file


def model_folder(argument: str, revision: str | None, *, code: bool) -> tuple[Path, str | None]:
    """(folder, commit) of a model: a directory as it is, with no commit, or a hub id, downloaded or cached.

    Only configuration, safetensors and, with `code`, Python files are fetched. Raises ValueError for what is
    neither, cannot be had, or a directory with a revision.
    """
    where = f"teacher transformers:{argument}"
    if Path(argument).is_dir():
        if revision is not None:
            raise ValueError(f"{where}: --revision {revision!r} is for a hub id, and this is a directory: leave it out")
        return Path(argument), None
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", argument):
        raise ValueError(f"{where}: no such directory, and no hub id like depth-anything/Depth-Anything-V2-Small-hf")
    patterns = ["*.json", "*.safetensors", *(["*.py"] if code else [])]
    try:
        folder = huggingface_hub.snapshot_download(argument, revision=revision, allow_patterns=patterns)
    except (OSError, ValueError, huggingface_hub.errors.HfHubHTTPError) as error:
        raise ValueError(
            f"{where}: no such directory, and the hub does not give it ({str(error).splitlines()[0]}); check "
            "the id and --revision, or download it elsewhere and name the directory"
        ) from error
    return Path(folder), Path(folder).name


def weights_sha256(folder: Path) -> str:
    """The sha256 of the weights file, or of the list of names and sha256 of several.

    Raises ValueError where there is no `.safetensors`.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickles = sorted(path.name for suffix in ("bin", "pt", "pth") for path in folder.glob(f"*.{suffix}"))
        found = f"only {', '.join(pickles)}, which is pickle and may run code" if pickles else "no weights"
        raise ValueError(
            f"teacher transformers:{folder}: {found}; expected model.safetensors: load the model where you "
            "trust it and call save_pretrained(DIR)"
        )
    if len(files) == 1:
        return sha256_file(files[0])
    return sha256_bytes("".join(f"{path.name} {sha256_file(path)}\n" for path in files).encode())
