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


def _after_from(arguments):
    return arguments[arguments.index("--from") + 1 :] if "--from" in arguments else []
