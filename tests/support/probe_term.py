"""A term with a weight of its own, for tests alone; `register` adds it to the registry as `probe`."""

from __future__ import annotations

import sys

import torch
from torch import nn

from pipeline.losses import registry
from pipeline.losses.means import mean_where
from pipeline.losses.objective import LossTerm


class Probe(LossTerm):
    """Learns the mean of ln D with one parameter, whose start is drawn at random."""

    def __init__(self, weight):
        super().__init__(weight)
        self.guess = nn.Parameter(torch.randn(1))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def value(self, step):
        self.steps += 1
        difference = step.depth_m.detach().log() - self.guess
        return mean_where(torch.ones_like(difference, dtype=torch.bool), difference.square())


built = []
"""Terms that were built, for a test to look into."""


def build_term(value, _):
    built.append(Probe(value))
    return built[-1]


def register(set_item=dict.__setitem__):
    """Add the term; `set_item` may be that of monkeypatch, which removes it again."""
    built.clear()
    set_item(sys.modules, "pipeline.losses.terms.probe", sys.modules[__name__])
    set_item(registry.TERMS, "probe", registry.TermEntry("probe", "a test", "weight", 0.5))
