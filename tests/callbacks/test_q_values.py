"""Estimated Q against observed returns: with critics and rewards whose true values are known in closed form."""

import io

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from gymnasium.envs.classic_control import PendulumEnv
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image
from sb3_contrib import TQC
from stable_baselines3 import PPO, TD3
from stable_baselines3.common.callbacks import EvalCallback, EveryNTimesteps
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import configure
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from toy_envs import ToyEnv
from toys import CountingEnv, recorded, small_model

from ddpg_ext import (
    DDPGPaper,
    EpisodeVideoCallback,
    InvalidArgumentError,
    InvalidArgumentTypeError,
    LivePlotCallback,
    QValueBiasCallback,
    SaturationMonitor,
    record_episode,
)
from ddpg_ext.callbacks import q_values
from ddpg_ext.callbacks.periodic import first_critic
from ddpg_ext.callbacks.q_values import QValues, measure_q_values, plot_q_values, summarize
from ddpg_ext.common.evaluation import evaluation_env

GAMMA = 0.9


class ClockEnv(CountingEnv):
    """Observation: the number of the step. Each pays ``reward``. Bounds of the action are not those of tanh."""

    def __init__(self, length=10, terminates=True, reward=1.0):
        super().__init__(length, terminates, reward, spaces.Box(-2, 3, (1,), np.float32))
        self.observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)

    def _observation(self):
        return np.array([self.count], np.float32)


def make_model(env, critic, **kwargs):
    """A model whose critic is a function of observations and scaled actions, tensors of shape (batch, 1)."""
    model = small_model(env, gamma=GAMMA, policy_kwargs={"batch_norm": False}, **kwargs)
    model.critic.forward = critic
    return model


def measure(model, env, n_episodes):
    return measure_q_values(model, evaluation_env(model, env), n_episodes)


def to_go(steps, length):
    """Discounted rewards of 1 from a step to the end of the episode."""
    return (1 - GAMMA ** (length - steps)) / (1 - GAMMA)


def test_terminated_episodes_have_their_true_returns():
    """A critic that is right but for 3 has a bias of 3 and a correlation of 1."""
    model = make_model(ClockEnv(), lambda obs, _: to_go(obs, 10) + 3)
    values = measure(model, ClockEnv(), 4)
    np.testing.assert_allclose(values.observed, np.tile(to_go(np.arange(10), 10), 4), rtol=1e-6)
    np.testing.assert_allclose(values.estimated, values.observed + 3, rtol=1e-5)
    assert values.missing.tolist() == [0.0] * 40
    assert values.episode.tolist() == np.repeat(range(4), 10).tolist()
    summary = summarize(values)
    assert summary["bias"] == pytest.approx(3, rel=1e-5)
    assert summary["correlation"] == pytest.approx(1)
    assert summary["observed"] == pytest.approx(to_go(np.arange(10), 10).mean())


@pytest.mark.parametrize("error", [0.0, 5.0])
def test_bootstrapping_hides_the_missing_part_of_the_bias(error):
    """The task never ends: V = 1 / (1 - gamma). k steps before the end, the part 1 - gamma^k of an error is visible."""
    true = 1 / (1 - GAMMA)
    model = make_model(ClockEnv(terminates=False), lambda obs, _: th.full_like(obs, true + error))
    values = measure(model, ClockEnv(terminates=False), 2)
    missing = np.tile(GAMMA ** np.arange(10, 0, -1), 2)
    np.testing.assert_allclose(values.observed, true + error * missing, rtol=1e-6)
    np.testing.assert_allclose(values.missing, missing, rtol=1e-6)
    summary = summarize(values)
    assert summary["bias"] == pytest.approx(error * (1 - summary["missing"]), rel=1e-5, abs=1e-5)
    assert "correlation" not in summary  # the estimates are constant


def test_dropping_leaves_the_steps_that_lack_little(silent_logger):
    """0.9^29 < 0.05 < 0.9^28: of 40 steps the first 12 stay."""
    model = make_model(ClockEnv(), lambda obs, _: th.full_like(obs, 10.0))
    model.set_logger(silent_logger)
    for length, left in ((40, 12), (28, 0)):
        callback = QValueBiasCallback(ClockEnv(length, terminates=False), n_eval_episodes=1, truncated="drop")
        callback.init_callback(model)
        callback._on_interval()
        assert len(callback.last.estimated) == left
        assert np.all(callback.last.missing <= 0.05)


