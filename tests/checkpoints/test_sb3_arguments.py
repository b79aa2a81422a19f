"""Numbers and other arguments of SB3's models: they convert, or the error names argument, value and cure."""

import copy
from contextlib import nullcontext

import numpy as np
import pytest
import torch as th
from stable_baselines3 import DDPG
from stable_baselines3.common.noise import NormalActionNoise
from test_numbers import SMALL, WHOLE_ARGUMENTS, check_equal
from torch import nn
from toys import PointEnv

from ddpg_ext import CheckpointError, DDPGPaper, SnapshotCallback


@pytest.mark.parametrize(
    "kwargs",
    [
        {"learning_starts": 1e1, "verbose": False},
        {"learning_starts": 10.5},
        {"learning_starts": np.float32(10), "verbose": np.int64(0), "buffer_size": np.int64(60)},
        {"batch_size": np.int64(8), "tau": np.float32(0.5), "gamma": np.array(0.5), "learning_rate": np.float64(1e-3)},
        {"n_steps": np.int64(2), "gamma": np.float32(0.5), "gradient_steps": np.int64(2)},
        {"policy_kwargs": {"net_arch": [np.int64(5)] * 2, "optimizer_kwargs": {"eps": np.float64(1e-5)}}},
        {"action_noise": NormalActionNoise([0.0, 0.0], np.float32(0.1))},
    ],
    ids=str,
)
@pytest.mark.parametrize("how", ["zip", "live"])
def test_numbers_of_sb3_models(tmp_path, kwargs, how):
    theirs = DDPG("MlpPolicy", PointEnv(), **copy.deepcopy({**SMALL, "learning_starts": 10, **kwargs}))
    theirs.learn(5e1 + 0.5)
    theirs.save_replay_buffer(tmp_path / "buffer")
    if how == "zip":
        if "policy_kwargs" in kwargs:  # its optimiser has NumPy's number
            return
        theirs.save(tmp_path / "model")
        ours = DDPGPaper.load(tmp_path / "model", PointEnv())
    else:
        ours = DDPGPaper.from_sb3(theirs)
    ours.load_replay_buffer(tmp_path / "buffer")
    check_equal([ours], [*WHOLE_ARGUMENTS, "tau", "gamma", "learning_rate"])
    assert type(ours.learning_starts) is int
    ours.learn(30, callback=SnapshotCallback(tmp_path, every=20), reset_num_timesteps=False)
    ours.save(tmp_path / "ours")
    DDPGPaper.load(tmp_path / "ours").load_replay_buffer(tmp_path / "buffer")
    DDPGPaper.resume(tmp_path, PointEnv())


REFUSED = {"tau": (0, 0.5), "gamma": (1.5, 0.5), "learning_rate": (0.0, 0.5)}


@pytest.mark.parametrize("name", REFUSED)
def test_a_value_that_sb3_takes_is_named_with_the_cure(tmp_path, name):
    value, accepted = REFUSED[name]
    theirs = DDPG("MlpPolicy", PointEnv(), **{name: value}, **copy.deepcopy(SMALL))
    theirs.save(tmp_path / "model")
    cure = rf"`{name}` must .* got {value}; custom_objects={{'{name}': ...}}"
    with pytest.raises(CheckpointError, match=cure) as told:
        DDPGPaper.load(tmp_path / "model")
    assert type(told.value) is CheckpointError  # nothing is damaged
    assert getattr(DDPGPaper.load(tmp_path / "model", custom_objects={name: accepted}), name) == accepted
    with pytest.raises(CheckpointError, match=rf"got {value}; set the SB3 model's `{name}`"):
        DDPGPaper.from_sb3(theirs)
    setattr(theirs, name, accepted)
    assert getattr(DDPGPaper.from_sb3(theirs), name) == accepted


def test_a_part_that_sb3_takes_is_named_with_the_cure():
    theirs = DDPG("MlpPolicy", PointEnv(), policy_kwargs={"activation_fn": lambda: nn.ReLU()}, buffer_size=9)
    with pytest.raises(CheckpointError, match=r"`activation_fn` must .*; set the SB3 model's `policy_kwargs`"):
        DDPGPaper.from_sb3(theirs)


SB3_ONLY = [
    ({"learning_starts": -5}, {"learning_starts": 0}),
    ({"gradient_steps": -7}, {"gradient_steps": -1}),
    ({"policy_kwargs": {"net_arch": (5, 4), "normalize_images": 1}}, {}),
    ({"policy_kwargs": {"net_arch": [5], "optimizer_kwargs": {"weight_decay": 0.25}}}, {"qf_weight_decay": 0.25}),
    ({"policy_kwargs": {"net_arch": [5], "optimizer_class": th.optim.AdamW}}, {"qf_weight_decay": 0.01}),
    ({"policy_kwargs": {"net_arch": [5], "optimizer_class": th.optim.Rprop}}, {"qf_weight_decay": 0.0}),
]


@pytest.mark.parametrize(("kwargs", "expected"), SB3_ONLY, ids=str)
@pytest.mark.parametrize("how", ["zip", "live"])
def test_arguments_that_only_sb3_takes(tmp_path, kwargs, expected, how):
    if isinstance(kwargs.get("policy_kwargs", {}).get("net_arch"), tuple):
        kwargs = {"policy_kwargs": {**kwargs["policy_kwargs"], "net_arch": {"pi": (5, 4), "qf": (5, 4)}}}
    theirs = DDPG("MlpPolicy", PointEnv(), **copy.deepcopy({**SMALL, "learning_starts": 10, **kwargs})).learn(30)
    theirs.save(tmp_path / "theirs")
    ours = DDPGPaper.from_sb3(theirs) if how == "live" else DDPGPaper.load(tmp_path / "theirs", PointEnv())
    assert {name: getattr(ours, name) for name in expected} == expected
    observations = PointEnv().observation_space.sample()
    np.testing.assert_allclose(ours.predict(observations)[0], theirs.predict(observations)[0], atol=1e-6)
    ours.save(tmp_path / "ours")
    loaded = DDPGPaper.load(tmp_path / "ours", PointEnv())
    decays = [
        [getattr(model, name).optimizer.param_groups[0].get("weight_decay", 0.0) for name in ("actor", "critic")]
        for model in (ours, loaded)
    ]
    assert decays == [[0.0, expected.get("qf_weight_decay", 0.0)]] * 2
    for model in (ours, loaded):
        with pytest.warns(match="without the weight decay of its actor") if any(decays[0]) else nullcontext():
            model.learn(20)
