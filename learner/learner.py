"""The learner: gathers a batch, trains on it, broadcasts the new weights, and again."""

import hashlib
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from learner.batch import Batch
from learner.checkpoint import (
    EVALUATIONS,
    Checkpoint,
    add_checkpoint,
    load_newest_checkpoint,
    policy_weights,
    remove_leftovers,
    understood,
    write_checkpoint,
)
from learner.computation import computation, differences
from learner.config import RunConfig
from learner.coordinator import Coordinator
from learner.faults import FAULTS
from learner.lanes import LaneBorder, from_bits, to_bits
from learner.metrics import EpisodeWindow, MetricsFile
from learner.model import ActorCritic
from learner.normalization import RewardScaling, RunningStatistics
from learner.ppo import PPO, Encode
from learner.stopwatch import Stopwatch
from learner.supervision import SHORTEST_PATIENCE, StopRequested, Supervision
from protocol import trace
from protocol.arithmetic import OWN_ERRORS
from protocol.observations import encode, normalized_size, numbers_of
from protocol.records import plain, typed
from protocol.snapshot import PolicySnapshot, part_of
from protocol.spaces import Spaces
from protocol.trajectory import LaneState
from protocol.transport import LearnerSocket

LONG_PATIENCE = 600.0  # seconds that MLX may compile, or a disk may take to save
WITNESS_SECONDS = 5.0  # that a finished run waits for a rollout which is being collected a second time
STEPS_OF_PATIENCE = 10  # a step of an update may take that many times as long as the longest of the last update
LANE_ARRAYS = [field.name for field in fields(LaneState)]  # as a checkpoint names them…
ACTION_BITS = "action_bits"  # …and what it has instead of integer actions


@dataclass(frozen=True)
class Border:
    """The whole state after a completed version, on the host: what any thread can save at any time."""

    checkpoint: Checkpoint  # without the states of the lanes
    lanes: list[LaneBorder]  # which only a save has to write out

    def whole(self) -> Checkpoint:
        arrays = dict(self.checkpoint.arrays)
        for index, lane in enumerate(self.lanes):
            if lane.rollout_index:
                state = lane.state()
                lane_arrays = {name: np.asarray(getattr(state, name)) for name in LANE_ARRAYS}
                if state.actions.dtype.kind == "i":  # unfinished episodes may have millions, few of which are large
                    lane_arrays[ACTION_BITS] = to_bits(lane_arrays.pop("actions"))
                arrays |= {f"lanes.{index}.{name}": array for name, array in lane_arrays.items()}
        return replace(self.checkpoint, arrays=arrays)


class Update(NamedTuple):
    """What an update was made of."""

    iteration: int
    before: dict[str, np.ndarray]  # what `PPO.state_dict` gave, among other arrays
    batch: Batch
    to_inputs: Encode


