"""Saving, loading and resuming: the methods of ``DDPGPaper`` that touch files."""

import copy
import inspect
import io
import pathlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch as th
from stable_baselines3 import DDPG, TD3
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.type_aliases import GymEnv, TensorDict
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer

from ddpg_ext.common.errors import InvalidArgumentTypeError, suggestion
from ddpg_ext.ddpg_paper.validation import env_of_her, make_replay_buffer

if TYPE_CHECKING:
    from ddpg_ext.ddpg_paper.ddpg_paper import DDPGPaper

SelfSaveLoad = TypeVar("SelfSaveLoad", bound="SaveLoad")


class SaveLoad(OffPolicyAlgorithm):
    """
    The part of ``DDPGPaper`` that touches files.

    The work is done in ``ddpg_ext.checkpoints``, which builds on ``DDPGPaper``; so these methods import it when they
    are called, and the algorithm itself depends on nothing of it.
    """

    def save(
        self,
        path: str | pathlib.Path | io.BufferedIOBase,
        exclude: Iterable[str] | None = None,
        include: Iterable[str] | None = None,
    ) -> None:
        """
        Save the model in an SB3 zip file, which appears only when all of it is on the disk: a crash in the middle
        leaves the file that was there.

        :param path: where the file goes (".zip" may be left out), or an open binary file
        :param exclude: attributes to leave out, beyond those that SB3 leaves out
        :param include: attributes to keep that would be left out
        :raises OSError: if the file cannot be written; what was there before is still there
        """
        from ddpg_ext.checkpoints.saving import save_model

        save_model(cast("DDPGPaper", self), path, exclude, include)

    @classmethod
    def load(
        cls: type[SelfSaveLoad],
        path: str | pathlib.Path | io.BufferedIOBase,
        env: GymEnv | None = None,
        device: th.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        *,
        trusted: bool = False,
        allow: Iterable[Any] = (),
        **kwargs: Any,
    ) -> SelfSaveLoad:
        """
        Load a model from a zip file: one that ``save`` wrote, or one of SB3's DDPG or TD3, of any version since 1.0.

        Nothing in the file is executed, unless ``trusted``.

        :param path: the file
        :param env: environment to go on training in; needs the same spaces
        :param device: "auto", "cpu", "cuda", ...
        :param custom_objects: what to put in the place of saved attributes, by name; they are not read then
        :param print_system_info: print the system that saved it
        :param force_reset: reset the environment before training goes on
        :param trusted: unpickle what is not on the list of what a checkpoint may have. This lets whoever made the file
            run any code with your account
        :param allow: classes and functions of your own that the file may use, such as a features extractor
        :param kwargs: constructor arguments to change
        :return: the model
        :raises CheckpointError: if the file is missing, damaged, asks for what it must not have, or does not fit
            ``env`` (also a ``ValueError``)
        :raises InvalidArgumentTypeError: for a keyword that the constructor does not have
        """
        from ddpg_ext.checkpoints.load import load_model
        from ddpg_ext.checkpoints.model_zip import Trust

        known = set(inspect.signature(cls).parameters) - {"policy", "env", "device", "_init_setup_model"}
        for name in kwargs:
            if name not in known:
                raise InvalidArgumentTypeError(f"load() got the keyword {name!r}; {suggestion(name, known)}")
        if "stats_window_size" in kwargs:
            kwargs["ep_info_buffer"] = None  # which is then made with the new size
        if "action_noise" in kwargs:
            kwargs["_noise_is_seeded"] = False
        for name, attribute in (("stats_window_size", "_stats_window_size"), ("executor", "_executor_choice")):
            if name in kwargs:
                kwargs[attribute] = kwargs.pop(name)
        if custom_objects and custom_objects.get("learning_rate") == 0.0:
            # What the RL Zoo's programs give, lest the file's own cannot be unpickled, which here need not be
            custom_objects = {name: value for name, value in custom_objects.items() if name != "learning_rate"}
        trust = Trust(trusted, allow, custom_objects)
        model = load_model(  # type: ignore[type-var]
            cls, path, env, device, trust, print_system_info, force_reset, kwargs
        )
        # The noise that the file holds has a stream of its own
        if kwargs.get("seed") is not None and "action_noise" not in kwargs:
            cast("DDPGPaper", model)._seed_noise(kwargs["seed"])
        return model

    def set_parameters(
        self,
        load_path_or_dict: str | TensorDict,
        exact_match: bool = True,
        device: th.device | str = "auto",
    ) -> None:
        """
        Load weights and the optimisers' states. The weight decay is an argument of the model, and stays its own.

        :param load_path_or_dict: a zip file that ``save`` wrote, or what ``get_parameters`` gave
        :param exact_match: whether every parameter must be there
        :param device: where to load the tensors to
        :raises ValueError: for a network or optimiser that the model does not have, or one that is missing
        """
        if isinstance(load_path_or_dict, dict):
            # torch's optimisers take tensors as they are: two models would go on with one and the same Adam state
            load_path_or_dict = copy.deepcopy(load_path_or_dict)
        super().set_parameters(load_path_or_dict, exact_match, device)
        cast("DDPGPaper", self)._set_weight_decay()

    def save_replay_buffer(self, path: str | pathlib.Path | io.BufferedIOBase) -> None:
        """
        Save the replay buffer, without a second copy of it in memory and without pickle.

        :param path: where the file goes (".pkl" may be left out, as in SB3), or an open binary file
        :raises CheckpointError: if a replay buffer of one's own holds what cannot be stored
        :raises InvalidArgumentTypeError: if the model has no replay buffer
        :raises OSError: if the file cannot be written; what was there before is still there
        """
        from ddpg_ext.serialization.replay_buffers import save_buffer

        if not isinstance(self.replay_buffer, ReplayBuffer):
            raise InvalidArgumentTypeError(f"there is no replay buffer to save: it is {self.replay_buffer!r:.80}")
        save_buffer(path, self.replay_buffer)

    def load_replay_buffer(
        self,
        path: str | pathlib.Path | io.BufferedIOBase,
        truncate_last_traj: bool = True,
        *,
        trusted: bool = False,
        allow: Iterable[Any] = (),
    ) -> None:
        """
        Load a replay buffer: one that ``save_replay_buffer`` wrote, or one of SB3's. Nothing in the file is executed.

        :param path: the file
        :param truncate_last_traj: for ``HerReplayBuffer``: end the episode that was under way
        :param trusted: unpickle what is not on the list of what a replay buffer may have; see :meth:`load`
        :param allow: classes of your own that the file may use
        :raises CheckpointError: if the file is missing, damaged, or asks for what it must not have
        """
        from ddpg_ext.serialization.allowlist import Allowed
        from ddpg_ext.serialization.replay_buffers import load_buffer

        present = make_replay_buffer(cast("DDPGPaper", self)) if self.replay_buffer is None else self.replay_buffer
        buffer = load_buffer(path, present, Allowed(allow), trusted)
        if not isinstance(buffer, ReplayBuffer):
            raise InvalidArgumentTypeError(f"{path} holds a {type(buffer).__name__}, not a replay buffer")
        if isinstance(buffer, HerReplayBuffer):
            if buffer is not present:
                buffer.set_env(env_of_her(cast("DDPGPaper", self)))
            if truncate_last_traj:
                buffer.truncate_last_trajectory()
        buffer.device = self.device
        self.replay_buffer = buffer

    @classmethod
    def resume(
        cls: type[SelfSaveLoad],
        path: str | pathlib.Path,
        env: GymEnv,
        device: th.device | str = "auto",
        *,
        trusted: bool = False,
        allow: Iterable[Any] = (),
        custom_objects: dict[str, Any] | None = None,
    ) -> SelfSaveLoad:
        """
        Go on with a training run exactly where a snapshot of :class:`~ddpg_ext.SnapshotCallback` was taken.

        With ``model.learn(total - model.num_timesteps, callback=SnapshotCallback(...), reset_num_timesteps=False)``
        the run ends with the same weights, bit for bit, as if it had never stopped (on the same machine, with the same
        versions and number of threads).

        :param path: folder of the snapshots: the newest is taken, or if it is damaged the one before; or one snapshot
        :param env: the environment, made as for the first start. A ``VecNormalize`` gets its statistics back; if it is
            missing, it is put around
        :param device: "auto", "cpu", "cuda", ...
        :param trusted: see :meth:`load`
        :param allow: see :meth:`load`
        :param custom_objects: see :meth:`load`; a lambda as a schedule has to be given again here
        :return: the model
        :raises CheckpointNotFoundError: if there is no snapshot yet
        :raises CheckpointError: if no snapshot is whole, or the environment is another
        """
        from ddpg_ext.checkpoints.model_zip import Trust
        from ddpg_ext.checkpoints.snapshots import resume_model

        trust = Trust(trusted, allow, custom_objects)
        return resume_model(cls, path, env, device, trust)  # type: ignore[type-var]

    @classmethod
    def from_sb3(cls: type[SelfSaveLoad], model: TD3) -> SelfSaveLoad:
        """
        Go on with a live SB3 DDPG or TD3: its networks, optimisers, counters, environment and replay buffer.

        The networks keep their architecture (``action_layer=1``, no batch normalisation). Of a TD3's critics the first
        is kept, and ``learn`` says what else is lost.

        :param model: the SB3 model
        :return: the model, which predicts what the original does
        :raises CheckpointError: if its networks are not SB3's
        """
        from ddpg_ext.checkpoints.load import convert_live

        return convert_live(cls, model)  # type: ignore[type-var]

    def to_sb3_ddpg(self) -> DDPG:
        """
        Go back to SB3's DDPG, which a model without batch normalisation and with ``action_layer=1`` can.

        :return: an SB3 model with its weights, optimisers' state, counters, environment and replay buffer
        :raises CheckpointError: if SB3 does not have its networks
        """
        from ddpg_ext.checkpoints.sb3_compat import to_sb3

        return to_sb3(cast("DDPGPaper", self))