def test_q_is_that_of_the_policys_own_scaled_action():
    """The critic gives back the action: what it saw is mu(s), in [-1, 1], and without noise."""
    model = make_model(ClockEnv(), lambda _, actions: actions)
    with th.no_grad():
        model.actor.mu[0].weight.mul_(3)
        model.actor.mu[2].weight.mul_(200)
    values = measure(model, ClockEnv(), 1)
    unscaled, _ = model.predict(np.arange(10, dtype=np.float32)[:, None], deterministic=True)
    np.testing.assert_allclose(values.estimated, (unscaled[:, 0] + 2) / 5 * 2 - 1, atol=1e-6)
    assert np.ptp(values.estimated) > 0.1


def test_the_running_averages_are_used():
    """A critic with batch norm gives the same value for an observation, whatever the others."""
    model = small_model(ToyEnv()).learn(30)
    model.policy.set_training_mode(True)
    env = evaluation_env(model, DummyVecEnv([ToyEnv, ToyEnv]))
    env.seed(0)
    values = measure_q_values(model, env, 2)
    single = evaluation_env(model, ToyEnv())
    single.seed(0)
    np.testing.assert_allclose(measure_q_values(model, single, 1).estimated, values.estimated[:20], rtol=1e-4)


def test_several_environments_keep_their_episodes_apart():
    model = make_model(ClockEnv(), lambda obs, _: obs)
    env = DummyVecEnv([lambda: ClockEnv(3, reward=1.0), lambda: ClockEnv(5, reward=10.0)])
    values = measure(model, env, 4)
    episodes = [values.observed[values.episode == number] for number in range(4)]
    short, long = to_go(np.arange(3), 3), 10 * to_go(np.arange(5), 5)
    assert sorted(map(len, episodes)) == [3, 3, 5, 5]
    for episode in episodes:
        np.testing.assert_allclose(episode, short if len(episode) == 3 else long, rtol=1e-6)
    assert values.estimated.tolist() == [float(step) for episode in episodes for step in range(len(episode))]


@pytest.mark.parametrize("wrapped", [True, False], ids=["evaluation normalises, too", "evaluation is raw"])
def test_the_returns_are_in_the_rewards_that_the_critic_learns_from(wrapped):
    """Rewards of 6 with a variance of 4 are 3, those of 100 are clipped at 10."""
    train = VecNormalize(DummyVecEnv([ClockEnv]), clip_reward=10.0, gamma=GAMMA)
    train.ret_rms.var = 4.0 - train.epsilon
    train.obs_rms.mean, train.obs_rms.var = np.array([2.0]), np.array([9.0 - train.epsilon])
    # The critic undoes the normalisation of the observations, which must be that of the training
    model = make_model(train, lambda obs, _: 3 * to_go(3 * obs + 2, 10))
    for reward, normalized in ((6.0, 3.0), (100.0, 10.0)):
        env = DummyVecEnv([lambda reward=reward: ClockEnv(reward=reward)])
        env = VecNormalize(env, norm_reward=True, clip_reward=0.1) if wrapped else env
        values = measure(model, env, 1)
        np.testing.assert_allclose(values.observed, normalized * to_go(np.arange(10), 10), rtol=1e-6)
        np.testing.assert_allclose(values.estimated, 3 * to_go(np.arange(10), 10), rtol=1e-5)
    train.norm_reward = False
    values = measure(model, ClockEnv(reward=6.0), 1)
    np.testing.assert_allclose(values.observed, 6 * to_go(np.arange(10), 10), rtol=1e-6)
    assert train.obs_rms.count < 1  # not one observation of these was learned from


def test_other_critics():
    """With n-step returns, the critic's discount is still gamma per step; of two critics, the first is measured."""
    n_step = make_model(ClockEnv(), lambda obs, _: to_go(obs, 10), n_steps=3)
    td3 = TD3("MlpPolicy", ClockEnv(), gamma=GAMMA, policy_kwargs={"net_arch": [8]}, device="cpu", buffer_size=10)
    td3.critic.forward = lambda obs, _: (to_go(obs, 10), obs)
    for model in (n_step, td3):
        assert summarize(measure(model, ClockEnv(), 1))["bias"] == pytest.approx(0, abs=1e-5)


