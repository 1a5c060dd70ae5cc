"""An exported policy as an ONNX graph: raw observations in, the action for `env.step` out, normalisation and all.

Inputs, for a batch of any size N: `observation`, or `observation.KEY…` for each part of a Dict or Tuple, as the
environment shows it, but float64 as float32; for a recurrent policy `hidden_state` [N, size], zeros where an episode
begins; and where there are action masks `action_mask` bool [N, size]. Outputs: `action`, the most probable one;
`parameters`, the network's logits or means; `log_std` of a Gaussian; and `next_hidden_state`.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from actors.distributions import LOWEST
from actors.exported import ExportedPolicy
from protocol.errors import UserError
from protocol.extras import how_to_install
from protocol.files import replace_file
from protocol.networks import IMPALA_CHANNELS, IMPALA_RESIDUALS, NATURE_LAYERS, network_name
from protocol.observations import OBSERVATION_CLIP, InputShapes
from protocol.records import plain
from protocol.spaces import ObservationPart

OPSET, IR_VERSION = 17, 8  # They are of 2022, so that older runtimes read them.
TOLERANCE = 1e-5


def save_graph(path: Path, policy: ExportedPolicy) -> None:
    """Write the policy to `path`, all or nothing. Raises `OSError`, and `UserError` if it has no graph."""
    try:
        import onnx  # noqa: F401
    except ImportError:
        raise UserError(f"the format onnx needs an extra; {how_to_install('onnx')}") from None
    replace_file(path, _Graph(policy).build().SerializeToString())


def input_names(policy: ExportedPolicy) -> list[str]:
    """The graph's name for each part of an observation."""
    return [".".join(map(str, ("observation", *path))) for path in policy.description.observation.paths]


