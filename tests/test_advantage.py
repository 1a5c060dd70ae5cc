"""GAE and V-trace against the papers' own sums, written out term by term in float64."""

import dataclasses
from dataclasses import dataclass

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from learner.advantage import Steps, vtrace


@dataclass(frozen=True)
class Rollout:
    rewards: np.ndarray  # [T, N], as all arrays here.
    values: np.ndarray
    next_values: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    ratios: np.ndarray

    def gae(self, discount: float, gae_lambda: float) -> tuple[np.ndarray, np.ndarray]:
        facts = (self.rewards, self.values, self.next_values, self.terminated, self.truncated)
        return vtrace(Steps(*facts), np.ones(self.rewards.shape), discount=discount, gae_lambda=gae_lambda)

    def vtrace(self, discount: float, gae_lambda: float) -> tuple[np.ndarray, np.ndarray]:
        facts = (self.rewards, self.values, self.next_values, self.terminated, self.truncated)
        return vtrace(Steps(*facts), self.ratios, discount=discount, gae_lambda=gae_lambda)

    def end(self, t: int, n: int) -> int:
        """The last step of the episode that contains step t of environment n, or of the rollout."""
        ends = [k for k in range(t, len(self.rewards)) if self.terminated[k, n] or self.truncated[k, n]]
        return ends[0] if ends else len(self.rewards) - 1

    def next_value(self, t: int, n: int) -> float:
        return 0.0 if self.terminated[t, n] else float(self.next_values[t, n])


def random_rollout(seed: int, length: int = 8, num_envs: int = 3, dtype: str = "float64") -> Rollout:
    random = np.random.default_rng(seed)
    shape = (length, num_envs)
    ends = random.random(shape) < 0.3
    terminated = ends & (random.random(shape) < 0.5)
    truncated = ends & ~terminated
    values = random.standard_normal((length + 1, num_envs)).astype(dtype)
    next_values = np.where(truncated, random.standard_normal(shape), values[1:])
    next_values[terminated] = np.nan
    return Rollout(
        rewards=random.standard_normal(shape).astype(dtype),
        values=values[:-1],
        next_values=next_values.astype(dtype),
        terminated=terminated,
        truncated=truncated,
        ratios=np.exp(random.standard_normal(shape)).astype(dtype),
    )


def single(rewards: list[float], values: list[float], next_values: list[float], ratios: list[float]) -> Rollout:
    columns = [np.array(column)[:, None] for column in (rewards, values, next_values, ratios)]
    never = np.zeros((len(rewards), 1), bool)
    return Rollout(columns[0], columns[1], columns[2], never, never, columns[3])


def literal_gae(rollout: Rollout, discount: float, gae_lambda: float) -> np.ndarray:
    """The exponential average of the k-step advantages, before the paper telescopes it (1506.02438, equations 11-16).

    Every k-step advantage past the end is the longest one.
    """
    advantages = np.zeros(rollout.rewards.shape)
    for t, n in np.ndindex(advantages.shape):
        longest = rollout.end(t, n) - t + 1
        for k in range(1, longest + 1):
            rewards = sum(discount**i * float(rollout.rewards[t + i, n]) for i in range(k))
            bootstrap = discount**k * rollout.next_value(t + k - 1, n)
            weight = gae_lambda ** (k - 1) * (1 if k == longest else 1 - gae_lambda)
            advantages[t, n] += weight * (rewards + bootstrap - float(rollout.values[t, n]))
    return advantages


def literal_vtrace(rollout: Rollout, discount: float, gae_lambda: float) -> tuple[np.ndarray, np.ndarray]:
    """Equation 1 of 1802.01561 with c = λ·min(1, ratio) of remark 2, and the advantage of the decoupled objective."""
    targets = np.zeros(rollout.rewards.shape)
    for s, n in np.ndindex(targets.shape):
        targets[s, n] = rollout.values[s, n]
        for t in range(s, rollout.end(s, n) + 1):
            traces = np.prod([gae_lambda * min(1.0, float(rollout.ratios[i, n])) for i in range(s, t)])
            error = rollout.rewards[t, n] + discount * rollout.next_value(t, n) - rollout.values[t, n]
            targets[s, n] += discount ** (t - s) * traces * min(1.0, float(rollout.ratios[t, n])) * error
    advantages = np.zeros(rollout.rewards.shape)
    for t, n in np.ndindex(advantages.shape):
        next_value = rollout.next_value(t, n)
        next_target = next_value if t == rollout.end(t, n) else targets[t + 1, n]
        mixed = (1 - gae_lambda) * next_value + gae_lambda * next_target
        advantages[t, n] = rollout.rewards[t, n] + discount * mixed - rollout.values[t, n]
    return advantages, targets


