"""A trained actor as an ONNX file, which runs without Python, torch or this package."""

import contextlib
import copy
import json
import logging
import os
import warnings
from collections.abc import Iterator
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
from ddpg_ext.common.checks import check_number
from ddpg_ext.common.errors import CheckpointError, InvalidArgumentError, InvalidArgumentTypeError
from ddpg_ext.common.files import atomic_file
from ddpg_ext.common.layers import Linear
from ddpg_ext.common.optional_imports import import_extra
from ddpg_ext.ddpg_paper.ddpg_paper import DDPGPaper

#: name of the output, and of the only input where observations are no dict
ACTION, OBSERVATION = "action", "observation"
#: the exporter's lowest, and the last that its onnxruntime is sure to know
_OPSETS = (18, 23)
#: what the exported graph may differ by from ``predict``, in half the range of the actions
_TOLERANCE = 1e-4


def export_onnx(
    model: DDPGPaper,
    path: str | os.PathLike[str],
    *,
    vec_normalize: VecNormalize | Literal["auto"] | None = "auto",
    opset: int = 18,
) -> None:
    """
    Write the actor to an ONNX file that takes raw observations and gives actions within the environment's bounds.

    What ``predict(..., deterministic=True)`` does is inside the graph: the statistics and the clipping of a
    ``VecNormalize``, SB3's preprocessing (images divided by 255, one-hot codes of discrete observations), the features
    extractor, batch normalisation with its running averages, and the way from [-1, 1] to the bounds. Before the file is
    written, onnxruntime computes a few actions with it, which must be those of ``predict``.

    The input is named ``observation``, or there is one for each key of a Dict; the output ``action``. The first
    dimension is the batch, of any size; the others and the types are those of the observation space (images have their
    channels first, as SB3 gives them to the model) and of the action space. The metadata of the file hold
    ``action_low``, ``action_high`` (JSON), ``vec_normalize`` ("true" or "false"), ``policy`` and ``ddpg_ext`` (the
    version).

    :param model: the model
    :param path: where the file goes; it appears only when all of it is on the disk
    :param vec_normalize: statistics of the observations. "auto": those of the model's environment, if it has one with a
        ``VecNormalize``; None: the graph takes observations that are normalised already
    :param opset: version of the ONNX operators, 18 to 23
    :raises InvalidArgumentError: for an ``opset`` out of range, or statistics that do not fit the model's observations
    :raises InvalidArgumentTypeError: for something else than a DDPGPaper or a ``VecNormalize``
    :raises CheckpointError: if the policy does something that ONNX cannot express, or the graph computes other actions
    :raises MissingExtraError: without the extra ``onnx``
    """
    if not isinstance(model, DDPGPaper):
        raise InvalidArgumentTypeError(
            f"`model` must be a DDPGPaper, got {type(model).__name__}; DDPGPaper.from_sb3 converts SB3's DDPG and TD3"
        )
    what = f"a whole number from {_OPSETS[0]} to {_OPSETS[1]}"
    check_number("opset", opset, lambda n: _OPSETS[0] <= n <= _OPSETS[1], what, integer=True)
    for module in ("onnx", "onnxscript", "onnxruntime"):  # before the work begins
        import_extra(module, "ddpg_ext[onnx]", "export_onnx")
    statistics = model.get_vec_normalize_env() if isinstance(vec_normalize, str) else vec_normalize
    _check_statistics(model, vec_normalize, statistics)

    samples = _samples(model.observation_space, statistics)
    proto = _trace(_Agent(model, statistics), samples, opset)
    _tidy(proto, model, statistics)
    content = proto.SerializeToString()
    _compare(model, statistics, content, samples, path)
    with atomic_file(Path(path)) as file:
        file.write(content)


