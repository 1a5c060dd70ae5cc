"""Now and then an update is done a second time, to see whether the device computes the same bits again."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from learner.batch import Batch
from learner.ppo import PPO, ToInputs
from learner.witness import Witness
from protocol import trace


class Update(NamedTuple):
    """Everything that is needed to do an update again."""

    iteration: int
    before: dict[str, np.ndarray]  # Has what `PPO.state_dict` returned.
    batch: Batch
    to_inputs: ToInputs


class SecondUpdates:
    """Keeps the update that is to be repeated until there is time for it."""

    def __init__(self, witness: Witness, warn: Callable[[str], None]) -> None:
        self._witness, self._warn = witness, warn
        self._next: Update | None = None
        self._told = False

    def keep(self, update: Update) -> None:
        """Repeat this update when there is time."""
        self._next = update

    def catch_up(self, ppo: PPO, device: str, begin: Callable[[], Callable[[], None]]) -> None:
        """Repeat what was kept, if anything; nothing but the witness's counts changes. `begin` gives what is to be done
        between steps."""
        if self._next is None:
            return
        update, self._next = self._next, None
        with trace.span("witness", iteration=update.iteration):
            first = ppo.state_dict()
            ppo.load_state_dict(update.before)
            ppo.update(update.batch, update.iteration, update.to_inputs, begin())
            difference = self._witness.compare_updates(first, ppo.state_dict())
            ppo.load_state_dict(first)
        if difference is not None and not self._told:
            self._told = True
            remedy = "; --device cpu adds in one order" if device == "gpu" else ""
            self._warn(
                f"an update that was repeated from the same weights and batch led to other weights (by {difference:.2g}"
                f" at most), so this run is not reproducible{remedy}"
            )
