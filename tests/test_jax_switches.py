"""Training, evaluation, `load` and `mps` under JAX's switches, each in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

TESTS = Path(__file__).parent
# Two at once, where they are not about the same: a process compiles everything again.
SWITCHES = {
    "x64": {"JAX_ENABLE_X64": "1"},
    "debug_nans, 2 devices": {"JAX_DEBUG_NANS": "1", "devices": "2"},
    "strict dtype promotion, 8 devices": {
        "JAX_NUMPY_DTYPE_PROMOTION": "strict",
        "devices": "8",
    },
}


def run(folder: Path, switches: dict[str, str]) -> dict[str, list[float]]:
    """The numbers of `switches.py`."""
    environment = os.environ | switches
    flags = "--xla_backend_optimization_level=0 --xla_force_host_platform_device_count="
    environment["XLA_FLAGS"] = flags + environment.pop("devices", "1")
    environment["PYTHONPATH"] = f"{TESTS.parent}:{TESTS}"
    # compiled here and not read from a cache that another switch may have filled
    environment["JAX_ENABLE_COMPILATION_CACHE"] = "0"
    ended = subprocess.run(
        [sys.executable, TESTS / "switches.py", folder],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    return json.loads(ended.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """One device; rank promotion raises, which changes no number."""
    return run(tmp_path_factory.mktemp("plain"), {"JAX_NUMPY_RANK_PROMOTION": "raise"})


@pytest.mark.parametrize("name", SWITCHES)
def test_everything_runs_and_the_numbers_stay(name, plain, tmp_path):
    switched = run(tmp_path, SWITCHES[name])
    assert switched.pop("devices") == [float(SWITCHES[name].get("devices", 1))]
    for part, numbers in switched.items():
        np.testing.assert_allclose(numbers, plain[part], rtol=1e-5, atol=1e-5, err_msg=part)
