"""RLLC for PyTorch: `torch.optim.Optimizer`s with a law.

from rllc.torch import RLLCAdamW
opt = RLLCAdamW(net.parameters(), buffers=net)
...
loss.backward()
opt.step()
...
with opt.averaged():         # or opt.eval() and opt.train()
    evaluate(net)
opt.law                      # what it has learned so far

    RLLC(params, memory, lr, law_lr)        any memory: the paper's notation, or a rule of rllc.memory
    RLLC.around(optimizer, law_lr)          any optimizer of torch: the unit is its last step
    RLLCAdamW(params)                       AdamW with a law and an average of the weights: nothing to tune
    LawStep, GramianRidge, DiagonalRidge, ...      how a law moves, and the relaxed inverses (rllc.law)
    LawLogger(opt, SummaryWriter())         law, effective step, gain and mean delay, to TensorBoard
"""

from rllc.law import Cutoff, DiagonalRidge, GramianRidge, LawStep, Ridge
from rllc.torch.adamw import RLLCAdamW
from rllc.torch.logging import LawLogger
from rllc.torch.optimizer import RLLC

__all__ = [
    "RLLC",
    "Cutoff",
    "DiagonalRidge",
    "GramianRidge",
    "LawLogger",
    "LawStep",
    "RLLCAdamW",
    "Ridge",
]
