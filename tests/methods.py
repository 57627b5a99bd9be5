"""The table of all methods: what is tested of every method is tested of those that stand here."""

import optax

import famo_jax
from famo_jax import aggregation, weighting

WEIGHTING = {  # of K
    "famo": lambda k: famo_jax.famo(k),
    "ls": lambda k: weighting.ls(),
    "si": lambda k: weighting.si(),
    "stl": lambda k: weighting.stl(min(2, k - 1)),
    "rlw": lambda k: weighting.rlw(k, key=0),
    "dwa": lambda k: weighting.dwa(k, window=2),
    "uw": weighting.uw,
    "amortized_mgda": weighting.amortized_mgda,
    "amortized_nash_mtl": weighting.amortized_nash_mtl,
    "first_loss": weighting.first_loss,
    "imtl_l": weighting.imtl_l,
    "gls": weighting.gls,
    "uw_so": lambda k: weighting.uw_so(k, temperature=10.0),
    "stch": lambda k: weighting.stch(k, warmup=3),
    "go4align": weighting.go4align,
    "ldc_mtl": weighting.ldc_mtl,
    "softadapt": weighting.softadapt,
    "relobralo": lambda k: weighting.relobralo(k, key=0, alpha=0.9, rho=0.5),
}
# Those whose weights are learned from the losses, not drawn or given.
LEARNED = ("famo", "amortized_mgda", "amortized_nash_mtl", "dwa", "uw", "first_loss", "imtl_l")
LEARNED += ("go4align", "ldc_mtl", "softadapt", "relobralo")
# Those whose direction takes a few pullbacks, and is the gradient of no weighted loss.
DIRECTING = {"amortized_cagrad": weighting.amortized_cagrad}
# Those that learn from the change of the losses, measured in one pass, two, or by slope.
FROM_CHANGES = ("famo", "amortized_mgda", "amortized_nash_mtl", "amortized_cagrad")

# Of (K, shared=None). FairGrad's alpha: 200 steps with 2 magnify rounding more. GradNorm's rate: at
# its balance the sign of rounding decides, which it is not to reach.
AGGREGATION = {
    "mgda": lambda k, **kwargs: aggregation.mgda(**kwargs),
    "pcgrad": lambda k, **kwargs: aggregation.pcgrad(key=0, **kwargs),
    "cagrad": lambda k, **kwargs: aggregation.cagrad(**kwargs),
    "imtl_g": lambda k, **kwargs: aggregation.imtl_g(**kwargs),
    "graddrop": lambda k, **kwargs: aggregation.graddrop(key=0, **kwargs),
    "nash_mtl": lambda k, **kwargs: aggregation.nash_mtl(**kwargs),
    "upgrad": lambda k, **kwargs: aggregation.upgrad(**kwargs),
    "dualproj": lambda k, **kwargs: aggregation.dualproj(**kwargs),
    "fairgrad": lambda k, **kwargs: aggregation.fairgrad(alpha=0.5, **kwargs),
    "aligned_mtl": lambda k, **kwargs: aggregation.aligned_mtl(**kwargs),
    "config": lambda k, **kwargs: aggregation.config(**kwargs),
    "ntkmtl": lambda k, **kwargs: aggregation.ntkmtl(**kwargs),
    "gradvac": lambda k, **kwargs: aggregation.gradvac(k, key=0, **kwargs),
    "gradnorm": lambda k, **kwargs: aggregation.gradnorm(k, learning_rate=1e-3, **kwargs),
    "db_mtl": aggregation.db_mtl,
    "moco": aggregation.moco,
    "excess_mtl": aggregation.excess_mtl,
}
# Those that are a function of the Gram matrix and remember nothing: the bare weights.
WEIGHTS = {
    "mgda": aggregation.mgda_weights,
    "cagrad": aggregation.cagrad_weights,
    "imtl_g": aggregation.imtl_g_weights,
    "nash_mtl": aggregation.nash_mtl_weights,
    "upgrad": aggregation.upgrad_weights,
    "dualproj": aggregation.dualproj_weights,
    "fairgrad": lambda gram, **kwargs: aggregation.fairgrad_weights(gram, 0.5, **kwargs),
    "aligned_mtl": aggregation.aligned_mtl_weights,
    "config": aggregation.config_weights,
    "ntkmtl": aggregation.ntkmtl_weights,
}
# What leaves outside of `shared` get; with the others: the same weights.
HEADS = {
    "pcgrad": "mean",
    "cagrad": "mean",
    "graddrop": "sum",
    "upgrad": "mean",
    "dualproj": "mean",
    "aligned_mtl": "mean",
    "config": "sum",
    "gradvac": "mean",
}
# Those that draw, so that what they give depends on the number of tasks or the shape of the leaves.
RANDOM = ("rlw", "pcgrad", "graddrop", "gradvac")
# Those that remember the task gradients of the parameters.
MEMORY = ("db_mtl", "moco", "excess_mtl")
# Those whose direction is another one where all gradients are longer by the same factor.
SCALED = ("moco",)
# Those that may give a task no weight.
SPARSE = ("mgda", "moco", "softadapt")
# Those whose weights change with the order of the tasks.
ORDERED = ("rlw", "stl", "ldc_mtl")


def chains(num_tasks, optimizer):
    """Every method in a chain with an optimizer, by name."""
    last = WEIGHTING | DIRECTING
    weighted = {name: optax.chain(optimizer, make(num_tasks)) for name, make in last.items()}
    combined = {name: optax.chain(make(num_tasks), optimizer) for name, make in AGGREGATION.items()}
    return weighted | combined
