"""Sweeps: what is planned, what a run leaves behind, and that a run continues; without Ray."""

import json
import multiprocessing
import re
import shutil
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pyarrow.fs
import pytest
import yaml
from rl_zoo3 import ALGOS
from stable_baselines3.common.monitor import load_results
from stable_baselines3.common.vec_env import VecNormalize

from ddpg_ext import load_zoo_run
from ddpg_ext.common.errors import DDPGPaperError
from ddpg_ext.zoo import sweep, sweep_folder, sweep_progress, sweep_run
from ddpg_ext.zoo.sweep_options import parse

pytest.importorskip("ray.tune")

SMALL = ["buffer_size:2000", "batch_size:8", "learning_starts:100", "policy_kwargs:dict(net_arch=[8,8])"]
#: a module of hyperparameters, as the Zoo knows them
OWN_CODE = """
from torch import nn

from ddpg_ext import OrnsteinUhlenbeckNoise
from ddpg_ext.buffers import PackedReplayBuffer
from ddpg_ext.ddpg_paper.policies import MlpPolicy


class Policy(MlpPolicy):
    pass


class Buffer(PackedReplayBuffer):
    pass


class Noise(OrnsteinUhlenbeckNoise):
    pass


class Activation(nn.ReLU):
    pass


falling, constant = lambda progress: 1e-3 * progress, lambda progress: 5e-3
entry = {"policy": "own_code.Policy", "policy_kwargs": {"net_arch": [8, 8], "activation_fn": Activation}}
entry |= {"batch_size": 8, "replay_buffer_class": Buffer, "buffer_size": 2000, "learning_starts": 100}
entry |= {"learning_rate": falling, "qf_learning_rate": constant, "action_noise": Noise([0.0])}
hyperparams = {"Pendulum-v1": entry}
"""
KEYS = {"env", "env_kwargs", "algo", "variant", "seed", "hyperparameters", "n_timesteps", "evaluation_steps"}
KEYS |= {
    "evaluation_returns",
    "final_return",
    "best_return",
    "weights_sha256",
    "seconds",
    "resumed",
    "versions",
    "processor",
    "commit",
}
SHORT = ["--env", "Pendulum-v1", "-n", "450", "--eval-freq", "150", "--eval-episodes", "2", "--final-episodes", "2"]
SHORT += ["--snapshot-freq", "200", "-params", *SMALL]


def plan(*options):
    return sweep.plan(parse([*SHORT, *options]))


def train(run, folder, stop_at=None):
    """Train without Ray; an error at a step leaves what a kill leaves, and the error's result."""

    def report(numbers):
        if stop_at is not None and numbers["steps"] >= stop_at:
            raise RuntimeError("the node\nburns")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep_run, "REPORT_EVERY", 5 if stop_at is None else -1)
        sweep_run.train(run, str(folder), report)
    return json.loads((folder / run.name / "result.json").read_text())


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    (run,) = plan()
    return train(run, folder), folder / run.name


def timeless(result):
    return {key: value for key, value in result.items() if key not in ("seconds", "resumed")}


def test_what_a_run_leaves_behind(undisturbed):
    result, folder = undisturbed
    assert set(result) == KEYS
    assert [result[key] for key in ("algo", "variant", "seed", "resumed")] == ["ddpg_paper", "ddpg_paper", 0, False]
    assert result["evaluation_steps"] == [150, 300, 450]
    assert np.shape(result["evaluation_returns"]) == (3, 2)
    assert result["hyperparameters"]["batch_size"] == 8
    assert result["hyperparameters"]["tau"] == 0.005  # of the Zoo's entry
    for checkpoint, key in (("last", "final_return"), ("best", "best_return")):
        model, _ = load_zoo_run(folder, checkpoint=checkpoint)
        assert result[key]["episodes"] == 2
        assert (sweep_run.weights_sha256(model) == result["weights_sha256"]) or checkpoint == "best"
    assert not (folder / "snapshots").exists()
    assert [path.name for path in folder.glob(".*")] == []
    assert list(folder.glob("tensorboard/*/events*"))


def test_the_weights_are_those_of_the_zoos_training(undisturbed, monkeypatch, tmp_path):
    result, folder = undisturbed
    config = yaml.load((folder / "Pendulum-v1" / "config.yml").read_text(), yaml.UnsafeLoader)
    from rl_zoo3 import train as zoo_train

    options = ["--algo", "ddpg_paper", *SHORT[:8], "--seed", "0", "-f", str(tmp_path), "-params", *SMALL]
    monkeypatch.setattr("sys.argv", ["train", *options])
    zoo_train.train()
    model, _ = load_zoo_run(tmp_path / "ddpg_paper" / "Pendulum-v1_1", checkpoint="last")
    assert sweep_run.weights_sha256(model) == result["weights_sha256"]
    assert config["n_timesteps"] == 450


