"""One environment, as everything here steps it: training, evaluation, play, replay and doctor share its checks."""

import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np

from actors.action_masks import KEY, METHOD, MaskFailed, read_mask
from actors.closing import close_environment
from actors.environment import Nonsense, kind_of, make_environment, method_of, reset_environment
from actors.episode_metrics import numbers_in
from actors.interface import ActionConverter, ObservationConverter
from actors.interrupts import let_users_interrupt
from actors.spaces import action_form, describe_spaces, observation_form
from actors.tracebacks import users_place
from protocol.arithmetic import users_context
from protocol.errors import EnvironmentFault, UserError
from protocol.experiment import Experiment
from protocol.randomness import Purpose, environment_seed
from protocol.spaces import Spaces
from protocol.text import differences_in_words, error_line, one_line
from protocol.trajectory import LARGEST_REWARD

MAX_CONSTRUCTIONS = 3  # The first environment may be tried so often, since a constructor may fail now and then.
RETURNED = "observation, reward, terminated, truncated, info"
FOUR_VALUES = "expected 5, got 4"  # Gymnasium's wrappers say this of an environment that was written for gym.


class Simulation:
    """One environment and what it last showed.

    Whatever user code raises, `SystemExit` included, becomes an `EnvironmentFault`; but not a user's Ctrl-C.
    After one, and with `rebuild_env` after each episode, the next reset makes a fresh environment.
    """

    def __init__(
        self,
        experiment: Experiment,
        spaces: Spaces | None = None,
        make: Callable[[Experiment], gymnasium.Env] = make_environment,
        observation: np.ndarray | None = None,
        allowed: np.ndarray | None = None,
        progress: Callable[[], None] = lambda: None,
    ) -> None:
        """Make the environment. Raises `EnvironmentFault`, or `UserError` where there is none or its spaces are not
        supported.

        `spaces` are those of the run, described anew where there is none; whether there are action masks is then known
        after the first reset. `observation` [*observation] and `allowed` bool [distribution_size] are where these are
        kept. `progress` is called after every construction, reset and step, and may raise to end it.
        """
        self._experiment, self._make, self._progress = experiment, make, progress
        self._users = users_context()
        self._described = spaces is None  # And whether there are action masks is not known yet.
        self._used = False  # whether the next reset is to have a fresh environment
        self.env: gymnasium.Env | None = None
        self._set_progress: Callable[[float], Any] | None = None  # The environment's method of that name.
        for attempt in range(MAX_CONSTRUCTIONS):
            try:
                self._construct(spaces)
                break
            except EnvironmentFault as fault:
                if attempt + 1 == MAX_CONSTRUCTIONS:
                    text = (
                        f"{experiment.env} could not be made {MAX_CONSTRUCTIONS} times in a row; the last time: {fault}"
                        f"{users_place(fault.__cause__)}"
                    )
                    raise EnvironmentFault("constructor", text) from fault.__cause__
        assert self.env is not None
        try:
            self.spaces = spaces or describe_spaces(self.env, experiment)
            self.to_env = ActionConverter(action_form(self.env.action_space), self.spaces)
            self._store = ObservationConverter(observation_form(self.env.observation_space, experiment), self.spaces)
        except UserError:
            self.close()
            raise
        except BaseException as error:
            self.close()
            let_users_interrupt(error)
            raise EnvironmentFault("constructor", f"its spaces cannot be read: {error_line(error)}") from error
        stored = self.spaces.observation
        self.observation = np.zeros(stored.shape, stored.dtype) if observation is None else observation
        self.allowed = np.ones(self.spaces.distribution_size, bool) if allowed is None else allowed
        self._floats = self.observation.dtype.kind == "f"
        self.episode_return = self._return_before = 0.0
        self.steps = 0  # Steps of the episode.
        self._info: Any = None  # Of the last step; None after a fault.

    def reset(self, seed: int, progress: float = 1.0) -> np.ndarray:
        """Begin the episode with this seed; returns its first observation [*observation], as stored, which the next
        step overwrites. Raises `EnvironmentFault`.

        An environment or a wrapper with a method `set_progress` is told before which share of the training is over.
        """
        self.episode_return, self.steps = 0.0, 0
        if self._used:
            self.close()
            self._progress()
        if self.env is None:
            try:
                self._construct(self.spaces)
            except UserError as error:
                raise EnvironmentFault(
                    "constructor", one_line(f"constructor: it raised {error_line(error)}")
                ) from error
        assert self.env is not None
        try:
            if self._set_progress is not None:
                self._users.run(self._set_progress, progress)
            first, info = self._users.run(reset_environment, self.env, seed)
        except Nonsense as error:
            raise self.fault("reset", str(error)) from None
        except BaseException as error:
            let_users_interrupt(error)
            raise self.fault("reset", f"it raised {error_line(error)}") from error
        try:
            self.observation[...] = self._store(first)
            if not self.is_finite():
                raise Nonsense("the observation is not finite")
            self._look_for_masks(info)
            if self.spaces.has_action_masks:
                self._take_mask(info)
        except BaseException as error:
            let_users_interrupt(error)
            raise self.fault("reset", _said(error)) from _cause_of(error)
        self._used = self._experiment.rebuild_env
        self._progress()
        return self.observation

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool]:
        """Take an action, as the environment takes it (`to_env` makes it so). Raises `EnvironmentFault`.

        Returns (observation [*observation], as stored, reward, terminated, truncated); the next step overwrites the
        observation.
        """
        taken = self.advance(action)
        if not self.is_finite():
            raise self.spoilt()
        return self.observation, *taken

    def advance(self, action: Any) -> tuple[float, bool, bool]:
        """`step`, but for looking whether the observation is finite, which a lane does for all of its own at once.
        Returns (reward, terminated, truncated); on a fault, `observation` stays as it was."""
        try:
            result = self._users.run(self.env.step, action)  # pyright: ignore[reportOptionalMemberAccess]
        except BaseException as error:
            let_users_interrupt(error)
            advice = f" (a step returns {RETURNED})" if FOUR_VALUES in one_line(error) else ""
            raise self.fault("step", f"it raised {error_line(error)}{advice}") from error
        try:
            if not (isinstance(result, tuple) and len(result) == 5):
                raise Nonsense(f"it returned {kind_of(result)} instead of {RETURNED}")
            observation, reward, terminated, truncated, self._info = result
            if type(reward) is not float:
                reward = _number(reward)
            if not abs(reward) <= LARGEST_REWARD:
                raise Nonsense(f"the reward is {reward}")
            if type(terminated) is not bool:
                terminated = _truth("terminated", terminated)
            if type(truncated) is not bool:
                truncated = _truth("truncated", truncated)
            self.observation[...] = self._store(observation)
            if self.spaces.has_action_masks and not (terminated or truncated):
                self._take_mask(self._info)
        except BaseException as error:
            let_users_interrupt(error)
            raise self.fault("step", _said(error)) from _cause_of(error)
        self._return_before = self.episode_return
        self.episode_return += reward
        self.steps += 1
        self._progress()
        return reward, terminated, truncated

    def episode_metrics(self) -> dict[str, float]:
        """What the last step tells of the episode, by name; nothing after a fault."""
        return numbers_in(self._info, self._experiment.episode_metrics)

    def is_finite(self) -> bool:
        """Whether every number of the observation is finite."""
        return not self._floats or bool(np.isfinite(self.observation).all())

    def spoilt(self) -> EnvironmentFault:
        """The fault of a step whose observation is not finite; the step does not count."""
        self.episode_return = self._return_before
        self.steps -= 1
        return self.fault("step", "the observation is not finite")

    def fault(self, phase: str, what: str) -> EnvironmentFault:
        """A fault to raise, after which the next reset makes a fresh environment."""
        self._used, self._info = True, None
        return EnvironmentFault(phase, one_line(f"{phase}: {what}"))

    def close(self) -> None:
        """Close the environment, within a bounded time and whatever it does; the next reset makes a fresh one."""
        env, self.env, self._used = self.env, None, False
        if env is not None:
            close_environment(env)

    def find_masks(self) -> Spaces:
        """The spaces, with whether there are action masks; an environment of choices is reset for that."""
        for episode in range(MAX_CONSTRUCTIONS if self.spaces.distribution == "categorical" else 0):
            if self._described:
                with suppress(EnvironmentFault):  # Where no episode can begin, the lanes' resets will say so.
                    self.reset(environment_seed(self._experiment.seed, Purpose.EPISODE_SEED, 0, episode))
        return self.spaces

    def _look_for_masks(self, info: Any) -> None:
        """See in the first `info` whether there are action masks, unless the run's spaces say it."""
        assert self.env is not None
        if self._described and self.spaces.distribution == "categorical":
            tells = method_of(self.env, METHOD) is not None or (isinstance(info, dict) and KEY in info)
            self.spaces = replace(self.spaces, has_action_masks=tells)
        self._described = False

    def _take_mask(self, info: Any) -> None:
        """Keep which actions are allowed next. Raises `ValueError`, and whatever the environment's method does."""
        assert self.env is not None
        self.allowed[...] = self._users.run(read_mask, self.env, info, self.spaces)

    def _construct(self, spaces: Spaces | None) -> None:
        """Make an environment, whose spaces must be `spaces` where these are known."""
        try:
            self.env = self._users.run(self._make, self._experiment)
            self._set_progress = self._users.run(method_of, self.env, "set_progress")
            found = None if spaces is None else describe_spaces(self.env, self._experiment)
        except UserError:
            self.close()
            raise
        except BaseException as error:
            self.close()
            let_users_interrupt(error)
            raise EnvironmentFault("constructor", one_line(f"constructor: it raised {error_line(error)}")) from error
        if spaces is not None and found is not None:
            found = replace(found, has_action_masks=spaces.has_action_masks)  # Only a reset tells that.
        if spaces is not None and found != spaces:
            self.close()
            differences = differences_in_words(vars(found), vars(spaces))
            raise UserError(f"{self._experiment.env} makes environments of different spaces: {differences}")
        self._progress()


