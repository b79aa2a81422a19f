"""Test the command ``plot``: curves and bands against their definitions, and run folders of all kinds."""

import re
import sys
import tracemalloc
import zipfile
from contextlib import suppress

import numpy as np
import pytest
import yaml
from PIL import Image
from rliable import library, metrics
from scipy import stats
from stable_baselines3.common.monitor import Monitor, ResultsWriter
from toys import CountingEnv

from ddpg_ext import (
    CheckpointError,
    CheckpointNotFoundError,
    DamagedCheckpointError,
    InvalidArgumentError,
    InvalidArgumentTypeError,
    MissingExtraError,
)
from ddpg_ext.callbacks.live_plot import moving_mean
from ddpg_ext.plot import aggregate, plot_runs
from ddpg_ext.plot.learning_curves import main
from ddpg_ext.plot.runs import Run, read_run

STEPS = np.array([100, 200, 300, 400])


def write_run(
    folder, results=None, steps=STEPS, algo="ddpg_paper", env="Pendulum-v1", episodes=None, config=None, **args
):
    """Write a run folder like the Zoo's; ``episodes`` are rows of (return, length, seconds)."""
    folder.mkdir(parents=True)
    if env is not None:
        (folder / env).mkdir()
        (folder / env / "args.yml").write_text(yaml.safe_dump({"algo": algo, "env": env, **args}))
        if config is not None:
            (folder / env / "config.yml").write_text(yaml.safe_dump(config))
    if results is not None:
        lengths = np.full(np.shape(results), 200)
        np.savez(folder / "evaluations.npz", timesteps=steps, results=results, ep_lengths=lengths)
    for index, rows in enumerate(episodes or []):
        writer = ResultsWriter(str(folder / str(index)), {"t_start": 1e9, "env_id": str(env)})
        for episode_return, length, seconds in rows:
            writer.write_row({"r": episode_return, "l": length, "t": seconds})
        writer.close()
    return folder


def results_of(seed, n=4, episodes=5):
    return np.random.default_rng(seed).normal(-500, 100, size=(n, episodes))


@pytest.fixture
def zoo(tmp_path):
    """logs/<algo>/<env>_<number>: five seeds of one setting, two of another environment."""
    for seed in range(5):
        write_run(tmp_path / "logs/ddpg_paper" / f"Pendulum-v1_{seed + 1}", results_of(seed))
    for seed in range(2):
        write_run(tmp_path / "logs/ddpg_paper" / f"Hopper-v5_{seed + 1}", results_of(10 + seed), env="Hopper-v5")
    return tmp_path / "logs"


def test_one_run_has_students_band_of_its_episodes(tmp_path):
    results = results_of(0)
    curve = aggregate([read_run(write_run(tmp_path / "Pendulum-v1_1", results))])
    np.testing.assert_array_equal(curve.x, STEPS)
    np.testing.assert_allclose(curve.middle, results.mean(axis=1))
    for row, low, high in zip(results, curve.low, curve.high, strict=True):
        expected = stats.t.interval(0.95, len(row) - 1, loc=row.mean(), scale=stats.sem(row))
        assert (low, high) == pytest.approx(expected)
    assert curve.description == "1 run, 95 % band of the mean of 5 episodes"


def test_two_runs_have_their_range(tmp_path):
    runs = [read_run(write_run(tmp_path / f"Pendulum-v1_{i}", results_of(i))) for i in range(2)]
    curve = aggregate(runs)
    means = np.stack([results_of(i).mean(axis=1) for i in range(2)])
    np.testing.assert_allclose(curve.middle, means.mean(axis=0))
    np.testing.assert_allclose([curve.low, curve.high], [means.min(axis=0), means.max(axis=0)])


def test_many_runs_have_rliables_iqm_and_its_bootstrap(tmp_path):
    results = [results_of(seed) for seed in range(8)]
    runs = [read_run(write_run(tmp_path / f"Pendulum-v1_{i}", result)) for i, result in enumerate(results)]
    np.random.seed(0)
    state = np.random.get_state()[1].copy()
    curve = aggregate(runs)
    np.testing.assert_array_equal(np.random.get_state()[1], state)
    means = np.stack([result.mean(axis=1) for result in results])

    def iqm(scores):
        return np.array([metrics.aggregate_iqm(scores[..., i]) for i in range(scores.shape[-1])])

    np.random.seed(0)
    middle, interval = library.get_interval_estimates({"runs": means[:, None]}, iqm, reps=2000)
    np.testing.assert_allclose(curve.middle, middle["runs"])
    np.testing.assert_allclose([curve.low, curve.high], interval["runs"])
    assert curve.description == "IQM of 8 runs, 95 % bootstrap band"
    np.testing.assert_array_equal(aggregate(runs).low, curve.low)  # the same picture for the same runs


