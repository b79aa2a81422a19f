"""Every example in short form: it runs, prints what it should, and leaves its files."""

import base64
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch as th
from PIL import Image
from stable_baselines3.common.env_util import make_vec_env

from ddpg_ext import DDPGPaper, load_zoo_run

EXAMPLES = Path(__file__).parents[2] / "examples"
NUMBER = r"-?\d+\.\d"


def test_quickstart(example, tmp_path):
    text = example("quickstart", 1_050)
    assert re.search(rf"Mean return over 100 episodes without noise: {NUMBER} \+/- {NUMBER}", text)
    folder = tmp_path / "runs" / "quickstart"
    assert {path.name for path in folder.iterdir()} == {
        *("best_model.zip", "evaluations.npz", "Pendulum-v1.zip", "agent.gif")
    }
    model, _ = load_zoo_run(folder)
    assert (model.num_timesteps, model.tau) == (1_000, 1e-3)
    assert 25 <= len((EXAMPLES / "quickstart.py").read_text().splitlines()) <= 40


@pytest.mark.parametrize("name", ["tutorial", "callbacks"])
def test_ctrl_c_keeps_the_agent(name, interrupt_at_100, example, tmp_path):
    example(name, *(["--eval-episodes", 1] if name == "tutorial" else []))
    assert DDPGPaper.load(tmp_path / "runs" / name / "Pendulum-v1.zip").num_timesteps == 101


