"""The state of an unfinished run on disk, and the two tables that grow with it. Each is whole or absent."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import torch

from ..common.fileio import CsvTable, open_regular, write_durably

if TYPE_CHECKING:
    from pathlib import Path

CHECKPOINT = "checkpoint.pt"


class Checkpoint:
    """What a run keeps in its hidden folder.

    Attributes:
        steps: a row a step, with its number as `step`.
        epochs: a row an epoch, with its number as `epoch`.
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
        """Write the tables, then the state: what it says is true of them too. After a crash the last one is there."""
        self.write_tables()
        data = io.BytesIO()
        torch.save(state, data)
        write_durably(self.path, data.getvalue())

    def read(self, device: torch.device, steps_an_epoch: int) -> dict[str, Any] | None:
        """The state that was written last, or None; rows that came after it are dropped from the tables.

        Raises what torch and CSV raise for files that are cut or damaged.
        """
        if not self.path.exists():
            return None
        with open_regular(self.path) as file:
            state: dict[str, Any] = torch.load(file, weights_only=True, map_location=device)
        self.steps.read(lambda row: int(row["step"]) < state["step"])
        self.epochs.read(lambda row: (int(row["epoch"]) + 1) * steps_an_epoch <= state["step"])
        return state

    def remove(self) -> None:
        """Forget the state, and keep the tables."""
        self.path.unlink(missing_ok=True)