def test_ddpg_paper_continues_bit_for_bit(undisturbed, tmp_path):
    (run,) = plan()
    failed = train(run, tmp_path, stop_at=350)
    assert failed["error"] == "RuntimeError: the node burns"
    assert "Traceback" in (tmp_path / run.name / "error.txt").read_text()
    result = train(run, tmp_path)
    assert result["resumed"] == "bit for bit"
    expected, folder = undisturbed
    assert timeless(result) == timeless(expected)
    for name in ("r", "l"):
        assert load_results(str(tmp_path / run.name))[name].tolist() == load_results(str(folder))[name].tolist()


@pytest.mark.parametrize("damage", ["empty", "cut"])
def test_a_run_continues_without_its_small_files(undisturbed, tmp_path, damage):
    """A machine that stops may leave them empty, because only snapshots are flushed to the disk."""
    (run,) = plan()
    assert "error" in train(run, tmp_path, stop_at=350)
    monitor = tmp_path / run.name / "0.monitor.csv"
    (tmp_path / run.name / ".seconds").write_text("")
    (tmp_path / run.name / "..seconds.0123abcd.tmp").write_text("")
    monitor.write_bytes(monitor.read_bytes()[:-60] if damage == "cut" else b"")
    result = train(run, tmp_path)
    expected, folder = undisturbed
    assert result["resumed"] == "bit for bit"
    assert timeless(result) == timeless(expected)
    for name in ("r", "l"):
        assert load_results(str(tmp_path / run.name))[name].tolist() == load_results(str(folder))[name].tolist()
    assert [path.name for path in (tmp_path / run.name).glob(".*")] == []


def test_hyperparameters_with_code_of_ones_own(tmp_path, monkeypatch):
    """The run reads its own snapshots and agents; nobody has to allow what its own settings name."""
    (tmp_path / "own_code.py").write_text(OWN_CODE)
    monkeypatch.syspath_prepend(str(tmp_path))
    (run,) = plan("-conf", "own_code", "-params", "gamma:0.9")
    assert "node burns" in train(run, tmp_path, stop_at=350)["error"]
    result = train(run, tmp_path)
    assert result["resumed"] == "bit for bit"
    assert timeless(result) == timeless(train(run, tmp_path / "undisturbed"))


def test_a_noise_by_its_name_is_no_code(tmp_path):
    (run,) = plan("-params", "action_noise:'ornstein-uhlenbeck'", *SMALL)
    assert sweep_run.prepare(run, tmp_path)[0].own_code()["allow"] == []


def test_a_run_that_begins_again_has_one_curve(tmp_path):
    (run,) = plan("--snapshot-freq", "900")
    assert "error" in train(run, tmp_path, stop_at=250)
    assert train(run, tmp_path)["resumed"] is False
    assert len(list((tmp_path / run.name).glob("tensorboard/*/events*"))) == 1


def test_a_finished_run_is_kept(undisturbed, tmp_path):
    expected, folder = undisturbed
    (run,) = plan()
    shutil.copytree(folder, tmp_path / run.name)
    assert train(run, tmp_path, stop_at=0) == expected


@pytest.mark.parametrize("algo", ["td3", "ppo"])
def test_others_continue_from_a_checkpoint(tmp_path, algo):
    params = ["-params", "normalize:True", "policy_kwargs:dict(net_arch=[8,8])"]
    params += ["n_steps:128", "n_envs:1"] if algo == "ppo" else SMALL[:3]
    (run,) = plan("--algo", algo, *params)
    assert "error" in train(run, tmp_path, stop_at=350)
    (checkpoint,) = (tmp_path / run.name / "snapshots").iterdir()
    assert checkpoint.suffix == ".tar"  # one file, which is either whole or not there
    steps = int(checkpoint.stem.rpartition("_")[2])
    result = train(run, tmp_path)
    assert result["resumed"] == "from a checkpoint"
    assert result["evaluation_steps"][:3] == [150, 300, 450]
    model = ALGOS[algo].load(tmp_path / run.name / "Pendulum-v1.zip")
    assert model.num_timesteps == (512 if algo == "ppo" else 450)
    lengths = load_results(str(tmp_path / run.name))["l"]
    assert 400 <= sum(lengths) <= model.num_timesteps
    assert 200 <= steps <= 350


