"""The files of a Hugging Face model: a directory, or a repository of the hub at a fixed commit."""

from __future__ import annotations

import re
from pathlib import Path

import huggingface_hub

from ...common.fileio import canonical_json, read_json, sha256_bytes, sha256_file
from ...errors import PipelineError


def model_folder(argument: str, revision: str | None, *, code: bool) -> tuple[Path, str | None]:
    """Return (folder, commit) of a model: a directory (no commit), or a hub id, downloaded or cached.

    Downloads only configuration, safetensors and, with `code`, Python files. Raises PipelineError for anything else, a
    failed download, and a directory with a revision.
    """
    where = f"teacher transformers:{argument}"
    if Path(argument).is_dir():
        if revision is not None:
            raise PipelineError(
                f"{where}: `revision={revision!r}` applies to hub ids, and this is a directory: omit it"
            )
        return Path(argument), None
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", argument):
        raise PipelineError(
            f"{where}: no such directory, and not a hub id like depth-anything/Depth-Anything-V2-Small-hf"
        )
    patterns = ["*.json", "*.safetensors", *(["*.py"] if code else [])]
    try:
        folder = huggingface_hub.snapshot_download(argument, revision=revision, allow_patterns=patterns)
    except (OSError, ValueError, huggingface_hub.errors.HfHubHTTPError) as error:
        raise PipelineError(
            f"{where}: no such directory, and it cannot be downloaded ({str(error).splitlines()[0]}): check the id and "
            "`revision`, or download it elsewhere and give the directory"
        ) from error
    commit = Path(folder).name
    if not re.fullmatch(r"[0-9a-f]{40}", commit):
        raise PipelineError(f"{where}: unexpected folder {folder}, expected a folder of the hub cache named by commit")
    return Path(folder), commit


def weights_sha256(folder: Path) -> str:
    """Return the sha256 of the weights file, or of the names and sha256 of several.

    Raises PipelineError if there is no `.safetensors`.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickles = sorted(path.name for suffix in ("bin", "pt", "pth") for path in folder.glob(f"*.{suffix}"))
        problem = f"only {', '.join(pickles)}, a pickle that may run code" if pickles else "no weights"
        raise PipelineError(
            f"teacher transformers:{folder}: {problem}; expected model.safetensors: load the model in a safe "
            "environment and call save_pretrained(DIR)"
        )
    return sha256_file(files[0]) if len(files) == 1 else _digest(files, folder)


def config_sha256(folder: Path) -> str:
    """Return the sha256 of `config.json` without its origin and library version.

    Raises PipelineError if it is not JSON.
    """
    config = read_json(folder / "config.json", "configuration")
    if isinstance(config, dict):
        config = {key: value for key, value in config.items() if key not in ("_name_or_path", "transformers_version")}
    return sha256_bytes(canonical_json(config))


def code_sha256(folder: Path) -> str | None:
    """Return the sha256 of the names and sha256 of all Python files of a model; None if there are none.

    Raises PipelineError for a configuration that names code in another repository, which no hash or revision pins.
    """
    for path in sorted(folder.glob("*config.json")):
        config = read_json(path, "configuration")
        named = config.get("auto_map") if isinstance(config, dict) else None
        elsewhere = [name for name in _names(named) if "--" in name]
        if elsewhere:
            raise PipelineError(
                f"teacher transformers:{folder}: {path.name} uses code from another repository ({elsewhere[0]}) "
                "without a fixed revision: copy that code into the model's folder, and name it in auto_map without "
                "`--`"
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
