"""Hyperparameters of SB3's DDPG with the paper's noise, which the Zoo's YAML files cannot express."""

import numpy as np

from ddpg_ext import OrnsteinUhlenbeckNoise

hyperparams = {
    "Pendulum-v1": {
        "policy": "MlpPolicy",
        "learning_rate": 1e-3,
        "batch_size": 64,
        "tau": 1e-3,
        "action_noise": OrnsteinUhlenbeckNoise(np.zeros(1)),
    }
}
