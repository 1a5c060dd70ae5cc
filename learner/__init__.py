"""One of it: batch, advantages, PPO in MLX, checkpoints, metrics. Never steps an environment."""
