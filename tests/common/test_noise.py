"""The noise processes by themselves: closed forms, random streams, schedules, bad arguments."""

import copy
import pickle

import numpy as np
import pytest
from stable_baselines3.common.noise import ActionNoise, NormalActionNoise, VectorizedActionNoise
from stable_baselines3.common.noise import OrnsteinUhlenbeckActionNoise as SB3OrnsteinUhlenbeck

from ddpg_ext import (
    DDPGPaperError,
    InvalidArgumentError,
    InvalidArgumentTypeError,
    LinearDecay,
    OrnsteinUhlenbeckNoise,
    ScheduledActionNoise,
)
from ddpg_ext.common.noise import noise_scale, vectorize

#: (theta, sigma, dt): the paper's, the usual implementations', and others; the last has negative autocorrelation
PROCESSES = [(0.15, 0.2, 1.0), (0.15, 0.2, 1e-2), (0.5, 1.0, 0.5), (1.0, 0.3, 1.0), (1.5, 0.2, 1.0)]


def draws(noise, n):
    return np.stack([noise() for _ in range(n)])


@pytest.mark.parametrize(("theta", "sigma", "dt"), PROCESSES)
def test_exact_recursion(theta, sigma, dt):
    r"""With a = 1 - theta dt: :math:`x_t = a^t x_0 + (1 - a^t) \mu + \sigma \sqrt{dt} \sum_i a^{t-1-i} g_i`"""
    mean, start = np.array([0.5, -1.0, 0.0]), np.array([2.0, 0.0, -0.3])
    noise = OrnsteinUhlenbeckNoise(mean, sigma, theta, dt, initial_noise=start, seed=5, dtype=np.float64)
    gaussian = np.random.default_rng(5).standard_normal((100, 3))
    a, t = 1 - theta * dt, np.arange(1, 101)[:, None]
    weights = np.array([[a ** (i - j) if i >= j else 0.0 for j in range(100)] for i in range(100)])
    expected = a**t * start + (1 - a**t) * mean + sigma * np.sqrt(dt) * weights @ gaussian
    np.testing.assert_allclose(draws(noise, 100), expected, rtol=1e-10, atol=1e-12)


def test_stationary_deviation_along_time():
    """The paper's process over one long run; an effective sample is some 1 / theta steps."""
    noise = OrnsteinUhlenbeckNoise(np.zeros(1), seed=3)
    x = draws(noise, 40_000)[100:, 0]
    assert x.std() == pytest.approx(0.2 / np.sqrt(0.3 - 0.0225), rel=0.03)
    assert np.corrcoef(x[:-1], x[1:])[0, 1] == pytest.approx(0.85, abs=0.01)


def test_equals_sb3s_process_given_the_same_gaussians():
    ours = OrnsteinUhlenbeckNoise(np.ones(2), 0.3, 0.2, 0.01, initial_noise=[1, 2], seed=0)
    theirs = SB3OrnsteinUhlenbeck(np.ones(2), np.full(2, 0.3), 0.2, 0.01, initial_noise=np.array([1.0, 2.0]))
    ours._rng = np.random.RandomState(4)
    expected = draws(ours, 50)
    np.random.seed(4)
    np.testing.assert_allclose(expected, draws(theirs, 50), rtol=1e-6)


def test_reset_goes_back_to_the_initial_noise_and_the_stream_goes_on():
    for initial, start in ((None, [0.0, 0.0]), ([1.0, 2.0], [1.0, 2.0]), (3.0, [3.0, 3.0])):
        noise = OrnsteinUhlenbeckNoise(np.zeros(2), sigma=0.1, initial_noise=initial, seed=0)
        first = draws(noise, 5)
        noise.reset()
        np.testing.assert_array_equal(noise.noise_prev, start)
        assert not np.isclose(draws(noise, 5), first).any()
        np.testing.assert_array_equal(noise.noise_prev == start, False)


