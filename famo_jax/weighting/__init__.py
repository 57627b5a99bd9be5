"""Weighting methods: from the losses alone to loss weights, at the cost of one backward pass.

A method stands anywhere in its chain, as a rule last, and hands the updates through untouched: its
state tells :func:`famo_jax.losses_and_grads` or :func:`famo_jax.weighted_loss` how to weigh::

    tx = optax.chain(optax.adam(1e-3), uw(3))
    losses, grads = losses_and_grads(losses_fn)(params, batch, state=opt_state)
    updates, opt_state = tx.update(grads, opt_state, params, losses=losses)

Under ``where`` the term of an absent task is dropped, and the others keep their weights.
"""

from famo_jax.weighting._amortized_cagrad import AmortizedCagradState, amortized_cagrad
from famo_jax.weighting._amortized_mgda import AmortizedMgdaState, amortized_mgda
from famo_jax.weighting._amortized_nash_mtl import AmortizedNashMtlState, amortized_nash_mtl
from famo_jax.weighting._dwa import DwaState, dwa
from famo_jax.weighting._first_loss import FirstLossState, first_loss
from famo_jax.weighting._gls import GlsState, gls
from famo_jax.weighting._go4align import Go4alignState, go4align
from famo_jax.weighting._imtl_l import ImtlLState, imtl_l
from famo_jax.weighting._ldc_mtl import LdcMtlState, ldc_mtl
from famo_jax.weighting._ls import LsState, ls
from famo_jax.weighting._relobralo import RelobraloState, relobralo
from famo_jax.weighting._rlw import RlwState, rlw
from famo_jax.weighting._si import SiState, si
from famo_jax.weighting._softadapt import SoftadaptState, softadapt
from famo_jax.weighting._stch import StchState, stch
from famo_jax.weighting._stl import StlState, stl
from famo_jax.weighting._uw import UwState, uw
from famo_jax.weighting._uw_so import UwSoState, uw_so

__all__ = ["AmortizedCagradState", "amortized_cagrad"]
__all__ += ["AmortizedMgdaState", "amortized_mgda"]
__all__ += ["AmortizedNashMtlState", "amortized_nash_mtl"]
__all__ += ["DwaState", "dwa"]
__all__ += ["FirstLossState", "first_loss"]
__all__ += ["GlsState", "gls"]
__all__ += ["Go4alignState", "go4align"]
__all__ += ["ImtlLState", "imtl_l"]
__all__ += ["LdcMtlState", "ldc_mtl"]
__all__ += ["LsState", "ls"]
__all__ += ["RelobraloState", "relobralo"]
__all__ += ["RlwState", "rlw"]
__all__ += ["SiState", "si"]
__all__ += ["SoftadaptState", "softadapt"]
__all__ += ["StchState", "stch"]
__all__ += ["StlState", "stl"]
__all__ += ["UwState", "uw"]
__all__ += ["UwSoState", "uw_so"]
