"""A train state for Flax Linen (extra ``flax``) that hands the losses on to Optax."""

import functools
from collections.abc import Callable
from typing import Any, Self

import chex
import optax

from famo_jax import _method

try:
    from flax.training import train_state
except ImportError as error:
    raise ImportError(
        'famo_jax.TrainState needs Flax: pip install "famo_jax[flax]"', name=error.name
    ) from error


class TrainState(train_state.TrainState):
    """Flax's ``TrainState`` whose ``apply_gradients`` hands losses on to ``tx.update``.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from famo_jax import TrainState, famo, task_weights
      >>> tx = optax.chain(optax.sgd(0.1), famo(num_tasks=2))
      >>> state = TrainState.create(apply_fn=None, params={"x": jnp.array(1.0)}, tx=tx)
      >>> state = state.apply_gradients(
      ...     grads={"x": jnp.array(1.0)}, losses=jnp.array([2.0, 2.0]),
      ...     new_losses=jnp.array([2.0, 1.0]),
      ... )
      >>> print(state.step, task_weights(state).argmax())  # the first loss did not fall
      1 0
    """

    def apply_gradients(
        self,
        *,
        grads: optax.Updates,
        losses: chex.ArrayTree | None = None,
        losses_fn: Callable[[optax.Params], chex.ArrayTree] | None = None,
        new_losses: chex.ArrayTree | None = None,
        where: chex.ArrayTree | None = None,
        **kwargs: Any,
    ) -> Self:
        """Steps parameters, optimizer state and step count.

        Args:
          grads: The gradient, structured as ``params``; task-stacked for an aggregation method.
          losses: The K losses at ``params``: see :func:`famo_jax.famo`.
          losses_fn: Likewise.
          new_losses: Likewise.
          where: Likewise.
          **kwargs: Fields of the train state to replace.

        Returns:
          The next train state.

        Raises:
          ValueError: As ``tx.update`` does, and if ``losses_fn`` is given to FAMO before another
            link of its chain.
        """
        if losses_fn is not None:
            _method.check_last(self.opt_state)
        losses_args = {
            "losses": losses,
            "losses_fn": losses_fn,
            "new_losses": new_losses,
            "where": where,
        }
        given = {name: value for name, value in losses_args.items() if value is not None}
        tx = optax.with_extra_args_support(self.tx)
        informed = tx._replace(update=functools.partial(tx.update, **given))
        state: Any = super(TrainState, self.replace(tx=informed))
        state = state.apply_gradients(grads=grads, **kwargs)
        next_state: Self = state.replace(tx=self.tx)
        return next_state
