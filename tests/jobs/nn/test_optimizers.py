"""The optimisers: hand-worked first steps, purity, dtypes, and parts that leave no seam."""

import numpy as np
import pytest

from jobs.nn import optimizers
from jobs.nn.optimizers import OPTIMIZERS, make_optimizer
from jobs.nn.parameters import Floats


def two_steps(name: str, dtype: type[np.floating] = np.float64) -> Floats:
    """Two steps at rate 0.1 with the same gradient and momentum 0.5."""
    optimizer = make_optimizer(name, momentum=0.5)
    parameters = np.array([1, 2, 3, 4], dtype)
    gradient = np.array([1, -1, 2, 0], dtype)
    state = optimizer.initial_state(parameters)
    for number in (1, 2):
        parameters, state = optimizer.step(parameters, gradient, state, 0.1, number)
    return parameters


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
    """Two steps from the published formula, worked by hand."""
    np.testing.assert_allclose(two_steps(name), expected, rtol=1e-7)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_nothing_that_was_passed_is_changed(name: str) -> None:
    """Parameters, gradient and state are as before, later steps included, and the dtype stays."""
    optimizer = make_optimizer(name)
    parameters, gradient = np.ones(4, np.float32), np.full(4, 0.5, np.float32)
    first, state = optimizer.step(
        parameters, gradient, optimizer.initial_state(parameters), np.float64(0.1), 1
    )
    kept = {key: value.copy() for key, value in state.items()}
    kept_first = first.copy()
    second, next_state = optimizer.step(first, gradient, state, 0.1, 2)
    again, _ = optimizer.step(first, gradient, state, 0.1, 2)

    np.testing.assert_array_equal(np.ones(4), parameters)
    np.testing.assert_array_equal(np.full(4, 0.5), gradient)
    np.testing.assert_array_equal(kept_first, first)
    np.testing.assert_array_equal(second, again)
    for key, value in kept.items():
        np.testing.assert_array_equal(value, state[key])
    assert set(optimizer.initial_state(parameters)) == set(next_state)
    for vector in (first, second, *state.values(), *next_state.values()):
        assert np.float32 == vector.dtype


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_parts_leave_no_seam(name: str) -> None:
    """A step taken part by part, into arrays that were given, has the bits of one step."""
    optimizer = make_optimizer(name)
    generator = np.random.default_rng(4)
    parameters, gradient = generator.normal(size=(2, 1001)).astype(np.float32)
    _, state = optimizer.step(parameters, gradient, optimizer.initial_state(parameters), 0.1, 1)
    whole, whole_state = optimizer.step(parameters, gradient, state, 0.1, 2)
    out, out_state = np.empty_like(whole), {key: np.empty_like(whole) for key in state}
    for part in (slice(0, 7), slice(7, 600), slice(600, 1001)):
        optimizer.step(
            parameters[part],
            gradient[part],
            {key: vector[part] for key, vector in state.items()},
            0.1,
            2,
            (out[part], {key: vector[part] for key, vector in out_state.items()}),
        )
    np.testing.assert_array_equal(whole, out)
    for key, vector in whole_state.items():
        np.testing.assert_array_equal(vector, out_state[key])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_numpy_rate_gives_the_same_bits(name: str) -> None:
    """A float64 scalar as the rate does not draw float32 arithmetic into float64."""
    generator = np.random.default_rng(8)
    parameters, gradient = generator.normal(size=(2, 1000)).astype(np.float32)
    optimizer = make_optimizer(name)
    state = optimizer.initial_state(parameters)
    expected, _ = optimizer.step(parameters, gradient, state, 0.1, 1)
    stepped, _ = optimizer.step(parameters, gradient, state, np.float64(0.1), 1)
    np.testing.assert_array_equal(expected, stepped)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_are_known_by_name(name: str) -> None:
    """What `make_optimizer` makes carries the name it was asked for; adamw decouples L2."""
    optimizer = make_optimizer(name)
    assert (name, name == "adamw") == (optimizer.name, optimizer.decouples_l2)


def test_an_unknown_optimizer_is_refused() -> None:
    """The error lists the optimisers there are."""
    with pytest.raises(ValueError, match="'lion': expected one of sgd, momentum, nesterov, adam"):
        make_optimizer("lion")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name != "sgd"])
def test_moments_never_linger_below_the_normal_numbers(
    name: str, dtype: type[np.floating], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where gradients have ended, a moment decays to 0, and no parameter tells the difference."""
    optimizer = make_optimizer(name)
    generator = np.random.default_rng(0)
    gradient = (generator.standard_normal(500) * 10 ** generator.uniform(-9, 2, 500)).astype(dtype)

    def ended(steps: int = 9_000) -> tuple[Floats, bool]:
        """The parameters, and whether any number in the state was ever subnormal."""
        parameters = np.linspace(-1, 1, 500, dtype=dtype)
        state = optimizer.initial_state(parameters)
        lingered = False
        for number in range(1, steps + 1):
            now = gradient if number == 1 else np.zeros_like(gradient)
            parameters, state = optimizer.step(parameters, now, state, 0.01, number)
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