def test_training_logs_it_regularly(tmp_path):
    model = make_model(ClockEnv(), lambda obs, _: to_go(obs, 10) + 3, learning_starts=1000)
    records = recorded(model)
    callback = QValueBiasCallback(ClockEnv(), every=20, n_eval_episodes=2, path=tmp_path / "q", verbose=1)
    model.learn(50, callback=callback)
    logs = [values for _, values in records.dumps if "eval/q_bias" in values]
    assert [values["time/total_timesteps"] for values in logs] == [20, 40]
    for name, expected in {"bias": 3.0, "correlation": 1.0, "missing": 0.0}.items():
        assert [values[f"eval/q_{name}"] for values in logs] == pytest.approx([expected] * 2, abs=1e-5)
    assert {"eval/q_estimated", "eval/q_observed"} <= logs[0].keys()

    names = {f"q_values_{steps}_steps.{suffix}" for steps in (20, 40) for suffix in ("npz", "png")}
    assert {file.name for file in (tmp_path / "q").iterdir()} == names
    with np.load(tmp_path / "q" / "q_values_40_steps.npz") as saved:
        assert saved["timesteps"] == 40
        np.testing.assert_array_equal(saved["observed"], callback.last.observed)
        np.testing.assert_array_equal(saved["estimated"], callback.last.estimated)


def log_with(tmp_path, formats, *others):
    """One evaluation, logged in some formats, with other callbacks."""
    model = make_model(ClockEnv(), lambda obs, _: to_go(obs, 10) + 3, learning_starts=1000)
    model.set_logger(configure(str(tmp_path), formats))
    callback = QValueBiasCallback(ClockEnv(), every=20, n_eval_episodes=2)
    model.learn(30, callback=[*others, callback])
    model.logger.close()
    return callback


def test_tensorboard_has_the_figure_and_text_formats_do_without(tmp_path):
    callback = log_with(tmp_path, ["stdout", "log", "json", "csv", "tensorboard"])
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    (image,) = events.Images("eval/q_values")
    assert image.step == 20
    canvas = FigureCanvasAgg(plot_q_values(callback.last, "DDPGPaper, step 20"))
    canvas.draw()
    expected = np.asarray(canvas.buffer_rgba())[..., :3]
    np.testing.assert_array_equal(Image.open(io.BytesIO(image.encoded_image_string)).convert("RGB"), expected)
    for name in ("progress.json", "progress.csv", "log.txt"):
        text = (tmp_path / name).read_text()
        assert "q_bias" in text
        assert "q_values" not in text


def test_nothing_is_drawn_that_nobody_would_see(tmp_path, monkeypatch):
    def no_drawing(*_):
        raise AssertionError

    monkeypatch.setattr(q_values, "plot_q_values", no_drawing)
    log_with(tmp_path / "text", ["log", "json", "csv"])
    # Which listens to the log for two numbers
    log_with(tmp_path / "live", ["log"], LivePlotCallback(tmp_path / "live.png", every=1000))
    monkeypatch.setattr(q_values, "find_spec", lambda name: None)  # without matplotlib
    log_with(tmp_path / "tensorboard", ["tensorboard"])
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert "eval/q_bias" in events.Tags()["scalars"]
    assert events.Tags()["images"] == []


def test_the_figure_has_a_line_for_estimates_that_are_right():
    rng = np.random.default_rng(0)
    observed = rng.normal(size=50)
    figure = plot_q_values(QValues(observed + 1, observed, np.zeros(50), np.zeros(50)), "a title")
    axes = figure.axes[0]
    (line,) = axes.lines
    assert line.get_xdata().tolist() == line.get_ydata().tolist()
    assert axes.get_xlim() == axes.get_ylim()
    assert axes.get_xlim()[0] < observed.min() < (observed + 1).max() < axes.get_xlim()[1]
    assert axes.get_title() == "a title"
    # Constant values, and none
    plot_q_values(QValues(np.ones(5), np.ones(5), np.zeros(5), np.zeros(5)))
    empty = plot_q_values(QValues(*[np.empty(0)] * 4))
    assert "cut off" in empty.axes[0].texts[0].get_text()


def test_the_environment_of_the_training_is_known_in_every_wrapping():
    env = ClockEnv()
    model = make_model(VecNormalize(DummyVecEnv([lambda: env])), lambda obs, _: obs)
    for same in (Monitor(env), DummyVecEnv([ClockEnv, lambda: env])):
        with pytest.raises(InvalidArgumentError, match="must not be the training environment"):
            model.learn(1, callback=QValueBiasCallback(same))
    with pytest.raises(InvalidArgumentError, match="`env` must have the model's observation_space"):
        model.learn(1, callback=QValueBiasCallback(ToyEnv()))
    assert model.num_timesteps == 0


class ReusingVecEnv(DummyVecEnv):
    """Return the same array in each step."""

    def reset(self):
        self.shared = super().reset()
        return self.shared

    def step_wait(self):
        obs, *others = super().step_wait()
        self.shared[...] = obs
        return self.shared, *others


