"""The packages of a wheel; pyproject.toml has everything else.

The experiment files in configs/ become janus_jax/experiments/configs/. That folder holds nothing but `configs`, so
that they import each other as `from configs import recipes` there too (janus_jax/command_line.py).
"""

from setuptools import find_packages, setup

EXPERIMENTS = "janus_jax.experiments.configs"

setup(packages=[*find_packages(include=["janus_jax*"]), EXPERIMENTS], package_dir={EXPERIMENTS: "configs"})
