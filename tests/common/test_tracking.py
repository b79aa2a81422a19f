"""All that the callbacks measure reaches TensorBoard and Weights & Biases, through SB3's logger."""

import os
import subprocess
import sys
import textwrap

import pytest
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.monitor import Monitor
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from toy_envs import ToyEnv

from ddpg_ext import DDPGPaper, LivePlotCallback, QValueBiasCallback, SaturationMonitor

NAMES = {
    *("train/critic_loss", "train/actor_loss", "train/q_mean", "train/target_q_mean", "train/action_saturation"),
    *("train/learning_rate", "train/qf_learning_rate", "train/noise_scale", "train/actor_grad_norm"),
    *("eval/q_bias", "eval/q_correlation", "eval/q_estimated", "eval/q_observed", "eval/q_missing"),
    *("rollout/ep_rew_mean", "rollout/ep_len_mean", "time/fps"),
}


def test_tensorboard_has_it_all(tmp_path):
    model = DDPGPaper("MlpPolicy", ToyEnv(), batch_size=8, buffer_size=100, tensorboard_log=str(tmp_path), seed=0)
    callbacks = [
        EvalCallback(Monitor(ToyEnv()), eval_freq=40, n_eval_episodes=2, verbose=0),
        LivePlotCallback(tmp_path / "curves.png", every=1000),
        QValueBiasCallback(ToyEnv(), every=40, n_eval_episodes=2),
        SaturationMonitor(every=20),
    ]
    model.learn(120, callback=callbacks, log_interval=2)
    model.logger.close()
    events = EventAccumulator(str(tmp_path / "DDPGPaper_1"))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {*NAMES, "eval/mean_reward", "eval/mean_ep_length"}
    assert [scalar.step for scalar in events.Scalars("eval/q_bias")] == [40, 80, 120]


def test_weights_and_biases_has_it_all(tmp_path):
    """Offline, with a process of its own, since wandb hooks into TensorBoard for the rest of a process."""
    pytest.importorskip("wandb")
    script = """
        import wandb
        from toy_envs import ToyEnv
        from ddpg_ext import DDPGPaper, QValueBiasCallback, SaturationMonitor

        run = wandb.init(project="test", mode="offline", sync_tensorboard=True, dir=".")
        model = DDPGPaper("MlpPolicy", ToyEnv(), batch_size=8, buffer_size=100, tensorboard_log="tensorboard", seed=0)
        callbacks = [SaturationMonitor(every=20), QValueBiasCallback(ToyEnv(), every=40, n_eval_episodes=1)]
        model.learn(90, callback=callbacks)
        model.logger.close()
        run.finish()
    """
    environment = {**os.environ, "WANDB_SILENT": "true", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([os.environ["PYTHONPATH"], os.path.dirname(__file__) + "/../helpers"])
    command = [sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    content = file.read_bytes()
    assert {name for name in NAMES if name.encode() not in content} == set()
