"""The paper's convolutions for images, as SB3 features extractors."""

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_flattened_obs_dim, is_image_space
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, CombinedExtractor
from torch import nn

from ddpg_ext.common.checks import check_count, check_flag, check_keywords, check_number
from ddpg_ext.common.errors import InvalidArgumentError, InvalidArgumentTypeError, UnsupportedSpaceError
from ddpg_ext.common.layers import ScalarToVector, fan_in_uniform_, is_scalar


class PaperCNN(BaseFeaturesExtractor):
    """
    Extract features by three convolutions with ReLU and no pooling (paper, section 7), for any SB3 algorithm.

    The paper has 32 filters per convolution, but does not give kernel sizes and strides. With these defaults, 64x64
    pixels become 15x15, 7x7 and 7x7, so 1,568 features. With two more layers of 200 units, a network has 424,000
    parameters for nine channels (the paper: about 430,000). The weights of a layer start in U[-1/sqrt(f), 1/sqrt(f)],
    where f is its fan-in. The channels of an image are its smallest dimension, which is the first (as in SB3) or last.

    :param observation_space: images: a Box with three dimensions, of uint8 from 0 to 255 (SB3's policies divide them by
        255) or of numbers from 0 to 1
    :param n_filters: number of filters of each convolution
    :param kernel_sizes: kernel size of each convolution, in pixels
    :param strides: stride of each convolution, in pixels
    :param paddings: zeros at each side of the input of each convolution, in pixels, fewer than its kernel size
    :param normalized_image: accept numbers of any bounds without scaling, such as those of ``VecNormalize`` (with
        ``normalize_images=False`` for the policy, as for SB3's ``NatureCNN``)
    :param features_dim: width of an additional linear layer with ReLU, as in SB3's ``NatureCNN``; None: no such layer
    :raises UnsupportedSpaceError: for other observations, and for images smaller than the convolutions need
    :raises InvalidArgumentError: for sizes or strides out of range
    :raises InvalidArgumentTypeError: for values of the wrong type
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        n_filters: int = 32,
        kernel_sizes: Sequence[int] = (8, 5, 5),
        strides: Sequence[int] = (4, 2, 1),
        paddings: Sequence[int] = (0, 1, 2),
        normalized_image: bool = False,
        features_dim: int | None = None,
    ) -> None:
        normalized_image = check_flag("normalized_image", normalized_image)
        n_filters = check_count("n_filters", n_filters)
        kernel_sizes, strides = _check_sizes("kernel_sizes", kernel_sizes, 1), _check_sizes("strides", strides, 1)
        paddings = _check_sizes("paddings", paddings, 0)
        if features_dim is not None:
            accepted = "a whole number above 0, or None"
            features_dim = check_number("features_dim", features_dim, lambda n: n > 0, accepted, integer=True)
        if not len(kernel_sizes) == len(strides) == len(paddings):
            raise InvalidArgumentError(
                "`kernel_sizes`, `strides` and `paddings` must have a number for each convolution, got "
                f"{kernel_sizes}, {strides} and {paddings}"
            )
        if any(padding >= size for padding, size in zip(paddings, kernel_sizes, strict=True)):
            raise InvalidArgumentError(
                f"`paddings` must be smaller than `kernel_sizes`, got {paddings} and {kernel_sizes}"
            )
        _check_images(observation_space, normalized_image)
        assert isinstance(observation_space, spaces.Box)  # for mypy: checked
        *_, n_channels = shape = _channels_last(observation_space.shape)
        convolutions = list(zip(kernel_sizes, strides, paddings, strict=True))
        height, width = (_output_size(n, convolutions) for n in shape[:2])
        n_features = n_filters * height * width
        super().__init__(observation_space, features_dim or n_features)
        is_last = _has_channels_last(observation_space.shape)
        self.permutation = (0, 3, 1, 2) if is_last else (0, 1, 2, 3)
        layers: list[nn.Module] = []
        for sizes in convolutions:
            convolution = nn.Conv2d(n_channels, n_filters, *sizes)
            fan_in_uniform_(convolution, 1 / math.sqrt(convolution.weight[0].numel()))
            layers += [convolution, nn.ReLU()]
            n_channels = n_filters
        linear = [] if features_dim is None else [nn.Linear(n_features, features_dim), nn.ReLU()]
        self.cnn = nn.Sequential(*layers, nn.Flatten(), *linear)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        """
        Return the features.

        :param observations: images, shape ``(batch, *observation_space.shape)``
        :return: features, shape ``(batch, features_dim)``
        """
        images = observations.permute(self.permutation)
        if images.device.type == "cpu":
            # On a CPU, oneDNN's convolutions take a third less time if the channels of a pixel are adjacent
            images = images.contiguous(memory_format=th.channels_last)
        return self.cnn(images)


class PaperCombinedExtractor(CombinedExtractor):
    """
    Extract features of Dict observations like SB3's ``CombinedExtractor``, with a :class:`PaperCNN` for each image.

    Other observations are flattened. The features are concatenated.

    :param observation_space: Dict of images and vectors
    :param cnn_kwargs: keyword arguments of each :class:`PaperCNN`
    :param cnn_output_dim: ``features_dim`` of each :class:`PaperCNN`, under SB3's name
    :param normalized_image: ``normalized_image`` of each :class:`PaperCNN`
    :raises UnsupportedSpaceError: for images smaller than the convolutions need
    :raises InvalidArgumentTypeError: for keyword arguments that :class:`PaperCNN` does not take
    """

    def __init__(
        self,
        observation_space: spaces.Dict,
        cnn_kwargs: dict[str, Any] | None = None,
        cnn_output_dim: int | None = None,
        normalized_image: bool = False,
    ) -> None:
        extractors = nn.ModuleDict()
        names: dict[str, str] = {}
        features_dim = 0
        kwargs = {} if cnn_kwargs is None else cnn_kwargs
        check_keywords("cnn_kwargs", kwargs, PaperCNN, 1)
        if cnn_output_dim is not None:
            check_count("cnn_output_dim", cnn_output_dim)
        kwargs = {"features_dim": cnn_output_dim, "normalized_image": normalized_image, **kwargs}
        for key, space in observation_space.spaces.items():
            name = str(key).replace(".", "_")
            while not name or hasattr(extractors, name):  # names that torch refuses
                name += "_"
            names[key] = name
            if is_image_space(space, normalized_image=bool(kwargs["normalized_image"])):
                extractors[name] = cnn = PaperCNN(space, **kwargs)
                features_dim += cnn.features_dim
            else:
                is_float = isinstance(space, spaces.Box) and space.dtype.kind == "f"
                if is_float and is_image_space(space, normalized_image=True) and np.prod(space.shape) > 3 * 32 * 32:  # type: ignore[arg-type]
                    warnings.warn(
                        f"the observation {key!r} ({space.dtype}, shape {space.shape}) gets no convolutions, because "
                        "it is not uint8. VecNormalize turns the images in its `norm_obs_keys` into floats. For "
                        "convolutions on floats pass "
                        "`features_extractor_kwargs=dict(cnn_kwargs=dict(normalized_image=True))`"
                    )
                extractors[name] = ScalarToVector() if is_scalar(space) else nn.Flatten()
                features_dim += get_flattened_obs_dim(space)
        # Skip CombinedExtractor's constructor, which would build another network for each image
        BaseFeaturesExtractor.__init__(self, observation_space, features_dim)
        self.extractors, self.names = extractors, names

    def forward(self, observations: dict[str, th.Tensor]) -> th.Tensor:
        """
        Return the features.

        :param observations: a tensor for each key of the space, shape ``(batch, *shape)``
        :return: features, shape ``(batch, features_dim)``
        """
        return th.cat([self.extractors[name](observations[key]) for key, name in self.names.items()], dim=1)


def _output_size(size: int, convolutions: list[tuple[int, int, int]]) -> int:
    """Return the height or width of an image after convolutions with these kernel sizes, strides and paddings."""
    needed, output = 1, size
    for kernel_size, stride, padding in reversed(convolutions):
        needed = max(1, (needed - 1) * stride + kernel_size - 2 * padding)
    if size < needed:
        raise UnsupportedSpaceError(
            f"images must have at least {needed} pixels in height and width for these convolutions, got {size}; "
            "pass larger images, or smaller `kernel_sizes` and `strides` in `features_extractor_kwargs`"
        )
    for kernel_size, stride, padding in convolutions:
        output = (output + 2 * padding - kernel_size) // stride + 1
    return output


def _has_channels_last(shape: tuple[int, ...]) -> bool:
    """Return whether the channels are last; ambiguous shapes have them first, as in SB3."""
    return shape[2] < min(shape[:2])


def _channels_last(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape as height, width, channels."""
    return shape if _has_channels_last(shape) else (*shape[1:], shape[0])