def test_runs_of_different_lengths_and_intervals(tmp_path):
    """Interpolated between evaluations, and cut where the shortest ends."""
    straight = [(np.array([0, 100, 200, 300]), 1.0), (np.array([50, 150, 250]), 3.0), (np.array([0, 400]), 5.0)]
    runs = [
        read_run(write_run(tmp_path / f"E-v1_{i}", (slope * steps)[:, None], steps))
        for i, (steps, slope) in enumerate(straight)
    ]
    curve = aggregate(runs)
    np.testing.assert_array_equal(curve.x, [50, 150, 250])
    np.testing.assert_allclose(curve.middle, 3.0 * curve.x)
    late = read_run(write_run(tmp_path / "E-v1_9", np.ones((2, 1)), np.array([1000, 2000])))
    with pytest.raises(InvalidArgumentError, match="no part of the x-axis in common"):
        aggregate([*runs, late])


def test_long_runs_are_thinned_out(tmp_path):
    """Of 5,000 places, whose bootstrap alone would have taken 240 MB of resamples and more, 200 are left."""
    steps = np.arange(1, 5001) * 200.0
    runs = [
        Run(tmp_path / str(i), "a", "E-v1", steps, (slope * steps)[:, None], 1e6, {})
        for i, slope in enumerate([1, 3, 8])
    ]
    tracemalloc.start()
    curve = aggregate(runs)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 50e6
    np.testing.assert_allclose(curve.x, np.linspace(200, 1_000_000, 200))
    np.testing.assert_allclose(curve.middle, 4 * curve.x)  # of three runs, a quarter of each side is none


def test_training_curves_and_other_x_axes(tmp_path):
    """Two environments whose episodes end in turns; the evaluation falls between two of them."""
    first = [(1.0, 10, 36.0), (3.0, 30, 108.0)]
    second = [(2.0, 20, 72.0), (4.0, 40, 144.0)]
    folder = write_run(tmp_path / "Pendulum-v1_1", np.array([[7.0]]), np.array([45]), episodes=[first, second])
    steps = read_run(folder, "train_return", window=2)
    np.testing.assert_array_equal(steps.x, [10, 30, 60, 100])
    np.testing.assert_allclose(steps.values[:, 0], [1, 1.5, 2.5, 3.5])
    assert read_run(folder, "train_length", "episodes", window=1).values[:, 0].tolist() == [10, 20, 30, 40]
    assert read_run(folder, "train_return", "episodes").x.tolist() == [1, 2, 3, 4]
    np.testing.assert_allclose(read_run(folder, "train_return", "time").x, [0.01, 0.02, 0.03, 0.04])
    # Step 45 is half way from the second episode's end to the third's
    assert read_run(folder, "return", "episodes").x == pytest.approx([2.5])
    assert read_run(folder, "return", "time").x == pytest.approx([0.025])


def test_success_and_length(tmp_path):
    folder = write_run(tmp_path / "Reach-v1_1", results_of(0, 2), np.array([1, 2]))
    successes = np.array([[True, False], [True, True]])
    np.savez(folder / "evaluations.npz", timesteps=[1, 2], results=np.zeros((2, 2)), successes=successes)
    assert read_run(folder, "success").values.mean(axis=1).tolist() == [0.5, 1.0]
    with pytest.raises(CheckpointNotFoundError, match="has no ep_lengths"):
        read_run(folder, "length")
    np.savez(folder / "evaluations.npz", timesteps=[], results=np.zeros((0, 5)))
    with pytest.raises(CheckpointNotFoundError, match="has no evaluation yet"):
        plot_runs([folder])


def test_runs_are_grouped_by_environment_and_algorithm(zoo):
    write_run(zoo / "td3" / "Pendulum-v1_1", results_of(20), algo="td3")
    figure, curves = plot_runs([zoo])
    assert {key: curve.description[:8] for key, curve in curves.items()} == {
        ("Hopper-v5", "ddpg_paper"): "mean and",
        ("Pendulum-v1", "ddpg_paper"): "IQM of 5",
        ("Pendulum-v1", "td3"): "1 run, 9",
    }
    assert [axes.get_title() for axes in figure.axes] == ["Hopper-v5", "Pendulum-v1"]
    legend = [text.get_text() for text in figure.axes[1].get_legend().get_texts()]
    assert [text.partition(":")[0] for text in legend] == ["ddpg_paper", "td3"]


