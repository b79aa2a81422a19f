"""Export of a trained actor to an ONNX file, which runs without Python, torch and this package."""

import contextlib
import copy
import json
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecNormalize
from torch import nn

from ddpg_ext._version import __version__
from ddpg_ext.common.checks import check_number, check_path
from ddpg_ext.common.errors import CheckpointError, InvalidArgumentError, InvalidArgumentTypeError
from ddpg_ext.common.evaluation import statistics_shape
from ddpg_ext.common.files import atomic_file
from ddpg_ext.common.optional_imports import import_extra
from ddpg_ext.ddpg_paper.ddpg_paper import DDPGPaper

#: names of the output and, unless observations are a Dict, of the input
ACTION, OBSERVATION = "action", "observation"
#: accepted difference between the graph and ``predict``, as a fraction of half the range of the actions
_TOLERANCE = 1e-4
#: number of observations for this comparison
_N_SAMPLES = 5


def export_onnx(
    model: DDPGPaper,
    path: str | os.PathLike[str],
    *,
    vec_normalize: VecNormalize | Literal["auto"] | None = "auto",
    opset: int = 18,
) -> None:
    """
    Write the actor to an ONNX file that takes raw observations and returns actions of the environment.

    The graph contains all steps of ``predict(..., deterministic=True)``: statistics and clipping of a ``VecNormalize``,
    SB3's preprocessing (division of images by 255, one-hot codes of discrete observations), the features extractor,
    batch normalisation with its running averages, and the scaling from [-1, 1] to the bounds. Before the file is
    written, a few of its actions are compared with those of ``predict``.

    The input is named ``observation``, or there is one input per key of a Dict; the output is named ``action``. The
    first dimension is the batch, of any size; the other dimensions and the types are those of the observation space
    (images have their channels first, as SB3 passes them to the model) and of the action space. The file's metadata
    hold ``action_low`` and ``action_high`` (JSON), ``vec_normalize`` ("true" or "false"), ``policy`` and ``ddpg_ext``
    (the version).

    :param model: the model
    :param path: path of the file, which is written atomically
    :param vec_normalize: statistics of the observations. "auto": those of the model's environment, if it has a
        ``VecNormalize``; None: the graph takes normalised observations
    :param opset: version of the ONNX operators, 18 to 23
    :raises InvalidArgumentError: for an ``opset`` out of range, a folder as ``path``, or statistics that do not fit the
        model's observations
    :raises InvalidArgumentTypeError: if ``model`` is not a DDPGPaper, or ``vec_normalize`` has the wrong type
    :raises CheckpointError: if ONNX cannot express the policy, or the graph computes other actions
    :raises MissingExtraError: without the extra ``onnx``
    """
    if not isinstance(model, DDPGPaper):
        raise InvalidArgumentTypeError(
            f"`model` must be a DDPGPaper, got {type(model).__name__}; DDPGPaper.from_sb3 converts SB3's DDPG and TD3"
        )
    check_path("path", path)
    if os.path.isdir(path):
        raise InvalidArgumentError(
            f"`path` must be a file, got the folder {os.fspath(path)!r}; add the name of the file"
        )
    # The exporter writes version 18 or later; onnxruntime supports versions up to at least 23
    opset = check_number("opset", opset, lambda n: 18 <= n <= 23, "a whole number from 18 to 23", integer=True)
    for module in ("onnx", "onnxscript", "onnxruntime"):
        import_extra(module, "ddpg_ext[onnx]", "export_onnx")
    statistics = _statistics(model, vec_normalize)
    samples = _samples(model.observation_space, statistics)
    proto = _trace(_Agent(model, statistics), samples, opset)
    _set_metadata(proto, model, statistics)
    content = proto.SerializeToString()
    _compare(model, statistics, content, samples, path)
    with atomic_file(Path(path)) as file:
        file.write(content)