def test_output_is_not_the_state():
    """What a caller does with a draw, or with the arrays it passed, does not change the process."""
    mean, sigma, initial = np.zeros(2), np.ones(2), np.zeros(2)
    noise = OrnsteinUhlenbeckNoise(mean, sigma, initial_noise=initial, seed=0, dtype=np.float64)
    other = copy.deepcopy(noise)
    for array in (mean, sigma, initial, noise(), noise.noise_prev.astype(noise.dtype)):
        array += 100
    noise.reset()
    other()
    other.reset()
    np.testing.assert_array_equal(draws(noise, 5), draws(other, 5))


def test_type_of_the_output():
    assert OrnsteinUhlenbeckNoise(np.zeros(2))().dtype == np.float32
    assert OrnsteinUhlenbeckNoise(np.zeros(2), dtype=np.float64)().dtype == np.float64
    assert ScheduledActionNoise(OrnsteinUhlenbeckNoise(np.zeros(2)), LinearDecay(10))().dtype == np.float32


class TestStreams:
    def test_without_seed_fresh_entropy(self):
        a, b = (draws(OrnsteinUhlenbeckNoise(np.zeros(3)), 20) for _ in range(2))
        assert not np.isclose(a, b).all()

    def test_global_generator_is_left_alone(self):
        np.random.seed(0)
        before = np.random.get_state()[1].copy()
        draws(OrnsteinUhlenbeckNoise(np.zeros(3), seed=1), 20)
        np.testing.assert_array_equal(np.random.get_state()[1], before)

    @pytest.mark.parametrize("wrap", [False, True], ids=["plain", "scheduled"])
    @pytest.mark.parametrize("clone", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["copy", "pickle"])
    def test_a_copy_continues_the_stream(self, clone, wrap):
        noise = OrnsteinUhlenbeckNoise(np.zeros(2), seed=1)
        if wrap:
            noise = ScheduledActionNoise(noise, LinearDecay(40))
        draws(noise, 13)
        again = clone(noise)
        expected = draws(noise, 20)
        np.testing.assert_array_equal(draws(again, 20), expected)

    def test_set_random_seed_starts_the_stream_anew(self):
        noise = OrnsteinUhlenbeckNoise(np.zeros(2), seed=1)
        expected = draws(noise, 20)
        for _ in range(2):
            noise.set_random_seed(1)
            noise.reset()
            np.testing.assert_array_equal(draws(noise, 20), expected)
        assert noise.seed == 1

    def test_spawned_streams_are_independent_and_reproducible(self):
        def spawn():
            parent = OrnsteinUhlenbeckNoise(np.full(2, 0.3), 0.4, 1.0, 1.0, [0.1, 0.2], seed=7)
            return [parent, *parent.spawn(3), *parent.spawn(2)]

        family, again = spawn(), spawn()
        streams = [draws(noise, 4000)[:, 0] for noise in family]
        # theta dt = 1: white noise, so that chance correlations are within a few 1 / sqrt(n)
        assert np.abs(np.corrcoef(streams) - np.eye(6)).max() < 5 / np.sqrt(4000)
        for noise, stream in zip(again, streams, strict=True):
            np.testing.assert_array_equal(draws(noise, 4000)[:, 0], stream)
            np.testing.assert_array_equal(noise.mean, [0.3, 0.3])
            np.testing.assert_array_equal(noise.initial_noise, [0.1, 0.2])
            assert (noise.theta, noise.dt, *noise.sigma) == (1.0, 1.0, 0.4, 0.4)

    def test_reset_of_one_environment_leaves_the_others(self):
        noise = vectorize(OrnsteinUhlenbeckNoise(np.zeros(2), seed=1), 3)
        noise()
        before = [n.noise_prev for n in noise.noises]
        noise.reset(indices=[1])
        assert (noise.noises[1].noise_prev == 0).all()
        for i in (0, 2):
            np.testing.assert_array_equal(noise.noises[i].noise_prev, before[i])


