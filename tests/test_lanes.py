"""`LaneBorder` against a simple model: for each environment, the actions since its last reset."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from learner.borders import LaneBorder, from_bits, to_bits
from protocol.experiment import Experiment
from protocol.trajectory import DIGEST_SIZE, LaneState, Trajectory


@given(hnp.arrays(np.int64, hnp.array_shapes(max_dims=2, min_side=0), elements=st.integers(0, 2**62)))
def test_integers_come_back_from_their_bits(numbers: np.ndarray) -> None:
    np.testing.assert_array_equal(from_bits(to_bits(numbers), numbers.shape, "int64"), numbers, strict=True)


@pytest.mark.parametrize(("largest", "nbytes"), [(0, 100), (1, 100), (2, 200), (17, 500), (255, 800), (256, 900)])
def test_integers_take_as_many_bits_as_the_largest(largest: int, nbytes: int) -> None:
    assert to_bits(np.full(800, largest)).nbytes == nbytes


def test_bits_of_another_number_of_integers_are_refused() -> None:
    with pytest.raises(ValueError, match="not those of 801 numbers"):
        from_bits(to_bits(np.zeros(800, np.int64)), (801,), "int64")


def trajectory(
    rollout_index: int, terminated: np.ndarray, truncated: np.ndarray, restarted: np.ndarray, action_shape: tuple = ()
) -> Trajectory:
    """A rollout whose actions, indices, digests and hidden states are distinct numbers."""
    t, n = terminated.shape
    size = t * n * int(np.prod(action_shape))
    done = terminated | truncated
    return Trajectory(
        run_id="run",
        lane=0,
        rollout_index=rollout_index,
        policy_version=rollout_index,
        fencing_token=1,
        observations=np.zeros((t, n, 1), np.float32),
        last_observations=np.zeros((n, 1), np.float32),
        actions=(1000 * rollout_index + np.arange(size)).reshape(t, n, *action_shape),
        behaviour_log_probs=np.zeros((t, n), np.float32),
        rewards=np.zeros((t, n), np.float32),
        terminated=terminated,
        truncated=truncated,
        final_observations=np.zeros((int(truncated.sum()), 1), np.float32),
        episode_returns=np.zeros(int(done.sum())),
        episode_lengths=np.zeros(int(done.sum()), np.int64),
        episode_indices=10 * rollout_index + np.arange(n),
        restarted=restarted,
        failed_resets=np.zeros(n, np.int64),
        digests=np.full((n, DIGEST_SIZE), rollout_index, np.uint8),
        extras={
            "initial_hidden_state": np.full((n, 3), rollout_index - 0.5, np.float32),
            "last_hidden_state": (rollout_index + 0.25 * np.arange(3 * n)).reshape(n, 3).astype(np.float32),
        },
        faults=(),
        fault_count=0,
        moved_global_random=False,
    )


@st.composite
def histories(draw: st.DrawFn) -> list[Trajectory]:
    """A lane's first consecutive rollouts."""
    t, n = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    action_shape = draw(st.sampled_from([(), (2,)]))
    often = draw(st.sampled_from([0.0, 0.2, 0.7]))
    history = []
    for index in range(draw(st.integers(1, 6))):
        ended = draw(hnp.arrays(np.float64, (t, n), elements=st.floats(0, 1))) < often
        truncated = draw(hnp.arrays(bool, (t, n)))
        restarted = draw(hnp.arrays(bool, n)) & (index > 0)
        history.append(trajectory(index, ended & ~truncated, ended & truncated, restarted, action_shape))
    return history


def first_border(size: int) -> LaneBorder:
    return LaneBorder.first(Experiment(num_envs=size, lane_size=size, recurrent_size=3))


def replayed(history: list[Trajectory]) -> list[list]:
    """For each environment, the actions to repeat, collected step by step."""
    logs: list[list] = [[] for _ in history[0].restarted]
    for rollout in history:
        for n, log in enumerate(logs):
            if rollout.restarted[n]:
                log.clear()
            for t in range(len(rollout.actions)):
                log.append(rollout.actions[t, n].tolist())
                if rollout.terminated[t, n] or rollout.truncated[t, n]:
                    log.clear()
    return logs


def assert_same(a: LaneState, b: LaneState) -> None:
    for name, value in vars(a).items():
        np.testing.assert_array_equal(getattr(b, name), value, strict=True)


