"""A network of one's own: SimBa (Lee et al., arXiv 2410.09754), residual blocks that begin with a layer normalisation.

In the folder of this project:

    python launch.py --env Acrobot-v1 --network examples.own_network:SimBa --total-steps 100_000

`learner.py` has it in MLX, and `actor.py` the same in NumPy.
"""

WIDTH = 64  # of the features
BLOCKS = 1
EPSILON = 1e-5  # of the layer normalisation
