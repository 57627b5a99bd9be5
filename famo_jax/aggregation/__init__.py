r"""Aggregation methods: task-stacked gradients in, one gradient out.

**In a chain.** A method stands first, :func:`famo_jax.losses_and_grads` gives it what it needs, and
what follows it sees one gradient::

    tx = optax.chain(nash_mtl(), optax.adam(1e-3))
    losses, grads = losses_and_grads(losses_fn)(params, batch, state=opt_state)
    updates, opt_state = tx.update(grads, opt_state, params, losses=losses)

Task-stacked gradients have a leading axis of K on every leaf: in Optax's words per-element
gradients, the elements being the tasks, of which a method is an aggregator. So a method also stands
in the middle of ``optax.experimental.aggregating.process(preprocessor, method, postprocessor)``,
where the preprocessor may for example clip the gradient of each task.

**update.** ``update(updates, state, params=None, *, where=None, losses=None)`` returns one
gradient, without the axis of K, in the structure and the dtypes of the parameters. ``where`` are
the tasks present: one boolean, ``[K]``, or structured as ``losses``. Absent tasks weigh 0 and have
no say, whatever their gradients hold; with all absent the gradient is 0. A present gradient that is
not finite gives NaN.

**shared.** The leaves whose gradients decide: a pytree of booleans (a prefix of the parameters will
do) or a function of the parameters that returns one; by default all. The others, such as task
heads, get a gradient at the scale of the shared one: each method says which.

**Errors.** A ``ValueError`` where ``shared`` is no mask or does not fit, where the updates are not
task-stacked, and for arguments of the wrong kind.

**Precision.** All but GradDrop look at squared lengths: in float32 the norms of task gradients must
lie between about 1e-18 and 1e19, below which a gradient counts as zero and above which the result
is NaN.

``NAME_weights`` are the weights alone, from the Gram matrix :math:`G = J J^\top` of the task
gradients, ``[K, K]``. They are in at least float32, exactly 0 for absent tasks, and raise a
``ValueError`` where ``gram`` is not square or ``where`` of another length.
"""

from famo_jax.aggregation._aligned_mtl import AlignedMtlState, aligned_mtl, aligned_mtl_weights
from famo_jax.aggregation._cagrad import CagradState, cagrad, cagrad_weights
from famo_jax.aggregation._config import ConfigState, config, config_weights
from famo_jax.aggregation._db_mtl import DbMtlState, db_mtl
from famo_jax.aggregation._dualproj import DualprojState, dualproj, dualproj_weights
from famo_jax.aggregation._excess_mtl import ExcessMtlState, excess_mtl
from famo_jax.aggregation._fairgrad import FairgradState, fairgrad, fairgrad_weights
from famo_jax.aggregation._graddrop import GraddropState, graddrop
from famo_jax.aggregation._gradnorm import GradnormState, gradnorm
from famo_jax.aggregation._gradvac import GradvacState, gradvac
from famo_jax.aggregation._imtl_g import ImtlGState, imtl_g, imtl_g_weights
from famo_jax.aggregation._log_losses import LogLossesState, log_losses
from famo_jax.aggregation._mgda import MgdaState, mgda, mgda_weights
from famo_jax.aggregation._moco import MocoState, moco
from famo_jax.aggregation._nash_mtl import NashMtlState, nash_mtl, nash_mtl_weights
from famo_jax.aggregation._ntkmtl import NtkmtlState, ntkmtl, ntkmtl_weights
from famo_jax.aggregation._pcgrad import PcgradState, pcgrad
from famo_jax.aggregation._periodic import PeriodicState, periodic
from famo_jax.aggregation._upgrad import UpgradState, upgrad, upgrad_weights

__all__ = ["AlignedMtlState", "aligned_mtl", "aligned_mtl_weights"]
__all__ += ["CagradState", "cagrad", "cagrad_weights"]
__all__ += ["ConfigState", "config", "config_weights"]
__all__ += ["DbMtlState", "db_mtl"]
__all__ += ["DualprojState", "dualproj", "dualproj_weights"]
__all__ += ["ExcessMtlState", "excess_mtl"]
__all__ += ["FairgradState", "fairgrad", "fairgrad_weights"]
__all__ += ["GraddropState", "graddrop"]
__all__ += ["GradnormState", "gradnorm"]
__all__ += ["GradvacState", "gradvac"]
__all__ += ["ImtlGState", "imtl_g", "imtl_g_weights"]
__all__ += ["LogLossesState", "log_losses"]
__all__ += ["MgdaState", "mgda", "mgda_weights"]
__all__ += ["MocoState", "moco"]
__all__ += ["NashMtlState", "nash_mtl", "nash_mtl_weights"]
__all__ += ["NtkmtlState", "ntkmtl", "ntkmtl_weights"]
__all__ += ["PcgradState", "pcgrad"]
__all__ += ["PeriodicState", "periodic"]
__all__ += ["UpgradState", "upgrad", "upgrad_weights"]
