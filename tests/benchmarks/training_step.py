"""A whole training step of every method beside TorchJD. Prints a table; run it by hand.

    python tests/benchmarks/training_step.py [--tasks K ...] [--width N] [--rounds N] [--rest S]
    python tests/benchmarks/training_step.py --amortized [--tasks K ...] [--width N] [--rounds N]

A network of about a million parameters (256 inputs, two hidden layers, one output a task), batch
64, Adam. Each side as its users run it: ours jitted, with the state donated; TorchJD eager. All
steps are timed in turn; shown are medians and quartiles. With ``--amortized`` ours alone: what
learns from the change of the losses, by one pass, two or the slope, over the step of the mean in
the same round.
"""

import argparse
import functools
import itertools
import os
import time
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax

import famo_jax
from famo_jax import aggregation, losses_and_grads, weighting

FEATURES, BATCH = 256, 64


def kernels(rng, width, num_tasks):
    sizes = [FEATURES, width, width, num_tasks]
    return [
        rng.normal(size=(n, m)).astype(np.float32) / n**0.5 for n, m in itertools.pairwise(sizes)
    ]


def our_methods(num_tasks):
    """Each with its way to measure the change, of those that do."""
    adam = optax.adam(1e-3)
    return {
        "mean": (optax.chain(adam, weighting.ls()), "one-pass"),
        "famo": (optax.chain(adam, famo_jax.famo(num_tasks)), "two-pass"),  # as theirs
        "dwa": (optax.chain(adam, weighting.dwa(num_tasks)), "one-pass"),
        "uw": (optax.chain(adam, weighting.uw(num_tasks)), "one-pass"),
        "mgda": (optax.chain(aggregation.mgda(), adam), "one-pass"),
        "pcgrad": (optax.chain(aggregation.pcgrad(key=0), adam), "one-pass"),
        "cagrad": (optax.chain(aggregation.cagrad(c=0.4), adam), "one-pass"),
        "imtl_g": (optax.chain(aggregation.imtl_g(), adam), "one-pass"),
        "graddrop": (optax.chain(aggregation.graddrop(key=0), adam), "one-pass"),
        "nash_mtl": (optax.chain(aggregation.nash_mtl(), adam), "one-pass"),
    }


def amortized_methods(num_tasks):
    adam = optax.adam(1e-3)
    found = {"mean": (optax.chain(adam, weighting.ls()), "one-pass")}
    for name, make in {
        "famo": famo_jax.famo,
        "nash": weighting.amortized_nash_mtl,
        "mgda": weighting.amortized_mgda,
        "cagrad": weighting.amortized_cagrad,
    }.items():
        for how in ("one-pass", "two-pass", "slope"):
            measure = "slope" if how == "slope" else "change"
            found[f"{name} {how}"] = (optax.chain(adam, make(num_tasks, measure=measure)), how)
    return found


def our_steps(methods, weights, x, y):
    def losses_fn(params):
        hidden = x
        for kernel in params[:-1]:
            hidden = jax.nn.relu(hidden @ kernel)
        return jnp.mean((hidden @ params[-1] - y) ** 2, axis=0)

    x, y = jnp.asarray(x), jnp.asarray(y)

    def make(tx, how):
        @functools.partial(jax.jit, donate_argnums=(0, 1))
        def step(params, opt_state):
            losses, grads = losses_and_grads(losses_fn)(params, state=opt_state)
            extra = {} if how == "one-pass" else {"losses_fn": losses_fn}
            updates, opt_state = tx.update(grads, opt_state, params, losses=losses, **extra)
            return optax.apply_updates(params, updates), opt_state

        params = [jnp.array(kernel) for kernel in weights]
        carry = [params, tx.init(params)]

        def call():
            carry[:] = jax.block_until_ready(step(*carry))

        return call

    return {name: make(*method) for name, method in methods.items()}


