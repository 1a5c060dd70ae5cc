"""Environments: description of their spaces, conversion of observations and actions, and construction."""

import os
import signal
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces as gym_spaces

from actors.arguments import load_wrapper, parse_env_kwargs
from actors.environment import check_registered, make_environment, reset_environment
from actors.interface import ActionConverter, ObservationConverter
from actors.spaces import action_form, describe_spaces, observation_form
from protocol.errors import UserError
from protocol.experiment import Experiment
from protocol.spaces import BoxSpace, ObservationPart, Spaces
from tests.environments import EverySpace

EVERY = "tests.environments:EverySpace-v0"


def describe(observation: gymnasium.Space, action: gymnasium.Space | None = None, network: str = "auto") -> Spaces:
    """The description of an environment with these spaces."""
    env = gymnasium.Env()
    env.observation_space, env.action_space = observation, gym_spaces.Discrete(2) if action is None else action
    spaces = describe_spaces(env, Experiment(network=network))
    spaces.check()
    return spaces


def box(dtype: Any, *shape: int) -> gym_spaces.Box:
    return gym_spaces.Box(0, 255 if dtype is np.uint8 else 9, shape, dtype)


IMAGE = "image"
OBSERVATIONS = {
    "float64 numbers, stored as float32": (box(np.float64, 2, 3), "numbers", "float32", (2, 3), ()),
    "float32 numbers": (box(np.float32, 4), "numbers", "float32", (4,), ()),
    "float16 numbers": (box(np.float16, 4), "numbers", "float16", (4,), ()),
    "one number": (box(np.float32), "numbers", "float32", (), ()),
    "integers": (box(np.int32, 2), "numbers", "int32", (2,), ()),
    "bytes in a row": (box(np.uint8, 128), "numbers", "uint8", (128,), ()),
    "a small table of bytes": (box(np.uint8, 35, 100), "numbers", "uint8", (35, 100), ()),
    "a grey image": (box(np.uint8, 36, 100), IMAGE, "uint8", (36, 100), ()),
    "an image": (box(np.uint8, 7, 7, 3), IMAGE, "uint8", (7, 7, 3), ()),
    "images": (box(np.uint8, 4, 3, 8, 8), IMAGE, "uint8", (4, 3, 8, 8), ()),
    "an image of floats": (box(np.float32, 7, 7, 3), "numbers", "float32", (7, 7, 3), ()),
    "a choice": (gym_spaces.Discrete(5, start=3), "choices", "int64", (), (5,)),
    "choices": (gym_spaces.MultiDiscrete([3, 4], start=[1, -2]), "choices", "int64", (2,), (3, 4)),
    "a table of choices": (
        gym_spaces.MultiDiscrete(np.array([[3, 4], [2, 5]])),
        "choices",
        "int64",
        (2, 2),
        (3, 4, 2, 5),
    ),
    "bits": (gym_spaces.MultiBinary((2, 2)), "binary", "int8", (2, 2), ()),
}


@pytest.mark.parametrize(("space", "kind", "dtype", "shape", "choices"), OBSERVATIONS.values(), ids=OBSERVATIONS)
def test_every_observation_space_is_described(
    space: gymnasium.Space, kind: Any, dtype: str, shape: tuple[int, ...], choices: tuple[int, ...]
) -> None:
    spaces = describe(space)
    assert spaces.parts == (ObservationPart(kind, BoxSpace(shape, dtype), choices),)
    assert spaces.observation == BoxSpace(shape, dtype)
    (as_numbers,) = describe(space, network="mlp").parts
    assert as_numbers.kind == ("numbers" if kind == IMAGE else kind)


NESTED = gym_spaces.Dict(
    {
        "where": box(np.float64, 3),
        "bag": gym_spaces.Tuple((gym_spaces.Discrete(4), gym_spaces.Dict({"seen": gym_spaces.MultiBinary(3)}))),
        "camera": box(np.uint8, 6, 6, 3),
    }
)


def test_a_dict_is_described_by_its_leaves_in_the_spaces_own_order() -> None:
    spaces = describe(NESTED)
    assert [(part.kind, part.box.shape) for part in spaces.parts] == [
        (("choices", ()), ("binary", (3,)), ("image", (6, 6, 3)), ("numbers", (3,)))[i]
        for i in (["bag", "seen", "camera", "where"].index(name) for name in leaf_names(NESTED))
    ]
    assert spaces.observation == BoxSpace((8 + 3 + 108 + 12,), "uint8")


def leaf_names(space: gym_spaces.Dict) -> list[str]:
    return [name for key in space.spaces for name in (("bag", "seen") if key == "bag" else (key,))]


