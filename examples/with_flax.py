"""rllc.optax in a Flax training loop: any optax transformation goes there.

python examples/with_flax.py
"""

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from rllc.optax import rllc


class Net(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.hidden = nnx.Linear(8, 16, rngs=rngs)
        self.out = nnx.Linear(16, 1, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.out(nnx.tanh(self.hidden(x)))


@nnx.jit
def step(net: Net, opt: nnx.Optimizer, x: jax.Array, y: jax.Array) -> jax.Array:
    loss, gradient = nnx.value_and_grad(lambda net: jnp.mean((net(x) - y) ** 2))(net)
    opt.update(net, gradient)
    return loss


def main() -> None:
    x = jax.random.normal(jax.random.key(0), (256, 8))
    y = jnp.sin(x.sum(1, keepdims=True))
    net = Net(nnx.Rngs(0))
    tx = optax.chain(optax.clip_by_global_norm(1.0), rllc("M(0.9) + M(0)", 0.03, 0.01))
    opt = nnx.Optimizer(net, tx, wrt=nnx.Param)
    losses = [float(step(net, opt, x, y)) for _ in range(40)]
    law = optax.tree.get(nnx.to_pure_dict(nnx.state(opt)), "law")
    print(f"loss {losses[0]:.4f} -> {losses[-1]:.4f}, law {law.tolist()}")


if __name__ == "__main__":
    main()
