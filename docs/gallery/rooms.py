"""Segmentation with depth: one network on made rooms, two losses in their natural units.

A room is a picture of 32 x 32 pixels: wall, floor, and two boxes that stand in it. The network
says for each pixel what it is (cross-entropy, in nats) and how far away (squared error, in
centimetres squared).
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from famo_jax import famo, losses_and_grads
from famo_jax.weighting import first_loss, ls

SIZE, CLASSES, STEPS, BATCH = 32, 4, 250, 16


def make_rooms(count: int, seed: int) -> dict[str, np.ndarray]:
    """Pictures [N, 32, 32, 1], classes [N, 32, 32] and depths [N, 32, 32] in centimetres."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:SIZE, :SIZE]
    classes = np.zeros((count, SIZE, SIZE), int)
    depths = np.zeros((count, SIZE, SIZE))
    for room in range(count):
        horizon, far = rng.integers(10, 20), rng.uniform(300, 600)
        classes[room] = rows >= horizon  # 0 wall, 1 floor
        depths[room] = np.where(rows < horizon, far, far * horizon / np.maximum(rows, 1))
        for kind in (2, 3):  # the second box stands before the first
            left, width = rng.integers(0, SIZE - 8), rng.integers(5, 9)
            foot, height = rng.integers(horizon + 2, SIZE), rng.integers(6, 12)
            box = (rows <= foot) & (rows > foot - height) & (abs(columns - left - 4) <= width // 2)
            classes[room][box] = kind
            depths[room][box] = far * horizon / foot
    stripes = np.stack([0 * rows, 0 * rows, columns % 2, rows % 2])  # the boxes are striped
    paint = np.array([1.0, 0.7, 0.9, 0.9])[classes] - 0.5 * np.choose(classes, stripes[:, None])
    picture = paint * np.exp(-depths / 400) + 0.05 * rng.normal(size=paint.shape)  # far is dark
    return {"picture": picture[..., None].astype(np.float32), "class": classes, "depth": depths}


class Network(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.down = nnx.Conv(3, 16, (5, 5), strides=2, rngs=rngs)
        self.middle = nnx.Conv(16, 16, (5, 5), rngs=rngs)
        self.wide = nnx.Conv(16, 16, (5, 5), kernel_dilation=2, rngs=rngs)
        self.heads = nnx.Conv(16, 4 * (CLASSES + 1), (3, 3), rngs=rngs)

    def __call__(self, picture):
        n = len(picture)
        side = jnp.linspace(-1, 1, SIZE)
        where = jnp.broadcast_to(jnp.stack(jnp.meshgrid(side, side), -1), (n, SIZE, SIZE, 2))
        z = nnx.relu(self.down(jnp.concatenate([picture, where], axis=-1)))
        z = z + nnx.relu(self.middle(z))
        z = z + nnx.relu(self.wide(z))
        out = self.heads(z).reshape(n, SIZE // 2, SIZE // 2, 2, 2, CLASSES + 1)
        out = out.transpose(0, 1, 3, 2, 4, 5).reshape(n, SIZE, SIZE, CLASSES + 1)
        return out[..., :CLASSES], 300 * out[..., CLASSES]


def task_losses(model, batch):
    logits, depth = model(batch["picture"])
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels(logits, batch["class"])
    return {"class": cross_entropy.mean(), "depth": jnp.mean((depth - batch["depth"]) ** 2)}


def train(weighing, rooms):
    model = Network(nnx.Rngs(0))
    tx = optax.chain(optax.adam(optax.cosine_decay_schedule(1e-2, STEPS)), weighing)
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)

    @jax.jit
    def train_step(params, opt_state, batch):
        losses_fn = lambda params: task_losses(nnx.merge(graphdef, params, rest), batch)
        losses, grads = losses_and_grads(losses_fn)(params, state=opt_state)
        updates, opt_state = tx.update(grads, opt_state, params, losses=losses)
        return optax.apply_updates(params, updates), opt_state

    opt_state, rng = tx.init(params), np.random.default_rng(0)
    for _ in range(STEPS):
        rows = rng.integers(0, len(rooms["class"]), BATCH)
        batch = {name: each[rows] for name, each in rooms.items()}
        params, opt_state = train_step(params, opt_state, batch)
    return nnx.merge(graphdef, params, rest)


def main():
    rooms, unseen = make_rooms(500, seed=0), make_rooms(200, seed=1)
    weighings = {
        "mean": ls(),
        "1 / first loss": first_loss(2),
        "FAMO": famo(2, normalizer=None, smoothing=0.9),
    }
    print(f"{'200 unseen rooms':16} {'wrong pixels':>12} {'depth error':>12}")
    results = {}
    for name, weighing in weighings.items():
        logits, depth = train(weighing, rooms)(unseen["picture"])
        wrong = float(jnp.mean(logits.argmax(-1) != unseen["class"]))
        error = float(jnp.mean(abs(depth - unseen["depth"])))
        results[name] = {"wrong": wrong, "error": error}
        print(f"{name:16} {100 * wrong:11.1f}% {error:9.1f} cm")
    return results


if __name__ == "__main__":
    main()