def test_a_dict_of_one_leaf_is_described_as_that_leaf() -> None:
    assert describe(gym_spaces.Dict({"x": box(np.float32, 4)})) == describe(box(np.float32, 4))


ACTIONS = {
    "a choice": (gym_spaces.Discrete(3, start=5), (), "int64", "categorical", (3,), 3),
    "choices": (gym_spaces.MultiDiscrete(np.array([[2, 3], [4, 2]])), (2, 2), "int64", "categorical", (2, 3, 4, 2), 11),
    "bits": (gym_spaces.MultiBinary((2, 2)), (2, 2), "int8", "bernoulli", (), 4),
    "float32": (box(np.float32, 2, 2), (2, 2), "float32", "gaussian", (), 4),
    "float64": (gym_spaces.Box(-np.inf, np.inf, (3,), np.float64), (3,), "float32", "gaussian", (), 3),
}


@pytest.mark.parametrize(("space", "shape", "dtype", "distribution", "choices", "size"), ACTIONS.values(), ids=ACTIONS)
def test_every_action_space_is_described(
    space: gymnasium.Space,
    shape: tuple[int, ...],
    dtype: str,
    distribution: str,
    choices: tuple[int, ...],
    size: int,
) -> None:
    spaces = describe(box(np.float32, 4), space)
    assert spaces.action == BoxSpace(shape, dtype)
    assert (spaces.distribution, spaces.choices, spaces.distribution_size) == (distribution, choices, size)


