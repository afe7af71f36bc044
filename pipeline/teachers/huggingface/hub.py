"""The files of a Hugging Face model: a directory, or a repository of the hub at a fixed commit."""

from __future__ import annotations

import re
from pathlib import Path

import huggingface_hub

from ...common.fileio import canonical_json, read_json, sha256_bytes, sha256_file
from ...errors import PipelineError


def model_folder(argument: str, revision: str | None, *, code: bool) -> tuple[Path, str | None]:
    """(folder, commit) of a model: a directory as it is, with no commit, or a hub id, downloaded or cached.

    Only configuration, safetensors and, with `code`, Python files are fetched. Raises PipelineError for what is
    neither, cannot be had, or a directory with a revision.
    """
    where = f"teacher transformers:{argument}"
    if Path(argument).is_dir():
        if revision is not None:
            raise PipelineError(
                f"{where}: `revision={revision!r}` is for a hub id, and this is a directory: leave it out"
            )
        return Path(argument), None
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", argument):
        raise PipelineError(f"{where}: no such directory, and no hub id like depth-anything/Depth-Anything-V2-Small-hf")
    patterns = ["*.json", "*.safetensors", *(["*.py"] if code else [])]
    try:
        folder = huggingface_hub.snapshot_download(argument, revision=revision, allow_patterns=patterns)
    except (OSError, ValueError, huggingface_hub.errors.HfHubHTTPError) as error:
        raise PipelineError(
            f"{where}: no such directory, and the hub does not give it ({str(error).splitlines()[0]}); check "
            "the id and `revision`, or download it elsewhere and name the directory"
        ) from error
    commit = Path(folder).name
    if not re.fullmatch(r"[0-9a-f]{40}", commit):
        raise PipelineError(f"{where}: it lies in {folder}, expected a folder of the hub's cache, named by its commit")
    return Path(folder), commit


def weights_sha256(folder: Path) -> str:
    """The sha256 of the weights file, or of the list of names and sha256 of several.

    Raises PipelineError where there is no `.safetensors`.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickles = sorted(path.name for suffix in ("bin", "pt", "pth") for path in folder.glob(f"*.{suffix}"))
        found = f"only {', '.join(pickles)}, which is pickle and may run code" if pickles else "no weights"
        raise PipelineError(
            f"teacher transformers:{folder}: {found}; expected model.safetensors: load the model where you "
            "trust it and call save_pretrained(DIR)"
        )
    return sha256_file(files[0]) if len(files) == 1 else _digest(files, folder)


def config_sha256(folder: Path) -> str:
    """The sha256 of what `config.json` says of a network, such as its largest depth; not of where it came from.

    Raises PipelineError where it is not JSON.
    """
    config = read_json(folder / "config.json", "configuration")
    if isinstance(config, dict):
        config = {key: value for key, value in config.items() if key not in ("_name_or_path", "transformers_version")}
    return sha256_bytes(canonical_json(config))


def code_sha256(folder: Path) -> str | None:
    """The sha256 of the list of names and sha256 of the Python files beside the weights; None where there are none.

    Raises PipelineError where a configuration names code in another repository, which no digest or revision would pin.
    """
    for path in sorted(folder.glob("*config.json")):
        config = read_json(path, "configuration")
        named = config.get("auto_map") if isinstance(config, dict) else None
        elsewhere = [name for name in _names(named) if "--" in name]
        if elsewhere:
            raise PipelineError(
                f"teacher transformers:{folder}: {path.name} takes code from another repository ({elsewhere[0]}), of "
                "which no revision is known; copy that code beside the weights, and name it in auto_map without `--`"
            )
    files = sorted(folder.rglob("*.py"))
    return _digest(files, folder) if files else None


def _names(auto_map: object) -> list[str]:
    values = auto_map.values() if isinstance(auto_map, dict) else auto_map if isinstance(auto_map, list) else [auto_map]
    return [
        name for value in values for name in (value if isinstance(value, list) else [value]) if isinstance(name, str)
    ]


def _digest(files: list[Path], folder: Path) -> str:
    lines = (f"{path.relative_to(folder).as_posix()} {sha256_file(path)}\n" for path in files)
    return sha256_bytes("".join(lines).encode())
