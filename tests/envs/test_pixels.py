"""PixelActionRepeat: the frames and their order, rewards, and ends of episodes."""

import sys

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv

from ddpg_ext import DDPGPaper, InvalidArgumentError, InvalidArgumentTypeError, MissingExtraError
from ddpg_ext.envs import PixelActionRepeat


class Numbered(gym.Env):
    """Pictures, rendered or observed, are filled with the step's number: red with it, green + 50, blue + 100."""

    metadata = {"render_modes": ["rgb_array", "ansi"], "render_fps": 30}

    def __init__(self, length=10, terminates=True, size=(64, 64), observes=False, render_mode="rgb_array", **metadata):
        self.length, self.terminates, self.size, self.observes = length, terminates, size, observes
        self.render_mode, self.metadata = render_mode, {**self.metadata, **metadata}
        self.n_rendered, self.n_steps, self.actions = 0, 0, []
        box = spaces.Box(0, 255, (*size, 3), np.uint8) if observes else spaces.Box(-1, 1, (2,), np.float32)
        self.observation_space = box
        self.action_space = spaces.Box(-1, 1, (1,), np.float32)

    def picture(self):
        return np.broadcast_to(np.uint8([self.t, self.t + 50, self.t + 100]), (*self.size, 3)).copy()

    def observation(self):
        return self.picture() if self.observes else np.zeros(2, np.float32)

    def render(self):
        self.n_rendered += 1
        return self.picture()

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.observation(), {"start": True}

    def step(self, action):
        self.actions.append(float(action[0]))
        self.t += 1
        self.n_steps += 1
        over = self.t >= self.length
        return self.observation(), float(self.t), over and self.terminates, over and not self.terminates, {"t": self.t}


def numbers(observation):
    """The steps' numbers that an observation shows, from the oldest; every pixel of a picture has the same colours."""
    assert (observation == observation[0, 0]).all()
    pictures = observation[0, 0].reshape(-1, 3).astype(int)
    np.testing.assert_array_equal(pictures - pictures[:, :1], [[0, 50, 100]] * len(pictures))  # red, green, blue
    return pictures[:, 0].tolist()


ACTION = np.float32([0.5])


@pytest.mark.parametrize(("observes", "size"), [(False, (64, 64)), (True, (128, 200))])
def test_frames_are_those_of_the_repeated_steps_in_order(observes, size):
    env = PixelActionRepeat(Numbered(size=size, observes=observes))
    observation, info = env.reset(seed=0)
    assert info == {"start": True}
    assert numbers(observation) == [0, 0, 0]
    for k in range(3):
        observation, reward, terminated, truncated, info = env.step(ACTION)
        steps = [3 * k + 1, 3 * k + 2, 3 * k + 3]
        assert numbers(observation) == steps
        assert (reward, terminated, truncated, info) == (sum(steps), False, False, {"t": steps[-1]})
        assert observation.dtype == np.uint8
        assert observation.shape == env.observation_space.shape == (64, 64, 9)
    assert env.unwrapped.actions == [0.5] * 9
    assert env.unwrapped.n_rendered == (0 if observes else 10)


@pytest.mark.parametrize(
    ("length", "terminates", "shown", "reward"),
    [(4, True, [4, 4, 4], 4), (5, False, [4, 5, 5], 9), (6, True, [4, 5, 6], 15)],
)
def test_an_episode_that_ends_amid_a_repetition(length, terminates, shown, reward):
    env = PixelActionRepeat(Numbered(length, terminates))
    env.reset()
    env.step(ACTION)
    observation, total, terminated, truncated, _ = env.step(ACTION)
    assert numbers(observation) == shown
    assert (total, terminated, truncated) == (reward, terminates, not terminates)
    assert env.unwrapped.n_steps == length
    assert numbers(env.reset()[0]) == [0, 0, 0]


@pytest.mark.parametrize(("repeat", "size"), [(1, 84), (4, 17)])
def test_repeat_and_size(repeat, size):
    env = PixelActionRepeat(Numbered(size=(84, 90)), repeat=repeat, size=size)
    env.reset()
    observation, reward, *_ = env.step(ACTION)
    assert observation.shape == (size, size, 3 * repeat)
    assert numbers(observation) == list(range(1, repeat + 1))
    assert reward == repeat * (repeat + 1) / 2


def test_reduction_is_the_mean_over_areas():
    """A picture of noise, four pixels to one; and a single white pixel, which neighbours of its area do not feel."""

    class Noise(Numbered):
        def picture(self):
            return PICTURE

    env = PixelActionRepeat(Noise(size=(128, 128)), repeat=1)
    PICTURE = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    means = PICTURE.reshape(64, 2, 64, 2, 3).mean(axis=(1, 3))
    assert np.abs(env.reset()[0] - means).max() <= 1  # Pillow rounds rows, then columns
    PICTURE = np.zeros((128, 128, 3), np.uint8)
    PICTURE[41, 60] = 200
    reduced = env.reset()[0]
    assert reduced[20, 30].tolist() == [50, 50, 50]
    assert reduced.sum() == 150


def test_what_is_returned_stays_as_it_is():
    """An environment may draw all its frames into the same array."""

    class Reuses(Numbered):
        canvas = np.zeros((64, 64, 3), np.uint8)

        def picture(self):
            self.canvas[...] = super().picture()
            return self.canvas

    env = PixelActionRepeat(Reuses())
    env.reset()
    observation, *_ = env.step(ACTION)
    env.step(ACTION)
    assert numbers(observation) == [1, 2, 3]


