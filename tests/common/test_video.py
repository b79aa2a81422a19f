"""Videos of episodes: their frames, when they are recorded, and training if recording fails."""

import contextlib
import shutil

import numpy as np
import pytest
from gymnasium import spaces
from PIL import Image
from stable_baselines3 import TD3
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from toy_envs import ToyEnv
from toys import CountingEnv, small_model

from ddpg_ext import (
    EpisodeVideoCallback,
    InvalidArgumentError,
    InvalidArgumentTypeError,
    MissingExtraError,
    record_episode,
)

RED, STEP = 200, 10


class PictureEnv(CountingEnv):
    """A picture for each step: its green is ``STEP`` times the number of the step. Pays 1 each."""

    def __init__(self, length=8, fps=20, size=(40, 60), render_mode="rgb_array", fault_at=None):
        super().__init__(length)
        self.observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": fps}
        self.render_mode = render_mode
        self.size, self.fault_at = size, fault_at
        self.seeds, self.n_rendered = [], 0

    def _observation(self):
        return np.array([5.0], np.float32)

    def reset(self, *, seed=None, options=None):
        self.seeds.append(seed)
        return super().reset(seed=seed)

    def render(self):
        self.n_rendered += 1
        if self.n_rendered == self.fault_at:
            raise RuntimeError("no display")
        picture = np.zeros((*self.size, 3), np.uint8)
        picture[:] = RED, STEP * self.count, 0
        return picture


def read_gif(path):
    """Greens of the pictures in units of a step, milliseconds of each, and the size of the gif."""
    greens, durations = [], []
    with Image.open(path) as gif:
        for index in range(gif.n_frames):
            gif.seek(index)
            greens.append(round(float(np.asarray(gif.convert("RGB"))[..., 1].mean()) / STEP))
            durations.append(gif.info["duration"])
        return greens, durations, gif.size


def test_a_gif_has_a_picture_of_each_step(tmp_path):
    total = record_episode(small_model(PictureEnv()), PictureEnv(), tmp_path / "folder" / "agent.gif")
    # None of the next episode, and 20 in a second
    assert read_gif(tmp_path / "folder" / "agent.gif") == (list(range(8)), [50] * 8, (60, 40))
    assert total == 8.0
    assert [file.name for file in (tmp_path / "folder").iterdir()] == ["agent.gif"]


def test_a_gif_is_kept_small(tmp_path):
    """Of 100 pictures per second, each fourth, at most 300 pixels wide, and no longer than asked for."""
    env = PictureEnv(length=24, fps=100, size=(400, 600))
    assert record_episode(small_model(PictureEnv()), env, tmp_path / "agent.gif", max_steps=20, seed=7) == 20.0
    assert env.seeds == [7]
    assert read_gif(tmp_path / "agent.gif") == ([0, 4, 8, 12, 16], [40] * 5, (300, 200))


def test_mp4_with_odd_sides(tmp_path):
    pytest.importorskip("moviepy")
    iio = pytest.importorskip("imageio.v3")
    record_episode(small_model(PictureEnv()), PictureEnv(size=(121, 163)), tmp_path / "agent.mp4")
    pictures = iio.imread(tmp_path / "agent.mp4")
    assert pictures.shape == (8, 120, 162, 3)
    assert iio.immeta(tmp_path / "agent.mp4")["fps"] == 20
    np.testing.assert_allclose(pictures[..., 1].mean(axis=(1, 2)), STEP * np.arange(8), atol=8)
    assert [file.name for file in tmp_path.iterdir()] == ["agent.mp4"]


@pytest.mark.parametrize("wrapper", [lambda env: env, VecNormalize], ids=["raw", "normalised"])
def test_observations_are_normalised_as_in_training_and_returns_are_not(tmp_path, wrapper):
    """The policy sees (5 - mean) / deviation; nothing is learned from the video."""
    train = VecNormalize(DummyVecEnv([PictureEnv]))
    model = small_model(train)
    train.obs_rms.mean, train.obs_rms.var, train.ret_rms.var = np.array([1.0]), np.array([4.0]), np.array(9.0)
    seen = []
    predict = model.predict
    model.predict = lambda obs, **kwargs: (seen.append(float(obs[0, 0])), predict(obs, **kwargs))[1]
    assert record_episode(model, wrapper(DummyVecEnv([PictureEnv])), tmp_path / "agent.gif") == 8.0
    assert seen == pytest.approx([2.0] * 8)
    assert train.obs_rms.mean == 1.0


@pytest.mark.parametrize("fault_at", [None, 3])
def test_the_models_own_environment_learns_nothing_from_a_video(tmp_path, fault_at):
    """Its statistics, its normalised rewards and whether it learns are as before, even if the renderer fails."""
    train = VecNormalize(DummyVecEnv([lambda: PictureEnv(fault_at=fault_at)]))
    model = small_model(train)
    model.learn(20)
    before = [(rms.mean.copy(), rms.var.copy(), rms.count) for rms in (train.obs_rms, train.ret_rms)]
    with contextlib.nullcontext() if fault_at is None else pytest.raises(RuntimeError, match="no display"):
        assert record_episode(model, model.get_env(), tmp_path / "agent.gif") == 8.0
    assert [(rms.mean, rms.var, rms.count) for rms in (train.obs_rms, train.ret_rms)] == before
    assert train.training


