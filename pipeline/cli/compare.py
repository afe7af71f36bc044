"""`pipeline compare`: test whether students differ by more than chance."""

from __future__ import annotations

from dataclasses import asdict
from glob import glob
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import PipelineError
from .console import echo, one_line, table
from .evaluate import METRIC_HEADS
from .options import OVERWRITE, PATH, PipelineCommand, option

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..evaluation.comparison import Comparable
    from ..evaluation.significance import Difference, Mean

    Compared = tuple[str, str, Difference, float | None]


class GroupType(click.ParamType[tuple[str, list[Path]]]):
    """A student and its evaluations, written [NAME=]FILE[,FILE...]."""

    name = "[NAME=]FILE[,FILE...]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, list[Path]]:
        """Parse `tiekd=m/tiekd-0.json,m/tiekd-1.json`; a file may have `=` or `,` in its name."""
        if isinstance(value, tuple):
            return value
        text = str(value)
        if Path(text).is_file():
            return Path(text).stem, [Path(text)]
        name, equals, files = text.partition("=")
        if not equals or "/" in name:
            name, files = "", text
        paths = [path for part in files.split(",") for path in self._files(part, param, ctx)]
        if not name and len(paths) > 1:
            self.fail(
                f"{text!r}: several files are the seeds of one student: name it, such as tiekd={text}", param, ctx
            )
        return name or paths[0].stem, paths

    def _files(self, part: str, param: click.Parameter | None, ctx: click.Context | None) -> list[Path]:
        """Return the file, or the matches of a pattern: a shell does not expand `name=m/*.json`."""
        if not part:
            self.fail(f"{part!r}: expected FILE.json of an evaluation, after each comma too", param, ctx)
        if Path(part).is_file() or not set("*?[") & set(part):
            return [Path(part)]
        matched = sorted(path for path in glob(part) if path.endswith(".json"))  # noqa: PTH207 - part may be absolute
        if not matched:
            self.fail(f"{part!r}: no JSON file matches", param, ctx)
        return [Path(path) for path in matched]


@click.command(cls=PipelineCommand)
@click.argument("groups", metavar="[NAME=]FILE[,FILE...]...", nargs=-1, required=True, type=GroupType())
@option("--metric", type=click.Choice(list(METRIC_HEADS)), default="abs_rel", help="Metric to compare.")
@option("--block", type=click.IntRange(min=1), default=1, help="Consecutive video frames to treat as one observation.")
@option("--all-pairs", is_flag=True, help="Compare every pair, instead of each with the first.")
@option("--confidence", type=click.FloatRange(0.5, 0.999), default=0.95, help="Confidence level of the intervals.")
@option(
    "--resamples",
    type=click.IntRange(min=1000, max=1_000_000),
    default=10_000,
    help="Number of random draws for the intervals.",
)
@option("--seed", default=0, help="Seed of the random draws.")
@option("--any-coverage", is_flag=True, help="Accept results that cover different parts of the ground truth.")
@option("--out", type=PATH, help="Also write all figures as JSON.")
@OVERWRITE
def compare(
    groups: tuple[tuple[str, list[Path]], ...],
    metric: str,
    block: int,
    all_pairs: bool,
    confidence: float,
    resamples: int,
    seed: int,
    any_coverage: bool,
    out: Path | None,
    overwrite: bool,
) -> None:
    """Compare results of evaluate-student or evaluate-teacher: do students differ by more than chance?

    \b
    Example: pipeline compare tiekd=m/tiekd-0.json,m/tiekd-1.json,m/tiekd-2.json ssim='m/ssim-*.json' \\
               m/teacher.json --metric abs_rel

    Several files of one NAME are seeds of one student. Each student is compared with the first, frame by frame: the
    difference, its interval over frames and seeds, and a p value corrected for the number of comparisons (Holm).
    """
    from ..depth.metrics import LOWER_IS_BETTER
    from ..evaluation.comparison import join
    from ..evaluation.significance import mean_interval

    settings: dict[str, Any] = {"draws": resamples, "seed": seed, "confidence": confidence, "block": block}
    lower = metric in LOWER_IS_BETTER
    students = join(groups, metric, any_coverage=any_coverage)
    if out and out.resolve() in {path.resolve() for group in students.groups for path in group.paths}:
        raise PipelineError(f"--out {out} is one of the evaluations: choose another file")
    means = [mean_interval(group.values, **settings) for group in students.groups]
    compared = _compared(students, all_pairs=all_pairs, lower_is_better=lower, **settings)
    if out:
        options = {"resamples": resamples, "seed": seed, "confidence": confidence, "block": block}
        _write(out, overwrite, students, means, compared, {"metric": metric, "lower_is_better": lower, **options})
    echo(_head(students, metric, block, lower=lower))
    echo(_means(students, means, metric, confidence))
    if compared:
        echo("\n" + _differences(compared, confidence))
    for note in _notes(students, means, block):
        echo(f"\n{one_line(note)}")


