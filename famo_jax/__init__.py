"""Multi-task optimisation for JAX: balance the rates at which K losses fall.

The library on one page:

* FAMO: `famo`, `FamoState`, `logits_optimizer`, `update_logits`, `task_weights`
* Any weighting method: `weighted_loss`, `loss_weights`, `check_losses`
* Any method at all: `losses_and_grads`
* Tables of results: `delta_m`, `mean_rank`
* Flax Linen, with the extra `flax`: `TrainState`
"""

from typing import Any

from famo_jax._core import check_losses, loss_weights, losses_and_grads, weighted_loss
from famo_jax._famo import FamoState, famo, logits_optimizer, task_weights, update_logits
from famo_jax.metrics import delta_m, mean_rank

__version__ = "0.1.0"

__all__ = [
    "FamoState",
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
]


def __getattr__(name: str) -> Any:
    if name != "TrainState":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from famo_jax.linen import TrainState

    return TrainState


def __dir__() -> list[str]:
    return [*globals(), "TrainState"]
