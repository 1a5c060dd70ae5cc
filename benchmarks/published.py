"""Returns that others have published for PPO, to be compared with, and the targets of this project."""

from typing import NamedTuple

from benchmarks.measurements import Target, at_least


class Published(NamedTuple):
    """A return that was published, and how it was measured."""

    value: float
    source: str


TIANSHOU = "Tianshou's MuJoCo benchmark, 10 seeds, the best evaluation of each run"
ZOO = "RL Baselines3 Zoo, 1 seed, the trained agent"

PUBLISHED = {
    "HalfCheetah-v5": (Published(5_784, TIANSHOU), Published(5_819, ZOO)),
    "Ant-v5": (Published(3_258, TIANSHOU),),
    "Hopper-v5": (Published(2_609, TIANSHOU), Published(3_577, "Stable-Baselines3 with its zoo's settings, 1 seed")),
    "Walker2d-v5": (Published(3_589, TIANSHOU),),
    "Humanoid-v5": (Published(787, TIANSHOU),),
    "Swimmer-v5": (Published(282, ZOO),),
    "LunarLanderContinuous-v3": (Published(271, ZOO),),
    "LunarLander-v3": (Published(242, ZOO),),
    "BipedalWalker-v3": (Published(288, ZOO),),
    "BipedalWalkerHardcore-v3": (Published(122, f"{ZOO}, 100 M steps"),),
    "Acrobot-v1": (Published(-73.5, ZOO),),
    "MiniGrid-DoorKey-5x5-v0": (Published(0.964, ZOO),),
    "ALE/Pong-v5": (Published(20.0, "rl_games"),),
}

TARGETS: dict[str, Target] = {
    "HalfCheetah-v5": at_least(5_800),
    "Ant-v5": at_least(3_300),
    "Hopper-v5": at_least(3_400),
    "Walker2d-v5": at_least(4_500),
    "Humanoid-v5": at_least(1_000),
    "Swimmer-v5": at_least(300),
    "LunarLanderContinuous-v3": at_least(275),
    "LunarLander-v3": at_least(270),
    "BipedalWalker-v3": at_least(290),
    "Acrobot-v1": at_least(-75),
    "MiniGrid-DoorKey-5x5-v0": at_least(0.96),
    "ALE/Pong-v5": at_least(18),
}
