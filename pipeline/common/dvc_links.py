"""Links made by DVC: with `cache.type symlink` each file that it tracks is a link into its cache.

Such a link leads out of the store or data set that it lies in, as a planted one would. It is told apart by where it
leads: below a cache of the DVC repository around it, to a name that is a hash.
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
"""A file in a cache of DVC 3, or of DVC 2."""
CONFIG_LIMIT_BYTES = 2**16


def cached_target(link: str, root: str) -> str | None:
    """The file that a link below `root` leads to, if it lies in the cache of the DVC repository of `root`."""
    target = os.path.realpath(link)
    for cache in _caches(str(Path(root).absolute())):
        if target.startswith(f"{cache}/") and CACHED.fullmatch(target[len(cache) + 1 :]):
            return target
    return None


@lru_cache(maxsize=64)
def _caches(root: str) -> tuple[str, ...]:
    """Real paths of the caches of the DVC repositories that hold `root`, as it is named and where it lies."""
    found: dict[str, None] = {}
    for place in dict.fromkeys([root, os.path.realpath(root)]):
        repository = next((one for one in Path(place).parents if (one / ".dvc").is_dir()), None)
        if repository is None:
            continue
        folders = [repository / ".dvc" / "cache"]
        configs = [repository / ".dvc" / "config", repository / ".dvc" / "config.local", *_of_user()]
        folders += [one for config in configs if (one := _cache_dir(config)) is not None]
        found |= dict.fromkeys(os.path.realpath(one) for one in folders)
    return tuple(found)


def _of_user() -> list[Path]:
    """Configurations of this user and this machine, where DVC looks for them."""
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
    """`cache.dir` of a configuration; a relative one begins at the folder of the file. None where there is none."""
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    try:
        with open_regular(config) as file:
            parser.read_string(file.read(CONFIG_LIMIT_BYTES).decode())
        value = parser["cache"]["dir"].strip().strip("'\"")
        return config.parent / Path(value).expanduser() if value else None
    except (OSError, UnicodeDecodeError, configparser.Error, KeyError, RuntimeError):
        return None
