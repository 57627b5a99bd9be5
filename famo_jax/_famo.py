"""FAMO: fast adaptive multitask optimization (Liu, Feng, Stone, Liu, NeurIPS 2023).

The symbols are the paper's. For task i: the loss l_i, its lower bound b_i (``min_losses``),
D_i = l_i - b_i + epsilon; the task-weighting logits xi (``logits``); the task weights
z = softmax(xi).
"""

import functools
from typing import Any, Literal, NamedTuple, TypeAlias

import chex
import jax
import jax.numpy as jnp
import optax

from famo_jax import _change, _checks, _logits, _method, _tasks

EPSILON = 1e-8


class Harmonic(NamedTuple):
    """c is the harmonic mean of D weighted by z, as in the paper."""


class Geometric(NamedTuple):
    """c is the geometric mean of D weighted by z."""


class Arithmetic(NamedTuple):
    """c is the arithmetic mean of D weighted by z."""


class Unit(NamedTuple):
    """c is 1."""


# A node without leaves: every transformation, and every format of files, keeps it in a state.
Normalizer: TypeAlias = Harmonic | Geometric | Arithmetic | Unit
NormalizerName: TypeAlias = Literal["harmonic", "geometric", "arithmetic"] | None
NORMALIZERS: dict[Any, Normalizer] = {
    "harmonic": Harmonic(),
    "geometric": Geometric(),
    "arithmetic": Arithmetic(),
    None: Unit(),
}


class FamoState(NamedTuple):
    """The state of FAMO. Arrays have the default float dtype, whatever the parameters have."""

    logits: jax.Array  # [K], xi
    opt_state: optax.OptState  # of the logits' optimizer: Adam's moments
    min_losses: jax.Array  # [K], b
    losses: jax.Array  # [K], the last finite loss seen of each task, +inf before the first
    normalizer: Normalizer = Harmonic()  # of the weighted loss: no array


# --- The weighted loss: equation 11 --------------------------------------------------------------


def _gap(losses: jax.Array, min_losses: jax.Array) -> jax.Array:
    """D, ``[..., K]``."""
    return losses - min_losses + EPSILON


@_method.weighting(FamoState, tasks="logits", last=True)
def scalarize_famo(state: FamoState, losses: jax.Array, present: jax.Array) -> jax.Array:
    """The weighted loss L, ``[]``, of K losses, of which those of absent tasks do not matter."""
    # An absent task is weighed by the loss last seen, and left out before it was seen above its
    # bound.
    seen = present | (jnp.isfinite(state.losses) & (_gap(state.losses, state.min_losses) > 0))
    losses = jnp.where(present, losses, jnp.where(seen, state.losses, state.min_losses + 1))

    log_d = jnp.log(_gap(losses, state.min_losses))
    log_z = jax.nn.log_softmax(jnp.where(seen, state.logits, -jnp.inf))
    match state.normalizer:
        case Harmonic():
            log_c = -jax.nn.logsumexp(log_z - log_d)
        case Geometric():
            log_c = jnp.sum(jnp.exp(log_z) * log_d)
        case Arithmetic():
            log_c = jax.nn.logsumexp(log_z + log_d)
        case Unit():
            log_c = jnp.zeros(())
    cz = jax.lax.stop_gradient(jnp.exp(log_c + log_z))
    return jnp.sum(jnp.where(present, cz, 0) * log_d)  # eq. 11: c * sum_i z_i log D_i


# --- The logits: Algorithms 1 and 2 ---------------------------------------------------------------


def _step(
    state: FamoState,
    change: _change.Change,
    present: jax.Array,
    *,
    optimizer: optax.GradientTransformation,
) -> FamoState:
    """One update of the state, by the change of the logarithms of D."""
    gaps = jnp.stack([_gap(losses, state.min_losses) for losses in change.losses])
    exists = jnp.all((gaps > 0) & jnp.isfinite(gaps), axis=0)

    def log_d(losses: jax.Array) -> jax.Array:
        return jnp.log(jnp.where(exists, _gap(losses, state.min_losses), 1))

    decrease = _change.fall(change, log_d)
    stepped: FamoState = _logits.equalize(state, decrease, present & exists, optimizer)
    return stepped._replace(losses=_tasks.last_seen(state.losses, present, *change.losses))


