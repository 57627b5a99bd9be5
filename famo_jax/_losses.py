"""K losses -> a weighted loss -> a gradient: the training step of any method."""

import functools
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax
from jax.experimental import checkify

from famo_jax import _checks, _method, _stacked, _task_gradients, _tasks


def weighted_loss(
    losses: chex.ArrayTree,
    state: chex.ArrayTree,
    *,
    where: chex.ArrayTree | None = None,
) -> jax.Array:
    r"""The scalar to differentiate instead of the mean of the losses.

    For FAMO (paper, eq. 11 and Algorithm 2)

    .. math:: L = c \sum_i z_i \log D_i, \quad D_i = \ell_i - b_i + \epsilon, \quad
              c = \Big(\sum_i z_i / D_i\Big)^{-1}

    with :math:`z` and :math:`c` constant to differentiation. Its *gradient* is what the method is
    about; its value goes up and down with the weights and is comparable to no other step's. Log
    the losses instead, and steer no scheduler or line search by this.

    Jitted. Non-finite losses, and losses under their bound, propagate into the result.

    Args:
      losses: K losses: an array of any shape, or a pytree of scalars such as a dict of named
        losses. Real numbers of any dtype; the arithmetic is in at least float32.
      state: The state of a weighting method, or an optimizer state that holds exactly one.
      where: Booleans, the tasks that are present in this batch: one, ``[K]``, or structured as
        the losses. The gradient with respect to an absent task's loss is exactly 0, whatever that
        loss is. Default: all.

    Returns:
      ``[]``, in the dtype to which the losses' dtype and float32 promote.

    Raises:
      ValueError: If an argument has another structure, number of tasks or kind of values, if
        ``state`` holds no method's state or several, or if its method needs task gradients.

    Example:
      >>> import jax, jax.numpy as jnp, famo_jax
      >>> state = famo_jax.famo(num_tasks=2).init(None)
      >>> losses = jnp.array([1.0, 4.0])
      >>> jax.grad(famo_jax.weighted_loss)(losses, state)  # proportional to 1 / losses
      Array([0.8, 0.2], dtype=float32)

    References:
      Liu et al., `FAMO: Fast Adaptive Multitask Optimization
      <https://arxiv.org/abs/2306.03792>`_, NeurIPS 2023
    """
    loss: jax.Array = _call(_weighted_loss, losses, state, where)
    return loss


def loss_weights(
    losses: chex.ArrayTree,
    state: chex.ArrayTree,
    *,
    where: chex.ArrayTree | None = None,
) -> chex.ArrayTree:
    r"""The gradient of :func:`weighted_loss` with respect to the losses.

    A weighting is a cotangent: ``losses, pullback = jax.vjp(losses_fn, params)`` and then
    ``grads, = pullback(loss_weights(losses, state))`` is the gradient of the weighted loss. For
    FAMO :math:`w_i = c z_i / D_i`, a convex combination (paper, eq. 11).

    Args:
      losses: As :func:`weighted_loss` takes them.
      state: Likewise.
      where: Likewise. Absent tasks weigh exactly 0.

    Returns:
      One weight for each task, in the structure, shapes and dtypes of the losses.

    Raises:
      ValueError: As :func:`weighted_loss` does.

    Example:
      >>> import famo_jax
      >>> state = famo_jax.famo(num_tasks=2).init(None)
      >>> weights = famo_jax.loss_weights({"depth": 1.0, "normals": 4.0}, state)
      >>> print({name: round(float(weight), 3) for name, weight in weights.items()})
      {'depth': 0.8, 'normals': 0.2}

    References:
      FAMO's: `the paper <https://arxiv.org/abs/2306.03792>`_, eq. 11. Another method's: its own.
    """
    return _call(_loss_weights, losses, state, where)


def _scalar(losses: chex.ArrayTree, state: Any, where: chex.ArrayTree | None) -> jax.Array:
    scalarize, num_tasks = _method.scalarize_by(state)
    values = _tasks.flatten_tasks(losses, "losses", num_tasks)
    values = values.astype(jnp.promote_types(values.dtype, jnp.float32))
    present = _tasks.flatten_where(where, losses, values.size)
    # With a constant in its place nothing of an absent task's loss can reach value or gradient.
    values = jnp.where(present, values, 1)
    return scalarize(state, values, present).astype(values.dtype)


_weighted_loss = jax.jit(_scalar, inline=True)


@functools.partial(jax.jit, inline=True)
def _loss_weights(
    losses: chex.ArrayTree, state: Any, where: chex.ArrayTree | None
) -> chex.ArrayTree:
    losses = jax.tree.map(lambda loss: jnp.asarray(loss, jnp.result_type(loss, float)), losses)
    weights: chex.ArrayTree = jax.grad(_scalar)(losses, state, where)
    return weights


def _call(
    jitted: Callable[..., Any],
    losses: chex.ArrayTree,
    state: chex.ArrayTree,
    where: chex.ArrayTree | None,
) -> Any:
    """Finds the state outside ``jit``, which would take long over a whole optimizer state."""
    method_state = _method.find_state(state)
    with _tasks.naming_what_jit_rejects(losses=losses, where=where):
        return jitted(losses, method_state, where)


