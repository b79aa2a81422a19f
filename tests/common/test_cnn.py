"""PaperCNN by itself: sizes, initial weights, which images it takes, and that SB3's algorithms take it."""

import math
import warnings

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import DQN, PPO, SAC
from torch import nn
from torch.nn import functional as F
from toys import ChaosEnv

from ddpg_ext import InvalidArgumentError, InvalidArgumentTypeError, UnsupportedSpaceError
from ddpg_ext.common.cnn import PaperCNN, PaperCombinedExtractor


def images(*shape, low=0, high=255, dtype=np.uint8):
    return spaces.Box(low, high, shape, dtype)


def convolutions(network):
    return [module for module in network.modules() if isinstance(module, nn.Conv2d)]


def test_three_convolutions_of_32_filters_without_pooling():
    extractor = PaperCNN(images(9, 64, 64))
    assert [type(layer) for layer in extractor.cnn] == [nn.Conv2d, nn.ReLU] * 3 + [nn.Flatten]
    assert [conv.out_channels for conv in convolutions(extractor)] == [32, 32, 32]
    sizes, x = [], th.zeros(2, 9, 64, 64)
    for layer in extractor.cnn:
        x = layer(x)
        sizes.append(tuple(x.shape[1:]))
    assert sizes[1::2] == [(32, 15, 15), (32, 7, 7), (32, 7, 7)]
    assert sizes[-1] == (extractor.features_dim,) == (1568,)
    # As in the guide
    assert [sum(p.numel() for p in conv.parameters()) for conv in convolutions(extractor)] == [18_464, 25_632, 25_632]


def test_each_layer_starts_within_its_fan_in():
    th.manual_seed(0)
    for conv in convolutions(PaperCNN(images(9, 64, 64))):
        bound = 1 / math.sqrt(conv.in_channels * conv.kernel_size[0] * conv.kernel_size[1])
        for param in conv.parameters():
            assert param.abs().max() <= bound
            assert param.abs().max() > 0.85 * bound
            # Uniform, not normal: the variance is bound^2 / 3
            assert param.numel() < 100 or param.var().item() == pytest.approx(bound**2 / 3, rel=0.05)


def test_the_smallest_images_are_those_that_the_error_names():
    for size in ((15, 64), (64, 15), (1, 1)):
        with pytest.raises(UnsupportedSpaceError, match=f"at least 16 pixels in height and width.*got {min(size)}"):
            PaperCNN(spaces.Box(0, 255, (1, *size), np.uint8))
    kernels = {"kernel_sizes": [5, 3], "strides": [3, 2], "paddings": [0, 0]}
    assert PaperCNN(images(1, 11, 11), **kernels).features_dim == 32
    with pytest.raises(UnsupportedSpaceError, match="at least 11 pixels"):
        PaperCNN(images(1, 10, 11), **kernels)


OWN_KERNELS = {"n_filters": 4, "kernel_sizes": (3, 2), "strides": (2, 1), "paddings": (1, 0)}


@pytest.mark.parametrize(
    ("shape", "kwargs", "layers"),
    [
        ((9, 64, 64), {}, [(4, 0), (2, 1), (1, 2)]),
        ((1, 210, 160), {}, [(4, 0), (2, 1), (1, 2)]),
        ((3, 20, 20), OWN_KERNELS, [(2, 1), (1, 0)]),
    ],
)
def test_it_computes_what_it_says(shape, kwargs, layers):
    """The same as functions of torch, written out; and channels first and last are the same images."""
    th.manual_seed(0)
    extractor = PaperCNN(images(*shape), **kwargs)
    th.manual_seed(0)
    last = PaperCNN(images(*shape[1:], shape[0], high=1, dtype=np.float32), **kwargs)  # floats within [0, 1], as well
    y = x = th.rand(3, *shape)
    for conv, (stride, padding) in zip(convolutions(extractor), layers, strict=True):
        y = F.relu(F.conv2d(y, conv.weight, conv.bias, stride, padding))
    th.testing.assert_close(extractor(x), y.flatten(1))
    assert y.flatten(1).shape[1] == extractor.features_dim
    assert th.equal(extractor(x), last(x.permute(0, 2, 3, 1)))


@pytest.mark.parametrize(
    ("low", "high", "dtype"),
    [(0, 255, np.float32), (-1, 1, np.float32), (-np.inf, np.inf, np.float32), (0, 2, np.uint8), (0, 255, np.int64)],
)
def test_numbers_outside_0_and_1_are_refused_unless_they_are_meant_so(low, high, dtype):
    space = images(3, 32, 32, low=low, high=high, dtype=dtype)
    with pytest.raises(UnsupportedSpaceError) as caught:
        PaperCNN(space)
    for word in (np.dtype(dtype).name, "from", "[0, 1]", "normalized_image=True", "normalize_images=False"):
        assert word in str(caught.value)
    x = th.rand(2, 3, 32, 32)
    assert PaperCNN(space, normalized_image=True)(x).shape == (2, 288)


