"""Training by epochs: the plateau is PyTorch's, the best epoch is tested, a stop costs nothing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from famo_jax import weighting
from famo_jax.experiments import _checkpoint, _epochs, _methods, _train
from famo_jax.experiments.problems import _problem

# --- The plateau ----------------------------------------------------------------------------------


def scales_of(tx, values):
    def step(state, value):
        _, state = tx.update((), state, value=value)
        return state, state.scale

    return jax.jit(lambda values: jax.lax.scan(step, tx.init(None), values)[1])(jnp.array(values))


@pytest.mark.parametrize("patience", [5, 10])
@pytest.mark.parametrize("seed", range(4))
def test_the_plateau_is_pytorchs(patience, seed):
    """A falling curve with noise, with epochs that are no numbers, that ends below zero."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(seed)
    noise = rng.normal(scale=5, size=200)
    values = 300 * np.exp(-np.arange(200) / 20) - 40 * (seed % 2) + noise
    values[rng.integers(0, 200, 5)] = np.nan
    values = values.astype(np.float32)
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, mode="min", factor=0.7, patience=patience, min_lr=1e-5
    )
    expected = []
    for value in values:
        theirs.step(float(value))
        expected.append(optimizer.param_groups[0]["lr"] / 1e-3)
    scales = scales_of(_epochs.plateau(patience=patience), values)
    np.testing.assert_allclose(scales, expected, rtol=1e-5)
    assert len(np.unique(scales)) > 3


def test_the_plateau_ends_at_the_least_rate():
    assert scales_of(_epochs.plateau(), 200 * [1.0])[-1] == pytest.approx(0.01)


# --- The training ---------------------------------------------------------------------------------

LENGTH, EPOCHS = 5, 8
SCORE = lambda metrics: jnp.sum(metrics)


def regression(data, x):
    return {"x": x, "y": np.stack([x[..., 0], 3 * x[..., 1]], axis=-1) + data}


def load_data(seeds):
    def draw(*shape, key):
        x = np.random.default_rng(key).normal(size=(*shape, 3)).astype(np.float32)
        return regression(0.3 * np.random.default_rng(key).normal(size=(*shape, 2)), x)

    def rows(first, last):
        per_seed = [draw(EPOCHS * LENGTH, 4, key=seed) for seed in seeds]
        return jax.tree.map(lambda *leaves: np.stack(leaves, 1)[first:last], *per_seed)

    held_out = [
        jax.tree.map(
            lambda *leaves: np.stack(leaves), *(draw(20, key=[seed, part]) for seed in seeds)
        )
        for part in (1, 2)
    ]
    return _problem.Data(rows, *held_out, epoch=LENGTH)


def init(seeds):
    return jnp.stack([jnp.full((3, 2), 0.1 * (1 + seed)) for seed in seeds]), jnp.zeros(len(seeds))


PROBLEM = _problem.Problem(
    tasks=tuple(_problem.Task(name, name, name, 2) for name in ("one", "other")),
    load_data=lambda steps, seeds, batch_size: load_data(seeds),
    init=init,
    losses=lambda params, state, batch, key: (
        jnp.mean((batch["x"] @ params - batch["y"]) ** 2, axis=0),
        state,
    ),
    metrics=lambda params, state, held_out: jnp.mean(
        jnp.abs(held_out["x"] @ params - held_out["y"]), axis=0
    ),
)
PLATEAU = _epochs.plateau(patience=1)


def arm_of(name="ls", rates=(0.3, 0.05), seeds=(0, 1), method=None):
    method = method or _methods.METHODS[name]
    more = {"gamma": 1e-3} if "gamma" in method.takes else {}
    settings = [more | {"learning_rate": rate} for rate in rates]
    constant = lambda setting, steps: setting["learning_rate"]
    return _train.Arm(name, PROBLEM, load_data(seeds), EPOCHS * LENGTH, method, settings, seeds,
                      schedule=constant)  # fmt: skip


def train(arm, saved=None, save=None, reduce=PLATEAU):
    return _epochs.train(arm, saved, save, lambda status: None, score=SCORE, reduce=reduce)


@jax.jit
def gradient_of(params, batch):
    return jax.grad(lambda params: PROBLEM.losses(params, 0, batch, 0)[0].mean())(params)


@jax.jit
def next_scale(state, score):
    _, state = PLATEAU.update((), state, value=score)
    return state, state.scale


def by_hand(arm, setting, seed):
    """Epoch after epoch, with the network of each kept."""
    rate, scale, state = arm.settings[setting]["learning_rate"], 1.0, PLATEAU.init(None)
    params = np.asarray(init(arm.seeds)[0][seed])
    at = lambda tree: jax.tree.map(lambda leaf: leaf[seed], tree)
    moments = np.zeros((2, *params.shape))
    count, networks, scores, scales = 0, [], [], []
    for epoch in range(EPOCHS):
        for step in range(epoch * LENGTH, (epoch + 1) * LENGTH):
            batch = jax.tree.map(lambda leaf: leaf[0, seed], arm.data.batches(step, step + 1))
            gradient = np.asarray(gradient_of(params, batch))
            count += 1  # Adam, by its paper
            moments[0] = 0.9 * moments[0] + 0.1 * gradient
            moments[1] = 0.999 * moments[1] + 0.001 * gradient**2
            first, second = moments[0] / (1 - 0.9**count), moments[1] / (1 - 0.999**count)
            params = params - rate * float(scale) * first / (np.sqrt(second) + 1e-8)
        scales.append(float(scale))
        networks.append(params)
        scores.append(float(SCORE(PROBLEM.metrics(params, 0, at(arm.data.validation)))))
        state, scale = next_scale(state, scores[-1])
    best = int(np.argmin(scores))
    return scales, best + 1, PROBLEM.metrics(networks[best], 0, at(arm.data.test))


