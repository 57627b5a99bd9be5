"""Task gradients of many kinds, and what the tests of all methods share."""

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

METHOD_SETTINGS = settings(
    max_examples=50,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)

# 0 is not in the convex hull, and no two gradients are nearly opposite.
FULL_RANK = ("random", "aligned", "scaled", "nearly equal")
POINTED = (*FULL_RANK, "equal in pairs", "more tasks than parameters")
KINDS = (*POINTED, "conflicting", "dependent")
NUM_TASKS = (2, 3, 10, 40)


def task_gradients(kind, num_tasks, seed):
    """A Jacobian, [K, D]."""
    rng = np.random.default_rng([seed, num_tasks])
    rows = rng.normal(size=(num_tasks, 3 * num_tasks + 20))
    match kind:
        case "aligned":
            rows += 3 * rng.normal(size=rows.shape[1])
        case "scaled":
            rows *= 10 ** rng.uniform(-3, 3, (num_tasks, 1))
        case "nearly equal":
            rows = rng.normal(size=rows.shape[1]) + 1e-2 * rows
        case "equal in pairs":
            rows[::2] = rows[: len(rows[1::2]) + num_tasks % 2]
        case "more tasks than parameters":
            rows = np.abs(rows[:, : max(num_tasks // 2, 1)]) + 0.1
        case "conflicting":
            rows -= 0.9 * rows.mean(0)
        case "dependent":
            rank = max(num_tasks // 3, 1)
            rows = rows[:, :rank] @ rng.normal(size=(rank, rows.shape[1]))
    return rows


def jacobians(kinds=KINDS):
    return st.builds(
        task_gradients,
        st.sampled_from(kinds),
        st.sampled_from(NUM_TASKS),
        st.integers(0, 2**32 - 1),
    )


def tolerance(dtype):
    return {"float32": 1e-5, "float64": 1e-10}[dtype]


def gram_of(rows, dtype):
    """The Gram matrix in a dtype, and the same numbers in float64."""
    gram = (rows @ rows.T).astype(dtype)
    return gram, gram.astype(float)
