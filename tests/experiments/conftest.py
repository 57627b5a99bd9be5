import argparse
import contextlib
import importlib
import io

import pytest

from famo_jax.experiments import _files


@pytest.fixture(scope="session")
def run_study():
    """Runs a study into a folder: what is printed, and the summary with its curves."""

    def run(name, folder, *arguments):
        module = importlib.import_module(f"famo_jax.experiments.{name}")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("COLUMNS", "80")
            with contextlib.redirect_stdout(io.StringIO()) as out:
                module.main([*arguments, "--out", str(folder)])
        read = [folder.parent / each for each in _after_from(arguments)] or [folder]
        (runs, *_) = _files.read(argparse.ArgumentParser(), name, read).values()
        return out.getvalue(), _files.plain(module.STUDY.summarize(runs))

    return run


@pytest.fixture(scope="session")
def as_if_real(run_study, tmp_path_factory):
    """Reads a run on drawings as if they were the real data: what is printed, and the summary."""

    def read(name, folder):
        copy = tmp_path_factory.mktemp("real")
        for file in (_files.RUNS, _files.STUDY):
            content = (folder / file).read_bytes()
            (copy / file).write_bytes(content.replace(b'"made": true', b'"made": false'))
        return run_study(name, tmp_path_factory.mktemp("shown"), "--from", str(copy))

    return read


def _after_from(arguments):
    return arguments[arguments.index("--from") + 1 :] if "--from" in arguments else []