def test_observations_in_the_same_array_in_each_step():
    model = make_model(ClockEnv(), lambda obs, _: to_go(obs, 10))
    values = measure_q_values(model, ReusingVecEnv([ClockEnv]), 2)
    np.testing.assert_allclose(values.estimated, values.observed, rtol=1e-5)


def test_nothing_is_added_if_time_limits_are_terminal():
    kwargs = {"replay_buffer_kwargs": {"handle_timeout_termination": False}}
    model = make_model(ClockEnv(), lambda obs, _: to_go(obs, 10), **kwargs)
    values = measure_q_values(model, gym.wrappers.TimeLimit(ClockEnv(20, terminates=False), 10), 1)
    np.testing.assert_allclose(values.observed, to_go(np.arange(10), 10), rtol=1e-6)
    assert values.missing.tolist() == [0.0] * 10


def test_measure_q_values_makes_and_normalises_the_environment():
    model = small_model(VecNormalize(DummyVecEnv([ToyEnv]))).learn(50)
    returned = []
    for env in (DummyVecEnv([ToyEnv]), evaluation_env(model, DummyVecEnv([ToyEnv]))):
        env.seed(0)
        returned.append(measure_q_values(model, env, 1).estimated)
    np.testing.assert_array_equal(*returned)


def test_an_environment_that_the_model_cannot_be_measured_in():
    model = small_model(ToyEnv())
    measure_q_values(model, model.get_env(), 1)  # a DDPGPaper knows that it is not training
    other = TD3("MlpPolicy", ToyEnv(), buffer_size=100)
    with pytest.raises(InvalidArgumentError, match="must not be the training environment"):
        measure_q_values(other, other.get_env(), 1)
    with pytest.raises(InvalidArgumentError, match="must not normalise observations"):
        measure_q_values(model, VecNormalize(DummyVecEnv([ToyEnv])), 1)
    with pytest.raises(InvalidArgumentError, match="`n_eval_episodes`"):
        measure_q_values(model, ToyEnv(), 0)
    with pytest.raises(InvalidArgumentTypeError, match="`truncated` must be one of 'bootstrap', 'drop', got 3"):
        QValueBiasCallback(ToyEnv(), truncated=3)


@pytest.mark.parametrize("play", ["values", "video"])
def test_the_models_environment_keeps_its_statistics_and_begins_a_new_episode(play, tmp_path):
    """Also if its resets return the same dict of information each time."""
    env = VecNormalize(DummyVecEnv([lambda: gym.make("Pendulum-v1", render_mode="rgb_array")]))
    model = small_model(env, gamma=GAMMA)
    model.learn(20)
    count, mean = env.obs_rms.count, env.obs_rms.mean.copy()
    if play == "values":
        measure_q_values(model, env, 1)
    else:
        record_episode(model, env, tmp_path / "agent.gif", max_steps=5)
    assert (env.obs_rms.count, *env.obs_rms.mean) == (count, *mean)
    assert env.training
    assert model._last_obs is None


def test_a_second_learn_calls_it_as_callback_on_new_best():
    steps = []

    class Noted(QValueBiasCallback):
        def _on_interval(self):
            steps.append(self.num_timesteps)

    noted = Noted(ClockEnv(), every=1)
    model = small_model(ClockEnv())
    for _ in range(2):  # a new EvalCallback has its first best mean reward at its first evaluation
        model.learn(20, EvalCallback(ClockEnv(), noted, eval_freq=10, n_eval_episodes=1, warn=False, verbose=0))
    assert steps == [10, 10]


def test_a_folder_that_cannot_be_written_does_not_stop_training(tmp_path):
    (tmp_path / "file").write_text("")
    callback = QValueBiasCallback(ClockEnv(), every=10, n_eval_episodes=1, path=tmp_path / "file" / "below")
    with pytest.warns(UserWarning, match="could not be written.*Training continues without this figure"):
        model = small_model(ClockEnv()).learn(20, callback)
    assert model.num_timesteps == 20
    assert callback.last is not None


def test_an_environment_from_an_id_is_closed_and_made_again(tmp_path, monkeypatch):
    closed = []
    monkeypatch.setattr(PendulumEnv, "close", lambda self: closed.append(self))
    callbacks = [
        QValueBiasCallback("Pendulum-v1", every=10, n_eval_episodes=1),
        EpisodeVideoCallback("Pendulum-v1", tmp_path, every=10, max_steps=2),
    ]
    model = small_model(gym.make("Pendulum-v1"))
    for n in (2, 4):
        model.learn(20, callbacks, reset_num_timesteps=False)
        assert len({*map(id, closed)}) == n
        assert len(list(tmp_path.iterdir())) == n


