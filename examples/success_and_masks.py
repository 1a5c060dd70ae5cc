"""Success rate and action masks: parcels are loaded into trucks, and a parcel must fit into what a truck has left.

In the folder of this project:

    python launch.py --env examples.success_and_masks:Trucks-v0 --learning-rate 1e-3 --total-steps 200_000

shows the success rate beside the return. Trucks that are chosen at random, among those with room, succeed in 33% of the
episodes; the fullest of them, each time, in 78%. `episode/refused` in metrics.jsonl counts the parcels that did not
fit: none, since the masks tell. With `--env-kwargs masks=false` it shows what it costs to learn that from the rewards.
"""

from typing import Any

import gymnasium
import numpy as np

ROOM = 100  # of a truck
NEXT = 4  # parcels that are seen


class Trucks(gymnasium.Env):
    """Parcels arrive one by one, and each is put into a truck at once. All would fit, if each went where it should.

    An action is the number of a truck. The reward is the parcel's share of all parcels, so that the return of a success
    is 1. An episode ends when the next parcel fits nowhere.
    """

    def __init__(self, trucks: int = 4, masks: bool = True) -> None:
        self._trucks, self._masks = trucks, masks
        self.action_space = gymnasium.spaces.Discrete(trucks)
        self.observation_space = gymnasium.spaces.Box(0, ROOM, (trucks + NEXT,), np.float32)

    def action_masks(self) -> np.ndarray:
        """Which trucks have room for the next parcel, bool [trucks]. The policy takes none of the others."""
        return self._left >= self._parcels[0] if self._masks else np.ones(self._trucks, bool)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        loads = []  # of the trucks, in one way that works; a little room is left over
        for _ in range(self._trucks):
            cuts = np.sort(self.np_random.integers(5, ROOM - 10, size=3))
            loads.append(np.diff([0, *cuts, ROOM - 5]))
        parcels = np.concatenate(loads)
        self._parcels = self.np_random.permutation(parcels[parcels > 0])
        self._left, self._all, self._refused = np.full(self._trucks, ROOM), self._parcels.sum(), 0
        return self._observe(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        parcel, loaded = self._parcels[0], 0
        if self._left[action] >= parcel:
            self._left[action] -= parcel
            self._left.sort()  # Trucks are alike, and stand in the order of the room that they have left.
            self._parcels, loaded = self._parcels[1:], parcel
        else:
            self._refused += 1
        done = len(self._parcels) == 0
        stuck = not done and self._left.max() < self._parcels[0]
        # Numbers in the info of an episode's last step become metrics. `is_success` is shown as the success rate.
        info = {"is_success": done, "refused": self._refused}
        return self._observe(), float(loaded / self._all), done or stuck, False, info

    def _observe(self) -> np.ndarray:
        """The room that is left in each truck, and the sizes of the next parcels."""
        parcels = np.pad(self._parcels, (0, NEXT))[:NEXT]
        return np.concatenate([self._left, parcels]).astype(np.float32)


gymnasium.register("Trucks-v0", entry_point=f"{__name__}:Trucks", max_episode_steps=100)
