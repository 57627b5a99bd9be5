import contextlib
import importlib
import io

import pytest

from famo_jax.experiments import _files


@pytest.fixture(scope="session")
def run_study():
    """Runs a study into a folder: what is printed, and the summary that it writes."""

    def run(name, folder, *arguments):
        module = importlib.import_module(f"famo_jax.experiments.{name}")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("COLUMNS", "80")
            with contextlib.redirect_stdout(io.StringIO()) as out:
                module.main([*arguments, "--out", str(folder)])
        return out.getvalue(), _files.read_summary(folder / f"{name}.json")["summary"]

    return run