def test_another_storage(undisturbed, tmp_path, monkeypatch):
    """Run folders are copied there at snapshots, and from there to continue."""
    filesystem = pyarrow.fs.SubTreeFileSystem(str(tmp_path), pyarrow.fs.LocalFileSystem())

    class Bucket(sweep_folder.Storage):
        def __init__(self, folder):
            self.filesystem, self.path, self.is_local = filesystem, "sweep", False

    monkeypatch.setattr(sweep_run, "Storage", Bucket)
    (run,) = plan()
    assert "error" in train(run, tmp_path / "sweep", stop_at=350)
    assert list((tmp_path / "sweep" / run.name / "snapshots").glob("*.zip"))
    result = train(run, tmp_path / "sweep")
    assert timeless(result) == timeless(undisturbed[0])
    assert result["resumed"] == "bit for bit"
    assert list((tmp_path / "sweep" / run.name / "snapshots").glob("*")) == []
    assert not (tmp_path / "sweep" / run.name / "error.txt").exists()
    load_zoo_run(tmp_path / "sweep" / run.name)


@pytest.mark.parametrize("moment", ["final evaluation", "upload"])
def test_a_run_that_is_killed_at_its_end(tmp_path, monkeypatch, moment):
    """Its snapshots are there until its result is, and the best agent keeps its own statistics."""
    (run,) = plan("-params", *SMALL, "normalize:True")

    def kill(*_):
        raise KeyboardInterrupt

    def evaluate(experiment, model, source):
        return kill() if model is experiment_model(experiment) else evaluate_before(experiment, model, source)

    def experiment_model(experiment):
        return experiment.callbacks[0].model

    evaluate_before = sweep_run.SweepExperiment.evaluate
    with monkeypatch.context() as patch:
        if moment == "upload":
            patch.setattr(sweep_run.Storage, "write_json", kill)
        else:
            patch.setattr(sweep_run.SweepExperiment, "evaluate", evaluate)
        with pytest.raises(KeyboardInterrupt):
            sweep_run.train(run, str(tmp_path), lambda numbers: None)
    assert list((tmp_path / run.name / "snapshots").glob("*.zip"))
    result = train(run, tmp_path)
    assert result["resumed"] == "bit for bit"
    assert timeless(result) == timeless(train(run, tmp_path / "undisturbed"))


def test_statistics_under_another_wrapper(tmp_path):
    """With a frame stack, SB3's copy of the statistics would meet wrappers in another order."""
    params = ["normalize:True", "frame_stack:2", "n_steps:128", "n_envs:1", "policy_kwargs:dict(net_arch=[8])"]
    (run,) = plan("--algo", "ppo", "-params", *params)
    result = train(run, tmp_path)
    assert "error" not in result
    assert {result[name]["episodes"] for name in ("final_return", "best_return")} == {2}


def test_numbers_that_yaml_reads_as_text(tmp_path):
    file = tmp_path / "sweep.yml"
    file.write_text("{hyperparams: {tau: 5e-3}, variant: {a: {learning_rate: 1e-3, learning_starts: 1e3}}}")
    (run,) = sweep.plan(parse([str(file), "--algo", "td3", "--env", "Pendulum-v1", "-n", "500"]))
    assert [run.hyperparameters[name] for name in ("tau", "learning_rate", "learning_starts")] == [0.005, 0.001, 1000]
    conf = tmp_path / "td3.yml"
    conf.write_text("Pendulum-v1: {policy: MlpPolicy, n_timesteps: 1e3, learning_rate: 1e-3}")
    (run,) = sweep.plan(parse(["--algo", "td3", "--env", "Pendulum-v1", "-conf", str(conf)]))
    assert (run.n_timesteps, run.hyperparameters["learning_rate"]) == (1000, 0.001)


@pytest.mark.parametrize("n_envs", [1, 2])
def test_hindsight_in_a_dry_run(capsys, tmp_path, n_envs):
    from stable_baselines3.common.envs import BitFlippingEnv

    gym.register("Bits-v0", lambda: BitFlippingEnv(n_bits=20, continuous=True, max_steps=400), max_episode_steps=400)
    try:
        options = ["--env", "Bits-v0", "-n", "1000", "-f", str(tmp_path), "--dry-run", "-params", *SMALL[:3]]
        options.append(f"n_envs:{n_envs}")
        sweep.main([*options, "replay_buffer_class:'HerReplayBuffer'", "policy:'MultiInputPolicy'"])
    finally:
        del gym.registry["Bits-v0"]
    assert "ddpg_paper/Bits-v0_seed0: 1,000 steps, about" in capsys.readouterr().out


