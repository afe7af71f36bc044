"""Checkpoint of an unfinished run, and its tables of steps and epochs. Each file is complete or absent."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import torch

from ..common.fileio import CsvTable, open_regular, write_durably

if TYPE_CHECKING:
    from pathlib import Path

CHECKPOINT = "checkpoint.pt"


class Checkpoint:
    """State and tables in a run's hidden folder.

    Attributes:
        steps: one row for each logged step, numbered `step`.
        epochs: one row for each epoch, numbered `epoch`.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / CHECKPOINT
        self.steps = CsvTable(folder / "steps.csv")
        self.epochs = CsvTable(folder / "epochs.csv")

    def write_tables(self) -> None:
        """Write both tables."""
        self.steps.write()
        self.epochs.write()

    def write(self, state: dict[str, Any]) -> None:
        """Write the tables, then the state, so that the tables are never behind the state."""
        self.write_tables()
        data = io.BytesIO()
        torch.save(state, data)
        write_durably(self.path, data.getvalue())

    def read(self, device: torch.device, steps_per_epoch: int) -> dict[str, Any] | None:
        """Return the last state, or None if there is none. Drops table rows that are newer than the state.

        Raises what torch and CSV raise for damaged files.
        """
        if not self.path.exists():
            return None
        with open_regular(self.path) as file:
            state: dict[str, Any] = torch.load(file, weights_only=True, map_location=device)
        self.steps.read(lambda row: int(row["step"]) < state["step"])
        self.epochs.read(lambda row: (int(row["epoch"]) + 1) * steps_per_epoch <= state["step"])
        return state

    def remove(self) -> None:
        """Remove the state; the tables stay."""
        self.path.unlink(missing_ok=True)