def their_steps(weights, x, y, num_tasks):
    import torch
    from torchjd import aggregation, autojac, scalarization

    x, y = torch.tensor(x), torch.tensor(y)

    def model():
        layers = []
        for kernel in weights:
            layers += [torch.nn.Linear(*kernel.shape, bias=False), torch.nn.ReLU()]
            with torch.no_grad():
                layers[-2].weight.copy_(torch.tensor(kernel.T))
        return torch.nn.Sequential(*layers[:-1])

    def losses_of(net):
        return (net(x) - y).pow(2).mean(0)

    def scalarized(scalarizer):
        net = model()
        parameters = [*net.parameters(), *scalarizer.parameters()]
        optimizer = torch.optim.Adam(parameters if len(parameters) > 3 else net.parameters(), 1e-3)
        if isinstance(scalarizer, scalarization.FAMO):
            optimizer = torch.optim.Adam(net.parameters(), 1e-3)

        def call():
            optimizer.zero_grad()
            scalarizer(losses_of(net)).backward()
            optimizer.step()
            if isinstance(scalarizer, scalarization.FAMO):
                with torch.no_grad():
                    scalarizer.update(losses_of(net))
            elif isinstance(scalarizer, scalarization.DWA):
                scalarizer.step()

        return call

    def aggregated(aggregator):
        net = model()
        optimizer = torch.optim.Adam(net.parameters(), 1e-3)

        def call():
            optimizer.zero_grad()
            autojac.backward(losses_of(net))
            autojac.jac_to_grad(net.parameters(), aggregator)
            optimizer.step()

        return call

    return {
        "mean": scalarized(scalarization.Mean()),
        "famo": scalarized(scalarization.FAMO(num_tasks)),
        "dwa": scalarized(scalarization.DWA()),
        "uw": scalarized(scalarization.UW(num_tasks)),
        "mgda": aggregated(aggregation.MGDA()),
        "pcgrad": aggregated(aggregation.PCGrad()),
        "cagrad": aggregated(aggregation.CAGrad(c=0.4)),
        "imtl_g": aggregated(aggregation.IMTLG()),
        "graddrop": aggregated(aggregation.GradDrop()),
        "nash_mtl": aggregated(aggregation.NashMTL(num_tasks)),
    }


def problem(num_tasks, width):
    rng = np.random.default_rng(0)
    weights = kernels(rng, width, num_tasks)
    x = rng.normal(size=(BATCH, FEATURES)).astype(np.float32)
    y = rng.normal(size=(BATCH, num_tasks)).astype(np.float32)
    count = sum(kernel.size for kernel in weights)
    print(f"\n{num_tasks} tasks, {count:,} parameters, {jax.devices()[0]}")
    return weights, x, y


def timed(call):
    start = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - start)


def beside_torchjd(num_tasks, arguments):
    weights, x, y = problem(num_tasks, arguments.width)
    print(f"{'':10}{'ours ms (quartiles)':>28}{'TorchJD ms (quartiles)':>28}{'ratio':>8}")
    ours = our_steps(our_methods(num_tasks), weights, x, y)
    pairs = ours, their_steps(weights, x, y, num_tasks)
    times = {name: np.empty((2, arguments.rounds)) for name in ours}
    for repeat in range(-2, arguments.rounds):
        for name in times:
            for side, calls in enumerate(pairs):
                time.sleep(arguments.rest)
                milliseconds = timed(calls[name])
                if repeat >= 0:
                    times[name][side, repeat] = milliseconds
    for name, table in times.items():
        (low, median, high) = np.percentile(table, [25, 50, 75], axis=1)
        sides = [f"{median[i]:.1f} ({low[i]:.1f}-{high[i]:.1f})" for i in range(2)]
        print(f"{name:10}{sides[0]:>28}{sides[1]:>28}{median[1] / median[0]:>8.1f}")


def over_the_mean(num_tasks, arguments):
    calls = our_steps(amortized_methods(num_tasks), *problem(num_tasks, arguments.width))
    names, rng = list(calls), np.random.default_rng(0)
    times = {name: np.empty(arguments.rounds) for name in names}
    for repeat in range(-2, arguments.rounds):
        for name in rng.permutation(names):
            milliseconds = timed(calls[name])
            if repeat >= 0:
                times[name][repeat] = milliseconds
    print(f"{'mean':18}{np.median(times['mean']):8.2f} ms; over it, medians (quartiles)")
    for name in names[1:]:
        low, median, high = np.percentile(times[name] / times["mean"], [25, 50, 75])
        print(f"{name:18}{median:8.2f} ({low:.2f}-{high:.2f})")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=int, nargs="+", default=[10, 40])
    parser.add_argument("--width", type=int, default=860)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--amortized", action="store_true")
    parser.add_argument(
        "--rest",
        type=float,
        default=0.01,
        help="seconds before each call, so that the other library's threads stop spinning",
    )
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    for num_tasks in arguments.tasks:
        (over_the_mean if arguments.amortized else beside_torchjd)(num_tasks, arguments)
    print(f"\nload {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
