"""The algebra of Gram matrices: cosines, linear systems, nonnegative least squares."""

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


# --- Nonnegative least squares --------------------------------------------------------------------

Carry: TypeAlias = tuple[jax.Array, jax.Array, jax.Array, jax.Array]

MAX_STEPS = 60  # of the interior-point method; 5 to 20 are usual


def nonnegative_least_squares(matrix: jax.Array, vector: jax.Array) -> jax.Array:
    r"""Minimises :math:`\frac12 u^\top A u - b^\top u` over :math:`u \ge 0`.

    Mehrotra's predictor-corrector method: Newton steps on :math:`A u - b = z, \; u_i z_i = \mu`
    with :math:`\mu \to 0`. A need not have full rank. The number of steps is bounded, and hardly
    grows with K.

    Args:
      matrix: A, ``[K, K]``, positive semidefinite.
      vector: b, ``[K]``.

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
    carry = ones / num_tasks, ones, jnp.zeros((), int), jnp.array(True)
    u, *_ = jax.lax.while_loop(lambda carry: carry[3] & (carry[2] < MAX_STEPS), step, carry)
    return u * scale * unit
