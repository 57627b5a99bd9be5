"""Random loss weighting."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from famo_jax import _checks, _method


class RlwState(NamedTuple):
    """The state of random loss weighting."""

    rng_key: jax.Array  # [], a key: what this step's weights are drawn with


def rlw(num_tasks: int, *, key: jax.Array | int) -> optax.GradientTransformationExtraArgs:
    r"""Random loss weighting: new weights each step, the softmax of a normal draw.

    .. math:: L = \sum_i w_i \ell_i, \quad w = \mathrm{softmax}(\lambda), \quad
              \lambda_i \sim \mathcal{N}(0, 1)

    To weigh losses draws from the key without consuming it, so that the weighted loss, its
    gradient and :func:`loss_weights` agree within a step; ``update`` advances the key. It hands
    the updates through untouched.

    Under ``where`` the term of an absent task is dropped and the others keep their weights.

    Args:
      num_tasks: K, the number of losses.
      key: A typed key, or an int to make one of.

    Returns:
      A :class:`optax.GradientTransformationExtraArgs` whose state is an :class:`RlwState`.

    Raises:
      ValueError: If ``num_tasks`` is no int of at least 1 or ``key`` no key; in ``update``, if the
        number of losses is another one.

    Example:
      >>> import jax.numpy as jnp
      >>> from famo_jax import loss_weights
      >>> from famo_jax.weighting import rlw
      >>> tx = rlw(2, key=0)
      >>> state = tx.init(None)
      >>> print(loss_weights(jnp.ones(2), state).sum().round(3))
      1.0
      >>> _, new_state = tx.update((), state, losses=jnp.ones(2))
      >>> print((loss_weights(jnp.ones(2), new_state) != loss_weights(jnp.ones(2), state)).all())
      True

    References:
      Lin et al., `Reasonable Effectiveness of Random Weighting
      <https://arxiv.org/abs/2111.10603>`_, TMLR 2022
    """
    _checks.check_num_tasks(num_tasks)
    _checks.check_key(key)

    def learn(state: RlwState, losses: jax.Array, present: jax.Array) -> RlwState:
        del losses, present
        return RlwState(rng_key=jax.random.split(state.rng_key, 1)[0])

    init = lambda: RlwState(rng_key=_checks.make_key(key))
    return _method.from_losses(init, learn, num_tasks=num_tasks, needs_losses=False)


@_method.weighting(RlwState)
def scalarize_rlw(state: RlwState, losses: jax.Array, present: jax.Array) -> jax.Array:
    """The sum of the losses by random weights."""
    weights = jax.nn.softmax(jax.random.normal(state.rng_key, losses.shape))
    return jnp.sum(jnp.where(present, weights * losses, 0))
