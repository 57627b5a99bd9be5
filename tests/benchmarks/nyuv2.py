"""A training step of NYU-v2 at full size, ours beside TorchJD's. Run it by hand.

    python tests/benchmarks/nyuv2.py [--size H W] [--width C] [--batch-size B] [--rounds N]

MTAN, three tasks, official losses, Adam, on noise: what a step takes does not depend on the data.
At full size a round takes six minutes on two cores, and all of it 20 GB.
Steps of both sides are timed in turns; shown are medians, their ratio to the plain step of their
own side in the same round, with quartiles, and XLA's temporary memory and count of operations.
Ours is jitted, with the state donated; PyTorch is eager, as the official code runs it.
"""

import argparse
import functools
import gc
import sys
import time
import warnings

import jax
import jax.numpy as jnp
import numpy as np

from famo_jax.experiments import _benchmark, _train
from famo_jax.experiments.problems import _problem, _segnet, dense
from famo_jax.experiments.problems._dense_files import Scenes

OUTPUTS = dense.NYUV2.outputs
OURS = ("ls", "famo", "famo-one-pass", "mgda", "nash-mtl")


def noise(size, count):
    rng = np.random.default_rng(0)
    draw = lambda *more: rng.normal(size=(count, *size, *more)).astype(np.float32)
    normal = draw(3)
    normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
    label = rng.integers(0, OUTPUTS["semantic"], (count, *size)).astype(np.int8)
    return Scenes(draw(3), label, np.abs(draw()) + 0.5, normal)


def our_steps(scenes, width, place):
    """Compiled steps by name, each with what it starts from, and notes on them."""
    plan = dense.Plan(width=width, augment=False)
    problem = dense.problem(dense.NYUV2, scenes, scenes, plan)._replace(place=place)
    data = problem.load_data(1, [0], len(scenes.image))
    batch = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], scenes)
    variables = jax.tree.map(lambda leaf: leaf[0], problem.init([0]))
    steps, notes = {}, {}
    for name in OURS:
        print(f"compiling {name}", file=sys.stderr)
        setting = {"learning_rate": 1e-4, "gamma": 1e-3}
        method = _benchmark.METHODS[name]
        constant = lambda setting, _: setting["learning_rate"]
        arm = _train.Arm(name, problem, data, 1, method, [setting], [0], schedule=constant)
        begin, advance, _ = _train.functions(arm)

        def step(carry, batch, advance=advance, setting=setting):
            return advance(setting, carry, jax.random.key(0), None, 0, batch)[0]

        carry = [jax.jit(functools.partial(begin, setting))(variables)]
        compiled = jax.jit(step, donate_argnums=0).lower(*carry, batch).compile()

        def call(compiled=compiled, carry=carry):
            carry[0] = jax.block_until_ready(compiled(carry[0], batch))

        steps[name] = call
        memory = compiled.memory_analysis().temp_size_in_bytes / 2**20
        notes[name] = f"{memory:9.0f}{compiled.cost_analysis()['flops'] / 1e9:9.0f}"
    return steps, notes


