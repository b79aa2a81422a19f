"""Test the command ``report``: statistics of known numbers, result files of all kinds, and its tables."""

import csv
import itertools
import json
import re
import statistics

import numpy as np
import pytest
import yaml
from PIL import Image
from rliable import metrics

from ddpg_ext import InvalidArgumentError
from ddpg_ext.plot import read_results
from ddpg_ext.plot.report import compare, main, summarize
from ddpg_ext.plot.statistics import aggregate, group_runs

SCORES = [1.0, 2.0, 3.0, 4.0, 100.0]


def write_result(folder, score=1.0, seed=0, env="Hopper-v5", algo="td3", variant="", name="result.json", **changes):
    """Write a result file whose best return is 10 above its final return; None as a change removes the key."""
    result = {
        "env": env,
        "algo": algo,
        "variant": variant,
        "seed": seed,
        "hyperparameters": {
            "tau": 0.005,
            "tensorboard_log": str(folder),
            "replay_buffer_kwargs": {"file": str(folder)},
        },
        "n_timesteps": 200,
        "evaluation_steps": [100, 200],
        "evaluation_returns": [[score - 3, score - 1], [score - 1, score + 1]],
        "final_return": {"mean": score, "std": 1.0, "episodes": 100},
        "best_return": {"mean": score + 10, "std": 1.0, "episodes": 100},
        "weights_sha256": f"{env} {algo} {variant} {seed} {score}",
        "processor": "A",
    } | changes
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps({key: value for key, value in result.items() if value is not None}))
    return folder


def write_sweep(folder, scores, **kwargs):
    label = kwargs.get("variant") or kwargs.get("algo", "td3")
    for seed, score in enumerate(scores):
        write_result(folder / label / f"{kwargs.get('env', 'Hopper-v5')}_seed{seed}", score, seed, **kwargs)
    return folder


def groups_of(*folders):
    return group_runs((run.algo, run) for run in read_results(folders))


def row_of(table, **key):
    (row,) = [row for row in table if key.items() <= row.items()]
    return row


def test_statistics_of_known_numbers(tmp_path):
    table = summarize(groups_of(write_sweep(tmp_path, SCORES)))
    final, best = (row_of(table, agent=agent) for agent in ("final", "best"))
    assert (final["task"], final["variant"], final["seeds"], final["failed"]) == ("Hopper-v5", "td3", 5, 0)
    assert (final["mean"], final["median"], final["iqm"]) == (22, 3, 3)  # the IQM leaves out 1 and 100
    assert final["std"] == pytest.approx(statistics.stdev(SCORES))
    assert final["iqm"] == metrics.aggregate_iqm(np.array(SCORES)[:, None])
    assert (best["mean"], best["median"], best["iqm"]) == (32, 13, 13)
    # All 5^5 resamples: the interval of a bootstrap with infinitely many repetitions
    resamples = [np.mean(sorted(drawn)[1:4]) for drawn in itertools.product(SCORES, repeat=5)]
    low, high = np.percentile(resamples, [2.5, 97.5])
    assert (final["iqm_low"], final["iqm_high"]) == pytest.approx((low, high), abs=0.05 * (high - low))
    assert (best["iqm_low"], best["iqm_high"]) == pytest.approx((final["iqm_low"] + 10, final["iqm_high"] + 10))


def test_intervals_in_closed_cases(tmp_path):
    def interval(name, scores):
        row = row_of(summarize(groups_of(write_sweep(tmp_path / name, scores))), agent="final")
        return row["iqm_low"], row["iqm_high"]

    assert interval("equal", [7.0] * 4) == (7, 7)
    # Three equal draws of three runs have probability 1/27, which is more than 2.5 %
    assert interval("three", [0.0, 1.0, 10.0]) == (0, 10)
    assert interval("two", [0.0, 1.0]) == (None, None)
    one = row_of(summarize(groups_of(write_sweep(tmp_path / "one", [5.0]))), agent="final")
    assert (one["mean"], one["std"], one["iqm"]) == (5, None, 5)


