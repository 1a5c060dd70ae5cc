"""The digest of small updates, by which a resumed run sees that its learner computes otherwise than before."""

from typing import Any

import mlx.core as mx
import pytest

from learner import convolution, differentiated, objective, recurrence, stacked_mlp
from learner.computation import lstm_digest, update_digest


def twisted(function: Any) -> Any:
    """`function` with a result that is a little off in one bit here and there."""

    def changed(*arguments: Any) -> Any:
        found = function(*arguments)
        return found * (1 + 1e-6) if isinstance(found, mx.array) else [x * (1 + 1e-6) for x in found]

    return changed


def test_the_digest_of_updates_repeats_itself_whatever_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = update_digest()
    assert update_digest() == expected and lstm_digest() == lstm_digest() != expected
    original = differentiated._stream
    monkeypatch.setattr(differentiated, "_stream", lambda number: original(0))
    assert update_digest() == expected


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (convolution, "gradient_of_images"),
        (convolution, "unfold"),
        (objective, "normalized"),
        (stacked_mlp, "objective_gradients"),
        (differentiated, "objective"),
        (recurrence, "gru_recurrence"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_another_arithmetic_has_another_digest(module: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = update_digest()
    if name == "gru_recurrence":
        make = recurrence.gru_recurrence
        monkeypatch.setattr("learner.networks.gru_recurrence", lambda: twisted(make()))
    elif name == "normalized":
        monkeypatch.setattr("learner.computation.normalized", lambda *a, **k: objective.normalized(*a, **k) * 1.000001)
    elif name == "objective":
        loss = differentiated.objective
        monkeypatch.setattr(differentiated, name, lambda *a: (loss(*a)[0] * 1.000001, loss(*a)[1]))
    else:
        monkeypatch.setattr(module, name, twisted(getattr(module, name)))
    assert update_digest() != expected


def test_another_lstm_has_another_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    expected, others, make = lstm_digest(), update_digest(), recurrence.lstm_recurrence
    monkeypatch.setattr("learner.networks.lstm_recurrence", lambda: twisted(make()))
    assert lstm_digest() != expected and update_digest() == others