@pytest.mark.parametrize(
    ("observation", "action", "named"),
    [
        (gym_spaces.Text(5), gym_spaces.Discrete(2), "observation space Text"),
        (gym_spaces.Dict({"x": box(np.float32), "y": gym_spaces.Text(5)}), gym_spaces.Discrete(2), "space Text"),
        (gym_spaces.Sequence(box(np.float32)), gym_spaces.Discrete(2), "observation space Sequence"),
        (box(np.float32), gym_spaces.Dict({"a": gym_spaces.Discrete(2)}), "action space Dict"),
        (box(np.float32), box(np.int64, 2), "action space Box"),
        (box(np.float32), gym_spaces.Tuple((gym_spaces.Discrete(2),)), "action space Tuple"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_space_that_is_not_supported_is_named(
    observation: gymnasium.Space, action: gymnasium.Space, named: str
) -> None:
    with pytest.raises(UserError) as refusal:
        describe(observation, action)
    assert named in str(refusal.value)
    assert "is not supported" in str(refusal.value)


# Observations


def walk(space: gymnasium.Space, value: Any) -> list[tuple[gymnasium.Space, Any]]:
    """The leaves of an observation, each with its space, in the order that the space lists them."""
    if isinstance(space, gym_spaces.Dict):
        return [leaf for key, inner in space.spaces.items() for leaf in walk(inner, value[key])]
    if isinstance(space, gym_spaces.Tuple):
        return [leaf for inner, item in zip(space.spaces, value, strict=True) for leaf in walk(inner, item)]
    return [(space, value)]


@pytest.mark.parametrize("name", [name for name in EverySpace.OBSERVATIONS if name != "text"])
def test_what_is_stored_unpacks_into_what_was_observed_counted_from_zero(name: str) -> None:
    space = EverySpace.OBSERVATIONS[name]
    spaces = describe(space)
    convert = ObservationConverter(observation_form(space, Experiment()), spaces)
    space.seed(0)
    observed = [space.sample() for _ in range(20)]
    block = np.stack([convert(value) for value in observed])
    assert block.shape[1:] == spaces.observation.shape
    assert block.dtype == spaces.observation.dtype
    spaces.check_observations(block)
    for i, value in enumerate(observed):
        leaves = walk(space, value)
        for (inner, leaf), found in zip(leaves, spaces.unpack(block), strict=True):
            start = getattr(inner, "start", 0)
            expected = np.asarray(leaf) - start
            np.testing.assert_array_equal(found[i], expected.astype(found.dtype))


SPOILT = {
    "a shape that would broadcast": ("matrix", np.zeros(3)),
    "a row too many": ("matrix", np.zeros((3, 3))),
    "a float for a byte": ("ram", np.full(16, 0.5)),
    "a choice below the start": ("discrete", 2),
    "a choice too far": ("discrete", 8),
    "a choice below its own start": ("multi_discrete", np.array([0, 0])),
    "another number's choice": ("multi_discrete", np.array([3, 2])),
    "a bit of two": ("multi_binary", np.array([[0, 2], [0, 0]], np.int8)),
    "a choice that is a float": ("discrete", 4.0),
}


@pytest.mark.parametrize(("name", "value"), SPOILT.values(), ids=SPOILT)
def test_an_observation_not_of_its_space_is_refused(name: str, value: Any) -> None:
    space = EverySpace.OBSERVATIONS[name]
    with pytest.raises(ValueError, match="the observation"):
        ObservationConverter(observation_form(space, Experiment()), describe(space))(value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("where", np.array([0, np.nan, 0])),
        ("where", np.array([0, np.inf, 0])),
        ("where", np.zeros(2)),
        ("camera", np.zeros((12, 12, 3), np.uint8)),
        ("bag", (3, np.zeros(3, np.int8))),
        ("bag", (-1, np.array([0, 3, 0], np.int8))),
    ],
)
def test_an_observation_of_several_parts_is_refused_for_any_of_them(key: str, value: Any) -> None:
    space = EverySpace.OBSERVATIONS["dict"]
    convert = ObservationConverter(observation_form(space, Experiment()), describe(space))
    space.seed(0)
    observation = space.sample()
    convert(observation)
    with pytest.raises(ValueError, match="the observation"):
        convert(observation | {key: value})


def test_a_part_that_is_missing_is_an_error() -> None:
    space = EverySpace.OBSERVATIONS["dict"]
    observation = space.sample()
    del observation["camera"]
    with pytest.raises(ValueError, match="part camera is missing"):
        ObservationConverter(observation_form(space, Experiment()), describe(space))(observation)


# Actions


def convert_actions(space: gymnasium.Space, actions: Any) -> list:
    spaces = describe(box(np.float32), space)
    converted = ActionConverter(action_form(space), spaces)(np.array(actions, spaces.action.dtype))
    assert all(space.contains(action) for action in converted), converted
    return converted


def test_a_choice_is_counted_from_the_start_of_its_space() -> None:
    assert convert_actions(gym_spaces.Discrete(3, start=-1), [0, 2, 1]) == [-1, 1, 0]


def test_each_of_several_choices_is_counted_from_its_own_start() -> None:
    space = gym_spaces.MultiDiscrete([3, 4], start=[1, -2])
    assert [action.tolist() for action in convert_actions(space, [[0, 0], [2, 3]])] == [[1, -2], [3, 1]]


def test_bits_stay_bits_in_their_shape() -> None:
    converted = convert_actions(gym_spaces.MultiBinary((2, 2)), [[[0, 1], [1, 1]]])
    assert converted[0].tolist() == [[0, 1], [1, 1]]


def test_a_box_of_actions_is_clipped_to_each_bound_of_its_own() -> None:
    space = gym_spaces.Box(np.array([-1, -np.inf], np.float64), np.array([0.5, 2], np.float64), dtype=np.float64)
    converted = convert_actions(space, [[-3, -1e9], [3, 3], [0.25, 1.5]])
    assert [action.tolist() for action in converted] == [[-1, -1e9], [0.5, 2], [0.25, 1.5]]
    assert all(action.dtype == np.float64 for action in converted)


def test_converting_leaves_the_actions_alone() -> None:
    actions = np.array([[5.0, -5.0]], np.float32)
    space = gym_spaces.Box(-1, 1, (2,), np.float32)
    ActionConverter(action_form(space), describe(box(np.float32), space))(actions)
    assert actions.tolist() == [[5, -5]]


# Making environments


def test_keyword_arguments_are_literals_or_text() -> None:
    items = ("a=1", "b=[1, 2]", "c='x=y'", "d=plain text", "e=None", "f=__import__('os')", "g=", "h=a=b")
    assert parse_env_kwargs(items) == {
        "a": 1,
        "b": [1, 2],
        "c": "x=y",
        "d": "plain text",
        "e": None,
        "f": "__import__('os')",
        "g": "",
        "h": "a=b",
    }


@pytest.mark.parametrize("item", ["a", "=1", "1a=2", "a b=1", ""])
def test_what_is_no_keyword_argument_is_refused(item: str) -> None:
    with pytest.raises(UserError, match="is not name=value"):
        parse_env_kwargs((item,))


def test_a_wrapper_comes_with_its_keyword_arguments() -> None:
    scaled = gymnasium.wrappers.RescaleAction
    assert load_wrapper("gymnasium.wrappers:RescaleAction") == (scaled, {})
    arguments = {"min_action": -1.0, "max_action": [2, 3]}
    assert load_wrapper("gymnasium.wrappers:RescaleAction(min_action=-1.0, max_action=[2, 3])") == (scaled, arguments)


@pytest.mark.parametrize(
    "text",
    [
        "nowhere:Wrapper",
        "gymnasium.wrappers:Nothing",
        "gymnasium.wrappers",
        "gymnasium.wrappers:",
        ":Wrapper",
        "gymnasium.wrappers:RescaleAction(",
        "gymnasium.wrappers:RescaleAction(-1)",
        "gymnasium.wrappers:RescaleAction(min_action=-1, **{'max_action': 1})",
        "gymnasium.wrappers:RescaleAction(min_action=print())",
        "gymnasium.wrappers:RescaleAction(min_action=x)",
        "gymnasium.wrappers:vector.RescaleAction()",
        "gymnasium.wrappers:RescaleAction()()",
        "gymnasium.wrappers:RescaleAction(min_action=1) or 1",
        "os:system('true')",
        "os:system(command=__import__('os').system('true'))",
        "os:(lambda: 1)()",
        "os:__import__('shutil')",
        "a b:Wrapper",
    ],
)
def test_what_is_no_wrapper_is_refused_and_nothing_is_called(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[object] = []
    monkeypatch.setattr(os, "system", called.append)
    with pytest.raises(UserError) as refusal:
        load_wrapper(text)
    assert f"--wrapper {text}" in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert not called


class Add(gymnasium.RewardWrapper):
    """Adds `amount` to the reward."""

    def __init__(self, env: gymnasium.Env, amount: float = 1.0) -> None:
        super().__init__(env)
        self._amount = amount

    def reward(self, reward: Any) -> float:
        return reward + self._amount


class Double(gymnasium.RewardWrapper):
    def reward(self, reward: Any) -> float:
        return 2 * reward


@pytest.mark.parametrize(
    ("wrappers", "expected"),
    [
        ((), 1),
        (("Add",), 2),
        (("Add(amount=3)", "Double"), 8),
        (("Double", "Add(amount=3)"), 5),
        (("Add", "Double", "Add(amount=0.5)"), 4.5),
    ],
)
def test_wrappers_are_put_on_from_the_inside_out(wrappers: tuple[str, ...], expected: float) -> None:
    env = make_environment(Experiment(wrapper=tuple(f"{__name__}:{wrapper}" for wrapper in wrappers)))
    env.reset(seed=0)
    assert env.step(0)[1] == expected  # CartPole's own reward is 1.
    env.close()


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"env": "Nothing-v0"}, "--env Nothing-v0"),
        ({"env": "nowhere:Nothing-v0"}, "--env nowhere:Nothing-v0"),
        ({"env_kwargs": ("nonsense=1",)}, "--env CartPole-v1 cannot be made"),
        ({"wrapper": ("gymnasium.wrappers:RescaleAction(min_action=-1, max_action=1)",)}, "cannot be put on"),
        ({"wrapper": ("gymnasium.wrappers:TimeLimit(nonsense=1)",)}, "cannot be put on: TypeError"),
    ],
)
def test_an_environment_that_cannot_be_made_is_a_mistake_with_its_cause(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError) as refusal:
        make_environment(Experiment(**settings))
    assert named in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_keyword_arguments_reach_the_environment() -> None:
    env = make_environment(Experiment(env=EVERY, env_kwargs=("observation=dict", "action='box'")))
    assert env.observation_space == EverySpace.OBSERVATIONS["dict"]
    assert env.action_space == EverySpace.ACTIONS["box"]


