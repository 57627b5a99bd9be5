"""Why losses fight: one network, two tasks, computed in seconds.

    python docs/pictures/why.py [FOLDER]

writes ``why.png``, and prints the figures that the page cites.
"""

import pathlib
import sys
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import optax

from famo_jax import famo, losses_and_grads
from famo_jax.weighting import first_loss, ls

STEPS, ROWS = 2000, 256
NAMES = ("metres", "decimetres")
WEIGHINGS = {"mean": ls(), "1 / first loss": first_loss(2), "FAMO": famo(2, normalizer=None)}


def make_data() -> tuple[jax.Array, jax.Array]:
    """Two functions of one input, equally hard and of one size; the second in a smaller unit."""
    x = jax.random.uniform(jax.random.key(1), (ROWS, 2), minval=-1.0)
    far, near = jnp.sin(3 * x[:, 0] + x[:, 1]), jnp.sin(x[:, 0] - 3 * x[:, 1])
    return x, jnp.stack([far, 10 * near], axis=1)


def task_losses(params: Any, batch: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Mean squared errors, ``[2]``."""
    x, y = batch
    hidden = jnp.tanh(x @ params["first"] + params["bias"])
    hidden = jnp.tanh(hidden @ params["second"])
    return jnp.mean((hidden @ params["heads"] - y) ** 2, axis=0)


def train(weighing: optax.GradientTransformation) -> tuple[jax.Array, jax.Array]:
    """The losses ``[STEPS, 2]``, and the products of the task gradients of the trunk."""
    keys = jax.random.split(jax.random.key(0), 3)
    params = {
        "first": jax.random.normal(keys[0], (2, 12)),
        "bias": jnp.zeros(12),
        "second": jax.random.normal(keys[1], (12, 12)) / 12**0.5,
        "heads": jax.random.normal(keys[2], (12, 2)) / 12**0.5,
    }
    batch = make_data()
    tx = optax.chain(optax.adam(optax.cosine_decay_schedule(1e-2, STEPS)), weighing)

    def step(carry: Any, _: None) -> Any:
        params, opt_state = carry
        losses, grads = losses_and_grads(task_losses)(params, batch, state=opt_state)
        rows = jax.jacobian(task_losses)(params, batch)
        trunk = jnp.concatenate([rows[name].reshape(2, -1) for name in ("first", "second")], axis=1)
        updates, opt_state = tx.update(grads, opt_state, params, losses=losses)
        return (optax.apply_updates(params, updates), opt_state), (losses, trunk @ trunk.T)

    return jax.jit(lambda carry: jax.lax.scan(step, carry, length=STEPS))(
        (params, tx.init(params))
    )[1]


def main(folder: pathlib.Path) -> dict[str, Any]:
    """Writes the picture; returns the figures."""
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    runs = {name: jax.tree.map(np.asarray, train(tx)) for name, tx in WEIGHINGS.items()}
    size = np.var(make_data()[1], axis=0)  # the loss of a network that says nothing
    lengths = np.sqrt(np.stack([runs["mean"][1][:, i, i] for i in (0, 1)], axis=1))
    cosine = runs["1 / first loss"][1][:, 0, 1] / np.sqrt(
        runs["1 / first loss"][1][:, 0, 0] * runs["1 / first loss"][1][:, 1, 1]
    )
    figures = {
        "left over": {
            name: losses[-100:].mean(axis=0) / size for name, (losses, _) in runs.items()
        },
        "lengths": float(lengths[0, 1] / lengths[0, 0]),
        "conflict": float(np.mean(cosine < 0)),
    }

    figure, axes = plt.subplots(1, 3, figsize=(10.5, 3.2), layout="constrained")
    colours = dict(zip(NAMES, ("#0072b2", "#d55e00"), strict=True))
    for index, name in enumerate(NAMES):
        axes[0].semilogy(lengths[:, index], color=colours[name], label=f"task in {name}")
        for (label, (losses, _)), line in zip(runs.items(), (":", "--", "-"), strict=True):
            legend = label if index == 0 else None
            axes[2].semilogy(losses[:, index] / size[index], line, color=colours[name], lw=1.2)
            axes[2].plot([], [], line, color="black", label=legend)
    axes[0].set(title="Size: their gradients, under the mean", xlabel="step", ylabel="length")
    axes[1].plot(cosine, color="#555555", lw=0.8)
    axes[1].axhline(0, color="black", lw=0.8)
    axes[1].set(title="Direction: do they agree?", xlabel="step", ylabel="cosine", ylim=(-1, 1))
    axes[2].set(title="What is left", xlabel="step", ylabel="loss / loss of knowing nothing")
    axes[0].legend(frameon=False)
    axes[2].legend(frameon=False, loc=(0.45, 0.55))
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / "why.png", dpi=130)
    return figures


if __name__ == "__main__":
    here = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else pathlib.Path(__file__).parent
    figures = main(here)
    print("left of each loss, in percent:", *NAMES)
    for name, left in figures["left over"].items():
        print(f"  {name:15}", *(f"{100 * value:8.2f}" for value in left))
    print(f"the second task's first gradient is longer: {figures['lengths']:.0f} times")
    print(f"steps in which the gradients disagree: {100 * figures['conflict']:.0f}%")
