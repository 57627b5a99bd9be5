"""The training step of any method, and losses that are checked."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

from famo_jax import check_losses, famo, losses_and_grads, weighted_loss

PARAMS = {"w": jnp.array([0.3, -0.2]), "b": jnp.array(0.1)}


def losses_fn(params, scale=1.0):
    residual = params["w"] - jnp.array([[1.0, 0.0], [0.0, 2.0], [-1.0, -1.0]]) + params["b"]
    return scale * jnp.array([0.01, 1.0, 100.0]) * jnp.sum(residual**2, axis=1) + 0.1


@pytest.mark.parametrize("normalizer", ["harmonic", None])
def test_losses_and_grads_with_a_weighting_method(normalizer):
    """The gradient of the weighted loss, arguments and auxiliary output handed through."""
    state = (
        famo(3, normalizer=normalizer)
        .init(None)
        ._replace(logits=jnp.array([0.5, 0.1, -0.2]), losses=jnp.array([1.0, 2.0, 3.0]))
    )
    where = jnp.array([True, True, False])
    with_aux = lambda params, scale, *, shift: (losses_fn(params, scale) + shift, "aux")
    (losses, aux), grads = losses_and_grads(with_aux, has_aux=True)(
        PARAMS, 2.0, shift=1.0, state=state, where=where
    )
    assert aux == "aux"
    np.testing.assert_allclose(losses, losses_fn(PARAMS, 2.0) + 1, rtol=1e-6)
    expected = jax.grad(
        lambda params: weighted_loss(losses_fn(params, 2.0) + 1, state, where=where)
    )(PARAMS)
    chex.assert_trees_all_close(grads, expected, rtol=1e-5)


# --- checkify ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("losses", "where", "words"),
    [
        ({"a": 1.0, "b": 2.0}, None, None),
        ({"a": 1.0, "b": jnp.nan}, None, "task ['b'] is nan"),
        ({"a": -jnp.inf, "b": 1.0}, None, "task ['a'] is -inf"),
        ({"a": 1.0, "b": 0.5}, None, "task ['b'] is 0.5, not finite and above its bound 0.5"),
        ({"a": 1.0, "b": jnp.nan}, {"a": True, "b": False}, None),
        (jnp.array([[1.0], [0.25]]), None, "task 1 is 0.25, not finite and above its bound 0.5"),
        (jnp.array([1.0, 2.0]), None, None),
    ],
)
def test_checkify_names_the_task(losses, where, words):
    state = famo(2, min_losses=[0.0, 0.5]).init(None)

    def loss_fn(losses):
        check_losses(losses, state, where=where)
        return weighted_loss(losses, state, where=where)

    error, _ = checkify.checkify(jax.jit(jax.grad(loss_fn)))(losses)
    message = error.get()
    assert message is None if words is None else words in message
    jax.jit(jax.vmap(jax.grad(loss_fn)))(jax.tree.map(lambda x: jnp.stack([x, x]), losses))