def test_probability_of_improvement_counts_pairs(tmp_path):
    scores = {"Ant-v5": ([1.0, 2.0, 3.0, 9.0], [2.0, 2.0, 0.0]), "Hopper-v5": ([5.0, 6.0, 7.0], [8.0, 9.0, 10.0])}
    for env, (x, y) in scores.items():
        write_sweep(tmp_path, x, env=env, algo="a")
        write_sweep(tmp_path, y, env=env, algo="b")
    table = compare(groups_of(tmp_path))
    ant = row_of(table, task="Ant-v5", x="a", y="b")
    # 1 beats one; 2 beats one and equals two; 3 and 9 beat three
    assert ant["p_x_above_y"] == (1 + 2 + 3 + 3) / 12
    x, y = (np.array(column) for column in scores["Ant-v5"])
    assert ant["p_x_above_y"] == metrics.probability_of_improvement(x[:, None], y[:, None])
    rng = np.random.default_rng(1)
    drawn_x, drawn_y = (rng.choice(column, (20_000, len(column)))[..., None] for column in (x, y))
    difference = drawn_x - drawn_y.swapaxes(1, 2)
    low, high = np.percentile(((difference > 0) + 0.5 * (difference == 0)).mean(axis=(1, 2)), [2.5, 97.5])
    assert (ant["p_low"], ant["p_high"]) == pytest.approx((low, high), abs=0.05)
    hopper = row_of(table, task="Hopper-v5")
    assert (hopper["p_x_above_y"], hopper["p_low"], hopper["p_high"]) == (0, 0, 0)
    everywhere = row_of(table, task="all tasks")
    assert everywhere["p_x_above_y"] == (0.75 + 0) / 2
    assert everywhere["p_low"] == pytest.approx(ant["p_low"] / 2, abs=0.05)


def test_folders_of_a_sweep_and_of_a_benchmark_join(tmp_path):
    write_sweep(tmp_path / "sweep", SCORES[:2])
    for seed in (2, 3):
        folder = tmp_path / "results" / "Hopper-v5" / "td3"
        write_result(folder, SCORES[seed], seed, variant="td3", name=f"seed_{seed}.json")
    write_result(tmp_path / "results" / "Hopper-v5" / "slow", 0.0, algo="ddpg", variant="slow", name="seed_0.json")
    (tmp_path / "sweep" / "other.json").write_text("[1, 2")
    (tmp_path / "sweep" / "td3" / "ray").mkdir()
    for name in ("params.pkl", "result.json"):  # Ray Tune's own files
        (tmp_path / "sweep" / "td3" / "ray" / name).write_text('{"trial_id": 1}\n{"trial_id": 1}')
    groups = groups_of(tmp_path / "sweep", tmp_path / "results", tmp_path / "sweep" / "td3")
    assert {key: len(runs) for key, runs in groups.items()} == {
        ("Hopper-v5", "td3"): 4,
        ("Hopper-v5", "slow (ddpg)"): 1,
    }


def test_runs_that_are_not_independent_count_once(tmp_path, recwarn):
    first = write_result(tmp_path / "a", weights_sha256="x")
    copy = write_result(tmp_path / "b", weights_sha256="x", seed=3)
    write_result(tmp_path / "c", 4.0, seed=1, n_timesteps=300)
    again = write_result(tmp_path / "d", 4.1, seed=1, n_timesteps=300)
    continued = write_result(tmp_path / "e", 5.0, seed=2)
    (continued / "Hopper-v5").mkdir()
    settings = yaml.safe_dump({"trained_agent": f"{first}/best_model.zip"})
    (continued / "Hopper-v5" / "args.yml").write_text(settings)
    assert summarize(groups_of(tmp_path))[0]["seeds"] == 2
    messages = "\n".join(str(warning.message) for warning in recwarn)
    assert f"{copy} and {first} count as one run: their final weights are the same" in messages
    assert f"{again} and {tmp_path / 'c'} count as one run: seed 1 and the settings are the same" in messages
    assert f"{continued} and {first} count as one run: both come from the agent" in messages
    # Their paths differ, too, which does not matter
    assert re.search(r"different settings are [^`]*: `n_timesteps` \(200[^`]*\)\. Give", messages)


