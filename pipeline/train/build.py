"""Build the network, data and batch sampler of a run from its configuration.

Shape legend: H, W pixels of the training crop; h, w of the logits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from ..common import distributed as collective
from ..errors import PipelineError
from ..losses.objective import Objective
from ..losses.registry import build_terms
from ..networks.initial import load_initial_weights
from ..networks.pretrained import load_encoder_weights
from ..networks.reader import outputs_of
from ..networks.registry import Student, build_student
from ..sources.view import View
from .augment import Augmentation
from .dataset import TrainingData
from .mixed_data import MixedData
from .sampler import EpochBatchSampler, MixedBatchSampler

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from ..store import Store
    from ..store.images.reader import ImageCache
    from .config import Recipe
    from .mixed_data import Part

TERMS_STREAM = 1


def build_network(recipe: Recipe) -> Student:
    """Build the student from the run's seed, and load the weights that it starts from if there are any."""
    options = recipe.options
    torch.manual_seed(options.seed)
    student = build_student(options.student, outputs_of(options.head, len(recipe.bin_edges_m) - 1))
    if options.encoder_weights is not None:
        sha256 = load_encoder_weights(student, options.encoder_weights)
        if sha256 != recipe.encoder_sha256:
            raise PipelineError(f"{options.encoder_weights} changed while it was read: run the same command again")
    if options.init is not None:
        assert recipe.init is not None
        load_initial_weights(student, options.init, recipe.init)
    collective.share_norms(student)
    return student


def build_objective(recipe: Recipe) -> Objective:
    """Build the loss of the run and the terms that are added to it, their weights from the run's seed."""
    # Not the numbers that the student's weights are drawn from
    torch.manual_seed(int(np.random.SeedSequence([recipe.options.seed, TERMS_STREAM]).generate_state(1)[0]))
    loss = recipe.build_loss()
    objective = Objective(loss, build_terms(recipe.options.terms, loss))
    collective.share_norms(objective)
    return objective


def build_sampler(recipe: Recipe) -> EpochBatchSampler:
    """Build the batch sampler of this rank."""
    options, rank, world_size = recipe.options, collective.rank(), collective.world_size()
    if not recipe.data:
        return EpochBatchSampler(
            recipe.samples,
            options.batch_size,
            options.seed,
            accumulate=options.accumulate,
            rank=rank,
            world_size=world_size,
        )
    return MixedBatchSampler(
        [each.samples for each in recipe.data],
        [each.probability for each in recipe.data],
        options.batch_size,
        options.seed,
        accumulate=options.accumulate,
        rank=rank,
        world_size=world_size,
    )


def build_data(
    recipe: Recipe,
    parts: Sequence[Part],
    flips: Store | None,
    images: ImageCache | None,
    network: nn.Module,
    device: torch.device,
) -> TrainingData | MixedData:
    """Build the samples of one or several data sets; `network`, on `device`, gives the resolution of sparse maps."""
    options = recipe.options
    built = [
        TrainingData(
            part.source,
            part.samples,
            View.parse(mine.view),
            store=part.store,
            maps_px=None,
            augmentation=Augmentation(recipe.crop_px, mine.rotate_deg, options.flip, options.colour),
            seed=options.seed,
            relative=recipe.relative,
            flips=flips,
            images=images,
            signals=recipe.signals,
        )
        for part, mine in zip(parts, recipe.data_sets, strict=True)
    ]
    data = MixedData(built, options.seed) if recipe.data else built[0]
    if recipe.stored_maps:
        height, width = data[0, 0].image.shape[1:]
        network.eval()
        with torch.inference_mode():
            logits = network(torch.zeros(1, 3, height, width, device=device))
        for each in built:
            each.maps_px = (logits.shape[2], logits.shape[3])
    return data
