"""Several devices, and several processes: in children, since JAX looks for devices but once."""

import contextlib
import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[1]
TIME_LIMIT = 540  # seconds, for a child that hangs: it takes a minute


def start(*arguments, devices):
    """A child of this Python in which JAX finds so many devices."""
    environment = {key: value for key, value in os.environ.items() if "PYTEST" not in key} | {
        "JAX_PLATFORMS": "cpu",
        # Compiled programs are small and run briefly: not to optimize them halves the time.
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} "
        "--xla_backend_optimization_level=0",
    }
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-m", *map(str, arguments)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@contextlib.contextmanager
def children(*started):
    """Ends them all with the first that fails: it may be waited for by the others."""
    try:
        yield started
    finally:
        for child in started:
            child.kill()
            child.wait()


def output(child):
    text, _ = child.communicate(timeout=TIME_LIMIT)
    assert child.returncode == 0, text[-6000:]
    return text


def test_eight_devices():
    arguments = "pytest", "-q", "-p", "no:cacheprovider", "tests/devices/on_eight.py"
    with children(start(*arguments, devices=8)) as (child,):
        assert " passed" in output(child).splitlines()[-1]


@pytest.fixture
def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def test_several_processes(tmp_path, free_port):
    """Two with two devices each, and one with one device, train the same run."""

    def process(index, count, devices):
        path = tmp_path / f"{index}-of-{count}.npz"
        arguments = "tests.devices.process", index, count, free_port, path
        return start(*arguments, devices=devices), path

    runs = [process(0, 2, 2), process(1, 2, 2), process(0, 1, 1)]
    with children(*(child for child, _ in runs)) as started:
        seen = [output(child) for child in started]
    for text, expected in zip(
        seen, ("4 devices, 2 of", "4 devices, 2 of", "1 devices, 1 of"), strict=True
    ):
        assert f"{expected} them local" in text
    first, second, alone = (np.load(path) for _, path in runs)
    assert set(first) == set(second) == set(alone)
    assert len(alone) > 10
    for name, expected in alone.items():
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)
        atol = 1e-5 * np.max(np.abs(expected))
        np.testing.assert_allclose(first[name], expected, rtol=1e-5, atol=atol, err_msg=name)