def test_a_folder_may_begin_with_the_home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert sweep_folder.Storage("~/sweeps").path == str(tmp_path / "sweeps")


def test_two_processes_do_not_write_to_one_run_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep_folder, "LOCK_TIMEOUT", 0)
    storage = sweep_folder.Storage(str(tmp_path))
    ours, theirs = multiprocessing.Pipe()

    def hold():
        with storage.open_run("a/b"):
            theirs.send("open")
            theirs.recv()

    process = multiprocessing.get_context("fork").Process(target=hold, daemon=True)
    process.start()
    assert ours.recv() == "open"
    with pytest.raises(DDPGPaperError, match="another process"), storage.open_run("a/b"):
        pass
    ours.send("close")
    process.join()
    with storage.open_run("a/b"):
        pass


def test_the_list_of_runs():
    runs = plan("--algo", "ddpg_paper", "td3", "--env", "Pendulum-v1", "MountainCarContinuous-v0", "--seed", "0-1", "7")
    assert len({run.name for run in runs}) == 12
    assert runs[0].name == "ddpg_paper/Pendulum-v1_seed0"
    assert {run.seed for run in runs} == {0, 1, 7}


def test_variants():
    runs = plan(
        "--variant", "paper", "tuned", "no-decay:base=paper,qf_weight_decay=0.0,policy_kwargs=dict(net_arch=[4,4])"
    )
    by_name = {run.variant: run.hyperparameters for run in runs}
    assert list(by_name) == ["paper", "tuned", "no-decay"]
    assert "tau" not in by_name["paper"]
    assert by_name["paper"]["policy"] == "MlpPolicy"
    assert by_name["tuned"]["tau"] == 0.005
    assert by_name["no-decay"]["qf_weight_decay"] == 0.0
    assert by_name["no-decay"]["policy_kwargs"] == {"net_arch": [4, 4]}
    assert [run.variant for run in plan("--algo", "td3", "ddpg", "--variant", "paper")] == ["td3-paper", "ddpg-paper"]


def test_settings_from_a_file(tmp_path):
    settings = {"env": "Pendulum-v1", "seed": "0-2", "n_timesteps": 500, "hyperparams": {"buffer_size": 900}}
    settings["variant"] = {"paper": None, "sb3": {"algo": "ddpg", "base": "paper", "n_timesteps": 400}}
    (tmp_path / "s.yml").write_text(yaml.dump(settings))
    runs = sweep.plan(parse([str(tmp_path / "s.yml"), "--seed", "4"]))  # the command line counts
    assert [(run.variant, run.algo, run.seed, run.n_timesteps) for run in runs] == [
        ("paper", "ddpg_paper", 4, 500),
        ("sb3", "ddpg", 4, 400),
    ]
    (run,) = sweep.plan(parse([str(tmp_path / "s.yml"), "--seed", "4", "--variant", "sb3"]))
    assert run == runs[1]
    with pytest.raises(DDPGPaperError, match="'sb4' is unknown; pass paper, tuned, sb3 or name:key=value,"):
        parse([str(tmp_path / "s.yml"), "--variant", "sb4"])


def test_settings_are_values_of_the_options(tmp_path):
    def parsed(text, *argv):
        (tmp_path / "s.yml").write_text(text)
        return parse([str(tmp_path / "s.yml"), "--env", "Pendulum-v1", *argv])

    given = parsed("{n_timesteps: 1e6, eval_freq: -1, seed: [0, 2-3], variant: paper, dry_run: true, jobs: null}")
    assert (given.n_timesteps, given.eval_freq, given.seed, given.jobs) == (1_000_000, -1, [0, 2, 3], None)
    assert (given.variant, given.dry_run) == ({"paper": {"base": "paper"}}, True)
    given = parsed("{env_kwargs: ['g:5'], hyperparams: {tau: 0.1}, gym_packages: [], dry_run: false}")
    assert (given.env_kwargs, given.hyperparams, given.gym_packages) == ({"g": 5}, {"tau": 0.1}, [])
    assert not given.dry_run
    assert parsed("env_kwargs: {g: 1}", "--env-kwargs", "g:2").env_kwargs == {"g": 2}
    (run,) = sweep.plan(parsed("variant: {long: {n_timesteps: 1e3}}"))
    assert run.n_timesteps == 1000


