"""The simulator itself, where it is installed."""

import numpy as np
import pytest

from famo_jax.experiments.problems import _metaworld

# Looked for and not imported: its warnings belong to the processes that run it.
pytestmark = pytest.mark.skipif(
    _metaworld.importlib.util.find_spec(_metaworld.PACKAGE) is None, reason="needs metaworld"
)


def test_an_expert_succeeds_in_the_simulator():
    with _metaworld.processes(1) as pool:
        shown = pool.submit(_metaworld.record, "drawer-close", 3, 1, 0.0).result()
    assert shown.success.tolist() == [True]
    assert shown.observations.shape == (shown.lengths[0], _metaworld.OBSERVATION)
    assert shown.actions.shape == (shown.lengths[0], _metaworld.ACTION)


def test_two_hundred_steps_in_the_simulator():
    tasks, rng = list(_metaworld.TASKS), np.random.default_rng(0)
    with _metaworld.lanes(tasks) as lanes:
        seen = [lanes.reset(0, 0)]
        for _ in range(200):
            step = lanes.step(rng.uniform(-1, 1, (10, 4)).astype(np.float32))
            seen.append(step.observations)
            assert np.isfinite(step.rewards).all()
            assert step.rewards.min() >= 0
            assert step.rewards.max() <= 10
    every = np.stack(seen)
    assert every.shape == (201, 10, _metaworld.OBSERVATION)
    assert np.ptp(every[:, :, :3], axis=0).min() > 0.01  # all hands have moved
    goals = every[:, :, -3:]
    np.testing.assert_array_equal(goals, np.broadcast_to(goals[:1], goals.shape))  # and are seen
