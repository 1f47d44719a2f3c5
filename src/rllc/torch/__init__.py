"""RLLC for PyTorch: a `torch.optim.Optimizer`.

from rllc.torch import RLLC
opt = RLLC(net.parameters(), "M(0.9) + M(0)", lr=0.1, law_lr=0.01)
...
loss.backward()
opt.step()
opt.law                      # what it has learned so far
"""

from rllc.law import Cutoff, GramianRidge, Ridge
from rllc.torch.optimizer import RLLC

__all__ = ["RLLC", "Cutoff", "GramianRidge", "Ridge"]
