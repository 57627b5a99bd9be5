"""Losses of some steps, and what a method makes of them."""

import pathlib

import jax.numpy as jnp
import numpy as np

from famo_jax import loss_weights, weighted_loss

THEIRS = np.load(pathlib.Path(__file__).parents[1] / "data" / "weightings.npz")
LOSSES = THEIRS["losses"]  # [10, 3]


def follow(tx, history, where=None):
    """The weights of each step's losses, ``[steps, K]``, their loss, ``[steps]``, and the states.

    The first of the states is that before the first step.
    """
    states, weights, values = [tx.init(None)], [], []
    for losses in jnp.array(history):
        weights.append(loss_weights(losses, states[-1], where=where))
        values.append(weighted_loss(losses, states[-1], where=where))
        states.append(tx.update((), states[-1], losses=losses, where=where)[1])
    return np.array(weights), np.array(values), states


def softmax(values):
    """Of NumPy, over the last axis."""
    exponentials = np.exp(values - np.max(values, axis=-1, keepdims=True))
    return exponentials / np.sum(exponentials, axis=-1, keepdims=True)
