"""What one trial leaves in its folder: its epochs, and states to go on from.

Ray Tune has checkpoints and results of its own, but notes both only now and then: after kill -9, or
where pbt starts a trial anew, epochs were missing, and one checkpoint lay in the place of another.
What is here is whole after every epoch, and is of this trial and epoch alone.
"""

import json
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import tune

from sdd_ray.engine.checkpoints import read_state, write_state
from sdd_ray.engine.fitting import EpochResult, Fit
from sdd_ray.store.location import Location

_JOURNAL, _WHOLE = "journal.json", "whole.json"


@dataclass(frozen=True)
class TrialFolder:
    """The folder of one trial, reached by every worker."""

    place: Location

    @classmethod
    def of(cls, work: Location, number: int) -> "TrialFolder":
        """Return the folder of a trial of the search that keeps its files in `work`."""
        return cls(work / "trials" / f"{number:04d}")

    @classmethod
    def begun(cls, work: Location) -> set[int]:
        """Return the numbers of the trials of a search that have ended an epoch."""
        place = work / "trials"
        if not place.exists():
            return set()
        numbers = [int(entry.name) for entry in place.entries() if entry.is_folder]
        return {number for number in numbers if cls.of(work, number).journal()}

    def journal(self) -> list[dict[str, Any]]:
        """Return what was noted of each epoch, in order: `epoch` from 1, figures and more."""
        file = self.place / _JOURNAL
        if not file.exists():
            return []
        noted: list[dict[str, Any]] = json.loads(file.read_bytes())
        return noted

    def note(self, entry: dict[str, Any]) -> None:
        """Add an epoch to the journal; epochs from there on that were noted before are dropped."""
        kept = [noted for noted in self.journal() if noted["epoch"] < entry["epoch"]]
        (self.place / _JOURNAL).write_bytes(json.dumps([*kept, entry]).encode())

    def newest(self) -> int | None:
        """Return the last epoch, from 1, whose state is whole; None if there is none."""
        epochs = [e for e in self._epochs() if (self._state(e) / _WHOLE).exists()]
        return max(epochs, default=None)

    def read(self, epoch: int) -> dict[str, Any]:
        """Return the state after an epoch, counted from 1.

        Raises:
            WeightsError: It is damaged.
        """
        return read_state(tune.Checkpoint(self._state(epoch).uri))

    def write(self, fit: Fit, result: EpochResult) -> None:
        """Write the state after an epoch."""
        target = self._state(result.epoch + 1)
        with tempfile.TemporaryDirectory() as folder:
            write_state(fit, result, folder)
            for file in sorted(Path(folder).iterdir()):
                (target / file.name).write_bytes(file.read_bytes())
        (target / _WHOLE).write_bytes(b"{}")  # last

    def keep(self, epochs: Iterable[int]) -> None:
        """Remove the states of all other epochs."""
        for epoch in set(self._epochs()) - set(epochs):
            (self._state(epoch) / _WHOLE).remove()  # first
            self._state(epoch).remove_tree()

    def _state(self, epoch: int) -> Location:
        return self.place / f"epoch_{epoch:04d}"

    def _epochs(self) -> list[int]:
        if not self.place.exists():
            return []
        names = [entry.name for entry in self.place.entries() if entry.is_folder]
        return [int(name.removeprefix("epoch_")) for name in names]
