r"""Partial differential equations, solved by a network.

A network u is trained to solve an equation: its *residual* in the domain, and its misfit at the
*boundary* and at the *initial* time, are the tasks. The solutions are known: of Burgers' equation a
travelling front; of Helmholtz' on a square a product of sines, where the residual's gradients drown
the boundary's, with 0 on the boundary, so that u = 0 has no boundary loss at all, or shifted. Each
step sees all points, which are fixed, so the losses carry no noise of sampling.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from flax import nnx

from famo_jax.experiments.problems import _problem
from famo_jax.experiments.problems._problem import Problem, Task

Array = npt.NDArray[Any]
Field = Callable[[jax.Array], jax.Array]  # [N, 2] points -> [N] values


class Equation(NamedTuple):
    """A differential equation on a rectangle, and its solution."""

    title: str
    low: tuple[float, float]
    high: tuple[float, float]
    residual: Callable[[Field], Field]  # of a field that may solve the equation or not
    exact: Field
    evolves: bool  # the second coordinate is time


def derivative(field: Field, axis: int) -> Field:
    """The partial derivative, by forward-mode differentiation of all points at once."""

    def differentiated(points: jax.Array) -> jax.Array:
        direction = jnp.zeros_like(points).at[:, axis].set(1)
        tangents: jax.Array = jax.jvp(field, (points,), (direction,))[1]
        return tangents

    return differentiated


VISCOSITY = 0.05
SPEED, HEIGHT, START = 0.5, 0.5, 0.2  # of the front


def burgers_residual(u: Field) -> Field:
    """Of u_t + u u_x = nu u_xx."""
    u_x, u_t = derivative(u, 0), derivative(u, 1)
    u_xx = derivative(u_x, 0)
    return lambda points: u_t(points) + u(points) * u_x(points) - VISCOSITY * u_xx(points)


def burgers_front(points: jax.Array) -> jax.Array:
    """A front that travels right, u = c - a tanh(a (x - x_0 - c t) / (2 nu))."""
    distance = points[:, 0] - START - SPEED * points[:, 1]
    return SPEED - HEIGHT * jnp.tanh(HEIGHT * distance / (2 * VISCOSITY))


WAVE_NUMBERS = (1, 2)  # in units of pi
K_SQUARED = 1.0


def sine_product(points: jax.Array, shift: float) -> jax.Array:
    """A product of sines: with no shift 0 on the boundary of [-1, 1] x [-1, 1]."""
    return jnp.prod(jnp.sin(jnp.pi * jnp.asarray(WAVE_NUMBERS) * (points + shift)), axis=1)


def helmholtz_residual(u: Field, exact: Field) -> Field:
    """Of u_xx + u_yy + k^2 u = q, with the q of a product of sines."""
    u_xx, u_yy = (derivative(derivative(u, axis), axis) for axis in (0, 1))
    factor = K_SQUARED - jnp.pi**2 * sum(number**2 for number in WAVE_NUMBERS)
    return lambda points: (
        u_xx(points) + u_yy(points) + K_SQUARED * u(points) - factor * exact(points)
    )


def helmholtz(title: str, shift: float) -> Equation:
    """On the square [-1, 1] x [-1, 1]."""
    exact = functools.partial(sine_product, shift=shift)
    residual = functools.partial(helmholtz_residual, exact=exact)
    words = f"Helmholtz' equation in two dimensions, {title} on the boundary"
    return Equation(words, (-1.0, -1.0), (1.0, 1.0), residual, exact, evolves=False)


_BURGERS = "Burgers' equation in one dimension and time, a travelling front"
EQUATIONS = {
    "burgers": Equation(_BURGERS, (0.0, 0.0), (1.0, 1.0), burgers_residual, burgers_front, True),
    "helmholtz": helmholtz("0", 0.0),
    "helmholtz-shifted": helmholtz("not 0", 0.15),
}
TERMS = ("residual", "boundary", "initial")
INTERIOR, EDGE, EVALUATION = 12, 16, 51  # points along an axis


def terms_of(equation: Equation) -> tuple[str, ...]:
    """The names of the K tasks."""
    return TERMS if equation.evolves else TERMS[:2]


def place(equation: Equation, first: Array, second: Array) -> jax.Array:
    """The grid of two sets of coordinates in units of the rectangle's sides, ``[N, 2]``."""
    unit = np.stack(np.meshgrid(first, second, indexing="ij"), axis=-1).reshape(-1, 2)
    low, high = np.array(equation.low), np.array(equation.high)
    return jnp.asarray(low + (high - low) * unit)


