"""Several processes give the result of one. As a script under `torchrun`, this file is one of the processes."""

import csv
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import fakes
import probe_term
import pytest
import torch
import torch.distributed as dist
from paths import SUPPORT
from safetensors.torch import load_file, save_file
from torch import nn

from pipeline.cache.plan import CacheOptions
from pipeline.cache.run import cache_teacher
from pipeline.cli.train import train_student
from pipeline.common import distributed as collective
from pipeline.common.signals import Interrupted
from pipeline.losses.registry import build_loss
from pipeline.networks.registry import build_student
from pipeline.sources.registry import open_source
from pipeline.store import open_store
from pipeline.train.mixed_data import DataSet
from pipeline.train.options import TrainOptions
from pipeline.train.run import train_network
from pipeline.train.sampler import EpochBatchSampler

WITH_SUPPORT = os.environ | {"PYTHONPATH": os.pathsep.join([str(SUPPORT), os.environ.get("PYTHONPATH", "")])}
TORCHRUN = [str(Path(sys.executable).with_name("torchrun")), "--nproc-per-node", "2"]
# Slow steps: AdamW turns the rounding of a gradient that is 0 into a step as long as any other.
OPTIONS = TrainOptions(student="lean", epochs=2, batch_size=4, learning_rate=2e-5, seed=1)
RUNS = {
    "tiekd": OPTIONS,
    "ssim+si": replace(OPTIONS, loss="ssim+si", accumulate=2, ema=0.9),
    "truth-si": replace(OPTIONS, loss="truth-si"),
    "terms": OPTIONS,
    "mixed": OPTIONS,
}
TERMS = ("gradient", "trim=0.2", "probe")
"""Added to the run `terms`."""
NUMERIC = ("tiekd", "tiekd-released", "ssim+mse", "si", "nll")
WEIGHTED = ("weighted tiekd", "weighted si", "weighted nll", "weighted ssi+grad")
"""Problems; with `weighted`, each pixel has a weight."""


def make_problem(loss_name):
    """A float64 network, a loss, and 4 images of which only the first two have targets."""
    torch.manual_seed(0)
    network = build_student("lean", 8)
    edges_m = torch.linspace(0.5, 10, 9, dtype=torch.float64)
    loss = build_loss(
        loss_name.removeprefix("weighted "), edges_m, sigma_m=1.0, weight=0.3, skip_rows=2, centered=False
    )
    images = torch.rand(4, 3, 32, 64, dtype=torch.float64)
    target_m = 1 + 8 * torch.rand(4, 1, 32, 64, dtype=torch.float64)
    target_m[2:] = torch.nan
    target_m[0, :, 20:] = torch.nan
    return network, loss, images, target_m


