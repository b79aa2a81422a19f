"""Snapshots: what is in them, when they are taken, and that a run goes on from them bit for bit."""

import json
import re
import shutil
import warnings
import zipfile
from itertools import pairwise
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, EvalCallback, EveryNTimesteps
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.noise import ActionNoise, NormalActionNoise, OrnsteinUhlenbeckActionNoise
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecFrameStack, VecNormalize
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer
from toy_envs import ToyEnv
from toys import (
    ChaosEnv,
    CountingEnv,
    PointEnv,
    assert_same_arrays,
    drawn_next,
    same,
    small_model,
    state_of,
    weights,
    weights_of,
)

from ddpg_ext import (
    CheckpointError,
    CheckpointNotFoundError,
    DamagedCheckpointError,
    DDPGPaper,
    InvalidArgumentError,
    InvalidArgumentTypeError,
    LinearDecay,
    OrnsteinUhlenbeckNoise,
    SaturationMonitor,
    ScheduledActionNoise,
    SnapshotCallback,
    UntrustedContentError,
)
from ddpg_ext.buffers import PackedReplayBuffer, PrioritizedReplayBuffer
from ddpg_ext.checkpoints import snapshots as snapshots_module
from ddpg_ext.checkpoints.snapshots import snapshots
from ddpg_ext.checkpoints.witness import witness_file

STEPS = 120


def vec_env(env_id="InvertedPendulum-v5", n_envs=1, normalize=True, **kwargs):
    env = make_vec_env(env_id, n_envs, **kwargs)
    return VecNormalize(env) if normalize else env


def make(env=None, policy="MlpPolicy", **kwargs):
    kwargs = {"buffer_size": 90, "batch_size": 4, "learning_starts": 20, "seed": 3, **kwargs}
    return DDPGPaper(policy, vec_env() if env is None else env, policy_kwargs={"net_arch": [6, 6]}, **kwargs)


def everything(model):
    return state_of(model) | drawn_next(model) | {"position": np.array(model.replay_buffer.pos)}


