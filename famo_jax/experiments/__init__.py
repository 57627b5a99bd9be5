"""What ``python -m famo_jax.experiments.NAME`` runs (extra ``experiments``)."""
