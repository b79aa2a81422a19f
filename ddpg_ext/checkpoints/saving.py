"""From a model to its file."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ddpg_ext.checkpoints.model_zip import write_model

if TYPE_CHECKING:
    from ddpg_ext.ddpg_paper import DDPGPaper


def model_data(
    model: "DDPGPaper", exclude: Iterable[str] | None = None, include: Iterable[str] | None = None
) -> dict[str, Any]:
    """
    :param model: the model
    :param exclude: attributes to leave out, beyond those that SB3 leaves out
    :param include: attributes to keep that would be left out
    :return: the attributes to save
    """
    left_out = {*(exclude or ()), *model._excluded_save_params()} - set(include or ())
    state_dicts, variables = model._get_torch_save_params()
    left_out.update(name.split(".")[0] for name in (*state_dicts, *variables))
    return {name: value for name, value in vars(model).items() if name not in left_out}


def save_model(
    model: "DDPGPaper", path: Any, exclude: Iterable[str] | None = None, include: Iterable[str] | None = None
) -> None:
    """
    :param model: the model
    :param path: where the file goes (".zip" may be left out), or an open binary file
    :param exclude: attributes to leave out, beyond those that SB3 leaves out
    :param include: attributes to keep that would be left out
    """
    data = model_data(model, exclude, include)
    write_model(path, data, model.get_parameters(), data.pop("replay_buffer", None))
