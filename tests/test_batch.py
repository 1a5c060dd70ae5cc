"""The batch against a literal loop over step, lane and environment."""

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from learner.batch import Batch
from protocol.trajectory import DIGEST_SIZE, Trajectory


@st.composite
def rollouts(draw: st.DrawFn) -> list[Trajectory]:
    """One trajectory from each lane, filled with random numbers, with random ends of episodes."""
    t, n, lanes = draw(st.integers(1, 4)), draw(st.integers(1, 3)), draw(st.integers(1, 4))
    observation_shape, action_shape = draw(st.sampled_from([((), ()), ((3,), (2,)), ((2, 2), ())]))
    has_extras = draw(st.booleans())
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    trajectories = []
    for lane in range(lanes):
        terminated = draw(hnp.arrays(bool, (t, n)))
        truncated = draw(hnp.arrays(bool, (t, n))) & ~terminated
        episodes = int((terminated | truncated).sum())
        extras: dict[str, np.ndarray] = {}
        if has_extras:
            extras = {name: random.standard_normal((n, 3), np.float32) for name in HIDDEN_STATES}
            extras["action_masks"] = random.integers(0, 256, (t, n, 2), np.uint8)
            extras |= {name: random.random(episodes) for name in METRICS if draw(st.booleans())}
        trajectories.append(
            Trajectory(
                run_id="run",
                lane=lane,
                rollout_index=5,
                policy_version=4 - lane % 2,
                fencing_token=1,
                observations=random.standard_normal((t, n, *observation_shape), np.float32),
                last_observations=random.standard_normal((n, *observation_shape), np.float32),
                actions=random.integers(0, 1000, (t, n, *action_shape)),
                behaviour_log_probs=random.standard_normal((t, n), np.float32),
                rewards=random.standard_normal((t, n), np.float32),
                terminated=terminated,
                truncated=truncated,
                final_observations=random.standard_normal((int(truncated.sum()), *observation_shape), np.float32),
                episode_returns=random.standard_normal(episodes),
                episode_lengths=random.integers(1, 1000, episodes),
                episode_indices=np.zeros(n, np.int64),
                restarted=np.zeros(n, bool),
                failed_resets=np.zeros(n, np.int64),
                digests=np.zeros((n, DIGEST_SIZE), np.uint8),
                extras=extras,
                faults=(),
                fault_count=0,
                moved_global_random=False,
            )
        )
    return trajectories


HIDDEN_STATES = ("initial_hidden_state", "last_hidden_state")
METRICS = ("episode/a", "episode/b")  # An episode metric may be missing in a lane none of whose episodes told it.
SIDE_BY_SIDE = ["observations", "actions", "behaviour_log_probs", "rewards", "terminated", "truncated"]


@settings(deadline=None, max_examples=40)
@given(rollouts())
def test_environments_stand_side_by_side_in_lane_order(trajectories: list[Trajectory]) -> None:
    batch = Batch.stack(trajectories)
    steps, lane_size = trajectories[0].rewards.shape
    for name in [*SIDE_BY_SIDE, *(name for name in batch.extras if name == "action_masks")]:
        array = batch.extras[name] if name in batch.extras else getattr(batch, name)
        first = trajectories[0].array(name)
        assert array.shape == (steps, lane_size * len(trajectories), *first.shape[2:]) and array.dtype == first.dtype
        for t in range(steps):
            for lane, trajectory in enumerate(trajectories):
                for n in range(lane_size):
                    expected = trajectory.array(name)[t, n]
                    np.testing.assert_array_equal(array[t, lane * lane_size + n], expected)
    for lane, trajectory in enumerate(trajectories):
        for n in range(lane_size):
            hidden_states = {name: batch.extras[name] for name in HIDDEN_STATES if name in batch.extras}
            per_environment = {"last_observations": batch.last_observations, **hidden_states}
            assert set(batch.extras) == {name for trajectory in trajectories for name in trajectory.extras}
            for name, array in per_environment.items():
                np.testing.assert_array_equal(array[lane * lane_size + n], trajectory.array(name)[n])
    assert batch.size == steps * lane_size * len(trajectories)
    assert batch.policy_versions.tolist() == [t.policy_version for t in trajectories for _ in range(lane_size)]
    assert batch.environments.tolist() == [t.lane * lane_size + n for t in trajectories for n in range(lane_size)]


def metrics_of(trajectory: Trajectory) -> list[np.ndarray]:
    none = np.full(len(trajectory.episode_returns), np.nan)
    return [trajectory.extras.get(name, none) for name in METRICS]


@settings(deadline=None, max_examples=60)
@given(rollouts())
def test_episodes_and_final_observations_come_in_the_order_of_step_and_environment(
    trajectories: list[Trajectory],
) -> None:
    batch = Batch.stack(trajectories)
    finals = [iter(trajectory.final_observations.tolist()) for trajectory in trajectories]
    episodes = [
        iter(list(zip(trajectory.episode_returns, trajectory.episode_lengths, *metrics_of(trajectory), strict=True)))
        for trajectory in trajectories
    ]
    expected_finals: list[Any] = []
    expected_episodes: list[Any] = []
    steps, lane_size = trajectories[0].rewards.shape
    for t in range(steps):
        for lane, trajectory in enumerate(trajectories):
            for n in range(lane_size):
                if trajectory.truncated[t, n]:
                    expected_finals.append(next(finals[lane]))
                if trajectory.terminated[t, n] or trajectory.truncated[t, n]:
                    expected_episodes.append(next(episodes[lane]))
    assert batch.final_observations.tolist() == expected_finals
    assert batch.final_observations.shape[1:] == trajectories[0].final_observations.shape[1:]
    metrics = [batch.extras.get(name, np.full(len(batch.episode_returns), np.nan)) for name in METRICS]
    found = zip(batch.episode_returns, batch.episode_lengths, *metrics, strict=True)
    np.testing.assert_array_equal(list(found), expected_episodes)
    assert batch.episode_returns.dtype == np.float64 and batch.episode_lengths.dtype == np.int64
    assert batch.final_observations.dtype == trajectories[0].final_observations.dtype


@settings(deadline=None, max_examples=20)
@given(rollouts())
def test_the_next_batch_lies_where_the_last_one_did(trajectories: list[Trajectory]) -> None:
    buffers: dict[str, np.ndarray] = {}
    last = Batch.stack(trajectories, buffers)
    other = trajectories[::-1]
    following, alone = Batch.stack(other, buffers), Batch.stack(other)
    for name in SIDE_BY_SIDE:
        assert np.shares_memory(getattr(last, name), getattr(following, name))
        assert not np.shares_memory(getattr(following, name), getattr(alone, name))
        np.testing.assert_array_equal(getattr(following, name), getattr(alone, name))
