"""Run by tests/trainers/launching.py in one process or several: steps on rollouts that depend on the prompt alone.

Writes, per rank, ``{folder}/{rank}.pt``: gradients, loss and collectives, the weights after the last step, the metrics.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import sys
import warnings
from pathlib import Path

import torch
import torch.distributed

sys.path.insert(0, str(Path(__file__).parents[3]))
warnings.filterwarnings("ignore", ".*gradient_checkpointing.* is deprecated", FutureWarning)

from accelerate.state import AcceleratorState, DistributedType, PartialState  # noqa: E402
from peft import LoraConfig  # noqa: E402
from tests.trainers.test_maintenance import HangingWriter, StubWriter  # noqa: E402
from tests.trainers.tiny import EOS, by_parity, make_bank, make_trainer, prompted_rollouts, quoting_model  # noqa: E402
from torch.distributed.tensor import DTensor  # noqa: E402
from transformers import TrainerCallback  # noqa: E402

from sgsd.data.problems import Problem  # noqa: E402
from sgsd.retrieval import RandomRetriever, Retrieval  # noqa: E402
from sgsd.scoring.logprobs import chunk_count  # noqa: E402

RANK = int(os.environ.get("RANK", 0))
if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # gloo does without; it would be compiled first
COLLECTIVES = (
    *("all_gather", "all_gather_into_tensor", "all_reduce", "broadcast", "barrier"),
    *("gather", "reduce", "reduce_scatter_tensor", "scatter"),
)


class UnequalRetriever(RandomRetriever):
    """Short problems get fewer pairs than long ones, hence ranks fewer and shorter teachers' prompts."""

    def retrieve(self, queries, bank, k):
        return [
            super(UnequalRetriever, self).retrieve([query], bank, 1 if len(query) < 30 else k)[0] for query in queries
        ]


class NothingOnOddRanks(RandomRetriever):
    def retrieve(self, queries, bank, k):
        return [Retrieval((), ()) for _ in queries] if RANK % 2 else super().retrieve(queries, bank, k)


class OneOnOddRanks(RandomRetriever):
    def retrieve(self, queries, bank, k):
        return super().retrieve(queries, bank, 1 if RANK % 2 else k)


RETRIEVERS = {"unequal": UnequalRetriever, "nothing": NothingOnOddRanks, "one": OneOnOddRanks}


def undecided_on_odd_ranks(completion_ids, **_):
    return [None] * len(completion_ids) if RANK % 2 else by_parity(completion_ids)


def undecided(completion_ids, **_):
    return [None] * len(completion_ids)


def first_problem_alone(problem, **_):
    return [float(text == PROBLEMS[0].text) for text in problem]


REWARDS = {
    "parity": by_parity,
    "undecided on odd ranks": undecided_on_odd_ranks,
    "undecided": undecided,
    "first problem alone": first_problem_alone,
}


def numbered_rollouts(prompt_ids, images, fields, num_generations, *_):
    """``prompted_rollouts`` of groups whose rows may lie on several ranks."""
    first = RANK * len(prompt_ids)
    numbers = [(first + row) % num_generations for row in range(len(prompt_ids))]
    return [prompted_rollouts([ids] * (n + 1))[0][n] for ids, n in zip(prompt_ids, numbers, strict=True)], None


def short_on_odd_ranks(prompt_ids, *arguments):
    """On odd ranks one token, the end or another."""
    if RANK % 2:
        return [[EOS] if row % 2 else [7] for row, _ in enumerate(prompt_ids)], None
    return numbered_rollouts(prompt_ids, *arguments)


def ended(prompt_ids, *_):
    return [[7, EOS] for _ in prompt_ids], None


ROLLOUTS = {"of the prompt": numbered_rollouts, "short on odd ranks": short_on_odd_ranks, "ended": ended}


class Record(TrainerCallback):
    """Each step's gradients, and the collectives that Python code calls; those of DDP follow from the forwards."""

    def __init__(self):
        self.gradients = []
        self.collectives = []

    def on_pre_optimizer_step(self, args, state, control, model, **_):
        self.gradients.append([whole(p.grad).clone() for p in model.parameters() if p.grad is not None])


def listen(heard) -> None:
    """Have ``heard`` called with the name and the tensor's shape of every collective from now on."""
    for name in COLLECTIVES:
        made = getattr(torch.distributed.distributed_c10d, name)

        def call(*args, _name=name, _made=made, **kwargs):
            tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)]
            heard((_name, *(tuple(tensor.shape) for tensor in tensors)))
            return _made(*args, **kwargs)

        for module in (torch.distributed, torch.distributed.distributed_c10d):
            setattr(module, name, call)


def whole(tensor):
    """A sharded tensor put together."""
    if hasattr(tensor, "ds_id"):
        with deepspeed.zero.GatheredParameters([tensor]):
            return tensor.detach().clone()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