def inputs_of(
    policy: ExportedPolicy, observation: Any, hidden_state: np.ndarray, allowed: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """The graph's inputs for an environment's observation, the hidden state before it, and the allowed actions."""
    feed = {}
    form = policy.description.observation
    for name, path, part in zip(input_names(policy), form.paths, policy.description.spaces.parts, strict=True):
        shown = observation
        for key in path:
            shown = shown[key]
        feed[name] = np.asarray(shown).astype(part.box.dtype)[None]
    if allowed is not None and policy.description.spaces.has_action_masks:
        feed["action_mask"] = allowed[None]
    return feed | ({"hidden_state": hidden_state} if policy.description.experiment.hidden_state_size else {})


class _Graph:
    """The nodes so far. Every method adds some, and takes and returns the names of their values."""

    def __init__(self, policy: ExportedPolicy) -> None:
        self._policy, self._description, self._weights = policy, policy.description, policy.snapshot.weights
        self._nodes, self._constants = [], {}

    def build(self) -> Any:
        """The whole model, checked by onnx."""
        import onnx
        from onnx import helper

        description, spaces = self._description, self._description.spaces
        experiment = description.experiment
        name = network_name(experiment, InputShapes.of(spaces.parts))
        if ":" in name:
            raise UserError(f"--network {name}: a network of your own has no ONNX form here; export it as numpy")
        x = self._network(name)
        inputs = [
            _value(name, part.box.dtype, part.box.shape)
            for name, part in zip(input_names(self._policy), spaces.parts, strict=True)
        ]
        outputs = [_value("action", description.action.dtype, spaces.action.shape)]
        outputs += [_value("parameters", "float32", (spaces.distribution_size,))]
        if spaces.has_action_masks:
            inputs.append(_value("action_mask", "bool", (spaces.distribution_size,)))
        if experiment.hidden_state_size:
            inputs.append(_value("hidden_state", "float32", (experiment.hidden_state_size,)))
            outputs.append(_value("next_hidden_state", "float32", (experiment.hidden_state_size,)))
            cell = {"gru": self._gru, "lstm": self._lstm}[experiment.recurrent]
            x = cell(x, experiment.recurrent_size)
        parameters = self._linear(x, "policy_head", "parameters")
        self._action(parameters)
        if spaces.distribution == "gaussian":
            self._add("Identity", [self._constant(self._weights["log_std"])], "log_std")
            outputs.append(helper.make_tensor_value_info("log_std", onnx.TensorProto.FLOAT, [spaces.action.size]))
        constants = [onnx.numpy_helper.from_array(array, name) for name, array in self._constants.items()]
        graph = helper.make_graph(self._nodes, "policy", inputs, outputs, constants)
        opset = helper.make_opsetid("", OPSET)
        model = helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION, producer_name=__package__ or "")
        helper.set_model_props(model, {"policy": json.dumps(plain(description), allow_nan=False)})
        onnx.checker.check_model(model, full_check=True)
        return model

    def _add(self, kind: str, inputs: list[str], output: str | None = None, **attributes: Any) -> str:
        from onnx import helper

        output = output or f"{kind}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def _constant(self, values: Any, dtype: Any = None) -> str:
        name = f"constant_{len(self._constants)}"
        self._constants[name] = np.ascontiguousarray(np.asarray(values, dtype)).reshape(np.shape(values))
        return name

    def _cast(self, x: str, dtype: Any) -> str:
        return self._add("Cast", [x], to=_onnx_type(dtype))

    def _flat(self, x: str) -> str:
        """[N, the rest], whatever the shape."""
        return self._add("Flatten", [x], axis=1)

    def _joined(self, parts: list[str]) -> str:
        return parts[0] if len(parts) == 1 else self._add("Concat", parts, axis=1)

    def _linear(self, x: str, name: str, output: str | None = None) -> str:
        weight, bias = (self._constant(self._weights[f"{name}.{kind}"]) for kind in ("weight", "bias"))
        return self._add("Gemm", [x, weight, bias], output, transB=1)

    # Observations

    def _encoded(self) -> tuple[list[str], list[str]]:
        """(the parts of the vector [N, n], the images [N, channels, height, width] from 0 to 1)."""
        numbers, vectors, images = [], [], []
        names, form = input_names(self._policy), self._description.observation
        for name, starts, part in zip(names, form.starts, self._description.spaces.parts, strict=True):
            if part.kind == "image":
                images.append(self._image(name, part))
            elif part.kind == "choices":
                vectors.append(self._one_hot(name, starts, part))
            else:
                flat = self._cast(self._add("Reshape", [name, self._constant([-1, part.box.size])]), np.float32)
                (numbers if part.kind == "numbers" else vectors).append(flat)
        if numbers and self._description.experiment.normalize_observations:
            numbers = [self._normalized(self._joined(numbers))]
        return numbers + vectors, images

    def _normalized(self, x: str) -> str:
        snapshot = self._policy.snapshot
        x = self._add("Sub", [x, self._constant(snapshot.observation_mean)])
        x = self._add("Mul", [x, self._constant(snapshot.observation_scale)])
        return self._add("Clip", [x, self._constant(-OBSERVATION_CLIP), self._constant(OBSERVATION_CLIP)])

    def _one_hot(self, x: str, starts: tuple[int, ...], part: ObservationPart) -> str:
        """A column for each value of each number: is it that?"""
        numbers = np.repeat(np.arange(len(starts)), part.choices)
        values = np.concatenate([start + np.arange(n) for start, n in zip(starts, part.choices, strict=True)])
        flat = self._add("Reshape", [x, self._constant([-1, part.box.size])])
        spread = self._add("Gather", [flat, self._constant(numbers)], axis=1)
        return self._cast(self._add("Equal", [spread, self._constant(values, part.box.dtype)]), np.float32)

    def _image(self, x: str, part: ObservationPart) -> str:
        """As `protocol.observations.channels_last` reads its shape, but with the channels first, as ONNX wants them."""
        x = self._add("Mul", [self._cast(x, np.float32), self._constant(np.float32(1 / 255))])
        match part.box.shape:
            case height, width:
                return self._add("Reshape", [x, self._constant([-1, 1, height, width])])
            case a, _, c:
                return x if a < c else self._add("Transpose", [x], perm=[0, 3, 1, 2])
            case frames, a, b, c if a < c:  # [frames, channels, height, width]
                return self._add("Reshape", [x, self._constant([-1, frames * a, b, c])])
            case frames, a, b, c:  # [frames, height, width, channels]: the channels of each frame stay together
                x = self._add("Transpose", [x], perm=[0, 1, 4, 2, 3])
                return self._add("Reshape", [x, self._constant([-1, frames * c, a, b])])
        raise AssertionError(part)

    # Networks, as `actors/networks.py` has them

    def _network(self, name: str) -> str:
        vectors, images = self._encoded()
        if name != "mlp":
            climb = {"nature_cnn": self._nature, "impala_cnn": self._impala}[name]
            images = [climb(image, f"encoder.towers.{i}") for i, image in enumerate(images)]
        activation = self._description.experiment.activation if name == "mlp" else "relu"
        last = [self._flat(self._add("Transpose", [image], perm=[0, 2, 3, 1])) for image in images]
        x = self._joined(vectors + last)
        layers = 0
        while f"encoder.layers.{layers}.weight" in self._weights:
            x = self._activated(self._linear(x, f"encoder.layers.{layers}"), activation)
            layers += 1
        return x

    def _activated(self, x: str, activation: str) -> str:
        if activation == "silu":
            return self._add("Mul", [x, self._add("Sigmoid", [x])])
        return self._add({"tanh": "Tanh", "relu": "Relu"}[activation], [x])

    def _convolution(self, x: str, name: str, stride: int, padding: int) -> str:
        weight = self._constant(self._weights[f"{name}.weight"].transpose(0, 3, 1, 2))  # [out, in, rows, columns]
        inputs = [x, weight, self._constant(self._weights[f"{name}.bias"])]
        return self._add("Conv", inputs, strides=[stride] * 2, pads=[padding] * 4)

    def _nature(self, x: str, name: str) -> str:
        for i, (_, _, stride) in enumerate(NATURE_LAYERS):
            x = self._add("Relu", [self._convolution(x, f"{name}.{i}", stride, padding=0)])
        return x

    def _impala(self, x: str, name: str) -> str:
        for block in range(len(IMPALA_CHANNELS)):
            x = self._convolution(x, f"{name}.{block}.0", 1, 1)
            x = self._add("MaxPool", [x], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
            for i in range(IMPALA_RESIDUALS):
                y = self._convolution(self._add("Relu", [x]), f"{name}.{block}.{1 + 2 * i}", 1, 1)
                y = self._convolution(self._add("Relu", [y]), f"{name}.{block}.{2 + 2 * i}", 1, 1)
                x = self._add("Add", [x, y])
        return self._add("Relu", [x])

    def _gru(self, x: str, size: int) -> str:
        inputs, recurrent = self._linear(x, "gru.inputs"), self._linear("hidden_state", "gru.recurrent")
        both = self._add("Add", [self._cut(inputs, 0, 2 * size), self._cut(recurrent, 0, 2 * size)])
        gates = self._add("Sigmoid", [both])
        kept = self._add("Mul", [self._cut(gates, 0, size), self._cut(recurrent, 2 * size, 3 * size)])
        candidate = self._add("Tanh", [self._add("Add", [self._cut(inputs, 2 * size, 3 * size), kept])])
        change = self._add("Mul", [self._cut(gates, size, 2 * size), self._add("Sub", ["hidden_state", candidate])])
        return self._add("Add", [candidate, change], "next_hidden_state")

    def _lstm(self, x: str, size: int) -> str:
        shown, cell = self._cut("hidden_state", 0, size), self._cut("hidden_state", size, 2 * size)
        summed = self._add("Add", [self._linear(x, "lstm.inputs"), self._linear(shown, "lstm.recurrent")])
        taken, kept, candidate, output = (self._cut(summed, i * size, (i + 1) * size) for i in range(4))
        kept = self._add("Mul", [self._add("Sigmoid", [kept]), cell])
        taken = self._add("Mul", [self._add("Sigmoid", [taken]), self._add("Tanh", [candidate])])
        cell = self._add("Add", [kept, taken])
        shown = self._add("Mul", [self._add("Sigmoid", [output]), self._add("Tanh", [cell])])
        self._add("Concat", [shown, cell], "next_hidden_state", axis=1)
        return shown

    def _cut(self, x: str, start: int, end: int) -> str:
        """Columns of x [N, n]."""
        return self._add("Slice", [x, *(self._constant([number]) for number in (start, end, 1))])

    # Actions

    def _action(self, parameters: str) -> None:
        """The action as `actors.interface.ActionConverter` gives it to the environment."""
        spaces, form = self._description.spaces, self._description.action
        if spaces.distribution == "categorical":
            if spaces.has_action_masks:
                raised = self._add("Max", [parameters, self._constant(LOWEST)])
                parameters = self._add("Where", ["action_mask", raised, self._constant(np.float32(-np.inf))])
            groups = [self._cut(parameters, start, end) for start, end in spaces.groups]
            chosen = self._joined([self._add("ArgMax", [group], axis=1, keepdims=1) for group in groups])
            x = self._add("Add", [chosen, self._constant(form.start, np.int64)])
        elif spaces.distribution == "bernoulli":
            x = self._add("Greater", [parameters, self._constant(np.float32(0))])
        else:
            wide = np.result_type(np.float32, form.dtype)
            low, high = (self._constant(bound.astype(wide)) for bound in form.bounds())
            x = self._add("Min", [self._add("Max", [self._cast(parameters, wide), low]), high])
        shape = self._constant([-1, *spaces.action.shape])
        self._add("Reshape", [self._cast(x, form.dtype), shape], "action")


def _value(name: str, dtype: str, shape: tuple[int, ...]) -> Any:
    from onnx import helper

    return helper.make_tensor_value_info(name, _onnx_type(dtype), ["N", *shape])


def _onnx_type(dtype: Any) -> int:
    from onnx import helper

    return helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
