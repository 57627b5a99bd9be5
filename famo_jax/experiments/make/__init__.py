"""Data that the project draws itself, in the formats of NYU-v2, CityScapes and CelebA.

``python -m famo_jax.experiments.make NAME --out FOLDER`` writes them: rooms, streets, faces.
"""