def test_the_best_trial_of_a_study(tmp_path):
    import optuna

    url = f"sqlite:///{tmp_path / 'study.db'}"
    study = optuna.create_study(storage=url, study_name="pendulum")
    params = {"learning_rate": 0.002, "qf_learning_rate": 0.003, "tau": 0.01, "batch_size_pow": 4, "n_steps": 2}
    params |= {"one_minus_gamma": 0.05, "net_arch": "small", "batch_norm": "none", "qf_weight_decay": 0.0}
    params |= {"noise_type": "normal", "noise_std": 0.3, "noise_dt": 1.0}
    distributions = {name: optuna.distributions.CategoricalDistribution([value]) for name, value in params.items()}
    study.add_trial(optuna.trial.create_trial(params=params, distributions=distributions, value=1.0))
    options = ["--env", "Pendulum-v1", "-n", "500", "--variant", f"best:study={url}"]
    (run,) = sweep.plan(parse(options))
    assert (run.variant, run.hyperparameters["learning_rate"]) == ("best", 0.002)
    assert (run.hyperparameters["batch_size"], run.hyperparameters["gamma"]) == (16, 0.95)
    # The noise of the trial takes the place of that of the entry, which has `noise_dt`
    (run,) = sweep.plan(parse(["--env", "MountainCarContinuous-v0", *options[2:]]))
    assert run.hyperparameters["noise_dt"] is None
    conf = tmp_path / "conf.yml"
    conf.write_text("Pendulum-v1: {action_noise: null}")
    (run,) = sweep.plan(parse([*options, "-conf", str(conf)]))
    assert "action_noise" not in run.hyperparameters
    optuna.create_study(storage=url, study_name="empty")
    for name in ("empty", "gone"):
        with pytest.raises(DDPGPaperError, match=f"the study '{name}' in .* has no completed trial"):
            sweep.plan(parse([*options[:-1], f"{options[-1]},study_name={name}"]))


def test_a_folder_is_of_one_set_of_settings(tmp_path):
    storage = sweep_folder.open_folder(str(tmp_path))
    storage.write_json(sweep_folder.SETTINGS, sweep_folder.merge_settings(storage, {"a/E": {"tau": 1, "x": {"y": 2}}}))
    merged = sweep_folder.merge_settings(storage, {"a/E": {"tau": 1, "x": {"y": 2}}, "b/E": {"tau": 2}})
    assert set(merged) == {"a/E", "b/E"}
    with pytest.raises(DDPGPaperError, match=r"belongs to another sweep: a/E has `y` 2 there, got 3; choose another"):
        sweep_folder.merge_settings(storage, {"a/E": {"tau": 1, "x": {"y": 3}}})


def test_code_in_settings_is_compared_without_its_address(tmp_path):
    storage = sweep_folder.open_folder(str(tmp_path))
    first, second = ({"a/E": {"learning_rate": eval("lambda p: 1e-3 * p")}} for _ in range(2))
    assert str(first) != str(second)
    storage.write_json(sweep_folder.SETTINGS, sweep_folder.merge_settings(storage, first))
    assert "<function <lambda>>" in (tmp_path / "sweep.json").read_text()
    sweep_folder.merge_settings(storage, second)


@pytest.mark.parametrize("content", ["", '{"a": ', "3", "[1]", "\xff"])
@pytest.mark.parametrize("name", ["sweep.json", "ddpg_paper/Pendulum-v1_seed0/result.json"])
def test_damaged_files_of_a_folder_are_named(tmp_path, capsys, name, content):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text(content, encoding="latin-1")
    ends_with_one_line([*SHORT, "-f", str(tmp_path)], f"{tmp_path}/{name} does not hold a mapping", capsys)
    assert (tmp_path / name).read_text(encoding="latin-1") == content


def test_an_empty_result_is_unfinished(tmp_path, capsys):
    storage = sweep_folder.open_folder(str(tmp_path))
    storage.write_json("a/result.json", {})
    assert not storage.is_finished("a")
    storage.write_json("sweep.json", {"ddpg_paper/Pendulum-v1": 3})
    ends_with_one_line([*SHORT, "-f", str(tmp_path)], "sweep.json has 3 as settings of ddpg_paper/Pend", capsys)


def test_one_sweep_at_a_time_in_a_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sweep, "_connect", lambda options: None)
    with sweep_folder.open_folder(str(tmp_path)).open_sweep():
        ends_with_one_line([*SHORT, "-f", str(tmp_path)], "another sweep trains in --folder", capsys)
    assert list(tmp_path.iterdir()) == []


