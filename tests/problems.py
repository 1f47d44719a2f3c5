"""What the optimizers are tested on: the paper's eight memories, two rules, known gradients, one batch."""

from collections.abc import Callable

import numpy as np

from rllc.memory import MemoryRule
from rllc.notation import parse
from rllc.propagator import Propagator

# The RLLC optimizers of the paper's Table 1.
EIGHT = (
    "M(0.9)",
    "M(0.9) + M(0.0)",
    "M(0.9) + M(0.8) + M(0.7)",
    "M_2(0.6)",
    "M(0.9) + M_2(0.6)",
    "M(0.9) + M(0.0) + M_2(0.6)",
    "M_3(0.6)",
    "M(0.9) + M(-0.9) + CM(0.9i)",
)

# Not block diagonal, not triangular: every unit feeds every other.
DENSE = parse("M(0.9) + CM(0.3+0.4i)").change_basis([[1.0, 0.3, 0.1], [0.2, 1.0, -0.2], [-0.1, 0.3, 1.0]])

Problem = tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]


class SignMomentum(MemoryRule):
    """The example of the documentation: Lion's and signSGD's direction, with the metric it is steepest in."""

    def init(self, xp, param):
        return (xp.zeros_like(param),)

    def update(self, xp, g, units, hidden, param):
        m = 0.9 * hidden[0] + 0.1 * g
        return (xp.sign(m),), (m,)

    def metric(self, xp, unit, hidden):
        return xp.abs(hidden[0]) * unit


class Clipped(MemoryRule):
    """A direction that says nothing of its metric."""

    def update(self, xp, g, units, hidden, param):
        return (xp.where(g > 1, xp.ones_like(g), g),), ()


def quadratic(n: int = 24, seed: int = 0) -> Problem:
    """θ_0 and the gradient A θ, A positive definite of condition number about 100."""
    rng = np.random.default_rng(seed)
    Q, _ = np.linalg.qr(rng.normal(size=(n, n)))
    A = Q * np.geomspace(0.01, 1, n) @ Q.T
    return rng.normal(size=n), lambda theta: A @ theta


def noisy_quadratic(n: int = 12, steps: int = 200, seed: int = 3) -> tuple[np.ndarray, ...]:
    """Curvatures (n,), the noise of every step (steps, n) and θ_0."""
    rng = np.random.default_rng(seed)
    noise = 0.3 * rng.normal(size=(steps, n))
    return np.linspace(0.1, 2.0, n), noise, rng.normal(size=n)


def noisy(curvatures: np.ndarray, noise: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Its gradient, of one step after the other."""
    rows = iter(noise)
    return lambda theta: curvatures * theta + next(rows)


def tanh_net(seed: int = 0) -> Problem:
    """θ_0 and the gradient of a small tanh network's squared error: 5 inputs, 4 hidden, 24 parameters."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(40, 5))
    y = np.sin(X[:, 0]) + X[:, 1] * X[:, 2]

    def gradient(theta: np.ndarray) -> np.ndarray:
        V, w = theta[:20].reshape(5, 4), theta[20:]
        H = np.tanh(X @ V)
        e = (H @ w - y) / len(y)
        return np.concatenate([(X.T @ (np.outer(e, w) * (1 - H**2))).ravel(), H.T @ e])

    return rng.normal(size=24), gradient


def run(problem: Problem, step: Callable[[np.ndarray], np.ndarray], steps: int) -> np.ndarray:
    """θ after `steps` calls of step: θ -> θ."""
    theta, _ = problem
    for _ in range(steps):
        theta = step(theta)
    return theta


def relative_error(got: np.ndarray, want: np.ndarray) -> float:
    """max |got - want| / max |want|."""
    return float(np.max(np.abs(np.asarray(got) - want)) / np.max(np.abs(want)))


def random_propagator(seed: int, k: int) -> Propagator:
    """A propagator with no structure, spectral radius 0.9."""
    rng = np.random.default_rng(seed)
    B = rng.normal(size=(k, k))
    return Propagator(0.9 * B / np.max(np.abs(np.linalg.eigvals(B))), rng.normal(size=k))


def flat(tree):
    """The leaves of a tree of JAX in one row."""
    from jax.flatten_util import ravel_pytree  # the other problems are NumPy's

    return ravel_pytree(tree)[0]


def learned_by_heart(build, steps):
    """The losses of a small network of torch on one batch, again and again, and the optimizer of `build`."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    x, y = torch.randn(32, 8), torch.randint(4, (32,))
    net = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 4))
    opt, losses = build(net.parameters()), []
    for _ in range(steps):
        opt.zero_grad()
        loss = nn.functional.cross_entropy(net(x), y)
        loss.backward()
        opt.step()
        losses.append(loss.item())
    return losses, opt
