"""The polynomial average of the weights: a mixin for the optimizers here.

    θ̄_t = θ̄_{t-1} + (p+1)/(t+p) (θ_t - θ̄_{t-1})        (Shamir and Zhang, arXiv 1212.1824)

θ_t counts in proportion to about t^p: a window of t/(p+1), in which no length of the run appears.

An optimizer derives from `Averaging` and says four things: `_open_average` when it is made, `_evaluated` for
the loss before a step, `_begin_average` of a parameter that is about to move for the first time, and
`_step_average` after a step that was taken. The rest is here, checkpoints too: of these an optimizer says
what its books come to (`_checked`) and what is to be made good (`_restore`).

The average is `state[p]["average"]`, in at least float32. A parameter that has not moved is its own average.
One that moves later, or is added later, counts as having been where it was from the start, since all have
one count: its beginning has lost all but (t_0/t)^(p+1) of its weight by step t. The count and the averages
of buffers are in the first parameter group, so that every way of saving an optimizer carries them.

In evaluation mode `state[p]["training"]` holds the training weights, and `train()` puts these very numbers
back. They are saved too: a state that was saved in evaluation mode is one of evaluation mode when it is
loaded, and `train()` then restores what the network's own checkpoint, which has the averages, does not hold.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rllc.checks import is_number
from rllc.torch import shards
from rllc.torch.parts import numbered, params_of, wide_dtype
from rllc.torch.saved import check_has, finite

__all__ = ["Averaging"]


class Averaging(torch.optim.Optimizer):
    """eval(), train() and averaged() for an optimizer that averages its weights."""

    _net: nn.Module | None  # whose buffers are averaged along,
    _kept: list[Any]  # by name; or without it the tensors

    def __init__(self, params: Any, defaults: dict[str, Any]) -> None:
        # Copies: law and average go into the groups, and the caller's can be used again.
        if not isinstance(params, Tensor):  # which torch refuses
            params = [dict(group) if isinstance(group, dict) else group for group in params]
        super().__init__(params, defaults)

    # --- What the user calls --------------------------------------------------------------------------

    @torch.no_grad()
    def eval(self) -> None:
        """Put the averages into the parameters and buffers, until `train()`. Twice is as good as once.

        Without an average it does nothing, as `train()`: training loops call both of every optimizer that
        has them.
        """
        keeper = self._keeper()
        if _power(keeper) is None or keeper["evaluating"]:
            return
        pairs, buffers = self._averaged(), self._buffers
        kept, kept_buffers = [p.detach().clone() for _, p in pairs], [b.clone() for b in buffers]
        # All that `train` needs is there before anything is moved.
        for (state, _), training in zip(pairs, kept, strict=True):
            state["training"] = training
        keeper |= {"training_buffers": kept_buffers, "evaluating": True}
        try:
            for state, p in pairs:
                shards.local(p).copy_(shards.local(state["average"]))
            _copy(buffers, keeper["buffers"])
            shards.exchanged(self._net, (p for _, p in pairs))
        except BaseException:
            with contextlib.suppress(RuntimeError):  # of a buffer that cannot be written
                self.train()
            raise

    @torch.no_grad()
    def train(self) -> None:
        """Put the training weights and buffers back, to the bit. Twice is as good as once.

        Raises:
            RuntimeError: the first group, with the buffers, has been removed; the weights are back.
        """
        # Not by the groups: one that was added in evaluation mode has nothing to come back, one that was
        # removed has, even the first.
        pairs = [(state, p) for p, state in self.state.items() if "training" in state]
        for state, p in pairs:
            shards.local(p).copy_(shards.local(state["training"]))
        for state, _ in pairs:  # once all have come back
            del state["training"]
        keeper = self._keeper()
        if _power(keeper) is None or not keeper["evaluating"]:
            return
        keeper["evaluating"] = False
        _copy(self._buffers, keeper.pop("training_buffers"))
        shards.exchanged(self._net, (p for _, p in pairs))

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """With the averages in the parameters and buffers, and then as before, whatever happens within.

        Raises:
            RuntimeError: this optimizer does not average.
        """
        keeper = self._keeper()
        if _power(keeper) is None:
            raise RuntimeError("this optimizer does not average its weights; make it with average=9.0")
        before = keeper["evaluating"]
        self.eval()
        try:
            yield
        finally:
            if not before:
                self.train()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a saved state, to the bit: memory, law, averages and mode. No average starts one.

        Raises:
            ValueError: the state is of another optimizer, memory, power of the average or of other buffers,
                is damaged, or was saved in evaluation mode and lacks the training weights; nothing has
                changed then.
        """
        self._take_over(super(), state_dict)

    def _take_over(self, loader: Any, state_dict: dict[str, Any]) -> None:
        """The same by the load_state_dict of `loader`, another optimizer that shares state and groups."""
        ours = _power(self.param_groups[0])
        taken: list[dict[str, Any]] = []
        books: dict[str, Any] = {}

        def check(_: Any, state: dict[str, Any]) -> None:
            if _sizes(state["param_groups"]) != _sizes(self.param_groups):
                return  # torch itself says so
            books.update(self._checked(state))
            _check_saved(state, ours, self._buffers)
            _check_names(state["param_groups"], self.param_groups)
            params = params_of(self.param_groups)
            shards.check_whole(state, params, ["average"])
            shards.check_whole(state, params, ["training"], "save it after opt.train()")
            taken.append(state)

        # The last of all hooks: it sees the state as the others left it, and nothing here has changed yet.
        handle = loader.register_load_state_dict_pre_hook(check)
        try:
            loader.load_state_dict(state_dict)
        finally:
            handle.remove()
        self._restore_averages(taken[0], ours)
        self.param_groups[0] |= books
        self._restore(taken[0])

    def __getstate__(self) -> dict[str, Any]:
        # The base class keeps only what every optimizer has; deepcopy and pickle need the rest too.
        return super().__getstate__() | {"_net": self._net, "_kept": self._kept}

    # --- What an optimizer says -----------------------------------------------------------------------

    def _checked(self, state: dict[str, Any]) -> dict[str, Any]:
        """What the first group's books come to with this saved state.

        Raises:
            ValueError: it cannot be taken over.
        """
        return {}

    def _restore(self, state: dict[str, Any]) -> None:
        """Make good what torch does not take over as it was saved; the books are in place."""

    def _open_average(self, power: float | None, buffers: nn.Module | Iterable[Tensor]) -> None:
        """Average with this power from now on, or not at all; after the parameter groups are there.

        Raises:
            ValueError: the power is no finite number >= 0, or a buffer has no shape or values yet.
            TypeError: buffers are neither a net nor tensors.
        """
        self._net = buffers if isinstance(buffers, nn.Module) else None
        self._kept = []
        for name in (*_books(0.0, ()), "training_buffers"):  # of an optimizer around the same base before
            self.param_groups[0].pop(name, None)
        if power is None:
            return
        if not is_number(power, lambda p: 0 <= p < math.inf):
            raise ValueError(f"average must be a finite power >= 0, such as 9.0, or None, got {power!r}")
        named = _named(buffers)
        if lazy := [name for name, b in named if nn.parameter.is_lazy(b)]:
            raise ValueError(f"buffers have no shape yet ({lazy[0]!r}): pass one batch through the net first")
        if empty := [name for name, b in named if b.is_meta]:
            raise ValueError(f"buffers have no values yet ({empty[0]!r}): give the net a device first")
        # Counters and masks, which are no statistics, are in evaluation what they are in training.
        self._kept = [kept for kept, b in named if b.is_floating_point() and bool(b.isfinite().all())]
        self.param_groups[0] |= _books(float(power), self._buffers)

    def __repr__(self) -> str:
        """As torch has it, without the averages of the buffers, which may be thousands of numbers."""
        lines = []
        for i, group in enumerate(self.param_groups):
            said = sorted(set(group) - {"params", "buffers", "training_buffers"})
            lines += [f"Parameter Group {i}", *(f"    {name}: {group[name]}" for name in said)]
        return "\n".join([f"{type(self).__name__} (", *lines, ")"])

    @property
    def _buffers(self) -> list[Tensor]:
        """That are averaged along. A net's are looked up, for it exchanges them where it is moved."""
        return self._kept if self._net is None else [self._net.get_buffer(name) for name in self._kept]

    def _keeper(self) -> dict[str, Any]:
        """The first group, which keeps the law.

        Raises:
            RuntimeError: it is not the one that this optimizer was made with.
            TypeError: its law was replaced by what is no tensor of float32 or float64.
        """
        keeper = self.param_groups[0]
        if "law" not in keeper:
            raise RuntimeError(
                "the first parameter group, which keeps the law, has been removed or replaced; make a new"
                " optimizer, or keep the group and change its params"
            )
        if not isinstance(law := keeper["law"], Tensor) or law.dtype not in (torch.float32, torch.float64):
            raise TypeError(
                f"param_groups[0]['law'] must stay a tensor of float64, got {law!r}; fill_ sets its entries"
            )
        return keeper

    def _evaluated(self, closure: Callable[[], Any] | None) -> Any:
        """What the closure of a step returns, None without one; refuses a step in evaluation mode."""
        if self.param_groups[0].get("evaluating"):
            raise RuntimeError(
                "the parameters hold the averages; call opt.train() before the next step, or evaluate"
                " within `with opt.averaged():`"
            )
        if closure is None:
            return None
        with torch.enable_grad():
            return closure()

    def _begin_average(self, p: Tensor, state: dict[str, Any], before: Tensor | None = None) -> None:
        """Start the average of a parameter from where it is, or was `before` its first step."""
        if _power(self.param_groups[0]) is not None:
            start = p if before is None else before
            state["average"] = start.detach().clone().to(wide_dtype(p))

    def _step_average(self, ok: Tensor | None = None) -> None:
        """θ̄ <- θ̄ + (p+1)/(t+p) (θ - θ̄); not if `ok`, 0-d on the device, is False."""
        if ok is None:
            self._average(self._weight())
        elif (weight := self._next_weight_on_device(ok)) is not None:
            self._mix(weight)

    def _weight(self) -> float | None:
        """(p+1)/(t+p) of the next step; None where there is no average."""
        keeper = self.param_groups[0]
        power = _power(keeper)
        return None if power is None else (power + 1) / (keeper["averaged"] + 1 + power)

    def _average(self, weight: float | None, done: Collection[int] = ()) -> None:
        """Count a step that was taken, and average by its weight, except the parameters that are `done`."""
        if weight is not None:
            self.param_groups[0]["averaged"] += 1
            self._mix(weight, done)

    def _next_weight_on_device(self, ok: Tensor) -> Tensor | None:
        """The weight of a step that is taken, float64, which is counted; zero and not counted if not `ok`."""
        keeper = self.param_groups[0]
        power = _power(keeper)
        if power is None:
            return None
        if not isinstance(keeper["averaged"], Tensor):
            keeper["averaged"] = torch.tensor(keeper["averaged"], device=ok.device)
        keeper["averaged"] += ok
        return torch.where(ok, (power + 1) / (keeper["averaged"].double() + power), 0.0)

    def _mix(self, weight: float | Tensor, done: Collection[int] = ()) -> None:
        """θ̄ += weight (θ - θ̄), except of the parameters that are `done`, by their id."""
        if len(done) < sum(len(group["params"]) for group in self.param_groups):
            pairs = [(s["average"], p) for s, p in self._averaged() if id(p) not in done]
            averages = [shards.local(average) for average, _ in pairs]
            _mix(averages, [shards.local(p) for _, p in pairs], weight)
        if not self._kept:
            return
        keeper, buffers = self.param_groups[0], self._buffers
        # A buffer of another shape, such as a cache that has grown, is another: its average begins anew.
        keeper["buffers"] = [
            a.to(b.device) if a.shape == b.shape else _started(b)
            for a, b in zip(keeper["buffers"], buffers, strict=True)
        ]
        _mix(keeper["buffers"], buffers, weight)

    # --- Within ---------------------------------------------------------------------------------------

    def _averaged(self) -> list[tuple[dict[str, Any], Tensor]]:
        """The state of each parameter that has an average, and the parameter."""
        found = [(self.state[p], p) for p in params_of(self.param_groups) if p in self.state]
        return [(state, p) for state, p in found if "average" in state]

    def _restore_averages(self, saved: dict[str, Any], power: float | None) -> None:
        """What torch has cast to the dtype of the parameters, or left where it was."""
        keeper = self.param_groups[0]
        if power is None:
            return
        if _power(keeper) is None:
            keeper |= _books(power, self._buffers)
            # With the first weight, 1, it does not matter where they start.
            for p, state in self.state.items():
                self._begin_average(p, state)
        keeper["averaged"] = int(keeper["averaged"])
        for name in _lists(keeper):
            # Empty lists are what torch.distributed.checkpoint leaves out.
            pairs = zip(keeper.get(name, []), self._buffers, strict=True)
            keeper[name] = [kept.to(b.device, copy=True) for kept, b in pairs]
        for number, p in numbered(saved, self.param_groups):
            kept = saved["state"].get(number, {}).get("average")
            if kept is not None:
                self.state[p]["average"] = kept.detach().to(p.device, wide_dtype(p), copy=True)
            elif self.state.get(p):  # its own, where it has not moved
                self._begin_average(p, self.state[p])


