"""Sweeps on Ray: what is killed continues, and nothing that is finished is lost."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from ddpg_ext.zoo import sweep, sweep_run
from ddpg_ext.zoo.sweep_options import parse

pytest.importorskip("ray.tune")
pytestmark = pytest.mark.slow

#: environments that wait, 300 steps after they were made, for the file "go_1" or "go_2" in a folder
HELD = """
import os
import time
import gymnasium as gym
from gymnasium.envs.classic_control import PendulumEnv

class Held(PendulumEnv):
    n_steps = 0

    def __init__(self, number, **kwargs):
        super().__init__(**kwargs)
        self.number = number

    def step(self, action):
        self.n_steps += 1
        while self.n_steps >= 300 and not os.path.exists(f"{os.environ['HELD_FOLDER']}/go_{self.number}"):
            time.sleep(0.05)
        return super().step(action)

for number in (1, 2):
    gym.register(f"Held{number}-v0", Held, max_episode_steps=200, kwargs={"number": number})
"""
OPTIONS = ["--gym-packages", "held_envs", "--env", "Held1-v0", "Held2-v0", "-n", "600", "--snapshot-freq", "200"]
OPTIONS += ["--eval-freq", "300", "--eval-episodes", "1", "--final-episodes", "1"]
OPTIONS += ["-params", "policy:'MlpPolicy'", "buffer_size:500", "batch_size:8", "learning_starts:100"]
OPTIONS += ["policy_kwargs:dict(net_arch=[8,8])"]


def start(folder, *options):
    """Start the command as a user does."""
    command = [sys.executable, "-m", "ddpg_ext", "sweep", *OPTIONS, "-f", str(folder), *options]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def wait_for(condition, process):
    while not condition():
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.1)


def results(folder):
    return {path.parent.name: json.loads(path.read_text()) for path in folder.glob("*/*/result.json")}


def snapshots(folder):
    return list(folder.glob("*/*/snapshots/snapshot_*.zip"))


@pytest.fixture(scope="module")
def modules(tmp_path_factory):
    """A folder with the module of the environments, on the path of all processes."""
    folder = tmp_path_factory.mktemp("modules")
    (folder / "held_envs.py").write_text(HELD)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
        patch.syspath_prepend(str(folder))
        yield folder


@pytest.fixture
def gates(modules, tmp_path_factory, monkeypatch):
    """An empty folder, where "go_1" lets the first run end, and "go_2" the second."""
    folder = tmp_path_factory.mktemp("gates")
    monkeypatch.setenv("HELD_FOLDER", str(folder))
    return folder


@pytest.fixture(scope="module")
def undisturbed(modules, tmp_path_factory):
    """Weights of the runs without Ray and without a kill."""
    folder = tmp_path_factory.mktemp("undisturbed")
    for number in (1, 2):
        (folder / f"go_{number}").touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HELD_FOLDER", str(folder))
        for run in sweep.plan(parse(OPTIONS)):
            sweep_run.train(run, str(folder), lambda numbers: None)
    return {name: result["weights_sha256"] for name, result in results(folder).items()}


def test_the_driver_is_killed(tmp_path, undisturbed, gates):
    """The same command continues after SIGKILL and after SIGTERM."""
    options = ["--jobs", "2"]
    process = start(tmp_path, *options)
    wait_for(lambda: len({path.parent for path in snapshots(tmp_path)}) == 2, process)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not results(tmp_path)
    (gates / "go_1").touch()
    process = start(tmp_path, *options)
    wait_for(lambda: results(tmp_path), process)
    os.kill(process.pid, signal.SIGTERM)  # with a run that is finished
    output = process.communicate()[0]
    assert process.returncode == 130, output
    assert "the same command continues" in output
    before = results(tmp_path)
    assert [*before] == ["Held1-v0_seed0"]
    (gates / "go_2").touch()
    process = start(tmp_path, *options)
    output = process.communicate()[0]
    assert process.returncode == 0, output
    after = results(tmp_path)
    assert {name: after[name] for name in before} == before
    assert {name: result["weights_sha256"] for name, result in after.items()} == undisturbed
    assert {result["resumed"] for result in after.values()} == {"bit for bit"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ddpg_paper", "sweep.json"]


def test_a_node_dies(tmp_path, undisturbed, gates):
    """Its runs continue on another node."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        node = cluster.add_node(num_cpus=1)
        process = start(tmp_path, "--address", cluster.address)
        wait_for(lambda: len({path.parent for path in snapshots(tmp_path)}) == 2, process)
        cluster.remove_node(node, allow_graceful=False)
        for number in (1, 2):
            (gates / f"go_{number}").touch()
        output = process.communicate()[0]
        assert process.returncode == 0, output
    finally:
        cluster.shutdown()
    found = results(tmp_path)
    assert {name: result["weights_sha256"] for name, result in found.items()} == undisturbed
    assert "bit for bit" in {result["resumed"] for result in found.values()}


def test_a_run_that_raises_does_not_end_the_others(tmp_path):
    (tmp_path / "failing_envs.py").write_text(
        "import os\nimport gymnasium as gym\nfrom gymnasium.envs.classic_control import PendulumEnv\n"
        "class Failing(PendulumEnv):\n"
        "    def reset(self, **kwargs):\n"
        "        self.fails = getattr(self, 'fails', False) or kwargs.get('seed') == 1\n"
        "        return super().reset(**kwargs)\n"
        "    def step(self, action):\n"
        "        if self.fails:\n            raise RuntimeError(f'it fell, nice {os.nice(0)}')\n"
        "        return super().step(action)\n"
        "gym.register('Failing-v0', Failing, max_episode_steps=50)\n"
    )
    options = ["--env", "Failing-v0", "--gym-packages", "failing_envs", "-n", "50", "--seed", "1-2"]
    options += ["--eval-freq", "-1", "--jobs", "1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
        patch.setenv("RAY_memory_usage_threshold", "0.01")  # as if another program filled the memory
        process = start(tmp_path / "sweep", *options)
        output = process.communicate()[0]
    assert process.returncode == 1
    error = f"RuntimeError: it fell, nice {os.nice(0)}"  # the command's own
    assert output.splitlines()[-1].startswith("ddpg_ext sweep: 1 of the runs failed (ddpg_paper/Failing-v0_seed1)")
    assert f"Failing-v0_seed1  failed: {error}" in output
    assert re.search(r"Failing-v0_seed2 +50 steps +[\d,]+ steps/s  return +-[\d,.]+  finished", output)
    found = results(tmp_path / "sweep")
    assert found["Failing-v0_seed1"]["error"] == error
    assert "weights_sha256" in found["Failing-v0_seed2"]
