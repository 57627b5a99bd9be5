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
from famo_jax.weighting._imtl_l import ImtlLState, imtl_l
from famo_jax.weighting._ls import LsState, ls
from famo_jax.weighting._rlw import RlwState, rlw
from famo_jax.weighting._si import SiState, si
from famo_jax.weighting._stl import StlState, stl
from famo_jax.weighting._uw import UwState, uw

__all__ = ["AmortizedCagradState", "amortized_cagrad"]
__all__ += ["AmortizedMgdaState", "amortized_mgda"]
__all__ += ["AmortizedNashMtlState", "amortized_nash_mtl"]
__all__ += ["DwaState", "dwa"]
__all__ += ["FirstLossState", "first_loss"]
__all__ += ["ImtlLState", "imtl_l"]
__all__ += ["LsState", "ls"]
__all__ += ["RlwState", "rlw"]
__all__ += ["SiState", "si"]
__all__ += ["StlState", "stl"]
__all__ += ["UwState", "uw"]
