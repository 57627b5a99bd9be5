"""Weighting methods: from the losses alone to loss weights, at the cost of one backward pass."""

from famo_jax.weighting._amortized_mgda import AmortizedMgdaState, amortized_mgda
from famo_jax.weighting._dwa import DwaState, dwa
from famo_jax.weighting._ls import LsState, ls
from famo_jax.weighting._rlw import RlwState, rlw
from famo_jax.weighting._si import SiState, si
from famo_jax.weighting._stl import StlState, stl
from famo_jax.weighting._uw import UwState, uw

__all__ = [
    "AmortizedMgdaState",
    "DwaState",
    "LsState",
    "RlwState",
    "SiState",
    "StlState",
    "UwState",
    "amortized_mgda",
    "dwa",
    "ls",
    "rlw",
    "si",
    "stl",
    "uw",
]
