"""Shared fixtures: where real data lies, and strict numerics for the whole session."""

import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

# Tests compile far more than they compute: without LLVM's optimisation they take a third of the
# time. It must be set before jax is imported.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0"

import jax
import pytest

from experiments import demo as browser

if TYPE_CHECKING:
    from bucket_server import Failing
    from playwright.sync_api import Page

jax.config.update("jax_numpy_rank_promotion", "raise")
# virtual devices, so that sharding is tested where there is one CPU
jax.config.update("jax_num_cpu_devices", 4)


def pytest_configure(config: pytest.Config) -> None:
    """Compile each program once, the small ones too: a session and its commands share them."""
    folder = str(config.cache.mkdir("xla"))
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    # commands that tests start share it
    os.environ["JAX_COMPILATION_CACHE_DIR"] = folder
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"


def _external(name: str) -> Path:
    """Real photos and CLIP files are not ours to ship: `OTSEG_TEST_DATA` says where they are."""
    root = os.environ.get("OTSEG_TEST_DATA", "")
    if root and (Path(root) / name).is_dir():
        return Path(root) / name
    message = f"OTSEG_TEST_DATA={root!r} holds no folder {name!r} (real photos or CLIP files)"
    if os.environ.get("CI", "").lower() == "true":
        pytest.fail(f"{message}: it must be there in CI")
    pytest.skip(message)


@pytest.fixture(scope="session")
def photos() -> Path:
    """Folder of the real photo samples: voc2012_mini, cocostuff_sample21, ade_sample3."""
    return _external("data")


@pytest.fixture(scope="session")
def clip_files() -> Path:
    """Folder of the real CLIP tokenizer, position embedding and text embeddings."""
    return _external("clip")


@pytest.fixture
def tab() -> "Iterator[Page]":
    """An empty tab of Chromium."""
    for what, there in (
        ("Chromium (apt-get install chromium)", browser.CHROMIUM),
        ("Playwright (pip install playwright)", find_spec("playwright")),
    ):
        if not there:
            missing(what)
    with browser.opened() as page:
        yield page


@pytest.fixture
def server(tmp_path: Path) -> "Iterator[Failing]":
    """A stand-in of S3 with one empty bucket."""
    from bucket_server import serve  # which needs `missing`

    with serve(tmp_path / "cache") as failing:
        yield failing


def missing(what: str) -> NoReturn:
    """What the tests' extra or the system lacks: a failure in CI, elsewhere a reason to skip."""
    if os.environ.get("CI", "").lower() == "true":
        pytest.fail(f"{what} must be there in CI")
    pytest.skip(f"{what} is not installed")
