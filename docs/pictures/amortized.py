"""Draws ``amortized.png``: what each amortized method balances, on two tasks held still.

    python docs/pictures/amortized.py

The parameters are frozen and only the weights learn, by slope along plain gradient steps. Dotted
are the weights of the exact methods, from the Gram matrix.
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax

from famo_jax import aggregation, famo, losses_and_grads, task_weights
from famo_jax.experiments import _plots
from famo_jax.weighting import amortized_cagrad, amortized_mgda, amortized_nash_mtl

STEPS, RATE = 250, 0.02  # of the logits' Adam
PARAMS, STEP = jnp.zeros(2), 1e-3  # of the model
COLOURS = ("#0072b2", "#d55e00")
C = 0.8  # of CAGrad


def losses_fn(x):
    """The second is in units twice as large, and most of it never falls."""
    distances = jnp.sum((x - jnp.array([[2.0, 0.0], [-0.5, 1.5]])) ** 2, axis=1)
    return jnp.array([1.0, 2.0]) * (distances + jnp.array([0.0, 7.5]))


LOSSES, JACOBIAN = losses_fn(PARAMS), jax.jacobian(losses_fn)(PARAMS)
GRAM, LOG_GRAM = (rows @ rows.T for rows in (JACOBIAN, JACOBIAN / LOSSES[:, None]))
NO_DECAY = {"learning_rate": RATE, "weight_decay": 0.0, "measure": "slope"}
CAGRAD = aggregation.cagrad_weights(GRAM, C) - 0.5
# The method, what it balances of the weights z and the slopes, and the exact z.
PANELS = {
    "amortized MGDA": (
        amortized_mgda(2, **NO_DECAY),
        ("fall of each loss", lambda z, falls: falls),
        aggregation.mgda_weights(GRAM),
    ),
    "amortized CAGrad": (
        amortized_cagrad(2, C, **NO_DECAY),
        ("fall of each loss", lambda z, falls: falls),
        CAGRAD / CAGRAD.sum(),
    ),
    "FAMO": (
        famo(2, normalizer=None, **NO_DECAY),
        ("fall of each log loss", lambda z, falls: falls / LOSSES),
        aggregation.mgda_weights(LOG_GRAM),
    ),
    "amortized Nash-MTL": (
        amortized_nash_mtl(2, learning_rate=RATE, measure="slope"),
        ("share in the fall", lambda z, falls: z * falls / LOSSES / jnp.sum(z * falls / LOSSES)),
        aggregation.nash_mtl_weights(GRAM) * LOSSES,
    ),
}


def run(method, balanced):
    """The weights z, ``[STEPS, 2]``, and what is balanced, likewise."""
    tx = optax.chain(optax.sgd(STEP), method)

    def step(opt_state, _):
        losses, grads = losses_and_grads(losses_fn)(PARAMS, state=opt_state)
        z = task_weights(opt_state)
        extra = {"losses": losses, "losses_fn": losses_fn}
        updates, opt_state = tx.update(grads, opt_state, PARAMS, **extra)
        return opt_state, (z, balanced(z, -JACOBIAN @ updates))

    return jax.lax.scan(step, tx.init(PARAMS), length=STEPS)[1]


def main():
    """Draws the picture beside this file."""
    with _plots.picture(height=3.6) as figure:
        panels = figure.subplots(2, len(PANELS), sharex=True)
        for (above, below), (name, (method, (what, balanced), exact)) in zip(
            panels.T, PANELS.items(), strict=True
        ):
            weights, balance = run(method, balanced)
            for task, colour in enumerate(COLOURS):
                above.plot(weights[:, task], color=colour, label=f"task {task + 1}")
                above.axhline(float(exact[task] / np.sum(exact)), color=colour, linestyle=":")
                below.plot(balance[:, task], color=colour)
            above.set(ylim=(0, 1), title=name)
            below.set_title(what, fontsize=8)
            below.set_ylim(bottom=min(0, *np.ravel(balance)))
            below.set_xlabel("step")
        panels[0, 0].set_ylabel("weight z")
        panels[0, 0].legend(loc="upper left", ncols=2)
    figure.savefig(pathlib.Path(__file__).with_name("amortized.png"), dpi=130)


if __name__ == "__main__":
    main()