def gradients(loss_name, rank, world_size):
    """Loss, gradients and running statistics after one step with a rank's part of the batch."""
    network, loss, images, target_m = make_problem(loss_name)
    collective.share_norms(network)
    network.double().train()
    part = slice(rank * 4 // world_size, (rank + 1) * 4 // world_size)
    weights = target_m[part].square() if loss_name in WEIGHTED else None
    value = loss.means(loss.pixels(network(images[part]), target_m[part]), target_m[part], weights)["loss"]
    value.backward()
    collective.average_gradients(network.parameters())
    grads = {name: parameter.grad for name, parameter in network.named_parameters()}
    buffers = {f"buffer {name}": buffer for name, buffer in network.named_buffers()}
    return {"loss": value.detach(), **grads, **buffers}


def train(root, out, name, options, progress=None, **more):
    source, store = open_source(f"scenes:{root / 'scenes'}"), open_store(root / "t.zarr")
    if name == "mixed":
        data = [DataSet(source, "train", store), DataSet(source, "test", store, 2.0)]
        return train_network(None, None, out / name, options, data=data, progress=progress, **more)
    if name == "terms":
        probe_term.register()
        options = replace(options, add=TERMS)
    return train_network(source, "all", out / name, options, store=store, progress=progress, **more)


def main(root):
    """Run one of the two processes."""
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    for name in (*NUMERIC, *WEIGHTED):
        found = gradients(name, rank, 2)
        if rank == 0:
            save_file({key: value.contiguous() for key, value in found.items()}, root / "two" / f"{name}.safetensors")
    for name, options in RUNS.items():
        metrics = train(root, root / "two", name, options)
        assert bool(metrics) == (rank == 0)
    train(root, root / "goes_on", "tiekd", OPTIONS)
    try:  # a signal to one process only
        train(root, root / "stops", "tiekd", OPTIONS, fakes.StopAt(2) if rank == 1 else None)
    except Interrupted as error:
        (root / f"interrupted{rank}").write_text(str(error))
    try:
        collective.check_agreement("their number", rank)
    except ValueError as error:
        (root / f"disagreed{rank}").write_text(str(error))
    command = ["--source", f"scenes:{root / 'scenes'}", "--split", "all", "--store", str(root / "t.zarr")]
    command += ["--student", "lean", "--epochs", "1", "--batch-size", "4", "--validation-split", "test"]
    train_student([*command, "--out", str(root / "by_command")], standalone_mode=False)
    dist.destroy_process_group()


class DiesOnce(fakes.StopAt):
    """Progress that kills its process at a step of the first attempt."""

    def update(self, done=1, **facts):
        self.done += done
        if self.done == self.step and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
            os.kill(os.getpid(), signal.SIGKILL)


def elastic(root, name, victim):
    """Run one process of a restarted run: with a checkpoint each step, `victim` is killed after the second."""
    progress = DiesOnce(3) if os.environ["RANK"] == victim else fakes.StopAt(None)
    train(root, root / "elastic", name, OPTIONS, progress, checkpoint_every_s=0.0)
    if os.environ["RANK"] == "0":
        (root / "elastic" / f"{name}.said").write_text(progress.said)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Runs of two processes in `two`, of one in `one`; in `goes_on` two resume the checkpoint of one."""
    root = tmp_path_factory.mktemp("torchrun")
    source = open_source(f"scenes:{fakes.make_scenes_folder(root / 'scenes', 8, (32, 64))}")
    cache_teacher(source, "all", fakes.factory_with_dpm(), root / "t.zarr", CacheOptions(batch_size=2))
    for name in ("one", "two", "goes_on", "stops", "elastic"):
        (root / name).mkdir()
    with pytest.raises(Interrupted):
        train(root, root / "goes_on", "tiekd", OPTIONS, fakes.StopAt(2))
    done = subprocess.run(
        [*TORCHRUN, __file__, str(root)], capture_output=True, text=True, check=False, timeout=300, env=WITH_SUPPORT
    )
    assert done.returncode == 0, done.stderr
    (root / "said").write_text(done.stdout + done.stderr)
    for name, options in RUNS.items():
        train(root, root / "one", name, options)
    return root


def losses(run):
    with (run / "steps.csv").open(newline="") as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


def probes(run):
    with (run / "steps.csv").open(newline="") as file:
        return [float(row["probe"]) for row in csv.DictReader(file)]


def assert_same_run(one, two):
    """Check that losses are equal, and that weights moved the same way."""
    assert losses(two) == pytest.approx(losses(one), rel=1e-5)
    assert len(losses(one)) == 4
    assert (one / "config.json").read_bytes() == (two / "config.json").read_bytes()
    weights, others = load_file(one / "student.safetensors"), load_file(two / "student.safetensors")
    assert others.keys() == weights.keys()
    torch.manual_seed(OPTIONS.seed)
    begin = build_student("lean", 16).state_dict()
    for kind, share in (("running", 0.01), ("", 0.05)):
        names = [name for name in weights if kind in name and ("running" in name) == bool(kind)]
        moved, apart = [
            torch.cat([(one_of[name] - other[name]).double().flatten() for name in names if "num_batches" not in name])
            for one_of, other in ((weights, begin), (weights, others))
        ]
        assert apart.norm() < share * moved.norm()


@pytest.mark.slow
@pytest.mark.parametrize("name", [*NUMERIC, *WEIGHTED])
def test_two_processes_have_the_gradient_of_one_though_one_has_no_valid_pixel(root, name):
    one, two = gradients(name, 0, 1), load_file(root / "two" / f"{name}.safetensors")
    assert two.keys() == one.keys()
    largest = max(float(value.abs().max()) for key, value in one.items() if "buffer" not in key)
    for key, value in one.items():
        # What the network has in float32, its running statistics before `double`, is exact all the same
        assert (two[key] - value).abs().max() <= 1e-9 * max(largest, float(value.abs().max())), key


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_two_processes_train_as_one(root, name):
    assert_same_run(root / "one" / name, root / "two" / name)


@pytest.mark.slow
def test_two_processes_share_the_weights_of_a_term(root):
    one, two = (probes(root / name / "terms") for name in ("one", "two"))
    assert two == pytest.approx(one, rel=1e-6)
    assert len(set(one)) == 4


@pytest.mark.slow
def test_two_processes_resume_the_checkpoint_of_one(root):
    assert_same_run(root / "one" / "tiekd", root / "goes_on" / "tiekd")


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_and_one_process_can_resume(root):
    for rank in range(2):
        assert (root / f"interrupted{rank}").read_text().startswith("stopped at step 2 of 4; run the same command")
    progress = fakes.StopAt(None)
    train(root, root / "stops", "tiekd", OPTIONS, progress)
    assert progress.said.startswith("resuming from step 2 of 4")
    assert_same_run(root / "one" / "tiekd", root / "stops" / "tiekd")


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["0", "1"])
def test_torchrun_restarts_a_killed_run_from_its_last_checkpoint(root, victim):
    command = [*TORCHRUN, "--max-restarts", "1", __file__, str(root), f"killed{victim}", victim]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, env=WITH_SUPPORT)
    assert done.returncode == 0, done.stderr
    assert (root / "elastic" / f"killed{victim}.said").read_text().startswith("resuming from step 2 of 4")
    assert_same_run(root / "one" / "tiekd", root / "elastic" / f"killed{victim}")


@pytest.mark.slow
def test_ranks_that_disagree_are_refused(root):
    for rank in range(2):
        assert "the processes of this run disagree on their number" in (root / f"disagreed{rank}").read_text()


@pytest.mark.slow
def test_only_rank_0_prints(root):
    said = (root / "said").read_text()
    assert said.count("by_command: lean (0.22 M parameters), 2 steps in") == 1
    assert said.count("train: 2/2 step") == 1
    assert "val_abs_rel" in (root / "by_command" / "epochs.csv").read_text()


def test_ranks_split_each_part_of_each_batch():
    whole = EpochBatchSampler(24, 12, seed=3, accumulate=3)
    shares = [EpochBatchSampler(24, 12, seed=3, accumulate=3, rank=rank, world_size=2) for rank in range(2)]
    for batch, *pieces in zip(whole, *shares, strict=True):
        for part in range(3):
            mine = [piece[2 * part : 2 * part + 2] for piece in pieces]
            assert batch[4 * part : 4 * part + 4] == mine[0] + mine[1]


@pytest.mark.parametrize(
    ("samples", "batch_size", "match"),
    [
        (
            24,
            12,
            "`batch_size=12` must be a multiple of 8, which is `accumulate=4` times 2 processes",
        ),
        (10, 16, "`batch_size=16` is more than the 10 samples of the split"),
    ],
)
def test_a_batch_that_cannot_be_split_is_refused(samples, batch_size, match):
    with pytest.raises(ValueError, match=match):
        EpochBatchSampler(samples, batch_size, 0, accumulate=4, world_size=2)


def test_a_norm_that_ranks_cannot_share_is_refused(monkeypatch):
    monkeypatch.setattr(collective, "world_size", lambda: 2)
    with pytest.raises(ValueError, match=r"BatchNorm1d\(3.*with one"):
        collective.share_norms(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm1d(3)))


if __name__ == "__main__":
    if len(sys.argv) == 2:
        main(Path(sys.argv[1]))
    else:
        elastic(Path(sys.argv[1]), *sys.argv[2:])
