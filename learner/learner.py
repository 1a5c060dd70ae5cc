"""The learner: gathers a batch, trains on it, broadcasts the new weights, and again."""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from learner.agreement import Agreement, most_summed
from learner.batch import Batch
from learner.borders import LaneBorder
from learner.computation import Conditions
from learner.coordinator import Coordinator
from learner.device import gpu_memory
from learner.initial import begin_from
from learner.launcher import Launcher, Patience, StopRequested
from learner.metrics import EpisodeWindow, MetricsFile
from learner.model import ActorCritic, model_inputs
from learner.normalization import RewardScaling, RunningStatistics
from learner.ppo import PPO, ToInputs
from learner.saving import Saving
from learner.second_updates import SecondUpdates, Update
from learner.state import RunState
from learner.stopwatch import Pace, Stopwatch
from protocol import trace
from protocol.arithmetic import OWN_ERRORS
from protocol.events import Iteration, Note, Started
from protocol.execution import Execution
from protocol.observations import critic_numbers_of, normalized_size, numbers_of
from protocol.records import plain
from protocol.snapshot import PolicySnapshot, part_of
from protocol.transport import LearnerSocket
from rundir.checkpoint import (
    POLICY_NAMES,
    Checkpoint,
    load_newest_checkpoint,
    remove_leftovers,
    spaces_of,
    understood,
    weights_digest,
)
from rundir.config import RunConfig
from rundir.names import CHECKPOINTS, METRICS, PENDING


