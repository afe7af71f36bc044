"""Shared by all commands: errors as one message, option types and common options.

Exit status: 0 success, 1 an error with one message on stderr, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import errno
import os
import re
import sys
import traceback
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ..common.fileio import printable
from ..common.parallel import Aside
from ..errors import PipelineError
from .console import echo
from .flags import with_flags

if TYPE_CHECKING:
    from collections.abc import Callable

    from click.shell_completion import CompletionItem

F = TypeVar("F", bound="Callable[..., Any]")
DEBUG = "pipeline.debug"
BUG = "this is a bug in tiekd-pipeline: please report it with the command and the lines above. Finished work is kept"


class PipelineCommand(click.Command):
    """A command that prints an error as one message, with a traceback only if --debug is given."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.append(
            click.Option(
                ["--debug"],
                is_flag=True,
                expose_value=False,
                callback=lambda ctx, _, value: ctx.meta.update({DEBUG: value}),
                help="Show the traceback of an error.",
            )
        )

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command. Raises ClickException, which click prints before it exits with status 1."""
        _limit_spinning()
        if ctx.meta[DEBUG]:
            return super().invoke(ctx)
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            raise click.UsageError(printable(error.message), error.ctx or ctx) from error
        except click.ClickException as error:
            raise click.ClickException(printable(error.message)) from error
        except KeyboardInterrupt as error:
            echo(f"\n{str(error) or 'interrupted; run the same command again to continue'}", err=True)
            if Aside.is_left_running():  # a normal exit would wait for the call, or crash in it
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(130)
            ctx.exit(130)
        except (click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:
            raise click.ClickException(printable(_message_of(error))) from error


def _limit_spinning() -> None:
    """Let the waiting threads of GNU OpenMP, part of torch's CPU builds, sleep early, unless the user chose.

    With one other busy process on two cores, training took 6.4 times as long with the default and 2.7 times with this;
    the results are the same. Has no effect once torch is imported.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def _message_of(error: Exception) -> str:
    """Return the message for an error; prints the traceback if the error is a bug."""
    if isinstance(error, PipelineError):
        return with_flags(str(error))
    if isinstance(error, OSError):
        return _os_error_message(error)
    if isinstance(error, MemoryError) or _is_out_of_memory(error):
        return "out of memory: use a smaller --batch-size or --crop"
    echo("".join(traceback.format_exception(error)), err=True)
    return BUG


def _is_out_of_memory(error: Exception) -> bool:
    from ..common.device import is_out_of_memory

    return is_out_of_memory(error)


def _os_error_message(error: OSError) -> str:
    path = f"{error.filename}: " if error.filename else ""
    hints = {
        errno.ENOSPC: "free space and run the same command again to continue",
        errno.EDQUOT: "free space in your quota and run the same command again to continue",
        errno.EROFS: "choose an --out that can be written",
        errno.EACCES: "choose another path, or change its permissions",
        errno.ENAMETOOLONG: "choose a shorter name",
        errno.EIO: "the disk or the network failed: check the system log, then run the same command again",
        errno.ENOSYS: "the file system does not support this: choose an --out on another one",
        errno.EOPNOTSUPP: "the file system does not support this: choose an --out on another one",
    }
    hint = hints.get(error.errno or 0)
    return f"{path}{error.strerror or error}" + (f"; {hint}" if hint else "")


class SizeType(click.ParamType[tuple[int, int]]):
    """Height and width in pixels, written HxW."""

    name = "HxW"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        """Parse `128x416`."""
        if isinstance(value, tuple):
            return value
        match = re.fullmatch(r"(\d{1,6})x(\d{1,6})", str(value))
        if match is None or not all(int(part) for part in match.groups()):
            self.fail(f"{value!r}: expected height x width in pixels, such as 128x416", param, ctx)
        return int(match[1]), int(match[2])


class RangeType(click.ParamType[tuple[float, float]]):
    """Two depths in metres, written LO:HI."""

    name = "LO:HI"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, float]:
        """Parse `0.1:300`."""
        if isinstance(value, tuple):
            return value
        try:
            low, high = (float(part) for part in str(value).split(":"))
        except ValueError:
            self.fail(f"{value!r}: expected two depths in metres, such as 0.1:300", param, ctx)
        return low, high


class PathType(click.Path):
    """A path. Expands `~`, which a shell leaves unchanged after a colon or an equals sign."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Expand the home directory."""
        return Path(str(super().convert(value, param, ctx))).expanduser()


class StoreType(click.ParamType[str | Path]):
    """A store: a path or a URL."""

    name = "path or URL"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str | Path:  # noqa: ARG002 - click's signature
        """Convert to a path, except for a URL, which `Path` would change."""
        return value if "://" in str(value) else Path(value).expanduser()

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Complete paths."""
        return PATH.shell_complete(ctx, param, incomplete)


SIZE, RANGE, PATH, STORE = SizeType(), RangeType(), PathType(), StoreType()
option = partial(click.option, show_default=True)


def many(*options: Callable[[F], F]) -> Callable[[F], F]:
    """Combine several options into one decorator."""

    def decorate(function: F) -> F:
        for add_option in reversed(options):
            function = add_option(function)
        return function

    return decorate


def source_options(*, required: bool) -> Callable[[F], F]:
    """Return the options of a data set on disk."""
    return many(
        option(
            "--source",
            "source_name",
            required=required,
            metavar="KIND:ROOT",
            help="Data set, such as kitti:ROOT; docs/sources.md lists them.",
        ),
        option("--split", required=required, help="Name of a split, or a list file in the data set's format."),
    )


SOURCE = source_options(required=True)


class NumbersType(click.ParamType[tuple[float, ...]]):
    """Comma-separated numbers."""

    name = "VALUE[,VALUE]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        """Parse `65535,-1`."""
        from ..sources.readers.arrays import parse_invalid

        if isinstance(value, tuple):
            return value
        try:
            return parse_invalid(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


class NamesType(click.ParamType[tuple[str, ...]]):
    """Comma-separated names."""

    name = "NAME[,NAME]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        """Parse `confidence,sky`."""
        if isinstance(value, tuple):
            return value
        names = tuple(str(value).split(","))
        if "" in names or len(set(names)) < len(names):
            self.fail(f"{value!r}: expected different names, separated by commas", param, ctx)
        return names


INVALID, NAMES = NumbersType(), NamesType()
TRUTH = many(
    option("--truth", help="Ground truth to use, if a source has several: dense or sparse, filled or raw ..."),
    option("--invalid", type=INVALID, help="Numbers in ground-truth files that mean no value, such as 65535."),
)
DEVICE = option("--device", default="auto", help="auto, cpu, cuda or cuda:N.")
STORE_CACHE = option(
    "--store-cache",
    type=PATH,
    help="Cache folder for a store read by URL; TIEKD_STORE_CACHE or the user's cache folder if omitted.",
)
READOUT = option(
    "--readout",
    help="How depth is read from the map: mean, geometric, median or absrel. If omitted, as in training.",
)
REQUIRE_LICENCE = option(
    "--require-licence",
    multiple=True,
    metavar="PATTERN",
    help="Refuse unless the licences of the teacher's output and of the images match a PATTERN, such as apache-*; "
    "repeat it to allow several.",
)
OVERWRITE = option("--overwrite", is_flag=True, help="Overwrite existing output files.")
OUT = option("--out", type=PATH, required=True, help="Output path; must not exist.")
