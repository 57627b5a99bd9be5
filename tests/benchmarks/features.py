"""Where task gradients are compared, and what a step costs there, beside TorchJD. Run it by hand.

    python tests/benchmarks/features.py [--tasks K ...] [--rounds N] [--rest S] [--no-peers]

A trunk of four layers of 512, a linear head a task, batch 256, MGDA, Adam. Every step is timed in
turn with the plain one, that of the mean of the losses, on its own side; shown is the median of the
ratios over it, with quartiles, XLA's temporary memory and its count of operations. Ours is jitted,
with the state donated; TorchJD eager, as its users run it.
"""

import argparse
import functools
import time
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax

from famo_jax import losses_and_grads
from famo_jax.aggregation import mgda, periodic
from famo_jax.weighting import ls

BATCH, WIDTH, LAYERS = 256, 512, 4


def problem(num_tasks):
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
    trunk = [draw(WIDTH, WIDTH) / WIDTH**0.5 for _ in range(LAYERS)]
    return trunk, draw(num_tasks, WIDTH) / WIDTH**0.5, draw(BATCH, WIDTH), draw(BATCH, num_tasks)


def our_steps(num_tasks):
    """Compiled steps by name, each with what it starts from."""
    trunk, heads, x, y = map(functools.partial(jax.tree.map, jnp.asarray), problem(num_tasks))
    params = {"trunk": trunk, "heads": heads}

    def encoder(params):
        return functools.reduce(lambda z, kernel: jnp.tanh(z @ kernel), params["trunk"], x)

    def head_losses(params, z):
        return jnp.mean((z @ params["heads"].T - y) ** 2, axis=0)

    def head_loss(task, params, z):
        return jnp.mean((z @ params["heads"][task] - y[:, task]) ** 2)

    whole = lambda params: head_losses(params, encoder(params))
    functions = [functools.partial(head_loss, task) for task in range(num_tasks)]
    last = {"trunk": [False] * (LAYERS - 1) + [True], "heads": False}
    adam = optax.adam(1e-3)
    chains = {
        "plain": (optax.chain(adam, ls()), whole, {}),
        "features": (optax.chain(mgda(), adam), head_losses, {"encoder": encoder}),
        "features, K functions": (optax.chain(mgda(), adam), functions, {"encoder": encoder}),
        "last layer": (optax.chain(mgda(), adam), whole, {"gram_at": last}),
        "stacked": (optax.chain(mgda(), adam), whole, {}),
        "stacked, every 25th": (
            optax.chain(periodic(mgda(), num_tasks, every=25), adam),
            whole,
            {},
        ),
    }

    def compile_step(tx, fn, options):
        def step(params, opt_state):
            losses, grads = losses_and_grads(fn, **options)(params, state=opt_state)
            updates, opt_state = tx.update(grads, opt_state, params, losses=losses)
            return optax.apply_updates(params, updates), opt_state

        carry = jax.tree.map(jnp.copy, (params, tx.init(params)))
        return jax.jit(step, donate_argnums=(0, 1)).lower(*carry).compile(), list(carry)

    return {name: compile_step(*each) for name, each in chains.items()}


def their_steps(num_tasks):
    """TorchJD's three engines: task gradients stacked, at features, and the Gram matrix alone."""
    import torch
    from torchjd import aggregation, autogram, autojac

    trunk, heads, x, y = problem(num_tasks)
    x, y = torch.tensor(x), torch.tensor(y)

    def model():
        layers = []
        for kernel in trunk:
            layers += [torch.nn.Linear(WIDTH, WIDTH, bias=False), torch.nn.Tanh()]
            with torch.no_grad():
                layers[-2].weight.copy_(torch.tensor(kernel.T))
        own = torch.nn.ModuleList(torch.nn.Linear(WIDTH, 1, bias=False) for _ in heads)
        with torch.no_grad():
            for layer, row in zip(own, heads, strict=True):
                layer.weight.copy_(torch.tensor(row[None]))
        return torch.nn.Sequential(*layers), own

    def step_of(kind):
        encoder, own = model()
        parameters = [*encoder.parameters(), *own.parameters()]
        optimizer = torch.optim.Adam(parameters, 1e-3)
        aggregator = aggregation.MGDA()
        engine = autogram.Engine(encoder, batch_dim=None) if kind == "autogram" else None

        def call():
            optimizer.zero_grad()
            z = encoder(x)
            losses = [(head(z)[:, 0] - y[:, i]).pow(2).mean() for i, head in enumerate(own)]
            if kind == "plain":
                torch.stack(losses).mean().backward()
            elif kind == "mtl_backward":
                autojac.mtl_backward(losses, z)
                autojac.jac_to_grad(encoder.parameters(), aggregator)
            elif kind == "backward":
                autojac.backward(losses)
                autojac.jac_to_grad(parameters, aggregator)
            else:
                stacked = torch.stack(losses)
                weights = aggregation.MGDAWeighting()(engine.compute_gramian(stacked))
                stacked.backward(weights)
            optimizer.step()

        return call

    return {name: step_of(name) for name in ("plain", "mtl_backward", "autogram", "backward")}


def timed(calls, rounds, rest):
    """Seconds, ``[rounds]`` by name, the steps of a round one after the other."""
    for call in calls.values():
        call()
    seconds = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            time.sleep(rest)
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return {name: np.array(each) for name, each in seconds.items()}


def show(seconds, notes):
    for name, each in seconds.items():
        low, middle, high = np.percentile(each / seconds["plain"], [25, 50, 75])
        ratio = f"{middle:7.2f} ({low:.2f}-{high:.2f})"
        print(f"{name:26}{1e3 * np.median(each):9.1f}  {ratio:24}{notes.get(name, '')}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=int, nargs="+", default=[10, 40, 100])
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--rest", type=float, default=0.01, help="seconds before each step")
    parser.add_argument("--no-peers", action="store_true")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    for num_tasks in arguments.tasks:
        print(f"\n{num_tasks} tasks, {jax.devices()[0].device_kind}")
        print(f"{'':26}{'ms':>9}  {'over plain (quartiles)':24}{'MiB':>8}{'GFLOP':>9}")
        ours, calls, notes = our_steps(num_tasks), {}, {}
        for name, (compiled, carry) in ours.items():

            def call(compiled=compiled, carry=carry):
                carry[:] = jax.block_until_ready(compiled(*carry))

            calls[name] = call
            memory = compiled.memory_analysis().temp_size_in_bytes / 2**20
            notes[name] = f"{memory:8.1f}{compiled.cost_analysis()['flops'] / 1e9:9.2f}"
        show(timed(calls, arguments.rounds, arguments.rest), notes)
        if not arguments.no_peers:
            print("TorchJD")
            show(timed(their_steps(num_tasks), arguments.rounds, arguments.rest), {})


if __name__ == "__main__":
    main()
