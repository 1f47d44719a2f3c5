"""RLLCAdamW in a Hugging Face Trainer: pass it as the optimizer, and ask for a constant rate.

    python examples/with_trainer.py

The Trainer evaluates at the average of the weights and trains on without it; checkpoints and resuming are its
own. A small GPT-2 learns to count modulo 16, is stopped in the middle, and goes on from the checkpoint to the
very law of a run that was not stopped.
"""

import tempfile
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments, set_seed

from rllc.torch import RLLCAdamW

STEPS, LENGTH, VOCABULARY = 80, 12, 16


class Counting(torch.utils.data.Dataset):
    """Sequences s, s + 1, s + 2, ... modulo 16."""

    def __len__(self) -> int:
        return VOCABULARY

    def __getitem__(self, start: int) -> dict[str, torch.Tensor]:
        numbers = (start + torch.arange(LENGTH)) % VOCABULARY
        return {"input_ids": numbers, "labels": numbers}


def trainer(folder: str, **options: Any) -> Trainer:
    set_seed(0)
    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=LENGTH, n_embd=32, n_layer=1, n_head=2, resid_pdrop=0.0
    )
    model = GPT2LMHeadModel(config)
    opt = RLLCAdamW(model.parameters())
    arguments = TrainingArguments(
        output_dir=folder,
        max_steps=STEPS,
        lr_scheduler_type="constant",  # its own default falls linearly
        eval_strategy="steps",
        eval_steps=STEPS // 2,
        per_device_train_batch_size=8,
        logging_steps=1,
        save_steps=STEPS // 2,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        **options,
    )
    data = Counting()
    return Trainer(model, arguments, train_dataset=data, eval_dataset=data, optimizers=(opt, None))


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        whole = trainer(folder)
        whole.train()
        resumed = trainer(folder)
        resumed.train(resume_from_checkpoint=f"{folder}/checkpoint-{STEPS // 2}")
    law = whole.optimizer.optimizer.law
    assert torch.equal(law, resumed.optimizer.optimizer.law)
    losses = [entry["loss"] for entry in whole.state.log_history if "loss" in entry]
    evaluated = whole.state.log_history[-2]["eval_loss"]
    print(f"loss {float(losses[0]):.4f} -> {float(losses[-1]):.4f}, law {law.tolist()}")
    print(f"at the average of the weights {float(evaluated):.4f}")


if __name__ == "__main__":
    main()