def test_an_id_may_name_the_module_that_registers_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = "gymnasium.envs.classic_control:CartPoleEnv"
    (tmp_path / "bringing.py").write_text(
        f"import gymnasium\ngymnasium.register('Brought-v0', entry_point='{entry}')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    check_registered("bringing:Brought-v0")
    with pytest.raises(UserError, match="--env bringing:Other-v0"):
        check_registered("bringing:Other-v0")


# Resetting


def test_a_reset_starts_the_episode_of_its_seed() -> None:
    env = make_environment(Experiment())
    for seed in (3, 4, 3):
        np.testing.assert_array_equal(
            reset_environment(env, seed)[0], gymnasium.make("CartPole-v1").reset(seed=seed)[0]
        )


PONG: dict[str, Any] = {
    "env": "ALE/Pong-v5",
    "env_kwargs": ("repeat_action_probability=0.0", "frameskip=1"),
    "wrapper": (
        "gymnasium.wrappers:AtariPreprocessing(frame_skip=4, noop_max=30)",
        "gymnasium.wrappers:FrameStackObservation(stack_size=4)",
    ),
}


def play(env: gymnasium.Env, observation: Any, steps: int = 50) -> list[Any]:
    """The observations and rewards of an episode whose actions are always the same."""
    actions = np.random.default_rng(0).integers(env.action_space.n, size=steps)  # pyright: ignore
    seen = [observation]
    for action in actions.tolist():
        observation, reward, *_ = env.step(action)
        seen += [observation, reward]
    return seen


def assert_equal(one: list[Any], other: list[Any]) -> None:
    for mine, theirs in zip(one, other, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_a_quick_reset_of_an_atari_game_begins_the_same_episode_as_a_slow_one() -> None:
    pytest.importorskip("ale_py", reason="Atari is an extra")
    quick, slow = make_environment(Experiment(**PONG)), make_environment(Experiment(**PONG))
    episodes = []
    for seed in (1, 7, 1):  # The last episode must not use random numbers of the two before.
        expected = play(slow, slow.reset(seed=seed)[0])
        assert_equal(play(quick, reset_environment(quick, seed)[0]), expected)
        episodes.append(expected)
    assert not all(np.array_equal(a, b) for a, b in zip(episodes[0], episodes[1], strict=True))
    quick.close()
    slow.close()


def test_an_atari_episode_is_the_same_whatever_was_played_before_it() -> None:
    pytest.importorskip("ale_py", reason="Atari is an extra")
    one, other = make_environment(Experiment(**PONG)), make_environment(Experiment(**PONG))
    first = play(one, reset_environment(one, 1)[0])
    play(one, reset_environment(one, 7)[0], steps=30)
    assert_equal(play(one, reset_environment(one, 1)[0]), first)
    play(other, other.reset(seed=3)[0], steps=10)
    assert_equal(play(other, reset_environment(other, 1)[0]), first)
    one.close()
    other.close()


def test_a_game_with_sticky_actions_is_reset_the_slow_way() -> None:
    pytest.importorskip("ale_py", reason="Atari is an extra")
    sticky = {**PONG, "env_kwargs": ("repeat_action_probability=0.25", "frameskip=1")}
    one, other = make_environment(Experiment(**sticky)), make_environment(Experiment(**sticky))
    play(one, reset_environment(one, 5)[0], steps=20)
    assert_equal(play(one, reset_environment(one, 1)[0]), play(other, other.reset(seed=1)[0]))
    one.close()
    other.close()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("false", False),
        ("true", True),
        ("null", None),
        ("-inf", -np.inf),
        ("None", None),
        ("nan", "nan"),
        ("inf", "inf"),
        ("none", "none"),
        ("[none, 1]", [None, 1]),
        ("1e-3", 1e-3),
        ("0x10", 16),
        ('{"a": [true, null]}', {"a": [True, None]}),
        ("fast", "fast"),
        ("it's", "it's"),
        ("/a/b(1).csv", "/a/b(1).csv"),
        ("'[x'", "[x"),
    ],
)
def test_a_value_is_a_literal_or_a_plain_text(text: str, value: Any) -> None:
    (found,) = parse_env_kwargs((f"a={text}",)).values()
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize("text", ["[1,2", "1,2]", "[a, b]", "{json: true}", "'a", "a'", '"', "(1, 2]", "{[]: 1}"])
def test_a_damaged_literal_is_no_text(text: str) -> None:
    with pytest.raises(UserError, match="neither a literal"):
        parse_env_kwargs((f"a={text}",))


def test_a_small_bound_is_no_image_unless_a_cnn_is_named() -> None:
    board = gym_spaces.Box(0, 1, (8, 8, 12), np.uint8)
    assert describe(board).parts[0].kind == "numbers"
    assert describe(board, network="impala_cnn").parts[0].kind == "image"


def test_a_cnn_without_an_image_is_refused() -> None:
    with pytest.raises(UserError, match=r"nature_cnn finds no image among .* float32 \[64, 64, 3\] as numbers"):
        describe(gym_spaces.Box(0, 1, (64, 64, 3), np.float32), network="nature_cnn")


def test_ctrl_c_while_a_module_is_imported_is_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "slow_wrapper.py").write_text("raise KeyboardInterrupt")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(signal, "getsignal", lambda number: signal.default_int_handler)
    with pytest.raises(KeyboardInterrupt):
        load_wrapper("slow_wrapper:Wrapper")
    monkeypatch.setattr(signal, "getsignal", lambda number: signal.SIG_IGN)
    with pytest.raises(UserError, match="slow_wrapper raised KeyboardInterrupt"):
        load_wrapper("slow_wrapper:Wrapper")
