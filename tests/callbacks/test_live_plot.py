"""LivePlotCallback: its curves are what Monitor and logger report, and drawing does not change training."""

import sys
import types

import numpy as np
import pytest
from PIL import Image
from stable_baselines3.common.callbacks import ConvertCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv
from toy_envs import ToyEnv, toy_vec_env
from toys import recorded, small_model

from ddpg_ext import DDPGPaper, InvalidArgumentError, LivePlotCallback, MissingExtraError, SnapshotCallback

LOSSES = ("train/actor_loss", "train/critic_loss")


def make_model():
    return small_model(ToyEnv(episode_length=10))


def losses(records, name):
    return [(step, values[name]) for step, values in records.dumps if name in values]


def test_the_curves_are_what_monitor_and_logger_say(tmp_path):
    env = Monitor(ToyEnv(episode_length=10))
    model = small_model(env)
    records = recorded(model)
    plot = LivePlotCallback(tmp_path / "curves.png", every=25)
    model.learn(85, callback=plot, log_interval=2)
    assert [step for step, _ in plot.curves["return"]] == list(range(10, 90, 10))
    np.testing.assert_allclose([value for _, value in plot.curves["return"]], env.get_episode_rewards(), atol=1e-6)
    assert plot.curves["length"] == [(step, 10.0) for step in range(10, 90, 10)]
    for name in LOSSES:
        assert plot.curves[name] == losses(records, name)
        assert len(plot.curves[name]) == 4
    with Image.open(tmp_path / "curves.png") as picture:
        picture.load()
        assert picture.width > picture.height > 300
    # Nothing is left behind: neither files nor an output of the logger
    assert [file.name for file in tmp_path.iterdir()] == ["curves.png"]
    assert model.logger.output_formats == [records]


@pytest.mark.parametrize("monitored", [True, False])
def test_several_environments_and_unfinished_episodes(tmp_path, monitored):
    """Of 14 steps of each, in which only the first two end an episode; without a Monitor, no episode is known."""
    wrapper = Monitor if monitored else lambda env: env
    env = DummyVecEnv([lambda i=i: wrapper(ToyEnv(episode_length=7 + 4 * i)) for i in range(3)])
    plot = LivePlotCallback(tmp_path / "curves.svg", every=30)
    small_model(env).learn(40, callback=plot)
    assert plot.curves["length"] == ([(21, 7.0), (33, 11.0), (42, 7.0)] if monitored else [])
    assert len(plot.curves["return"]) == len(plot.curves["length"])
    assert "<svg" in (tmp_path / "curves.svg").read_text()


def test_it_draws_when_due_and_at_the_end(tmp_path, monkeypatch):
    plot = LivePlotCallback(tmp_path / "curves.png", every=25)
    drawn = []
    monkeypatch.setattr(plot, "_draw", lambda: drawn.append(plot.model.num_timesteps))
    small_model(toy_vec_env(2)).learn(80, callback=plot)
    assert drawn == [0, 26, 50, 76, 80]


def test_a_second_learn_continues_or_starts_again(tmp_path):
    plot = LivePlotCallback(tmp_path / "curves.png", every=1000)
    model = make_model()
    model.learn(30, callback=plot)
    model.learn(30, callback=plot, reset_num_timesteps=False)
    assert [step for step, _ in plot.curves["return"]] == [10, 20, 30, 40, 50, 60]
    model.learn(20, callback=plot)
    assert [step for step, _ in plot.curves["return"]] == [10, 20]


def test_a_resumed_run_has_its_earlier_episodes(tmp_path):
    def env():
        return DummyVecEnv([lambda: Monitor(ToyEnv(episode_length=10)) for _ in range(2)])

    first = LivePlotCallback(tmp_path / "curves.png", every=1000)
    small_model(env()).learn(60, callback=[first, SnapshotCallback(tmp_path / "snapshots", every=40)])
    resumed = DDPGPaper.resume(tmp_path / "snapshots", env())
    steps = resumed.num_timesteps
    second = LivePlotCallback(tmp_path / "curves.png", every=1000)
    resumed.learn(60 - steps, callback=second, reset_num_timesteps=False)
    assert steps == 40
    for name in ("return", "length"):
        np.testing.assert_allclose(second.curves[name], first.curves[name], rtol=0, atol=1e-6)
    assert len(second.curves["return"]) == 6