def training_points(equation: Equation) -> dict[str, jax.Array]:
    """Where each term is evaluated, ``[N, 2]``: midpoints of cells, and points of the sides."""
    inside = (np.arange(INTERIOR) + 0.5) / INTERIOR
    along, ends = np.linspace(0, 1, EDGE), np.array([0.0, 1.0])
    sides = [place(equation, ends, along)]
    if not equation.evolves:
        sides.append(place(equation, along, ends))
    points = {"residual": place(equation, inside, inside), "boundary": jnp.concatenate(sides)}
    return points | ({"initial": place(equation, along, ends[:1])} if equation.evolves else {})


def misfit(equation: Equation, field: Field, term: str) -> jax.Array:
    """What should be 0 at the points of a term, ``[N]``."""
    points = training_points(equation)[term]
    if term == "residual":
        return equation.residual(field)(points)
    return field(points) - equation.exact(points)


def relative_error(equation: Equation, field: Field) -> jax.Array:
    """The relative L2 error on a grid of its own, 51 x 51."""
    along = np.linspace(0, 1, EVALUATION)
    points = place(equation, along, along)
    exact = equation.exact(points)
    error: jax.Array = jnp.linalg.norm(field(points) - exact) / jnp.linalg.norm(exact)
    return error


class Network(nnx.Module):
    """2-32-32-1 with tanh."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        init = nnx.initializers.glorot_normal()
        linear = functools.partial(nnx.Linear, kernel_init=init, rngs=rngs)
        self.first, self.second, self.last = linear(2, 32), linear(32, 32), linear(32, 1)

    def __call__(self, points: jax.Array) -> jax.Array:
        """Coordinates between -1 and 1, ``[N, 2]``, to ``[N]``."""
        return self.last(jnp.tanh(self.second(jnp.tanh(self.first(points)))))[:, 0]


def field_of(equation: Equation, params: chex.ArrayTree) -> Field:
    """The network with these parameters, on the problem's own coordinates."""
    low, high = np.array(equation.low), np.array(equation.high)
    return lambda points: _problem.apply(Network, params, (2 * points - low - high) / (high - low))


def term_loss(equation: Equation, term: str, params: chex.ArrayTree) -> jax.Array:
    """The mean square of a term."""
    return jnp.mean(misfit(equation, field_of(equation, params), term) ** 2)


def task_losses(equation: Equation, params: chex.ArrayTree) -> jax.Array:
    """The K losses, ``[K]``."""
    return jnp.stack([term_loss(equation, term, params) for term in terms_of(equation)])


def problem_of(equation: Equation) -> Problem:
    """The terms of an equation as tasks; the metrics are the relative error, then the losses."""
    terms = terms_of(equation)

    def metrics(params: chex.ArrayTree, _: Any, __: Any) -> jax.Array:
        error = relative_error(equation, field_of(equation, params))
        return jnp.concatenate([error[None], task_losses(equation, params)])

    return Problem(
        tasks=tuple(Task(term, f"{term}, MSE", term, 3) for term in terms),
        load_data=_problem.no_data,
        init=lambda seeds: (_problem.init_params(Network, seeds), ()),
        losses=lambda params, state, *_: (task_losses(equation, params), state),
        metrics=metrics,
        # Each term has points of its own, so K gradients cost what that of their sum does.
        each=tuple(
            lambda params, *_, term=term: term_loss(equation, term, params) for term in terms
        ),
    )