def assert_goes_on_exactly(tmp_path, make_env, make_model=make, every=30, steps=STEPS, **resume):
    """Run once; then go on from each of its snapshots, in other random states, and compare the ends."""
    model = make_model(make_env())
    model.learn(steps, callback=SnapshotCallback(tmp_path / "whole", every=every, keep=100))
    expected = everything(model)
    files = snapshots(tmp_path / "whole")
    assert len(files) >= 2
    for file in {files[0], files[len(files) // 2]}:
        np.random.seed(12345)
        th.manual_seed(12345)
        resumed = DDPGPaper.resume(file, make_env(), **resume)
        folder = tmp_path / f"resumed_{file.stem}"
        left = steps - resumed.num_timesteps
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*bit for bit")
            resumed.learn(left, callback=SnapshotCallback(folder, every=every), reset_num_timesteps=False)
        assert_same_arrays(everything(resumed), expected)
    return model


@pytest.mark.parametrize(
    ("n_envs", "kwargs"),
    [
        (1, {}),
        (1, {"train_freq": (1, "episode"), "gradient_steps": -1, "batch_size": 2}),
        (3, {"train_freq": 4, "gradient_steps": -1, "uniform_warmup": True, "learning_starts": 100, "n_steps": 3}),
        (1, {"action_noise": NormalActionNoise(np.zeros(1), np.ones(1)), "n_steps": 3, "seed": None}),
        (3, {"action_noise": OrnsteinUhlenbeckActionNoise(np.zeros(1), np.ones(1)), "seed": None}),
        (3, {"action_noise": ScheduledActionNoise(OrnsteinUhlenbeckNoise(np.zeros(1)), LinearDecay(100))}),
        (1, {"learning_rate": LinearSchedule(1e-3, 0.0, 1.0), "qf_learning_rate": LinearSchedule(1e-2, 1e-3, 0.5)}),
        (1, {"replay_buffer_kwargs": {"handle_timeout_termination": False}, "optimize_memory_usage": True}),
    ],
    ids=str,
)
def test_resumed_runs_end_the_same(tmp_path, n_envs, kwargs):
    assert_goes_on_exactly(tmp_path, lambda: vec_env(n_envs=n_envs), lambda env: make(env, **kwargs))


class NoisySensor(gym.ObservationWrapper):
    """Its generator is among its attributes, and ``reset`` does not seed it."""

    def __init__(self, env):
        super().__init__(env)
        self.rng = np.random.default_rng(0)

    def observation(self, observation):
        return observation + self.rng.normal(0, 0.1, observation.shape)


@pytest.mark.parametrize("n_envs", [1, 2])
def test_generators_that_a_reset_does_not_seed(tmp_path, n_envs):
    assert_goes_on_exactly(tmp_path, lambda: vec_env(n_envs=n_envs, wrapper_class=NoisySensor, normalize=False))


def test_stacked_frames(tmp_path):
    """A snapshot keeps the stack of one environment; several environments start new episodes."""
    assert_goes_on_exactly(tmp_path / "one", lambda: VecFrameStack(vec_env(normalize=False), 3))
    assert_goes_on_exactly(tmp_path / "two", lambda: VecNormalize(VecFrameStack(vec_env(n_envs=2, normalize=False), 2)))


def test_processes(tmp_path):
    made = []

    def make_env():
        made.append(vec_env(n_envs=2, vec_env_cls=SubprocVecEnv, vec_env_kwargs={"start_method": "fork"}))
        return made[-1]

    try:
        assert_goes_on_exactly(tmp_path, make_env, steps=90)
    finally:
        for env in made:
            env.close()


BUFFERS = {
    "sb3": (1, ReplayBuffer, {}),
    "sb3, n steps": (3, NStepReplayBuffer, {"n_steps": 3}),
    "packed, its own seed": (3, PackedReplayBuffer, {"seed": 5, "n_steps": 2}),
    "device": (1, PackedReplayBuffer, {"storage": "device"}),
    "prioritised": (3, PrioritizedReplayBuffer, {}),
    "prioritised, n steps": (
        *(1, PrioritizedReplayBuffer),
        {"n_steps": 3, "alpha": 0.9, "beta": LinearDecay(100, start=0.4, end=1.0)},
    ),
}


@pytest.mark.parametrize("name", BUFFERS)
def test_replay_buffers(tmp_path, name):
    n_envs, buffer_class, kwargs = BUFFERS[name]
    model = assert_goes_on_exactly(
        tmp_path,
        lambda: vec_env(n_envs=n_envs),
        lambda env: make(env, replay_buffer_class=buffer_class, replay_buffer_kwargs=kwargs),
    )
    assert type(DDPGPaper.resume(tmp_path / "whole", vec_env(n_envs=n_envs)).replay_buffer) is buffer_class
    assert model.replay_buffer.full or n_envs == 1


def test_images(tmp_path):
    kwargs = {"features_extractor_class": FlattenExtractor, "net_arch": [6, 6], "batch_norm": False}
    assert_goes_on_exactly(
        tmp_path,
        lambda: make_vec_env(lambda: ChaosEnv(spaces.Box(0, 255, (3, 8, 8), np.uint8)), 2),
        lambda env: DDPGPaper("MlpPolicy", env, buffer_size=90, batch_size=4, seed=3, policy_kwargs=kwargs),
    )


@pytest.mark.parametrize(("n_envs", "buffer_class"), [(3, PackedReplayBuffer), (1, PrioritizedReplayBuffer)])
def test_replay_buffers_in_files(tmp_path, n_envs, buffer_class):
    """A snapshot holds a copy: files that have gone on since are put back, and missing ones are made."""

    def make_env():
        return vec_env(n_envs=n_envs)

    def kwargs(name):
        return {"replay_buffer_kwargs": {"storage": "memmap", "directory": tmp_path / name}}

    def make_model(env):
        return make(env, replay_buffer_class=buffer_class, **kwargs("files"))

    assert_goes_on_exactly(tmp_path, make_env, make_model, custom_objects=kwargs("files"))
    with pytest.raises(UntrustedContentError, match="custom_objects"):
        DDPGPaper.resume(tmp_path / "whole", make_env())
    put_back = DDPGPaper.resume(tmp_path / "whole", make_env(), custom_objects=kwargs("files"))
    moved = DDPGPaper.resume(tmp_path / "whole", make_env(), custom_objects=kwargs("others"))
    for one, other in zip(put_back.replay_buffer.sample(50), moved.replay_buffer.sample(50), strict=True):
        assert one is other is None or np.array_equal(one, other)


@pytest.mark.parametrize(("n_envs", "hindsight"), [(1, False), (1, True), (2, True)])
def test_dict_observations(tmp_path, n_envs, hindsight):
    kwargs = {"replay_buffer_class": HerReplayBuffer} if hindsight else {}

    def make_env():
        return make_vec_env(lambda: BitFlippingEnv(n_bits=4, continuous=True, max_steps=8), n_envs)

    assert_goes_on_exactly(tmp_path, make_env, lambda env: make(env, "MultiInputPolicy", **kwargs))


class Drawing(gym.Env):
    """Draws from every generator there is, in ``reset`` and in ``step``, of its own and of the process."""

    observation_space = spaces.Box(-np.inf, np.inf, (4,), np.float64)

    def __init__(self):
        self.action_space = spaces.Box(-1, 1, (1,))
        self.old = np.random.RandomState()

    def _draw(self):
        import random

        own = self.action_space.sample()[0] + self.old.normal()
        return np.array([self.np_random.normal(), np.random.normal(), random.random(), own])

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self._draw(), {}

    def step(self, action):
        return self._draw(), float(self.np_random.normal()), bool(self.np_random.random() < 0.15), False, {}


def test_an_environment_that_draws_from_everything(tmp_path):
    assert_goes_on_exactly(tmp_path, lambda: make_vec_env(Drawing))


@pytest.mark.parametrize("reset", [None, False])
def test_snapshots_leave_a_run_of_one_environment_as_it_is(tmp_path, reset):
    expected = everything(make().learn(STEPS))
    watched = make().learn(STEPS, callback=SnapshotCallback(tmp_path, every=10, reset=reset))
    assert snapshots(tmp_path)
    assert_same_arrays(everything(watched), expected)


class PrivateGenerator(CountingEnv):
    """Honours seeds, but draws from a generator that is hidden in a list."""

    def __init__(self):
        super().__init__(terminates=True)
        self._secret = [np.random.RandomState()]

    def _observation(self):
        return self._secret[0].normal(size=3).astype(np.float32)

    def reset(self, *, seed=None, options=None):
        if seed is not None:
            self._secret = [np.random.RandomState(seed)]
        return super().reset()


def test_an_environment_with_a_private_generator(tmp_path):
    """It is refused at the first snapshot; and with ``reset=True`` it resumes exactly."""
    with pytest.raises(CheckpointError, match="reset=True"):
        make(make_vec_env(PrivateGenerator)).learn(STEPS, callback=SnapshotCallback(tmp_path / "a", every=30))
    assert not snapshots(tmp_path / "a")
    model = make(make_vec_env(PrivateGenerator))
    model.learn(STEPS, callback=SnapshotCallback(tmp_path / "b", every=30, keep=9, reset=True))
    resumed = DDPGPaper.resume(snapshots(tmp_path / "b")[1], make_vec_env(PrivateGenerator, seed=5))
    callback = SnapshotCallback(tmp_path / "c", every=30, reset=True)
    resumed.learn(STEPS - resumed.num_timesteps, callback=callback, reset_num_timesteps=False)
    assert same(weights(model.policy), weights(resumed.policy))


class Alike(CountingEnv):
    """Its episodes start alike."""

    def reset(self, **kwargs):
        self.episode = -1
        return super().reset(**kwargs)


def test_an_environment_that_starts_elsewhere(tmp_path):
    make(make_vec_env(Alike)).learn(STEPS, callback=SnapshotCallback(tmp_path, every=30))
    with pytest.raises(CheckpointError, match="starts with another observation than in the snapshot"):
        DDPGPaper.resume(tmp_path, make_vec_env(lambda: Alike(env_index=1)))


def test_the_log_goes_on(tmp_path):
    """Means since the last line of the log, and what the ``Monitor`` counted, are part of the state."""
    model = make()
    model.learn(STEPS, callback=SnapshotCallback(tmp_path, every=30, keep=9), log_interval=10**6)
    resumed = DDPGPaper.resume(snapshots(tmp_path)[1], vec_env())
    callback = SnapshotCallback(tmp_path / "other", every=30)
    left = STEPS - resumed.num_timesteps
    resumed.learn(left, callback=callback, reset_num_timesteps=False, log_interval=10**6)
    assert dict(resumed.logger.name_to_value) == dict(model.logger.name_to_value)
    one, other = (m.env.get_attr("episode_returns")[0] for m in (model, resumed))
    assert len(one) > 3
    assert one == other


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "run"
    make().learn(STEPS, callback=SnapshotCallback(folder, every=30, keep=3))
    return folder


@pytest.fixture
def run(trained, tmp_path):
    return Path(shutil.copytree(trained, tmp_path / "run"))


def test_how_many_are_kept(run):
    files = snapshots(run)
    assert len(files) == 3
    steps = [int(re.findall(r"\d+", file.name)[0]) for file in files]
    assert all(a - b >= 30 for a, b in pairwise(steps))
    assert sorted(run.iterdir()) == sorted([*files, *map(witness_file, files)])
    resumed = DDPGPaper.resume(run, vec_env())
    assert resumed.num_timesteps == steps[0]
    assert DDPGPaper.resume(files[2], vec_env()).num_timesteps == steps[2]
    observations = np.random.default_rng(0).normal(size=(3, 4))
    assert np.array_equal(DDPGPaper.load(files[0]).predict(observations)[0], resumed.predict(observations)[0])


@pytest.mark.parametrize("damage", ["cut", "flip in the buffer", "encrypted"])
def test_the_one_before_a_damaged_snapshot_is_used(run, damage):
    newest, before = snapshots(run)[:2]
    content = bytearray(newest.read_bytes())
    if damage == "encrypted":  # one bit makes it look like a zip that is made to harm
        content[content.rfind(b"PK\x01\x02") + 8] ^= 1
    elif damage == "flip in the buffer":
        with zipfile.ZipFile(newest) as archive:
            content[archive.getinfo("replay_buffer/rows").header_offset + 300] ^= 0x10
    newest.write_bytes(content[:-500] if damage == "cut" else content)
    with pytest.warns(UserWarning, match=f"{newest.name}.*Continuing from {before.name}"):
        model = DDPGPaper.resume(run, vec_env())
    assert f"{model.num_timesteps:012d}" in before.name


@pytest.mark.parametrize(
    ("writer", "advice"),
    [({}, "it does not name its writer"), ({"ddpg_ext": "9.1"}, "install ddpg_ext 9.1, which wrote it")],
)
def test_a_snapshot_of_a_newer_version_is_not_passed_over(writer, advice, run):
    """It is whole. The snapshot before it lacks what was learned since."""
    newest = snapshots(run)[0]
    with zipfile.ZipFile(newest) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    description = json.loads(members["ddpg_ext.json"]) | {"format": 3}
    del description["ddpg_ext"]
    members["ddpg_ext.json"] = json.dumps(description | writer).encode()
    with zipfile.ZipFile(newest, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    with pytest.raises(CheckpointError, match=f"{newest.name}.*its format is 3, but this .*reads 2; {advice}"):
        DDPGPaper.resume(run, vec_env())


def test_left_overs_of_a_kill_are_cleared(run):
    left_over = run / ".snapshot_000000000999.zip.12345.tmp"
    left_over.write_bytes(b"half a snapshot")
    model = DDPGPaper.resume(run, vec_env())
    model.learn(1, callback=SnapshotCallback(run), reset_num_timesteps=False)
    assert not left_over.exists()


def test_nothing_to_resume(tmp_path, run):
    for path in (tmp_path, tmp_path / "nothing", tmp_path / "nothing.zip"):
        with pytest.raises(CheckpointNotFoundError, match="no snapshot"):
            DDPGPaper.resume(path, vec_env())
    make().save(tmp_path / "model")
    with pytest.raises(CheckpointError, match="not a snapshot"):
        DDPGPaper.resume(tmp_path / "model.zip", vec_env())
    for file in snapshots(run):
        file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(DamagedCheckpointError):
        DDPGPaper.resume(run, vec_env())


def test_the_wrong_environment(run):
    with pytest.raises(CheckpointError, match="not for this environment"):
        DDPGPaper.resume(run, vec_env("Pendulum-v1"))
    with pytest.raises(CheckpointError, match="environments"):
        DDPGPaper.resume(run, vec_env(n_envs=2))


def test_normalisation_is_put_around_where_it_is_missing(run):
    model, reference = (DDPGPaper.resume(run, vec_env(normalize=normalize)) for normalize in (False, True))
    assert isinstance(model.env, VecNormalize)
    assert np.array_equal(model.env.obs_rms.mean, reference.env.obs_rms.mean)
    assert model.env.training


class OwnNoise(ActionNoise):
    def __init__(self):
        self.calls = 0

    def __call__(self):
        self.calls += 1
        return np.full(1, 0.1 / self.calls)


def test_noise_of_ones_own(tmp_path):
    assert_goes_on_exactly(tmp_path, vec_env, lambda env: make(env, action_noise=OwnNoise()), allow=[OwnNoise])
    with pytest.raises(UntrustedContentError, match="OwnNoise"):
        DDPGPaper.resume(tmp_path / "whole", vec_env())


def test_a_lambda_is_given_again(tmp_path):
    def make_model(env):
        return make(env, learning_rate=lambda progress: 1e-3 * progress)

    resume = {"custom_objects": {"learning_rate": lambda progress: 1e-3 * progress}}
    assert_goes_on_exactly(tmp_path, vec_env, make_model, **resume)
    with pytest.raises(UntrustedContentError, match="learning_rate"):
        DDPGPaper.resume(tmp_path / "whole", vec_env())


class OwnCallback(BaseCallback):
    def __init__(self):
        super().__init__()
        self.best_mean_reward, self.n_episodes, self.last_mean_reward = None, {"a": 1}, th.zeros(2)

    def _on_step(self):
        return True


def test_a_callback_of_ones_own_may_use_sb3s_names(tmp_path):
    make().learn(STEPS, callback=[SnapshotCallback(tmp_path, every=30), OwnCallback()])
    assert snapshots(tmp_path)


@pytest.mark.parametrize(
    "outer",
    [
        lambda inner: EveryNTimesteps(20, inner),
        lambda inner: EveryNTimesteps(20, CallbackList([inner])),
        lambda inner: EvalCallback(vec_env(), callback_after_eval=inner),
        lambda inner: EvalCallback(vec_env(), callback_on_new_best=inner),
    ],
)
def test_a_callback_inside_of_another_is_refused(tmp_path, outer):
    model = make()
    with pytest.raises(InvalidArgumentError, match="would write nothing inside"):
        model.learn(STEPS, callback=outer(SnapshotCallback(tmp_path, every=30)))
    assert model.num_timesteps == 0


def test_a_callback_in_lists_works(tmp_path):
    make().learn(60, callback=CallbackList([CallbackList([SnapshotCallback(tmp_path, every=30)])]))
    assert snapshots(tmp_path)


def local_noise():
    class Local(NormalActionNoise):
        pass

    return Local(np.zeros(1), np.ones(1))


UNSTORABLE = {
    "a lambda": (
        {"action_noise": ScheduledActionNoise(OrnsteinUhlenbeckNoise(np.zeros(1)), lambda step: 0.5)},
        "`action_noise`.*top level of a module; LinearDecay",
    ),
    "a local class": ({"action_noise": local_noise()}, "`action_noise`.*top level of a module"),
    "a generator": ({"mine": (i for i in range(3))}, "`mine` cannot be saved.*_excluded_save_params"),
}


@pytest.mark.parametrize("name", UNSTORABLE)
def test_what_no_snapshot_can_hold_is_found_at_the_start(tmp_path, name):
    attributes, message = UNSTORABLE[name]
    model = make()
    vars(model).update(attributes)
    with pytest.raises(CheckpointError, match=message):
        model.learn(STEPS, callback=SnapshotCallback(tmp_path, every=30))
    assert model.num_timesteps == 0


def test_the_folder_is_made_at_the_start(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(CheckpointError, match="`path` must be a folder"):
            make().learn(STEPS, callback=SnapshotCallback(path))
    for path in (None, 5, b"x"):
        with pytest.raises(InvalidArgumentTypeError, match="`path` must be a path"):
            SnapshotCallback(path)


@pytest.mark.parametrize("keys", [dict.fromkeys(["position"]).keys(), [np.str_("position")], ("position",)])
def test_keys_of_vec_normalize(tmp_path, keys):
    def env():
        return VecNormalize(DummyVecEnv([lambda: ToyEnv(dict_obs=True)]), norm_obs_keys=keys)

    make(env(), "MultiInputPolicy").learn(60, callback=SnapshotCallback(tmp_path, every=30))
    assert list(DDPGPaper.resume(tmp_path, env()).env.norm_obs_keys) == ["position"]


def test_wrong_arguments(tmp_path):
    for error, kwargs in (
        (InvalidArgumentError, {"every": 0}),
        (InvalidArgumentError, {"keep": 0}),
        (InvalidArgumentTypeError, {"every": 1.5}),
        (InvalidArgumentTypeError, {"keep": True}),
    ):
        with pytest.raises(error, match=next(iter(kwargs))):
            SnapshotCallback(tmp_path, **kwargs)
    with pytest.raises(InvalidArgumentError, match="reset"):
        make(vec_env(n_envs=2)).learn(10, callback=SnapshotCallback(tmp_path, reset=False))


@pytest.mark.parametrize("buffer_class", [None, NStepReplayBuffer])
def test_cut_episodes_do_not_count_as_terminal(tmp_path, buffer_class):
    """Several environments: what a snapshot cuts off bootstraps, and n-step returns do not run across it."""
    kwargs = {"n_steps": 3, "gamma": 0.5, "replay_buffer_class": buffer_class, "learning_starts": 1000}
    model = make(make_vec_env(lambda: Alike(length=10**6), 2), **kwargs)
    model.learn(36, callback=SnapshotCallback(tmp_path, every=30))
    assert len(snapshots(tmp_path)) == 1
    batch = model.replay_buffer.sample(500)
    # The observation counts the steps of the episode: 15 before the cut, 3 after it; all reward is 1
    lasts = batch.next_observations[:, 2]
    assert set(lasts.tolist()) == set(range(3, 16))
    assert not batch.dones.any()
    n_rewards = lasts - batch.observations[:, 2]
    assert ((n_rewards == 3) | (lasts == 15) | (lasts == 3)).all()
    assert (n_rewards < 3).any()
    assert th.equal(batch.rewards[:, 0], 2 - 0.5 ** (n_rewards - 1))
    assert th.equal(batch.discounts[:, 0], 0.5**n_rewards)


def test_cuts_are_seen_where_observations_do_not_tell(tmp_path, monkeypatch):
    monkeypatch.setattr(Alike, "_observation", lambda self: np.zeros(3, np.float32))
    env = make_vec_env(lambda: Alike(length=10**6), 2)
    model = make(env, learning_starts=1000, n_steps=3, gamma=0.5)
    model.learn(36, callback=SnapshotCallback(tmp_path, every=30))
    discounts = model.replay_buffer.sample(5000).discounts[:, 0]
    # Of 18 steps, two before the cut and two before the end have shorter sums
    for discount in (0.5, 0.25):
        assert (discounts == discount).float().mean() == pytest.approx(2 / 18, abs=0.03)


def test_a_run_without_snapshots_says_why(tmp_path, recwarn):
    """An environment whose episodes never end, for a short and a long run; later than `every`, for all others."""
    endless = {"short": 300, "long": 1300}
    for name, n_steps in endless.items():
        with pytest.warns(UserWarning, match="although `every` is 20, because no episode began.*reset=True"):
            make(Alike(length=10**6)).learn(n_steps, callback=SnapshotCallback(tmp_path / name, every=20))
    recwarn.clear()
    for reset in (None, True):
        make(Alike(length=30)).learn(
            60, callback=SnapshotCallback(tmp_path / f"at_the_end_{reset}", every=60, reset=reset)
        )
    make(Alike(length=30)).learn(100, callback=SnapshotCallback(tmp_path / "ends", every=20))
    make(Alike(length=30)).learn(100, callback=SnapshotCallback(tmp_path / "later", every=200))
    assert [str(warning.message) for warning in recwarn if "no snapshot" in str(warning.message)] == []


def test_the_suffix_of_a_snapshot_may_be_left_out(tmp_path):
    make().learn(80, callback=SnapshotCallback(tmp_path, every=20))
    newest = snapshots(tmp_path)[0]
    (tmp_path / "snapshot_999999999999.zip").mkdir()  # not a snapshot
    tmp_path.with_suffix(".zip").write_bytes(b"a model beside the folder")
    for path in (newest.with_suffix(""), tmp_path):
        assert DDPGPaper.resume(path, vec_env()).num_timesteps == int(newest.stem.rpartition("_")[2])


@pytest.mark.parametrize("reset", [False, True])
def test_a_run_without_normalisation_is_not_resumed_with_it(tmp_path, reset):
    env = DummyVecEnv([PointEnv])
    small_model(env).learn(80, SnapshotCallback(tmp_path, every=30, reset=reset))
    with pytest.raises(CheckpointError, match="is from a run without VecNormalize; pass the environment without it"):
        DDPGPaper.resume(tmp_path, VecNormalize(DummyVecEnv([PointEnv])))
    DDPGPaper.resume(tmp_path, env)


@pytest.mark.parametrize("with_older_file", [False, True])
def test_values_that_wait_for_the_log_are_printed(tmp_path, capsys, with_older_file, monkeypatch):
    """SB3's logger needs to know for each value which output leaves it out."""
    if with_older_file:
        pending = snapshots_module._pending_log
        monkeypatch.setattr(
            snapshots_module,
            "_pending_log",
            lambda logger: {key: value for key, value in pending(logger).items() if key != "excluded"},
        )
    monitor = SaturationMonitor(every=10)
    model = make(verbose=1, batch_size=8)
    model.learn(70, [SnapshotCallback(tmp_path, every=30), monitor], log_interval=10**6)
    resumed = DDPGPaper.resume(tmp_path, vec_env())
    resumed.learn(30, SnapshotCallback(tmp_path, every=10**6), reset_num_timesteps=False, log_interval=1)
    assert "actor_grad_norm" in capsys.readouterr().out


class LevelEnv(ToyEnv):
    level = 0


def test_attributes_are_set_in_the_environment(tmp_path):
    class Curriculum(BaseCallback):
        def _on_step(self):
            self.training_env.set_attr("level", self.n_calls)
            return True

    env = LevelEnv()
    make(env=DummyVecEnv([lambda: env])).learn(40, [SnapshotCallback(tmp_path, every=10), Curriculum()])
    assert env.level == 40


def test_short_pieces_of_training_write_snapshots(tmp_path):
    model, callback = make(), SnapshotCallback(tmp_path, every=100)
    for _ in range(5):
        model.learn(40, callback, reset_num_timesteps=False)
    assert [int(path.stem.rpartition("_")[2]) // 100 for path in snapshots(tmp_path)] == [1]


def test_random_numbers_between_resuming_and_training(tmp_path, recwarn):
    """For example, SB3's ``make_vec_env`` without a seed draws from NumPy's generator."""

    def run(draws):
        folder = tmp_path / str(draws)
        noise = NormalActionNoise(np.zeros(1), np.full(1, 0.3))
        make(action_noise=noise).learn(STEPS, SnapshotCallback(folder, every=40, keep=9))
        resumed = DDPGPaper.resume(snapshots(folder)[-1], vec_env())
        np.random.random(draws)
        th.rand(draws)
        resumed.action_space.sample()
        for file in snapshots(folder)[:-1]:
            file.unlink()
        left = STEPS - resumed.num_timesteps
        return weights_of(resumed.learn(left, SnapshotCallback(folder, every=40), reset_num_timesteps=False))

    assert_same_arrays(run(0), run(3))
    assert [str(w.message) for w in recwarn if "differs" in str(w.message)] == []


def test_an_environment_that_changed_between_reset_and_snapshot(tmp_path):
    class Harder(BaseCallback):
        def _on_step(self):
            if self.locals["dones"][0]:
                self.training_env.env_method("set_level", self.n_calls)
            return True

    class Levels(ToyEnv):
        level = 0

        def set_level(self, level):
            self.level = level

        def reset(self, **kwargs):
            observation, info = super().reset(**kwargs)
            return observation + 0.01 * self.level, info

    env = DummyVecEnv([Levels])
    with pytest.raises(CheckpointError, match="two different episodes after the same reset"):
        make(env=env).learn(80, [SnapshotCallback(tmp_path, every=10), Harder()])


def test_damaged_snapshots_are_not_among_those_that_are_kept(run):
    *_, older, newest = sorted(snapshots(run))
    newest.write_bytes(newest.read_bytes()[:1000])
    with pytest.warns(UserWarning, match="newest undamaged"):
        resumed = DDPGPaper.resume(run, vec_env())
    left = int(newest.stem.rpartition("_")[2]) + 20 - resumed.num_timesteps
    resumed.learn(left, SnapshotCallback(run, every=left - 10, keep=2), reset_num_timesteps=False)
    names = {path.name for path in snapshots(run)}
    assert older.name in names
    assert newest.name not in names or newest.stat().st_size > 1000


def test_weights_in_other_precisions(tmp_path):
    class Half(FlattenExtractor):
        def __init__(self, observation_space):
            super().__init__(observation_space)
            self.register_buffer("precise", th.ones(3, dtype=th.bfloat16))

    model = small_model(policy_kwargs={"net_arch": [4], "features_extractor_class": Half})
    model.learn(80, SnapshotCallback(tmp_path, every=20))
    assert witness_file(snapshots(tmp_path)[0]).exists()


def test_a_new_noise_of_a_resumed_run_has_its_seed(run):
    def draws():
        noise = OrnsteinUhlenbeckNoise(np.zeros(1))
        return DDPGPaper.resume(run, vec_env(), custom_objects={"action_noise": noise}).action_noise()

    assert draws() == draws()


@pytest.mark.parametrize("same_callback", [False, True])
def test_a_snapshot_at_the_start_of_another_learn_ends_the_episodes(tmp_path, same_callback):
    model, callback = make(replay_buffer_class=ReplayBuffer, env=DummyVecEnv([PointEnv])), None
    for _ in range(2):
        callback = callback if callback and same_callback else SnapshotCallback(tmp_path, every=30, reset=True)
        model.learn(30, callback, reset_num_timesteps=False)
    assert model.replay_buffer.timeouts[29, 0] == 1


def test_the_choice_of_resets_is_made_for_each_learn(tmp_path):
    """One environment waits for the end of an episode, two are reset."""
    callback = SnapshotCallback(tmp_path / "one", every=30)
    make(vec_env()).learn(STEPS, callback)
    callback.path = tmp_path / "two"
    make(vec_env(n_envs=2)).learn(STEPS, callback)
    assert snapshots(tmp_path / "two")
    assert callback.reset is None