def assert_close(actual: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


unit = st.sampled_from([0.0, 1.0]) | st.floats(0, 1)
rollouts = st.builds(
    random_rollout,
    seed=st.integers(0, 2**32),
    length=st.integers(1, 12),
    num_envs=st.integers(1, 3),
    dtype=st.sampled_from(["float32", "float64"]),
)


@settings(max_examples=60, deadline=None)
@given(rollout=rollouts, discount=unit, gae_lambda=unit)
def test_gae_is_the_average_of_the_k_step_advantages(rollout: Rollout, discount: float, gae_lambda: float) -> None:
    advantages, targets = rollout.gae(discount, gae_lambda)
    expected = literal_gae(rollout, discount, gae_lambda)
    assert_close(advantages, expected)
    assert_close(targets, rollout.values + expected)
    assert advantages.dtype == targets.dtype == rollout.values.dtype


@settings(max_examples=60, deadline=None)
@given(rollout=rollouts, discount=unit, gae_lambda=unit)
def test_vtrace_is_the_papers_sum(rollout: Rollout, discount: float, gae_lambda: float) -> None:
    advantages, targets = rollout.vtrace(discount, gae_lambda)
    expected_advantages, expected_targets = literal_vtrace(rollout, discount, gae_lambda)
    assert_close(advantages, expected_advantages)
    assert_close(targets, expected_targets)
    assert advantages.dtype == targets.dtype == rollout.values.dtype


@settings(max_examples=30, deadline=None)
@given(rollout=rollouts, discount=unit, gae_lambda=unit)
def test_vtrace_is_gae_where_all_ratios_are_one(rollout: Rollout, discount: float, gae_lambda: float) -> None:
    on_policy = dataclasses.replace(rollout, ratios=np.ones_like(rollout.ratios))
    assert_close(on_policy.vtrace(discount, gae_lambda)[0], literal_gae(rollout, discount, gae_lambda))


def test_gae_of_a_rollout_worked_out_by_hand() -> None:
    # Errors 1 + .9·.4 − .5 = .86, 2 + .9·.3 − .4 = 1.87 and 3 + .9·1 − .3 = 3.6; each advantage adds .45 of the next.
    rollout = single([1, 2, 3], [0.5, 0.4, 0.3], [0.4, 0.3, 1.0], [1, 1, 1])
    advantages, targets = rollout.gae(0.9, 0.5)
    assert_close(advantages[:, 0], np.array([2.4305, 3.49, 3.6]))
    assert_close(targets[:, 0], np.array([2.9305, 3.89, 3.9]))


def test_vtrace_of_a_rollout_worked_out_by_hand() -> None:
    # The middle step counts half: its correction is 3.49 / 2 = 1.745, and the first advantage .86 + .45·1.745.
    rollout = single([1, 2, 3], [0.5, 0.4, 0.3], [0.4, 0.3, 1.0], [2, 0.5, 1])
    advantages, targets = rollout.vtrace(0.9, 0.5)
    assert_close(advantages[:, 0], np.array([1.64525, 3.49, 3.6]))
    assert_close(targets[:, 0], np.array([2.14525, 2.145, 3.9]))


def with_end(rollout: Rollout, flag: str, t: int) -> Rollout:
    ends = np.zeros_like(rollout.terminated)
    ends[t] = True
    cleared = {name: np.zeros_like(ends) for name in ("terminated", "truncated")}
    return dataclasses.replace(rollout, **{**cleared, flag: ends})


def test_truncation_bootstraps_from_the_final_observation() -> None:
    rollout = with_end(single([1, 2, 3], [0.5, 0.4, 0.3], [0.4, 7.0, 1.0], [1, 1, 1]), "truncated", 1)
    advantages, _ = rollout.gae(0.9, 0.5)
    assert_close(advantages[1], np.array([2 + 0.9 * 7.0 - 0.4]))


def test_termination_does_not_bootstrap() -> None:
    rollout = with_end(single([1, 2, 3], [0.5, 0.4, 0.3], [0.4, 7.0, 1.0], [1, 1, 1]), "terminated", 1)
    advantages, _ = rollout.gae(0.9, 0.5)
    assert_close(advantages[1], np.array([2 - 0.4]))


def test_the_rollouts_end_bootstraps_from_the_last_observation() -> None:
    rollout = single([3], [0.3], [5.0], [1])
    assert_close(rollout.gae(0.9, 0.5)[0], np.array([[3 + 0.9 * 5.0 - 0.3]]))


def test_nothing_reaches_past_an_episodes_end() -> None:
    for flag in ("terminated", "truncated"):
        one, other = (with_end(random_rollout(seed), flag, 4) for seed in (1, 2))
        names = ("rewards", "values", "next_values", "ratios")
        clean = {name: np.nan_to_num(getattr(one, name)) for name in names}
        spliced = {name: np.concatenate([clean[name][:5], np.nan_to_num(getattr(other, name)[5:])]) for name in names}
        before, after = dataclasses.replace(one, **clean), dataclasses.replace(one, **spliced)
        for ours, theirs in zip(before.vtrace(0.9, 0.8), after.vtrace(0.9, 0.8), strict=True):
            np.testing.assert_array_equal(ours[:5], theirs[:5])
            assert not np.allclose(ours[5:], theirs[5:])


def test_lambda_zero_is_the_temporal_difference_error() -> None:
    rollout = single([1, 2, 3], [0.5, 0.4, 0.3], [0.4, 0.3, 1.0], [1, 1, 1])
    assert_close(rollout.gae(0.9, 0.0)[0][:, 0], np.array([0.86, 1.87, 3.6]))


def test_lambda_one_is_the_discounted_return_less_the_value() -> None:
    rollout = single([1, 2, 3], [0.5, 0.4, 0.3], [0.4, 0.3, 1.0], [1, 1, 1])
    returns = np.array([1 + 0.9 * 2 + 0.81 * 3 + 0.729, 2 + 0.9 * 3 + 0.81, 3 + 0.9])
    assert_close(rollout.gae(0.9, 1.0)[1][:, 0], returns)


def test_a_ratio_of_zero_leaves_the_value_as_its_target() -> None:
    rollout = random_rollout(3)
    rollout = dataclasses.replace(rollout, ratios=np.zeros_like(rollout.ratios))
    np.testing.assert_array_equal(rollout.vtrace(0.9, 0.8)[1], rollout.values)


def test_ratios_above_one_count_as_one() -> None:
    rollout = random_rollout(4)
    capped = dataclasses.replace(rollout, ratios=np.minimum(rollout.ratios, 1))
    for ours, theirs in zip(rollout.vtrace(0.9, 0.8), capped.vtrace(0.9, 0.8), strict=True):
        np.testing.assert_array_equal(ours, theirs)