def test_axes_are_readable_and_legends_do_not_cover_curves(tmp_path):
    for env in ("Ant-v5", "Hopper-v5", "Pendulum-v1", "Reacher-v5"):
        write_run(tmp_path / f"{env}_1", results_of(0), STEPS * 2500, env=env)
    figure, _ = plot_runs([tmp_path])
    figure.draw_without_rendering()
    assert len(figure.axes) == 4  # without the two empty panels of the second row
    for panel in figure.axes:
        assert panel.get_legend().get_window_extent().y1 < panel.xaxis.label.get_window_extent().y0
        assert {"0", "200k", "1M"} <= {text.get_text() for text in panel.get_xticklabels()}
        assert (panel.get_xlabel(), panel.get_ylabel()) == ("environment steps", "return, evaluated without noise")


def test_one_evaluation_is_a_point_within_the_axes(tmp_path):
    write_run(tmp_path / "a" / "Pendulum-v1_1", [[-3.0]], np.array([500]), algo="a")
    write_run(tmp_path / "b" / "Pendulum-v1_1", results_of(0, 1), np.array([500]), algo="b")
    figure, _ = plot_runs([tmp_path])
    (panel,) = figure.axes
    points = [line for line in panel.lines if line.get_marker() == "o"]
    assert [line.get_xydata().tolist() for line in points] == [[[500, -3]], [[500, results_of(0, 1).mean()]]]
    assert panel.get_xlim()[0] == 0
    assert panel.get_xlim()[1] > 500
    assert panel.get_ylim()[0] < results_of(0, 1).mean() < -3 < panel.get_ylim()[1]


def test_a_point_beside_curves_is_at_its_step(tmp_path):
    write_run(tmp_path / "a" / "Pendulum-v1_1", results_of(0, 2), np.array([500, 1000]), algo="a")
    write_run(tmp_path / "b" / "Pendulum-v1_1", results_of(0, 1), np.array([500]), algo="b")
    figure, _ = plot_runs([tmp_path])
    (panel,) = figure.axes
    (point,) = (line for line in panel.lines if line.get_marker() == "o")
    assert np.allclose(point.get_transform().transform([500, 0]), panel.transData.transform([500, 0]))


def test_runs_that_are_not_independent_count_once(tmp_path):
    """A copy, and a run that continued the agent of another run, beside a run of the same seed with other settings."""
    config, folder = {"tau": 0.1, "tensorboard_log": "here"}, tmp_path / "logs"
    first = write_run(folder / "Pendulum-v1_1", results_of(0), config=config, seed=1)
    agent = f"{first}/best_model.zip"
    copy = write_run(tmp_path / "copy" / "Pendulum-v1_1", results_of(0), config=config | {"verbose": 1}, seed=1)
    write_run(folder / "Pendulum-v1_2", results_of(1), config={"tau": 0.2}, seed=1)
    continued = write_run(folder / "Pendulum-v1_3", results_of(2), config=config, seed=3, trained_agent=agent)
    with pytest.warns(UserWarning, match="count as one run|different settings") as caught:
        _, curves = plot_runs([folder, tmp_path / "copy"])
    assert curves["Pendulum-v1", "ddpg_paper"].description == "mean and range of 2 runs"
    messages = [str(warning.message) for warning in caught]
    name = "Pendulum-v1, ddpg_paper"
    assert f"{name}: {copy} and {first} count as one run: seed 1 and the settings are the same" in messages
    assert f"{name}: {continued} and {first} count as one run: both come from the agent {agent}" in messages
    # Without its origin it counts; a longer run that continued it in turn does not count beside it
    longer = {"steps": STEPS + 1, "config": config, "seed": 4, "trained_agent": f"{continued}/best_model.zip"}
    chain = [continued, write_run(folder / "Pendulum-v1_4", results_of(4), **longer)]
    with pytest.warns(UserWarning, match="its steps do not include that training"):
        _, curves = plot_runs(chain)
    assert curves[tuple(name.split(", "))].description.startswith("1 run")