class TestSchedule:
    def test_linear_decay(self):
        """The tutorial's epsilon: 1 - 1e-5 per step, never below 0."""
        decay = LinearDecay(100_000)
        for step in (0, 1, 37, 50_000, 99_999):
            assert decay(step) == pytest.approx(1 - 1e-5 * step)
        assert decay(100_000) == decay(10**9) == 0.0
        other = LinearDecay(10, start=0.5, end=2.0)
        assert [other(step) for step in (0, 5, 10, 11)] == pytest.approx([0.5, 1.25, 2.0, 2.0])

    @pytest.mark.parametrize("kind", ["ours", "sb3 normal", "sb3 OU"])
    def test_wraps_any_noise(self, kind):
        def make():
            np.random.seed(3)
            return {
                "ours": OrnsteinUhlenbeckNoise(np.zeros(2), seed=3),
                "sb3 normal": NormalActionNoise(np.zeros(2), np.ones(2)),
                "sb3 OU": SB3OrnsteinUhlenbeck(np.zeros(2), np.ones(2)),
            }[kind]

        plain = draws(make(), 15)
        scheduled = ScheduledActionNoise(make(), LinearDecay(10))
        scales = np.clip(1 - np.arange(15) / 10, 0, None)
        np.testing.assert_allclose(draws(scheduled, 15), plain * scales[:, None], rtol=1e-6)
        assert scheduled.scale == 0

    def test_a_noise_of_whole_numbers_is_scaled(self):
        class Coin(ActionNoise):
            def __call__(self):
                return np.array([1, -3])

        np.testing.assert_array_equal(ScheduledActionNoise(Coin(), LinearDecay(1, start=0.5))(), [0.5, -1.5])

    def test_a_table_that_ends_is_named(self):
        noise = ScheduledActionNoise(OrnsteinUhlenbeckNoise(np.zeros(1)), [1.0, 0.5].__getitem__)
        draws(noise, 2)
        with pytest.raises(InvalidArgumentError, match="`schedule` must give numbers, but failed at step 2"):
            noise()

    def test_reset_does_not_turn_the_schedule_back(self):
        noise = ScheduledActionNoise(OrnsteinUhlenbeckNoise(np.zeros(1), initial_noise=[1.0], seed=0), LinearDecay(10))
        draws(noise, 4)
        noise.reset()
        assert noise.scale == pytest.approx(0.6)
        assert noise.noise.noise_prev == 1.0

    def test_vectorised(self):
        noise = vectorize(ScheduledActionNoise(OrnsteinUhlenbeckNoise(np.zeros(1), seed=1), LinearDecay(10)), 3)
        assert noise_scale(noise) == 1.0
        x = draws(noise, 5)
        assert len(np.unique(x[1])) == 3
        assert noise_scale(noise) == pytest.approx(0.5)
        assert [n.n_steps for n in noise.noises] == [5, 5, 5]
        draws(noise, 5)
        assert (noise() == 0).all()

    @pytest.mark.parametrize(("n_before", "n_after"), [(1, 3), (3, 1), (3, 2)])
    def test_another_number_of_environments_goes_on_with_the_schedule(self, n_before, n_after):
        noise = vectorize(
            ScheduledActionNoise(OrnsteinUhlenbeckNoise(np.zeros(1), theta=1.0, seed=1), LinearDecay(8000)), n_before
        )
        seen = draws(noise, 2000).reshape(2000, -1)
        noise = vectorize(noise, n_after)
        assert noise_scale(noise) == pytest.approx(0.75)
        x = draws(noise, 2000).reshape(2000, -1)
        assert x.shape[1] == n_after
        # Independent of each other, and no stream is played twice
        correlation = np.corrcoef(np.hstack([seen, x]).T)
        assert np.abs(correlation - np.eye(len(correlation))).max() < 5 / np.sqrt(2000)


