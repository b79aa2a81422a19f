"""The examples from pixels, in short form: they run as they stand, save a model, and it can be loaded."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ddpg_ext import DDPGPaper

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("script", "module", "n_actions"),
    [("pendulum_from_pixels", "pygame", 1), ("car_racing", "Box2D", 2), ("dmc_cartpole_pixels", "dm_control", 1)],
)
def test_example(script, module, n_actions, tmp_path):
    pytest.importorskip(module)
    result = subprocess.run(
        [
            sys.executable,
            str(ROOT / f"examples/{script}.py"),
            "--timesteps",
            "25",
            "--episodes",
            "1",
            "--save",
            str(tmp_path / "model"),
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        # No display; a second thread would wait for the test process's
        env={**os.environ, "OMP_NUM_THREADS": "1", "DISPLAY": ""},
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    assert re.search(r"Mean return over 1 episodes without noise: -?\d", result.stdout)
    model = DDPGPaper.load(tmp_path / "model", device="cpu")
    assert model.num_timesteps == 25
    action, _ = model.predict(np.zeros((9, 64, 64), np.uint8))
    assert action.shape == (n_actions,)
