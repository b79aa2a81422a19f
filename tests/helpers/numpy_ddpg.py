"""
One update of the paper's Algorithm 1 in NumPy, written from the mathematics: no torch, no automatic differentiation.

Every layer has a forward pass that remembers what its backward pass needs, and a backward pass that fills ``grads``
and returns the gradient with respect to its input.
"""

import numpy as np


class Linear:
    """y = x W^T + b"""

    def __init__(self, weight, bias):
        self.params = [weight, bias]

    def forward(self, x, fit=True):
        self.x = x
        return x @ self.params[0].T + self.params[1]

    def backward(self, grad):
        self.grads = [grad.T @ self.x, grad.sum(0)]
        return grad @ self.params[0]


class LinearWithAction:
    """y = h W_h^T + a W_a^T + b"""

    def __init__(self, weight_features, weight_action, bias):
        self.params = [weight_features, weight_action, bias]

    def forward(self, h, a):
        self.h, self.a = h, a
        return h @ self.params[0].T + a @ self.params[1].T + self.params[2]

    def backward(self, grad):
        self.grads = [grad.T @ self.h, grad.T @ self.a, grad.sum(0)]
        return grad @ self.params[0], grad @ self.params[1]


class BatchNorm:
    """Normalises with the minibatch's mean and (biased) variance, then scales and shifts."""

    def __init__(self, scale, shift, running_mean, running_var):
        self.params = [scale, shift]
        self.averages = [running_mean, running_var]

    def forward(self, x, fit=True):
        n = len(x)
        mean, var = x.mean(0), x.var(0)
        if fit:
            for average, new in zip(self.averages, (mean, var * n / (n - 1)), strict=True):
                average += 0.1 * (new - average)
        self.deviation = np.sqrt(var + 1e-5)
        self.normalised = (x - mean) / self.deviation
        return self.normalised * self.params[0] + self.params[1]

    def backward(self, grad):
        self.grads = [(grad * self.normalised).sum(0), grad.sum(0)]
        grad = grad * self.params[0]
        return (grad - grad.mean(0) - self.normalised * (grad * self.normalised).mean(0)) / self.deviation


class ReLU:
    params = ()

    def forward(self, x, fit=True):
        self.positive = x > 0
        return x * self.positive

    def backward(self, grad):
        return grad * self.positive


class Tanh:
    params = ()

    def forward(self, x, fit=True):
        self.y = np.tanh(x)
        return self.y

    def backward(self, grad):
        return grad * (1 - self.y**2)


class Network:
    """
    Shared by actor and critic.

    :param tensors: parameters and running averages in the order of the layers, consumed
    """

    def __init__(self, tensors):
        self.tensors = iter(tensors)
        self.layers = []
        self._build()
        assert next(self.tensors, None) is None, "there are more tensors than layers"

    def _add(self, *kinds):
        n_tensors = {Linear: 2, LinearWithAction: 3, BatchNorm: 4, ReLU: 0, Tanh: 0}
        added = [kind(*(next(self.tensors) for _ in range(n_tensors[kind]))) for kind in kinds]
        self.layers += added
        return added

    def parameters(self):
        return [param for layer in self.layers for param in layer.params]

    def gradients(self):
        return [grad for layer in self.layers if layer.params for grad in layer.grads]

    def everything(self):
        """Parameters and running averages, layer by layer."""
        return [array for layer in self.layers for array in (*layer.params, *getattr(layer, "averages", ()))]


class Actor(Network):
    """([norm], linear, ReLU) per hidden layer, [norm], linear, tanh."""

    def __init__(self, tensors, n_hidden, batch_norm):
        self.n_hidden = n_hidden
        self.norm = [BatchNorm] if batch_norm else []
        super().__init__(tensors)

    def _build(self):
        for _ in range(self.n_hidden):
            self._add(*self.norm, Linear, ReLU)
        self._add(*self.norm, Linear, Tanh)

    def forward(self, s, fit=True):
        for layer in self.layers:
            s = layer.forward(s, fit)
        return s

    def backward(self, grad):
        for layer in reversed(self.layers):
            grad = layer.backward(grad)


