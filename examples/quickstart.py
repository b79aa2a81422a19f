"""
Train DDPG on Pendulum-v1, keep the best agent, evaluate it, and record it.

    python examples/quickstart.py           # 20,000 steps, one to four minutes
    python examples/quickstart.py 2000      # a short try
"""

import sys

from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from ddpg_ext import DDPGPaper, record_episode

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000
folder = "runs/quickstart"
env = make_vec_env("Pendulum-v1", seed=0)
eval_env = make_vec_env("Pendulum-v1", n_envs=10, seed=1000)

# The defaults are the paper's settings
model = DDPGPaper("MlpPolicy", env, seed=0)

# Every 1,000 steps, play 10 episodes without noise. All returns go to evaluations.npz, the best agent to best_model.zip
evaluation = EvalCallback(eval_env, n_eval_episodes=10, eval_freq=1_000, log_path=folder, best_model_save_path=folder)
model.learn(steps, callback=evaluation)
model.save(f"{folder}/Pendulum-v1")

print("Evaluating over 100 episodes, and recording one")
mean, std = evaluate_policy(model, eval_env, n_eval_episodes=100)
print(f"Mean return over 100 episodes without noise: {mean:.1f} +/- {std:.1f}")
print("A random agent has about -1,200, a good one -150 to -170.")

record_episode(model, "Pendulum-v1", f"{folder}/agent.gif")
print(f"{folder}/agent.gif shows the agent; `python -m ddpg_ext plot {folder}` draws the learning curve")
print(f"`python -m ddpg_ext enjoy --folder {folder}` opens a window with the agent (extra `zoo`)")
