import os
import shutil
import tempfile

import jax
import pytest

CACHE = "jax_compilation_cache_dir"
FOLDER = pytest.StashKey[str]()


def pytest_configure(config):
    """What one test compiles, no other test and no process of one has to compile again."""
    if not hasattr(config, "workerinput") and CACHE.upper() not in os.environ:
        os.environ[CACHE.upper()] = config.stash[FOLDER] = tempfile.mkdtemp()
    jax.config.update(CACHE, os.environ[CACHE.upper()])


def pytest_unconfigure(config):
    if FOLDER in config.stash:
        shutil.rmtree(config.stash[FOLDER], ignore_errors=True)


@pytest.fixture
def x64():
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


@pytest.fixture
def debug_nans():
    jax.config.update("jax_debug_nans", True)
    yield
    jax.config.update("jax_debug_nans", False)


@pytest.fixture
def limit_files():
    """A function that keeps files from growing beyond a number of bytes, as a quota would."""
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    least = jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1e9)  # JAX's files are not ours
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", least)