PROBLEMS = [
    Problem(
        id=str(n),
        text=f"{n} + {n}?" + " Take your time, there is a lot of it." * (n % 3),
        answer=str(2 * n),
        solution="Twice " * (n % 4) + f"{n}.",
    )
    for n in range(8)
]


def shard_on_cpu() -> None:
    """Let accelerate shard with FSDP2 on the CPU as it does on GPUs; it makes DDP of what gloo processes ask for."""
    begin = AcceleratorState.__init__

    def sharded(self, *args, fsdp_plugin=None, **kwargs):
        begin(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None:
            self.distributed_type = DistributedType.FSDP
            self.fsdp_plugin = fsdp_plugin
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    AcceleratorState.__init__ = sharded


def main() -> None:
    folder, cases = Path(sys.argv[1]), json.loads(sys.argv[2])
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    (folder / f"{RANK}.pid").write_text(str(os.getpid()))
    torch.set_num_threads(1)
    if os.environ.get("ACCELERATE_USE_FSDP") == "true" and cases.pop("shard_on_cpu", False):
        shard_on_cpu()
    records = [Record()]
    listen(lambda call: records[-1].collectives.append(call))
    results = {"processes": int(os.environ.get("WORLD_SIZE", 1))}
    for name, settings in cases.items():
        print(f"case {name!r}", file=sys.stderr, flush=True)
        records.append(Record())
        results[name] = train(folder / name, settings, records[-1])
    torch.save(results, folder / f"{RANK}.pt")


def train(folder: Path, settings: dict, record: Record) -> dict:
    lora = settings.pop("lora", False)
    broken_step = settings.pop("broken_step", None)
    rollouts = settings.pop("rollouts", "of the prompt")
    resume = settings.pop("resume", None)
    eval_problems = settings.pop("eval_problems", 0)
    of_method = {}
    if settings.get("method", "sgsd") == "sgsd":
        of_method = {"num_teachers": 5, "max_tokens_per_chunk": 600}
        of_method |= {"bank": make_bank(3), "retriever_object": RETRIEVERS[settings.pop("retrieves", "unequal")]()}
    if writer := settings.pop("writer", None):
        of_method["writer"] = {"stub": StubWriter, "hanging": HangingWriter, "policy": lambda: None}[writer]()
    trainer = make_trainer(
        model=quoting_model() if writer == "policy" else None,
        output_dir=(folder if resume is None else folder.parent / resume) / "run",
        problems=PROBLEMS,
        reward=REWARDS[settings.pop("reward", "parity")],
        eval_dataset=PROBLEMS[:eval_problems] or None,
        callbacks=[record],
        peft_config=LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM") if lora else None,
        **{"max_grad_norm": 0.0, "max_steps": 3} | of_method | settings,
    )
    if rollouts in ROLLOUTS:  # otherwise they are sampled
        trainer._generate_single_turn = ROLLOUTS[rollouts]
    if broken_step is not None:
        break_loss(trainer, broken_step)
    forwards, own_chunks = [], []
    if settings.get("method", "sgsd") == "sgsd":
        count_forwards(trainer, forwards, own_chunks)
    trainer.train(resume_from_checkpoint=resume is not None)
    evaluated = trainer.evaluate() if eval_problems else None
    model = trainer.accelerator.unwrap_model(trainer.model)
    return {
        "gradients": record.gradients,
        "collectives": record.collectives,
        "weights": [whole(parameter).detach().clone() for parameter in model.parameters()],
        "alarm": trainer.guard.alarm and trainer.guard.alarm.what,
        "logs": trainer.state.log_history,
        "forwards": forwards,
        "own_chunks": own_chunks,
        "evaluated": evaluated,
        "bank": trainer.bank.digest if trainer.bank else None,
        "distributed": str(trainer.accelerator.distributed_type),
    }


def break_loss(trainer, step: int) -> None:
    """The loss of one optimizer step, counted from 1, is not a number."""
    loss = trainer._compute_loss
    trainer._compute_loss = lambda *args: loss(*args) * (torch.nan if trainer.state.global_step == step - 1 else 1.0)


def count_forwards(trainer, forwards, own_chunks) -> None:
    """One entry a call: the forwards that it took, and the chunks that this rank's rollouts needed."""
    score = trainer._score

    def counted(prompts, completions, inputs, *, others=None, **more):
        own_chunks.append(0)
        if prompts:
            limit = trainer.args.max_tokens_per_chunk
            own_chunks[-1] = chunk_count(trainer.model, prompts, completions, max_tokens_per_chunk=limit, others=others)
        forwards.append(0)
        handle = trainer.model.register_forward_pre_hook(lambda *_: forwards.append(forwards.pop() + 1))
        try:
            return score(prompts, completions, inputs, others=others, **more)
        finally:
            handle.remove()

    trainer._score = counted


if __name__ == "__main__":
    main()
