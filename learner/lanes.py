"""The table of lanes: who hosts each, what it was granted, and what came of that and is not trained on yet.

One authority decides about lanes, and this is it: it takes a lane from an actor that has gone, hangs or has more than
its share, and gives it to another with the next fencing token.
"""

from collections import Counter, deque
from collections.abc import Collection
from dataclasses import dataclass, field

from learner.borders import LaneBorder
from learner.faults import EnvironmentsFailed
from protocol.experiment import Experiment
from protocol.messages import Grant, Release
from protocol.trajectory import Trajectory
from rundir.schedules import Horizon

LOSSES_TO_WAIT = 2  # When a lane has lost so many hosts in a row, lanes wait for a lost actor's replacement.
MAX_LOSSES = 20  # When one rollout of a lane has brought so many own actors down in a row, the run ends.


@dataclass
class LaneRecord:
    """A lane: who hosts it, what it was granted, and what came of that and is not trained on yet."""

    borders: dict[int, LaneBorder]  # By rollout index, from the last one trained on.
    accepted: dict[int, Trajectory] = field(default_factory=dict)  # By rollout index.
    owner: bytes | None = None  # identity of the actor that hosts it
    moving_to: bytes | None = None  # The actor that hosts it from its next border on.
    fencing_token: int = 0  # rises each time the lane changes hands
    hosted: bool = False  # whether its owner was granted it before, and so needs no state to begin from
    losses: int = 0  # Hosts it lost since it last delivered.
    granted: int = 0  # rollouts before this index were granted to the owner, or are behind the newest border

    @property
    def newest(self) -> LaneBorder:
        return self.borders[max(self.borders)]

    @property
    def outstanding(self) -> bool:
        """Whether its owner still has something to deliver."""
        return self.owner is not None and self.granted > self.newest.rollout_index

    def forget(self, rollout_index: int) -> None:
        """Forget the lane's oldest accepted rollout."""
        del self.accepted[rollout_index], self.borders[rollout_index]

    def hand_over(self, owner: bytes | None) -> None:
        """Give the lane to `owner`, or to nobody; whatever was granted before is void."""
        self.owner, self.moving_to, self.hosted = owner, None, False
        self.fencing_token += 1
        self.granted = self.newest.rollout_index