def test_a_run_given_twice_counts_once(zoo):
    _, curves = plot_runs([zoo / "ddpg_paper" / "Hopper-v5_1", zoo / "ddpg_paper/../ddpg_paper"])
    assert curves["Hopper-v5", "ddpg_paper"].description == "mean and range of 2 runs"


def test_a_path_with_two_labels_has_two_curves(zoo):
    folder = zoo / "ddpg_paper"
    _, curves = plot_runs([folder, folder / "Hopper-v5_1", folder], labels=["all", "one", ""])
    descriptions = {label: curve.description for (env, label), curve in curves.items() if env == "Hopper-v5"}
    assert {label: text.split(" of ")[-1] for label, text in descriptions.items() if label != "one"} == {
        "all": "2 runs",
        "": "2 runs",
    }
    assert descriptions["one"].startswith("1 run")


def test_without_settings_folders_name_the_run(tmp_path):
    run = read_run(write_run(tmp_path / "td3" / "Walker2d-v5_3", results_of(0), env=None))
    assert (run.algo, run.env) == ("td3", "Walker2d-v5")
    (tmp_path / "td3" / "Walker2d-v5_3" / "args.yml").write_text("!!python/object/apply:os.system ['touch hacked']")
    with pytest.warns(UserWarning, match="the folder's name is used"):
        run = read_run(tmp_path / "td3" / "Walker2d-v5_3")
    assert (run.algo, run.env) == ("td3", "Walker2d-v5")


def test_without_evaluations_training_is_drawn(tmp_path):
    episodes = [[(float(i), 10, i) for i in range(1, 30)]]
    write_run(tmp_path / "Pendulum-v1_1", episodes=episodes)
    figure, curves = plot_runs([tmp_path], window=5)
    (curve,) = curves.values()
    np.testing.assert_allclose(curve.middle, moving_mean(np.arange(1.0, 30), 5))
    assert figure.axes[0].get_ylabel() == "return of training episodes"


def test_a_run_that_was_broken_off_is_left_out_and_named(tmp_path, recwarn):
    steps = np.arange(1, 21) * 1000
    for seed in range(3):
        write_run(tmp_path / f"Pendulum-v1_{seed}", results_of(seed, 20), steps)
    _, whole = plot_runs([tmp_path])
    assert [str(w.message) for w in recwarn if w.category is UserWarning] == []
    write_run(tmp_path / "Pendulum-v1_8", results_of(8, 1), steps[:1])
    with pytest.warns(UserWarning, match=r"median run \(20,000 .*Pendulum-v1_8 \(1,000\)$"):
        _, curves = plot_runs([tmp_path])
    (key,) = curves
    np.testing.assert_array_equal(curves[key].middle, whole[key].middle)
    assert curves[key].x[-1] == 20_000
    # Half of them: it is drawn, and ends the curve
    write_run(tmp_path / "Pendulum-v1_9", results_of(9, 10), steps[:10])
    with pytest.warns(UserWarning, match="left out"):
        _, curves = plot_runs([tmp_path])
    assert curves[key].x[-1] == 10_000
    assert curves[key].description.startswith("IQM of 4 runs")


