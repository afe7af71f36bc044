"""Links made by DVC: with `cache.type symlink` each tracked file is a link into the DVC cache.

Such a link points outside of its store or data set, as a planted link would. It is accepted only if its target is in a
cache of the surrounding DVC repository and has a hash as its name.
"""

from __future__ import annotations

import configparser
import os
import re
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from .fileio import open_regular

CACHED = re.compile(r"(files/md5/)?[0-9a-f]{2}/[0-9a-f]{30}")
"""Path of a file in a cache of DVC 3 or DVC 2."""
CONFIG_LIMIT_BYTES = 2**16


def cached_target(link: str, root: str) -> str | None:
    """Return the target of a link below `root` if it is in the cache of the DVC repository of `root`."""
    target = os.path.realpath(link)
    for cache in _caches(str(Path(root).absolute())):
        if target.startswith(f"{cache}/") and CACHED.fullmatch(target[len(cache) + 1 :]):
            return target
    return None


@lru_cache(maxsize=64)
def _caches(root: str) -> tuple[str, ...]:
    """Return real paths of the caches of the DVC repositories around `root`, as given and with links resolved."""
    caches: dict[str, None] = {}
    for path in dict.fromkeys([root, os.path.realpath(root)]):
        repository = next((parent for parent in Path(path).parents if (parent / ".dvc").is_dir()), None)
        if repository is None:
            continue
        folders = [repository / ".dvc" / "cache"]
        configs = [repository / ".dvc" / "config", repository / ".dvc" / "config.local", *_user_configs()]
        folders += [folder for config in configs if (folder := _cache_dir(config)) is not None]
        caches |= dict.fromkeys(os.path.realpath(folder) for folder in folders)
    return tuple(caches)


def _user_configs() -> list[Path]:
    """Return the paths of DVC's configuration of this user and this machine."""
    folders = [Path(os.environ.get("DVC_SYSTEM_CONFIG_DIR") or "/etc/xdg/dvc")]
    if "DVC_GLOBAL_CONFIG_DIR" in os.environ:
        folders.append(Path(os.environ["DVC_GLOBAL_CONFIG_DIR"]))
    elif "XDG_CONFIG_HOME" in os.environ:
        folders.append(Path(os.environ["XDG_CONFIG_HOME"]) / "dvc")
    else:
        with suppress(RuntimeError):  # no home directory
            folders.append(Path.home() / ".config" / "dvc")
    return [folder / "config" for folder in folders]


def _cache_dir(config: Path) -> Path | None:
    """Return `cache.dir` of a configuration, relative to the folder of the file, or None."""
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    try:
        with open_regular(config) as file:
            parser.read_string(file.read(CONFIG_LIMIT_BYTES).decode())
        value = parser["cache"]["dir"].strip().strip("'\"")
        return config.parent / Path(value).expanduser() if value else None
    except (OSError, UnicodeDecodeError, configparser.Error, KeyError, RuntimeError):
        return None
