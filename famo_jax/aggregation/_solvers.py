"""The algebra of Gram matrices: cosines, linear systems, fair weights, least squares."""

import functools
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np


def epsilon_of(array: jax.Array) -> float:
    """The relative precision of an array's dtype."""
    return float(np.finfo(array.dtype).eps)


def among(tasks: jax.Array, matrix: jax.Array) -> jax.Array:
    """Zeros in the rows and columns of all other tasks."""
    return jnp.where(tasks & tasks[:, None], matrix, 0)


def correlation(matrix: jax.Array, present: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The cosines between gradients.

    Systems in them are solved as precisely for gradients of very different lengths as for equal
    ones.

    Args:
      matrix: ``[K, K]``, a Gram matrix.
      present: ``[K]``, bool.

    Returns:
      ``[K, K]``, with rows and columns of the identity for absent tasks and for gradients of zero,
      which have no direction; the norms of the gradients, ``[K]``, 1 for these; and the tasks that
      have a direction, ``[K]``, bool.
    """
    diagonal = jnp.diag(matrix)
    pointed = present & (diagonal != 0)
    norms = jnp.sqrt(jnp.where(pointed, diagonal, 1))
    cosines = among(pointed, matrix) / norms / norms[:, None]
    return jnp.where(jnp.eye(len(matrix), dtype=bool), 1, cosines), norms, pointed


def solve_positive(matrix: jax.Array, vector: jax.Array) -> jax.Array:
    """The solution x of A x = b for symmetric positive definite A; NaN where it is not."""
    factor = jax.scipy.linalg.cho_factor(matrix, lower=True)
    solution: jax.Array = jax.scipy.linalg.cho_solve(factor, vector)
    return solution


def equal_angles(cosines: jax.Array, pointed: jax.Array) -> jax.Array:
    """The weights of the unit gradients, ``[K]``, whose sum has a projection of 1 on each of them.

    Args:
      cosines: ``[K, K]``, of :func:`correlation`.
      pointed: ``[K]``, bool, the tasks that have a direction.

    Returns:
      Of linearly dependent gradients the projections are as near to 1 as can be, and the weights
      those of least norm.
    """
    values, vectors = jnp.linalg.eigh(cosines)
    # Below it an eigenvalue may be rounding in the cosines.
    kept = values > 8 * epsilon_of(cosines) * values[-1]
    inverse = jnp.where(kept, 1 / jnp.where(kept, values, 1), 0)
    weights: jax.Array = vectors @ (inverse * (pointed.astype(cosines.dtype) @ vectors))
    return weights


# --- Fair weights ---------------------------------------------------------------------------------

Point: TypeAlias = tuple[jax.Array, jax.Array, jax.Array]

MAX_NEWTON_STEPS = 100  # 10 are usual, more where the gradients nearly cancel


def fair_weights(
    cosines: jax.Array, scales: jax.Array, alpha: jax.typing.ArrayLike
) -> tuple[jax.Array, jax.Array]:
    r"""The weights :math:`\beta > 0` with :math:`(C \beta)_i = c_i \beta_i^{-1/\alpha}`.

    This is the stationarity of a strictly convex function of beta. Newton's method with a step of
    :math:`1 / (1 + \max_i |\delta_i|)`, :math:`\delta` being the step relative to beta, always
    falls: then no weight shrinks to 0, and the curvature is at most what the step allows for. In
    the end it converges quadratically.

    Args:
      cosines: C, ``[K, K]``.
      scales: c, ``[K]``, positive.
      alpha: Above 0.

    Returns:
      beta, ``[K]``, and whether it is a solution, ``[]``, bool. There is one if and only if 0 is
      not in the convex hull of the gradients.
    """
    alpha = jnp.asarray(alpha, cosines.dtype)
    power = 1 - 1 / alpha
    precision = epsilon_of(cosines) ** 0.5
    caution = jnp.maximum(1, 0.5 / alpha)

    # Both sides of the equation times beta: how much of its due a task gets.
    def sides(beta: jax.Array) -> tuple[jax.Array, jax.Array]:
        return beta * (cosines @ beta), scales * beta**power

    def step(carry: Point) -> Point:
        beta, _, count = carry
        gains, dues = sides(beta)
        root = jnp.sqrt(dues)
        ratios = beta / root
        system = ratios * cosines * ratios[:, None]
        system += jnp.diag(jnp.full_like(beta, 1 / alpha))
        relative = solve_positive(system, (dues - gains) / root) / root
        furthest = jnp.max(jnp.abs(relative))
        damping = jnp.where(furthest < 0.25, 1, 1 / (1 + caution * furthest))
        return beta * (1 + damping * relative), furthest, count + 1

    def unsettled(carry: Point) -> jax.Array:
        beta, furthest, count = carry
        bounded = jnp.max(beta / first) < 1 / precision
        more: jax.Array = (furthest > precision**1.5) & (count < MAX_NEWTON_STEPS) & bounded
        return more

    # The solution of the diagonal, and of its multiples the best.
    first = scales ** (alpha / (1 + alpha))
    gains, dues = sides(first)
    ratio = jnp.sum(dues) / jnp.maximum(jnp.sum(gains), jnp.max(gains) / len(gains))
    first *= ratio ** (1 / (2 - power))
    start = first, jnp.array(jnp.inf, cosines.dtype), jnp.zeros((), int)
    beta, *_ = jax.lax.while_loop(unsettled, step, start)
    # Without a solution beta grows for as long as it may.
    gains, dues = sides(beta)
    residual = jnp.max(jnp.abs(gains / dues - 1))
    return beta, (residual < 0.01) & (jnp.max(beta / first) < 1 / precision)


# --- Nonnegative least squares --------------------------------------------------------------------

Carry: TypeAlias = tuple[jax.Array, jax.Array, jax.Array, jax.Array]

MAX_STEPS = 60  # of the interior-point method; 5 to 20 are usual


def nonnegative_least_squares(
    matrix: jax.Array, vector: jax.Array, *, needed: jax.typing.ArrayLike = True
) -> jax.Array:
    r"""Minimises :math:`\frac12 u^\top A u - b^\top u` over :math:`u \ge 0`.

    Mehrotra's predictor-corrector method: Newton steps on :math:`A u - b = z, \; u_i z_i = \mu`
    with :math:`\mu \to 0`. A need not have full rank. The number of steps is bounded, and hardly
    grows with K.

    Args:
      matrix: A, ``[K, K]``, positive semidefinite.
      vector: b, ``[K]``.
      needed: ``[]``, bool. Where it is False no step is made.

    Returns:
      u, ``[K]``, positive; the entries that should be 0 are so to the precision of the dtype.
    """
    # In units where A has a diagonal of 1 and b entries of at most 1.
    scale = jax.lax.rsqrt(jnp.diag(matrix))
    unit = jnp.max(jnp.abs(vector * scale))
    unit = jnp.where(unit > 0, unit, 1)
    a, b = matrix * scale * scale[:, None], vector * scale / unit
    epsilon = epsilon_of(a)
    num_tasks = b.size
    # Of the order of the rounding in A. It makes the solution bounded and unique.
    a += jnp.diag(jnp.full_like(b, 4 * epsilon))

    def step(carry: Carry) -> Carry:
        u, z, count, _ = carry
        mu = jnp.vdot(u, z) / num_tasks
        factor = jax.scipy.linalg.cho_factor(a + jnp.diag(z / u), lower=True)

        def newton(target: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
            """The step to A u - b = z and u z = target, linearised, and how far u, z >= 0."""
            du = jax.scipy.linalg.cho_solve(factor, b - a @ u + target / u)
            dz = target / u - z - z * du / u
            shrinkage = jnp.max(jnp.maximum(-du / u, -dz / z))
            return du, dz, 1 / jnp.maximum(shrinkage, epsilon)

        du, dz, longest = newton(jnp.zeros_like(u))
        length = jnp.minimum(1, longest)
        affine = jnp.vdot(u + length * du, z + length * dz) / num_tasks
        du, dz, longest = newton(mu * (affine / mu) ** 3 - du * dz)
        length = jnp.minimum(1, jnp.maximum(0.9, 1 - mu) * longest)
        new_u, new_z = u + length * du, z + length * dz
        good = jnp.all((new_u > 0) & (new_z > 0) & jnp.isfinite(new_u) & jnp.isfinite(new_z))
        more = good & (jnp.vdot(new_u, new_z) > 0.1 * epsilon)
        return jnp.where(good, new_u, u), jnp.where(good, new_z, z), count + 1, more

    ones = jnp.ones_like(b)
    carry = ones / num_tasks, ones, jnp.zeros((), int), jnp.asarray(needed)
    u, *_ = jax.lax.while_loop(lambda carry: carry[3] & (carry[2] < MAX_STEPS), step, carry)
    return u * scale * unit


Guess: TypeAlias = tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]

MAX_EXCHANGES = 40  # 2 to 6 are usual


def onto_dual_cone(matrix: jax.Array, weights: jax.Array) -> jax.Array:
    r"""Minimises :math:`v^\top A v` over :math:`v \ge w`.

    :math:`J^\top v` is then the projection of :math:`J^\top w` on the directions that ascend on
    no task, those with :math:`J d \ge 0`, where :math:`A = J J^\top`. By block principal pivoting:
    the entries where :math:`v_i > w_i` are guessed, a linear system is solved for them, and those
    that turn out wrong change sides, all at once or, once that helps no more, one at a time. The
    solution is as precise as that of a linear system. Should the guesses go round in circles, as
    rounding can make them where A is nearly singular, the interior-point method takes over.

    Args:
      matrix: A, ``[K, K]``, positive semidefinite with a diagonal of 1.
      weights: w, ``[..., K]``, of as many problems.

    Returns:
      v, ``[..., K]``, at least w.
    """
    pivot = jnp.vectorize(functools.partial(_pivot, matrix), signature="(k)->(k),()")
    solve = lambda b, failed: nonnegative_least_squares(matrix, b, needed=failed)
    u, failed = pivot(weights)
    # Outside of the loop over problems, so that it costs nothing where all are solved.
    inner = jax.lax.cond(
        jnp.any(failed),
        jnp.vectorize(solve, signature="(k),()->(k)"),
        lambda b, failed: b,
        -(weights @ matrix),
        failed,
    )
    return weights + jnp.where(failed[..., None], inner, u)


def _pivot(matrix: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    """By pivoting, of one problem, v - w, ``[K]``, and whether that failed, ``[]``."""
    epsilon = epsilon_of(matrix)
    eye = jnp.eye(len(matrix), dtype=matrix.dtype)
    b = -(matrix @ weights)
    # What the rounding in A may make of a zero.
    slack = 4 * epsilon * jnp.max(jnp.abs(matrix) @ jnp.abs(weights))

    def solve(free: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The solution u for these free entries, and which of all entries are wrong."""
        system, target = jnp.where(free & free[:, None], matrix, eye), jnp.where(free, b, 0)
        # As much is added to the diagonal as for the interior-point method, and made good once.
        factor = jax.scipy.linalg.cho_factor(system + 4 * epsilon * eye, lower=True)
        u = jax.scipy.linalg.cho_solve(factor, target)
        u += jax.scipy.linalg.cho_solve(factor, target - system @ u)
        return u, ~jnp.where(free, u >= 0, matrix @ u - b >= -slack)

    def step(carry: Guess) -> Guess:
        free, _, wrong, fewest, chances, count = carry
        last = jnp.arange(len(b)) == len(b) - 1 - jnp.argmax(wrong[::-1])
        free ^= jnp.where(chances > 0, wrong, last & wrong)
        u, wrong = solve(free)
        total = jnp.sum(wrong)
        chances = jnp.where(total < fewest, 3, chances - 1)
        return free, u, wrong, jnp.minimum(total, fewest), chances, count + 1

    def undecided(carry: Guess) -> jax.Array:
        return jnp.any(carry[2]) & (carry[-1] < MAX_EXCHANGES)

    free = b > slack
    u, wrong = solve(free)
    start = free, u, wrong, jnp.sum(wrong), jnp.full((), 3), jnp.zeros((), int)
    _, u, wrong, *_ = jax.lax.while_loop(undecided, step, start)
    return jnp.maximum(u, 0), jnp.any(wrong)
