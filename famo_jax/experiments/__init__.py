"""What ``python -m famo_jax.experiments.NAME`` runs (extra ``experiments``)."""

import importlib.util

_MISSING = [
    name
    for name in ("flax", "matplotlib", "orbax", "rdkit", "rich", "sklearn")
    if importlib.util.find_spec(name) is None
]
if _MISSING:
    raise ImportError(
        f'{", ".join(_MISSING)} not found: pip install "famo_jax[experiments]" brings what the '
        "experiments need"
    )
