"""Schedules of settings: their values at the ends of a run and in between."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import UserError
from rundir.config import PPOConfig
from rundir.schedules import ADAPTIVE_LIMITS, adapt_learning_rate, parse_schedule

SCHEDULES = {
    "constant": {1.0: 1.0, 0.7: 1.0, 0.5: 1.0, 0.0: 1.0},
    "linear": {1.0: 1.0, 0.7: 0.7, 0.5: 0.5, 0.25: 0.25, 0.0: 0.0},
    "cosine": {1.0: 1.0, 0.75: 0.5 + math.sqrt(0.125), 0.5: 0.5, 0.25: 0.5 - math.sqrt(0.125), 0.0: 0.0},
    "1:1,0.5:0.1,0:0.1": {1.0: 1.0, 0.75: 0.55, 0.5: 0.1, 0.25: 0.1, 0.0: 0.1},
    "0:0.2,1:2": {1.0: 2.0, 0.5: 1.1, 0.0: 0.2},
    "0.8:1,0.2:0": {1.0: 1.0, 0.8: 1.0, 0.5: 0.5, 0.2: 0.0, 0.0: 0.0},
    "1:0.3": {1.0: 0.3, 0.5: 0.3, 0.0: 0.3},
    " 1 : 1 , 0 : 0 ": {1.0: 1.0, 0.5: 0.5, 0.0: 0.0},
}


@pytest.mark.parametrize(("text", "expected"), SCHEDULES.items(), ids=SCHEDULES)
def test_a_schedule_gives_the_factor_for_the_progress_that_remains(text: str, expected: dict[float, float]) -> None:
    factor = parse_schedule(text, "--learning-rate-schedule")
    assert {remaining: pytest.approx(factor(remaining), abs=1e-12) for remaining in expected} == expected


@pytest.mark.parametrize("text", ["linear", "cosine", "1:1,0.5:0.1,0:0"])
@given(st.floats(0, 1), st.floats(0, 1))
def test_a_schedule_that_falls_never_rises(text: str, one: float, other: float) -> None:
    factor = parse_schedule(text, "--learning-rate-schedule")
    assert 0 <= factor(min(one, other)) <= factor(max(one, other)) <= 1


WRONG = [
    "",
    "Linear",
    "adaptive",
    "1",
    "1:",
    ":1",
    "1:1,",
    "1:1:1",
    "2:1",
    "-0.1:1",
    "1:-1",
    "1:inf",
    "1:nan",
    "nan:1",
    "1;1",
]


@pytest.mark.parametrize("text", WRONG)
@pytest.mark.parametrize("flag", ["--clip-range-schedule", "--entropy-coef-schedule"])
def test_what_is_no_schedule_is_refused_naming_the_flag(text: str, flag: str) -> None:
    with pytest.raises(UserError) as refusal:
        parse_schedule(text, flag)
    assert f"{flag} {text} is no schedule" in str(refusal.value)
    assert "constant, linear, cosine" in str(refusal.value)
    name = flag.removeprefix("--").replace("-", "_")
    with pytest.raises(UserError, match=flag):
        PPOConfig(**{name: text}).check(64, recurrent=False)  # pyright: ignore[reportArgumentType]


def test_the_learning_rate_alone_may_be_adaptive() -> None:
    PPOConfig(learning_rate_schedule="adaptive").check(64, recurrent=False)
    with pytest.raises(UserError, match="--learning-rate-schedule 1:-1"):
        PPOConfig(learning_rate_schedule="1:-1").check(64, recurrent=False)


@pytest.mark.parametrize(
    ("divergence", "expected"),
    [
        (0.0, 1.5e-3),
        (0.0049, 1.5e-3),
        (0.005, 1e-3),
        (0.01, 1e-3),
        (0.02, 1e-3),
        (0.0201, 1e-3 / 1.5),
        (1.0, 1e-3 / 1.5),
        (-0.001, 1.5e-3),  # Rounding may make an estimate negative.
        (math.inf, 1e-3 / 1.5),
    ],
)
def test_the_learning_rate_falls_after_too_large_a_step_and_rises_after_too_small_a_one(
    divergence: float, expected: float
) -> None:
    assert adapt_learning_rate(1e-3, divergence, desired_kl=0.01) == pytest.approx(expected)


def test_the_adaptive_learning_rate_stays_within_its_limits() -> None:
    low, high = ADAPTIVE_LIMITS
    rate = 1e-3
    for _ in range(30):
        rate = adapt_learning_rate(rate, 1.0, 0.01)
    assert rate == low == 1e-5
    for _ in range(30):
        rate = adapt_learning_rate(rate, 0.0, 0.01)
    assert rate == high == 1e-2
