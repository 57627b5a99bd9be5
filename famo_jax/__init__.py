"""Multi-task optimisation for JAX: balance the rates at which K losses fall.

* FAMO: `famo`, `FamoState`, `logits_optimizer`, `update_logits`, `task_weights`
* Any weighting method: `weighted_loss`, `loss_weights`, `check_losses`
* Any method at all: `losses_and_grads`
* Tables of results: `delta_m`, `mean_rank`
* Flax Linen, with the extra `flax`: `TrainState`

The other methods are in `famo_jax.weighting`, from the losses alone, and in
`famo_jax.aggregation`, from the gradients of the tasks.
"""

from typing import Any

from famo_jax import aggregation, weighting
from famo_jax._famo import FamoState, famo, update_logits
from famo_jax._logits import logits_optimizer, task_weights
from famo_jax._losses import check_losses, loss_weights, losses_and_grads, weighted_loss
from famo_jax.metrics import delta_m, mean_rank

__version__ = "0.2.0"

__all__ = [
    "FamoState",
    "aggregation",
    "check_losses",
    "delta_m",
    "famo",
    "logits_optimizer",
    "loss_weights",
    "losses_and_grads",
    "mean_rank",
    "task_weights",
    "update_logits",
    "weighted_loss",
    "weighting",
]


def __getattr__(name: str) -> Any:
    if name != "TrainState":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from famo_jax.linen import TrainState

    return TrainState


def __dir__() -> list[str]:
    return [*globals(), "TrainState"]
