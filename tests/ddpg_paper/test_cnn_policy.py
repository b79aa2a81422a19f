"""CnnPolicy: the paper's networks for pixels, from the first action to the loaded file."""

import warnings

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize, VecTransposeImage, unwrap_vec_wrapper
from toys import ChaosEnv, same, weights

from ddpg_ext import DDPGPaper, UnsupportedSpaceError
from ddpg_ext.buffers import PackedReplayBuffer
from ddpg_ext.common.cnn import PaperCNN
from ddpg_ext.ddpg_paper.policies import CnnPolicy

PIXELS = spaces.Box(0, 255, (64, 64, 9), np.uint8)
SMALL = spaces.Box(0, 255, (20, 24, 3), np.uint8)


def model_of(space=SMALL, n_actions=2, **kwargs):
    env = ChaosEnv(space, spaces.Box(-1, 1, (n_actions,), np.float32))
    return DDPGPaper("CnnPolicy", env, **{"buffer_size": 60, "seed": 0, "device": "cpu", **kwargs})


def n_parameters(network):
    return sum(param.numel() for param in network.parameters())


def test_settings_of_the_paper():
    model = model_of(PIXELS)
    assert type(model.policy) is CnnPolicy
    assert (model.batch_size, model.learning_starts) == (16, 15)
    assert not any(isinstance(module, th.nn.modules.batchnorm._BatchNorm) for module in model.policy.modules())
    assert n_parameters(model.actor) == 423_728 + 201 * 2
    assert n_parameters(model.critic) == 423_929 + 200 * 2
    widths = [m.out_features for m in model.actor.modules() if isinstance(m, th.nn.Linear)]
    assert widths == [200, 200, 2]
    extractors = [n.features_extractor for n in (model.actor, model.critic, model.actor_target, model.critic_target)]
    assert len({id(extractor) for extractor in extractors}) == 4
    assert {type(extractor) for extractor in extractors} == {PaperCNN}
    # Actor and critic see the same with different convolutions; targets start as copies
    assert not th.equal(extractors[0].cnn[0].weight, extractors[1].cnn[0].weight)
    assert same(weights(extractors[0]), weights(extractors[2]))
    assert same(weights(extractors[1]), weights(extractors[3]))


def test_initial_weights():
    model = model_of(PIXELS)
    actor, critic = dict(model.actor.named_parameters()), dict(model.critic.named_parameters())
    bounds = {"mu.4": 3e-4, "q_net.3": 3e-4, "mu.0": 1568**-0.5, "mu.2": 200**-0.5, "q_net.1": 200**-0.5}
    # One layer on features and action together
    bounds |= {"action_input": (1568 + 2) ** -0.5}
    bounds |= {f"cnn.{2 * i}": fan_in**-0.5 for i, fan_in in enumerate((9 * 64, 32 * 25, 32 * 25))}
    for name, param in [*actor.items(), *critic.items()]:
        (bound,) = [bound for part, bound in bounds.items() if part in name]
        assert param.abs().max() <= bound, name
        assert param.numel() < 100 or param.abs().max() > 0.95 * bound, name


def test_sb3_puts_channels_first_and_the_buffer_holds_bytes():
    model = model_of()
    assert unwrap_vec_wrapper(model.env, VecTransposeImage) is not None
    assert model.observation_space.shape == (3, 20, 24)
    assert unwrap_vec_wrapper(model_of(spaces.Box(0, 255, (3, 20, 24), np.uint8)).env, VecTransposeImage) is None
    assert isinstance(model.replay_buffer, PackedReplayBuffer)
    model.learn(30)
    batch = model.replay_buffer.sample(8)
    assert batch.observations.dtype == batch.next_observations.dtype == th.uint8
    assert batch.observations.shape == (8, 3, 20, 24)
    shown = {
        image.transpose(2, 0, 1).tobytes() for episode in model.env.envs[0].unwrapped.episodes for image in episode
    }
    assert all(x.numpy().tobytes() in shown for x in (*batch.observations, *batch.next_observations))
    # No float copies, and no image twice: a row has one image and a few numbers
    stored = model.replay_buffer.snapshot_state()[1]
    assert sum(array.nbytes for array in stored.values()) < 1.3 * 30 * 20 * 24 * 3


def test_predict_takes_channels_first_and_last_one_and_many():
    model = model_of()
    images = np.random.default_rng(0).integers(0, 256, (5, 20, 24, 3), dtype=np.uint8)
    actions, _ = model.predict(images)
    assert actions.shape == (5, 2)
    np.testing.assert_array_equal(model.predict(images.transpose(0, 3, 1, 2))[0], actions)
    np.testing.assert_allclose(model.predict(images[0])[0], actions[0], atol=1e-6)
    np.testing.assert_allclose(model.predict(images[0].transpose(2, 0, 1))[0], actions[0], atol=1e-6)