@settings(deadline=None, max_examples=60)
@given(histories())
def test_a_border_has_the_progress_with_which_each_episode_began(history: list[Trajectory]) -> None:
    border = first_border(len(history[0].restarted))
    expected = [0.0] * len(history[0].restarted)
    for count, rollout in enumerate(history, start=1):
        indices, border = border.episode_indices, border.after(rollout, count / 10)
        expected = [
            count / 10 if index > before else told
            for index, before, told in zip(rollout.episode_indices, indices, expected, strict=True)
        ]
        assert border.state().progress.tolist() == expected and border.state().progress.dtype == np.float64


@settings(deadline=None, max_examples=60)
@given(histories())
def test_a_border_replays_the_actions_since_each_last_reset(history: list[Trajectory]) -> None:
    border = first_border(len(history[0].restarted))
    for count, rollout in enumerate(history, start=1):
        border = border.after(rollout)
        state, expected = border.state(), replayed(history[:count])
        assert [state.actions_of(n).tolist() for n in range(len(expected))] == expected
        assert state.episode_steps.tolist() == [len(log) for log in expected]
        assert state.actions.shape == (sum(map(len, expected)), *rollout.actions.shape[2:])
        assert state.rollout_index == border.rollout_index == count
        assert state.actions.dtype == rollout.actions.dtype and state.episode_steps.dtype == np.int64
        np.testing.assert_array_equal(state.episode_indices, rollout.episode_indices)
        np.testing.assert_array_equal(state.digests, rollout.digests)
        np.testing.assert_array_equal(state.hidden_state, rollout.extras["last_hidden_state"])


@settings(deadline=None, max_examples=30)
@given(histories(), st.data())
def test_a_border_made_of_its_state_goes_on_as_the_border_itself(
    history: list[Trajectory], data: st.DataObject
) -> None:
    border = resumed = first_border(len(history[0].restarted))
    for rollout in history:
        border, resumed = border.after(rollout), resumed.after(rollout)
        assert_same(border.state(), resumed.state())
        if data.draw(st.booleans()):
            resumed = LaneBorder.of(resumed.state())
            assert_same(border.state(), resumed.state())


def ended(*where: tuple[int, int]) -> np.ndarray:
    flags = np.zeros((3, 2), bool)
    for t, n in where:
        flags[t, n] = True
    return flags


NEVER, NONE = ended(), np.zeros(2, bool)


@pytest.mark.parametrize("kind", ["terminated", "truncated"])
def test_an_episode_that_ends_leaves_only_what_came_after(kind: str) -> None:
    border = first_border(2).after(trajectory(0, NEVER, NEVER, NONE))
    rollout = replace(trajectory(1, NEVER, NEVER, NONE), **{kind: ended((0, 1), (1, 1))})
    state = border.after(rollout).state()
    assert state.actions_of(0).tolist() == [0, 2, 4, 1000, 1002, 1004]
    assert state.actions_of(1).tolist() == [1005]


def test_an_episode_that_ends_with_the_rollout_leaves_nothing() -> None:
    state = first_border(2).after(trajectory(0, ended((2, 0)), ended((2, 1)), NONE)).state()
    assert state.episode_steps.tolist() == [0, 0] and state.actions.shape == (0,)


def test_an_environment_that_restarted_forgets_what_it_could_not_replay() -> None:
    border = first_border(2).after(trajectory(0, NEVER, NEVER, NONE))
    state = border.after(trajectory(1, NEVER, NEVER, np.array([True, False]))).state()
    assert state.actions_of(0).tolist() == [1000, 1002, 1004]
    assert state.actions_of(1).tolist() == [1, 3, 5, 1001, 1003, 1005]


def test_a_border_stays_as_it_was_when_the_lane_goes_on() -> None:
    border = first_border(2).after(trajectory(0, NEVER, NEVER, NONE))
    before = border.state()
    border.after(trajectory(1, ended((1, 0)), NEVER, NONE)).after(trajectory(2, NEVER, NEVER, ~NONE))
    assert_same(before, border.state())


def test_a_border_keeps_no_trajectory_alive() -> None:
    rollout = trajectory(0, NEVER, NEVER, NONE)
    border = first_border(2).after(rollout)
    assert not any(np.shares_memory(piece, rollout.actions) for log in border.logs for piece in log)


def test_the_first_border_has_nothing_to_replay() -> None:
    border = first_border(3)
    assert border.rollout_index == 0 and border.logs == ((), (), ())
    assert border.episode_indices.tolist() == [0, 0, 0]
    np.testing.assert_array_equal(border.hidden_state, np.zeros((3, 3), np.float32), strict=True)


def test_a_border_is_that_of_the_rollout_after() -> None:
    rollout = trajectory(4, NEVER, NEVER, NONE)
    border = replace(first_border(2), rollout_index=4).after(rollout)
    assert border.state().rollout_index == 5