def update_logits(
    state: chex.ArrayTree,
    losses: chex.ArrayTree,
    new_losses: chex.ArrayTree,
    optimizer: optax.GradientTransformation,
    *,
    where: chex.ArrayTree | None = None,
) -> FamoState:
    r"""Steps the task logits by how much each loss fell, and remembers ``new_losses``.

    .. math::
        \delta = J_\mathrm{softmax}(\xi)^\top (\log D - \log D'), \quad
        \xi \leftarrow \xi + \mathrm{optimizer}(\delta + \gamma \xi)

    which is Algorithm 2 of the paper with the default optimizer, Algorithm 1 with SGD. A task
    that fell slower than the others gains weight.

    Two-pass: the losses of one batch before and after the step of the model. One-pass:
    ``update_logits(state, state.losses, losses, optimizer)`` as the first line of a step, whose
    first call only remembers. One may follow the other.

    Jitted, and compiled anew for each ``optimizer`` object. A change that is not finite (a loss
    that is NaN, infinite, or so far under its bound that D is not positive, before or after)
    counts as zero, and if no task has a finite one, logits and optimizer stay as they are. A loss
    that reaches its bound has D = 1e-8: a huge change, but a finite one.

    Args:
      state: A :class:`FamoState`, or an optimizer state that holds exactly one.
      losses: The K losses before, an array of any shape or a pytree of scalars.
      new_losses: The K losses after, in the same structure or flat, ``[K]``.
      optimizer: What :func:`logits_optimizer` returned.
      where: Booleans, the tasks that are present in this batch: one, ``[K]``, or structured as
        the losses. The change of an absent task counts as zero, and its last seen loss stays.
        Default: all.

    Returns:
      The next :class:`FamoState`.

    Raises:
      ValueError: If ``state`` is not FAMO's, ``optimizer`` does not fit it, or the losses or
        ``where`` have another structure, number of tasks or kind of values.

    Example:
      >>> import jax, jax.numpy as jnp, famo_jax
      >>> losses_fn = lambda x: {"near": jnp.abs(x - 1), "far": jnp.abs(x + 9)}
      >>> optimizer = famo_jax.logits_optimizer()
      >>> x, state = 3.0, famo_jax.famo(num_tasks=2).init(None)
      >>> for _ in range(100):
      ...     losses = losses_fn(x)
      ...     x -= 0.01 * jax.grad(lambda x: famo_jax.weighted_loss(losses_fn(x), state))(x)
      ...     state = famo_jax.update_logits(state, losses, losses_fn(x), optimizer)
      >>> print(famo_jax.task_weights(state).round(2))  # in JAX's order: far, near
      [0.87 0.13]

    References:
      Liu et al., `FAMO <https://arxiv.org/abs/2306.03792>`_, NeurIPS 2023, Algorithms 1 and 2
    """
    famo_state = _method.find_state(state)
    if not isinstance(famo_state, FamoState):
        raise ValueError(f"`state`: expected a FamoState, got {type(famo_state).__name__}")
    if not isinstance(optimizer, optax.GradientTransformation):
        raise ValueError(
            f"`optimizer`: expected what `logits_optimizer` returns, got {type(optimizer).__name__}"
        )
    with _tasks.naming_what_jit_rejects(losses=losses, new_losses=new_losses, where=where):
        new_state: FamoState = _update_logits(
            famo_state, losses, new_losses, where, optimizer=optimizer
        )
    return new_state


@functools.partial(jax.jit, static_argnames="optimizer", inline=True)
def _update_logits(
    state: FamoState,
    losses: chex.ArrayTree,
    new_losses: chex.ArrayTree,
    where: chex.ArrayTree | None,
    *,
    optimizer: optax.GradientTransformation,
) -> FamoState:
    _checks.check_optimizer(optimizer, state.opt_state, state.logits)
    num_tasks = state.logits.size
    before = _tasks.flatten_tasks(losses, "losses", num_tasks)
    after = _tasks.flatten_tasks(new_losses, "new_losses", num_tasks, like=losses)
    present = _tasks.flatten_where(where, new_losses, num_tasks)
    dtype = state.losses.dtype
    change = _change.Change((before.astype(dtype), after.astype(dtype)))
    return _step(state, change, present, optimizer=optimizer)


# --- The gradient transformation ------------------------------------------------------------------


