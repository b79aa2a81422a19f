"""Optuna's search space for ``ddpg_paper``. Needs rl_zoo3."""

from typing import Any

import optuna
from rl_zoo3.hyperparams_opt import sample_her_params

from ddpg_ext.zoo.hyperparameters import make_noise

NET_ARCHS = {"small": [64, 64], "medium": [256, 256], "paper": [400, 300]}
BATCH_NORMS = {"none": False, "actor": "actor", "critic": "critic", "both": True}


def sample_ddpg_paper_params(
    trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]
) -> dict[str, Any]:
    """Sample the hyperparameters of a trial, as the Zoo's samplers do."""
    sampled: dict[str, Any] = {
        "learning_rate": trial.suggest_float("learning_rate", 1e-5, 3e-3, log=True),
        "qf_learning_rate": trial.suggest_float("qf_learning_rate", 1e-4, 1e-2, log=True),
        "qf_weight_decay": trial.suggest_categorical("qf_weight_decay", [0.0, 1e-4, 1e-3, 1e-2]),
        "batch_norm": trial.suggest_categorical("batch_norm", list(BATCH_NORMS)),
        "net_arch": trial.suggest_categorical("net_arch", list(NET_ARCHS)),
        "batch_size_pow": trial.suggest_int("batch_size_pow", 4, 8),
        "one_minus_gamma": trial.suggest_float("one_minus_gamma", 1e-4, 0.1, log=True),
        "tau": trial.suggest_float("tau", 5e-4, 0.05, log=True),
        "noise_type": trial.suggest_categorical("noise_type", ["ornstein-uhlenbeck", "normal"]),
        "noise_std": trial.suggest_float("noise_std", 0.02, 0.6, log=True),
        # Only for Ornstein-Uhlenbeck noise; always sampled, because Optuna needs the same names in each trial
        "noise_dt": trial.suggest_categorical("noise_dt", [1.0, 0.1, 0.01]),
    }
    if additional_args["using_her_replay_buffer"]:
        # HerReplayBuffer has no n-step returns
        sampled = sample_her_params(trial, sampled, additional_args["her_kwargs"])
    else:
        sampled["n_steps"] = trial.suggest_int("n_steps", 1, 5)
    hyperparams = convert_ddpg_paper_params(sampled)
    for name in ("gamma", "batch_size"):
        trial.set_user_attr(name, hyperparams[name])
    return make_noise(hyperparams, (n_actions,))


def convert_ddpg_paper_params(sampled_params: dict[str, Any]) -> dict[str, Any]:
    """Convert a trial's parameters to keys of the hyperparameter file."""
    hyperparams = dict(sampled_params)
    hyperparams["batch_size"] = 2 ** hyperparams.pop("batch_size_pow")
    hyperparams["gamma"] = 1 - hyperparams.pop("one_minus_gamma")
    hyperparams["policy_kwargs"] = {
        "net_arch": list(NET_ARCHS[hyperparams.pop("net_arch")]),
        "batch_norm": BATCH_NORMS[hyperparams.pop("batch_norm")],
    }
    # null removes the entry's keys, because the trial was trained without them
    hyperparams |= {"noise_theta": None, "noise_schedule": None}
    if hyperparams["noise_type"] == "normal":
        hyperparams["noise_dt"] = None
    goals = {key: hyperparams.pop(key) for key in ("n_sampled_goal", "goal_selection_strategy") if key in hyperparams}
    if goals:  # from a loaded trial; the Zoo has already converted those of a new trial
        hyperparams["replay_buffer_kwargs"] = goals
    return hyperparams