def test_ctrl_c_in_a_terminal_keeps_the_agent_of_parallel_environments(tmp_path):
    """The signal goes to all processes. Those of the environments live until the model is saved."""
    source = (
        "import os, runpy, signal, sys\nfrom ddpg_ext import DDPGPaper\n"
        "step, save = DDPGPaper._store_transition, DDPGPaper.save\n"
        "def store_transition(self, *args, **kwargs):\n"
        "    if self.num_timesteps == 100:\n        os.killpg(0, signal.SIGINT)\n"
        "    step(self, *args, **kwargs)\n"
        "def interrupted_save(self, *args, **kwargs):\n"
        "    os.killpg(0, signal.SIGINT)\n    save(self, *args, **kwargs)\n"
        "DDPGPaper._store_transition, DDPGPaper.save = store_transition, interrupted_save\n"
        f"sys.path.insert(0, {str(EXAMPLES)!r})\n"
        f"sys.argv = ['parallel_envs', '--steps', '1000000', '--n-envs', '2', '--runs', {str(tmp_path)!r}]\n"
        f"runpy.run_path({str(EXAMPLES / 'parallel_envs.py')!r}, run_name='__main__')\n"
    )
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(EXAMPLES.parent)}
    command = [sys.executable, "-c", source]
    result = subprocess.run(command, capture_output=True, text=True, env=environ, start_new_session=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert "102 steps in 2 environments" in result.stdout
    assert "Traceback" not in result.stderr
    assert DDPGPaper.load(tmp_path / "parallel_envs.zip").num_timesteps == 102


def test_tutorial(example, tmp_path):
    text = example("tutorial", "--steps", 510, "--eval-episodes", 2)
    # The first ten episodes of 50 steps
    assert re.search(rf"step 500: mean return of 10 episodes {NUMBER}, best {NUMBER}", text)
    assert "-170.6" in text
    for actor in ("last", "best"):
        assert re.search(rf"Mean return of the {actor} actor, 2 episodes without noise: {NUMBER}", text)
    folder = tmp_path / "runs" / "tutorial"
    with Image.open(folder / "live.png") as image:
        assert image.width > 500
    assert list(folder.glob("tensorboard/*/events*"))
    # The best actor is from the end of the best episode, and loads without the script
    returns = [float(line.split(",")[0]) for line in (folder / "0.monitor.csv").read_text().splitlines()[2:]]
    best, _ = load_zoo_run(folder, checkpoint="best")
    assert best.num_timesteps == 50 * (int(np.argmax(returns)) + 1)
    assert (best.batch_size, best.tau, best.gamma, best.qf_weight_decay) == (64, 1e-3, 0.99, 0)
    assert (best.learning_rate, best.qf_learning_rate, best.buffer_size) == (1e-4, 1e-3, 1_000_000)
    assert (best.policy.batch_norm, best.policy.net_arch) == (False, [400, 300])


def test_the_tutorials_noise_continues_over_the_ends_of_episodes(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import tutorial

    noise = tutorial.UnendingNoise(np.zeros(2), dt=1e-2, seed=0)
    assert (noise.noise_prev == 0).all()
    before = [noise() for _ in range(10)][-1]
    noise.reset()
    assert (noise.noise_prev.astype(np.float32) == before).all()
    # It changes by one step of the process, which is small
    assert np.abs(noise() - before).max() < 5 * 0.2 * 0.1


def test_callbacks(example, tmp_path):
    text = example("callbacks", "--steps", 400, "--eval-freq", 20, "--threshold", -5_000)
    # Any mean return is above -5,000, so training stops at the first evaluation
    assert "20 steps of at most 400" in text
    text = example("callbacks", "--steps", 100, "--eval-freq", 50, "--threshold", 1, "--folder", "other")
    assert "100 steps of at most 100" in text
    names = {"best_model.zip", "evaluations.npz", "live.png", "rl_model_50_steps.zip", "rl_model_100_steps.zip"}
    names |= {"q_values_100_steps.png", "q_values_100_steps.npz"}
    assert names <= {path.name for path in (tmp_path / "other").iterdir()}


def test_custom_network(example, tmp_path):
    text = example("custom_network", "--steps", 100, "--runs", tmp_path)
    assert re.search(rf"Mean return over 20 episodes without noise: {NUMBER}", text)
    # 3 components and 6 products; two layers of 64 and their normalisation, one action
    assert f"actor: {2 * 9 + (9 * 64 + 64) + 2 * 64 + (64 * 64 + 64) + 2 * 64 + 65:,} parameters" in text
    assert (tmp_path / "custom_network.zip").is_file()
    import custom_network

    space = make_vec_env("Pendulum-v1").observation_space
    features = custom_network.WithProducts(space, scale=0.5)(th.tensor([[2.0, 3.0, 5.0]]))
    assert features.tolist() == [[2, 3, 5, 2, 3, 5, 4.5, 7.5, 12.5]]


@pytest.mark.parametrize("option", [[], ["--no-her"]])
def test_her_goal_env(option, example, tmp_path):
    text = example("her_goal_env", "--steps", 120, "--runs", tmp_path, *option)
    assert re.search(r"step 120: \d+% of the goals reached", text)
    assert (tmp_path / "her_goal_env.zip").is_file()


@pytest.mark.parametrize("name", ["adapt_your_buffer", "prioritized_replay"])
def test_replay_buffers(name, example):
    assert "Mean return" in example(name, "--steps", 120)


def test_vec_normalize(example, tmp_path):
    text = example("vec_normalize", "--steps", 400)
    assert re.search(rf"with the statistics: {NUMBER}", text)
    folder = tmp_path / "runs" / "vec_normalize"
    assert {path.name for path in folder.iterdir()} == {"Pendulum-v1.zip", "vecnormalize.pkl"}


def test_parallel_envs(example, tmp_path):
    text = example("parallel_envs", "--steps", 200, "--n-envs", 2, "--runs", tmp_path)
    # The first minibatch of 64 is complete after 32 steps of both; from then on two updates per step of both
    assert f"200 steps in 2 environments, {200 - 62} gradient steps" in text
    assert DDPGPaper.load(tmp_path / "parallel_envs.zip").num_timesteps == 200


def test_onnx_export(example, tmp_path):
    for package in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(package)
    text = example("onnx_export", "--steps", 100, "--runs", tmp_path)
    assert float(re.search(r"Largest difference .*: (\S+) of", text)[1]) < 1e-5
    assert re.search(rf"Return of an episode played by onnxruntime: {NUMBER}", text)


def test_resume_after_kill_and_load_zoo_agent(example, tmp_path):
    text = example("resume_after_kill", "--steps", 250, "--every", 100, "--folder", "run")
    assert "Starting from the beginning" in text
    text = example("resume_after_kill", "--steps", 450, "--every", 100, "--folder", "run")
    # A snapshot is taken at the end of an episode
    assert "Resuming after 200 steps" in text
    DDPGPaper("MlpPolicy", "Pendulum-v1").learn(70).save(tmp_path / "Pendulum-v1.zip")
    text = example("load_zoo_agent", "Pendulum-v1.zip", "--episodes", 1, "--train", 70)
    assert "trained for 70 steps" in text
    assert re.search(rf"After 70 more steps: {NUMBER}", text)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "module", "n_actions"),
    [("pendulum_from_pixels", "pygame", 1), ("car_racing", "Box2D", 2), ("dmc_cartpole_pixels", "dm_control", 1)],
)
def test_from_pixels(script, module, n_actions, tmp_path, monkeypatch):
    """In a process of its own: renderers of several libraries in one process disturb each other."""
    pytest.importorskip(module)
    monkeypatch.delenv("DISPLAY", raising=False)
    arguments = ["--timesteps", "25", "--episodes", "1", "--save", "model"]
    path = str(EXAMPLES / f"{script}.py")
    source = (  # with episodes of 60 steps instead of 1,000
        "import runpy, sys\nimport gymnasium as gym\n"
        "for spec in gym.registry.values():\n    spec.max_episode_steps = 60\n"
        f"sys.argv = {[path, *arguments]!r}\nrunpy.run_path({path!r}, run_name='__main__')\n"
    )
    done = subprocess.run([sys.executable, "-c", source], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    text = done.stdout
    assert re.search(r"Mean return over 1 episodes without noise: -?\d", text)
    model = DDPGPaper.load(tmp_path / "model", device="cpu")
    assert model.num_timesteps == 25
    assert model.predict(np.zeros((9, 64, 64), np.uint8))[0].shape == (n_actions,)


def test_every_example_is_in_the_gallery():
    gallery = (EXAMPLES.parent / "docs/guide/examples.md").read_text(encoding="utf-8")
    scripts = [path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".ipynb")]
    assert [name for name in scripts if f"examples/{name}" not in gallery] == []


NOTEBOOK = Path(__file__).parents[2] / "examples/ddpg_paper.ipynb"


def test_stored_with_small_outputs():
    assert NOTEBOOK.stat().st_size < 500_000
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == [*range(1, len(code) + 1)]
    assert all(cell["outputs"] for cell in code[1:])
    kinds = {kind for cell in code for output in cell["outputs"] for kind in output.get("data", {})}
    assert kinds == {"image/png", "image/gif", "text/plain"}


def test_runs_from_top_to_bottom(tmp_path, monkeypatch):
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("DDPG_STEPS", "250")
    monkeypatch.delenv("MPLBACKEND", raising=False)  # the notebook's own shows figures
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()

    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert [output for output in outputs if output.output_type == "error"] == []
    # Curves of training, the critic's values and the animation are images
    images = [output.data["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    assert len(images) == 2
    assert all(base64.b64decode(image).startswith(b"\x89PNG") for image in images)
    animations = [output.data["image/gif"] for output in outputs if "image/gif" in output.get("data", {})]
    assert base64.b64decode(animations[0]).startswith(b"GIF89a")
    text = "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")
    assert "Mean return over 20 episodes without noise" in text
    same = text[text.index("the same action:") :].split("[")
    assert same[1].split("]")[0] == same[2].split("]")[0]