class Learner:
    """One run's learner, from its first version or from its newest checkpoint to its last."""

    def __init__(
        self, config: RunConfig, execution: Execution, socket: LearnerSocket, device: str, launcher: Launcher
    ) -> None:
        self._config = config
        self._run_dir = execution.run_dir
        self._socket = socket
        self._launcher, self._report, self._warn = launcher, launcher.report, launcher.warn
        self._pace = Pace()
        self._coordinator = Coordinator(socket, config.experiment, execution, config.horizon, launcher, self._pace)
        self._conditions = Conditions(device, config.settings, launcher.warn)
        self._second_updates = SecondUpdates(self._coordinator.witness, launcher.warn)
        self._version = 0
        self._window = EpisodeWindow(config.experiment.episode_metrics, launcher.warn)
        self._batch_buffers: dict[str, np.ndarray] = {}
        self._stopwatch = Stopwatch()  # Sums up one iteration.
        self._patience = Patience(execution.step_timeout)
        self._state: RunState | None = None  # What a checkpoint of the last completed version holds.
        self._dismissed = False
        self._saving = Saving(execution.run_dir, launcher)

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
                    metrics = self._train(Batch.stack(trajectories, self._batch_buffers))
                with trace.span("complete", iteration=self._version):
                    self._complete_version(metrics)
                # Now that actors have the new weights, they need not wait for a repetition.
                self._second_updates.catch_up(self._ppo, self._conditions.device, self._begin_update)
            with suppress(StopRequested):
                self._coordinator.wait_for_witness()
            return "finished"
        except StopRequested:
            return "stopped"

    def dismiss_actors(self) -> None:
        """Tell every actor that the run is over, and hear nothing more. Once is enough; more does nothing."""
        if not self._dismissed:
            self._dismissed = True
            self._coordinator.dismiss("the run is over")
            self._socket.close()

    def conclude(self, status: str, error: str | None = None) -> dict[str, Any]:
        """Save the last completed version and return the summary. Touches no MLX, so any thread may call it."""
        version = self._state.checkpoint.policy_version if self._state else None
        if self._state is not None and self._saving.saved_version != version:
            self._saving.save(self._state)
            if self._saving.saved_version != version:
                status = "failed"
                error = error or f"version {version} could not be saved; make room on the disk and go on from the last"
        self._coordinator.ledger.end_run()
        return self._summary(status) | ({"error": error} if error else {})

    def _summary(self, status: str) -> dict[str, Any]:
        """The learner's part of `summary.json`."""
        state = self._state.checkpoint if self._state else None
        steps = (state.policy_version if state else 0) * self._config.experiment.env_steps_per_iteration
        seconds = self._pace.seconds
        return {
            "status": status,
            "deterministic": self._deterministic,
            "env_steps": steps,
            "total_steps": self._config.training.total_steps,
            "seconds": seconds,
            "env_steps_per_second": steps / seconds if seconds else None,
            "policy_version": state.policy_version if state else 0,
            "episode_return_mean": state.facts["episode_return_mean"] if state else None,
            **(state.facts.get("episode_metric_means", {}) if state else {}),
            "weights_digest": weights_digest(state.arrays) if state else None,
            "lanes_not_replayable": self._coordinator.repeatability.lanes_not_replayable,
            **self._coordinator.account(),
            "env_faults": self._coordinator.faults.count,
            "device": self._conditions.device,
            "learner": self._conditions.computation,
            "continued_elsewhere": self._conditions.continued_elsewhere,
            "schedule": self._config.experiment.schedule,
            "seed": self._config.experiment.seed,
        }

    @property
    def _deterministic(self) -> bool:
        """Whether an equal experiment will end with the same bits, as far as is known."""
        witness = self._coordinator.witness
        # A CPU is taken at its word until it is seen to differ. A GPU has to be seen to repeat itself.
        updates_repeat = not witness.update_differences and (self._conditions.device != "gpu" or witness.updates > 0)
        reproducible = self._config.experiment.schedule != "async" and self._coordinator.reproducible
        return updates_repeat and reproducible and not self._conditions.continued_elsewhere

    def _begin(self) -> None:
        """From nothing, or from the newest checkpoint, to the point where actors can act."""
        experiment = self._config.experiment
        checkpoint = load_newest_checkpoint(self._run_dir / CHECKPOINTS, self._warn)
        remove_leftovers(self._run_dir / PENDING)
        if checkpoint is not None:
            with understood(checkpoint):
                if self._conditions.device == "auto":  # A run goes on with the device that it began with.
                    self._conditions.use(checkpoint.facts.get("learner", checkpoint.facts)["device"])
                self._restore_facts(checkpoint)
        if checkpoint is not None and self._is_finished() and "spaces" in checkpoint.facts:
            # The learner before this one was lost when it had saved the last version. No actor is needed any more.
            with understood(checkpoint):
                spaces = spaces_of(checkpoint)
        else:
            spaces = self._coordinator.wait_for_spaces()
        self._spaces = spaces
        self._statistics = RunningStatistics((normalized_size(spaces.parts),))
        self._critic_statistics = RunningStatistics((normalized_size(spaces.critic_parts),))
        self._reward_scaling = RewardScaling(experiment.num_envs, self._config.ppo.discount)
        if self._conditions.device == "auto":
            samples = experiment.env_steps_per_iteration // self._config.ppo.minibatches
            self._report(Note(self._conditions.choose(ActorCritic(spaces, experiment), samples)))
        model = ActorCritic(spaces, experiment)  # On the device that was chosen.
        self._agreement = Agreement(most_summed(model), self._conditions.rounds, self._warn)
        threads = self._config.training.learner_threads
        self._ppo = PPO(model, self._config.ppo, experiment.seed, self._config.horizon, threads)
        if checkpoint is None:
            if self._config.training.init_from is not None:
                statistics = self._statistics, self._critic_statistics
                begin_from(self._run_dir, self._config, model, *statistics, lambda text: self._report(Note(text)))
            arrays = self._ppo.state_dict()
            self._snapshots = [self._snapshot(arrays)]
            self._state = self._capture(arrays)
            self._saving.save(self._state)
        else:
            with understood(checkpoint):
                self._restore_arrays(checkpoint)
        self._metrics_file = MetricsFile(self._run_dir / METRICS, self._version, self._warn)
        parameters = sum(array.size for array in self._ppo.model.parameters())
        self._report(Started(self._version, parameters, self._coordinator.roster.observations))
        for snapshot in self._snapshots:
            self._coordinator.publish(snapshot)

    def _is_finished(self) -> bool:
        target = self._config.training.stop_return
        reached = target is not None and self._window.full and (self._window.return_mean or 0.0) >= target
        return reached or self._version >= self._config.horizon.total

    @np.errstate(**OWN_ERRORS)
    def _train(self, batch: Batch) -> dict[str, Any]:
        """One iteration of PPO; afterwards version, statistics and episode window are the next version's."""
        if self._agreement.is_due(self._version):
            self._check_agreement(batch)
        to_inputs = self._inputs_as(self._snapshots[-1])
        if self._config.ppo.normalize_rewards:
            scaled = self._reward_scaling(batch.rewards, batch.done, batch.environments)
            batch = replace(batch, rewards=scaled)
        metrics = self._ppo.update(batch, self._version, to_inputs, self._begin_update())
        if self._config.experiment.schedule != "async" and self._coordinator.witness.wants_update(self._version):
            assert self._state is not None
            self._second_updates.keep(Update(self._version, self._state.checkpoint.arrays, batch, to_inputs))
        lags = self._version - batch.policy_versions
        metrics |= {
            "policy/lag_mean": float(lags.mean()),
            "policy/lag_histogram": np.bincount(lags).tolist(),  # environments, by how far their rollout was behind
        }
        if self._config.experiment.normalize_observations:
            observations = batch.observations.reshape(-1, *batch.observations.shape[2:])
            self._statistics.update(numbers_of(observations, self._spaces))
            if self._spaces.critic_parts:
                self._critic_statistics.update(critic_numbers_of(observations, self._spaces))
        self._window.extend(batch.episode_returns, batch.episode_lengths, batch.extras)
        return metrics

    def _check_agreement(self, batch: Batch) -> None:
        """See whether the actors' log-probabilities are those that this device computes, where all had one version."""
        version = int(batch.policy_versions.flat[0])
        acted = [snapshot for snapshot in self._snapshots if snapshot.policy_version == version]
        if not acted or (batch.policy_versions != version).any():
            return
        to_inputs = self._inputs_as(acted[0])
        difference = self._ppo.disagreement(batch, acted[0].weights, to_inputs)
        self._agreement.look_at(self._version, difference, batch.behaviour_log_probs)

    def _inputs_as(self, snapshot: PolicySnapshot) -> ToInputs:
        """The function that makes network inputs of observations: the policy's as actors with `snapshot` do, and the
        critic's own as they are now."""
        normalization = critic_normalization = None
        if self._config.experiment.normalize_observations:
            normalization = snapshot.observation_mean, snapshot.observation_scale
            critic_normalization = self._critic_statistics.normalization()
        return partial(
            model_inputs,
            spaces=self._spaces,
            normalization=normalization,
            critic_normalization=critic_normalization,
        )

    def _begin_update(self) -> Callable[[], None]:
        """A function to call between the steps of an update: it serves actors, and reports that the learner works."""
        asynchronous = self._config.experiment.schedule == "async"
        serve = self._coordinator.serve_waiting if asynchronous else self._coordinator.serve_meanwhile
        self._patience.begin_update()

        def between_steps() -> None:
            self._patience.note_step()
            self._launcher.alive(self._patience.seconds)
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
        self._patience.end_update()
        with trace.span("publish", policy_version=self._version), self._stopwatch.on("publish"):
            self._coordinator.publish(snapshot)
        self._pace.update(time.monotonic())
        self._coordinator.trained_on()
        self._state = self._capture(arrays)
        every = self._config.training.eval_every
        at_an_end = self._version in self._config.horizon.totals or self._is_finished()
        if every is not None and (self._version % every == 0 or at_an_end):
            # Before the checkpoint: a learner that goes on from it would not evaluate this version.
            self._saving.queue_evaluation(self._state)
        steps = self._config.experiment.env_steps_per_iteration
        wait_share, learn_share, send_share = self._stopwatch.take_shares("gather", "learn", "publish")
        row = {
            "policy_version": self._version,
            "env_steps": self._version * steps,
            "rollout/episode_return_mean": self._window.return_mean,
            "rollout/episode_length_mean": self._window.length_mean,
            "rollout/episodes": len(self._window.returns),
            **self._window.metric_means,
            **metrics,
            "time/seconds": self._pace.seconds,
            "time/env_steps_per_second": steps / self._pace.seconds_per_iteration,
            "time/learner_wait_share": wait_share,
            "time/learner_learn_share": learn_share,
            "time/learner_send_share": send_share,
            "time/actor_acting_share": self._coordinator.roster.acting_share,
            "deterministic": self._deterministic,
            **(gpu_memory() if self._conditions.device == "gpu" else {}),
            **self._coordinator.account(),
        }
        self._metrics_file.append(row)
        self._report(Iteration(row))
        if self._version % self._config.training.checkpoint_every == 0:
            self._saving.save(self._state)  # After the row: a resumed learner does not write it.

    def _snapshot(self, arrays: dict[str, np.ndarray]) -> PolicySnapshot:
        """The policy in `arrays`, which PPO's `state_dict` returned."""
        weights = {name: arrays[f"model.{name}"] for name in self._ppo.model.policy_names}
        return PolicySnapshot(self._version, weights, *self._statistics.normalization())

    def _capture(self, arrays: dict[str, np.ndarray]) -> RunState:
        """The version just completed, whose weights and moments are in `arrays`."""
        arrays = dict(arrays)
        arrays |= {f"statistics.{name}": array for name, array in self._statistics.state_dict().items()}
        if self._spaces.critic_parts:
            found = self._critic_statistics.state_dict()
            arrays |= {f"critic_statistics.{name}": array for name, array in found.items()}
        arrays |= {f"rewards.{name}": array for name, array in self._reward_scaling.state_dict().items()}
        for snapshot in self._snapshots[:-1]:  # `pipelined` acts with it in the next rollout.
            arrays |= {f"previous.weights.{name}": array for name, array in snapshot.weights.items()}
            arrays |= {
                "previous.observation_mean": snapshot.observation_mean,
                "previous.observation_scale": snapshot.observation_scale,
            }
        facts = {
            **self._window.state_dict(),
            **self._coordinator.state_dict(),
            **self._conditions.state_dict(),
            **self._pace.state_dict(),
            "spaces": plain(self._spaces),
            POLICY_NAMES: self._ppo.model.policy_names,
        }
        return RunState(Checkpoint(self._version, arrays, facts), self._coordinator.table.trained_borders())

    def _restore_facts(self, checkpoint: Checkpoint) -> None:
        """Restore what a summary needs, before there is an actor: the run may be stopped at once."""
        self._version = self._saving.saved_version = checkpoint.policy_version
        self._state = RunState(checkpoint, lanes=[])
        for part in (self._window, self._coordinator, self._conditions, self._pace):
            part.load_state_dict(checkpoint.facts)

    def _restore_arrays(self, checkpoint: Checkpoint) -> None:
        arrays, version = checkpoint.arrays, checkpoint.policy_version
        self._ppo.load_state_dict(arrays)
        self._statistics.load_state_dict(part_of(arrays, "statistics."))
        if self._spaces.critic_parts:
            self._critic_statistics.load_state_dict(part_of(arrays, "critic_statistics."))
        self._reward_scaling.load_state_dict(part_of(arrays, "rewards."))
        self._snapshots = [self._snapshot(arrays)]
        if version:
            weights = part_of(arrays, "previous.weights.")
            normalization = arrays["previous.observation_mean"], arrays["previous.observation_scale"]
            self._snapshots.insert(0, PolicySnapshot(version - 1, weights, *normalization))
            lanes = [part_of(arrays, f"lanes.{index}.") for index in range(self._config.experiment.num_lanes)]
            self._coordinator.table.restore(
                [LaneBorder.from_arrays(lane, self._config.experiment, self._spaces) for lane in lanes]
            )

    def _check_finite(self, arrays: dict[str, np.ndarray], metrics: dict[str, Any]) -> None:
        lost = metrics["train/policy_loss"] is None or metrics["train/value_loss"] is None
        if lost or not all(np.isfinite(array).all() for array in arrays.values()):
            raise FloatingPointError(
                f"iteration {self._version - 1} gave weights that are not finite; the checkpoint before it stands."
                " Try a smaller --learning-rate"
            )
