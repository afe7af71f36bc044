"""What all commands share: failures as one message, and values that click does not know.

Exit status 0 done, 1 a failure with one clear message on stderr, 2 wrong usage, 130 interrupted.
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
BUG = (
    "this is a bug in tiekd-pipeline, not a mistake of yours: please report it with the command and the lines above. "
    "What was finished is kept"
)


class PlainCommand(click.Command):
    """A command whose failures are one message, and a traceback only with --debug."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.append(
            click.Option(
                ["--debug"],
                is_flag=True,
                expose_value=False,
                callback=lambda ctx, _, value: ctx.meta.update({DEBUG: value}),
                help="Show the traceback of a failure.",
            )
        )

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; a failure is a ClickException, which click prints and exits 1 on."""
        if ctx.meta[DEBUG]:
            return super().invoke(ctx)
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            raise click.UsageError(printable(error.message), error.ctx or ctx) from error
        except click.ClickException as error:
            raise click.ClickException(printable(error.message)) from error
        except KeyboardInterrupt as error:
            echo(f"\n{str(error) or 'interrupted; run the same command again to go on'}", err=True)
            if Aside.is_left_running():  # a network that never ends; the usual way out would wait, or abort in it
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(130)
            ctx.exit(130)
        except (click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:
            raise click.ClickException(printable(_message_of(error))) from error


def _message_of(error: Exception) -> str:
    """What to say of an error: what the user can correct, or else, with its traceback, that it is a bug."""
    if isinstance(error, PipelineError):
        return with_flags(str(error))
    if isinstance(error, OSError):
        return _of_os_error(error)
    if isinstance(error, MemoryError) or _is_out_of_memory(error):
        return "out of memory: use a smaller --batch-size or --crop"
    echo("".join(traceback.format_exception(error)), err=True)
    return BUG


def _is_out_of_memory(error: Exception) -> bool:
    from ..common.device import is_out_of_memory

    return is_out_of_memory(error)


def _of_os_error(error: OSError) -> str:
    where = f"{error.filename}: " if error.filename else ""
    hints = {
        errno.ENOSPC: "make room and run the same command again, which goes on from what is finished",
        errno.EDQUOT: "make room in your quota and run the same command again",
        errno.EROFS: "choose an --out that can be written",
        errno.EACCES: "choose a path that you may use, or mend its permissions",
        errno.ENAMETOOLONG: "choose a shorter name",
        errno.EIO: "the disk or the network behind it failed: see what the system logs say, and run the command again",
        errno.ENOSYS: "the file system cannot do this: choose an --out on another",
        errno.EOPNOTSUPP: "the file system cannot do this: choose an --out on another",
    }
    hint = hints.get(error.errno or 0)
    return f"{where}{error.strerror or error}" + (f"; {hint}" if hint else "")


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
    """A path. `~` is expanded, which a shell does not do after a colon or an equals sign."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Expand the home directory."""
        return Path(str(super().convert(value, param, ctx))).expanduser()


class StoreType(click.ParamType[str | Path]):
    """A store: a path, or a URL, which a path would make another of."""

    name = "path or URL"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str | Path:  # noqa: ARG002 - click's signature
        """Leave a URL as it is."""
        return value if "://" in str(value) else Path(value).expanduser()

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Complete paths."""
        return PATH.shell_complete(ctx, param, incomplete)


SIZE, RANGE, PATH, STORE = SizeType(), RangeType(), PathType(), StoreType()
option = partial(click.option, show_default=True)


def many(*options: Callable[[F], F]) -> Callable[[F], F]:
    """Several options as one decorator."""

    def decorate(function: F) -> F:
        for one in reversed(options):
            function = one(function)
        return function

    return decorate


SOURCE = many(
    option(
        "--source",
        "source_name",
        required=True,
        metavar="KIND:ROOT",
        help="Data set, such as kitti:ROOT; docs/sources.md lists them.",
    ),
    option("--split", required=True, help="Name of a split, or a list file in the data set's format."),
)


class NumbersType(click.ParamType[tuple[float, ...]]):
    """Numbers with commas between."""

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


INVALID = NumbersType()
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
OVERWRITE = option("--overwrite", is_flag=True, help="Overwrite existing output files.")
OUT = option("--out", type=PATH, required=True, help="Output path; must not exist.")
