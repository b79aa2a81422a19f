"""
Train, save and load your own networks: a features extractor, other widths for actor and critic, another activation.

    python examples/custom_network.py                   # Pendulum-v1, 10,000 steps, one or two minutes

Ends at a mean return of -146 (seed 0, one thread of an AMD EPYC).
"""

import argparse
from pathlib import Path

import torch as th
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

from ddpg_ext import DDPGPaper


class WithProducts(BaseFeaturesExtractor):
    """
    Add the products of all pairs of components to the observation, like the features of a quadratic regulator.

    :param observation_space: a Box, shape ``(n,)``
    :param scale: factor on the products
    """

    rows: th.Tensor
    columns: th.Tensor

    def __init__(self, observation_space: spaces.Box, scale: float = 1.0) -> None:
        n = observation_space.shape[0]
        super().__init__(observation_space, features_dim=n + n * (n + 1) // 2)
        self.scale = scale
        rows, columns = th.triu_indices(n, n)
        # Buffers go to the model's device and into its file, like weights
        self.register_buffer("rows", rows)
        self.register_buffer("columns", columns)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        products = observations[:, self.rows] * observations[:, self.columns]
        return th.cat([observations, self.scale * products], dim=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10_000, help="environment steps to train for (10,000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder for the model (runs/)")
    args = parser.parse_args()

    model = DDPGPaper(
        "MlpPolicy",
        make_vec_env("Pendulum-v1", seed=args.seed),
        learning_rate=1e-3,
        tau=5e-3,
        policy_kwargs={
            "features_extractor_class": WithProducts,
            "features_extractor_kwargs": {"scale": 0.5},
            "net_arch": {"pi": [64, 64], "qf": [128, 128, 128]},
            "activation_fn": nn.ELU,
            "batch_norm": "actor",  # or True, False, "critic"
            "action_layer": 2,  # hidden layer of the critic, of three, at which the action enters
        },
        seed=args.seed,
    )
    print(model.actor)
    for name in ("actor", "critic"):
        print(f"{name}: {sum(parameter.numel() for parameter in getattr(model, name).parameters()):,} parameters")
    print(f"executor: {model.executor}, because the fast one supports only the layers of the paper")
    model.learn(args.steps)
    model.save(args.runs / "custom_network.zip")

    # Loading executes no code in the file, so your own class must be allowed
    loaded = DDPGPaper.load(args.runs / "custom_network.zip", allow=[WithProducts])
    mean, std = evaluate_policy(
        loaded, make_vec_env("Pendulum-v1", n_envs=10, seed=args.seed + 1000), n_eval_episodes=20
    )
    print(f"Mean return over 20 episodes without noise: {mean:.1f} +/- {std:.1f}")


if __name__ == "__main__":
    main()