def _sizes(groups: Sequence[dict[str, Any]]) -> list[int]:
    return [len(group["params"]) for group in groups]


def _named(buffers: nn.Module | Iterable[Tensor]) -> list[tuple[Any, Tensor]]:
    """Buffers by name, or by themselves."""
    if isinstance(buffers, nn.Module):
        return list(buffers.named_buffers())
    found = list(buffers) if isinstance(buffers, Iterable) else [buffers]
    if not all(isinstance(b, Tensor) for b in found):
        raise TypeError(f"buffers must be the net that has them, or tensors, got {buffers!r}")
    return [(b, b) for b in found]


def _power(group: dict[str, Any]) -> float | None:
    return group.get("average")


def _books(power: float, buffers: Sequence[Tensor]) -> dict[str, Any]:
    """Of an average that has seen nothing yet: its first weight is 1."""
    return {
        "average": power,
        "averaged": 0,  # on the device a tensor
        "buffers": list(map(_started, buffers)),
        "evaluating": False,
    }


def _lists(keeper: dict[str, Any]) -> tuple[str, ...]:
    """Under which names the books have numbers of each buffer."""
    return ("buffers", "training_buffers") if keeper["evaluating"] else ("buffers",)


def _started(b: Tensor) -> Tensor:
    return b.detach().clone().to(wide_dtype(b))