def test_after_an_interrupt_each_loss_is_drawn_once(tmp_path):
    model = make_model()
    records = recorded(model)
    plot = LivePlotCallback(tmp_path / "curves.png", every=1000)

    def interrupt(locals_, _globals):
        if locals_["self"].num_timesteps == 25:
            raise KeyboardInterrupt
        return True

    with pytest.raises(KeyboardInterrupt):
        model.learn(60, callback=[plot, ConvertCallback(interrupt)], log_interval=1)
    model.learn(60, callback=plot, reset_num_timesteps=False, log_interval=1)
    for name in LOSSES:
        assert plot.curves[name] == losses(records, name)
        assert len(plot.curves[name]) > 4
    assert model.logger.output_formats == [records]


def test_in_a_notebook_one_figure_is_updated_in_place(monkeypatch):
    shown = []
    handle = types.SimpleNamespace(update=lambda image: shown.append(("update", image.data[:8])))
    module, display = types.ModuleType("IPython"), types.ModuleType("IPython.display")
    module.get_ipython = lambda: types.SimpleNamespace(kernel=object())
    display.display = lambda image, display_id: (shown.append(("display", image.data[:8])), handle)[1]
    display.Image = lambda data, format: types.SimpleNamespace(data=data, format=format)
    monkeypatch.setitem(sys.modules, "IPython", module)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    make_model().learn(50, callback=LivePlotCallback(every=20))
    png = b"\x89PNG\r\n\x1a\n"
    # At the start; after 20, 40 and 50 steps
    assert shown == [("display", png), ("update", png), ("update", png), ("update", png)]


def test_a_file_that_matplotlib_can_write_is_needed(tmp_path):
    with pytest.raises(InvalidArgumentError, match="outside of a notebook, `path` must be the name of a file"):
        LivePlotCallback()
    for name in ("curves.xyz", "curves"):
        with pytest.raises(InvalidArgumentError, match=r"`path` must end in one of .*\.png, .*, got '"):
            LivePlotCallback(tmp_path / name)


def test_a_place_that_cannot_be_written_is_said_before_training(tmp_path):
    (tmp_path / "file").write_text("")
    model = make_model()
    with pytest.raises(InvalidArgumentError, match=r"`path` .* cannot be written"):
        model.learn(10, callback=LivePlotCallback(tmp_path / "file" / "curves.png"))
    assert model.num_timesteps == 0
    assert not any(type(output).__name__ == "_LossRecorder" for output in model.logger.output_formats)


def test_a_disk_that_fills_up_does_not_stop_training(tmp_path, monkeypatch):
    plot = LivePlotCallback(tmp_path / "curves.png", every=20)
    model = make_model()
    model.learn(10, callback=plot)
    before = (tmp_path / "curves.png").read_bytes()

    def full(file, **kwargs):
        file.write(b"half of a picture")
        raise OSError(28, "No space left on device")

    def start(locals_, _globals):
        monkeypatch.setattr(plot._figure, "savefig", full)
        return True

    with pytest.warns(UserWarning, match="No space left on device. Training continues"):
        model.learn(50, callback=[ConvertCallback(start), plot], reset_num_timesteps=False)
    assert model.num_timesteps == 60
    assert (tmp_path / "curves.png").read_bytes()[:8] == before[:8]
    assert [file.name for file in tmp_path.iterdir()] == ["curves.png"]


def test_without_matplotlib_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"LivePlotCallback needs .*: pip install 'ddpg_ext\[extra\]'"):
        LivePlotCallback(tmp_path / "curves.png")
