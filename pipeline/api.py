"""The Python API: the functions behind `import pipeline`. Each opens what it is given and runs one stage.

    import pipeline as tiekd

    source = tiekd.open_source("kitti", "data/kitti")
    teacher = tiekd.open_teacher("checkpoint:runs/teacher")
    store = tiekd.cache_teacher(teacher, source, "train", "teacher.zarr")
    student = tiekd.train_student(source, "train", store, "runs/lean", student="lean")
    result = tiekd.evaluate(student, source, "test")

Stage two imports nothing of a teacher, so each function imports its stage when it is called.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import OptionError

if TYPE_CHECKING:
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
        root: its directory.
        truth: which ground truth, where the data set has several.

    Returns a source: `samples(split)` lists a split, `read_image(sample)` and `read_truth_m(sample)` read one.

    Raises PipelineError for an unknown kind, and for a directory that does not hold such a data set.

    Example:
        >>> import pipeline as tiekd
        >>> source = tiekd.open_source("scenes", "scenes")
        >>> len(source.samples("train"))
        6
    """
    from .sources.registry import open_source as open_spec

    return open_spec(kind if root is None else f"{kind}:{root}", truth)


def list_sources() -> list[str]:
    """Kinds of data sets that `open_source` opens.

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

    Returns an object with a `card`, which says who it is and what its numbers mean, and `predict(images, ids)`.

    Raises PipelineError for an unknown kind or option, and for what the kind finds wrong.

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
    """Kinds of teachers that `open_teacher` opens.

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

    An interrupted call leaves its finished shards beside `out`; the same call goes on from them.

    Args:
        teacher: what `open_teacher` returned, or any object with its `card` and `predict`.
        source: what `open_source` returned.
        split: name of a split of the source, or a list file.
        out: the store's directory; must not exist.
        progress: whether to print progress and time left to stderr.
        options: fields of `pipeline.cache.plan.CacheOptions`, such as `bins`, `sigma_m`, `view`, `max_rel_error` (a
            fraction), `batch_size`.

    Returns the store, opened.

    Raises PipelineError for input at fault, which it names, and OSError where the disk is at fault.

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
    from .store import open_store as opened

    run(source, split, teacher, Path(out), _fields(CacheOptions, options), _progress(progress))
    return opened(Path(out))


def train_student(
    source: Source,
    split: str,
    store: Store | None,
    out: str | Path,
    *,
    flips_store: Store | None = None,
    images: str | Path | None = None,
    validation_split: str | None = None,
    device: str = "auto",
    workers: int | None = None,
    progress: bool = False,
    **options: Any,  # noqa: ANN401 - see the docstring
) -> Student:
    """Stage two: train a student from a store, with no teacher in memory.

    An interrupted call leaves a checkpoint beside `out`; the same call goes on from it, to the same weights.

    Args:
        source: the images that the teacher saw; and ground truth, for `loss="truth-..."`.
        split: name of a split of the source, or a list file.
        store: what `open_store` or `cache_teacher` returned; None to train on ground truth.
        out: the run's directory; must not exist.
        flips_store: a store of the mirrored images, where the teacher saw those too.
        images: an image cache of the split, which makes reading faster.
        validation_split: split to measure after each epoch.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        workers: loader processes; 0 reads in threads of this process.
        progress: whether to print progress and time left to stderr.
        options: fields of `pipeline.train.options.TrainOptions`: `student` (one of `list_networks()`), `loss` (one of
            `list_losses()`), `epochs`, `batch_size`, `learning_rate`, `crop_px`, `seed` ... What is left out is the
            paper's.

    Returns the trained student, loaded.

    Raises PipelineError for input at fault, and KeyboardInterrupt after Ctrl-C, once the checkpoint is written.

    Example:
        >>> import pipeline as tiekd
        >>> source, store = tiekd.open_source("scenes", "scenes"), tiekd.open_store("train.zarr")
        >>> student = tiekd.train_student(
        ...     source, "train", store, "runs/small", student="lean-small", epochs=1, batch_size=2, device="cpu"
        ... )
        >>> student.metrics["steps"]
        3
    """
    from .deploy.student import load_student as load
    from .store.images.reader import open_images
    from .train.options import TrainOptions
    from .train.run import Validation, train_network

    train_network(
        source,
        split,
        Path(out),
        _fields(TrainOptions, options),
        store=store,
        flips=flips_store,
        images=None if images is None else open_images(images),
        validation=None if validation_split is None else Validation(source, validation_split),
        device=device,
        workers=workers,
        progress=_progress(progress),
    )
    return load(out, device)


def list_networks() -> list[str]:
    """Names of the student architectures. `timm:NAME` is one too, where timm is installed.

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
    store: Store | None = None,
    uncertainty: bool = False,
    calibration_split: str | None = None,
    batch_size: int = 4,
    device: str = "auto",
    progress: bool = False,
) -> EvaluationResult:
    """Measure a student, or the depth that a store holds, against ground truth.

    Args:
        subject: a student, or a store: then it is the teacher that is measured.
        source: images and ground truth.
        split: name of a split of the source, or a list file.
        protocol: `kitti_eigen_garg80`, `nyu_eigen` or `plain`; None takes the source's default.
        max_depth_m: largest depth that counts, in metres, for the protocol `plain`.
        align: how each image is brought to its truth first: `none`, `median`, `scale`, `depth` or `disparity`.
        store: also compare the student with the depth of this store.
        uncertainty: also measure whether the student's map says where it is wrong.
        calibration_split: with `uncertainty`, images of another split to fit intervals of constant width on.
        batch_size: images at once.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        progress: whether to print progress and time left to stderr.

    Returns an `EvaluationResult`; its `metrics` has `abs_rel`, `rmse` (metres), `delta1` ..., means over images.

    Raises PipelineError where no image has ground truth within the protocol, and for input at fault.

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
    from .evaluation.result import EvaluationResult
    from .store import Store

    watching = _progress(progress)
    if isinstance(subject, Store):
        space = METRIC if subject.is_metric else subject.spec.depth_space
        terms = run.choose_protocol(protocol, source, max_depth_m, align, space)
        return EvaluationResult(run.evaluate_teacher(subject, source, split, terms, watching))
    terms = run.choose_protocol(protocol, source, max_depth_m, align, depth_space_of(subject.config))
    return EvaluationResult(
        run.evaluate_student(
            subject.run,
            source,
            split,
            terms,
            store=store,
            uncertainty=uncertainty,
            calibration_split=calibration_split,
            device=choose_device(device),
            batch_size=batch_size,
            progress=watching,
        )
    )


def _fields(kind: type[Any], options: dict[str, Any]) -> Any:  # noqa: ANN401 - an options class and its values
    """An options class filled by keywords. Raises OptionError for one that it does not have."""
    from dataclasses import fields
    from difflib import get_close_matches

    known = [field.name for field in fields(kind)]
    for name, value in options.items():
        if name not in known:
            near = get_close_matches(name, known, 1)
            raise OptionError(name, value, f"no such option{f'; did you mean {near[0]}?' if near else ''}")
    return kind(**options)


def _progress(shown: bool) -> Progress | None:
    """Where a function reports to."""
    if not shown:
        return None
    from .cli.console import Console

    return Console()