class LaneTable:
    """The lanes of one run."""

    def __init__(self, experiment: Experiment, run_id: str, horizon: Horizon) -> None:
        self.lanes = [LaneRecord({0: LaneBorder.first(experiment)}) for _ in range(experiment.num_lanes)]
        self.arrived: deque[Trajectory] = deque()  # `async` alone: accepted, not yet gathered.
        self._experiment, self._run_id, self._horizon = experiment, run_id, horizon
        self._asynchronous = experiment.schedule == "async"
        self._versions: set[int] = set()  # Actors may act with these two policy versions.
        self._fresh: set[int] = set()  # lanes at work on a rollout that was granted with the newest version

    def restore(self, borders: list[LaneBorder]) -> None:
        """Continue from the lanes of a checkpoint; nothing may have been granted yet."""
        for lane, border in zip(self.lanes, borders, strict=True):
            lane.borders = {border.rollout_index: border}
            lane.granted = border.rollout_index

    def trained_borders(self) -> list[LaneBorder]:
        """Every lane as of the border before the next rollout to train on."""
        return [lane.borders[min(lane.borders)] for lane in self.lanes]

    def progress(self, rollout_index: int) -> float:
        """The share of training that is over before this rollout, of which environments are told."""
        return self._horizon.progress(rollout_index)

    def publish(self, version: int) -> None:
        """A policy version can be acted with."""
        self._versions = {version, *(self._versions & {version - 1})}
        self._fresh.clear()

    def next_grant(self, index: int) -> Grant | None:
        """The lane's next rollout, for its owner; None where there is nothing to grant."""
        lane = self.lanes[index]
        if not lane.outstanding:
            self._fresh.discard(index)
        if lane.owner is None or lane.moving_to is not None:
            return None
        version = self._version_to_grant(lane)
        if version is None:
            return None
        state = lane.newest.state() if lane.granted > 0 and not lane.hosted else None
        progress = self.progress(lane.granted)
        grant = Grant(self._run_id, index, lane.granted, version, lane.fencing_token, state, progress)
        lane.hosted = True
        lane.granted += 1
        self._fresh.add(index)
        return grant

    def _version_to_grant(self, lane: LaneRecord) -> int | None:
        """The policy version for the lane's next rollout; None where it is too early to grant it, or too late."""
        if self._asynchronous:
            # One at a time, so that it is acted with the newest version; and none once a batch is there, or will be
            # without the stragglers: more would only grow old.
            wanted = not lane.outstanding and len(self.arrived) + len(self._fresh) < len(self.lanes)
            return max(self._versions, default=None) if wanted else None
        if lane.granted >= self._horizon.total:
            return None
        version = self._experiment.acting_version(lane.granted)
        return version if version in self._versions else None

    def expects(self, identity: bytes, trajectory: Trajectory) -> bool:
        """Whether this is what the actor was granted and has not delivered yet."""
        lane = self.lanes[trajectory.lane] if 0 <= trajectory.lane < len(self.lanes) else None
        return (
            lane is not None
            and trajectory.run_id == self._run_id
            and lane.owner == identity
            and trajectory.fencing_token == lane.fencing_token
            and lane.outstanding
            and trajectory.rollout_index == lane.newest.rollout_index
            and self._acted_with_a_granted_version(trajectory)
        )

    def _acted_with_a_granted_version(self, trajectory: Trajectory) -> bool:
        if self._asynchronous:
            return 0 <= trajectory.policy_version <= max(self._versions)
        return trajectory.policy_version == self._experiment.acting_version(trajectory.rollout_index)

    def accept(self, trajectory: Trajectory) -> None:
        """Take what was expected and goes on from the lane's newest border."""
        lane = self.lanes[trajectory.lane]
        border = lane.newest.after(trajectory, self.progress(trajectory.rollout_index))
        lane.accepted[trajectory.rollout_index] = trajectory
        lane.borders[border.rollout_index] = border
        lane.losses = 0
        if self._asynchronous:
            self.arrived.append(trajectory)

    def share(self, ready: list[bytes], sharers: int) -> list[tuple[bytes, Release]]:
        """Let every lane have a host, and every one of the `ready` its share of them among `sharers` actors. Returns
        who has to let go of what. A lane whose rollout is being stepped moves at its next border."""
        releases = []
        owners = [lane.moving_to or lane.owner for lane in self.lanes]
        for index, wanted in enumerate(balance(owners, ready, quota=-(-len(self.lanes) // sharers))):
            lane = self.lanes[index]
            lane.moving_to = None if wanted == lane.owner else wanted
            if wanted != lane.owner and (lane.owner is None or not self._is_at_work_on(index)):
                releases += self.move(index, wanted)
        return releases

    def move(self, index: int, owner: bytes | None) -> list[tuple[bytes, Release]]:
        """Give a lane another host. Returns who has to let go of it, if anyone."""
        lane = self.lanes[index]
        releases = []
        if lane.owner is not None and lane.hosted:
            releases.append((lane.owner, Release(index, lane.fencing_token)))
        lane.hand_over(owner)
        return releases

    def _is_at_work_on(self, index: int) -> bool:
        """Whether the lane is the one that its host is stepping, as far as can be told from the order in which actors
        take their grants; the others wait for their turn."""
        owner = self.lanes[index].owner
        waiting = [
            (lane.newest.rollout_index, i)
            for i, lane in enumerate(self.lanes)
            if lane.owner == owner and lane.outstanding
        ]
        return min(waiting, default=None) == (self.lanes[index].newest.rollout_index, index)

    def leave(self, identity: bytes, lost: bool) -> bool:
        """An actor is gone: its lanes have no host. Returns whether lanes should wait for replacements from now on.

        A lane that brings one actor after the other down counts those that were `lost`. Such a lane may be too much
        for a process that has other lanes, as with a simulator that a process can have one of. Raises
        `EnvironmentsFailed` after too many.
        """
        should_wait = False
        for index, lane in enumerate(self.lanes):
            if lane.owner == identity:
                if lost:
                    lane.losses += lane.outstanding
                    should_wait |= lane.losses >= LOSSES_TO_WAIT
                    if lane.losses > MAX_LOSSES:
                        raise EnvironmentsFailed(
                            f"{lane.losses} actors in a row were lost with rollout {lane.newest.rollout_index} of"
                            f" lane {index} (environments {index * self._experiment.lane_size} and following)"
                        )
                lane.hand_over(None)
            elif lane.moving_to == identity:
                lane.moving_to = None
        return should_wait

    @property
    def in_flight(self) -> int:
        """Trajectories that were accepted and are not trained on."""
        return sum(len(lane.accepted) for lane in self.lanes)

    @property
    def busy(self) -> Collection[bytes | None]:
        """The actors that have rollouts to deliver."""
        return {lane.owner for lane in self.lanes if lane.outstanding}

    @property
    def by_owner(self) -> dict[bytes | None, list[int]]:
        """The lanes that each actor hosts."""
        lanes: dict[bytes | None, list[int]] = {}
        for index, lane in enumerate(self.lanes):
            lanes.setdefault(lane.owner, []).append(index)
        return lanes


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
