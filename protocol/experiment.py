"""The part of the experiment that the actors and the learner share. The handshake carries it."""

from dataclasses import dataclass
from typing import Literal

from protocol.errors import UserError
from protocol.randomness import MAX_SEED

NETWORKS = ("mlp", "nature_cnn", "impala_cnn")


MAX_SPARE_ACTORS = 64  # Most actors of one machine that may have no lane.


@dataclass(frozen=True)
class Experiment:
    """What is acted on, and how. Everything here decides the numbers; how many processes share the work does not."""

    env: str = "CartPole-v1"
    """Gymnasium environment id, or `module:EnvId` of a module that registers it."""
    env_kwargs: tuple[str, ...] = ()
    """Keyword arguments of the environment, `name=value` each."""
    wrapper: tuple[str, ...] = ()
    """Wrappers around it, from the inside out: `module:Class`, or `module:Class(name=value, …)`."""
    seed: int = 0
    """Seed of everything random in the run; the same seed gives the same weights, bit for bit."""
    num_envs: int = 64
    """Environments stepped in all, shared by however many actors there are; a multiple of the lane size."""
    lane_size: int = 8
    """Environments that step together as one lane, the unit of work given to an actor."""
    rollout_length: int = 32
    """Steps of each environment in one iteration."""
    schedule: Literal["sync", "pipelined", "async"] = "pipelined"
    """`sync`: act, then learn (textbook PPO). `pipelined`: act with the previous weights while learning. `async`: learn
    from whichever lanes deliver first, for environments of unequal speed; no two such runs are alike."""
    max_lag: int = 4
    """In `async`, versions that a rollout's weights may be behind the learner's; older rollouts are dropped."""
    network: str = "auto"
    """`mlp`, `nature_cnn`, `impala_cnn`, or `package:Class` for one of your own. `auto` takes the MLP without images,
    and for images the Nature CNN, or the IMPALA CNN where they are smaller than 36 × 36."""
    hidden_sizes: tuple[int, ...] | None = None
    """Widths of the fully connected layers; None takes 64 64 for the MLP, 512 and 256 for the two CNNs."""
    activation: Literal["tanh", "relu", "silu"] = "tanh"
    """Between the layers of the MLP; the CNNs use relu."""
    recurrent_size: int = 0
    """Units of a recurrent layer after those layers, for a policy with a memory; 0 has none."""
    recurrent: Literal["gru", "lstm"] = "gru"
    """What that layer is: a GRU, or an LSTM, whose state is twice as wide."""
    initial_std: float = 1.0
    """Standard deviation of each action of a Gaussian policy, before it learns another."""
    critic_only: tuple[str, ...] = ()
    """Parts of a Dict or Tuple observation that the value network alone sees: a key, a place, or `key.key` of what is
    inside another. Actors and exported policies act without them."""
    normalize_observations: bool = True
    """Scale observations by their running mean and standard deviation, and clip them to ±10."""
    rebuild_env: bool = False
    """Make a fresh environment for every episode, for those whose reset leaks state (BipedalWalker-v3)."""
    on_env_error: Literal["restart", "stop"] = "restart"
    """When an environment raises or returns nonsense: truncate its episode and go on, or end the run."""
    episode_metrics: tuple[str, ...] = ()
    """Numbers in the `info` of an episode's last step to keep as metrics `episode/NAME`; without names the first 32."""
    replay_cap: int = 100_000
    """Steps after which an episode is truncated, so that its actions can always be replayed."""

    @property
    def hidden_state_size(self) -> int:
        """Size of the hidden state of a recurrent policy for each environment; 0 for any other policy."""
        return self.recurrent_size * {"gru": 1, "lstm": 2}[self.recurrent]

    @property
    def num_lanes(self) -> int:
        return self.num_envs // self.lane_size

    @property
    def env_steps_per_iteration(self) -> int:
        return self.num_envs * self.rollout_length

    def acting_version(self, rollout_index: int) -> int:
        """The policy version with which rollout `rollout_index` acts. In `async` it is not known in advance."""
        assert self.schedule != "async"
        return rollout_index if self.schedule == "sync" else max(0, rollout_index - 1)

    def check_actors(self, flag: str, count: int, least: int = 1) -> None:
        """Raise `UserError` on an implausible number of actors: an actor without a lane takes memory for nothing."""
        most = self.num_lanes + MAX_SPARE_ACTORS
        if not least <= count <= most:
            raise UserError(
                f"{flag} must lie between {least} and {most}, not {count}: this run has work for {self.num_lanes}"
                " actors, one for each of its lanes"
            )

    def check(self) -> None:
        """Raise `UserError` on a setting that cannot work. The error names the flag and what to do."""
        for name in ("num_envs", "lane_size", "rollout_length", "replay_cap", "max_lag"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name.replace('_', '-')} must be at least 1, not {getattr(self, name)}")
        if not 0 <= self.seed <= MAX_SEED:
            raise UserError(f"--seed must lie between 0 and {MAX_SEED}, not {self.seed}")
        if self.num_envs % self.lane_size:
            lower = self.num_envs - self.num_envs % self.lane_size
            nearest = " or ".join(str(n) for n in (lower, lower + self.lane_size) if n)
            raise UserError(
                f"--num-envs {self.num_envs} is not a multiple of --lane-size {self.lane_size}; use {nearest}"
            )
        if any(size < 1 for size in self.hidden_sizes or ()):
            raise UserError(f"--hidden-sizes must all be at least 1, not {list(self.hidden_sizes or ())}")
        if not 0 < self.initial_std < float("inf"):
            raise UserError(f"--initial-std must be above 0, not {self.initial_std}")
        if self.recurrent_size < 0:
            raise UserError(f"--recurrent-size must be at least 0, not {self.recurrent_size}")
        if self.network not in ("auto", *NETWORKS) and not all(self.network.partition(":")):
            raise UserError(f"--network {self.network} is none of auto, {', '.join(NETWORKS)} and package:Class")
