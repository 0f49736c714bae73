"""Optimizers: first steps computed by hand, purity, dtypes, and steps in parts."""

import numpy as np
import pytest

from jobs.nn import optimizers
from jobs.nn.choices import OPTIMIZERS
from jobs.nn.optimizers import Optimizer, Stepped, make_optimizer
from jobs.nn.parameters import Floats

every_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)


def stepped(
    optimizer: Optimizer, before: Stepped, gradient: Floats, rate: float, number: int
) -> Stepped:
    """Take a step into new arrays, with a copy of the gradient, which a step overwrites."""
    parameters, state = before
    out = np.empty_like(parameters), {name: np.empty_like(state[name]) for name in state}
    optimizer.step(before, gradient.copy(), rate, number, out)
    return out


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sgd", [1 - 0.2, 2 + 0.2, 3 - 0.4, 4]),
        # velocities g, then 1.5 g
        ("momentum", [1 - 0.25, 2 + 0.25, 3 - 0.5, 4]),
        # g + 0.5 g, then g + 0.75 g
        ("nesterov", [1 - 0.325, 2 + 0.325, 3 - 0.65, 4]),
        # a constant gradient makes both corrected moments exact: each step is rate * sign(g)
        ("adam", [1 - 0.2, 2 + 0.2, 3 - 0.2, 4]),
        ("adamw", [1 - 0.2, 2 + 0.2, 3 - 0.2, 4]),
    ],
)
def test_two_hand_worked_steps(name: str, expected: list[float]) -> None:
    """Two steps at rate 0.1 from the published formula, with momentum 0.5, worked by hand."""
    optimizer = make_optimizer(name, momentum=0.5)
    parameters, gradient = np.array([1.0, 2, 3, 4]), np.array([1.0, -1, 2, 0])
    state = optimizer.initial_state(parameters)
    for number in (1, 2):
        parameters, state = stepped(optimizer, (parameters, state), gradient, 0.1, number)
    np.testing.assert_allclose(parameters, expected, rtol=1e-7)


def test_betas_of_adam() -> None:
    """Ten steps with other betas equal algorithm 1 of Kingma and Ba, as it is printed."""
    optimizer = make_optimizer("adam", beta1=0.7, beta2=0.95)
    gradients = np.random.default_rng(2).normal(size=(10, 50))
    parameters = expected = np.ones(50)
    state = optimizer.initial_state(parameters)
    mean = square = np.zeros(50)
    for number, gradient in enumerate(gradients, 1):
        parameters, state = stepped(optimizer, (parameters, state), gradient, 0.1, number)
        mean = 0.7 * mean + 0.3 * gradient
        square = 0.95 * square + 0.05 * gradient**2
        root = np.sqrt(square / (1 - 0.95**number))
        expected = expected - 0.1 * (mean / (1 - 0.7**number)) / (root + 1e-8)
    np.testing.assert_allclose(parameters, expected, rtol=1e-12)


@every_optimizer
def test_nothing_that_was_passed_is_changed(name: str) -> None:
    """Parameters and state are unchanged, even if the rate is a NumPy number."""
    optimizer = make_optimizer(name)
    generator = np.random.default_rng(8)
    parameters, gradient = generator.normal(size=(2, 1000)).astype(np.float32)
    zero = optimizer.initial_state(parameters)
    first, state = stepped(optimizer, (parameters, zero), gradient, 0.1, 1)
    before = [vector.copy() for vector in (first, *state.values())]
    second, next_state = stepped(optimizer, (first, state), gradient, 0.1, 2)
    again, _ = stepped(optimizer, (first, state), gradient, np.float64(0.1), 2)
    np.testing.assert_array_equal(second, again)
    for expected, vector in zip(before, (first, *state.values()), strict=True):
        np.testing.assert_array_equal(expected, vector)
    assert {np.dtype(np.float32)} == {v.dtype for v in (second, *next_state.values())}


@every_optimizer
def test_steps_in_parts(name: str) -> None:
    """A step in parts, each in place, has the same bits."""
    optimizer = make_optimizer(name)
    generator = np.random.default_rng(4)
    parameters, gradient = generator.normal(size=(2, 1001)).astype(np.float32)
    zero = optimizer.initial_state(parameters)
    _, state = stepped(optimizer, (parameters, zero), gradient, 0.1, 1)
    whole, whole_state = stepped(optimizer, (parameters, state), gradient, 0.1, 2)
    for part in (slice(0, 7), slice(7, 600), slice(600, 1001)):
        place = parameters[part], {key: vector[part] for key, vector in state.items()}
        optimizer.step(place, gradient[part], 0.1, 2, place)
    np.testing.assert_array_equal(whole, parameters)
    for key, vector in whole_state.items():
        np.testing.assert_array_equal(vector, state[key])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name != "sgd"])
def test_decayed_moments_become_zero(
    name: str, dtype: type[np.floating], monkeypatch: pytest.MonkeyPatch
) -> None:
    """If gradients are 0 from now on, a moment decays to 0, with the same parameters."""
    optimizer = make_optimizer(name)
    generator = np.random.default_rng(0)
    gradient = (generator.standard_normal(50) * 10 ** generator.uniform(-9, 2, 50)).astype(dtype)

    def ended(steps: int = 9_000) -> tuple[Floats, bool]:
        """Return the parameters, and whether any number in the state was ever subnormal."""
        parameters = np.linspace(-1, 1, 50, dtype=dtype)
        state = optimizer.initial_state(parameters)
        lingered = False
        for number in range(1, steps + 1):
            now = gradient if number == 1 else np.zeros_like(gradient)
            parameters, state = stepped(optimizer, (parameters, state), now, 0.01, number)
            for moment in state.values():
                below = np.abs(moment) < np.finfo(dtype).tiny
                lingered |= bool(np.any(moment[below]))
        return parameters, lingered

    with_zeros, lingered = ended()
    assert not lingered
    monkeypatch.setattr(optimizers, "FLUSH_EVERY", 10**9)
    without, lingered = ended()
    assert lingered
    assert with_zeros.tobytes() == without.tobytes()
