"""Set up before any test module is imported."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

if "PYTEST_XDIST_WORKER" in os.environ:
    # Each worker has one thread: more would only take turns on the same cores.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# The same examples in every run, and no time limit for one of them: a busy machine is no failure.
settings.register_profile("planish", deadline=None, derandomize=True, database=None)
settings.load_profile("planish")


# Helper modules of the tests are imported by their plain names.
sys.path.insert(0, str(Path(__file__).parent))


class RootIsNoTestPackage:
    """The root holds the facade's `__init__.py`; pytest would import it again under the name of the folder."""

    @pytest.hookimpl(tryfirst=True)
    def pytest_collect_directory(self, path: Path, parent: pytest.Collector) -> pytest.Collector | None:
        if path != Path(__file__).resolve().parents[1]:
            return None
        return pytest.Dir.from_parent(parent, path=path)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--regenerate-golden", action="store_true", help="write what passes now make of the golden programs"
    )


@pytest.fixture(scope="session", autouse=True)
def settings_of_nobody(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The user's own settings and list of trusted code are neither read nor changed."""
    before = os.environ.get("PLANISH_CONFIG_DIR")
    os.environ["PLANISH_CONFIG_DIR"] = str(tmp_path_factory.mktemp("settings"))
    yield
    if before is None:
        del os.environ["PLANISH_CONFIG_DIR"]
    else:
        os.environ["PLANISH_CONFIG_DIR"] = before


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(RootIsNoTestPackage())
