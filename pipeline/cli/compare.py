"""`pipeline compare`: whether one student is better than another, or only luckier."""

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
from .options import OVERWRITE, PATH, PlainCommand, option

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
        """The file, or those that a pattern matches: a shell leaves `name=m/*.json` as it is."""
        if not part:
            self.fail(f"{part!r}: expected FILE.json of an evaluation, after each comma too", param, ctx)
        if Path(part).is_file() or not set("*?[") & set(part):
            return [Path(part)]
        matched = sorted(path for path in glob(part) if path.endswith(".json"))  # noqa: PTH207 - part may be absolute
        if not matched:
            self.fail(f"{part!r}: no JSON file matches", param, ctx)
        return [Path(path) for path in matched]


@click.command(cls=PlainCommand)
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
    from ..evaluation.multiple_testing import corrected_p_values
    from ..evaluation.significance import mean_interval, paired_difference

    settings: dict[str, Any] = {"draws": resamples, "seed": seed, "confidence": confidence, "block": block}
    lower = metric in LOWER_IS_BETTER
    found = join(groups, metric, any_coverage=any_coverage)
    if out and out.resolve() in {path.resolve() for group in found.groups for path in group.paths}:
        raise PipelineError(f"--out {out} is one of the evaluations: choose another file")
    means = [mean_interval(group.values, **settings) for group in found.groups]
    places = range(len(groups))
    pairs = list(combinations(places, 2)) if all_pairs else [(place, 0) for place in places[1:]]
    differences = [
        paired_difference(found.groups[one].values, found.groups[other].values, lower_is_better=lower, **settings)
        for one, other in pairs
    ]
    corrected = corrected_p_values(differences)
    names = [group.name for group in found.groups]
    compared = [
        (names[one], names[other], difference, p_value)
        for (one, other), difference, p_value in zip(pairs, differences, corrected, strict=True)
    ]
    if out:
        chosen = {"resamples": resamples, "seed": seed, "confidence": confidence, "block": block}
        _write(out, overwrite, found, means, compared, {"metric": metric, "lower_is_better": lower, **chosen})
    echo(_head(found, metric, block, lower=lower))
    echo(_means(found, means, metric, confidence))
    if compared:
        echo("\n" + _differences(compared, confidence))
    for note in _notes(found, means, block):
        echo(f"\n{one_line(note)}")


def _head(found: Comparable, metric: str, block: int, *, lower: bool) -> str:
    kept = {key: value for key, value in found.protocol.items() if value is not None and key != "flip_average"}
    protocol = ", ".join(f"{key} {value}" for key, value in kept.items())
    in_blocks = f" in blocks of {block}" if block > 1 else ""
    better = "lower" if lower else "higher"
    source = one_line(found.source)
    return (
        f"{METRIC_HEADS[metric]}, {better} is better; {len(found.ids)} frames of {source}{in_blocks}\n"
        f"protocol {one_line(protocol)}\n"
    )


def _means(found: Comparable, means: Sequence[Mean], metric: str, confidence: float) -> str:
    from ..evaluation.coverage import coverage_text

    rows = []
    for group, mean in zip(found.groups, means, strict=True):
        interval = "" if mean.low is None else f"{mean.low:.4f} to {mean.high:.4f}"
        spread = "" if mean.seeds_sd is None else f"{mean.seeds_sd:.4f}"
        rows.append([group.name, str(mean.seeds), f"{mean.mean:.4f}", interval, spread, coverage_text(group.coverage)])
    interval = f"{100 * confidence:.4g} % interval"
    return _filled(["", "seeds", METRIC_HEADS[metric], interval, "sd of seeds", "coverage"], rows)


def _differences(compared: Sequence[Compared], confidence: float) -> str:
    rows = []
    for one, other, found, p_holm in compared:
        relative = "" if found.relative_percent is None else f"{found.relative_percent:+.1f} %"
        row = [f"{one} - {other}", f"{found.difference:+.4f}", "", relative, "", "", "", ""]
        if found.low is not None:
            row[2] = f"{found.low:+.4f} to {found.high:+.4f}"
            row[5:] = [f"{found.share_better:.1%}", _p(found.p_value), _p(p_holm)]
        if found.relative_low_percent is not None:
            row[4] = f"{found.relative_low_percent:+.1f} to {found.relative_high_percent:+.1f} %"
        rows.append(row)
    interval = f"{100 * confidence:.4g} % interval"
    head = ["", "difference", interval, "relative", "interval", "better in", "p", "p (Holm)"]
    return _filled(head, rows)


def _filled(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table without the columns that are empty in every row."""
    shown = [place for place, name in enumerate(head) if not name or any(row[place] for row in rows)]
    return table([head[place] for place in shown], [[row[place] for place in shown] for row in rows])


def _p(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.3f}" if value >= 0.001 else "<0.001"


def _notes(found: Comparable, means: Sequence[Mean], block: int) -> list[str]:
    """What the figures do not say of themselves."""
    from ..evaluation.significance import enough, too_few

    notes = [] if enough(len(found.ids), block) else [too_few(len(found.ids), block)]
    single = [group.name for group, mean in zip(found.groups, means, strict=True) if mean.seeds == 1]
    if single and not notes:
        notes.append(
            f"One seed of {', '.join(single)}: intervals cover other frames, and say nothing of what another seed "
            "would give."
        )
    if found.left_out:
        notes.append(f"{found.left_out} frames are left out: not all have a prediction of them.")
    unknown = [group.name for group in found.groups if group.coverage is None]
    if unknown:
        notes.append(
            f"Coverage unknown of {', '.join(unknown)}: written by an older version; evaluate again to state it."
        )
    if len(set(found.flip_averages.values())) > 1:
        averaged = [name for name, flip in found.flip_averages.items() if flip]
        notes.append(f"Averaged with the mirrored image: {', '.join(averaged)}; the others not.")
    return notes


def _write(
    out: Path,
    overwrite: bool,
    found: Comparable,
    means: Sequence[Mean],
    compared: Sequence[Compared],
    settings: dict[str, Any],
) -> None:
    """Write everything as JSON; what is not defined is null."""
    from ..common.fileio import pretty_json, write_durably
    from ..common.outputs import refuse_existing

    value = {
        **settings,
        "protocol": found.protocol,
        "source": found.source,
        "frames": len(found.ids),
        "frames_left_out": found.left_out,
        "groups": [
            {
                "name": group.name,
                "files": [str(path) for path in group.paths],
                "coverage": group.coverage,
                **asdict(mean),
            }
            for group, mean in zip(found.groups, means, strict=True)
        ],
        "comparisons": [
            {"first": one, "second": other, **asdict(difference), "p_holm": p_holm}
            for one, other, difference, p_holm in compared
        ],
    }
    data = pretty_json(value)
    if not out.is_file() or out.read_bytes() != data:  # the same comparison again changes nothing
        refuse_existing(out, overwrite=overwrite)
        out.parent.mkdir(parents=True, exist_ok=True)
        write_durably(out, data)
