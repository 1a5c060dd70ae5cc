"""Every purpose has its own random streams, which are the same in every release."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from protocol.randomness import MAX_SEED, Purpose, environment_seed, generator

DRAWS = 100

PINNED_DRAWS = {
    "ACTION_NOISE": 14_045_922_333_479_190_230,
    "EPISODE_SEED": 14_368_496_356_590_248_105,
    "MINIBATCHES": 9_324_809_117_539_188_711,
    "INITIAL_WEIGHTS": 15_824_414_245_243_182_870,
    "EVALUATION_SEED": 9_541_814_677_251_869_306,
}
PINNED_NORMALS = [0.6250666, 0.96053725, -0.7082826]
PINNED_SEED = 1_352_516_834
PINNED_EVALUATION_SEED = 1_071_674_175

counters = st.integers(0, 2**62) | st.integers(0, 3)
keys = st.tuples(st.integers(0, MAX_SEED) | st.integers(0, 3), st.sampled_from(Purpose), counters, counters)


def raw(seed: int, purpose: Purpose, a: int = 0, b: int = 0, draws: int = DRAWS) -> list[int]:
    return generator(seed, purpose, a, b).bit_generator.random_raw(draws).tolist()


@settings(deadline=None, max_examples=50)
@given(keys)
@example((MAX_SEED, Purpose.ACTION_NOISE, 2**63 - 1, 2**63 - 1))
def test_equal_keys_give_equal_streams(key: tuple[int, Purpose, int, int]) -> None:
    assert raw(*key) == raw(*key)


def test_a_generator_knows_nothing_of_another() -> None:
    expected = raw(0, Purpose.ACTION_NOISE, 1, 2)
    one, other = generator(0, Purpose.ACTION_NOISE, 1, 2), generator(0, Purpose.ACTION_NOISE, 1, 2)
    drawn = [int((one, other)[i % 2].bit_generator.random_raw()) for i in range(2 * DRAWS)]
    assert drawn[::2] == drawn[1::2] == expected


@settings(deadline=None, max_examples=100)
@given(st.lists(keys, min_size=2, max_size=2, unique=True))
def test_distinct_keys_give_distinct_first_draws(pair: list[tuple[int, Purpose, int, int]]) -> None:
    assert raw(*pair[0], draws=1) != raw(*pair[1], draws=1)


def test_purposes_share_no_numbers() -> None:
    drawn = [number for purpose in Purpose for number in raw(7, purpose)]
    assert len(set(drawn)) == len(Purpose) * DRAWS


@settings(deadline=None, max_examples=50)
@given(st.integers(0, MAX_SEED), st.sampled_from(Purpose), counters, counters)
def test_neighbouring_streams_do_not_overlap(seed: int, purpose: Purpose, a: int, b: int) -> None:
    streams = {(a, b), (a + 1, b), (a, b + 1), (b, a), (b, a + 1)}
    drawn = [number for stream in streams for number in raw(seed, purpose, *stream)]
    assert len(set(drawn)) == len(streams) * DRAWS


def test_the_streams_are_those_of_earlier_releases() -> None:
    assert {purpose.name: raw(7, purpose, 3, 5, draws=1)[0] for purpose in Purpose} == PINNED_DRAWS
    np.testing.assert_array_equal(
        generator(0, Purpose.ACTION_NOISE, 1, 2).standard_normal(3, np.float32), np.array(PINNED_NORMALS, np.float32)
    )
    assert environment_seed(0, Purpose.EPISODE_SEED, 1, 2) == PINNED_SEED
    assert environment_seed(0, Purpose.EVALUATION_SEED, 1) == PINNED_EVALUATION_SEED


@settings(deadline=None, max_examples=50)
@given(keys)
def test_an_environment_seed_has_31_bits(key: tuple[int, Purpose, int, int]) -> None:
    seed = environment_seed(*key)
    assert type(seed) is int and 0 <= seed < 2**31


def test_environment_seeds_take_the_whole_range() -> None:
    seeds = [environment_seed(0, Purpose.EPISODE_SEED, env, episode) for env in range(40) for episode in range(40)]
    assert len(set(seeds)) == 1600
    assert min(seeds) < 2**31 * 0.01 and max(seeds) > 2**31 * 0.99


@pytest.mark.parametrize("key", [(-1, 0, 0), (0, -1, 0), (0, 0, -1), (2**64, 0, 0)])
def test_a_key_out_of_range_is_an_error(key: tuple[int, int, int]) -> None:
    with pytest.raises(OverflowError):
        generator(key[0], Purpose.ACTION_NOISE, *key[1:])
