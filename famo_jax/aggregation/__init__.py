"""Methods that combine the gradients of the tasks: task-stacked gradients in, one gradient out.

All but GradDrop look at squared lengths: in float32 the norms of task gradients must lie between
about 1e-18 and 1e19, below which a gradient counts as zero and above which the result is NaN.
"""

from famo_jax.aggregation._cagrad import CagradState, cagrad, cagrad_weights
from famo_jax.aggregation._graddrop import GraddropState, graddrop
from famo_jax.aggregation._imtl_g import ImtlGState, imtl_g, imtl_g_weights
from famo_jax.aggregation._mgda import MgdaState, mgda, mgda_weights
from famo_jax.aggregation._nash_mtl import NashMtlState, nash_mtl, nash_mtl_weights
from famo_jax.aggregation._pcgrad import PcgradState, pcgrad

__all__ = [
    "CagradState",
    "GraddropState",
    "ImtlGState",
    "MgdaState",
    "NashMtlState",
    "PcgradState",
    "cagrad",
    "cagrad_weights",
    "graddrop",
    "imtl_g",
    "imtl_g_weights",
    "mgda",
    "mgda_weights",
    "nash_mtl",
    "nash_mtl_weights",
    "pcgrad",
]
