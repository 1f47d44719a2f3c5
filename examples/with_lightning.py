"""RLLC in Lightning: configure_optimizers returns it, with a scheduler of torch's if you like.

python examples/with_lightning.py
"""

import lightning
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from rllc.torch import RLLC


class Regression(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))
        self.losses: list[float] = []

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        x, y = batch
        loss = (self.net(x) - y).square().mean()
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self) -> dict:
        opt = RLLC(self.parameters(), "M(0.9) + M(0)", lr=0.03, law_lr=0.01)
        return {"optimizer": opt, "lr_scheduler": torch.optim.lr_scheduler.ExponentialLR(opt, 0.95)}


def main() -> None:
    lightning.seed_everything(0, verbose=False)
    x = torch.randn(256, 8)
    batches = DataLoader(TensorDataset(x, torch.sin(x.sum(1, keepdim=True))), batch_size=32)
    model = Regression()
    trainer = lightning.Trainer(
        max_epochs=8,
        accelerator="cpu",
        devices=1,
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, batches)
    law = trainer.optimizers[0].law
    print(f"loss {model.losses[0]:.4f} -> {model.losses[-1]:.4f}, law {law.tolist()}")


if __name__ == "__main__":
    main()