class _Agent(nn.Module):
    """Compute actions of the environment from raw observations."""

    def __init__(self, model: DDPGPaper, statistics: VecNormalize | None) -> None:
        super().__init__()
        self.policy = copy.deepcopy(model.policy).cpu()
        self.eval()
        space = model.action_space
        self.action_shape = space.shape
        self.low, self.high = (th.as_tensor(bound) for bound in (space.low, space.high))
        parts = _parts(model.observation_space, statistics)
        self.normalize = nn.ModuleList(nn.Identity() if rms is None else _Normalize(rms, statistics) for rms in parts)

    def forward(self, *observations: th.Tensor) -> th.Tensor:
        """Return actions, shape ``(batch, *action_shape)``, for one tensor, or one per key of a Dict."""
        normalized = [part(observation) for part, observation in zip(self.normalize, observations, strict=True)]
        obs = _joined(self.policy.observation_space, normalized)
        actions = self.policy._predict(obs, deterministic=True).reshape(-1, *self.action_shape)
        # DDPGPaperPolicy.unscale_action
        return (self.low + (0.5 * (actions + 1.0) * (self.high - self.low))).maximum(self.low).minimum(self.high)


class _Normalize(nn.Module):
    """Compute the same as ``VecNormalize.normalize_obs`` for one array."""

    def __init__(self, rms: RunningMeanStd, statistics: Any) -> None:
        super().__init__()
        mean = th.as_tensor(rms.mean, dtype=th.float64)
        self.mean = mean.float()
        # SB3 computes in double precision. The mean may be much larger than the deviation, so subtract it in two parts,
        # which is exact in single precision
        self.mean_rest = (mean - self.mean.double()).float()
        self.factor = th.as_tensor(1 / np.sqrt(rms.var + statistics.epsilon)).float()
        self.clip = float(statistics.clip_obs)

    def forward(self, observation: th.Tensor) -> th.Tensor:
        """Return the normalised observation, float32, for an observation of any type."""
        if observation.dtype != th.float32 and observation.dtype.itemsize > 2:  # float64, and wide integers
            centred = ((observation.double() - self.mean.double()) - self.mean_rest.double()).float()
        else:
            centred = (observation.float() - self.mean) - self.mean_rest
        return (centred * self.factor).clamp(-self.clip, self.clip)


def _by_key(whole: Any) -> dict[str, Any]:
    """Return the parts of a Dict space or a dict by key; any other value is the only part, ``observation``."""
    return dict(whole.items()) if isinstance(whole, dict | spaces.Dict) else {OBSERVATION: whole}


def _joined(space: gym.Space, parts: Sequence[Any]) -> Any:
    """Return the observation made of these parts, a dict for a Dict space."""
    return dict(zip(space, parts, strict=True)) if isinstance(space, spaces.Dict) else parts[0]


def _names(space: gym.Space) -> list[str]:
    return [str(key) if key not in (ACTION, "") else f"{OBSERVATION}.{key}" for key in _by_key(space)]


def _parts(space: gym.Space, statistics: VecNormalize | None) -> list[RunningMeanStd | None]:
    """Return the statistics of each input, or None if it is not normalised."""
    rms = {} if statistics is None else _by_key(statistics.obs_rms)
    return [rms.get(key) for key in _by_key(space)]


def _statistics(model: DDPGPaper, argument: Any) -> VecNormalize | None:
    """Return the ``VecNormalize`` with the statistics of observations, or None if they are not normalised."""
    automatic = isinstance(argument, str) and argument == "auto"
    statistics = model.get_vec_normalize_env() if automatic else argument
    if not isinstance(statistics, VecNormalize | None):
        raise InvalidArgumentTypeError(f"`vec_normalize` must be a VecNormalize, 'auto' or None, got {argument!r}")
    if statistics is None or not statistics.norm_obs:
        return None
    space, shapes = model.observation_space, statistics_shape(statistics.obs_rms)
    expected = {key: part.shape for key, part in _by_key(space).items()}
    if not _by_key(shapes).items() <= expected.items():
        raise InvalidArgumentError(
            "`vec_normalize` must have statistics of the model's observations, of shape "
            f"{_joined(space, list(expected.values()))}, got {shapes}. "
            "If a wrapper around the VecNormalize changes observations (stacked frames, transposed images), pass "
            "vec_normalize=None and normalise before the graph"
        )
    return statistics