@pytest.mark.filterwarnings("ignore:.*symmetric and normalized")
def test_a_real_environment():
    """Without a display, SB3's checker finds nothing to complain about, and the same seed gives the same pictures."""
    pytest.importorskip("mujoco")
    env = PixelActionRepeat(gym.make("HalfCheetah-v5", render_mode="rgb_array", width=64, height=64))
    check_env(env)
    action = env.action_space.high / 2
    rollouts = []
    for _ in range(2):
        observation, _ = env.reset(seed=3)
        assert observation.std() > 0
        rollouts.append([observation, *(env.step(action)[0] for _ in range(2))])
    np.testing.assert_array_equal(*rollouts)
    # The pictures of a moving thing are not the same
    assert (rollouts[0][-1][..., :3] != rollouts[0][-1][..., 6:]).any()
    env.close()


def test_gymnasium_makes_it_anew_from_its_spec():
    env = PixelActionRepeat(gym.make("Pendulum-v1", render_mode="rgb_array"), repeat=2, size=32)
    again = gym.make(env.spec)
    assert isinstance(again, PixelActionRepeat)
    assert (again.repeat, again.size) == (2, 32)


VALUE, TYPE = InvalidArgumentError, InvalidArgumentTypeError


@pytest.mark.parametrize(
    ("env", "kwargs", "error", "message"),
    [
        (Numbered(render_mode=None), {}, VALUE, r'None.*make it with render_mode="rgb_array"'),
        (Numbered(render_mode="ansi"), {}, VALUE, r"'ansi'.*render_mode=\"rgb_array\""),
        (Numbered(render_mode="ansi", render_modes=["ansi"]), {}, VALUE, r"it supports only \['ansi'\]"),
        ("Pendulum-v1", {}, TYPE, "Gymnasium environment, got 'Pendulum-v1'"),
        (DummyVecEnv([Numbered]), {}, TYPE, "VecEnv.*wrapper_class=PixelActionRepeat"),
        (Numbered(), {"repeat": 0}, VALUE, "`repeat`.*0"),
        (Numbered(), {"repeat": 1.5}, TYPE, "`repeat`.*1.5"),
        (Numbered(), {"size": (64, 64)}, TYPE, r"`size`.*\(64, 64\)"),
        (Numbered(), {"size": 9}, VALUE, r"`size`.*3 \* repeat = 9, got 9"),
        (Numbered(size=(64, 48), observes=True), {}, VALUE, "`size` must be at most 48.*64x48.*got 64"),
    ],
)
def test_wrong_arguments(env, kwargs, error, message):
    with pytest.raises(error, match=message):
        PixelActionRepeat(env, **kwargs)


def test_odd_frames_are_refused(monkeypatch):
    for frame, message in (
        (None, "got None"),
        ([np.zeros((64, 64, 3), np.uint8)], r"must render arrays of uint8 \(height, width, 3\)"),
        (np.zeros((64, 64), np.uint8), r"\(64, 64\)"),
        (np.zeros((64, 64, 4), np.uint8), r"\(64, 64, 4\)"),
        (np.zeros((64, 64, 3), np.float32), "float32"),
        (np.zeros((32, 64, 3), np.uint8), "`size` must be at most 32"),
    ):
        env = PixelActionRepeat(Numbered())
        monkeypatch.setattr(env.unwrapped, "picture", lambda frame=frame: frame)
        with pytest.raises(InvalidArgumentError, match=message):
            env.reset()


def test_without_pillow(monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(MissingExtraError, match=r"PixelActionRepeat needs .*: pip install 'ddpg_ext\[extra\]'"):
        PixelActionRepeat(Numbered())


@pytest.mark.parametrize(("channels", "render_mode"), [(3, None), (1, "rgb_array")], ids=["RGB", "grey"])
def test_rgb_observations_need_no_rendering_and_grey_ones_do(channels, render_mode):
    env = Numbered(observes=channels == 3, render_mode=render_mode)
    env.observation_space = spaces.Box(0, 255, (64, 64, channels), np.uint8)
    assert numbers(PixelActionRepeat(env).reset()[0]) == [0, 0, 0]


def test_the_pictures_reach_the_minibatch_as_they_are():
    """uint8 all the way, channels first; the next observation has the next three pictures, also at an episode's end."""
    env = make_vec_env(
        lambda: Numbered(length=8), n_envs=2, wrapper_class=PixelActionRepeat, wrapper_kwargs={"size": 32}
    )
    model = DDPGPaper("CnnPolicy", env, buffer_size=50, seed=0, device="cpu", gradient_steps=0)
    model.learn(36)
    for _ in range(5):
        batch = model.replay_buffer.sample(16)
        for name in ("observations", "next_observations"):
            assert getattr(batch, name).numpy().dtype == np.uint8
            assert getattr(batch, name).shape == (16, 9, 32, 32)
        for observation, following, done, reward in zip(
            batch.observations, batch.next_observations, batch.dones, batch.rewards, strict=True
        ):
            before, after = (numbers(x.permute(1, 2, 0).numpy()) for x in (observation, following))
            # Steps 1, 2, 3; 4, 5, 6; 7, 8 and the end
            assert {0: [1, 2, 3], 3: [4, 5, 6], 6: [7, 8, 8]}[before[-1]] == after
            assert done == (after[-1] == 8)
            assert reward == sum(set(after))