def test_nested_callbacks_leave_one_environment_open_at_most(tmp_path, monkeypatch):
    """``EveryNTimesteps`` does not tell its callback that training ends."""
    made, closed = [], []
    init = PendulumEnv.__init__
    monkeypatch.setattr(PendulumEnv, "__init__", lambda self, **kwargs: (made.append(self), init(self, **kwargs))[1])
    monkeypatch.setattr(PendulumEnv, "close", lambda self: closed.append(self))
    callback = EveryNTimesteps(10, QValueBiasCallback("Pendulum-v1", every=1, n_eval_episodes=1))
    model = small_model(gym.make("Pendulum-v1"))
    for _ in range(3):
        model.learn(10, callback)
    training, *_, last = made
    assert len(made) == 4
    assert [env for env in made if env not in closed] == [training, last]


def test_an_environment_that_cannot_be_closed_does_not_end_training(monkeypatch):
    def fails(self):
        raise OSError("no display")

    monkeypatch.setattr(PendulumEnv, "close", fails)
    model = small_model(gym.make("Pendulum-v1"))
    with pytest.warns(UserWarning, match="'Pendulum-v1' of QValueBiasCallback could not be closed: OSError"):
        model.learn(20, QValueBiasCallback("Pendulum-v1", every=10, n_eval_episodes=1))
    assert model.num_timesteps == 20


def test_steps_with_nan_are_not_drawn():
    columns = np.array([[1.0, np.nan, 3.0], [1.5, 2.0, np.inf], np.zeros(3), np.zeros(3)])
    axes = plot_q_values(QValues(*columns)).axes[0]
    assert np.isfinite([axes.get_xlim(), axes.get_ylim()]).all()
    (text,) = plot_q_values(QValues(*columns[:, 1:])).axes[0].texts
    assert text.get_text() == "all values are infinite or NaN"


def test_a_wrapper_outside_of_the_monitor_ends_episodes():
    """SB3 applies ``wrapper_class`` around ``Monitor``, which then reports no episode."""
    env = make_vec_env("Pendulum-v1", wrapper_class=lambda wrapped: gym.wrappers.TimeLimit(wrapped, 5))
    values = measure_q_values(small_model(gym.make("Pendulum-v1")), env, 3)
    assert values.episode.tolist() == [0] * 5 + [1] * 5 + [2] * 5


def test_quantiles_become_their_mean():
    model = TQC("MlpPolicy", "Pendulum-v1", policy_kwargs={"net_arch": [8]}, buffer_size=10, device="cpu")
    env = gym.make("Pendulum-v1", max_episode_steps=4)
    values = measure_q_values(model, env, 1)
    env.reset(seed=0)
    obs = th.as_tensor(np.float32([[0.5, 0.1, 0.2]]))
    quantiles = model.critic(obs, th.zeros(1, 1))
    assert first_critic(quantiles).tolist() == [quantiles[0, 0].mean().item()]
    assert len(values.estimated) == 4


@pytest.mark.parametrize(
    "callback", [QValueBiasCallback("Pendulum-v1"), SaturationMonitor()], ids=lambda c: type(c).__name__
)
def test_a_model_without_a_critic_is_refused_before_training(callback):
    model = PPO("MlpPolicy", "Pendulum-v1", n_steps=32, batch_size=32, device="cpu")
    with pytest.raises(InvalidArgumentError, match=rf"{type(callback).__name__} needs a model with .*, got PPO"):
        model.learn(32, callback)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"norm_obs": False}, "norm_obs=True, .* got norm_obs=False"),
        ({"clip_obs": 0.1}, "clip_obs=10.0, .* got clip_obs=0.1"),
    ],
)
def test_another_normalisation_is_refused(kwargs, message):
    model = small_model(VecNormalize(DummyVecEnv([lambda: gym.make("Pendulum-v1")])))
    env = VecNormalize(DummyVecEnv([lambda: gym.make("Pendulum-v1")]), **kwargs)
    with pytest.raises(InvalidArgumentError, match=message):
        measure_q_values(model, env, 1)


@pytest.mark.parametrize("model", ["model.zip", None, DDPGPaper])
def test_a_model_of_another_type(model):
    with pytest.raises(InvalidArgumentTypeError, match="`model` must be a model of ddpg_ext or SB3, got"):
        measure_q_values(model, "Pendulum-v1", 1)