@pytest.mark.parametrize("normalize", [True, False])
def test_pixels_are_scaled_once(normalize):
    """By the policy; and not at all with normalize_images=False."""
    model, seen = model_of(policy_kwargs={"normalize_images": normalize}), []
    model.actor.features_extractor.cnn[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model.predict(np.full((20, 24, 3), 102, np.uint8))
    assert (seen[0].dtype, seen[0].unique().tolist()) == (th.float32, [pytest.approx(0.4 if normalize else 102)])


def test_float_images_within_0_and_1_are_taken_as_they_are():
    model, seen = model_of(spaces.Box(0, 1, (20, 24, 3), np.float32)), []
    model.actor.features_extractor.cnn[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    image = np.random.default_rng(0).random((20, 24, 3)).astype(np.float32)
    model.predict(image)
    np.testing.assert_array_equal(seen[0][0].numpy(), image.transpose(2, 0, 1))
    model.learn(20)
    assert model.replay_buffer.sample(4).observations.dtype == th.float32


def test_float_images_outside_0_and_1_are_refused():
    with pytest.raises(UnsupportedSpaceError, match=r"float32 from 0\.0 to 255\.0"):
        model_of(spaces.Box(0, 255, (20, 24, 3), np.float32))
    # Unless they are meant so, as those of VecNormalize
    env = VecNormalize(DummyVecEnv([lambda: ChaosEnv(SMALL)]))
    kwargs = {"normalize_images": False, "features_extractor_kwargs": {"normalized_image": True}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # SB3's, on image spaces that are no longer
        model = DDPGPaper("CnnPolicy", env, policy_kwargs=kwargs, buffer_size=60, device="cpu").learn(20)
    assert model.num_timesteps == 20


@pytest.mark.parametrize(
    ("policy", "space", "words"),
    [
        ("CnnPolicy", spaces.Box(-1, 1, (3,)), ["'MlpPolicy'"]),
        ("CnnPolicy", spaces.Box(0, 255, (64, 64), np.uint8), ["'MlpPolicy'", "height, width and channels"]),
        ("CnnPolicy", spaces.Dict({"a": SMALL}), ["'MultiInputPolicy'"]),
        (CnnPolicy, spaces.Dict({"a": SMALL}), ["'MultiInputPolicy'"]),
        ("CnnPolicy", spaces.Box(0, 255, (12, 24, 3), np.uint8), ["at least 16 pixels", "got 12", "kernel_sizes"]),
        ("MultiInputPolicy", SMALL, ["'MlpPolicy'"]),
    ],
)
def test_observations_that_it_cannot_take(policy, space, words):
    with pytest.raises(UnsupportedSpaceError) as caught:
        DDPGPaper(policy, ChaosEnv(space), buffer_size=60, device="cpu")
    assert [word for word in words if word not in str(caught.value)] == []


@pytest.mark.parametrize("shared", [False, True])
def test_learned_saved_and_loaded_it_is_alike(tmp_path, shared):
    model, again = (model_of(policy_kwargs={"share_features_extractor": shared}).learn(25) for _ in range(2))
    before = weights(model_of(policy_kwargs={"share_features_extractor": shared}).policy)
    after = weights(model.policy)
    assert [name for name in before if th.equal(before[name], after[name])] == []
    assert same(after, weights(again.policy))
    model.save(tmp_path / "model")
    loaded = DDPGPaper.load(tmp_path / "model", env=model.get_env(), device="cpu")
    assert (type(loaded.policy), loaded.batch_size) == (CnnPolicy, 16)
    assert same(weights(model.policy), weights(loaded.policy))


def test_one_update_is_sb3s():
    """With settings that both have, SB3's DDPG on the same networks takes the same step."""
    ours = model_of(PIXELS, learning_rate=1e-3, qf_learning_rate=1e-3, qf_weight_decay=0.0, gradient_steps=0).learn(25)
    theirs = ours.to_sb3_ddpg()
    images = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 9), dtype=np.uint8)
    for model in (ours, theirs):
        model._setup_learn(10)
        model.replay_buffer.set_random_seed(5)
        model.train(3, 16)
    np.testing.assert_allclose(ours.predict(images)[0], theirs.predict(images)[0], atol=1e-5)
    with pytest.raises(ValueError, match="action_layer=2"):
        model_of(policy_kwargs={"action_layer": 2}).to_sb3_ddpg()
    back = DDPGPaper.from_sb3(theirs)
    assert isinstance(back.actor.features_extractor, PaperCNN)
    for (name, ours_param), param in zip(ours.critic.named_parameters(), back.critic.parameters(), strict=True):
        th.testing.assert_close(ours_param, param, atol=1e-5, rtol=1e-4, msg=name)