def _samples(space: gym.Space, statistics: VecNormalize | None) -> list[np.ndarray]:
    """Return ``_N_SAMPLES`` observations of moderate size for each input."""
    rng = np.random.default_rng(0)
    # SB3 changes the spaces of images that it normalises to float32
    raw = {} if statistics is None or statistics.venv is None else _by_key(statistics.venv.observation_space)
    samples = []
    for (key, part), rms in zip(_by_key(space).items(), _parts(space, statistics), strict=True):
        part = part if rms is None else raw.get(key, part)
        if isinstance(part, spaces.Box) and part.dtype.kind == "f":
            mean, std = (0.0, 1.0) if rms is None else (rms.mean, np.sqrt(rms.var))
            drawn = rng.normal(mean, std, size=(_N_SAMPLES, *part.shape))
            samples.append(np.clip(drawn, part.low, part.high).astype(part.dtype))
        else:
            part = copy.deepcopy(part)  # the caller's space must keep the state of its generator
            part.seed(0)
            samples.append(np.stack([part.sample() for _ in range(_N_SAMPLES)]))
    return samples


def _trace(agent: _Agent, samples: list[np.ndarray], opset: int) -> Any:
    """Return the graph as a protocol buffer of the package onnx."""
    batch = th.export.Dim("batch")
    try:
        with _quiet(), th.no_grad():
            program = th.onnx.export(
                agent,
                tuple(th.as_tensor(sample) for sample in samples),
                dynamo=True,
                opset_version=opset,
                input_names=_names(agent.policy.observation_space),
                output_names=[ACTION],
                dynamic_shapes=(tuple({0: batch} for _ in samples),),
                verbose=False,
            )
    except Exception as error:  # torch raises many types of errors for unsupported graphs
        reason = str(error).strip().partition("\n")[0]
        raise CheckpointError(f"the policy cannot be expressed in ONNX: {type(error).__name__}: {reason}") from error
    assert program is not None  # with dynamo
    return program.model_proto


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress messages of the exporter about optional packages."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _set_metadata(proto: Any, model: DDPGPaper, statistics: VecNormalize | None) -> None:
    """Set the metadata of the file, and remove stack traces of the exporter, which name folders of this machine."""
    graph, functions = proto.graph, proto.functions
    parts = [proto, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer]
    for part in (*parts, *functions, *(node for function in functions for node in function.node)):
        del part.metadata_props[:]
        part.doc_string = ""
    metadata = {
        "ddpg_ext": __version__,
        "policy": type(model.policy).__name__,
        "action_low": json.dumps(model.action_space.low.tolist()),
        "action_high": json.dumps(model.action_space.high.tolist()),
        "vec_normalize": json.dumps(statistics is not None),
    }
    proto.producer_name, proto.producer_version = "ddpg_ext", __version__
    for key, value in metadata.items():
        proto.metadata_props.add(key=key, value=value)


def _compare(
    model: DDPGPaper, statistics: VecNormalize | None, content: bytes, samples: list[np.ndarray], path: Any
) -> None:
    """Raise a ``CheckpointError`` if the actions of the graph differ from those of ``predict``."""
    onnxruntime = import_extra("onnxruntime", "ddpg_ext[onnx]", "export_onnx")
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    space = model.observation_space
    (actions,) = session.run(None, dict(zip(_names(space), samples, strict=True)))
    obs = _joined(space, samples)
    expected, _ = model.predict(obs if statistics is None else statistics.normalize_obs(obs), deterministic=True)
    half_range = (model.action_space.high - model.action_space.low) / 2
    difference = np.max(np.abs(actions - expected) / half_range, initial=0.0)
    if not difference <= _TOLERANCE:
        raise CheckpointError(
            f"{path} was not written, because the graph's actions differ from those of predict by {difference:.3g} of "
            "half their range. The graph holds the policy's `_predict`; an overridden `predict` cannot be exported"
        )
