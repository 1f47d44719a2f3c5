"""The two transformations, `rllc` and `scale_by_rllc`."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rllc import law as _law
from rllc.law import LawStep, RelaxedInverse
from rllc.notation import as_propagator
from rllc.optax import general, linear
from rllc.optax.leaves import widened
from rllc.optax.scopes import Scope, check_scope
from rllc.optax.settings import Rate, Settings, check_rate
from rllc.optax.units import Memory, as_members
from rllc.propagator import Propagator

__all__ = ["rllc", "scale_by_rllc"]

ADDITIVE = LawStep()


def rllc(
    memory: Memory,
    learning_rate: Rate,
    law_learning_rate: Rate,
    law: Any = None,
    eps: float | jax.Array | None = None,
    inverse: RelaxedInverse | None = None,
    weight_decay: float | jax.Array = 0.0,
    guard: bool | None = None,
    axis_name: str | tuple[str, ...] = (),
    law_step: LawStep = ADDITIVE,
    scope: Scope = "all",
    mask: Any = None,
) -> optax.GradientTransformation:
    """RLLC: θ <- θ - c1 (M L + w θ), and L learned (arXiv 2402.15262, Algorithm 1).

    With law_learning_rate = 0 it is the fixed optimizer of that memory and law, for example
    "M(0.9)" heavy ball and "M(0.9) + M(0)" with law (0.9, 1) Nesterov's.

    Args:
        memory: for linear memory notation such as "M(0.9) + M_2(0.6)", or a Propagator (B, a). For any other
            a rule of `rllc.memory`, `unit(tx)` of an optax transformation, or a `union`. k units.
        learning_rate: c1 >= 0, a number or a schedule. 0 leaves the parameters still while L learns.
        law_learning_rate: c2 >= 0, a number or a schedule; 0 keeps the law fixed.
        law: L_0, k numbers; ones if None.
        eps: of the default relaxed inverse, a relative number >= 0: GramianRidge(eps) for linear memory,
            DiagonalRidge(eps) for other.
        inverse: another relaxed inverse instead: GramianRidge(eps) (linear memory only), DiagonalRidge(eps),
            Ridge(eps) or Cutoff(rcond).
        weight_decay: w, decoupled and multiplied by the learning rate as in optax.adamw.
        guard: keep a gradient that returns after a silence from throwing L away
            (`rllc.law.correction`); False is the paper's exact formula. None: for linear memory. For a rule
            there is none, but LawStep.clip.
        axis_name: inside jax.shard_map, the mesh axis or axes over which parameters are sharded: sums go
            over all shards, so that every device has the one law. Parameters that are replicated over
            such an axis may stand beside sharded ones and count once; shard_map knows which is which.
            Make the state of a memory rule outside: inside, its counts pass for what differs between devices.
            Under jit alone sharded parameters need no axis_name.
        law_step: how a correction moves the law, `rllc.law.LawStep`; additive, as in the paper, by default.
            Its t counts the steps that were taken.
        scope: "all": one law for all parameters. "tensor": one for each leaf. Otherwise labels as
            optax.multi_transform has them, a tree that is a prefix of the parameters' or a function of the
            parameters to one: one law for each label. The memory is that of the whole tree in any case; the
            state's law is then (laws, k), in the order of the leaves or of the sorted labels. A function
            must be static for optax.inject_hyperparams, which else takes it for a schedule.
        mask: what decays, as in optax.adamw: a tree of booleans that is a prefix of the parameters', or a
            function of the parameters to one (static, too); None: all parameters.

    Raises:
        ValueError: a rate, eps, law, memory or scope that makes no sense, named with the remedy. From
            update: a state of another memory, a gradient or mask of another tree; an axis_name that is not
            bound there, or bound where shard_map does not tell the two kinds of parameters apart
            (check_vma=False; vmap); units that are no trees like the gradient, a rule whose number of units
            changes, and hidden state whose structure does, by name.
    """
    check_rate("learning_rate", learning_rate)
    tx = optax.chain(
        scale_by_rllc(
            memory,
            law_learning_rate,
            law,
            eps=eps,
            inverse=inverse,
            weight_decay=weight_decay,
            guard=guard,
            axis_name=axis_name,
            law_step=law_step,
            scope=scope,
            learning_rate=learning_rate,
            mask=mask,
        ),
        optax.scale_by_learning_rate(learning_rate),
    )
    return _rounded_last(tx)


def _rounded_last(tx: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Updates are rounded to half precision when the learning rate has made them small.

    M L of units in float16 may be no number of float16, though c1 M L is one.
    """
    tx = optax.with_extra_args_support(tx)

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None, **extra_args: Any
    ) -> Any:
        steps, new = tx.update(widened(updates), state, params, **extra_args)
        like = zip(jax.tree.leaves(updates), jax.tree.leaves(state[0].memory[0]), strict=True)
        kinds = [jnp.promote_types(jnp.result_type(x), m.dtype) for x, m in like]
        leaves, tree = jax.tree.flatten(steps)
        return jax.tree.unflatten(tree, [x.astype(kind) for x, kind in zip(leaves, kinds, strict=True)]), new

    return optax.GradientTransformationExtraArgs(tx.init, update)


def scale_by_rllc(
    memory: Memory,
    law_learning_rate: Rate,
    law: Any = None,
    eps: float | jax.Array | None = None,
    inverse: RelaxedInverse | None = None,
    weight_decay: float | jax.Array = 0.0,
    guard: bool | None = None,
    axis_name: str | tuple[str, ...] = (),
    law_step: LawStep = ADDITIVE,
    scope: Scope = "all",
    learning_rate: Rate = 1.0,
    mask: Any = None,
) -> optax.GradientTransformation:
    """Turn a gradient g into M L + w θ, updating L and M on the way; arguments as in `rllc`.

    The updates point uphill, as optax has it: chain with `optax.scale_by_learning_rate`. If its rate changes,
    a law that searches (`LawStep.growth`) must know: give it here, too.

    A gradient with an entry that is not finite, or for which a memory unit or hidden state would not be, is
    skipped whole, whatever the scope: zero updates, memory and law unchanged, `skipped` one up. It cannot
    raise, as nothing under jit can: look at `skipped`. The weight decay lives here so that a skipped step
    does not decay either.

    Memory has the dtype of the parameters, hidden state at least float32; sums and steps are computed in at
    least float32. A complex leaf is treated as its real view: <x, y> = Re(conj(x) y). Rules of `rllc.memory`
    are for real ones.
    """
    check_rate("learning_rate", learning_rate)
    check_rate("law_learning_rate", law_learning_rate)
    check_rate("weight_decay", weight_decay, may_change=False)
    check_scope(scope)
    _law.check_law_step(law_step)
    axes = (axis_name,) if isinstance(axis_name, str) else tuple(axis_name or ())
    if isinstance(law, jax.Array) and not isinstance(law, jax.core.Tracer):
        law = np.asarray(law)  # whose numbers can be judged

    def settings(*, linear: bool) -> Settings:
        chosen = _law.chosen_inverse(eps, inverse, linear=linear)
        guarded = _law.chosen_guard(guard, linear=linear)
        return Settings(
            chosen, law_learning_rate, law_step, weight_decay, guarded, scope, axes, learning_rate, mask
        )

    if isinstance(memory, str | Propagator):
        return linear.transformation(as_propagator(memory), settings(linear=True), law)
    return general.transformation(as_members(memory), settings(linear=False), law)