def mtan(torch, width):
    """PyTorch's module, with the parameters of ours; it returns what is shared, and outputs."""
    nn, filters = torch.nn, [width * each // 64 for each in _segnet.FILTERS]
    above, below = [filters[0], *filters[:-1]], [*filters[1:], filters[-1]]
    levels = range(5)
    upwards = levels[::-1]

    def block(inputs, outputs, size=3, activate=nn.ReLU):
        layer = nn.Conv2d(inputs, outputs, size, padding=size // 2)
        return nn.Sequential(layer, nn.BatchNorm2d(outputs), activate())

    def more(channels, level):
        return nn.Sequential(*(block(channels, channels) for _ in range(1 + (level > 1))))

    def attention(inputs, channels):
        return nn.Sequential(block(inputs, channels, 1), block(channels, channels, 1, nn.Sigmoid))

    class Mtan(nn.Module):
        def __init__(self):
            super().__init__()
            make = lambda of, at: nn.ModuleList(of(i) for i in at)
            inputs = [3, *filters]
            self.encoder = make(lambda i: block(inputs[i], filters[i]), levels)
            self.encoder_more = make(lambda i: more(filters[i], i), levels)
            self.decoder = make(lambda i: block(filters[i], above[i]), upwards)
            self.decoder_more = make(lambda i: more(above[i], i), upwards)
            self.encoder_shared = make(lambda i: block(filters[i], below[i]), levels)
            self.decoder_shared = make(lambda i: block(filters[i], above[i]), upwards)
            seen = lambda i: filters[i] * (1 + (i > 0))
            self.encoder_attention = nn.ModuleList(
                make(lambda i: attention(seen(i), filters[i]), levels) for _ in OUTPUTS
            )
            self.decoder_attention = nn.ModuleList(
                make(lambda i: attention(filters[i] + above[i], above[i]), upwards) for _ in OUTPUTS
            )
            self.heads = nn.ModuleList(
                nn.Sequential(
                    nn.Conv2d(filters[0], filters[0], 3, padding=1), nn.Conv2d(filters[0], of, 1)
                )
                for of in OUTPUTS.values()
            )

        def trunk(self):
            parts = self.encoder, self.encoder_more, self.decoder, self.decoder_more
            return [parameter for part in parts for parameter in part.parameters()]

        def encode(self, x):
            early, late, unpooled, decoded, places = [], [], [], [], []
            for first, more in zip(self.encoder, self.encoder_more, strict=True):
                early.append(first(x))
                late.append(more(early[-1]))
                x, indices = nn.functional.max_pool2d(late[-1], 2, return_indices=True)
                places.append(indices)
            for first, more in zip(self.decoder, self.decoder_more, strict=True):
                unpooled.append(nn.functional.max_unpool2d(x, places.pop(), 2))
                x = more(first(unpooled[-1]))
                decoded.append(x)
            return early, late, unpooled, decoded

        def decode(self, maps):
            early, late, unpooled, decoded = maps
            found = []
            for task, head in enumerate(self.heads):
                x = None
                for i, attend in enumerate(self.encoder_attention[task]):
                    seen = early[i] if x is None else torch.cat([early[i], x], 1)
                    weighed = self.encoder_shared[i](attend(seen) * late[i])
                    x = nn.functional.max_pool2d(weighed, 2)
                for i, attend in enumerate(self.decoder_attention[task]):
                    x = nn.functional.interpolate(
                        x, scale_factor=2, mode="bilinear", align_corners=True
                    )
                    seen = torch.cat([unpooled[i], self.decoder_shared[i](x)], 1)
                    x = attend(seen) * decoded[i]
                found.append(head(x))
            semantic, depth, normal = found
            log_probabilities = nn.functional.log_softmax(semantic, 1)
            return log_probabilities, depth[:, 0], nn.functional.normalize(normal)

    model = Mtan()
    ours = _problem.count_parameters(dense.network_of(OUTPUTS, dense.Plan(width=width)))
    assert sum(parameter.numel() for parameter in model.parameters()) == ours
    return model


def their_steps(scenes, width):
    import torch
    from torchjd import aggregation, autojac, scalarization

    first = lambda array: torch.tensor(np.moveaxis(array, -1, 1).copy())
    image, normal = first(scenes.image), first(scenes.normal)
    label, depth = torch.tensor(scenes.label).long(), torch.tensor(scenes.depth)

    def losses_of(model, maps):
        semantic, far, up = model.decode(maps)
        return [
            torch.nn.functional.nll_loss(semantic, label, ignore_index=-1),
            (far - depth).abs()[depth != 0].mean(),
            (1 - (up * normal).sum(1))[normal.sum(1) != 0].mean(),
        ]

    def step_of(kind):
        torch.manual_seed(0)
        model = mtan(torch, width)
        optimizer = torch.optim.Adam(model.parameters(), 1e-4)
        scalarizer = scalarization.FAMO(len(OUTPUTS))
        aggregator = getattr(aggregation, kind.split()[0])() if " " in kind else None

        def call():
            optimizer.zero_grad()
            maps = model.encode(image)
            losses = losses_of(model, maps)
            if kind == "plain":
                torch.stack(losses).mean().backward()
            elif kind == "famo":
                scalarizer(torch.stack(losses)).backward()
            else:
                autojac.backward(losses, inputs=model.trunk(), retain_graph=True)
                autojac.jac_to_grad(model.trunk(), aggregator)
                own = [each for each in model.parameters() if each.grad is None]
                sum(losses).backward(inputs=own)
            optimizer.step()
            if kind == "famo":
                with torch.no_grad():
                    scalarizer.update(torch.stack(losses_of(model, model.encode(image))))

        return call

    return {name: step_of(name) for name in ("plain", "famo", "MGDA backward")}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, nargs=2, default=[288, 384])
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--warm-up", type=int, default=1, help="rounds that do not count")
    parser.add_argument("--place", default="features", choices=["features", "parameters"])
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    scenes = noise(arguments.size, arguments.batch_size)
    ours, notes = our_steps(scenes, arguments.width, arguments.place)
    theirs = their_steps(scenes, arguments.width)
    calls = {("famo_jax", name): call for name, call in ours.items()}
    calls |= {("TorchJD", name): call for name, call in theirs.items()}
    seconds = {key: [] for key in calls}
    for number in range(-arguments.warm_up, arguments.rounds):
        for key, call in calls.items():
            gc.collect()  # graphs of PyTorch that hold each other
            start = time.perf_counter()
            call()
            took = time.perf_counter() - start
            if number >= 0:
                seconds[key].append(took)
            print(f"round {number}: {' '.join(key)} {took:.2f} s", file=sys.stderr)
    print(f"{jax.devices()[0].device_kind}, batch {arguments.batch_size}")
    print(f"{'':26}{'s':>8}  {'over plain (quartiles)':22}{'/ TorchJD':>10}{'MiB':>9}{'GFLOP':>9}")
    first = np.array(seconds["TorchJD", "plain"])
    for (side, name), each in seconds.items():
        plain = seconds[side, "ls" if side == "famo_jax" else "plain"]
        low, middle, high = np.percentile(np.array(each) / plain, [25, 50, 75])
        print(f"{side + ' ' + name:26}{np.median(each):8.2f}  "
              f"{f'{middle:.2f} ({low:.2f}-{high:.2f})':22}{np.median(each / first):10.2f}"
              f"{notes.get(name, '') if side == 'famo_jax' else ''}")  # fmt: skip


if __name__ == "__main__":
    main()
