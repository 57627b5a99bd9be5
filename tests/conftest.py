import shutil
import tempfile

import jax
import pytest

FOLDER = pytest.StashKey[str]()


def pytest_configure(config):
    """What one test compiles no other has to.

    Each process has a folder of its own, which those that it starts do not inherit: JAX writes
    entries in place, and would find but a part of one that is being written, or was when its
    process was killed.
    """
    if jax.__version_info__ < (0, 10):  # what 0.6 finds there computes another thing now and then
        return
    config.stash[FOLDER] = tempfile.mkdtemp()
    jax.config.update("jax_compilation_cache_dir", config.stash[FOLDER])


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
