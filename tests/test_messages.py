"""Messages arrive unchanged; invalid messages and values that do not fit the run are refused by name."""

import copy
import dataclasses
import types
import typing
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from making import continuous, discrete, numbers, with_array

from protocol import codec
from protocol.errors import ProtocolError
from protocol.experiment import Experiment
from protocol.messages import (
    PROTOCOL_VERSION,
    Grant,
    Hello,
    Message,
    Progress,
    Ready,
    Refusal,
    Release,
    SecondCollection,
    SecondGrant,
    Stop,
    Welcome,
)
from protocol.messages import from_frames as received
from protocol.messages import to_frames as sent
from protocol.snapshot import PolicySnapshot
from protocol.spaces import Spaces
from protocol.trajectory import AXES, DIGEST_SIZE, EXTRAS, LaneState, Trajectory, element_types

thorough = settings(deadline=None, max_examples=80)

KINDS: list[type] = list(typing.get_args(Message))
ARRAYS = hnp.arrays(
    st.sampled_from(list(codec.DTYPES.values())), hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3)
)


def values_of(hint: Any) -> st.SearchStrategy[Any]:
    """Values of a field declared as `hint`."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        hints = typing.get_type_hints(hint)
        return st.builds(typing.cast(Any, hint), **{name: values_of(hint) for name, hint in hints.items()})
    if hint is int:
        return st.integers(-(2**63), 2**63 - 1)
    if hint is float:
        return st.floats()
    if hint is str:
        return st.text(max_size=10)
    if hint is bool:
        return st.booleans()
    if hint is np.ndarray:
        return ARRAYS
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin is tuple:
        return st.lists(values_of(arguments[0]), max_size=4).map(tuple)
    if origin is types.UnionType:
        return st.none() | values_of(arguments[0])
    assert hint is dict or origin is dict
    return st.dictionaries(st.text(max_size=10), values_of(arguments[1] if arguments else str), max_size=3)


def same(a: Any, b: Any) -> bool:
    if type(a) is not type(b):
        return False
    if dataclasses.is_dataclass(a):
        return all(same(getattr(a, field.name), getattr(b, field.name)) for field in dataclasses.fields(a))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float):
        return repr(a) == repr(b)
    return a == b


EXPERIMENT = Experiment(num_envs=4, lane_size=2, rollout_length=3, recurrent_size=5)
DISCRETE = replace(discrete(numbers(4), 3), has_action_masks=True)
CONTINUOUS = continuous(numbers(2, 2), 2)
SPACES = {"discrete": DISCRETE, "continuous": CONTINUOUS}


def extras(spaces: Spaces) -> dict[str, np.ndarray]:
    """The extras of `trajectory`: every action is allowed, and an episode metric is known of two episodes of three."""
    t, n = EXPERIMENT.rollout_length, EXPERIMENT.lane_size
    found = {"episode/is_success": np.array([1.0, np.nan, 0.0])}
    for name, (element, dtype) in element_types(EXPERIMENT, spaces).items():
        if name in EXTRAS:
            shape = (*(t, n)[-len(AXES[name]) :], *element)
            found[name] = np.full(shape, 255 if dtype == "uint8" else 1, dtype)
    return found


def trajectory(spaces: Spaces = DISCRETE) -> Trajectory:
    """A trajectory of lane 1: environment 0 terminates at step 0, environment 1 is truncated at steps 1 and 2."""
    t, n = EXPERIMENT.rollout_length, EXPERIMENT.lane_size
    observation, action = spaces.observation, spaces.action
    return Trajectory(
        run_id="run",
        lane=1,
        rollout_index=2,
        policy_version=1,
        fencing_token=3,
        observations=np.ones((t, n, *observation.shape), observation.dtype),
        last_observations=np.ones((n, *observation.shape), observation.dtype),
        actions=np.ones((t, n, *action.shape), action.dtype),
        behaviour_log_probs=np.zeros((t, n), np.float32),
        rewards=np.ones((t, n), np.float32),
        terminated=np.array([[True, False], [False, False], [False, False]]),
        truncated=np.array([[False, False], [False, True], [False, True]]),
        final_observations=np.ones((2, *observation.shape), observation.dtype),
        episode_returns=np.array([1.0, 2.0, 1.0]),
        episode_lengths=np.array([1, 2, 1]),
        episode_indices=np.array([1, 2]),
        restarted=np.array([False, True]),
        failed_resets=np.zeros(2, np.int64),
        digests=np.zeros((n, DIGEST_SIZE), np.uint8),
        extras=extras(spaces),
        faults=(),
        fault_count=0,
        moved_global_random=False,
    )


def lane_state(spaces: Spaces = DISCRETE) -> LaneState:
    return LaneState(
        rollout_index=2,
        episode_indices=np.array([1, 2]),
        episode_steps=np.array([5, 0]),
        actions=np.ones((5, *spaces.action.shape), spaces.action.dtype),
        digests=np.zeros((2, DIGEST_SIZE), np.uint8),
        hidden_state=np.ones((2, EXPERIMENT.hidden_state_size), np.float32),
        progress=np.array([0.25, 0.5]),
    )


EXAMPLES: dict[type, Message] = {
    Hello: Hello("0", 1234, {"numpy": "2.0"}),
    Welcome: Welcome("run", EXPERIMENT),
    Refusal: Refusal("because"),
    Ready: Ready(DISCRETE, {"mujoco": "3.3"}),
    PolicySnapshot: PolicySnapshot(3, {"policy_head.bias": np.ones(2, np.float32)}, np.zeros(4), np.ones(4)),
    Grant: Grant("run", 1, 2, 1, 3, lane_state()),
    SecondGrant: SecondGrant(Grant("run", 1, 2, 1, 3, lane_state())),
    Trajectory: trajectory(),
    SecondCollection: SecondCollection(3, trajectory()),
    Progress: Progress(100, 1.5, 0.25),
    Release: Release(1, 2),
    Stop: Stop("over"),
}


def plain(record: Any) -> dict[str, Any]:
    fields = {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}
    return {name: plain_value(value) for name, value in fields.items()}


def plain_value(value: Any) -> Any:
    if isinstance(value, tuple):
        return [plain_value(item) for item in value]
    return plain(value) if dataclasses.is_dataclass(value) else value


def fields_of(kind: type) -> dict[str, Any]:
    return {"protocol": PROTOCOL_VERSION, "kind": kind.__name__, **copy.deepcopy(plain(EXAMPLES[kind]))}


def reason(fields: dict[str, Any]) -> str:
    with pytest.raises(ProtocolError) as refusal:
        received(codec.encode(fields))
    return str(refusal.value)


def is_read_or_refused(frames: list[codec.Frame]) -> None:
    try:
        message = received(frames)
    except ProtocolError as error:
        assert str(error)
    else:
        assert isinstance(message, Message)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_message_round_trips(kind: type) -> None:
    @settings(deadline=None, max_examples=20)
    @given(values_of(kind))
    def check(message: Message) -> None:
        assert same(message, received(sent(message)))
        assert same(message, received([bytes(frame) for frame in sent(message)]))

    check()


@pytest.mark.parametrize("kind", KINDS)
def test_the_examples_below_are_messages(kind: type) -> None:
    assert same(EXAMPLES[kind], received(codec.encode(fields_of(kind))))


FIELDS = [(kind, field.name) for kind in KINDS for field in dataclasses.fields(kind)]


@pytest.mark.parametrize(("kind", "name"), FIELDS)
def test_a_missing_field_is_refused_by_name(kind: type, name: str) -> None:
    fields = fields_of(kind)
    del fields[name]
    assert kind.__name__ in reason(fields) and name in reason(fields)


@pytest.mark.parametrize("kind", KINDS)
def test_a_field_too_many_is_refused(kind: type) -> None:
    assert f"{kind.__name__} does not have exactly the fields" in reason(fields_of(kind) | {"more": 1})


SAMPLES: dict[str, Any] = {
    "int": 1,
    "bool": True,
    "float": 1.0,
    "text": "1",
    "bytes": b"1",
    "null": None,
    "list": [1],
    "map": {"x": 1},
    "array": np.ones(2),
    "scalar array": np.array(1),
}
RIGHT = {  # The valid samples for each type of field; for other types no sample is valid.
    int: {"int"},
    bool: {"bool"},
    float: {"float"},
    str: {"text"},
    np.ndarray: {"array", "scalar array"},
    LaneState | None: {"null"},
    Trajectory | None: {"null"},
}


@pytest.mark.parametrize(("kind", "name"), FIELDS)
def test_a_field_of_another_type_is_refused_by_name(kind: type, name: str) -> None:
    right = RIGHT.get(typing.get_type_hints(kind)[name], set())
    for sample in SAMPLES.keys() - right:
        assert f"{kind.__name__}.{name}" in reason(fields_of(kind) | {name: SAMPLES[sample]}), sample


@pytest.mark.parametrize("value", [2**63, 2**64 - 1])
@pytest.mark.parametrize(("kind", "name"), [(kind, n) for kind, n in FIELDS if typing.get_type_hints(kind)[n] is int])
def test_an_integer_beyond_64_bits_is_refused_by_name(kind: type, name: str, value: int) -> None:
    assert f"{kind.__name__}.{name} is out of range" in reason(fields_of(kind) | {name: value})


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        (Hello, ["fingerprint", "numpy"], np.ones(2)),
        (Hello, ["fingerprint", "numpy"], 2),
        (Welcome, ["experiment", "seed"], True),
        (Welcome, ["experiment", "seed"], 2**63),
        (Welcome, ["experiment", "normalize_observations"], 1),
        (Welcome, ["experiment", "initial_std"], 1),
        (Welcome, ["experiment", "schedule"], "eventually"),
        (Welcome, ["experiment", "schedule"], ["sync"]),
        (Welcome, ["experiment", "hidden_sizes"], 64),
        (Welcome, ["experiment", "hidden_sizes"], [64, 64.0]),
        (Welcome, ["experiment", "hidden_sizes"], [64, 2**63]),
        (Welcome, ["experiment", "hidden_sizes"], np.array([64, 64])),
        (Ready, ["spaces", "distribution"], "beta"),
        (Ready, ["spaces", "observation", "shape"], [4, None]),
        (Ready, ["spaces", "observation", "dtype"], np.ones(1)),
        (Ready, ["spaces", "action"], None),
        (Ready, ["spaces", "parts"], {}),
        (Ready, ["spaces", "choices"], [2, 3.0]),
        (PolicySnapshot, ["weights", "policy_head.bias"], [1.0]),
        (Grant, ["state", "rollout_index"], 0.0),
        (Grant, ["state", "actions"], b"1"),
    ],
)
def test_a_wrong_value_further_down_is_refused_by_its_path(kind: type, path: list[str], value: object) -> None:
    fields = fields_of(kind)
    inner = fields
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = value
    where = ".".join([kind.__name__, *path])
    assert where.replace("weights.", "weights[").replace("fingerprint.", "fingerprint[") in reason(fields)


@pytest.mark.parametrize("name", ["hello", "Experiment", "LaneState", "", 1, None, ["Stop"], np.ones(2)], ids=str)
def test_an_unknown_kind_is_refused(name: object) -> None:
    assert "there is no message" in reason(fields_of(Stop) | {"kind": name})


@pytest.mark.parametrize("kind", KINDS)
def test_a_message_without_a_kind_is_refused(kind: type) -> None:
    fields = fields_of(kind)
    del fields["kind"]
    assert "there is no message None" in reason(fields)


def test_another_protocol_version_is_refused_naming_both() -> None:
    other = PROTOCOL_VERSION + 41
    text = reason(fields_of(Stop) | {"protocol": other})
    assert str(other) in text and f"this one {PROTOCOL_VERSION}" in text


@pytest.mark.parametrize(
    "version",
    [
        None,
        str(PROTOCOL_VERSION),
        [PROTOCOL_VERSION],
        True,
        float(PROTOCOL_VERSION),
        np.full(1, PROTOCOL_VERSION),
        np.ones(PROTOCOL_VERSION),
        np.array(PROTOCOL_VERSION),
    ],
)
def test_a_protocol_version_that_is_not_an_integer_is_refused(version: object) -> None:
    assert "protocol version" in reason(fields_of(Stop) | {"protocol": version})


def test_a_message_without_protocol_version_is_refused() -> None:
    fields = fields_of(Stop)
    del fields["protocol"]
    assert "protocol version" in reason(fields)


anything = st.recursive(
    st.sampled_from(list(SAMPLES.values())) | ARRAYS | st.integers(-(2**63), 2**64 - 1) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)


@thorough
@given(st.sampled_from(KINDS), st.data())
def test_a_message_with_made_up_fields_is_read_or_refused(kind: type, data: st.DataObject) -> None:
    fields = fields_of(kind)
    for _ in range(data.draw(st.integers(1, 3))):
        fields[data.draw(st.sampled_from([*fields, "more"]))] = data.draw(anything)
    is_read_or_refused(codec.encode(fields))


@thorough
@given(st.sampled_from(KINDS), st.data())
def test_a_damaged_message_is_read_or_refused(kind: type, data: st.DataObject) -> None:
    damaged, *frames = (bytearray(frame) for frame in sent(EXAMPLES[kind]))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, max(len(damaged) - 1, 0)))
        damaged[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=2))
    spare = data.draw(st.lists(st.binary(max_size=9), max_size=2))
    is_read_or_refused([bytes(damaged), *map(bytes, frames), *spare])


def refusal(record: Trajectory | LaneState, spaces: Spaces) -> str:
    with pytest.raises(ProtocolError) as error:
        record.check(EXPERIMENT, spaces)
    return str(error.value)


TRAJECTORY_ARRAYS = list(AXES)
HIDDEN_STATES = ("initial_hidden_state", "last_hidden_state")
FLOATS = ["observations", "last_observations", "final_observations", "behaviour_log_probs", "rewards"]
SHAPINGS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "one axis more": lambda array: array[None],
    "one axis less": lambda array: array[0],
    "no axes": lambda array: np.zeros((), array.dtype),
    "one axis more at the end": lambda array: array[..., None],
    "one entry more": lambda array: np.concatenate([array, array[:1]]),
    "one entry less": lambda array: array[:-1],
    "nothing": lambda array: array[:0],
}


@pytest.mark.parametrize("spaces", SPACES.values(), ids=SPACES)
def test_a_trajectory_as_agreed_is_accepted(spaces: Spaces) -> None:
    trajectory(spaces).check(EXPERIMENT, spaces)


@pytest.mark.parametrize("shaping", SHAPINGS)
@pytest.mark.parametrize("name", TRAJECTORY_ARRAYS)
def test_a_trajectory_with_an_array_of_another_shape_is_refused_by_name(name: str, shaping: str) -> None:
    named = {"episode_returns": "episode_"}.get(name, name)  # The refusal may name either list of episodes.
    for spaces in SPACES.values():
        valid = trajectory(spaces)
        if valid.has(name):
            broken = with_array(valid, name, SHAPINGS[shaping](valid.array(name)))
            assert named in refusal(broken, spaces)


@pytest.mark.parametrize("name", TRAJECTORY_ARRAYS)
def test_a_trajectory_with_an_array_of_another_dtype_is_refused_by_name(name: str) -> None:
    for spaces in SPACES.values():
        valid = trajectory(spaces)
        if not valid.has(name):
            continue
        array = valid.array(name)
        for dtype in set(codec.DTYPES.values()) - {array.dtype}:
            assert f"{name} is {dtype}" in refusal(with_array(valid, name, array.astype(dtype)), spaces)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", [*FLOATS, *HIDDEN_STATES, "episode_returns", "actions"])
def test_a_trajectory_with_a_number_that_is_not_finite_is_refused_by_name(name: str, value: float) -> None:
    array = trajectory(CONTINUOUS).array(name).copy()
    array.flat[-1] = value
    assert f"{name} holds" in refusal(with_array(trajectory(CONTINUOUS), name, array), CONTINUOUS)


@pytest.mark.parametrize(
    ("name", "value"),
    [("episode_returns", 1e308), ("episode_returns", -1e308), ("episode_lengths", -1), ("episode_lengths", 2**62)],
)
def test_an_episode_that_cannot_be_is_refused_by_name(name: str, value: float) -> None:
    array = getattr(trajectory(), name).copy()
    array[-1] = value
    assert f"{name} holds an impossible number" in refusal(replace(trajectory(), **{name: array}), DISCRETE)


def test_an_episode_of_the_largest_rewards_is_accepted() -> None:
    largest = float(np.finfo(np.float32).max) * EXPERIMENT.replay_cap
    lengths = np.full_like(trajectory().episode_lengths, EXPERIMENT.replay_cap)
    returns = np.full_like(trajectory().episode_returns, largest)
    assert np.isfinite(returns.sum())
    replace(trajectory(), episode_returns=returns, episode_lengths=lengths).check(EXPERIMENT, DISCRETE)


METRICS: dict[str, tuple[dict[str, np.ndarray], str]] = {
    "too many": ({f"episode/{i}": np.zeros(3) for i in range(65)}, "there are 66 episode metrics"),
    "of fewer episodes": ({"episode/x": np.zeros(2)}, "episode/x is no float64 [3]"),
    "of float32": ({"episode/x": np.zeros(3, np.float32)}, "episode/x is no float64 [3]"),
    "infinite": ({"episode/x": np.array([0, np.inf, 0])}, "episode/x is no float64 [3] of finite numbers"),
    "without a name": ({"episode/": np.zeros(3)}, "an episode metric has an impossible name"),
    "of too long a name": ({f"episode/{'x' * 65}": np.zeros(3)}, "an episode metric has an impossible name"),
    "of two lines": ({"episode/a\nb": np.zeros(3)}, "an episode metric has an impossible name"),
    "not said to be one": ({"is_success": np.zeros(3)}, "the extras are"),
}


@pytest.mark.parametrize("metrics", METRICS)
def test_episode_metrics_that_cannot_be_are_refused(metrics: str) -> None:
    arrays, said = METRICS[metrics]
    assert said in refusal(replace(trajectory(), extras=trajectory().extras | arrays), DISCRETE)


def test_an_action_that_its_mask_does_not_allow_is_refused() -> None:
    masks = trajectory().extras["action_masks"].copy()
    masks[1, 1] = 0b10111111  # The action is 1.
    broken = replace(trajectory(), extras=trajectory().extras | {"action_masks": masks})
    assert "an action is one that its mask does not allow" in refusal(broken, DISCRETE)


def test_a_step_both_terminated_and_truncated_is_refused() -> None:
    valid = trajectory()
    broken = replace(valid, terminated=valid.terminated | valid.truncated)
    assert "both terminated and truncated" in refusal(broken, DISCRETE)


@pytest.mark.parametrize("count", [0, 2, 4])
def test_another_number_of_episodes_than_finished_is_refused(count: int) -> None:
    broken = replace(trajectory(), episode_returns=np.ones(count), episode_lengths=np.ones(count, np.int64))
    assert "episode_returns does not match" in refusal(broken, DISCRETE)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_another_number_of_final_observations_than_truncations_is_refused(count: int) -> None:
    broken = replace(trajectory(), final_observations=np.ones((count, 4), np.float32))
    assert "final_observations" in refusal(broken, DISCRETE)


@pytest.mark.parametrize("action", [-1, 3, 2**62, -(2**63)])
def test_an_action_that_does_not_exist_is_refused(action: int) -> None:
    actions = trajectory().actions.copy()
    actions[-1, -1] = action
    assert "an action lies outside 0…n−1, for n = 3" in refusal(replace(trajectory(), actions=actions), DISCRETE)


@thorough
@given(st.sampled_from(TRAJECTORY_ARRAYS), ARRAYS)
def test_a_trajectory_with_a_made_up_array_is_accepted_or_refused(name: str, array: np.ndarray) -> None:
    try:
        with_array(trajectory(), name, array).check(EXPERIMENT, DISCRETE)
    except ProtocolError as error:
        assert str(error)


@pytest.mark.parametrize("extras", [{}, {"initial_hidden_state": np.ones((2, 3), np.float32)}, {"mask": np.ones(2)}])
def test_a_trajectory_with_other_extras_than_the_experiment_has_is_refused(extras: dict[str, np.ndarray]) -> None:
    assert "the extras are" in refusal(replace(trajectory(), extras=extras), DISCRETE)
    plain = replace(EXPERIMENT, recurrent_size=0)
    with pytest.raises(ProtocolError, match="the extras are"):
        trajectory().check(plain, DISCRETE)
    replace(trajectory(), extras={}).check(plain, replace(DISCRETE, has_action_masks=False))


LANE_STATE_ARRAYS = ["episode_indices", "episode_steps", "actions", "digests", "hidden_state"]


@pytest.mark.parametrize("spaces", SPACES.values(), ids=SPACES)
def test_a_lane_state_as_agreed_is_accepted(spaces: Spaces) -> None:
    lane_state(spaces).check(EXPERIMENT, spaces)


@pytest.mark.parametrize("shaping", SHAPINGS)
@pytest.mark.parametrize("name", LANE_STATE_ARRAYS)
def test_a_lane_state_with_an_array_of_another_shape_is_refused_by_name(name: str, shaping: str) -> None:
    for spaces in SPACES.values():
        valid = lane_state(spaces)
        broken = replace(valid, **{name: SHAPINGS[shaping](getattr(valid, name))})
        assert f"lane state: {name}" in refusal(broken, spaces)


@pytest.mark.parametrize("name", LANE_STATE_ARRAYS)
def test_a_lane_state_with_an_array_of_another_dtype_is_refused_by_name(name: str) -> None:
    valid = lane_state()
    array: np.ndarray = getattr(valid, name)
    for dtype in set(codec.DTYPES.values()) - {array.dtype}:
        assert f"lane state: {name} is {dtype}" in refusal(replace(valid, **{name: array.astype(dtype)}), DISCRETE)


@pytest.mark.parametrize("steps", [[4, 0], [6, 0], [5, 1], [0, 0]], ids=str)
def test_a_lane_state_with_another_number_of_actions_than_steps_is_refused(steps: list[int]) -> None:
    assert "lane state: actions" in refusal(replace(lane_state(), episode_steps=np.array(steps)), DISCRETE)


@pytest.mark.parametrize("steps", [[-1, 6], [2**62, -(2**62) + 5]], ids=str)
def test_a_lane_state_with_a_negative_number_of_steps_is_refused(steps: list[int]) -> None:
    assert "lane state: episode_steps" in refusal(replace(lane_state(), episode_steps=np.array(steps)), DISCRETE)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_lane_state_with_steps_that_are_not_finite_is_refused(value: float) -> None:
    broken = replace(lane_state(), episode_steps=np.array([value, 0.0]))
    assert "lane state: episode_steps" in refusal(broken, DISCRETE)


@thorough
@given(st.sampled_from(LANE_STATE_ARRAYS), ARRAYS)
def test_a_lane_state_with_a_made_up_array_is_accepted_or_refused(name: str, array: np.ndarray) -> None:
    try:
        replace(lane_state(), **{name: array}).check(EXPERIMENT, DISCRETE)
    except ProtocolError as error:
        assert str(error)
