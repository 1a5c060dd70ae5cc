"""From Python: train a policy, look at how it learned, evaluate it, and act with it.

In the folder of this project:

    python examples/facade.py

The ice of this lake is slippery: one step in three goes where it should, and the others to a side. No policy reaches
the goal in more than 74% of the episodes.
"""

import argparse

import gymnasium

import mlx_distributed_ppo as ppo

parser = argparse.ArgumentParser()
parser.add_argument("--total-steps", type=int, default=100_000)
total_steps = parser.parse_args().total_steps


def good_enough(row: dict) -> bool:
    """Called after each iteration; True ends the run. The return of an episode is 1 at the goal, and else 0."""
    return (row["rollout/episode_return_mean"] or 0) >= 0.75


# The arguments are the flags of launch.py.
run = ppo.train(
    good_enough,
    env="FrozenLake-v1",
    total_steps=total_steps,
    discount=0.999,
    learning_rate=2e-3,
    quiet=True,
)
print(f"{run.summary['status']} after {run.summary['env_steps']:,} env-steps, in {run.path}")

rows = run.metrics()  # One of each iteration.
for row in rows[:: max(1, len(rows) // 10)]:
    reached = row["rollout/episode_return_mean"] or 0
    print(f"{row['env_steps']:>9,}  {'█' * round(40 * reached)} {reached:.2f}")

# Deterministic actions, and seeds that training never uses.
print(f"the goal is reached in {run.evaluate(episodes=100)['return_mean']:.0%} of the episodes of an evaluation")

policy = run.policy()  # policy(observation) is an action.
lake = gymnasium.make("FrozenLake-v1").get_wrapper_attr("desc").astype(str)
for i, cells in enumerate(lake):  # S the start, F ice, H a hole, G the goal
    print(" ".join("←↓→↑"[policy(4 * i + j)] if cell in "SF" else cell for j, cell in enumerate(cells)))