BAD = {
    InvalidArgumentError: {
        "n_filters": [0],
        "kernel_sizes": [[], [8, 5, 0]],
        "strides": [[4, 2, 0]],
        "paddings": [[0, 0, -1]],
    },
    InvalidArgumentTypeError: {
        "n_filters": [1.5],
        "kernel_sizes": [3],
        "strides": [[4, 2, "1"]],
        "normalized_image": [1],
    },
}


@pytest.mark.parametrize("error", BAD)
def test_wrong_arguments(error):
    for name, value in ((name, value) for name, values in BAD[error].items() for value in values):
        with pytest.raises(error, match=f"`{name}`"):
            PaperCNN(images(3, 64, 64), **{name: value})
    with pytest.raises(InvalidArgumentError, match="must have a number for each convolution"):
        PaperCNN(images(3, 64, 64), kernel_sizes=[8, 5])


def test_a_dict_of_images_and_vectors():
    cameras, speed = {"camera": images(3, 32, 32), "map": images(16, 20, 1)}, spaces.Box(-1, 1, (4,))
    space = spaces.Dict({**cameras, "speed": speed, "n": spaces.Discrete(3)})
    extractor = PaperCombinedExtractor(space, cnn_kwargs={"n_filters": 8})
    parts = {"camera": th.rand(5, 3, 32, 32), "map": th.rand(5, 16, 20, 1), "speed": th.rand(5, 4), "n": th.rand(5, 3)}
    features = extractor(parts)
    assert features.shape == (5, extractor.features_dim) == (5, 8 * 9 + 8 * 1 + 4 + 3)
    expected = [extractor.extractors["camera"](parts["camera"]), extractor.extractors["map"](parts["map"])]
    assert {type(module) for module in extractor.extractors.values()} == {PaperCNN, nn.Flatten}
    with pytest.raises(InvalidArgumentTypeError, match=r"`cnn_kwargs`.*'filters'.*did you mean 'n_filters'"):
        PaperCombinedExtractor(space, cnn_kwargs={"filters": 3})
    with pytest.raises(InvalidArgumentError, match=r"`cnn_output_dim` must be .*, got 0"):
        PaperCombinedExtractor(space, cnn_output_dim=0)
    # In the order of the space's keys
    assert th.equal(features, th.cat([expected[0], expected[1], parts["n"], parts["speed"]], dim=1))


@pytest.mark.parametrize("algorithm", [SAC, PPO, DQN])
def test_any_sb3_algorithm_takes_it(algorithm):
    env = ChaosEnv(images(24, 24, 3), spaces.Discrete(2) if algorithm is DQN else spaces.Box(-1, 1, (1,)))
    kwargs = {"policy_kwargs": {"features_extractor_class": PaperCNN, "net_arch": [16]}, "device": "cpu"}
    sizes = {"n_steps": 16, "batch_size": 8} if algorithm is PPO else {"buffer_size": 50, "learning_starts": 8}
    model = algorithm("CnnPolicy", env, seed=0, **kwargs, **sizes)
    (extractor, *_) = [module for module in model.policy.modules() if isinstance(module, PaperCNN)]
    before = [param.clone() for param in extractor.parameters()]
    model.learn(20)
    if algorithm is not DQN:  # which copies into another network now and then, and has not by now
        assert any((old != new).any() for old, new in zip(before, extractor.parameters(), strict=True))


def test_a_float_image_in_a_dict_is_named():
    """After ``VecNormalize``, for example."""
    space = spaces.Dict({"camera": images(3, 36, 36, low=-10, high=10, dtype=np.float32), "depth": images(1, 36, 36)})
    with pytest.warns(UserWarning, match="'camera' .* gets no convolutions") as warned:
        PaperCombinedExtractor(space)
    assert len(warned) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        PaperCombinedExtractor(space, cnn_kwargs={"normalized_image": True})


def test_the_channels_of_a_cube_come_first():
    """As in SB3."""
    space = spaces.Box(0, 255, (40, 40, 40), np.uint8)
    extractor = PaperCNN(space, n_filters=4)
    images = th.rand(2, 40, 40, 40, generator=th.Generator().manual_seed(0))
    with th.no_grad():
        assert th.allclose(extractor(images), extractor.cnn(images), atol=1e-6)