class Critic(Network):
    """([norm], linear, ReLU) before the action, [norm], linear with the action; ReLU, (linear, ReLU) after; linear."""

    def __init__(self, tensors, n_hidden, batch_norm, action_layer):
        self.n_hidden = n_hidden
        self.action_layer = action_layer
        self.norm = [BatchNorm] if batch_norm else []
        super().__init__(tensors)

    def _build(self):
        self.below = []
        for _ in range(self.action_layer - 1):
            self.below += self._add(*self.norm, Linear, ReLU)
        self.below += self._add(*self.norm)
        (self.with_action,) = self._add(LinearWithAction)
        self.above = []
        for _ in range(self.n_hidden - self.action_layer):
            self.above += self._add(ReLU, Linear)
        if self.n_hidden > 0:
            self.above += self._add(ReLU, Linear)

    def forward(self, s, a, other_s, fit=True):
        """Q(s, a); the statistics are those of s and other_s (any number of rows, also none)."""
        h = np.concatenate([s, other_s])
        for layer in self.below:
            h = layer.forward(h, fit)
        q = self.with_action.forward(h[: len(s)], a)
        for layer in self.above:
            q = layer.forward(q)
        self.n_other = len(other_s)
        return q

    def backward(self, grad):
        """Return the gradient with respect to the action."""
        for layer in reversed(self.above):
            grad = layer.backward(grad)
        grad, action_grad = self.with_action.backward(grad)
        # Q depends on the other rows through the statistics alone
        grad = np.concatenate([grad, np.zeros((self.n_other, grad.shape[1]))])
        for layer in reversed(self.below):
            grad = layer.backward(grad)
        return action_grad


class Adam:
    """Adam (Kingma and Ba) whose L2 term joins the gradient before the moments."""

    def __init__(self, network, lr, weight_decay=0.0, eps=1e-8):
        self.network, self.lr, self.weight_decay, self.eps = network, lr, weight_decay, eps
        self.t = 0
        self.m = [np.zeros_like(param) for param in network.parameters()]
        self.v = [np.zeros_like(param) for param in network.parameters()]

    def step(self):
        self.t += 1
        for param, grad, m, v in zip(self.network.parameters(), self.network.gradients(), self.m, self.v, strict=True):
            grad = grad + self.weight_decay * param
            m += 0.1 * (grad - m)
            v += 0.001 * (grad**2 - v)
            m_hat, v_hat = m / (1 - 0.9**self.t), v / (1 - 0.999**self.t)
            param -= self.lr * m_hat / (np.sqrt(v_hat) + self.eps)


class NumpyDDPG:
    """
    The four networks and two optimisers, and one update of all of them.

    :param make_actor: gives an actor with the initial weights; so does ``make_critic`` for the critic
    :param joint: whether the critics normalise with the statistics of s and s' together
    """

    def __init__(self, make_actor, make_critic, actor_lr, critic_lr, weight_decay, gamma, tau, joint, eps=1e-8):
        self.actor, self.actor_target = make_actor(), make_actor()
        self.critic, self.critic_target = make_critic(), make_critic()
        self.actor_adam = Adam(self.actor, actor_lr, eps=eps)
        self.critic_adam = Adam(self.critic, critic_lr, weight_decay, eps)
        self.gamma, self.tau, self.joint = gamma, tau, joint

    def update(self, s, a, r, next_s, done, discount=None, weights=1.0):
        """Arrays of shape (n, ...), those of one number per transition (n, 1). Returns metrics and TD errors."""
        n = len(s)
        discount = self.gamma if discount is None else discount
        n_other = n if self.joint else 0
        # y = r + gamma Q'(s', mu'(s')), the targets normalising with the minibatch's statistics, without fitting theirs
        next_a = self.actor_target.forward(next_s, fit=False)
        y = r + (1 - done) * discount * self.critic_target.forward(next_s, next_a, s[:n_other], fit=False)

        q = self.critic.forward(s, a, next_s[:n_other])
        critic_loss = np.mean(weights * (y - q) ** 2)
        self.critic.backward(-2 / n * weights * (y - q))
        self.critic_adam.step()

        mu = self.actor.forward(s)
        actor_loss = -self.critic.forward(s, mu, next_s[:n_other], fit=False).mean()
        self.actor.backward(self.critic.backward(np.full((n, 1), -1 / n)))
        self.actor_adam.step()

        for target, online in ((self.actor_target, self.actor), (self.critic_target, self.critic)):
            for theta_target, theta in zip(target.everything(), online.everything(), strict=True):
                theta_target *= 1 - self.tau
                theta_target += self.tau * theta
        metrics = {
            "critic_loss": critic_loss,
            "actor_loss": actor_loss,
            "q_mean": q.mean(),
            "target_q_mean": y.mean(),
            "action_saturation": np.mean(np.abs(mu) > 0.99),
        }
        return metrics, y - q