def losses_and_grads(
    losses_fn: chex.ArrayTree,
    *,
    has_aux: bool = False,
    encoder: Callable[..., chex.ArrayTree] | None = None,
    gram_at: _stacked.Shared = None,
    chunk_size: int | None = None,
) -> Callable[..., Any]:
    """Like :func:`jax.value_and_grad`, for K losses and any method: only the state tells which.

    A weighting method takes one backward pass, amortized CAGrad two. An aggregation method takes
    one for each task, of as much of the model as it has to be:

    * by default of all of it. The method gets task-stacked gradients, and combines them;
    * with ``gram_at``, down to these leaves, such as the last shared layer. There the gradients are
      compared; with the weights so found one backward pass goes through all. Exact for a method
      that is a function of the Gram matrix over these leaves; GradDrop is none;
    * with ``encoder``, of the task heads alone. The gradients are compared, and combined, at the
      features z, and one backward pass goes on from there. What is found is a bound: if z decides
      all that tasks share, a direction at z along which no loss rises is, through the encoder, one
      along which none rises in the parameters, but MGDA's, say, is not the shortest there.

    Args:
      losses_fn: ``losses_fn(params, *args, **kwargs)`` returns the losses, as an array of K or a
        pytree of K scalars, or ``(losses, aux)``; with ``encoder`` it gets z after the parameters.
        Or a pytree of such functions, which return one loss each: each is then pulled back by
        itself, so that with ``encoder`` no task runs through the heads of the others.
      has_aux: Whether it returns ``(losses, aux)``.
      encoder: ``z = encoder(params, *args, **kwargs)``, any pytree. The parameters that
        ``losses_fn`` takes besides are the heads: they get gradients at the scale of the shared
        one, as each method says. For a weighting method this is the composition, and nothing else.
      gram_at: The leaves, as ``shared`` of the methods takes them. Not with ``encoder``.
      chunk_size: How many of the K backward passes of an aggregation method run at once. Default:
        all; fewer need less memory, but a loop, in which convolutions on a CPU are many times
        slower. A pytree of functions has none to run at once.

    Returns:
      A function ``(params, *args, state, where=None, **kwargs) -> (losses, grads)``, or
      ``((losses, aux), grads)``. ``state`` is a method's state or an optimizer state that holds
      one; ``where`` are the tasks present, as in :func:`weighted_loss`. ``grads`` are what
      ``tx.update`` takes: structured as ``params``, for an aggregation method with a leading axis
      of K on every leaf, where the rows of absent tasks hold the gradient of 0 times their loss.
      With ``encoder`` or ``gram_at`` an aggregation method gets functions, which only its own
      ``update`` knows what to do with.

    Raises:
      ValueError: If ``losses_fn`` is no function, ``chunk_size`` no int of at least 1, ``gram_at``
        no mask or both it and ``encoder`` are given; when called, as :func:`weighted_loss` does, if
        an aggregation method does not stand first in its chain, if z does not depend on the
        parameters, and if parameters or losses are not floating: no gradient flows through
        integers.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from famo_jax import famo, losses_and_grads
      >>> losses_fn = lambda x: {"a": jnp.sum((x - 1) ** 2), "b": jnp.sum((x + 1) ** 2)}
      >>> tx = optax.chain(optax.sgd(0.1), famo(num_tasks=2))
      >>> params = jnp.array([2.0])
      >>> opt_state = tx.init(params)
      >>> losses, grads = losses_and_grads(losses_fn)(params, state=opt_state)
      >>> updates, opt_state = tx.update(grads, opt_state, params, losses=losses)
      >>> print(losses["a"], grads.round(1))
      1.0 [2.4]

      At the features, with a head of its own for each task:

      >>> from famo_jax.aggregation import mgda
      >>> params = {"trunk": jnp.eye(2), "depth": jnp.ones(2), "seg": jnp.ones(2)}
      >>> encoder = lambda params, x: jnp.tanh(x @ params["trunk"])
      >>> heads = {
      ...     name: lambda params, z, x, name=name: jnp.mean((z @ params[name] - 1.0) ** 2)
      ...     for name in ("depth", "seg")
      ... }
      >>> tx = optax.chain(mgda(), optax.adam(1e-3))
      >>> opt_state = tx.init(params)
      >>> step = losses_and_grads(heads, encoder=encoder)
      >>> losses, grads = step(params, jnp.ones((4, 2)), state=opt_state)
      >>> updates, opt_state = tx.update(grads, opt_state, params, losses=losses)
    """
    functions = jax.tree.leaves(losses_fn, is_leaf=callable)
    if not functions or not all(map(callable, functions)):
        got = type(losses_fn).__name__
        raise ValueError(f"`losses_fn`: expected a function, or a pytree of functions, got {got}")
    if encoder is not None and not callable(encoder):
        raise ValueError(f"`encoder`: expected a function, got {type(encoder).__name__}")
    if encoder is not None and gram_at is not None:
        raise ValueError("expected one of `encoder` and `gram_at`, got both")
    _stacked.check_shared(gram_at, "gram_at")
    if chunk_size is not None:
        _checks.check_num_tasks(chunk_size, "chunk_size")

    def losses_and_grads_fn(
        params: chex.ArrayTree,
        *args: Any,
        state: chex.ArrayTree,
        where: chex.ArrayTree | None = None,
        **kwargs: Any,
    ) -> Any:
        method_state = _method.find_state(state)
        _method.check_first(state)
        for leaf in jax.tree.leaves(params):
            dtype = _tasks.dtype_of(leaf)
            if dtype is None or not jnp.issubdtype(dtype, jnp.inexact):
                got = type(leaf).__name__ if dtype is None else dtype
                raise ValueError(f"`params`: expected floating values, got {got}")

        def bind(function: Callable[..., Any]) -> Callable[..., Any]:
            return lambda *variables: function(*variables, *args, **kwargs)

        bound = jax.tree.map(bind, losses_fn, is_leaf=callable)
        if encoder is None:
            losses, jacobian, aux = _task_gradients.linearize(bound, params, has_aux=has_aux)
        else:
            features, whole, through = _task_gradients.encode(bind(encoder), params)
            at = lambda function: lambda params, features: function(params, whole(features))
            losses, jacobian, aux = _task_gradients.linearize(
                jax.tree.map(at, bound, is_leaf=callable), params, features, has_aux=has_aux
            )

        grads: Any
        if _method.is_aggregation(method_state):
            present = _tasks.flatten_where(
                where, losses, _tasks.flatten_tasks(losses, "losses").size
            )
            if encoder is not None:
                grads = _task_gradients.at_features(
                    features, through, jacobian, present, chunk_size
                )
            elif gram_at is not None or _method.is_lazy(method_state):
                mask = _stacked.shared_leaves(gram_at, params, params, "gram_at")
                grads = _task_gradients.on_parameters(jacobian, present, chunk_size, mask)
            else:
                (grads,) = _task_gradients.task_rows(jacobian, present, chunk_size)
        else:

            def pull(weights: chex.ArrayTree) -> chex.ArrayTree:
                grads, *at_features = _task_gradients.pull_back(jacobian, weights)
                if encoder is not None:
                    grads = optax.tree.add(grads, through(*at_features)[0])
                return grads

            direct, num_tasks = _method.direct_by(method_state)
            if direct is None:
                grads = pull(loss_weights(losses, method_state, where=where))
            else:
                values = _tasks.flatten_tasks(losses, "losses", num_tasks)
                present = _tasks.flatten_where(where, losses, values.size)
                of_flat = lambda weights: pull(_task_gradients.like_losses(jacobian, weights))
                grads = direct(method_state, of_flat, present)
        return ((losses, aux), grads) if has_aux else (losses, grads)

    return losses_and_grads_fn