def test_environments_of_other_arguments_are_other_settings(tmp_path, recwarn):
    for gravity in (1.0, 2.0):
        write_result(tmp_path / f"{gravity}", gravity, env_kwargs={"g": gravity})
    older = write_result(tmp_path / "older", 3.0, seed=1)
    (older / "Hopper-v5").mkdir()
    (older / "Hopper-v5" / "args.yml").write_text(yaml.safe_dump({"env_kwargs": {"g": 3.0}}))
    assert summarize(groups_of(tmp_path))[0]["seeds"] == 3
    (message,) = [str(warning.message) for warning in recwarn]
    assert "different settings are" in message
    for gravity in (1.0, 2.0, 3.0):
        assert f"{{'g': {gravity}}}" in message


def test_failures_and_processors_are_counted_and_named(tmp_path, capsys):
    write_sweep(tmp_path, SCORES[:3])
    write_result(tmp_path / "other", 8.0, seed=7, processor="B")
    for seed, env in ((8, "Hopper-v5"), (9, "Ant-v5")):
        failure = {"error": "Traceback:\nValueError: reward is NaN", "final_return": None}
        write_result(tmp_path / f"failed{seed}", seed=seed, env=env, **failure)
    main([str(tmp_path), "--csv", str(tmp_path / "t.csv")])
    rows = list(csv.DictReader((tmp_path / "t.csv").open()))
    assert [(row["task"], row["seeds"], row["failed"], row["processors"]) for row in rows[::2]] == [
        ("Ant-v5", "0", "1", "0"),
        ("Hopper-v5", "4", "1", "2"),
    ]
    file = tmp_path / "other" / "result.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"error": None}))  # no failure
    assert len([run for run in read_results([tmp_path]) if not run.error]) == 4
    warnings = capsys.readouterr().err
    assert f"Hopper-v5, td3: seed 8 failed and is not counted ({tmp_path}/failed8): ValueError: reward is" in warnings
    assert "different processors, whose rounding differs: Hopper-v5, td3 (3 on A, 1 on B)" in warnings


def test_all_formats_agree(tmp_path, capsys):
    write_sweep(tmp_path / "sweep", [1234.56, 0.012345, -7.0])
    write_sweep(tmp_path / "sweep", [3.0], algo="ddpg", variant="_100%_a|b$x_$")
    files = {name: tmp_path / "new" / f"table.{name}" for name in ("csv", "markdown", "latex", "png")}
    main([str(tmp_path / "sweep"), *itertools.chain(*((f"--{name}", str(file)) for name, file in files.items()))])
    markdown, latex = (files[name].read_text() for name in ("markdown", "latex"))
    assert capsys.readouterr().out == markdown
    for index, file in enumerate((files["csv"], tmp_path / "new" / "table_improvement.csv")):
        rows = list(csv.reader(file.open()))
        in_markdown = [re.split(r" ?(?<!\\)\| ?", line)[1:-1] for line in markdown.split("\n\n")[index].splitlines()]
        body = latex.split(r"\begin{tabular}")[index + 1]
        in_latex = [line.removesuffix(r" \\").split(" & ") for line in body.splitlines() if line.endswith(r"\\")]
        assert len(rows) == len(in_markdown) - 1 == len(in_latex) == (5 if index == 0 else 2)
        for row, markdown_row, latex_row in zip(rows, in_markdown[:1] + in_markdown[2:], in_latex, strict=True):
            assert [cell.replace("\\|", "|") for cell in markdown_row] == [
                cell.replace("\\", "").strip() for cell in latex_row
            ]
            for cell, markdown_cell in zip(row, markdown_row, strict=True):
                try:
                    assert float(markdown_cell) == pytest.approx(float(cell), rel=6e-4)
                except ValueError:
                    assert cell == markdown_cell.replace("\\|", "|")
    with Image.open(files["png"]) as picture:
        picture.load()