class TestBadArguments:
    @pytest.mark.parametrize(
        ("kwargs", "parts"),
        [
            ({"mean": [np.nan]}, ["`mean`", "nan", "finite"]),
            ({"sigma": -0.1}, ["`sigma`", "-0.1", "at least 0"]),
            ({"sigma": [0.1, 0.2, 0.3]}, ["`sigma`", "0.3", "shape", "(1,)"]),
            ({"initial_noise": [1, 2]}, ["`initial_noise`", "[1, 2]", "shape", "(1,)"]),
            ({"initial_noise": np.inf}, ["`initial_noise`", "inf", "finite"]),
            *(({"dt": dt}, ["`dt`", str(dt), "above 0"]) for dt in (0, np.nan, np.inf)),
            *(({"theta": theta}, ["`theta * dt`", f"{theta} * 1.0", "(0, 2)"]) for theta in (0, -0.15, np.nan)),
            ({"theta": 0.15, "dt": 20.0}, ["`theta * dt`", "0.15 * 20.0", "(0, 2)"]),
        ],
    )
    def test_values(self, kwargs, parts):
        with pytest.raises(InvalidArgumentError) as caught:
            OrnsteinUhlenbeckNoise(**{"mean": [0.0], **kwargs})
        assert isinstance(caught.value, DDPGPaperError)
        assert [part for part in parts if part not in str(caught.value)] == []

    @pytest.mark.parametrize(
        ("name", "values", "accepted"),
        [
            ("mean", [["0", "1"], [[0.0], [0.0, 1.0]]], "a number or an array"),
            ("sigma", [None, True], "a number or an array"),
            ("initial_noise", ["x"], "a number or an array"),
            ("theta", [None], "a number"),
            ("dt", ["1"], "above 0"),
            ("seed", [1.5], "a whole number >= 0, or None"),
            ("dtype", ["number", int], "np.float32"),
        ],
    )
    def test_types(self, name, values, accepted):
        for value in values:
            with pytest.raises(InvalidArgumentTypeError) as caught:
                OrnsteinUhlenbeckNoise(**{"mean": [0.0], name: value})
            assert isinstance(caught.value, DDPGPaperError | TypeError)
            assert [part for part in (f"`{name}`", repr(value), accepted) if part not in str(caught.value)] == []

    def test_negative_seed(self):
        noise = OrnsteinUhlenbeckNoise([0.0], seed=0)
        for seed in (lambda: OrnsteinUhlenbeckNoise([0.0], seed=-1), lambda: noise.set_random_seed(-1)):
            with pytest.raises(InvalidArgumentError, match="`seed` must be a whole number >= 0, or None, got -1"):
                seed()
        assert noise.seed == 0

    @pytest.mark.parametrize("name", ["n_steps", "start", "end"])
    def test_decay_by_what_is_no_finite_number(self, name):
        errors = {np.nan: InvalidArgumentError, np.inf: InvalidArgumentError, -np.inf: InvalidArgumentError}
        errors |= dict.fromkeys(("5", None, True), InvalidArgumentTypeError)
        for value, error in (errors | {-5: InvalidArgumentError} if name == "n_steps" else errors).items():
            with pytest.raises(error, match=f"`{name}` must be a finite number.*, got {value!r}"):
                LinearDecay(**{"n_steps": 10, name: value})

    def test_what_is_no_noise_or_no_schedule(self):
        noise = OrnsteinUhlenbeckNoise(np.zeros(1))
        for wrong in ("ornstein-uhlenbeck", None, 0.1, VectorizedActionNoise(noise, 2)):
            with pytest.raises(InvalidArgumentTypeError, match="`noise` must be the ActionNoise of one env"):
                ScheduledActionNoise(wrong, LinearDecay(10))
        with pytest.raises(InvalidArgumentTypeError, match=r"`schedule` must be a function .* LinearDecay.* got 0.5"):
            ScheduledActionNoise(noise, 0.5)
        assert issubclass(InvalidArgumentTypeError, TypeError)

    @pytest.mark.parametrize("bad", [-0.1, np.nan, np.inf, "x", None, [1.0, 2.0]])
    def test_schedule_with_a_bad_value(self, bad):
        noise = ScheduledActionNoise(OrnsteinUhlenbeckNoise(np.zeros(1)), lambda step: bad if step == 3 else 1.0)
        draws(noise, 3)
        words = f"gave {bad} at step 3" if isinstance(bad, float) else "must give numbers, but failed at step 3: "
        with pytest.raises(InvalidArgumentError, match=f"`schedule` {words}"):
            noise()