def test_a_run_is_not_short_for_being_fast(tmp_path, recwarn):
    """As many steps in a tenth of the time, and in a tenth of the episodes."""
    for number, (length, seconds) in enumerate([(10, 3600.0), (10, 3600.0), (100, 3600.0)]):
        episodes = [(1.0, length, (i + 1) * seconds) for i in range(1000 // length)]
        write_run(tmp_path / f"Pendulum-v1_{number}", episodes=[episodes])
    for x in ("episodes", "time"):
        _, curves = plot_runs([tmp_path], x=x)
        assert curves["Pendulum-v1", "ddpg_paper"].description.startswith("mean of 3 runs")
        assert curves["Pendulum-v1", "ddpg_paper"].x[-1] == 10
    assert {str(w.message).partition(":")[0] for w in recwarn} == {"Pendulum-v1, ddpg_paper"}
    assert all("the curve ends with" in str(w.message) for w in recwarn)


def test_a_curve_that_loses_most_of_one_run_says_so(tmp_path):
    """Three short runs are the rule, and the long one the exception."""
    for seed in range(3):
        write_run(tmp_path / f"Pendulum-v1_{seed}", results_of(seed))
    write_run(tmp_path / "Pendulum-v1_3", results_of(3, 5), np.array([100, 200, 300, 400, 900]))
    with pytest.warns(UserWarning, match=r"ends with .*Pendulum-v1_0 \(400 env.*; .*Pendulum-v1_3 continues to 900"):
        _, curves = plot_runs([tmp_path])
    assert curves["Pendulum-v1", "ddpg_paper"].x[-1] == 400


@pytest.mark.parametrize("labels", ["xy", 3, True])
def test_labels_are_a_list(labels, tmp_path):
    for seed in range(2):
        write_run(tmp_path / f"Pendulum-v1_{seed}", results_of(seed))
    with pytest.raises(InvalidArgumentTypeError, match="`labels` must be a list with a label for each path, got"):
        plot_runs(sorted(tmp_path.iterdir()), labels=labels)


def test_settings_that_differ_are_named(tmp_path, recwarn):
    config = {"tau": 0.001, "policy_kwargs": {"net_arch": [8], "batch_norm": False}, "n_timesteps": 400}
    turned = {"n_timesteps": 800, "policy_kwargs": {"batch_norm": False, "net_arch": [8]}, "tau": 0.001}
    runs = [write_run(tmp_path / f"Pendulum-v1_{i}", results_of(i), config=c) for i, c in enumerate([config, turned])]
    write_run(tmp_path / "Pendulum-v1_2", results_of(2))  # of which nothing is known
    plot_runs([tmp_path])
    assert [str(w.message) for w in recwarn if w.category is UserWarning] == []

    runs.append(write_run(tmp_path / "Pendulum-v1_3", results_of(3), config={**config, "tau": 0.005, "gamma": 0.9}))
    with pytest.warns(UserWarning, match="different settings are") as caught:
        plot_runs([tmp_path])
    (message,) = [str(warning.message) for warning in caught]
    assert "Pendulum-v1, ddpg_paper: runs with different settings are aggregated" in message
    assert (
        f"`gamma` (not set in {runs[0]}; 0.9 in {runs[2]}), `tau` (0.001 in {runs[0]}; 0.005 in {runs[2]})" in message
    )
    assert "--labels" in message
    # The algorithm and the environment's arguments are settings, too
    for number, (label, kwargs) in enumerate(
        {"algo": {"algo": "td3"}, "env_kwargs": {"env_kwargs": {"g": 5.0}}}.items()
    ):
        other = write_run(tmp_path / f"{label}_{number}" / "Pendulum-v1_1", results_of(number), config=config, **kwargs)
        with pytest.warns(UserWarning, match=f"settings are aggregated: `{label}` "):
            plot_runs([runs[0], other], labels=["both", "both"])
    # Each for itself, there is nothing to say
    recwarn.clear()
    plot_runs([*runs[:2], runs[2]], labels=["a", "a", "b"])
    assert [str(w.message) for w in recwarn if w.category is UserWarning] == []


def test_a_curve_whose_runs_have_nothing_in_common_is_left_out(tmp_path):
    write_run(tmp_path / "Hopper-v5_1", results_of(0), env="Hopper-v5")
    runs = [write_run(tmp_path / f"Pendulum-v1_{steps}", [[0.0]], np.array([steps])) for steps in (100, 150)]
    with pytest.warns(UserWarning, match="left out") as caught:
        figure, curves = plot_runs([tmp_path])
    assert list(curves) == [("Hopper-v5", "ddpg_paper")]
    assert [axes.get_title() for axes in figure.axes] == ["Hopper-v5"]
    (message,) = [str(warning.message) for warning in caught]
    assert f"left out: Pendulum-v1, ddpg_paper: the runs {runs[0]}, {runs[1]} have no part of the x-axis" in message
    assert message.endswith("pass them as separate paths with --labels")
    with pytest.raises(InvalidArgumentError, match=r"^Pendulum-v1, ddpg_paper: the runs"):
        plot_runs(runs)
    plot_runs(runs, labels=["a", "b"])


def test_the_command(zoo, tmp_path, capsys):
    main([str(zoo), "--out", str(tmp_path / "new" / "curves.png")])
    captured = capsys.readouterr()
    assert captured.err == ""
    lines = captured.out.splitlines()
    assert lines[0].startswith("Hopper-v5, ddpg_paper: -")
    assert "after 400 environment steps (IQM of 5 runs, 95 % bootstrap band)" in lines[1]
    with Image.open(tmp_path / "new" / "curves.png") as picture:
        picture.load()
        assert picture.width > 2 * picture.height / 1.5
    options = f"--metric length --labels mine --title T --out {tmp_path}/curves.svg"
    main([str(zoo / "ddpg_paper" / "Hopper-v5_1"), *options.split()])
    assert capsys.readouterr().out.startswith("Hopper-v5, mine: 200 [200, 200] after 400 environment steps (1 run")
    assert "<svg" in (tmp_path / "curves.svg").read_text()
    for options, message in ({"metric": "returns"}, "did you mean 'return'"), ({"x": "step"}, "did you mean 'steps'"):
        with pytest.raises(InvalidArgumentError, match=message):
            plot_runs([zoo], **options)


def test_what_cannot_be_read_is_left_out_with_a_warning(zoo, tmp_path, capsys):
    content = (zoo / "ddpg_paper/Pendulum-v1_1/evaluations.npz").read_bytes()
    (zoo / "ddpg_paper/Pendulum-v1_1/evaluations.npz").write_bytes(content[: len(content) // 2])
    write_run(zoo / "ddpg_paper/Pendulum-v1_7", episodes=[[(1.0, 10, 1.0)]])
    main([str(zoo), "--out", str(tmp_path / "curves.png")])
    captured = capsys.readouterr()
    assert "Pendulum-v1_1/evaluations.npz cannot be read" in captured.err
    assert "Pendulum-v1_7 has no evaluations.npz" in captured.err
    assert "IQM of 4 runs" in captured.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{zoo}/nothing"], "there is no folder"),
        (["{empty}"], "there is no run in .*: it has no evaluations.npz"),
        (["{zoo}", "--x", "time"], "has no monitor.csv, which x='time' needs"),
        (["{zoo}", "--metric", "train_return"], "has no monitor.csv, which metric='train_return' needs"),
        (["{zoo}", "--metric", "success"], "has no successes"),
        (["{zoo}", "--labels", "a", "b"], "`labels` must be one for each of the 1 paths, got 2"),
        (["{zoo}", "--window", "0"], "`window` must be a whole number above 0, got 0"),
        (["{zoo}", "--out", "curves.xyz"], "a figure must end in"),
        (["{zoo}", "--out", "{file}/curves.png"], r"curves\.png cannot be written"),
    ],
)
def test_bad_input_ends_with_one_line(zoo, tmp_path, capsys, arguments, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    places = {"zoo": zoo, "empty": tmp_path / "empty", "file": tmp_path / "file"}
    with pytest.raises(SystemExit) as exit_info:
        main([argument.format(**places) for argument in arguments])
    assert exit_info.value.code == 2
    assert re.fullmatch(f"(Warning: .*\n)*ddpg_ext plot: error: .*{message}.*\n", capsys.readouterr().err)


@pytest.mark.parametrize(
    "content",
    [
        b"PK\x03\x04 and no more",
        {"timesteps": [1, 2], "results": np.zeros((3, 2))},
        {"timesteps": [1, 2], "results": np.zeros(2)},
        {"timesteps": ["1", "x"], "results": np.zeros((2, 1))},
        {"timesteps": [1], "results": np.array([[np.nan]])},
        {"timesteps": [1], "results": np.array([[None]])},  # a pickle
        {"timesteps": [np.nan], "results": np.zeros((1, 1))},
        {"timesteps": [1, np.inf], "results": np.zeros((2, 1))},
        {"timesteps": [-1], "results": np.zeros((1, 1))},
        *("(10**9,)", "(-5,)", "(1000000000000000,)", "(" * 200, "(100000000000000000000,)"),  # the shape of an array
    ],
)
def test_damaged_evaluations(tmp_path, content):
    folder = write_run(tmp_path / "Pendulum-v1_1")
    if isinstance(content, bytes):
        (folder / "evaluations.npz").write_bytes(content)
    elif isinstance(content, str):
        header = f"{{'descr':'<f8','fortran_order':False,'shape':{content}}}\n".encode()
        with zipfile.ZipFile(folder / "evaluations.npz", "w") as archive:
            archive.writestr("timesteps.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    else:
        np.savez(folder / "evaluations.npz", **content)
    with pytest.raises(DamagedCheckpointError, match=r"evaluations\.npz"):
        plot_runs([folder])


def test_changed_bytes_in_evaluations(tmp_path):
    folder = write_run(tmp_path / "Pendulum-v1_1")
    file = folder / "evaluations.npz"
    np.savez_compressed(file, timesteps=np.arange(1, 50), results=np.random.default_rng(0).normal(size=(49, 2)))
    content = file.read_bytes()
    for position in range(0, len(content), 7):
        file.write_bytes(content[:position] + bytes([content[position] ^ 0x55]) + content[position + 1 :])
        with suppress(CheckpointError):
            read_run(folder)


def test_names_are_no_formulas(tmp_path):
    folders = [write_run(tmp_path / f"$a_$_{number}", np.ones((4, 2)), env=None) for number in (1, 2)]
    figure, _ = plot_runs(folders, labels=["_a", "$\\x$"], title="$x_$")
    figure.savefig(tmp_path / "t.svg")
    (panel,) = figure.axes
    texts = [text.get_text().partition(":")[0] for text in panel.get_legend().get_texts()]
    assert (panel.get_title(), texts) == ("$a_$", ["_a", "$\\x$"])


def test_what_a_second_call_of_learn_evaluated_is_drawn(tmp_path):
    """The steps are counted anew, and SB3's callback goes on with the file."""
    folder = write_run(tmp_path / "Pendulum-v1_1", np.arange(7.0)[:, None], np.array([10, 20, 30, 10, 5, 15, 25]))
    with pytest.warns(
        UserWarning, match=r"Pendulum-v1_1/evaluations\.npz: the steps start again after 10, usually because"
    ):
        run = read_run(folder)
    assert run.x.tolist() == [5, 15, 25]
    assert run.values[:, 0].tolist() == [4, 5, 6]
    assert run.n_steps == 25


@pytest.mark.parametrize("text", ["", "no header\nr,l,t\n1,2,3\n", '#{"t_start": 0}\na,b\n1,2\n', "#{\nr,l,t\n"])
def test_damaged_monitors(tmp_path, text):
    folder = write_run(tmp_path / "Pendulum-v1_1")
    (folder / "0.monitor.csv").write_text(text)
    with pytest.raises(DamagedCheckpointError, match=r"monitor\.csv"):
        plot_runs([folder])


def test_a_monitor_whose_last_line_is_being_written(tmp_path):
    folder = write_run(tmp_path / "Pendulum-v1_1", episodes=[[(1.0, 10, 1.0), (2.0, 10, 2.0)]])
    with open(folder / "0.monitor.csv", "a") as file:
        file.write("3.0,1")
    with pytest.warns(UserWarning, match="1 incomplete lines of monitor.csv"):
        assert read_run(folder, "train_return").x.tolist() == [10, 20]
    none = write_run(tmp_path / "Pendulum-v1_2", episodes=[[]])
    with pytest.raises(CheckpointNotFoundError, match="no training episode has ended yet"):
        read_run(none, "train_return")


def test_a_missing_package(zoo, monkeypatch):
    monkeypatch.setitem(sys.modules, "rliable.library", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'ddpg_ext\[plots\]'"):
        plot_runs([zoo])


def test_labels_may_be_numbers(tmp_path):
    for seed in range(2):
        write_run(tmp_path / f"Pendulum-v1_{seed}", results_of(seed))
    _, curves = plot_runs(sorted(tmp_path.iterdir()), labels=[0.1, np.float32(2)])
    assert [label for _, label in curves] == ["0.1", "2.0"]


@pytest.mark.parametrize("paths", [None, 3, [1], [None]])
def test_paths_of_another_type(paths):
    with pytest.raises(InvalidArgumentTypeError, match="`paths` must be a path"):
        plot_runs(paths)


def test_a_monitor_file_of_two_trainings(tmp_path):
    """SB3's ``override_existing=False`` continues the file, but the time starts again."""
    folder = tmp_path / "Pendulum-v1_1"
    folder.mkdir()
    for is_first, episode_return in ((True, 200.0), (False, 400.0)):
        env = Monitor(CountingEnv(5, reward=episode_return / 5), str(folder / "0"), override_existing=is_first)
        for _ in range(4):
            env.reset()
            while not any(env.step(env.action_space.sample())[2:4]):
                pass
        env.close()
    run = read_run(folder, "train_return", window=1)
    assert run.values.ravel().tolist() == [200.0] * 4 + [400.0] * 4
    assert run.x.tolist() == [5.0 * n for n in range(1, 9)]
    assert (np.diff(read_run(folder, "train_return", "time", 1).x) >= 0).all()