def famo(
    num_tasks: int,
    *,
    learning_rate: optax.ScalarOrSchedule = 0.025,
    weight_decay: chex.Numeric = 1e-3,
    min_losses: chex.ArrayTree = 0.0,
    normalizer: NormalizerName = "harmonic",
    measure: _change.Measure = "change",
    smoothing: chex.Numeric = 0.0,
    optimizer: optax.GradientTransformation | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Fast adaptive multitask optimization, as a gradient transformation.

    It keeps the task logits, from which :func:`weighted_loss` weighs the losses, and hands the
    updates of the model through untouched::

      tx = optax.chain(optax.adam(1e-3), famo(num_tasks=3))
      ...
      loss = weighted_loss(losses, opt_state)              # differentiate this
      updates, opt_state = tx.update(grads, opt_state, params, losses=losses, losses_fn=losses_fn)

    ``update(updates, state, params=None, *, losses, losses_fn=None, new_losses=None, where=None)``
    steps the logits by how much each loss changed:

    * two-pass, the paper's algorithm, with ``losses_fn``, a function of the parameters that
      returns their losses on this batch with the same randomness: it is evaluated at
      ``params + updates``, so FAMO stands *last* in its chain, and outside of ``optax.masked`` and
      ``optax.partition``;
    * two-pass with ``new_losses``, which you evaluated yourself;
    * one-pass with neither, from the losses of the update before to this one's: no second forward
      pass, and weights that are one change older;
    * with ``measure="slope"``, by ``losses_fn`` too, which is then differentiated at ``params``
      along ``updates``: the change without what curvature and rounding make of it, for up to one
      more forward pass than two-pass.

    ``losses`` are those at ``params``, ``where`` the tasks present: see :func:`update_logits`.
    First in its chain, with ``losses_fn``, it would look where the raw gradient leads; only
    :class:`famo_jax.TrainState` can see that. Under ``MultiSteps(chain(..., famo(K)), k)`` it sees
    the losses of every k-th mini-batch; behind ``MultiSteps``, one-pass, those of every one.

    Args:
      num_tasks: K, the number of losses.
      learning_rate: Of the logits' Adam: a scalar or a schedule. 0 freezes the logits. Not with
        ``optimizer``.
      weight_decay: gamma, which pulls the weights to equality. Choose it on validation from 0,
        1e-3, 1e-2 and 0.1; where you cannot, take 0.1 / K. If the weights stay flat, lower it.
      min_losses: The lower bounds b of the losses: one for all, ``[K]``, or a pytree of scalars
        structured as the losses. Read by ``init``; the state keeps them. Every loss must stay
        above its bound.
      normalizer: c, so the length of the gradient, never its direction: the ``"harmonic"`` (the
        paper's), ``"geometric"`` or ``"arithmetic"`` mean of D weighted by z, or 1 with None.
      measure: What is taken of the losses: their ``"change"``, as in the paper, or their
        ``"slope"``, the derivative along the updates that are applied, so that the decrease of
        log D is -slope / D. The slope needs ``losses_fn``, ``params`` of floating numbers, and
        functions that have a forward derivative: one with ``jax.custom_vjp`` has none.
      smoothing: The decay of an average over steps (:func:`optax.ema`) of what the logits'
        optimizer gets, the change with its decay. At least 0 and below 1; 0 is the paper.
      optimizer: Instead of Adam, without decay of its own.

    Any of ``learning_rate``, ``weight_decay``, ``min_losses`` and ``smoothing`` may be traced: a
    sweep is one :func:`jax.vmap`. Under ``optax.inject_hyperparams`` give
    ``static_args=("num_tasks",)``.

    Returns:
      A :class:`optax.GradientTransformationExtraArgs` whose state is a :class:`FamoState`.

    Raises:
      ValueError: If an argument is not as described above; what tracing cannot see is not checked.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> from famo_jax import famo, losses_and_grads, task_weights
      >>> losses_fn = lambda x: jnp.array([0.01, 100.0]) * (x - jnp.array([1.0, 3.0])) ** 2
      >>> tx = optax.chain(optax.adam(0.1), famo(num_tasks=2))
      >>> params, opt_state = jnp.array(0.0), tx.init(jnp.array(0.0))
      >>> for _ in range(5):
      ...     losses, grads = losses_and_grads(losses_fn)(params, state=opt_state)
      ...     two_pass = {"losses": losses, "losses_fn": losses_fn}
      ...     updates, opt_state = tx.update(grads, opt_state, params, **two_pass)
      ...     params = optax.apply_updates(params, updates)
      >>> print(task_weights(opt_state).round(2))  # the loss that falls slower gains weight
      [0.44 0.56]

    References:
      Liu et al., `FAMO: Fast Adaptive Multitask Optimization
      <https://arxiv.org/abs/2306.03792>`_, NeurIPS 2023: Algorithms 1 and 2, equations 8 to 12
    """
    _checks.check_num_tasks(num_tasks)
    _checks.check_one_of("normalizer", normalizer, NORMALIZERS)

    bounds = _checks.check_bounds(min_losses, num_tasks)
    inner = _logits.logits_optimizer(learning_rate, weight_decay, optimizer, smoothing=smoothing)

    def init() -> FamoState:
        fields = _logits.start(num_tasks, inner)
        return FamoState(
            min_losses=jnp.array(bounds(), fields["losses"].dtype),  # a copy: states are donated
            normalizer=NORMALIZERS[normalizer],
            **fields,
        )

    learn = functools.partial(_step, optimizer=inner)
    return _change.from_changes(init, learn, measure=measure, check=bounds)