class _Agent(nn.Module):
    """
    From raw observations to actions of the environment.

    :param model: the model, of which copies are made
    :param statistics: of the observations, or None
    """

    def __init__(self, model: DDPGPaper, statistics: VecNormalize | None) -> None:
        super().__init__()
        self.policy = copy.deepcopy(model.policy).cpu()
        for module in self.policy.modules():
            if type(module) is Linear:
                # Its choice of a kernel depends on the size of the batch, which a graph leaves open
                module.__class__ = nn.Linear  # type: ignore[assignment]
        self.eval()
        space = model.action_space
        self.action_shape = space.shape
        self.low, self.high = (th.as_tensor(bound) for bound in (space.low, space.high))
        self.keys = list(model.observation_space) if isinstance(model.observation_space, spaces.Dict) else None
        self.normalize = nn.ModuleDict(
            {str(i): _Normalize(rms, statistics) for i, rms in enumerate(_parts(model.observation_space, statistics))}
        )

    def forward(self, *observations: th.Tensor) -> th.Tensor:
        """
        :param observations: one tensor, or for each key of a Dict one, in its order
        :return: actions, shape ``(batch, *action_shape)``
        """
        normalized = [self.normalize[str(i)](observation) for i, observation in enumerate(observations)]
        obs = normalized[0] if self.keys is None else dict(zip(self.keys, normalized, strict=True))
        actions = self.policy._predict(obs, deterministic=True).reshape(-1, *self.action_shape)
        # BasePolicy.unscale_action
        return self.low + (0.5 * (actions + 1.0) * (self.high - self.low))


class _Normalize(nn.Module):
    """
    ``VecNormalize.normalize_obs`` for one array.

    :param rms: its statistics; None: it passes unchanged
    :param statistics: whose they are
    """

    def __init__(self, rms: RunningMeanStd | None, statistics: VecNormalize | None) -> None:
        super().__init__()
        self.passes = rms is None or statistics is None
        if rms is None or statistics is None:
            return
        mean = th.as_tensor(rms.mean, dtype=th.float64)
        self.mean = mean.float()
        # SB3 computes in double precision. The mean, which may be large beside the deviation, is subtracted in two
        # parts, so that single precision loses nothing here
        self.mean_rest = (mean - self.mean.double()).float()
        self.factor = th.as_tensor(1 / np.sqrt(rms.var + statistics.epsilon)).float()
        self.clip = float(statistics.clip_obs)

    def forward(self, observation: th.Tensor) -> th.Tensor:
        """
        :param observation: shape ``(batch, *shape)``, of any type
        :return: float32, or as it came where nothing is normalised
        """
        if self.passes:
            return observation
        centred: th.Tensor
        if observation.dtype != th.float32 and observation.dtype.itemsize > 2:  # float64, and wide integers
            centred = ((observation.double() - self.mean.double()) - self.mean_rest.double()).float()
        else:
            centred = (observation.float() - self.mean) - self.mean_rest
        return (centred * self.factor).clamp(-self.clip, self.clip)


def _names(space: gym.Space) -> list[str]:
    """The inputs of the graph."""
    if not isinstance(space, spaces.Dict):
        return [OBSERVATION]
    return [str(key) if key != ACTION else f"{OBSERVATION}.{key}" for key in space]


def _parts(space: gym.Space, statistics: VecNormalize | None) -> list[RunningMeanStd | None]:
    """For each input its statistics, if it is normalised."""
    rms = statistics.obs_rms if statistics is not None and statistics.norm_obs else None
    if not isinstance(space, spaces.Dict):
        return [rms]  # type: ignore[list-item] # a dict of them is for a Dict, which has been checked
    of_key = rms if isinstance(rms, dict) else {}
    return [of_key.get(key) for key in space]


def _check_statistics(model: DDPGPaper, given: Any, statistics: Any) -> None:
    if (isinstance(given, str) and given != "auto") or not isinstance(statistics, VecNormalize | None):
        raise InvalidArgumentTypeError(f"`vec_normalize` must be a VecNormalize, 'auto' or None, got {given!r}")
    if statistics is None or not statistics.norm_obs:
        return
    space, rms = model.observation_space, statistics.obs_rms
    shapes = {key: part.mean.shape for key, part in rms.items()} if isinstance(rms, dict) else rms.mean.shape
    if isinstance(space, spaces.Dict):
        wanted: Any = {key: part.shape for key, part in space.items()}
        fits = isinstance(shapes, dict) and all(wanted.get(key) == shape for key, shape in shapes.items())
    else:
        wanted = space.shape
        fits = shapes == wanted
    if not fits:
        raise InvalidArgumentError(
            f"`vec_normalize` must have statistics of the model's observations, of shape {wanted}, got {shapes}. Where "
            "wrappers outside of the VecNormalize change observations (a stack of frames, transposed images), pass "
            "vec_normalize=None and normalise before the graph"
        )