@pytest.mark.parametrize(
    ("content", "arguments", "message"),
    [
        (None, ["{path}/nothing"], "there is no folder {path}/nothing"),
        (None, ["{path}"], "there is no result file in {path}; pass the folder of a sweep"),
        ("[" * 100_000, ["{path}"], r"{path}/run/result\.json is not a valid result file: maximum recursion"),
        (
            {"seed": None, "env": None},
            ["{path}"],
            r"{path}/run/result\.json is not a valid result file: it lacks env, seed",
        ),
        ({"final_return": {"mean": float("nan")}}, ["{path}"], r"{path}/run/result\.json .* holds NaN"),
        (
            {"evaluation_returns": [[1.0]]},
            ["{path}"],
            r"{path}/run/result\.json .* evaluation_returns must have a list for each of them",
        ),
        ({"n_timesteps": -5}, ["{path}"], r"{path}/run/result\.json .*`n_timesteps` must be at least 0, got -5"),
        ({"n_timesteps": float("inf")}, ["{path}"], r"{path}/run/result\.json .* holds NaN or infinite"),
        ({"seed": 1.5}, ["{path}"], r"{path}/run/result\.json .*`seed` must be a whole number, got 1\.5"),
        ({"env": ["a"]}, ["{path}"], r"{path}/run/result\.json .*`env` must be text, got \['a'\]"),
        ({"variant": "\ud800"}, ["{path}"], r"{path}/run/result\.json is not a valid result file: .*surrogates"),
        ({"evaluation_steps": [-1, 2]}, ["{path}"], r"{path}/run/result\.json .*evaluation_steps must increase"),
        ({"best_return": 3}, ["{path}"], r"{path}/run/result\.json is not a valid"),
        ({}, ["{path}", "--csv", "{path}/run/result.json/t.csv"], r"{path}/run/result\.json/t\.csv cannot be written"),
        ({}, ["{path}", "--png", "{path}/t.xyz"], r"a figure must end in .* '{path}/t\.xyz'"),
        ({"evaluation_steps": [], "evaluation_returns": []}, ["{path}", "--png", "t.png"], "no run in {path} has"),
    ],
)
def test_bad_input_ends_with_one_line(tmp_path, capsys, content, arguments, message):
    if isinstance(content, dict):
        write_result(tmp_path / "run", **content)
    elif content is not None:
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "result.json").write_text(content)
    with pytest.raises(SystemExit) as exit_info:
        main([argument.format(path=tmp_path) for argument in arguments])
    assert exit_info.value.code == 2
    assert re.fullmatch(f"ddpg_ext report: error: .*{message.format(path=tmp_path)}.*\n", capsys.readouterr().err)


def test_runs_of_different_length_are_not_compared(tmp_path):
    write_sweep(tmp_path, SCORES)
    write_sweep(tmp_path, SCORES, variant="long", n_timesteps=300)
    write_sweep(tmp_path, SCORES, variant="same")
    assert {(row["x"], row["y"]) for row in compare(groups_of(tmp_path))} == {("same (td3)", "td3")}


def test_one_path_or_none(tmp_path):
    write_sweep(tmp_path, SCORES)
    assert len(read_results(tmp_path)) == len(read_results(str(tmp_path))) == len(SCORES)
    with pytest.raises(InvalidArgumentError, match="`paths` must be at least one"):
        read_results([])


def test_a_seed_that_failed_first_and_succeeded_later(tmp_path, recwarn):
    for seed in range(3):
        write_result(tmp_path / f"retry{seed}", seed=seed)
    write_result(tmp_path / "first", seed=0, error="RuntimeError: it fell")
    main([str(tmp_path), "--csv", str(tmp_path / "table.csv")])
    row = next(csv.DictReader((tmp_path / "table.csv").open()))
    assert (row["seeds"], row["failed"]) == ("3", "0")
    assert not [str(warning.message) for warning in recwarn if "not counted" in str(warning.message)]


def test_runs_without_evaluations_have_no_curve(tmp_path):
    for seed in range(2):
        write_result(tmp_path / f"run{seed}", seed=seed, evaluation_steps=[], evaluation_returns=[])
    for runs in (read_results(tmp_path), read_results(tmp_path)[:1]):
        with pytest.raises(
            InvalidArgumentError, match=r"`runs` must have evaluations, but those of .*run0.* have none"
        ):
            aggregate(runs)
