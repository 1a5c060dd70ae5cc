"""Which network an experiment uses. Each network is two classes: in NumPy for the actors, in MLX for the learner."""

import importlib
import importlib.util

from protocol.errors import UserError
from protocol.experiment import NETWORKS, Experiment
from protocol.observations import InputShapes
from protocol.process import taken_names

SMALLEST_NATURE_IMAGE = 36  # Pixels a side. The convolutions leave nothing of a smaller image.
NATURE_LAYERS = ((32, 8, 4), (64, 4, 2), (64, 3, 1))  # Output channels, kernel size and stride of each convolution.
IMPALA_CHANNELS = (16, 32, 32)  # Output channels of each block.
IMPALA_RESIDUALS = 2  # Residual parts of each block, of two convolutions each.
DEFAULT_HIDDEN_SIZES = {"mlp": (64, 64), "nature_cnn": (512,), "impala_cnn": (256,)}


def network_class(experiment: Experiment, shapes: InputShapes, side: str) -> type:
    """The class of the experiment's network for one `side`: `actor` or `learner`.

    Raises `UserError` if there is no such class, or if the network cannot take images of these shapes.
    """
    name = network_name(experiment, shapes)
    if name == "nature_cnn" and any(min(image[:2]) < SMALLEST_NATURE_IMAGE for image in shapes.images):
        raise UserError(f"--network nature_cnn needs images of at least {SMALLEST_NATURE_IMAGE} × 36; try impala_cnn")
    package, own, class_name = name.partition(":")
    module = f"{package}.{side}" if own else {"actor": "actors.networks", "learner": "learner.networks"}[side]
    try:
        return getattr(importlib.import_module(module), class_name if own else _CLASSES[name])
    except (ImportError, AttributeError) as error:
        raise UserError(f"--network {name}: {error}{taken_names()}") from None


def check_network(experiment: Experiment) -> None:
    """Raise `UserError` if a module of the user's own network is missing. Neither module is imported."""
    package, own, _ = experiment.network.partition(":")
    for module in (f"{package}.actor", f"{package}.learner") if own else ():
        try:
            found = importlib.util.find_spec(module)
        except ImportError:
            found = None
        if found is None:
            raise UserError(f"--network {experiment.network}: there is no module {module}{taken_names()}")


def network_name(experiment: Experiment, shapes: InputShapes) -> str:
    """The name of the experiment's network. For `auto`, the images decide."""
    if experiment.network != "auto":
        return experiment.network
    if not shapes.images:
        return "mlp"
    smallest = min(min(image[:2]) for image in shapes.images)
    return "nature_cnn" if smallest >= SMALLEST_NATURE_IMAGE else "impala_cnn"


def hidden_sizes(experiment: Experiment, shapes: InputShapes) -> tuple[int, ...]:
    """Widths of the fully connected layers."""
    if experiment.hidden_sizes is not None:
        return experiment.hidden_sizes
    return DEFAULT_HIDDEN_SIZES.get(network_name(experiment, shapes), DEFAULT_HIDDEN_SIZES["mlp"])


_CLASSES: dict[str, str] = dict(zip(NETWORKS, ("MLP", "NatureCNN", "ImpalaCNN"), strict=True))