def _raw_space(space: gym.Space, statistics: VecNormalize | None) -> gym.Space:
    """What the graph takes; SB3 makes float32 of the images that it normalises."""
    if statistics is None or not statistics.norm_obs or statistics.venv is None:
        return space
    raw = statistics.venv.observation_space
    if isinstance(space, spaces.Dict) and isinstance(raw, spaces.Dict):
        rms = statistics.obs_rms if isinstance(statistics.obs_rms, dict) else {}
        return spaces.Dict({key: raw[key] if key in rms else part for key, part in space.items()})
    return raw


def _samples(space: gym.Space, statistics: VecNormalize | None, n: int = 5) -> list[np.ndarray]:
    """Observations of a size that networks take, for each input ``n``."""
    rng = np.random.default_rng(0)
    raw = _raw_space(space, statistics)
    parts = list(raw.values()) if isinstance(raw, spaces.Dict) else [raw]
    samples = []
    for part, rms in zip(parts, _parts(space, statistics), strict=True):
        if isinstance(part, spaces.Box) and part.dtype.kind == "f":
            mean, std = (0.0, 1.0) if rms is None else (rms.mean, np.sqrt(rms.var))
            drawn = rng.normal(mean, std, size=(n, *part.shape))
            samples.append(np.clip(drawn, part.low, part.high).astype(part.dtype))
        else:
            part = copy.deepcopy(part)  # it has a generator, which is the caller's
            part.seed(0)
            samples.append(np.stack([part.sample() for _ in range(n)]))
    return samples


def _trace(agent: _Agent, samples: list[np.ndarray], opset: int) -> Any:
    """The graph, as a protocol buffer of the onnx package."""
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
    except Exception as error:  # torch has many for what it cannot express
        reason = str(error).strip().partition("\n")[0]
        raise CheckpointError(f"the policy cannot be expressed in ONNX: {type(error).__name__}: {reason}") from error
    assert program is not None  # for mypy: it is, with dynamo
    return program.model_proto


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks on packages that it would know."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _tidy(proto: Any, model: DDPGPaper, statistics: VecNormalize | None) -> None:
    """Say what the file is, and drop the exporter's traces, which name the folders of this machine."""
    graph = proto.graph
    for part in (proto, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""
    for function in proto.functions:
        for part in (function, *function.node):
            del part.metadata_props[:]
            part.doc_string = ""
    normalizes = statistics is not None and statistics.norm_obs
    metadata = {
        "ddpg_ext": __version__,
        "policy": type(model.policy).__name__,
        "action_low": json.dumps(model.action_space.low.tolist()),
        "action_high": json.dumps(model.action_space.high.tolist()),
        "vec_normalize": json.dumps(normalizes),
    }
    proto.producer_name, proto.producer_version = "ddpg_ext", __version__
    for key, value in metadata.items():
        proto.metadata_props.add(key=key, value=value)


def _compare(
    model: DDPGPaper, statistics: VecNormalize | None, content: bytes, samples: list[np.ndarray], path: Any
) -> None:
    """The graph against ``predict``."""
    onnxruntime = import_extra("onnxruntime", "ddpg_ext[onnx]", "export_onnx")
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    space = model.observation_space
    (actions,) = session.run(None, dict(zip(_names(space), samples, strict=True)))
    obs: Any = dict(zip(space, samples, strict=True)) if isinstance(space, spaces.Dict) else samples[0]
    expected, _ = model.predict(obs if statistics is None else statistics.normalize_obs(obs), deterministic=True)
    half_range = (model.action_space.high - model.action_space.low) / 2
    difference = np.max(np.abs(actions - expected) / half_range, initial=0.0)
    if not difference <= _TOLERANCE:
        raise CheckpointError(
            f"{path} was not written: the graph's actions differ from those of predict by {difference:.3g} of half "
            "their range. It holds what the policy's `_predict` does; a `predict` of your own cannot be exported"
        )