def global_random_state() -> tuple:
    """The state of the two generators that everything in a process shares."""
    state: tuple = np.random.get_state(legacy=True)  # pyright: ignore[reportAssignmentType]  # noqa: NPY002
    return random.getstate(), state[1].tobytes(), state[2]


def _cause_of(error: BaseException) -> BaseException | None:
    """The user's error behind one of ours; None where there is none."""
    return None if isinstance(error, ValueError) else error.__cause__ if isinstance(error, MaskFailed) else error


def _said(error: BaseException) -> str:
    """Describe why a returned value cannot be used. Looking at it may have raised an error, too."""
    return (
        one_line(error)
        if isinstance(error, ValueError | MaskFailed)
        else f"what it returned raised {error_line(error)}"
    )


def _item(value: Any) -> Any:
    """What an array of one element holds, of any library; anything else as it is. Raises what the library does."""
    return value.item() if hasattr(value, "item") else value


def _number(reward: Any) -> float:
    """The reward as a float. Raises `Nonsense` where it is no number."""
    if isinstance(reward, float | int):
        return float(reward)
    try:
        number = _item(reward)
        if not isinstance(number, str | bytes):
            return float(number)
    except (TypeError, ValueError, RuntimeError):
        pass
    raise Nonsense(f"the reward is {kind_of(reward)}, not a number")


def _truth(name: str, flag: Any) -> bool:
    """The flag as a bool: also of 0 and 1, of None, which says nothing has ended, and of an array of one of these.
    Raises `Nonsense` on anything else, whose truth would be a guess."""
    try:
        value = _item(flag)
    except (TypeError, ValueError, RuntimeError):
        value = flag
    if value is None or (isinstance(value, bool | int | float | np.bool_) and value in (0, 1)):
        return bool(value)
    raise Nonsense(f"{name} is {kind_of(flag)}, not True or False")
