"""The exported graph computes what ``predict`` does, whatever the spaces, the policy and the normalisation."""

import json

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import TD3
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecNormalize
from toys import ChaosEnv, assert_same_arrays, small_model, weights_of

import ddpg_ext
from ddpg_ext import CheckpointError, InvalidArgumentError, InvalidArgumentTypeError, MissingExtraError, export_onnx
from ddpg_ext.ddpg_paper.policies import MlpPolicy

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")


TWO_ACTIONS = spaces.Box(-1, 1, (2,), np.float32)


class Extractor(BaseFeaturesExtractor):
    def __init__(self, observation_space, features_dim=12):
        super().__init__(observation_space, features_dim)
        self.convolution = th.nn.Conv1d(1, 3, 2)
        self.out = th.nn.Linear(3 * (observation_space.shape[0] - 1), features_dim)

    def forward(self, observations):
        return th.tanh(self.out(self.convolution(observations.unsqueeze(1)).flatten(1)))


def make_model(env, policy="MlpPolicy", **policy_kwargs):
    """A model whose running averages and weights are no longer those of the start, so that the actor uses its range."""
    model = small_model(env, policy, policy_kwargs={"net_arch": [16, 12], "final_init": None, **policy_kwargs})
    with th.no_grad():
        generator = th.Generator().manual_seed(1)
        for name, tensor in model.actor.state_dict().items():
            if "running_var" in name:
                tensor.uniform_(0.3, 3.0, generator=generator)
            elif "running_mean" in name or (tensor.dim() == 1 and tensor.is_floating_point()):
                tensor.normal_(0.1, 0.4, generator=generator)
            elif tensor.is_floating_point():
                tensor.mul_(2)
    return model


def spaces_env(observation_space, action_space=TWO_ACTIONS):
    return ChaosEnv(observation_space, action_space)


def box(dim, low=-np.inf, high=np.inf, dtype=np.float32):
    return spaces.Box(low, high, (dim,), dtype)


def set_statistics(env, seed=0, offset=1.0, scale=1.0):
    """Statistics as of a long run, the mean ``offset`` off, the deviation about ``scale``."""
    rng = np.random.default_rng(seed)
    parts = env.obs_rms.values() if isinstance(env.obs_rms, dict) else [env.obs_rms]
    for rms in parts:
        rms.mean = offset * rng.normal(size=rms.mean.shape)
        rms.var = (scale * rng.uniform(0.5, 2.0, size=rms.var.shape)) ** 2
        rms.count = 1000.0


def run(path, observations):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [an_input.name for an_input in session.get_inputs()]
    (actions,) = session.run(["action"], dict(zip(names, observations, strict=True)))
    return actions


def assert_same_actions(model, path, observations, normalize=None, space=None):
    """Equal to ``predict`` within 1e-5 of half the range of the actions, and somewhere inside of that range."""
    actions = run(path, observations)
    obs = dict(zip(space, observations, strict=True)) if space is not None else observations[0]
    expected, _ = model.predict(obs if normalize is None else normalize.normalize_obs(obs), deterministic=True)
    half_range = (model.action_space.high - model.action_space.low) / 2
    assert actions.shape == expected.shape
    assert actions.dtype == expected.dtype == model.action_space.dtype
    np.testing.assert_allclose(actions / half_range, expected / half_range, rtol=0, atol=1e-5)
    middle = (model.action_space.high + model.action_space.low) / 2
    scaled = np.abs((expected - middle) / half_range)
    assert scaled.max() > 1e-3  # a test of something
    assert scaled.min() < 0.99


@pytest.mark.parametrize(
    "policy_kwargs",
    [
        {"batch_norm": False},
        {"net_arch": [400, 300]},  # at the paper's width the CPU kernel depends on the batch size
        {"features_extractor_class": Extractor, "activation_fn": th.nn.ELU},
    ],
)
def test_mlp_policy_for_every_size_of_batch(tmp_path, policy_kwargs):
    model = make_model(spaces_env(box(5)), **policy_kwargs)
    export_onnx(model, tmp_path / "actor.onnx")
    rng = np.random.default_rng(0)
    for n in (1, 2, 7, 300):
        assert_same_actions(model, tmp_path / "actor.onnx", [rng.normal(size=(n, 5)).astype(np.float32)])


