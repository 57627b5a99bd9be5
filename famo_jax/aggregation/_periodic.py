"""Any method of the Gram matrix with weights that are kept for some steps."""

import functools
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from famo_jax import _checks, _tasks
from famo_jax._method import aggregation
from famo_jax._task_gradients import TaskGradients
from famo_jax.aggregation import _aggregator


@functools.partial(aggregation, lazy=True)
class PeriodicState(NamedTuple):
    """The state of a method whose weights are kept."""

    method: Any  # the method's own state
    weights: jax.Array  # [K], of the tasks
    head_weights: jax.Array  # [K], of the tasks in the heads, with an encoder
    step: jax.Array  # [], int, how many there have been


def periodic(
    method: optax.GradientTransformationExtraArgs,
    num_tasks: int,
    *,
    every: int,
    decay: chex.Numeric = 0.0,
) -> optax.GradientTransformationExtraArgs:
    r"""Looks at the task gradients every R-th step only, and keeps the weights in between.

    .. math:: w \leftarrow \lambda w + (1 - \lambda)\, w(G_t) \quad \text{where } R \mid t, \quad
              d_t = J_t^\top w

    The K backward passes run every R-th step, from the first on; all others cost one, as the mean
    of the losses does. With :math:`\lambda > 0` the weights are averaged over the times that they
    were found, the first of which counts in full; R = 1 averages those of every step.

    ``method`` is a function of the Gram matrix, with everything shared: which leaves are compared
    is said by ``gram_at`` or ``encoder`` of :func:`famo_jax.losses_and_grads`. It stands where
    ``method`` would. A task that is absent weighs 0 where it is absent, and where the weights were
    found without it until they are found again. Weights that are not finite are not taken over.

    Args:
      method: An aggregation method. On log losses: ``log_losses(periodic(mgda(), K, every=5))``.
      num_tasks: K, the number of losses.
      every: R, of at least 1.
      decay: :math:`\lambda`, of at least 0 and below 1.

    Returns:
      An aggregator whose state is a :class:`PeriodicState`.

    Raises:
      ValueError: If an argument is not as described above; in ``update``, if the method needs the
        gradients themselves or has ``shared`` of its own.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from famo_jax import losses_and_grads
      >>> from famo_jax.aggregation import nash_mtl, periodic
      >>> losses_fn = lambda x: (x - jnp.array([1.0, 3.0])) ** 2 @ jnp.array([[1, 9], [2, 1]])
      >>> tx = optax.chain(periodic(nash_mtl(), 2, every=10), optax.sgd(0.01))
      >>> params, opt_state = jnp.zeros(2), tx.init(jnp.zeros(2))
      >>> for _ in range(12):  # the weights are found twice
      ...     losses, grads = losses_and_grads(losses_fn)(params, state=opt_state)
      ...     updates, opt_state = tx.update(grads, opt_state, params, losses=losses)
      ...     params = optax.apply_updates(params, updates)
      >>> print(losses < losses_fn(jnp.zeros(2)))
      [ True  True]

    References:
      Weights kept: Xu et al., `PSMGD: Periodic Stochastic Multi-Gradient Descent
      <https://arxiv.org/abs/2412.10961>`_, AAAI 2025; averaged: Zhou et al., CR-MOGM, NeurIPS 2022;
      Navon et al., `Nash-MTL <https://arxiv.org/abs/2202.01017>`_, ICML 2022, section 3.2
    """
    _aggregator.check_method(method)
    _checks.check_num_tasks(num_tasks)
    _checks.check_num_tasks(every, "every")
    _checks.check_decay("decay", decay)

    def init_fn(params: optax.Params) -> PeriodicState:
        zeros = jnp.zeros(num_tasks)
        return PeriodicState(method.init(params), zeros, jnp.copy(zeros), jnp.zeros((), int))

    def update_fn(
        updates: optax.Updates,
        state: PeriodicState,
        params: optax.Params | None = None,
        *,
        losses: chex.ArrayTree | None = None,
        where: chex.ArrayTree | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, PeriodicState]:
        if not isinstance(updates, TaskGradients) or updates.from_weights is None:
            raise ValueError(
                "`updates`: expected what `losses_and_grads` gives for a state that holds this "
                f"one, got {type(updates).__name__}: `periodic` decides whether to look"
            )
        structure = where if losses is None else losses
        present = _tasks.flatten_where(where, structure, num_tasks)

        def find(state: PeriodicState) -> PeriodicState:
            found, own = method.update(
                TaskGradients(updates.rows), state.method, None, losses=losses, where=where
            )
            kept = jnp.where(state.step == 0, 0, jnp.asarray(decay, float))
            pairs = zip((state.weights, state.head_weights), found, strict=True)
            new = [kept * old + (1 - kept) * each.astype(old.dtype) for old, each in pairs]
            finite = jnp.all(jnp.isfinite(jnp.stack(new)))
            taken = PeriodicState(own, new[0], new[1], state.step)
            following: PeriodicState = optax.tree.where(finite, taken, state)
            return following

        due = state.step % every == 0
        state = jax.lax.cond(due, find, lambda state: state, state)
        weights, others = (
            jnp.where(present, each, 0) for each in (state.weights, state.head_weights)
        )
        gradient = updates.from_weights(weights, others)
        return gradient, state._replace(step=optax.safe_increment(state.step))

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