def test_videos_while_training_and_at_its_end(tmp_path, capsys):
    env = PictureEnv()
    callback = EpisodeVideoCallback(env, tmp_path, every=20, seed=3, verbose=1)
    small_model(PictureEnv()).learn(50, callback=callback)
    at_interval = PictureEnv()
    small_model(PictureEnv()).learn(40, callback=EpisodeVideoCallback(at_interval, tmp_path / "two", every=20))
    assert len(at_interval.seeds) == 4
    shutil.rmtree(tmp_path / "two")
    assert {file.name for file in tmp_path.iterdir()} == {f"episode_{steps}_steps.gif" for steps in (20, 40, 50)}
    assert read_gif(tmp_path / "episode_40_steps.gif")[0] == list(range(8))
    # Each with the same start; between them the environment resets itself
    assert env.seeds == [3, None] * 3
    assert "Episode after 40 steps, return 8.0" in capsys.readouterr().out


def test_with_each_new_best_of_an_eval_callback(tmp_path):
    video = EpisodeVideoCallback(PictureEnv(), tmp_path, every=1)
    evaluated_in = PictureEnv(fault_at=1)  # it is not rendered
    callback = EvalCallback(evaluated_in, video, eval_freq=20, n_eval_episodes=1, verbose=0, warn=False)
    small_model(PictureEnv()).learn(60, callback=callback)
    assert [file.name for file in tmp_path.iterdir()] == ["episode_20_steps.gif"]  # all returns are equal


def test_tensorboard_has_the_video(tmp_path):
    pytest.importorskip("moviepy.editor")
    model = small_model(PictureEnv())
    model.set_logger(configure(str(tmp_path / "log"), ["tensorboard", "csv", "json", "log"]))
    model.learn(20, callback=EpisodeVideoCallback(PictureEnv(), tmp_path / "videos", every=20, log=True))
    model.logger.close()
    events = EventAccumulator(str(tmp_path / "log"))
    events.Reload()
    (image,) = events.Images("eval/episode")
    assert image.step == 20
    assert image.encoded_image_string.startswith(b"GIF8")
    assert (image.width, image.height) == (60, 40)


def test_a_renderer_that_fails_does_not_stop_training(tmp_path):
    env = PictureEnv(fault_at=12)
    model = small_model(PictureEnv())
    with pytest.warns(UserWarning, match=r"could not be recorded: .*no display.*continues without videos") as caught:
        model.learn(60, callback=EpisodeVideoCallback(env, tmp_path, every=20))
    assert len([warning for warning in caught if "videos" in str(warning.message)]) == 1
    assert model.num_timesteps == 60
    assert [file.name for file in tmp_path.iterdir()] == ["episode_20_steps.gif"]


def test_bad_arguments(tmp_path, monkeypatch):
    env = PictureEnv()
    with pytest.raises(InvalidArgumentTypeError, match="`log` must be True or False"):
        EpisodeVideoCallback(env, tmp_path, log="yes")
    with pytest.raises(InvalidArgumentError, match="`file_format` 'avi' is unknown"):
        EpisodeVideoCallback(env, tmp_path, file_format="avi")
    with pytest.raises(InvalidArgumentError, match=r"must end in '.gif' or '.mp4', got the suffix ''"):
        record_episode(small_model(PictureEnv()), env, tmp_path / "video")
    monkeypatch.setitem(__import__("sys").modules, "PIL.Image", None)
    with pytest.raises(MissingExtraError, match=r"a GIF needs .*: pip install 'ddpg_ext\[extra\]'"):
        EpisodeVideoCallback(env, tmp_path)


def test_environments_that_do_not_fit(tmp_path):
    model = small_model(PictureEnv())
    with pytest.raises(InvalidArgumentError, match="`env` must have render_mode='rgb_array', got None"):
        model.learn(1, callback=EpisodeVideoCallback(PictureEnv(render_mode=None), tmp_path))
    with pytest.raises(InvalidArgumentError, match="`env` must have the model's observation_space"):
        record_episode(model, ToyEnv(), tmp_path / "video.gif")
    env = PictureEnv()
    with pytest.raises(InvalidArgumentError, match="must not be the training environment"):
        small_model(env).learn(1, callback=EpisodeVideoCallback(env, tmp_path))


def test_a_video_of_the_models_environment_ends_its_episode(tmp_path):
    """Otherwise a transition would lead from the training episode to the end of the one in the video."""
    env = PictureEnv(length=9)
    model = small_model(env, replay_buffer_class=ReplayBuffer).learn(5)
    record_episode(model, model.get_env(), tmp_path / "episode.gif", max_steps=3)
    episodes = env.episode
    model.learn(5, reset_num_timesteps=False)
    assert env.episode == episodes + 1
    assert model.replay_buffer.timeouts[4, 0] == 1
    with pytest.raises(InvalidArgumentError, match="must not be the training environment"):  # in a callback
        model.learn(5, lambda *_: record_episode(model, model.get_env(), tmp_path / "episode.gif"))
    record_episode(model, model.get_env(), tmp_path / "episode.gif")  # after a callback ended training


def test_another_algorithms_training_environment_is_refused(tmp_path):
    """Whether it is training cannot be known, and its next transition would begin in another episode."""
    model = TD3("MlpPolicy", PictureEnv(), buffer_size=100)
    with pytest.raises(InvalidArgumentError, match="must not be the training environment"):
        record_episode(model, model.get_env(), tmp_path / "episode.gif")