@pytest.mark.parametrize(
    ("obs_dim", "obs_dtype", "action_shape", "action_dtype", "low", "width", "offset", "scale", "clip", "normalized"),
    [
        (2, np.float32, (1,), np.float32, -1.0, 2.0, 0.0, 1.0, 10.0, False),
        (3, np.float64, (2, 2), np.float64, -50.0, 100.0, 1e3, 1e-2, 10.0, True),
        (6, np.float32, (3,), np.float32, 10.0, 0.01, 1.0, 1e3, 0.5, True),
        (4, np.float32, (2, 2), np.float64, -0.3, 1.0, 0.0, 1.0, 0.5, True),
    ],
)
def test_spaces_and_statistics(
    tmp_path, obs_dim, obs_dtype, action_shape, action_dtype, low, width, offset, scale, clip, normalized
):
    path = tmp_path / "actor.onnx"
    action_space = spaces.Box(low, low + width, action_shape, action_dtype)
    env = DummyVecEnv([lambda: spaces_env(box(obs_dim, dtype=obs_dtype), action_space)])
    normalize, mean, std = None, 0.0, 1.0
    if normalized:
        env = normalize = VecNormalize(env, clip_obs=clip)
        set_statistics(normalize, offset=offset, scale=scale)
        mean, std = normalize.obs_rms.mean, np.sqrt(normalize.obs_rms.var)
    model = make_model(env)
    export_onnx(model, path)
    # Some of them beyond the clipping
    observations = mean + std * np.random.default_rng(0).normal(0, 4, size=(20, obs_dim))
    assert_same_actions(model, path, [observations.astype(obs_dtype)], normalize)


def test_dict_observations_have_an_input_for_each_key(tmp_path):
    image = spaces.Box(0, 255, (3, 36, 36), np.uint8)
    vectors = {"velocity": box(3), "action": box(2, dtype=np.float64)}
    odd = {key: spaces.Box(-1, 1, ()) for key in ("a.b", "type", "", "x/y", "é", "1")}  # no names of modules of torch
    space = spaces.Dict({**vectors, **odd, "gear": spaces.Discrete(4), "camera": image})
    env = VecNormalize(DummyVecEnv([lambda: spaces_env(space)]), norm_obs_keys=["velocity"])
    set_statistics(env)
    model = make_model(env, "MultiInputPolicy")
    export_onnx(model, tmp_path / "actor.onnx")

    graph = onnx.load(tmp_path / "actor.onnx").graph
    tensors = {an_input.name: an_input.type.tensor_type for an_input in graph.input}
    shapes = {name: [dim.dim_param or dim.dim_value for dim in tensor.shape.dim] for name, tensor in tensors.items()}
    assert shapes == {
        **{"observation.action": ["batch", 2], "camera": ["batch", 3, 36, 36]},
        **{"gear": ["batch"], "velocity": ["batch", 3], **{key or "observation.": ["batch"] for key in odd}},
    }
    types = {name: onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type) for name, tensor in tensors.items()}
    others = {"observation.action": np.float64, "camera": np.uint8, "gear": np.int64}
    assert types == {**dict.fromkeys(types, np.float32), **others}

    model.observation_space.seed(0)
    samples = [model.observation_space.sample() for _ in range(6)]
    observations = [np.stack([sample[key] for sample in samples]) for key in model.observation_space]
    assert_same_actions(model, tmp_path / "actor.onnx", observations, env, model.observation_space)


OTHERS = [spaces.Discrete(5), spaces.MultiBinary(4), spaces.Box(0, 255, (3, 8, 8), np.uint8), spaces.Box(-1, 1, (2, 3))]


@pytest.mark.parametrize("space", OTHERS, ids=str)
def test_other_observations(tmp_path, space):
    model = make_model(spaces_env(space))
    export_onnx(model, tmp_path / "actor.onnx")
    space.seed(0)
    assert_same_actions(model, tmp_path / "actor.onnx", [np.stack([space.sample() for _ in range(6)])])


@pytest.mark.parametrize("dtype", [np.int32, np.uint32])
def test_wide_integers_keep_their_last_digits(tmp_path, dtype):
    """Seconds since 1970: single precision has steps of 128 there."""
    space = box(3, 0, 2**31 - 1, dtype)
    env = VecNormalize(DummyVecEnv([lambda: spaces_env(space)]))
    env.obs_rms.mean, env.obs_rms.var = np.full(3, 1_700_000_050.0), np.full(3, 900.0)
    model = make_model(env)
    export_onnx(model, tmp_path / "actor.onnx")
    observations = 1_700_000_000 + np.random.default_rng(0).integers(0, 100, size=(50, 3))
    assert_same_actions(model, tmp_path / "actor.onnx", [observations.astype(dtype)], env)


def test_statistics_given_and_left_out(tmp_path):
    normalize = VecNormalize(DummyVecEnv([lambda: spaces_env(box(3))]))
    set_statistics(normalize, offset=3.0)
    model = make_model(spaces_env(box(3)))
    raw = np.random.default_rng(0).normal(size=(9, 3)).astype(np.float32)
    export_onnx(model, tmp_path / "with.onnx", vec_normalize=normalize)
    assert_same_actions(model, tmp_path / "with.onnx", [raw], normalize)

    model = make_model(normalize)
    export_onnx(model, tmp_path / "without.onnx", vec_normalize=None)
    assert_same_actions(model, tmp_path / "without.onnx", [raw])

    normalize.norm_obs = False
    export_onnx(model, tmp_path / "rewards_only.onnx")
    assert_same_actions(model, tmp_path / "rewards_only.onnx", [raw])


