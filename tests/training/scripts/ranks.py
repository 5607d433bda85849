"""Run by test_distributed.py in one process or two: steps on rollouts that depend on the prompt alone.

Writes, per rank, ``{folder}/{rank}.pt``: the gradients of the first step, the weights after the last, the metrics.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[3]))
warnings.filterwarnings("ignore", ".*gradient_checkpointing.* is deprecated", FutureWarning)

from peft import LoraConfig  # noqa: E402
from tests.training.test_maintenance import HangingWriter, StubWriter  # noqa: E402
from tests.training.tiny import by_parity, make_bank, make_trainer, quoting_model  # noqa: E402
from transformers import TrainerCallback  # noqa: E402

from sgsd.problems import Problem  # noqa: E402
from sgsd.retrieval import RandomRetriever  # noqa: E402
from sgsd.scoring import chunk_count  # noqa: E402


class UnequalRetriever(RandomRetriever):
    """Short problems get fewer pairs than long ones, hence ranks fewer and shorter teachers' prompts."""

    def retrieve(self, queries, bank, k):
        return [
            super(UnequalRetriever, self).retrieve([query], bank, 1 if len(query) < 30 else k)[0] for query in queries
        ]


class Record(TrainerCallback):
    def __init__(self):
        self.gradients = None

    def on_pre_optimizer_step(self, args, state, control, model, **_):
        if self.gradients is None:
            self.gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]


def main() -> None:
    folder, settings = Path(sys.argv[1]), json.loads(sys.argv[2])
    torch.set_num_threads(1)
    record = Record()
    problems = [
        Problem(
            id=str(n),
            text=f"{n} + {n}?" + " Take your time, there is a lot of it." * (n % 3),
            answer=str(2 * n),
            solution="Twice " * (n % 4) + f"{n}.",
        )
        for n in range(8)
    ]
    lora = settings.pop("lora", False)
    of_method = {}
    if settings.get("method", "sgsd") == "sgsd":
        of_method = {"num_teachers": 5, "max_tokens_per_chunk": 600}
        of_method |= {"bank": make_bank(3), "retriever_object": UnequalRetriever()}
    if writer := settings.pop("writer", None):
        of_method["writer"] = {"stub": StubWriter, "hanging": HangingWriter, "policy": lambda: None}[writer]()
    trainer = make_trainer(
        model=quoting_model() if writer == "policy" else None,
        output_dir=folder / "run",
        stub=True,
        problems=problems,
        reward=by_parity,
        callbacks=[record],
        peft_config=LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM") if lora else None,
        **{"max_grad_norm": 0.0, "max_steps": 3} | of_method | settings,
    )
    forwards, own_chunks = [], []
    if settings.get("method", "sgsd") == "sgsd":
        count_forwards(trainer, forwards, own_chunks)
    trainer.train()
    torch.save(
        {
            "gradients": record.gradients,
            "weights": [
                parameter.detach() for parameter in trainer.accelerator.unwrap_model(trainer.model).parameters()
            ],
            "logs": trainer.state.log_history,
            "forwards": forwards,
            "own_chunks": own_chunks,
            "bank": trainer.bank.digest if trainer.bank else None,
            "processes": trainer.accelerator.num_processes,
        },
        folder / f"{trainer.accelerator.process_index}.pt",
    )


def count_forwards(trainer, forwards, own_chunks) -> None:
    """One entry a step: the forwards that the teachers took, and the chunks that this rank's rollouts needed."""
    score = trainer._score_teachers

    def counted(pools, completions):
        prompts = [prompt for pool in pools for prompt in pool.prompts]
        repeated = [completion for completion in completions for _ in range(len(pools[0].prompts))]
        own_chunks.append(chunk_count(prompts, repeated, max_tokens_per_chunk=trainer.args.max_tokens_per_chunk))
        forwards.append(0)
        handle = trainer.model.register_forward_pre_hook(lambda *_: forwards.append(forwards.pop() + 1))
        try:
            return score(pools, completions)
        finally:
            handle.remove()

    trainer._score_teachers = counted


if __name__ == "__main__":
    main()
