"""The functions of the Python API, `import pipeline`.

    import pipeline as tiekd

    source = tiekd.open_source("kitti", "data/kitti")
    teacher = tiekd.open_teacher("checkpoint:runs/teacher")
    store = tiekd.cache_teacher(teacher, source, "train", "teacher.zarr")
    student = tiekd.train_student(source, "train", store, "runs/lean", student="lean")
    result = tiekd.evaluate(student, source, "test")

Each function imports its stage when it is called: stage two then imports no code of teachers.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from .errors import OptionError, PipelineError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .common.progress import Progress
    from .deploy.student import Student
    from .evaluation.result import EvaluationResult
    from .sources.base import Source
    from .store import Store
    from .teachers.base import Teacher


def open_source(kind: str, root: str | Path | None = None, *, truth: str | None = None) -> Source:
    """Open a data set on disk.

    Args:
        kind: one of `list_sources()`, such as `kitti` or `folder`; or `KIND:ROOT`, as on the command line.
        root: root directory of the data set.
        truth: name of the ground truth, if the data set has several.

    Returns a source: `samples(split)` lists a split; `read_image(sample)` and `read_truth_m(sample)` read a sample.

    Raises PipelineError for an unknown kind, and for a directory without such a data set.

    Example:
        >>> import pipeline as tiekd
        >>> source = tiekd.open_source("scenes", "scenes")
        >>> len(source.samples("train"))
        6
    """
    from .sources.registry import open_source as open_spec

    return open_spec(kind if root is None else f"{kind}:{root}", truth)


def list_sources() -> list[str]:
    """List the kinds of data sets that `open_source` opens.

    Example:
        >>> import pipeline as tiekd
        >>> "kitti" in tiekd.list_sources()
        True
    """
    from .sources.registry import source_kinds

    return list(source_kinds())


def open_teacher(teacher: str, *, device: str = "auto", **options: Any) -> Teacher:  # noqa: ANN401 - see the docstring
    """Open a teacher.

    Args:
        teacher: `KIND:WHAT`, where KIND is one of `list_teachers()`: `transformers:ID`, `onnx:FILE`,
            `predictions:DIR`, `python:module:factory` ...
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        options: fields of `pipeline.teachers.options.TeacherOptions`, such as `depth_space` or `metres_per_unit`.

    Returns a teacher: `card` holds its identity and the meaning of its numbers, `predict(images, ids)` runs it.

    Raises PipelineError for an unknown kind or option, and for a teacher that cannot be opened.

    Example:
        >>> import pipeline as tiekd
        >>> tiekd.open_teacher("checkpoint:runs/lean", device="cpu").card.depth_space
        'metric_m'
    """
    from .common.device import choose_device
    from .teachers.options import TeacherOptions
    from .teachers.registry import open_teacher as open_spec

    return open_spec(teacher, device=choose_device(device), options=_fields(TeacherOptions, options))


def list_teachers() -> list[str]:
    """List the kinds of teachers that `open_teacher` opens.

    Example:
        >>> import pipeline as tiekd
        >>> "onnx" in tiekd.list_teachers()
        True
    """
    from .teachers.registry import KINDS

    return list(KINDS)


def cache_teacher(
    teacher: Teacher,
    source: Source,
    split: str,
    out: str | Path,
    *,
    progress: bool = False,
    **options: Any,  # noqa: ANN401 - see the docstring
) -> Store:
    """Stage one: run a teacher once over a split, and write its depth and maps to a store.

    After an interruption, the same call resumes from the finished shards, which are in a hidden folder next to `out`.

    Args:
        teacher: from `open_teacher`, or any object with `card` and `predict`.
        source: from `open_source`.
        split: name of a split of the source, or a list file.
        out: directory of the store; must not exist.
        progress: print progress and remaining time to stderr.
        options: fields of `pipeline.cache.plan.CacheOptions`, such as `bins`, `sigma_m`, `view`, `max_rel_error` (a
            fraction), `batch_size`.

    Returns the opened store.

    Raises PipelineError for invalid input, and OSError if the disk fails.

    Example:
        >>> import pipeline as tiekd
        >>> source = tiekd.open_source("scenes", "scenes")
        >>> teacher = tiekd.open_teacher("checkpoint:runs/lean", device="cpu")
        >>> store = tiekd.cache_teacher(teacher, source, "train", "teacher.zarr")
        >>> len(store), store.depth_m(0).shape
        (6, (16, 32))
    """
    from .cache.plan import CacheOptions
    from .cache.run import cache_teacher as run
    from .store import open_store

    run(source, split, teacher, Path(out), _fields(CacheOptions, options), _progress(progress))
    return open_store(Path(out))


def train_student(
    source: Source | None = None,
    split: str | None = None,
    store: Store | None = None,
    out: str | Path | None = None,
    *,
    data: Sequence[tuple[Any, ...]] = (),
    flips_store: Store | None = None,
    images: str | Path | None = None,
    init: str | Path | None = None,
    validation_split: str | None = None,
    device: str = "auto",
    workers: int | None = None,
    compiled: bool = False,
    deterministic: bool = False,
    fuse_head: bool | None = None,
    require_licence: Sequence[str] = (),
    progress: bool = False,
    **options: Any,  # noqa: ANN401 - see the docstring
) -> Student:
    """Stage two: train a student from a store, with no teacher in memory.

    After an interruption, the same call resumes from the last checkpoint and ends with the same weights.

    Args:
        source: the images of the store; and ground truth, for `loss="truth-..."`.
        split: name of a split of the source, or a list file.
        store: from `open_store` or `cache_teacher`; None trains on ground truth.
        out: directory of the run; must not exist.
        data: several data sets to train on at once, in place of `source`, `split` and `store`: a list of (source,
            split, store) or (source, split, store, weight). They may have different views, teachers and bins. A weight
            is the relative probability of a data set; without it, n**0.2 for n samples.
        flips_store: store of the mirrored images, from `cache_teacher` with `cache_flips`.
        images: image cache of the split, for faster reading.
        init: finished run of the same student whose weights to start from. If its bins or head differ, all layers but
            the last are used.
        validation_split: split to measure after each epoch.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        workers: loader processes; 0 reads in this process. None: 0 on a CPU, and measured on a GPU.
        compiled: compile the network with torch.compile.
        deterministic: use only deterministic algorithms, for the same weights from the same run on the same GPU.
        fuse_head: compute the last layer inside the loss, to save memory. None: on a CPU, where it is also faster.
        require_licence: patterns, such as `apache-*`, of which the licences of the teacher's output and of the images
            must each match one.
        progress: print progress and remaining time to stderr.
        options: fields of `pipeline.train.options.TrainOptions`: `student` (one of `list_networks()`), `loss` (one of
            `list_losses()`), `epochs`, `batch_size`, `learning_rate`, `crop_px`, `seed` ... The defaults are the
            paper's.

    Returns the trained student.

    Raises PipelineError for invalid input, and KeyboardInterrupt after Ctrl-C, once a checkpoint is written.

    Example:
        >>> import pipeline as tiekd
        >>> source, store = tiekd.open_source("scenes", "scenes"), tiekd.open_store("train.zarr")
        >>> student = tiekd.train_student(
        ...     source, "train", store, "runs/small", student="lean-small", epochs=1, batch_size=2, device="cpu"
        ... )
        >>> student.metrics["steps"]
        3
    """
    if out is None:
        raise PipelineError("no directory for the run: give `out`, such as out='runs/small'")
    from .deploy.student import load_student as load
    from .store.images.reader import open_images
    from .train.mixed_data import data_sets
    from .train.options import TrainOptions
    from .train.run import Validation, train_network

    train_network(
        source,
        split,
        Path(out),
        _fields(TrainOptions, {**options, "init": None if init is None else Path(init)}),
        store=store,
        data=data_sets(data),
        flips=flips_store,
        images=None if images is None else open_images(images),
        # With `data` there is no source, and `train_network` refuses a validation split
        validation=None if validation_split is None else Validation(cast("Source", source), validation_split),
        device=device,
        workers=workers,
        compiled=compiled,
        deterministic=deterministic,
        fuse_head=fuse_head,
        require_licence=require_licence,
        progress=_progress(progress),
    )
    return load(out, device)


def list_networks() -> list[str]:
    """List the student architectures. With timm installed, `timm:NAME` is one too.

    Example:
        >>> import pipeline as tiekd
        >>> "mobilenetv2" in tiekd.list_networks()
        True
    """
    from .networks.registry import STUDENTS

    return list(STUDENTS)


def evaluate(
    subject: Student | Store,
    source: Source,
    split: str,
    *,
    protocol: str | None = None,
    max_depth_m: float | None = None,
    align: str | None = None,
    scale_split: str | None = None,
    store: Store | None = None,
    uncertainty: bool = False,
    calibration_split: str | None = None,
    readout: str | None = None,
    view: str | None = None,
    batch_size: int = 4,
    device: str = "auto",
    progress: bool = False,
) -> EvaluationResult:
    """Measure a student, or the depth that a store holds, against ground truth.

    Args:
        subject: a student, or a store to measure its teacher.
        source: images and ground truth.
        split: name of a split of the source, or a list file.
        protocol: `kitti_eigen_garg80`, `nyu_eigen` or `plain`; None takes the source's default.
        max_depth_m: largest ground truth to evaluate, in metres, for the protocol `plain`.
        align: alignment of each image to its ground truth: `none`, `median`, `scale`, `depth` or `disparity`.
        scale_split: multiply all depth by one constant, fitted on this split of other images.
        store: also compare the student with the depth of this store.
        uncertainty: also measure the student's uncertainty: AUSE, risk-coverage curves and calibration.
        calibration_split: with `uncertainty`, another split to fit intervals of constant relative width on.
        readout: how to read a student's depth from its map: `mean`, `geometric`, `median` or `absrel`; None is the
            student's.
        view: view of a student's images; None is that of training.
        batch_size: images per batch.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        progress: print progress and remaining time to stderr.

    Returns an `EvaluationResult`; its `metrics` are means over images: `abs_rel`, `rmse` (metres), `delta1` ...

    Raises PipelineError if no image has ground truth within the protocol, and for invalid input.

    Example:
        >>> import pipeline as tiekd
        >>> source = tiekd.open_source("scenes", "scenes")
        >>> result = tiekd.evaluate(tiekd.load_student("runs/lean"), source, "test", device="cpu")
        >>> result.frames
        2
    """
    from .common.device import choose_device
    from .depth.relative import METRIC, depth_space_of
    from .evaluation import run
    from .evaluation.protocol import choose_protocol
    from .evaluation.result import EvaluationResult
    from .store import Store

    console = _progress(progress)
    if isinstance(subject, Store):
        space = METRIC if subject.is_metric else subject.spec.depth_space
        chosen = choose_protocol(protocol, source, max_depth_m, align, space, scale_split)
        return EvaluationResult(run.evaluate_teacher(subject, source, split, chosen, console))
    chosen = choose_protocol(protocol, source, max_depth_m, align, depth_space_of(subject.config), scale_split)
    return EvaluationResult(
        run.evaluate_student(
            subject.run,
            source,
            split,
            chosen,
            store=store,
            uncertainty=uncertainty,
            calibration_split=calibration_split,
            readout=readout or subject.readout,
            view=view,
            device=choose_device(device),
            batch_size=batch_size,
            progress=console,
        )
    )


def _fields(options_class: type[Any], options: dict[str, Any]) -> Any:  # noqa: ANN401 - an options class and its values
    """Build an options class from keywords. Raises OptionError for an unknown one."""
    from dataclasses import fields
    from difflib import get_close_matches

    names = [field.name for field in fields(options_class)]
    for name, value in options.items():
        if name not in names:
            close = get_close_matches(name, names, 1)
            hint = f", such as `{close[0]}`" if close else ""
            raise OptionError(name, value, f"an option of {options_class.__name__}{hint}")
    return options_class(**options)


def _progress(enabled: bool) -> Progress | None:
    if not enabled:
        return None
    from .cli.console import Console

    return Console()