def test_the_file_says_what_it_is_and_nothing_of_the_machine(tmp_path):
    env = VecNormalize(DummyVecEnv([lambda: spaces_env(box(3), spaces.Box(-2, 3, (1,), np.float32))]))
    export_onnx(make_model(env), tmp_path / "actor.onnx", opset=20)
    proto = onnx.load(tmp_path / "actor.onnx")
    onnx.checker.check_model(proto, full_check=True)
    metadata = {entry.key: entry.value for entry in proto.metadata_props}
    assert metadata == {
        "ddpg_ext": ddpg_ext.__version__,
        "policy": "DDPGPaperPolicy",
        "action_low": "[-2.0]",
        "action_high": "[3.0]",
        "vec_normalize": "true",
    }
    assert json.loads(metadata["action_high"]) == [3.0]
    assert [(entry.domain, entry.version) for entry in proto.opset_import] == [("", 20)]
    assert b"/" + b"policies.py" not in proto.SerializeToString()
    assert str(tmp_path).encode() not in proto.SerializeToString()


def test_the_model_is_as_before(tmp_path):
    models = [small_model(spaces_env(box(3))) for _ in range(2)]
    for model in models:
        model.env.seed(0)
        model.learn(20)
    export_onnx(models[0], tmp_path / "actor.onnx")
    for model in models:
        model.env.seed(1)
        model.learn(20)
    assert_same_arrays(weights_of(models[0]), weights_of(models[1]))


def test_statistics_of_other_observations(tmp_path):
    model = make_model(spaces_env(box(3)))
    normalize = VecNormalize(DummyVecEnv([lambda: spaces_env(box(4))]))
    with pytest.raises(InvalidArgumentError, match=r"`vec_normalize` must .* shape \(3,\), got \(4,\)"):
        export_onnx(model, tmp_path / "actor.onnx", vec_normalize=normalize)
    # Inside of a stack of frames, they are of single frames
    single = DummyVecEnv([lambda: spaces_env(box(3))])
    with pytest.raises(InvalidArgumentError, match="pass vec_normalize=None"):
        export_onnx(make_model(VecFrameStack(single, 2)), tmp_path / "actor.onnx", vec_normalize=VecNormalize(single))
    of_dict = VecNormalize(DummyVecEnv([lambda: spaces_env(spaces.Dict({"a": box(3)}))]))
    with pytest.raises(InvalidArgumentError, match="`vec_normalize`"):
        export_onnx(model, tmp_path / "actor.onnx", vec_normalize=of_dict)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "value", "error", "accepted"),
    [
        *(("vec_normalize", x, InvalidArgumentTypeError, "a VecNormalize, 'auto' or None") for x in ("yes", True)),
        ("vec_normalize", RunningMeanStd(shape=(3,)), InvalidArgumentTypeError, "a VecNormalize, 'auto' or None"),
        *(("opset", x, InvalidArgumentError, f"a whole number from 18 to 23, got {x}") for x in (17, 99)),
    ],
)
def test_bad_arguments(tmp_path, name, value, error, accepted):
    with pytest.raises(error, match=f"`{name}` must be {accepted}"):
        export_onnx(make_model(spaces_env(box(3))), tmp_path / "actor.onnx", **{name: value})


def test_a_model_of_sb3_and_a_missing_package(monkeypatch):
    with pytest.raises(InvalidArgumentTypeError, match="from_sb3"):
        export_onnx(TD3("MlpPolicy", spaces_env(box(3)), device="cpu", buffer_size=10), "actor.onnx")
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    with pytest.raises(MissingExtraError, match=r"export_onnx needs onnxscript: pip install 'ddpg_ext\[onnx\]'"):
        export_onnx(make_model(spaces_env(box(3))), "actor.onnx")


class Backwards(MlpPolicy):
    """A policy with a ``predict`` of its own, which no graph knows of."""

    def predict(self, *args, **kwargs):
        actions, state = super().predict(*args, **kwargs)
        return -actions, state


class Undecided(Extractor):
    def forward(self, observations):
        return super().forward(observations) if observations.sum().item() > 0 else super().forward(-observations)


@pytest.mark.parametrize(
    ("policy", "policy_kwargs", "message"),
    [
        (Backwards, {}, "was not written, because the graph's actions differ from those of predict"),
        ("MlpPolicy", {"features_extractor_class": Undecided}, "cannot be expressed in ONNX"),
    ],
)
def test_a_graph_that_would_be_another_policy_is_not_written(tmp_path, policy, policy_kwargs, message):
    (tmp_path / "actor.onnx").write_bytes(b"before")
    with pytest.raises(CheckpointError, match=message):
        export_onnx(make_model(spaces_env(box(3)), policy, **policy_kwargs), tmp_path / "actor.onnx")
    assert [file.name for file in tmp_path.iterdir()] == ["actor.onnx"]
    assert (tmp_path / "actor.onnx").read_bytes() == b"before"