def _compared(students: Comparable, *, all_pairs: bool, **settings: Any) -> list[Compared]:
    """Compare each student with the first, or every pair; p values are corrected for the number of comparisons."""
    from ..evaluation.multiple_testing import corrected_p_values
    from ..evaluation.significance import paired_difference

    groups = students.groups
    pairs = list(combinations(groups, 2)) if all_pairs else [(group, groups[0]) for group in groups[1:]]
    differences = [paired_difference(first.values, second.values, **settings) for first, second in pairs]
    return [
        (first.name, second.name, difference, p_value)
        for (first, second), difference, p_value in zip(
            pairs, differences, corrected_p_values(differences), strict=True
        )
    ]


def _head(students: Comparable, metric: str, block: int, *, lower: bool) -> str:
    terms = {key: value for key, value in students.protocol.items() if value is not None and key != "flip_average"}
    protocol = ", ".join(f"{key} {value}" for key, value in terms.items())
    in_blocks = f" in blocks of {block}" if block > 1 else ""
    better = "lower" if lower else "higher"
    source = one_line(students.source)
    return (
        f"{METRIC_HEADS[metric]}, {better} is better; {len(students.ids)} frames of {source}{in_blocks}\n"
        f"protocol {one_line(protocol)}\n"
    )


def _means(students: Comparable, means: Sequence[Mean], metric: str, confidence: float) -> str:
    from ..evaluation.coverage import coverage_text

    rows = []
    for group, mean in zip(students.groups, means, strict=True):
        interval = "" if mean.low is None else f"{mean.low:.4f} to {mean.high:.4f}"
        spread = "" if mean.seeds_sd is None else f"{mean.seeds_sd:.4f}"
        rows.append([group.name, str(mean.seeds), f"{mean.mean:.4f}", interval, spread, coverage_text(group.coverage)])
    interval = f"{100 * confidence:.4g} % interval"
    return _table_of_filled(["", "seeds", METRIC_HEADS[metric], interval, "sd of seeds", "coverage"], rows)


def _differences(compared: Sequence[Compared], confidence: float) -> str:
    rows = []
    for first, second, result, p_holm in compared:
        relative = "" if result.relative_percent is None else f"{result.relative_percent:+.1f} %"
        row = [f"{first} - {second}", f"{result.difference:+.4f}", "", relative, "", "", "", ""]
        if result.low is not None:
            row[2] = f"{result.low:+.4f} to {result.high:+.4f}"
            row[5:] = [f"{result.share_better:.1%}", _p(result.p_value), _p(p_holm)]
        if result.relative_low_percent is not None:
            row[4] = f"{result.relative_low_percent:+.1f} to {result.relative_high_percent:+.1f} %"
        rows.append(row)
    interval = f"{100 * confidence:.4g} % interval"
    head = ["", "difference", interval, "relative", "interval", "better in", "p", "p (Holm)"]
    return _table_of_filled(head, rows)


def _table_of_filled(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format a table without the columns that are empty in every row."""
    filled = [column for column, name in enumerate(head) if not name or any(row[column] for row in rows)]
    return table([head[column] for column in filled], [[row[column] for column in filled] for row in rows])


def _p(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.3f}" if value >= 0.001 else "<0.001"


def _notes(students: Comparable, means: Sequence[Mean], block: int) -> list[str]:
    """Return notes on the limits of the comparison."""
    from ..evaluation.significance import enough, too_few

    notes = [] if enough(len(students.ids), block) else [too_few(len(students.ids), block)]
    single = [group.name for group, mean in zip(students.groups, means, strict=True) if mean.seeds == 1]
    if single and not notes:
        notes.append(
            f"One seed of {', '.join(single)}: intervals cover the choice of frames, not the variation between seeds."
        )
    if students.left_out:
        notes.append(f"{students.left_out} frames are left out: a student has no prediction for them.")
    unknown = [group.name for group in students.groups if group.coverage is None]
    if unknown:
        notes.append(f"Coverage unknown of {', '.join(unknown)}: written by an older version; evaluate again.")
    if len(set(students.flip_averages.values())) > 1:
        averaged = [name for name, flip in students.flip_averages.items() if flip]
        notes.append(f"Averaged with the mirrored image: {', '.join(averaged)}; not the others.")
    return notes


def _write(
    out: Path,
    overwrite: bool,
    students: Comparable,
    means: Sequence[Mean],
    compared: Sequence[Compared],
    settings: dict[str, Any],
) -> None:
    """Write all figures as JSON; undefined ones are null."""
    from ..common.fileio import pretty_json, write_durably
    from ..common.outputs import refuse_existing

    value = {
        **settings,
        "protocol": students.protocol,
        "source": students.source,
        "frames": len(students.ids),
        "frames_left_out": students.left_out,
        "groups": [
            {
                "name": group.name,
                "files": [str(path) for path in group.paths],
                "coverage": group.coverage,
                **asdict(mean),
            }
            for group, mean in zip(students.groups, means, strict=True)
        ],
        "comparisons": [
            {"first": first, "second": second, **asdict(difference), "p_holm": p_holm}
            for first, second, difference, p_holm in compared
        ],
    }
    data = pretty_json(value)
    if not out.is_file() or out.read_bytes() != data:  # the same comparison may be repeated
        refuse_existing(out, overwrite=overwrite)
        out.parent.mkdir(parents=True, exist_ok=True)
        write_durably(out, data)