def _check_saved(saved: dict[str, Any], ours: float | None, buffers: Sequence[Tensor]) -> None:
    keeper = saved["param_groups"][0]
    theirs = _power(keeper)
    if theirs is None:
        return
    if theirs != ours:
        raise ValueError(
            f"the saved state averages with power {theirs!r}, this optimizer with {ours!r}; build the"
            f" optimizer with average={theirs!r}"
        )
    check_has(keeper, "averaged", "evaluating")
    if buffers:  # the list of none may be missing
        check_has(keeper, *_lists(keeper))
    finite("averaged", keeper["averaged"], ())
    for name in ("buffers", "training_buffers"):
        if name in keeper and [b.shape for b in keeper[name]] != [b.shape for b in buffers]:
            raise ValueError(
                f"the saved state averages {len(keeper[name])} buffers, this optimizer {len(buffers)}, or of"
                " other shapes; build the optimizer with the buffers it was saved with"
            )
    states = [state for state in saved["state"].values() if "average" in state]
    if keeper["evaluating"] and not all("training" in state for state in states):
        raise ValueError(
            "the state was saved in evaluation mode, and its training weights are missing; save it after"
            " opt.train(), or, if torch.distributed.checkpoint has left them out, make a step and call"
            " opt.eval() before it reads the checkpoint"
        )


