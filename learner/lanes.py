"""What the learner knows of each lane: who hosts it, and enough for any actor to take it over at the next border."""

import math
from collections import Counter
from dataclasses import dataclass, field, replace

import numpy as np

from protocol.errors import ProtocolError
from protocol.experiment import Experiment
from protocol.trajectory import LaneState, Trajectory


def to_bits(numbers: np.ndarray) -> np.ndarray:
    """Integers from 0 on in as many bits as the largest needs: uint8 [bits, bytes], a row of all for each bit."""
    flat = numbers.reshape(-1)
    count = max(1, int(flat.max(initial=0)).bit_length())
    return np.stack([np.packbits(flat & (1 << bit) != 0) for bit in range(count)])


def from_bits(bits: np.ndarray, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """What `to_bits` was given; raises `ValueError` unless that had this shape."""
    size = math.prod(shape)
    if bits.ndim != 2 or bits.shape[1] != -(-size // 8):
        raise ValueError(f"bits {list(bits.shape)} are not those of {size} numbers")
    numbers = np.zeros(size, dtype)
    for bit, row in enumerate(bits):
        numbers |= np.unpackbits(row, count=size).astype(dtype) << bit
    return numbers.reshape(shape)


@dataclass(frozen=True)
class LaneBorder:
    """A lane at the border before a rollout. Borders share the logs of actions that they have in common."""

    rollout_index: int
    episode_indices: np.ndarray  # int64 [N]
    logs: tuple[tuple[np.ndarray, ...], ...]  # for each environment, its episode's actions in pieces [n, *action]
    digests: np.ndarray  # uint8 [N, DIGEST_SIZE]
    memory: np.ndarray  # float32 [N, recurrent_size]

    def check_followed_by(self, trajectory: Trajectory) -> None:
        """Raise `ProtocolError` unless `trajectory` counts its episodes on from here: who takes the lane over relies on
        it."""
        begun = np.count_nonzero(trajectory.done, axis=0) + trajectory.restarted + trajectory.failed_resets
        if not np.array_equal(trajectory.episode_indices, self.episode_indices + begun):
            raise ProtocolError("episode_indices do not go on from where the lane was")

    def after(self, trajectory: Trajectory) -> "LaneBorder":
        """The border at the end of `trajectory`, which began at this one."""
        done = trajectory.done
        starts = np.where(done.any(axis=0), len(done) - done[::-1].argmax(axis=0), 0).tolist()  # of the last episode
        # Copies, so that a log keeps neither the message's memory nor the other environments' actions.
        logs = [
            (*(() if start or restarted else log), trajectory.actions[start:, n].copy())
            for n, (log, start, restarted) in enumerate(
                zip(self.logs, starts, trajectory.restarted.tolist(), strict=True)
            )
        ]
        return replace(
            self,
            rollout_index=self.rollout_index + 1,
            episode_indices=trajectory.episode_indices,
            logs=tuple(logs),
            digests=trajectory.digests,
            memory=trajectory.last_memory,
        )

    @property
    def episode_steps(self) -> np.ndarray:
        """int64 [N], of each environment's episode so far."""
        return np.array([sum(len(piece) for piece in log) for log in self.logs], np.int64)

    def state(self) -> LaneState:
        """The border as it travels in a grant and lies in a checkpoint."""
        pieces = [piece for log in self.logs for piece in log]
        return LaneState(
            rollout_index=self.rollout_index,
            episode_indices=self.episode_indices,
            episode_steps=self.episode_steps,
            actions=np.concatenate(pieces),
            digests=self.digests,
            memory=self.memory,
        )

    @classmethod
    def of(cls, state: LaneState) -> "LaneBorder":
        logs = tuple((state.actions_of(n),) for n in range(len(state.episode_steps)))
        return cls(state.rollout_index, state.episode_indices, logs, state.digests, state.memory)

    @classmethod
    def first(cls, experiment: Experiment) -> "LaneBorder":
        """The border before a lane's first rollout: nothing to replay, and no state to send."""
        size = experiment.lane_size
        memory = np.zeros((size, experiment.recurrent_size), np.float32)
        return cls(0, np.zeros(size, np.int64), ((),) * size, np.zeros((size, 0), np.uint8), memory)


@dataclass
class LaneRecord:
    """A lane: who hosts it, what it was granted, and what came of that and is not trained on yet."""

    borders: dict[int, LaneBorder]  # by rollout index, from the trained border to the newest accepted
    accepted: dict[int, Trajectory] = field(default_factory=dict)  # by rollout index
    owner: bytes | None = None  # identity of the actor that hosts it
    moving_to: bytes | None = None  # who will host it from its next border on
    serial: int = 0  # rises each time the lane changes hands
    hosted: bool = False  # whether its owner was granted it before, and so needs no state to begin from
    losses: int = 0  # of its hosts, since it last delivered
    granted: int = 0  # rollouts before this index were granted to the owner, or are behind the newest border

    @property
    def newest(self) -> LaneBorder:
        return self.borders[max(self.borders)]

    @property
    def outstanding(self) -> bool:
        """Whether its owner still has something to deliver."""
        return self.owner is not None and self.granted > self.newest.rollout_index

    def forget(self, rollout_index: int) -> None:
        """What was accepted of the lane's oldest rollout is needed no more."""
        del self.accepted[rollout_index], self.borders[rollout_index]

    def hand_over(self, owner: bytes | None) -> None:
        """Give the lane to `owner`, or to nobody; whatever was granted before is void."""
        self.owner, self.moving_to, self.hosted = owner, None, False
        self.serial += 1
        self.granted = self.newest.rollout_index


def balance(owners: list[bytes | None], ready: list[bytes], quota: int) -> list[bytes | None]:
    """Who should host each lane: as even as can be over the `ready` actors, moving as few lanes as possible.

    `owners` are the present hosts. A lane without one goes to the actor with the fewest, up to `quota` lanes each.
    """
    wanted = [owner if owner in ready else None for owner in owners]
    if not ready:
        return wanted
    loads = Counter(dict.fromkeys(ready, 0))
    loads.update(owner for owner in wanted if owner is not None)

    def least() -> bytes:
        return min(ready, key=loads.__getitem__)

    for index, owner in enumerate(wanted):
        if owner is None and loads[least()] < quota:
            wanted[index] = least()
            loads[least()] += 1
    while loads[most := max(ready, key=loads.__getitem__)] - loads[least()] > 1:
        index = max(i for i, owner in enumerate(wanted) if owner == most)
        wanted[index] = least()
        loads[least()] += 1
        loads[most] -= 1
    return wanted
