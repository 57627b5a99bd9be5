"""Multi-task optimisation for JAX: balance the rates at which K losses fall.

The library on one page:

* FAMO: `famo`, `FamoState`, `logits_optimizer`, `update_logits`, `task_weights`
* Weighting methods, from the losses: `ls`, `si`, `stl`, `rlw`, `dwa`, `uw`, `amortized_mgda`
* Aggregation methods, from the task gradients: `mgda`, `pcgrad`, `cagrad`, `imtl_g`, `graddrop`,
  `nash_mtl`, and the bare weights of a Gram matrix: `mgda_weights`, `cagrad_weights`,
  `imtl_g_weights`, `nash_mtl_weights`
* Any weighting method: `weighted_loss`, `loss_weights`, `check_losses`
* Any method at all: `losses_and_grads`
* Tables of results: `delta_m`, `mean_rank`
* Flax Linen, with the extra `flax`: `TrainState`
"""

from typing import Any

from famo_jax._core import check_losses, loss_weights, losses_and_grads, weighted_loss
from famo_jax._famo import FamoState, famo, logits_optimizer, task_weights, update_logits
from famo_jax.aggregation import (
    CagradState,
    GraddropState,
    ImtlGState,
    MgdaState,
    NashMtlState,
    PcgradState,
    cagrad,
    cagrad_weights,
    graddrop,
    imtl_g,
    imtl_g_weights,
    mgda,
    mgda_weights,
    nash_mtl,
    nash_mtl_weights,
    pcgrad,
)
from famo_jax.metrics import delta_m, mean_rank
from famo_jax.weighting import (
    AmortizedMgdaState,
    DwaState,
    LsState,
    RlwState,
    SiState,
    StlState,
    UwState,
    amortized_mgda,
    dwa,
    ls,
    rlw,
    si,
    stl,
    uw,
)

__version__ = "0.1.0"

__all__ = [
    "AmortizedMgdaState",
    "CagradState",
    "DwaState",
    "FamoState",
    "GraddropState",
    "ImtlGState",
    "LsState",
    "MgdaState",
    "NashMtlState",
    "PcgradState",
    "RlwState",
    "SiState",
    "StlState",
    "UwState",
    "amortized_mgda",
    "cagrad",
    "cagrad_weights",
    "check_losses",
    "delta_m",
    "dwa",
    "famo",
    "graddrop",
    "imtl_g",
    "imtl_g_weights",
    "logits_optimizer",
    "loss_weights",
    "losses_and_grads",
    "ls",
    "mean_rank",
    "mgda",
    "mgda_weights",
    "nash_mtl",
    "nash_mtl_weights",
    "pcgrad",
    "rlw",
    "si",
    "stl",
    "task_weights",
    "update_logits",
    "uw",
    "weighted_loss",
]


def __getattr__(name: str) -> Any:
    if name != "TrainState":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from famo_jax.linen import TrainState

    return TrainState


def __dir__() -> list[str]:
    return [*globals(), "TrainState"]
