"""A physics-informed network: Burgers' equation, a front that travels to the right.

u_t + u u_x = nu u_xx on the unit square, with values given on the boundary and at t = 0. Three
losses: the residual of the equation, the boundary, the start. The solution is known, so that the
error can be told.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from famo_jax import famo, losses_and_grads
from famo_jax.weighting import first_loss, ls

NU, STEPS, POINTS = 0.02, 2500, 256


def exact(x, t):
    return 0.5 - 0.5 * jnp.tanh((x - 0.2 - t / 2) / (4 * NU))


def init(key, sizes=(2, 32, 32, 1)):
    keys = jax.random.split(key, len(sizes) - 1)
    return [
        {"kernel": jax.random.normal(k, (n, m)) / n**0.5, "bias": jnp.zeros(m)}
        for k, n, m in zip(keys, sizes[:-1], sizes[1:], strict=True)
    ]


def u(params, x, t):  # any shape
    h = jnp.stack([x, t], axis=-1)
    for layer in params[:-1]:
        h = jnp.tanh(h @ layer["kernel"] + layer["bias"])
    return (h @ params[-1]["kernel"] + params[-1]["bias"])[..., 0]


def along(f, x):  # the derivative of all points at once, in forward mode
    return jax.jvp(f, (x,), (jnp.ones_like(x),))[1]


def task_losses(params, points):
    x, t, side = points
    u_t = along(lambda t: u(params, x, t), t)
    u_x, u_xx = jax.jvp(lambda x: along(lambda x: u(params, x, t), x), (x,), (jnp.ones_like(x),))
    at_side, zero = jnp.round(side), jnp.zeros_like(t)
    return {
        "residual": jnp.mean((u_t + u(params, x, t) * u_x - NU * u_xx) ** 2),
        "boundary": jnp.mean((u(params, at_side, t) - exact(at_side, t)) ** 2),
        "start": jnp.mean((u(params, x, zero) - exact(x, zero)) ** 2),
    }


def train(weighing):
    tx = optax.chain(optax.adam(optax.cosine_decay_schedule(5e-3, STEPS)), weighing)
    params = init(jax.random.key(0))

    def step(carry, key):
        params, opt_state = carry
        points = jax.random.uniform(key, (3, POINTS))
        losses, grads = losses_and_grads(task_losses)(params, points, state=opt_state)
        updates, opt_state = tx.update(grads, opt_state, params, losses=losses)
        return (optax.apply_updates(params, updates), opt_state), losses

    keys = jax.random.split(jax.random.key(1), STEPS)
    run = jax.jit(lambda carry: jax.lax.scan(step, carry, keys))
    (params, _), _ = run((params, tx.init(params)))
    return params


def main():
    x, t = jnp.meshgrid(jnp.linspace(0, 1, 101), jnp.linspace(0, 1, 101))
    weighings = {
        "mean": ls(),
        "1 / first loss": first_loss(3),
        "FAMO": famo(3, normalizer=None, smoothing=0.9),
    }
    print(f"{'front':16} {'relative L2 error':>18}")
    results = {}
    for name, weighing in weighings.items():
        wrong = u(train(weighing), x, t) - exact(x, t)
        results[name] = float(np.linalg.norm(wrong) / np.linalg.norm(exact(x, t)))
        print(f"{name:16} {100 * results[name]:17.3f}%")
    return results


if __name__ == "__main__":
    main()
