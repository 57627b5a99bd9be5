"""Of a run its plan alone, and a training step of a problem by a method, traced."""

import re

import jax

from famo_jax.experiments import _methods, _train


class PlannedError(Exception):
    """Raised where training would begin."""


def traced(problem, name, steps=2):
    """The variables' shapes, and of some steps the program and the shapes that come out."""
    method = _methods.METHODS[name]
    setting = {"learning_rate": 1e-3, **dict.fromkeys(method.takes, 0)}
    data = problem.load_data(steps, [0], 8)
    halved = method.measure == "fresh"
    arm = _train.Arm("", problem, data, steps, method, [setting], [0], halved=halved)
    each = _train.functions(arm)
    variables = jax.eval_shape(lambda: problem.init([0]))

    def run(variables, rows, pool):
        start = each.begin(setting, jax.tree.map(lambda leaf: leaf[0], variables))
        of_seed = jax.tree.map(lambda leaf: leaf[:, 0], rows)
        return each.advance(setting, start, jax.random.key(0), pool, 0, of_seed)

    return variables, jax.make_jaxpr(run, return_shape=True)(variables, data.train, data.pool)


def differ(problem):
    """How many programs a step of MGDA is, by the places where it may take task gradients."""

    def program(place):
        _, (jaxpr, _) = traced(problem._replace(place=place), "mgda")
        return re.sub("0x[0-9a-f]+", "", str(jaxpr))  # of functions in it

    assert program("features") == program("features")
    return len(set(map(program, ("parameters", "last layer", "features"))))
