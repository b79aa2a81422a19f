"""What users override in subclasses is called in training as SB3 calls it."""

import numpy as np
import pytest

from ddpg_ext import DDPGPaper
from ddpg_ext.ddpg_paper import MlpPolicy

SMALL = {"net_arch": [8, 8]}


class ConstantModel(DDPGPaper):
    """A model whose prediction is not its policy's."""

    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        return np.full((len(observation), *self.action_space.shape), 0.5, dtype=np.float32), state


class ConstantPolicy(MlpPolicy):
    """A policy with a `predict` of its own."""

    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        return np.full((len(observation), *self.action_space.shape), 0.5, dtype=np.float32), state


class Recorder(DDPGPaper):
    """Keeps what goes through the one place that stores."""

    def _store_transition(self, replay_buffer, buffer_action, new_obs, reward, dones, infos):
        self.__dict__.setdefault("stored", []).append(
            (np.array(self._last_obs), np.array(buffer_action), float(reward[0]))
        )
        super()._store_transition(replay_buffer, buffer_action, new_obs, reward, dones, infos)


@pytest.mark.parametrize(("model_class", "policy"), [(ConstantModel, "MlpPolicy"), (DDPGPaper, ConstantPolicy)])
def test_overridden_predict_acts(model_class, policy):
    model = model_class(policy, "Pendulum-v1", action_noise=None, learning_starts=1000, policy_kwargs=SMALL)
    model.learn(20)
    batch = model.replay_buffer.sample(50)
    # Pendulum's torque goes from -2 to 2, and the buffer holds actions scaled to [-1, 1]
    assert np.allclose(batch.actions.numpy(), 0.25)


def test_store_transition_sees_every_transition():
    model = Recorder("MlpPolicy", "Pendulum-v1", seed=0, learning_starts=1000, policy_kwargs=SMALL)
    model.learn(30)
    assert len(model.stored) == 30
    rewards = {reward for _, _, reward in model.stored}
    assert set(model.replay_buffer.sample(200).rewards.flatten().tolist()) <= {float(np.float32(r)) for r in rewards}
