"""Many of them: environments, the NumPy policy, rollouts. Never imports MLX."""
