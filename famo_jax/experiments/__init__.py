"""What ``python -m famo_jax.experiments.NAME`` runs (extra ``experiments``).

A study is a *declaration*, a :class:`famo_jax.experiments._study.Study`: what is trained, what its
runs are summed up to, and how that is shown. Runs come first: ``runs.npz`` and ``study.json`` hold
them, and tables and pictures are made from these two files alone, at the end of a run or by
``--from``. What the studies share:

* ``problems``: tasks, data, networks, losses and metrics;
* ``make``: data that the project draws, in the formats of the large benchmarks;
* ``_methods``: the table of methods;
* ``_train``: the training of arms, a method at all its settings and seeds in one compiled call;
* ``_comparison``: a study that compares methods, by equal budgets and on seeds that chose nothing;
  ``_gains``: one of FAMO's forms with their controls on several problems;
* ``_files``, ``_checkpoint``: what is written and read;
* ``_statistics``, ``_tables``, ``_plots``: what is shown;
* ``_command``: the command line.
"""

import importlib.util

# What the command line itself needs. A study says what it needs besides, when it needs it.
_NEEDED = ("flax", "matplotlib", "rich")
_MISSING = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
if _MISSING:
    raise ImportError(
        f'{", ".join(_MISSING)} not found: pip install "famo_jax[experiments]" brings what the '
        "experiments need"
    )
