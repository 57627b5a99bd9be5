"""Fine-tuning a pretrained encoder on few labels, with an auxiliary loss that keeps what it knew.

The encoder has learned the digits 0 to 4. It is fine-tuned on 50 labels of the digits 5 to 9. The
auxiliary loss is the old task's, on old pictures. Both are cross-entropies, so losses of one
kind; but the old one starts near zero, and a method that divides by it holds on to the old task
too hard.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

from famo_jax import famo, losses_and_grads
from famo_jax.weighting import first_loss, ls, stl

LABELS, NOISE, SEEDS = 50, 0.3, 3


def make_data():
    """Pictures and classes of the old digits and of the new ones, to train on and to test."""
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.data))
    pictures, classes = (digits.data[order] / 16).astype(np.float32), digits.target[order]
    split = lambda rows: (pictures[rows], classes[rows] % 5)
    train = np.arange(len(order)) < 1300
    old, new = classes < 5, classes >= 5
    of_new = np.flatnonzero(train & new)[:LABELS]
    return (split(train & old), split(of_new)), (split(~train & old), split(~train & new))


def init(key):
    sizes = {"first": (64, 64), "second": (64, 32), "old": (32, 5), "new": (32, 5)}
    keys = jax.random.split(key, len(sizes))
    return {
        name: jax.random.normal(k, size) * (2 / size[0]) ** 0.5
        for k, (name, size) in zip(keys, sizes.items(), strict=True)
    }


def logits_of(params, pictures, task):
    hidden = jax.nn.relu(pictures @ params["first"])
    return jax.nn.relu(hidden @ params["second"]) @ params[task]


def train(weighing, params, data, steps, rate, key):
    tx = optax.chain(optax.adam(optax.cosine_decay_schedule(rate, steps)), weighing)

    def loss_of(task):
        def loss(params, batch):
            pictures, classes = batch[task]
            logits = logits_of(params, pictures, task)
            return optax.softmax_cross_entropy_with_integer_labels(logits, classes).mean()

        return loss

    losses_fn = {"old": loss_of("old"), "new": loss_of("new")}

    def step(carry, key):
        params, opt_state = carry
        of_rows, of_noise = jax.random.split(key)
        shares = jax.random.uniform(of_rows, (32,))
        noise = NOISE * jax.random.normal(of_noise, (32, 64))
        batch = {}
        for task, (pictures, classes) in zip(("old", "new"), data, strict=True):
            rows = (shares * len(pictures)).astype(int)
            batch[task] = pictures[rows] + noise, classes[rows]
        losses, grads = losses_and_grads(losses_fn)(params, batch, state=opt_state)
        updates, opt_state = tx.update(grads, opt_state, params, losses=losses)
        return (optax.apply_updates(params, updates), opt_state), None

    (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), jax.random.split(key, steps))
    return params


def main():
    data, unseen = jax.tree.map(jnp.asarray, make_data())
    keys = jax.random.split(jax.random.key(0), (SEEDS, 4))
    old = stl(1)  # in JAX's order: new, old

    @jax.jit
    @jax.vmap
    def pretrain(keys):
        return train(old, init(keys[0]), data, 300, 3e-3, keys[1])

    def finetune(weighing):
        """Wrong digits under noise, old and new, [SEEDS, 2]: seeds share batches."""

        def run(params, keys):
            params = train(weighing, params, data, 300, 3e-3, keys[2])
            wrong = []
            for task, (pictures, classes) in zip(("old", "new"), unseen, strict=True):
                noisy = pictures + NOISE * jax.random.normal(keys[3], pictures.shape)
                wrong.append(jnp.mean(logits_of(params, noisy, task).argmax(-1) != classes))
            return jnp.stack(wrong)

        return np.asarray(jax.jit(jax.vmap(run))(pretrained, keys))

    pretrained = pretrain(keys)
    runs = {
        "new alone": stl(0),
        "both, mean": ls(),
        "both, 1 / first loss": first_loss(2),
        "both, FAMO": famo(2, normalizer=None, smoothing=0.9),
    }
    print(f"{'wrong, in percent':24} {'old':>11} {'new':>11}")
    results = {}
    for name, weighing in runs.items():
        results[name] = 100 * finetune(weighing)
        mean, error = results[name].mean(axis=0), results[name].std(axis=0, ddof=1) / SEEDS**0.5
        cells = (f"{m:5.1f} ± {e:3.1f}" for m, e in zip(mean, error, strict=True))
        print(f"{name:24} {'  '.join(cells)}")
    return results


if __name__ == "__main__":
    main()