def test_the_best_epoch_meets_the_test_and_the_rate_follows_the_plateau():
    arm = arm_of()
    found = train(arm)
    epochs = set()
    for setting, seed in ((0, 0), (0, 1), (1, 1)):
        scales, best, test = by_hand(arm, setting, seed)
        np.testing.assert_allclose(found["scale"][setting, seed], scales, rtol=1e-5)
        assert found["best_epoch"][setting, seed] == best
        np.testing.assert_allclose(found["test"][setting, seed], test, rtol=1e-3)
        epochs.add(best)
    scores = found["validation_curve"].sum(axis=-1)
    np.testing.assert_allclose(found["score"], scores.min(axis=-1), rtol=1e-6)
    np.testing.assert_allclose(found["validation"].sum(axis=-1), found["score"], rtol=1e-5)
    assert len(epochs) > 1
    assert found["scale"].min() < 1
    assert found["losses"].shape == (2, 2, EPOCHS, 2)


def test_a_smaller_batch_may_end_an_epoch():
    """Told as a list, it is a step like the others: here a copy of rows, which means the same."""
    arm = arm_of(rates=(0.3,))

    def apart(first, last):
        whole = arm.data.batches(first, last)
        rest = jax.tree.map(lambda leaf: leaf[-1:, :, :2], whole)
        return [jax.tree.map(lambda leaf: leaf[:-1], whole), rest]

    def repeated(first, last):
        def repeat(leaf):
            leaf = leaf.copy()
            leaf[-1, :, 2:] = leaf[-1, :, :2]
            return leaf

        return jax.tree.map(repeat, arm.data.batches(first, last))

    found, expected = (
        train(arm._replace(data=arm.data._replace(train=stream))) for stream in (apart, repeated)
    )
    for field, values in expected.items():
        np.testing.assert_allclose(found[field], values, rtol=1e-4, err_msg=field)


@pytest.mark.parametrize("apart", [True, False])
def test_the_last_epochs_count(apart):
    """Of the test, and of validation where that is another."""
    arm = arm_of()
    data = arm.data if apart else arm.data._replace(validation=arm.data.test)
    found = _epochs.train(
        arm._replace(data=data), None, None, lambda status: None, score=None, last=3
    )
    curve = found["validation_curve"]
    np.testing.assert_allclose(found["validation"], curve[:, :, -3:].mean(axis=2), rtol=1e-6)
    assert np.allclose(found["validation"], found["test"]) != apart
    assert (found["best_epoch"] == EPOCHS).all()
    if not apart:  # the same training as with the best epoch's rule
        assert np.abs(found["losses"] - train(arm, reduce=None)["losses"]).max() < 1e-6


def test_without_a_plateau_the_schedule_is_the_arms():
    arm = arm_of()._replace(schedule=lambda setting, steps: 0.0)
    found = train(arm, reduce=None)
    np.testing.assert_array_equal(found["scale"], np.ones((2, 2, EPOCHS)))
    assert np.ptp(found["validation_curve"], axis=2).max() < 1e-6


def test_a_method_may_take_the_scale():
    """A weight that is the scale: with a plateau the losses are weighed ever less."""
    seen = []

    def make(num_tasks, scale):
        seen.append(scale)
        return weighting.uw(num_tasks, learning_rate=0.025 * scale)

    method = _methods.Method("", "", make, ("scale",))
    assert np.isfinite(train(arm_of(method=method))["test"]).all()
    assert seen


def test_logits_are_told_by_epoch():
    found = train(arm_of("famo"))
    assert found["task_weights"].shape == (2, 2, EPOCHS, 2)
    np.testing.assert_allclose(found["task_weights"].sum(axis=-1), 1, rtol=1e-5)
    end, most = found["logit_range"][0, 0]
    assert most >= end > 0


def test_what_diverges_has_no_best_epoch():
    found = train(arm_of(rates=(3e38, 0.05)))
    assert np.isnan(found["test"][0]).all()
    assert (found["best_epoch"][0] == 0).all()
    assert np.isfinite(found["test"][1]).all()


@pytest.mark.parametrize("name", ["ls", "famo"])
def test_what_is_resumed_ends_with_the_same_bits(name, tmp_path):
    arm = arm_of(name)
    whole = train(arm)

    class StopError(Exception):
        pass

    def stopped_after(epochs, steps, state):
        _checkpoint.save(tmp_path, name, steps, state)
        if steps == epochs * LENGTH:
            raise StopError

    saved = None
    for epochs in (3, 6):
        with pytest.raises(StopError):
            train(arm, saved, functools.partial(stopped_after, epochs))
        with np.load(tmp_path / f"{name}{_checkpoint.SUFFIX}") as arrays:
            saved = _checkpoint.Saved(*(arrays[field] for field in _checkpoint.Saved._fields))
        assert saved.steps == epochs * LENGTH
    resumed = train(arm, saved)
    assert resumed.keys() == whole.keys()
    for field, values in whole.items():
        np.testing.assert_array_equal(resumed[field], values, err_msg=field)