def test_dry_run(capsys, tmp_path):
    sweep.main([*SHORT, "--seed", "0-1", "--dry-run", "-f", str(tmp_path / "none")])
    out = capsys.readouterr().out
    assert re.search(
        r"^ddpg_paper/Pendulum-v1_seed1: 450 steps, about [1-9] min\nabout [1-9] min with ", out, re.MULTILINE
    )
    assert not (tmp_path / "none").exists()
    with pytest.raises(SystemExit, match="2"):
        sweep.main([*SHORT, "--env-kwargs", "g:None", "--dry-run", "-f", str(tmp_path / "none")])
    assert "error: ddpg_paper on Pendulum-v1: unsupported operand type" in capsys.readouterr().err


def test_a_run_without_a_return_has_a_dash():
    numbers = {"steps": 150, "steps_per_second": 75.0, "return": float("nan"), "seconds_left": 60.0}
    line = sweep_progress._progress(SimpleNamespace(last_result=numbers, status="RUNNING"))
    assert line.split() == ["150", "steps", "75", "steps/s", "return", "-", "1", "min", "left"]


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["--env", "Pendulm-v1"], "did you mean 'Pendulum-v1'"),
        (["--algo", "tdd"], "the algorithm 'tdd' is unknown; did you mean 'td3'"),
        (["-params", "lerning_rate:1"], "`lerning_rate` is unknown; did you mean 'learning_rate'"),
        (["-params", "tau"], "pass key:value"),
        (["-params", "policy:Mlp"], "is not a Python expression"),
        (["--variant", "papr"], "pass paper, tuned or name:key=value"),
        (["--variant", "a:tau=-1"], "`tau` must be a number in (0, 1], got -1"),
        (["--variant", "a/b:tau=1"], "a name may have letters"),
        (["--variant", "..:tau=1"], "'..': a name may have letters ... must not begin with a dot or be sweep.json"),
        (["--variant", ".ray:tau=1"], "must not begin with a dot"),
        (["--variant", "sweep.json:tau=1"], "or be sweep.json"),
        (["--variant", "b:study=sqlite:///none.db"], "does not contain exactly 1 study"),
        (["--seed", "3-1"], "--seed takes numbers and ranges such as 0-4, got '3-1'"),
        (["--seed", "1", "1"], "two runs have the same folder"),
        (
            ["--seed", "0", "4294967296"],
            "--seed takes numbers and ranges such as 0-4, got '4294967296'; the largest seed",
        ),
        (["--seed", "0-999999999"], "--seed takes at most 10,000 seeds, got 1,000,000,000"),
        (["--jobs", "0"], "--jobs: must be a whole number above 0"),
        (["--env-kwargs", "gg:1"], "unexpected keyword argument 'gg'"),
        (["--vec-env", "foo"], "--vec-env: invalid choice: 'foo' (choose from "),
        (["--nothing"], "unrecognized arguments: --nothing"),
        (["-n", "100.5"], "--n-timesteps: must be a whole number, got '100.5'"),
        (["-n", "1e999999999"], "--n-timesteps: must be a whole number"),
        (["--variant", "a:n_timesteps=[3]"], "`n_timesteps` must be a whole number, got [3]"),
        (["--gym-packages", "not_there"], "--gym-packages not_there cannot be imported"),
        (["--gym-packages", "broken_package"], "--gym-packages broken_package cannot be imported (division by zero)"),
        (["-f", "/proc/x"], "--folder '/proc/x' cannot be written to (No such file or directory); choose another"),
        (["-f", "envs.yml/x"], "--folder 'envs.yml/x' cannot be written to (Not a directory); choose another"),
        (["-f", "s3x://a/b"], "--folder 's3x://a/b' cannot be written to"),
        (["--address", "127.0.0.1:1"], "--address '127.0.0.1:1' cannot be reached ... set RAY_AUTH_MODE=token if it"),
        (["-conf", "gone.yml"], "gone.yml"),
        (["envs.yml"], "the key `envs` is unknown; did you mean 'env'"),
        (["gone.yml"], "the settings 'gone.yml' cannot be read"),
        (["--algo", "td3", "--env", "CartPole-v1"], "CartPole-v1"),
    ],
)
def test_bad_input_ends_with_one_short_line(options, part, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "broken_package.py").write_text("1 / 0")
    (tmp_path / "envs.yml").write_text("envs: [Pendulum-v1]\n")
    ends_with_one_line([*SHORT, "-f", "folder", *options], part, capsys)
    assert not (tmp_path / "folder").exists()


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("n_timesteps: [100]", "`n_timesteps` must be one value, got [100]"),
        ("n_timesteps: 100.5", "--n-timesteps: must be a whole number, got '100.5'"),
        ("n_timesteps: true", "--n-timesteps: must be a whole number, got 'True'"),
        ("eval_freq: {a: 1}", "`eval_freq` must be one value, got {'a': 1}"),
        ("jobs: 0", "--jobs: must be a whole number above 0"),
        ("env_kwargs: 5", "--env-kwargs '5': pass key:value"),
        ("env_kwargs: [{g: 1}]", "`env_kwargs` must be a mapping (name: value), got [{'g': 1}]"),
        ("vec_env: foo", "--vec-env: invalid choice: 'foo' (choose from "),
        ("env: {Pendulum-v1: 1}", "`env` must be a list, got"),
        ("seed: 1.5", "--seed takes numbers and ranges"),
        ("dry_run: 3", "`dry_run` must be true or false, got 3"),
        ("variant: {no: {tau: 0.1}}", "--variant False: a name must be text"),
        ("variant: {a: 5}", "--variant a must be a mapping (name: value), got 5"),
        ("variant: {a: {algo: [td3]}}", "--variant a: `algo` must be text, got ['td3']"),
        ("variant: {a: {n_timesteps: many}}", "`n_timesteps` must be a whole number, got 'many'"),
        ("[1]", "must be a mapping (name: value), got list"),
        ("5: 6", "the key `5` is unknown"),
    ],
)
def test_bad_settings_end_with_one_short_line(text, part, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s.yml").write_text(text)
    ends_with_one_line(["s.yml", *(["--env", "Pendulum-v1"] if "env:" not in text else [])], part, capsys)


def ends_with_one_line(argv, part, capsys):
    with pytest.raises(SystemExit) as ended:
        sweep.main(argv)
    out, message = capsys.readouterr()
    assert ended.value.code == 2
    assert message.startswith("ddpg_ext sweep: error: ")
    assert [words for words in part.split(" ... ") if words not in message] == []
    assert message.count("\n") == 1
    assert len(message) < 300
    assert out == ""


GOALS = """
import gymnasium as gym
from stable_baselines3.common.envs import BitFlippingEnv

gym.register("Bits-v0", lambda **kwargs: BitFlippingEnv(n_bits=3, continuous=True, max_steps=3))
"""


@pytest.mark.parametrize("algo", ["ddpg_paper", "sac"])
def test_hindsight_is_trained_and_evaluated(tmp_path, monkeypatch, algo):
    """The best agent is loaded at the end, and needs an environment for its replay buffer."""
    (tmp_path / "goals.py").write_text(GOALS)
    monkeypatch.syspath_prepend(tmp_path)
    options = ["--algo", algo, "--env", "Bits-v0", "--gym-packages", "goals", "-n", "150", "--eval-freq", "50"]
    hindsight = ["policy:'MultiInputPolicy'", "replay_buffer_class:'HerReplayBuffer'", "buffer_size:1000"]
    hindsight += ["replay_buffer_kwargs:'dict(n_sampled_goal=2)'", "learning_starts:20", "batch_size:8"]
    (run,) = sweep.plan(parse([*options, "--eval-episodes", "1", "--final-episodes", "2", "-params", *hindsight]))
    result = train(run, tmp_path / "sweep")
    assert "error" not in result
    assert result["best_return"]["episodes"] == 2


def test_an_environment_whose_reset_takes_a_seed_has_snapshots(tmp_path):
    """The generator of dm_control's tasks is out of reach, so a run resets them by a seed."""
    pytest.importorskip("dm_control")
    params = ["policy:'MultiInputPolicy'", "policy_kwargs:dict(net_arch=[8])", "batch_size:8", "buffer_size:2000"]
    options = ["--env", "dm_control/cartpole-balance-v0", "--env-kwargs", "max_episode_steps:120", "-n", "300"]
    options += ["--eval-freq", "-1", "--final-episodes", "1", "--snapshot-freq", "100"]
    (run,) = sweep.plan(parse([*options, "-params", *params]))
    whole = train(run, tmp_path / "whole")
    assert "burns" in train(run, tmp_path / "killed", stop_at=230)["error"]
    resumed = train(run, tmp_path / "killed")
    assert resumed["resumed"] == "bit for bit"
    assert resumed["weights_sha256"] == whole["weights_sha256"]


@pytest.mark.parametrize("more", [(), ("n_envs:2",), ("--vec-env", "subproc")], ids=" ".join)
def test_a_run_without_repeatable_resets_has_no_snapshots(tmp_path, monkeypatch, more):
    """With several environments, or with processes, snapshots seed the reset, which must then depend on the seed."""

    class Wild(gym.Wrapper):
        n_resets = 0

        def reset(self, **kwargs):
            obs, info = self.env.reset(**kwargs)
            counted = self if more else Wild  # a count of its own is repeated with the wrapper's attributes
            counted.n_resets += 1
            return obs + np.float32(1e-3 * counted.n_resets), info

    monkeypatch.setattr(sweep_run, "_wild", Wild, raising=False)
    (run,) = plan("-params", *SMALL, "env_wrapper:'ddpg_ext.zoo.sweep_run._wild'", *more)
    assert Wild.n_resets == 0  # a plan runs no episode
    with pytest.warns(UserWarning, match="this run has no snapshots"):
        assert "error" not in train(run, tmp_path)


def test_arguments_of_the_environment_of_a_variant(tmp_path):
    (tmp_path / "s.yml").write_text("env_kwargs: {g: 5e0}\nvariant: {light: {}, heavy: {env_kwargs: {g: 1.2e1}}}")
    runs = sweep.plan(parse([str(tmp_path / "s.yml"), *SHORT]))
    assert {run.variant: run.env_kwargs for run in runs} == {"light": {"g": 5.0}, "heavy": {"g": 12.0}}


def test_only_the_sweeps_own_evaluations_are_counted(tmp_path, monkeypatch):
    code = """
import gymnasium as gym
from stable_baselines3.common.callbacks import EvalCallback

class Heavy(EvalCallback):
    def __init__(self):
        super().__init__(gym.make("Pendulum-v1", g=20.0), eval_freq=70, n_eval_episodes=1)
"""
    (tmp_path / "heavy.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    (run,) = plan("-params", *SMALL, "callback:'heavy.Heavy'")
    assert train(run, tmp_path)["evaluation_steps"] == [150, 300, 450]


def test_hyperparameters_in_a_module_stay_as_they_are(tmp_path, monkeypatch):
    (tmp_path / "entries.py").write_text("hyperparams = {'default': dict(buffer_size=500, tau=0.5)}")
    monkeypatch.syspath_prepend(tmp_path)
    plan(
        "--conf-file", "entries", "--variant", "a:tau=0.1", "b:gamma=0.9", "-params", "policy_kwargs:dict(net_arch=[8])"
    )
    import entries

    assert entries.hyperparams == {"default": {"buffer_size": 500, "tau": 0.5}}


def test_a_replay_buffer_of_this_package_in_a_variant():
    (run,) = plan("--variant", "p:replay_buffer_class=PrioritizedReplayBuffer")
    assert run.hyperparameters["replay_buffer_class"].__name__ == "PrioritizedReplayBuffer"


def test_errors_that_are_no_valid_text_are_recorded(tmp_path, monkeypatch):
    def fail(*_):
        raise ValueError("cannot read caf\udce9.xml")

    monkeypatch.setattr(sweep_run, "_train", fail)
    (run,) = plan()
    assert train(run, tmp_path)["error"] == "ValueError: cannot read caf\\udce9.xml"


def test_a_variant_may_change_the_number_of_stacked_frames(tmp_path):
    entry = {
        "Pendulum-v1": {"normalize": True, "frame_stack": 4, "buffer_size": 500, "policy_kwargs": {"net_arch": [8]}}
    }
    (tmp_path / "conf.yml").write_text(yaml.safe_dump(entry))
    runs = plan("--conf-file", str(tmp_path / "conf.yml"), "--variant", "four:tau=0.1", "two:frame_stack=2")
    stacks = [run.hyperparameters["vec_env_wrapper"] for run in runs]
    assert [list(wrapper.values()) for (wrapper,) in stacks] == [[{"n_stack": 4}], [{"n_stack": 2}]]


def test_a_users_own_normalisation_is_the_only_one(tmp_path):
    wrapper = "vec_env_wrapper:'stable_baselines3.common.vec_env.VecNormalize'"
    (run,) = plan("-params", *SMALL, wrapper)
    _, model, _ = sweep_run.prepare(run, tmp_path)
    assert isinstance(model.env, VecNormalize)
    assert not isinstance(model.env.venv, VecNormalize)
    model.env.close()


def test_a_variant_without_arguments_of_the_environment(tmp_path):
    (tmp_path / "s.yml").write_text("variant: {a: {env_kwargs: null}}")
    (run,) = sweep.plan(parse([str(tmp_path / "s.yml"), *SHORT]))
    assert run.env_kwargs == {}
    with pytest.raises(DDPGPaperError, match=r"`env_kwargs` must be a mapping \(name: value\), got 3"):
        plan("--variant", "a:env_kwargs=3")
