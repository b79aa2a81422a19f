"""Policies that each change one part of batch normalisation; batch_norm_tries_*.yml compare them."""

from typing import Any

import torch as th

from ddpg_ext.buffers import PackedReplayBuffer
from ddpg_ext.common.layers import BatchNorm
from ddpg_ext.ddpg_paper.networks import Actor, Critic
from ddpg_ext.ddpg_paper.policies import DDPGPaperPolicy


class Momentum(DDPGPaperPolicy):
    """Compute running averages over about 100 minibatches instead of 10."""

    def make_actor(self, *args: Any) -> Actor:
        return _with(super().make_actor(*args), momentum=0.01)

    def make_critic(self, *args: Any) -> Critic:
        return _with(super().make_critic(*args), momentum=0.01)


class NearConstant(DDPGPaperPolicy):
    """Keep inputs small whose standard deviation is far below 0.1, by an eps of 0.01 instead of 1e-5."""

    def make_actor(self, *args: Any) -> Actor:
        return _with(super().make_actor(*args), eps=0.01)

    def make_critic(self, *args: Any) -> Critic:
        return _with(super().make_critic(*args), eps=0.01)


def _with(network: Any, **attributes: float) -> Any:
    for module in network.modules():
        if isinstance(module, BatchNorm):
            vars(module).update(attributes)
    return network


class Renorm(DDPGPaperPolicy):
    """
    Apply batch renormalisation after 5,000 gradient steps, with the limits and momentum of sb3-contrib's BatchRenorm1d.

    Its own default of 100,000 steps is more than these runs have.
    """

    def _build(self, *args: Any) -> None:
        super()._build(*args)
        for module in self.modules():
            if isinstance(module, BatchNorm):
                module.__class__ = _BatchRenorm
        for module in self.critic.modules():
            if isinstance(module, _BatchRenorm):
                module.passes_per_step = 2


class _BatchRenorm(BatchNorm):
    n_passes: Any = 0
    passes_per_step: Any = 1
    running_mean: Any
    running_var: Any

    def forward(self, input: th.Tensor) -> th.Tensor:
        if not self.training:
            return super().forward(input)
        mean, var = input.mean(0), input.var(0, unbiased=False)
        std = (var + self.eps).sqrt()
        out = (input - mean) / std
        if self.n_passes >= 5_000 * self.passes_per_step:
            running_std = (self.running_var + self.eps).sqrt()
            scale = (std.detach() / running_std).clamp(1 / 3, 3)
            out = out * scale + ((mean.detach() - self.running_mean) / running_std).clamp(-5, 5)
        self.n_passes += 1
        if self.update_running:
            self.running_mean.lerp_(mean.detach(), 0.01)
            self.running_var.lerp_(input.detach().var(0), 0.01)
        return out * self.weight + self.bias


class WeightsAlone(DDPGPaperPolicy):
    """Apply weight decay to the weights of linear layers only, not to biases and batch norm's scale and shift."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs |= {"optimizer_class": _DecayOfMatrices, "optimizer_kwargs": {"fused": True}}
        super().__init__(*args, **kwargs)


class _DecayOfMatrices(th.optim.Adam):
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        decays = [group["weight_decay"] for group in self.param_groups]
        for group, decay in zip(self.param_groups, decays, strict=True):
            group["weight_decay"] = 0.0
            for param in group["params"]:
                if param.ndim > 1 and decay and not hasattr(param, "no_decay"):
                    param.grad.add_(param.detach(), alpha=decay)
        super().step()
        for group, decay in zip(self.param_groups, decays, strict=True):
            group["weight_decay"] = decay


class DecayBehind(WeightsAlone):
    """Apply weight decay only behind the critic's last batch norm, because it makes earlier weights scale-invariant."""

    def make_critic(self, *args: Any) -> Critic:
        critic = super().make_critic(*args)
        for param in critic.state_net.parameters():
            param.no_decay = True  # type: ignore[attr-defined]
        return critic


class JointActor(DDPGPaperPolicy):
    """Normalise with the statistics of s and s' together in the actors, too; needs the ``PairBuffer``."""

    def make_actor(self, *args: Any) -> Actor:
        actor = super().make_actor(*args)
        actor.__class__ = _JointActor
        return actor


class _JointActor(Actor):
    def forward(self, obs: Any) -> th.Tensor:
        if not self.training and not any(m.training for m in self.mu):
            return super().forward(obs)
        pair = PairBuffer.last
        other = pair.next_observations if obs is pair.observations else pair.observations
        return super().forward(th.cat([obs, other]))[: len(obs)]


class PairBuffer(PackedReplayBuffer):
    """Keep the last minibatch for ``JointActor``."""

    last: Any = None

    def sample(self, *args: Any, **kwargs: Any) -> Any:
        PairBuffer.last = super().sample(*args, **kwargs)
        return PairBuffer.last
