"""Names of tar shards: which ones a data set has, and which ones a split selects.

A pattern is a path below the root: `*` matches any text without a slash, `{000..099}` counts, `{a,b}` lists.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ...common.fileio import has_control, printable
from ...errors import PipelineError
from ..splits import checked_path, rows
from .folder_files import files_below

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

TAR = ".tar"
COMPRESSED_SUFFIXES = (".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst", ".tgz")
BRACES = re.compile(r"\{([^{}]*)\}")
COUNTED = re.compile(r"(\d{1,9})\.\.(\d{1,9})")
MAX_SHARDS = 1_000_000
"""A pattern of more names is a mistake."""


class Shards:
    """The tar files below a root, by path relative to it.

    Args:
        root: folder of the shards.
        pattern: the shards to use; None uses all.

    Raises PipelineError if there are none, for an invalid pattern, and for a link outside of the root.
    """

    def __init__(self, root: Path, pattern: str | None = None) -> None:
        self.root = root
        self.where = f"source wds:{root}"
        self.names: list[str] = []
        """Sorted."""
        self._compressed: list[str] = []
        for name in sorted(files_below(root, root)):
            if name.endswith(TAR) and not has_control(name):
                self.names.append(name)
            elif name.endswith(COMPRESSED_SUFFIXES):
                self._compressed.append(name)
        if pattern is not None:
            self.names, self._compressed = self.of_pattern(pattern, self.where), []
        if not self.names:
            self._refuse_compressed(self._compressed)
            raise PipelineError(f"{self.where}: no {TAR} file; expected shards in WebDataset's layout")

    def select(self, split: str) -> list[str]:
        """Return the shards of a split.

        The split is `all`; a pattern; or NAME for NAME.tar, NAME-000.tar (with any number and what follows it) and the
        shards in the folder NAME. Raises PipelineError if it selects none, or a compressed one.
        """
        if split == "all":
            self._refuse_compressed(self._compressed)
            return self.names
        if split.endswith(TAR) or "*" in split or "{" in split:
            return self.of_pattern(split, f"split {split!r}")

        # A digit, so that `train` does not select train-extra-000.tar
        belongs = re.compile(rf"{re.escape(split)}(-\d[^/]*|/.*)?\.t[^/]*").fullmatch
        self._refuse_compressed(filter(belongs, self._compressed))
        selected = list(filter(belongs, self.names))
        if not selected:
            listed = ", ".join(map(printable, self.names[:5])) + (" ..." if len(self.names) > 5 else "")
            raise PipelineError(
                f"split {split!r}: expected `all`, NAME of shards NAME{TAR}, NAME-000{TAR} ... or NAME/*{TAR}, a "
                f"pattern such as train-{{000..099}}{TAR}, or a list of shards; {self.root} has {listed}"
            )
        return selected

    def of_list(self, path: Path) -> list[str]:
        """Return the shards of a list file: a path or pattern per line. Raises PipelineError that names the line."""
        selected: dict[str, int] = {}
        for line, row in rows(path):
            if row.startswith("#"):
                continue
            where = f"split {path} line {line}"
            for name in self.of_pattern(row, where):
                if selected.setdefault(name, line) != line:
                    raise PipelineError(f"{where}: duplicate shard {name!r} (first on line {selected[name]})")
        if not selected:
            raise PipelineError(f"split {path}: no rows; expected one shard per line, such as train-0000{TAR}")
        return list(selected)

    def of_pattern(self, pattern: str, where: str) -> list[str]:
        """Return the shards of a pattern, in the order of its braces.

        Raises PipelineError, beginning with `where`, if a name in it is missing, and for a pattern outside of the root.
        """
        if not pattern.endswith((TAR, "*", *COMPRESSED_SUFFIXES)):
            raise PipelineError(f"{where}: {pattern!r}, expected a shard or a pattern that ends in {TAR}")
        existing: Mapping[str, None] = dict.fromkeys(self.names)
        selected: dict[str, None] = {}
        for name in expanded(checked_path(pattern, where), where):
            if "*" in name:
                matches = re.compile("[^/]*".join(map(re.escape, name.split("*")))).fullmatch
                self._refuse_compressed(filter(matches, self._compressed))
                matching = list(filter(matches, self.names))
            else:
                self._refuse_compressed([name] if name.endswith(COMPRESSED_SUFFIXES) else [])
                matching = [name] if name in existing else []
            if not matching:
                raise PipelineError(f"{where}: no shard {name!r} below {self.root}; copy it, or correct the pattern")
            selected |= dict.fromkeys(matching)
        return list(selected)

    def _refuse_compressed(self, names: Iterator[str] | list[str]) -> None:
        for name in names:
            raise PipelineError(
                f"{self.where}: shard {printable(name)} is compressed, so single images cannot be read from it; "
                "decompress it once (gzip -d, zstd -d), JPEG and PNG hardly shrink"
            )


def expanded(pattern: str, where: str) -> list[str]:
    """Expand the braces of a pattern: `a-{08..10}.tar` to three names, `{a,b}` to two.

    Raises PipelineError, beginning with `where`, for braces that are neither, and for too many names.
    """
    names = [""]
    at = 0
    for match in BRACES.finditer(pattern):
        counted = COUNTED.fullmatch(match[1])
        if counted:
            first, last = int(counted[1]), int(counted[2])
            many = range(first, last + 1)
            options = [] if len(many) > MAX_SHARDS else [f"{number:0{len(counted[1])}d}" for number in many]
        else:
            options = match[1].split(",") if "," in match[1] else []
        if not options or len(names) * len(options) > MAX_SHARDS:
            raise PipelineError(
                f"{where}: {match[0]} in {pattern!r}, expected a range such as {{000..099}} or a list such as {{a,b}}, "
                f"and at most {MAX_SHARDS} names"
            )
        names = [f"{name}{pattern[at : match.start()]}{option}" for name in names for option in options]
        at = match.end()
    if {"{", "}"} & set(BRACES.sub("", pattern)):
        raise PipelineError(f"{where}: {pattern!r} has a brace without its counterpart; expected {{000..099}}")
    return [name + pattern[at:] for name in names]
