"""A classifier with three heads, most of whose labels are missing.

Of a handwritten digit under noise: which it is, how many holes it has, in which third its ink is.
One label in ten of the first is there, one in three of the second, two in three of the third.
Whoever keeps complete rows alone has 2% of the pictures left.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

from famo_jax import famo, losses_and_grads
from famo_jax.weighting import ls

CLASSES = {"digit": 10, "holes": 3, "ink": 3}
THERE = {"digit": 0.1, "holes": 0.33, "ink": 0.67}
STEPS, BATCH, MISSING = 1000, 64, -1


def make_data():
    """Pictures [N, 64], labels [N] by task, and the rows to train on and to test."""
    digits = load_digits()
    holes = np.array([1, 0, 0, 0, 0, 0, 1, 0, 2, 1])[digits.target]
    amount = digits.data.sum(axis=1)
    ink = np.digitize(amount, np.quantile(amount, [1 / 3, 2 / 3]))
    labels = {"digit": digits.target, "holes": holes, "ink": ink}
    train, test = np.split(np.random.default_rng(0).permutation(len(digits.data)), [1300])
    return (digits.data / 16).astype(np.float32), labels, train, test


def init(key):
    keys = jax.random.split(key, 1 + len(CLASSES))
    heads = {
        name: jax.random.normal(k, (64, classes)) / 8
        for k, (name, classes) in zip(keys[1:], CLASSES.items(), strict=True)
    }
    return {"trunk": jax.random.normal(keys[0], (64, 64)) / 8, "heads": heads}


def logits_of(params, pictures):
    hidden = jax.nn.relu(pictures @ params["trunk"])
    return {name: hidden @ head for name, head in params["heads"].items()}


def masked_loss(logits, labels):
    """The mean over the rows that have a label, and whether there are any."""
    there = labels != MISSING
    errors = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.where(there, labels, 0))
    return jnp.sum(jnp.where(there, errors, 0)) / jnp.maximum(jnp.sum(there), 1), there.any()


def train(weighing, pictures, labels):
    tx = optax.chain(optax.adam(optax.cosine_decay_schedule(3e-3, STEPS)), weighing)

    def step(carry, key):
        params, opt_state = carry
        of_rows, of_noise = jax.random.split(key)
        rows = jax.random.choice(of_rows, len(pictures), (BATCH,))
        noisy = pictures[rows] + 0.3 * jax.random.normal(of_noise, (BATCH, 64))

        def losses_fn(params):
            logits = logits_of(params, noisy)
            pairs = {name: masked_loss(logits[name], labels[name][rows]) for name in labels}
            return {name: loss for name, (loss, _) in pairs.items()}

        where = {name: (label[rows] != MISSING).any() for name, label in labels.items()}
        losses, grads = losses_and_grads(losses_fn)(params, state=opt_state, where=where)
        updates, opt_state = tx.update(grads, opt_state, params, losses=losses, where=where)
        return (optax.apply_updates(params, updates), opt_state), None

    params = init(jax.random.key(0))
    keys = jax.random.split(jax.random.key(1), STEPS)
    run = jax.jit(lambda carry: jax.lax.scan(step, carry, keys))
    (params, _), _ = run((params, tx.init(params)))
    return params


def main():
    pictures, labels, rows, test = make_data()
    rng = np.random.default_rng(1)
    seen = {  # what somebody wrote down
        name: jnp.asarray(np.where(rng.random(len(rows)) < THERE[name], label[rows], MISSING))
        for name, label in labels.items()
    }
    complete = np.all([label != MISSING for label in seen.values()], axis=0)
    of_complete = {name: label[complete] for name, label in seen.items()}
    noisy = pictures[test] + 0.3 * rng.normal(size=(len(test), 64))
    runs = {
        "complete rows": (ls(), pictures[rows][complete], of_complete),
        "all, mean": (ls(), pictures[rows], seen),
        "all, FAMO": (famo(3, normalizer=None, smoothing=0.9), pictures[rows], seen),
    }
    print(f"{'wrong, in percent':18}", *(f"{name:>7}" for name in CLASSES))
    results = {}
    for name, (weighing, own, of_own) in runs.items():
        logits = logits_of(train(weighing, jnp.asarray(own), of_own), noisy)
        wrong = {
            task: float(np.mean(logits[task].argmax(-1) != labels[task][test])) for task in logits
        }
        results[name] = wrong
        print(f"{name:18}", *(f"{100 * wrong[task]:7.1f}" for task in CLASSES))
    return results


if __name__ == "__main__":
    main()