class Learner:
    """One run's learner, from its first version or from its newest checkpoint to its last."""

    def __init__(
        self,
        config: RunConfig,
        run_dir: Path,
        socket: LearnerSocket,
        num_actors: int,
        step_timeout: float,
        device: str,
        supervision: Supervision,
    ) -> None:
        self._config = config
        self._run_dir = run_dir
        self._socket = socket
        self._device = device
        self._report = supervision.report
        self._warn = supervision.warn
        self._supervision = supervision
        self._step_timeout = step_timeout
        self._coordinator = Coordinator(
            socket,
            config.experiment,
            run_dir.name,
            num_actors,
            config.total_iterations,
            step_timeout,
            supervision,
        )
        self._coordinator.faults.folder = run_dir / FAULTS
        self._total_iterations = config.total_iterations
        self._version = 0
        self._window = EpisodeWindow()
        self._batch_memory: dict[str, np.ndarray] = {}
        self._continued_elsewhere = False  # whether a learner that computes otherwise, or other settings, began the run
        self._seconds = 0.0  # of learning before this process
        self._last_update: float | None = None
        self._updates: deque[float] = deque(maxlen=20)  # time.monotonic() of the last ones
        self._updated = False  # whether this process has done an update, and so has its kernels
        self._to_repeat: Update | None = None
        self._told_update_differs = False
        self._step_seconds = 0.0  # that the longest step of the last update took
        self._stopwatch = Stopwatch()  # of an iteration
        self._border: Border | None = None  # after the last completed version
        self._dismissed = False
        self._saving = threading.Lock()
        self._saved_version: int | None = None
        self._settings = {name: str(value) for name, value in config.settings.items()}
        self._computation = computation(device, config.training.learner_threads)

    def run(self) -> str:
        """Train to the end, or until stopped; returns the status, `finished` or `stopped`. `conclude` saves what came
        of it, and only then may actors be dismissed: a learner that is killed before needs them again."""
        try:
            self._begin()
            self._stopwatch = Stopwatch()
            while not self._is_finished():
                with trace.span("gather", iteration=self._version), self._stopwatch.on("gather"):
                    trajectories = self._coordinator.gather(self._version)
                with trace.span("learn", iteration=self._version), self._stopwatch.on("learn"):
                    metrics = self._train(Batch.stack(trajectories, self._batch_memory))
                with trace.span("complete", iteration=self._version):
                    self._complete_version(metrics)
                if self._to_repeat is not None:  # now that actors have the new weights, and need not wait
                    self._repeat_update(self._to_repeat)
                    self._to_repeat = None
            with suppress(StopRequested):
                self._coordinator.wait_for_witness(WITNESS_SECONDS)
            return "finished"
        except StopRequested:
            return "stopped"

    def dismiss_actors(self) -> None:
        """Tell every actor that the run is over, and hear nothing more. Once is enough; more does nothing."""
        if not self._dismissed:
            self._dismissed = True
            self._coordinator.finish("the run is over")
            self._socket.close()

    def conclude(self, status: str, error: str | None = None) -> dict[str, Any]:
        """Save the last completed version and return the summary. Touches no MLX, so any thread may call it."""
        version = self._border.checkpoint.policy_version if self._border else None
        if self._saved_version != version:
            self._save()
            if self._saved_version != version:
                status = "failed"
                error = error or f"version {version} could not be saved; make room on the disk and go on from the last"
        self._coordinator.ledger.end_run()
        return self._summary(status) | ({"error": error} if error else {})

    def _summary(self, status: str) -> dict[str, Any]:
        """What `summary.json` says, but for what only the supervisor knows."""
        border = self._border.checkpoint if self._border else None
        steps = (border.policy_version if border else 0) * self._config.experiment.env_steps_per_iteration
        seconds = self._elapsed()
        return {
            "status": status,
            "deterministic": self._deterministic,
            "env_steps": steps,
            "seconds": seconds,
            "env_steps_per_second": steps / seconds if seconds else None,
            "policy_version": border.policy_version if border else 0,
            "episode_return_mean": border.facts["episode_return_mean"] if border else None,
            "weights_digest": weights_digest(border.arrays) if border else None,
            "samples": self._coordinator.ledger.as_dict(),
            "refused": dict(self._coordinator.refusals.counts),
            "lanes_not_replayable": self._coordinator.lanes_not_replayable,
            "witness": self._coordinator.witness.state_dict(),
            "env_faults": self._coordinator.faults.count,
            "device": self._device,
            "learner": self._computation,
            "continued_elsewhere": self._continued_elsewhere,
            "schedule": self._config.experiment.schedule,
            "seed": self._config.experiment.seed,
        }

    @property
    def _deterministic(self) -> bool:
        """Whether an equal experiment will end with the same bits, as far as is known."""
        witness = self._coordinator.witness
        # A CPU is taken at its word until it is seen to differ. A GPU has to be seen to repeat itself.
        updates_repeat = not witness.update_differences and (self._device == "cpu" or witness.updates > 0)
        reproducible = self._config.experiment.schedule != "async" and self._coordinator.reproducible
        return updates_repeat and reproducible and not self._continued_elsewhere

    def _begin(self) -> None:
        """From nothing, or from the newest checkpoint, to the point where actors can act."""
        experiment = self._config.experiment
        checkpoint = load_newest_checkpoint(self._run_dir / "checkpoints", self._warn)
        remove_leftovers(self._run_dir / EVALUATIONS)
        if checkpoint is not None:
            with understood(checkpoint):
                self._restore_facts(checkpoint)
        if checkpoint is not None and self._is_finished() and "spaces" in checkpoint.facts:
            # The learner before this one was lost when it had saved the last version. No actor is needed any more.
            with understood(checkpoint):
                spaces = typed(checkpoint.facts["spaces"], Spaces, "the spaces")
                spaces.check()
        else:
            spaces = self._coordinator.wait_for_spaces()
        self._spaces = spaces
        self._statistics = RunningStatistics((normalized_size(spaces),))
        self._reward_scaling = RewardScaling(experiment.num_envs, self._config.ppo.discount)
        self._ppo = PPO(ActorCritic(spaces, experiment), self._config.ppo, experiment.seed, self._total_iterations)
        if checkpoint is None:
            arrays = self._ppo.state_dict()
            self._snapshots = [self._snapshot(arrays)]
            self._border = self._capture(arrays)
            self._save()
        else:
            with understood(checkpoint):
                self._restore_arrays(checkpoint)
        self._metrics_file = MetricsFile(self._run_dir / "metrics.jsonl", self._version, self._warn)
        parameters = sum(array.size for array in self._ppo.model.parameters())
        facts = {"parameters": parameters, "observations": self._coordinator.observations}
        self._report({"event": "started", "policy_version": self._version, **facts})
        for snapshot in self._snapshots:
            self._coordinator.publish(snapshot)

    def _is_finished(self) -> bool:
        target = self._config.training.stop_return
        reached = target is not None and self._window.full and (self._window.return_mean or 0.0) >= target
        return reached or self._version >= self._total_iterations

    @np.errstate(**OWN_ERRORS)
    def _train(self, batch: Batch) -> dict[str, Any]:
        """One iteration of PPO; afterwards version, statistics and episode window are the next version's."""
        snapshot = self._snapshots[-1]

        normalization = None
        if self._config.experiment.normalize_observations:
            normalization = snapshot.observation_mean, snapshot.observation_scale
        to_inputs = partial(encode, spaces=self._spaces, normalization=normalization)
        if self._config.ppo.normalize_rewards:
            scaled = self._reward_scaling(batch.rewards, batch.done, batch.environments)
            batch = replace(batch, rewards=scaled)
        metrics = self._ppo.update(batch, self._version, to_inputs, self._begin_update())
        if self._config.experiment.schedule != "async" and self._coordinator.witness.wants_update(self._version):
            assert self._border is not None
            self._to_repeat = Update(self._version, self._border.checkpoint.arrays, batch, to_inputs)
        lags = self._version - batch.policy_versions
        metrics |= {
            "policy/lag_mean": float(lags.mean()),
            "policy/lag_histogram": np.bincount(lags).tolist(),  # environments, by how far their rollout was behind
        }
        if self._config.experiment.normalize_observations:
            observations = batch.observations.reshape(-1, *batch.observations.shape[2:])
            self._statistics.update(numbers_of(observations, self._spaces))
        self._window.extend(batch.episode_returns, batch.episode_lengths)
        return metrics

    def _repeat_update(self, update: "Update") -> None:
        """Do an update a second time, to see whether it leads to the same bits; nothing else changes."""
        with trace.span("witness", iteration=update.iteration):
            first = self._ppo.state_dict()
            self._ppo.load_state_dict(update.before)
            self._ppo.update(update.batch, update.iteration, update.to_inputs, self._begin_update())
            difference = self._coordinator.witness.compare_updates(first, self._ppo.state_dict())
            self._ppo.load_state_dict(first)
        if difference is not None and not self._told_update_differs:
            self._told_update_differs = True
            remedy = "; --device cpu adds in one order" if self._device == "gpu" else ""
            self._warn(
                f"an update that was repeated from the same weights and batch led to other weights (by {difference:.2g}"
                f" at most), so this run is not reproducible{remedy}"
            )

    def _begin_update(self) -> Callable[[], None]:
        """What is to be done between the steps of an update: serve actors, and say that the learner is at work."""
        patience = max(self._step_timeout, SHORTEST_PATIENCE, STEPS_OF_PATIENCE * self._step_seconds)
        if not self._updated:
            patience = LONG_PATIENCE
        asynchronous = self._config.experiment.schedule == "async"
        serve = self._coordinator.serve_waiting if asynchronous else self._coordinator.serve_meanwhile
        stepped, self._step_seconds = time.monotonic(), 0.0

        def between_steps() -> None:
            nonlocal stepped
            now = time.monotonic()
            # Of the first update only the last step counts: earlier ones may have waited for a compiler.
            self._step_seconds = max(self._step_seconds if self._updated else 0.0, now - stepped)
            stepped = now
            self._supervision.alive(patience)
            serve()

        between_steps()
        return between_steps

    def _complete_version(self, metrics: dict[str, Any]) -> None:
        """Broadcast the new weights first, then account for them: actors wait for nothing else."""
        self._version += 1
        arrays = self._ppo.state_dict()
        self._check_finite(arrays, metrics)
        snapshot = self._snapshot(arrays)
        self._snapshots = [self._snapshots[-1], snapshot]
        self._updated = True
        with trace.span("publish", policy_version=self._version), self._stopwatch.on("publish"):
            self._coordinator.publish(snapshot)
        self._last_update = time.monotonic()
        self._coordinator.trained_on()
        self._border = self._capture(arrays)
        every = self._config.training.eval_every
        if every is not None and (self._version % every == 0 or self._is_finished()):
            self._queue_evaluation()  # before it is saved: a learner that goes on from there would not come back to it
        env_steps = self._version * self._config.experiment.env_steps_per_iteration
        wait_share, learn_share, send_share = self._stopwatch.take_shares("gather", "learn", "publish")
        row = {
            "policy_version": self._version,
            "env_steps": env_steps,
            "rollout/episode_return_mean": self._window.return_mean,
            "rollout/episode_length_mean": self._window.length_mean,
            "rollout/episodes": len(self._window.returns),
            **metrics,
            "time/seconds": self._elapsed(),
            "time/env_steps_per_second": self._recent_speed(),
            "time/learner_wait_share": wait_share,
            "time/learner_learn_share": learn_share,
            "time/learner_send_share": send_share,
            "time/actor_acting_share": self._coordinator.acting_share,
            "samples": self._coordinator.ledger.as_dict(),
            "deterministic": self._deterministic,
            "witness": self._coordinator.witness.state_dict(),
            "refused": dict(self._coordinator.refusals.counts),
        }
        self._metrics_file.append(row)
        self._report({"event": "iteration", **row})
        if self._version % self._config.training.checkpoint_every == 0:
            self._save()  # after the row: a learner that goes on from here would not write it

    def _snapshot(self, arrays: dict[str, np.ndarray]) -> PolicySnapshot:
        """The policy in `arrays`, which PPO's `state_dict` returned."""
        return PolicySnapshot(self._version, policy_weights(arrays), *self._statistics.normalization())

    def _capture(self, arrays: dict[str, np.ndarray]) -> Border:
        """The version just completed, whose weights and moments are in `arrays`."""
        arrays = dict(arrays)
        arrays |= {f"statistics.{name}": array for name, array in self._statistics.state_dict().items()}
        arrays |= {f"rewards.{name}": array for name, array in self._reward_scaling.state_dict().items()}
        for snapshot in self._snapshots[:-1]:  # in `pipelined`, the next rollout acts with it
            arrays |= {f"previous.weights.{name}": array for name, array in snapshot.weights.items()}
            arrays |= {
                "previous.observation_mean": snapshot.observation_mean,
                "previous.observation_scale": snapshot.observation_scale,
            }
        facts = {
            "episode_returns": list(self._window.returns),
            "episode_lengths": list(self._window.lengths),
            "episode_return_mean": self._window.return_mean,
            "samples": self._coordinator.ledger.settled(),
            "lanes_not_replayable": self._coordinator.lanes_not_replayable,
            "witness": self._coordinator.witness.state_dict(),
            "env_faults": self._coordinator.faults.count,
            "episodes": self._coordinator.faults.episodes,
            "moved_global_random": self._coordinator.moved_global_random,
            "continued_elsewhere": self._continued_elsewhere,
            "seconds": self._elapsed(),
            "spaces": plain(self._spaces),
            "fingerprint": self._coordinator.fingerprint,
            "libraries": self._coordinator.libraries,
            "learner": self._computation,
            "settings": self._settings,
        }
        return Border(Checkpoint(self._version, arrays, facts), self._coordinator.trained_borders())

    def _restore_facts(self, checkpoint: Checkpoint) -> None:
        """What a summary needs, before there is an actor: the run may be stopped again at once."""
        facts = checkpoint.facts
        self._version = self._saved_version = checkpoint.policy_version
        self._border = Border(checkpoint, lanes=[])
        self._seconds = facts["seconds"]
        self._window.extend(np.array(facts["episode_returns"]), np.array(facts["episode_lengths"]))
        self._coordinator.fingerprint, self._coordinator.libraries = facts["fingerprint"], facts.get("libraries")
        if self._coordinator.fingerprint is not None:
            self._coordinator.fingerprint.setdefault("hashing", "fixed")  # of an older checkpoint, which does not say
        self._continued_elsewhere = facts["continued_elsewhere"]
        begun = facts["learner"] if "learner" in facts else {name: facts[name] for name in ("mlx", "device")}
        if differing := differences(self._computation, begun):
            self._continued_elsewhere = True
            changes = ", ".join(f"{name} {self._computation[name]} instead of {begun[name]}" for name in differing)
            self._warn(f"the learner goes on with {changes}: the run may not end with the same bits")
        if edited := differences(self._settings, facts.get("settings", {})):
            self._continued_elsewhere = True
            changes = ", ".join(
                f"{name} {self._settings[name]} instead of {facts['settings'][name]}" for name in edited
            )
            self._warn(f"config.toml was edited, and the run goes on with {changes}: it is not reproducible any more")
        self._coordinator.ledger.restore(facts["samples"])
        self._coordinator.faults.count, self._coordinator.faults.episodes = facts["env_faults"], facts["episodes"]
        for name in ("lanes_not_replayable", "moved_global_random"):
            setattr(self._coordinator, name, facts[name])
        if "witness" in facts:  # older checkpoints have none
            self._coordinator.witness.load_state_dict(facts["witness"])

    def _restore_arrays(self, checkpoint: Checkpoint) -> None:
        arrays, version = checkpoint.arrays, checkpoint.policy_version
        self._ppo.load_state_dict(arrays)
        self._statistics.load_state_dict(part_of(arrays, "statistics."))
        self._reward_scaling.load_state_dict(part_of(arrays, "rewards."))
        self._snapshots = [self._snapshot(arrays)]
        if version:
            weights = part_of(arrays, "previous.weights.")
            normalization = arrays["previous.observation_mean"], arrays["previous.observation_scale"]
            self._snapshots.insert(0, PolicySnapshot(version - 1, weights, *normalization))
            self._coordinator.restore(
                [self._restored_lane(part_of(arrays, f"lanes.{i}.")) for i in range(self._config.experiment.num_lanes)]
            )

    def _restored_lane(self, arrays: dict[str, np.ndarray]) -> LaneBorder:
        """The lane whose state is in `arrays`, by name; in `async` one may not have come to its first border."""
        if not arrays:
            return LaneBorder.first(self._config.experiment)
        if ACTION_BITS in arrays:
            action = self._spaces.action
            shape = (int(arrays["episode_steps"].sum()), *action.shape)
            arrays["actions"] = from_bits(arrays.pop(ACTION_BITS), shape, action.dtype)
        return LaneBorder.of(LaneState(int(arrays.pop("rollout_index")), **arrays))

    def _save(self) -> None:
        border = self._border
        assert border is not None
        self._supervision.alive(LONG_PATIENCE)  # a disk may be slow
        try:
            with self._saving, trace.span("save", policy_version=border.checkpoint.policy_version):
                path = write_checkpoint(self._run_dir / "checkpoints", border.whole())
        except OSError as error:
            self._warn(f"CHECKPOINT NOT SAVED: {error}; training continues, and the older checkpoint stays")
            return
        self._saved_version = border.checkpoint.policy_version
        self._report({"event": "checkpoint", "path": str(path), "policy_version": self._saved_version})

    def _queue_evaluation(self) -> None:
        """Leave the version just completed to be evaluated, unless it was before a restart and still waits."""
        assert self._border is not None
        if (self._run_dir / EVALUATIONS / f"{self._version:08d}").exists():
            return
        try:
            with trace.span("queue evaluation", policy_version=self._version):
                add_checkpoint(self._run_dir / EVALUATIONS, self._border.whole())
        except OSError as error:
            self._warn(f"VERSION {self._version} WILL NOT BE EVALUATED: {error}; training continues")

    def _check_finite(self, arrays: dict[str, np.ndarray], metrics: dict[str, Any]) -> None:
        lost = metrics["train/policy_loss"] is None or metrics["train/value_loss"] is None
        if lost or not all(np.isfinite(array).all() for array in arrays.values()):
            raise FloatingPointError(
                f"iteration {self._version - 1} gave weights that are not finite; the checkpoint before it stands."
                " Try a smaller --learning-rate"
            )

    def _recent_speed(self) -> float:
        """Env-steps per second over the last iterations."""
        first = self._coordinator.first_grant_time
        self._updates.append(time.monotonic())
        iterations, began = len(self._updates) - 1, self._updates[0]
        if iterations == 0 and first is not None:
            iterations, began = 1, first
        return iterations * self._config.experiment.env_steps_per_iteration / (self._updates[-1] - began)

    def _elapsed(self) -> float:
        """Seconds from the first grant to the last update, summed over restarts."""
        first = self._coordinator.first_grant_time
        return self._seconds + (self._last_update - first if first and self._last_update else 0.0)


def weights_digest(arrays: dict[str, np.ndarray]) -> str:
    """sha256 over the names and bytes of all parameters (`model.NAME` in `arrays`), in sorted order."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        if name.startswith("model."):
            digest.update(name.removeprefix("model.").encode() + arrays[name].tobytes())
    return digest.hexdigest()
