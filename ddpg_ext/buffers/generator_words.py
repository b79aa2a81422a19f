"""A random generator in a few words of memory, so that draws go on where they were even after a crash."""

import numpy as np

_64_BITS = 2**64 - 1
#: how many words it takes
N_WORDS = 8


def save_generator(words: np.ndarray, rng: np.random.Generator, seed: int | None) -> None:
    """
    :param words: where to, shape ``(N_WORDS,)`` or longer, uint64
    :param rng: a generator of the default kind, PCG64
    :param seed: what it was made from
    """
    state = rng.bit_generator.state
    number, increment = state["state"]["state"], state["state"]["inc"]
    words[0] = 1
    words[1] = 0 if seed is None else seed + 1
    words[2:N_WORDS] = (
        number >> 64,
        number & _64_BITS,
        increment >> 64,
        increment & _64_BITS,
        state["has_uint32"],
        state["uinteger"],
    )


def holds_generator(words: np.ndarray) -> bool:
    """
    :param words: zeros, or what :func:`save_generator` wrote to
    :return: whether it wrote there
    """
    return bool(words[0])


def load_generator(words: np.ndarray, rng: np.random.Generator) -> int | None:
    """
    :param words: what :func:`save_generator` wrote
    :param rng: a generator of the default kind, which is set to that state
    :return: the seed
    :raises ValueError: if the words are no generator's
    """
    values = [int(word) for word in words[:N_WORDS]]
    if not (values[0] == 1 and values[5] % 2 and values[6] in (0, 1) and values[7] < 2**32):
        raise ValueError
    rng.bit_generator.state = {
        "bit_generator": "PCG64",
        "state": {"state": values[2] << 64 | values[3], "inc": values[4] << 64 | values[5]},
        "has_uint32": values[6],
        "uinteger": values[7],
    }
    return values[1] - 1 if values[1] else None
