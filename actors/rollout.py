"""Collecting a rollout: one lane stepped T times with one policy, into one trajectory."""

import numpy as np

from actors.episode_metrics import columns
from actors.lane import Lane, Notes
from actors.policy import Policy
from actors.simulation import global_random_state
from protocol.arithmetic import own_context
from protocol.experiment import Experiment
from protocol.messages import Grant
from protocol.randomness import Purpose, generator
from protocol.spaces import Spaces
from protocol.trajectory import Trajectory


def collect_rollout(lane: Lane, policy: Policy, grant: Grant, experiment: Experiment, spaces: Spaces) -> Trajectory:
    """Step `lane` for a whole rollout as granted; it is left at the rollout's end, ready for the next."""
    t, n = experiment.rollout_length, experiment.lane_size
    observations = np.empty((t, n, *spaces.observation.shape), spaces.observation.dtype)
    actions = np.empty((t, n, *spaces.action.shape), spaces.action.dtype)
    parameters = np.empty((t, n, spaces.distribution_size), np.float32)
    rewards = np.zeros((t, n), np.float32)
    terminated = np.zeros((t, n), bool)
    truncated = np.zeros((t, n), bool)
    final_observations, episode_returns, episode_lengths, episode_metrics = [], [], [], []
    allowed = np.empty((t, n, spaces.distribution_size), bool) if spaces.has_action_masks else None
    lane.progress = grant.progress
    initial_hidden_state = lane.hidden_state.copy()
    random_before = global_random_state()
    noise = policy.draw_noise(generator(experiment.seed, Purpose.ACTION_NOISE, lane.index, grant.rollout_index), (t, n))
    own = own_context()
    for step in range(t):
        lane.time = step
        observations[step] = lane.observations
        if allowed is not None:
            allowed[step] = lane.allowed
        actions[step], parameters[step], lane.hidden_state = own.run(
            policy.act, lane.observations, lane.hidden_state, noise[step], lane.allowed
        )
        for env in lane.step(actions[step], rewards[step], terminated[step], truncated[step]):
            if truncated[step, env]:
                final_observations.append(lane.observations[env].copy())
            episode_return, length = lane.episode(env)
            episode_returns.append(episode_return)
            episode_lengths.append(length)
            episode_metrics.append(lane.episode_metrics(env))
            lane.next_episode(env)
    extras = columns(episode_metrics)
    if experiment.hidden_state_size:
        extras |= {"initial_hidden_state": initial_hidden_state, "last_hidden_state": lane.hidden_state.copy()}
    if allowed is not None:
        extras["action_masks"] = np.packbits(allowed, axis=-1)
    notes, lane.notes = lane.notes, Notes(n)
    return Trajectory(
        run_id=grant.run_id,
        lane=lane.index,
        rollout_index=grant.rollout_index,
        policy_version=policy.version,
        fencing_token=grant.fencing_token,
        observations=observations,
        last_observations=lane.observations.copy(),
        actions=actions,
        behaviour_log_probs=own.run(policy.log_prob, parameters, actions),
        rewards=rewards,
        terminated=terminated,
        truncated=truncated,
        final_observations=np.array(final_observations, spaces.observation.dtype).reshape(
            -1, *spaces.observation.shape
        ),
        episode_returns=np.array(episode_returns, np.float64),
        episode_lengths=np.array(episode_lengths, np.int64),
        episode_indices=lane.episode_indices.copy(),
        restarted=notes.restarted,
        digests=np.frombuffer(b"".join(lane.digest(i) for i in range(n)), np.uint8).reshape(n, -1),
        failed_resets=notes.failed_resets,
        faults=tuple(notes.faults),
        fault_count=notes.fault_count,
        moved_global_random=notes.moved_global_random or global_random_state() != random_before,
        extras=extras,
    )