def _check_names(saved: Sequence[dict[str, Any]], groups: Sequence[dict[str, Any]]) -> None:
    """Refuse a state of parameters of other names, where names are known: an average goes into weights."""
    for theirs, ours in zip(saved, groups, strict=True):
        names = theirs.get("param_names"), ours.get("param_names")
        if None not in names and names[0] != names[1]:
            raise ValueError(
                f"the saved state is of the parameters {names[0]}, in this order, the optimizer's are"
                f" {names[1]}; give it those, in that order"
            )


def _mix(averages: list[Tensor], new: Sequence[Tensor], weight: float | Tensor) -> None:
    """averages += weight (new - averages)."""
    if not averages:
        return
    wide = [x.detach().to(average.dtype) for x, average in zip(new, averages, strict=True)]
    if isinstance(weight, Tensor):
        moved = torch._foreach_sub(wide, averages)
        kinds: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
        for t in moved:
            kinds.setdefault((t.device, t.dtype.to_real()), []).append(t)
        for kind, own in kinds.items():
            torch._foreach_mul_(own, weight.to(*kind))
        torch._foreach_add_(averages, moved)
    else:
        torch._foreach_lerp_(averages, wide, weight)


def _copy(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    for target, source in zip(targets, sources, strict=True):
        target.copy_(source)
