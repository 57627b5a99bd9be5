"""How long the weights of 40 task gradients take, beside TorchJD. Prints a table; run it by hand.

    python tests/benchmarks/aggregation.py [--tasks 40] [--columns 20000] [--common 0]

Both sides get the same Jacobian in float32 and are timed in turn. Ours includes the Gram matrix;
so does TorchJD's. GradDrop has no weights: there the direction is timed. The residual is that of
each method's defining condition, evaluated in float64. UPGrad, DualProj and FairGrad of TorchJD
need its extras `quadprog_projector` and `fairgrad`. ConFIG of TorchJD has no weights either.
"""

import argparse
import time
import warnings

import jax
import jax.numpy as jnp
import numpy as np
from scipy import optimize

import famo_jax.aggregation as ours
from famo_jax import _stacked


def ours_from_jacobian(weights_fn):
    def weights(jacobian):
        return weights_fn(_stacked.gram(jacobian, True))

    return jax.jit(weights)


def our_methods(num_tasks):
    pcgrad, graddrop = ours.pcgrad(key=0), ours.graddrop(key=0)
    gradvac = ours.gradvac(num_tasks, key=0)
    gradvac_state = gradvac.init(None)
    pcgrad_state, graddrop_state = pcgrad.init(None), graddrop.init(None)
    return {
        "mgda": ours_from_jacobian(ours.mgda_weights),
        "cagrad": ours_from_jacobian(lambda gram: ours.cagrad_weights(gram, 0.4)),
        "imtl_g": ours_from_jacobian(ours.imtl_g_weights),
        "nash_mtl": ours_from_jacobian(ours.nash_mtl_weights),
        "upgrad": ours_from_jacobian(ours.upgrad_weights),
        "dualproj": ours_from_jacobian(ours.dualproj_weights),
        "fairgrad": ours_from_jacobian(lambda gram: ours.fairgrad_weights(gram, 2.0)),
        "aligned_mtl": ours_from_jacobian(ours.aligned_mtl_weights),
        "config": ours_from_jacobian(ours.config_weights),
        "gram matrix": ours_from_jacobian(lambda gram: gram),
        "gradvac (direction)": jax.jit(lambda rows: gradvac.update(rows, gradvac_state)[0]),
        "pcgrad (direction)": jax.jit(lambda rows: pcgrad.update(rows, pcgrad_state)[0]),
        "graddrop (direction)": jax.jit(lambda rows: graddrop.update(rows, graddrop_state)[0]),
    }


def their_methods(num_tasks):
    from torchjd import aggregation as theirs

    def from_gramian(weighting):
        return lambda jacobian: weighting(jacobian @ jacobian.T)

    nash = theirs.NashMTL(num_tasks, max_norm=0.0)

    def nash_weights(jacobian):
        nash.reset()
        return nash.weighting(jacobian)

    return {
        "mgda": from_gramian(theirs.MGDAWeighting()),
        "cagrad": from_gramian(theirs.CAGradWeighting(c=0.4)),
        "imtl_g": from_gramian(theirs.IMTLGWeighting()),
        "nash_mtl": nash_weights,
        "upgrad": from_gramian(theirs.UPGradWeighting()),
        "dualproj": from_gramian(theirs.DualProjWeighting()),
        "fairgrad": from_gramian(theirs.FairGradWeighting(alpha=2.0)),
        "aligned_mtl": from_gramian(theirs.AlignedMTLWeighting()),
        "config": theirs.ConFIG(),
        "gram matrix": lambda jacobian: jacobian @ jacobian.T,
        "gradvac (direction)": theirs.GradVac(),
        "pcgrad (direction)": theirs.PCGrad(),
        "graddrop (direction)": theirs.GradDrop(),
    }


def residual(method, gram, weights):
    """Of the defining condition, relative to the largest |g_i|^2 where it has a unit."""
    if weights.shape != gram.shape[:1]:
        return np.nan
    along, largest = gram @ weights, np.max(np.diag(gram))
    match method:
        case "mgda":
            return (weights @ along - np.min(along)) / largest
        case "cagrad":
            excess = np.maximum(weights - 1 / len(gram), 0)
            excess /= np.sum(excess)
            return np.max(excess * (along - np.min(along))) / largest
        case "imtl_g":
            return np.ptp(along / np.sqrt(np.diag(gram))) / np.sqrt(largest)
        case "nash_mtl":
            return np.max(np.abs(weights * along - 1))
        case "fairgrad":
            return np.max(np.abs(np.sqrt(weights) * along - 1))
        case "upgrad" | "dualproj":
            exact = dual_cone(gram, method)
            error = weights - exact
            return np.sqrt(max(error @ gram @ error, 0) / (exact @ gram @ exact))
        case "aligned_mtl":
            values, vectors = np.linalg.eigh(gram)
            exact = vectors @ (np.sqrt(values[0] / values) * vectors.mean(0))
            return np.max(np.abs(weights - exact)) / np.max(np.abs(exact))
        case "config":
            return np.ptp(along / np.sqrt(np.diag(gram))) / np.max(along / np.sqrt(np.diag(gram)))
    return np.nan


def dual_cone(gram, method):
    """The exact weights, by SciPy's active sets in float64."""
    factor, mean = np.linalg.cholesky(gram), np.eye(len(gram)) / len(gram)
    starts = mean if method == "upgrad" else [mean.sum(0)]
    return sum(u + optimize.nnls(factor.T, -factor.T @ u)[0] for u in starts)


def main():
    import torch  # here, so that tests without the extra `peers` can import this file

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=int, default=40)
    parser.add_argument("--columns", type=int, default=20_000)
    parser.add_argument("--repeats", type=int, default=25)
    parser.add_argument("--common", type=float, default=0.0, help="length of a common gradient")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")

    rng = np.random.default_rng(0)
    draw = rng.normal(size=(arguments.tasks, arguments.columns))
    draw += arguments.common * rng.normal(size=arguments.columns)
    jacobian = draw.astype(np.float32)
    gram = jacobian.astype(float) @ jacobian.T.astype(float)
    inputs = jnp.asarray(jacobian), torch.tensor(jacobian)
    peers = their_methods(arguments.tasks)
    print(f"weights of a {jacobian.shape[0]} x {jacobian.shape[1]} Jacobian, {jax.devices()[0]}")
    print(
        f"{'':22}{'ours ms (quartiles)':>26}{'TorchJD ms (quartiles)':>28}{'ratio':>7}"
        f"{'residual':>10}{'TorchJD':>9}"
    )
    for name, mine in our_methods(arguments.tasks).items():
        calls = (
            lambda mine=mine: jax.block_until_ready(mine(inputs[0])),
            lambda name=name: peers[name](inputs[1]),
        )
        outputs = [np.asarray(call(), float) for call in calls]
        times = np.empty((2, arguments.repeats))
        for repeat in range(arguments.repeats):
            for side, call in enumerate(calls):
                start = time.perf_counter()
                call()
                times[side, repeat] = 1e3 * (time.perf_counter() - start)
        (low, median, high) = np.percentile(times, [25, 50, 75], axis=1)
        sides = [f"{median[i]:.2f} ({low[i]:.2f}-{high[i]:.2f})" for i in range(2)]
        residuals = [f"{residual(name, gram, output):.0e}" for output in outputs]
        ratio = f"{median[1] / median[0]:.1f}"
        print(f"{name:22}{sides[0]:>26}{sides[1]:>28}{ratio:>7}{residuals[0]:>10}{residuals[1]:>9}")


if __name__ == "__main__":
    main()