def check_losses(
    losses: chex.ArrayTree, state: chex.ArrayTree, *, where: chex.ArrayTree | None = None
) -> None:
    """Names the task whose loss is not finite or not above its bound, under ``checkify``.

    Call it where the losses are weighed. Transformed by
    :func:`jax.experimental.checkify.checkify` the function around it reports the first such task;
    otherwise nothing is checked, yet each call of a jitted function around it takes some tens of
    microseconds longer. That is why :func:`weighted_loss` does not call it.

    Args:
      losses: As :func:`weighted_loss` takes them.
      state: Likewise.
      where: Likewise. Absent tasks are not checked.

    Raises:
      ValueError: As :func:`weighted_loss` does.

    Example:
      >>> import jax.numpy as jnp
      >>> from jax.experimental import checkify
      >>> from famo_jax import check_losses, famo, weighted_loss
      >>> state = famo(num_tasks=2).init(None)
      >>> def loss_fn(losses):
      ...     check_losses(losses, state)
      ...     return weighted_loss(losses, state)
      >>> error, _ = checkify.checkify(loss_fn)({"depth": 1.0, "normals": jnp.nan})
      >>> print(error.get().split(" (")[0])
      the loss of task ['normals'] is nan, not finite and above its bound 0.0
    """
    method_state = _method.find_state(state)
    bounds = jnp.asarray(getattr(method_state, "min_losses", -jnp.inf))
    values = _tasks.flatten_tasks(losses, "losses", bounds.size if bounds.ndim else None)
    bounds = jnp.broadcast_to(bounds, values.shape)
    present = _tasks.flatten_where(where, losses, values.size)
    fine = (jnp.isfinite(values) & (values > bounds)) | ~present
    message = "the loss of task {} is {}, not finite and above its bound {}"
    paths = [path for path, _ in jax.tree.leaves_with_path(losses)]
    if paths == [()]:
        task = jnp.argmin(fine)
        checkify.debug_check(jnp.all(fine), message, task, values[task], bounds[task])
    else:
        for path, ok, value, bound in zip(paths, fine, values, bounds, strict=True):
            named = message.replace("{}", jax.tree_util.keystr(path), 1)
            checkify.debug_check(ok, named, value, bound)