def _check_images(space: spaces.Space, normalized_image: bool) -> None:
    if isinstance(space, spaces.Dict):
        raise UnsupportedSpaceError(
            f"PaperCNN takes one image, got {space}; pass 'MultiInputPolicy' as `policy` for Dict observations"
        )
    if not isinstance(space, spaces.Box) or len(space.shape) != 3:
        raise UnsupportedSpaceError(
            f"PaperCNN takes images, a Box of height, width and channels, got {space}; pass 'MlpPolicy' as `policy` "
            "for other observations, or render images with ddpg_ext.envs.PixelActionRepeat"
        )
    in_bounds = is_image_space(space) or (np.all(space.low >= 0) and np.all(space.high <= 1))
    if not in_bounds and not normalized_image:
        raise UnsupportedSpaceError(
            f"images must be uint8 from 0 to 255, which are scaled to [0, 1], or have bounds within [0, 1], got "
            f"{space.dtype} from {np.min(space.low)} to {np.max(space.high)}. Use uint8 images, or scale them "
            "(gymnasium.wrappers.TransformObservation), or accept them without scaling: "
            "`policy_kwargs=dict(normalize_images=False, features_extractor_kwargs=dict(normalized_image=True))`"
        )


def _check_sizes(name: str, values: Any, least: int) -> list[int]:
    accepted = f"a list of whole numbers of at least {least}, one for each convolution"
    if not isinstance(values, list | tuple):
        raise InvalidArgumentTypeError(f"`{name}` must be {accepted}, got {values!r}")
    if not values:
        raise InvalidArgumentError(f"`{name}` must be {accepted}, got {values!r}")
    return [check_number(name, value, lambda n: n >= least, accepted, integer=True) for value in values]
