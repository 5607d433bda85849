"""One training step at the paper's shapes on Qwen3 of random weights: does it run, how long, in how much memory.

    python benchmarks/qwen3_shapes.py --count                  # the count alone, for 1.7B, 4B and 8B
    python benchmarks/qwen3_shapes.py --layers 2               # a step of a shallow model, to try
    python benchmarks/qwen3_shapes.py                          # the step at 1.7B, minutes to an hour on a CPU

The step is ``SGSDTrainer``'s own, with the settings of the preset sgsd-qwen3-1.7b: bfloat16, LoRA r 64 on all linear
layers, gradient checkpointing, one rollout of 1,024 tokens, K 8 teachers. Rollouts are given (random ids): sampling,
and memory that an engine such as vLLM takes for it, are not measured; pairs are drawn without an embedder, which the
count adds. Random teachers agree on average, so the dead zone is 0: the loss would else have no gradient.

The count is of tensors and leaves out what an allocator keeps: weights, adapter and optimizer by their shapes; a
decoder layer's peak of live memory by running that layer alone on one row; logits by the size of a tile. The step also
counts its own storages; resident memory on a CPU is larger by what the allocator keeps.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedTokenizerFast, PrinterCallback, Qwen3Config, Qwen3ForCausalLM

from measure import GB, peak_bytes, reset_peak, resident, show_table
from sgsd.bank import Mistake, Origin, Skill, SkillBank
from sgsd.data.problems import Problem
from sgsd.trainers.config import SGSDConfig
from sgsd.trainers.sgsd import SGSDTrainer

GPU_GB = 80
VOCABULARY = 151_936
GPU_TILE_LOGITS = 2**26  # of a head's product at a time, and half as many upcast
LORA = {"r": 64, "lora_alpha": 128, "lora_dropout": 0.0, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class Size:
    """Dimensions of a Qwen3 model."""

    hidden: int
    layers: int
    heads: int
    intermediate: int
    tied: bool
    kv_heads: int = 8
    head_dim: int = 128

    def config(self, layers: int | None = None) -> Qwen3Config:
        return Qwen3Config(
            vocab_size=VOCABULARY,
            hidden_size=self.hidden,
            num_hidden_layers=layers or self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            head_dim=self.head_dim,
            intermediate_size=self.intermediate,
            tie_word_embeddings=self.tied,
            max_position_embeddings=40_960,
            eos_token_id=1,
            pad_token_id=1,
            bos_token_id=None,
        )

    @property
    def linears(self) -> list[tuple[int, int]]:
        """Inputs and outputs of a layer's linear modules."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        attention = [(self.hidden, queries), (self.hidden, keys), (self.hidden, keys), (queries, self.hidden)]
        return [*attention, *[(self.hidden, self.intermediate)] * 2, (self.intermediate, self.hidden)]


SIZES = {
    "1.7B": Size(2048, 28, 16, 6144, tied=True),
    "4B": Size(2560, 36, 32, 9728, tied=True),
    "8B": Size(4096, 36, 32, 12_288, tied=False),
}
EMBEDDER = Size(1024, 28, 16, 3072, tied=True)


@dataclass(frozen=True)
class Shape:
    """One micro-batch; lengths in tokens."""

    B: int = 1
    K: int = 8
    prompt: int = 120
    teacher_prompt: int = 400
    completion: int = 1024
    max_tokens_per_chunk: int = 16_384

    @property
    def chunk_rows(self) -> int:
        """Teachers that are scored in one forward."""
        return max(1, min(self.B * self.K, self.max_tokens_per_chunk // (self.teacher_prompt + self.completion)))


# ---- the count


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of live storages that were made in its context, and their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._seen: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        known = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        found = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(found):
            if isinstance(leaf, Tensor) and leaf.untyped_storage()._cdata not in known:
                self._note(leaf.untyped_storage())
        return found

    def _note(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen:
            return
        self._seen[key] = weakref.ref(storage, partial(self._forget, key, size))
        self.now += size
        self.most = max(self.most, self.now)

    def _forget(self, key: int, size: int, _: Any) -> None:
        del self._seen[key]
        self.now -= size


def layer_bytes(size: Size, tokens: int) -> tuple[int, int]:
    """The most live bytes of one layer with its adapter on one row: forward alone; forward and backward."""
    config = size.config(layers=1)
    config.vocab_size = 8
    model = get_peft_model(Qwen3ForCausalLM(config).to(torch.bfloat16), LoraConfig(**LORA))
    body = model.base_model.model.model
    layer, positions = body.layers[0].train(), torch.arange(tokens).unsqueeze(0)
    hidden = torch.randn(1, tokens, size.hidden, dtype=torch.bfloat16, requires_grad=True)
    rotary = body.rotary_emb(hidden, positions)
    most = []
    for gradient in (False, True):
        model.zero_grad()
        for parameter in layer.parameters():
            if parameter.requires_grad:  # gradients are counted with the adapter
                parameter.grad = torch.zeros_like(parameter)
        with torch.set_grad_enabled(gradient), torch.autocast("cpu", torch.bfloat16), LiveBytes() as live:
            out = layer(hidden, position_embeddings=rotary, position_ids=positions)
            if gradient:
                torch.autograd.grad(out, hidden, torch.ones_like(out))
        most.append(live.most)
    return most[0], most[1]


def matrices(size: Size) -> int:
    """Parameters of a layer's linear modules."""
    return sum(inputs * outputs for inputs, outputs in size.linears)


def count(
    size: Size, shape: Shape, *, layers: int | None = None, tile_logits: int = GPU_TILE_LOGITS, embedder: bool = True
) -> dict[str, dict[str, int]]:
    """Phase of the step → live tensors → bytes. ``embedder``: with that of the preset, for retrieval."""
    L, H, T = layers or size.layers, size.hidden, shape.completion
    adapter = L * sum(LORA["r"] * (inputs + outputs) for inputs, outputs in size.linears)
    rows, width, student_width = shape.chunk_rows, shape.teacher_prompt + T, shape.prompt + T
    forward, _ = layer_bytes(size, width)
    _, backward = layer_bytes(size, student_width)
    logits = max(1, tile_logits // VOCABULARY) * VOCABULARY * 2
    upcast = tile_logits // 2 * 4 * 2  # half of a tile's logits, twice in float32
    always = {
        "weights of the layers, bfloat16": 2 * L * matrices(size),
        "embedding and head, bfloat16": 2 * VOCABULARY * H * (1 if size.tied else 2),
        "adapter, float32": 4 * adapter,
        "adapter's gradient": 4 * adapter,
        "AdamW's moments": 8 * adapter,
        "adapter under autocast, bfloat16": 2 * adapter,
    }
    if embedder:
        own = EMBEDDER.layers * matrices(EMBEDDER) + VOCABULARY * EMBEDDER.hidden
        always["embedder, Qwen3-Embedding-0.6B"] = 2 * own
    teachers = {
        "one layer of the teachers' chunk, at its fullest": rows * forward,
        "teachers' hidden states": 4 * rows * width * H,
        "head's tile": logits + upcast,
    }
    student = {
        "one layer, made again, and backward, at its fullest": shape.B * backward,
        "layers' inputs": 2 * L * shape.B * student_width * H,
        "head's tile and its gradient": 2 * logits + upcast,
        "hidden states at the head, and their gradient": 4 * shape.B * T * H,
    }
    return {"throughout": always, "while teachers score": teachers, "while the student learns": student}


def peaks(counted: dict[str, dict[str, int]]) -> list[int]:
    """Bytes held throughout, and with each phase's own."""
    always, *others = (sum(held.values()) for held in counted.values())
    return [always, *(always + other for other in others)]


def show_count(name: str, counted: dict[str, dict[str, int]]) -> None:
    rows = [[when, what, f"{held / GB:.2f} GB"] for when, of in counted.items() for what, held in of.items()]
    show_table(("when", "what", "size"), rows, title=f"Qwen3-{name}, counted")


def show_sizes(shape: Shape) -> None:
    rows = []
    for name, size in SIZES.items():
        counted = count(size, shape)
        total = peaks(counted)
        rows.append([name, *(f"{held / GB:.1f} GB" for held in total), f"{max(total) / GB / GPU_GB:.0%}"])
    show_table(("Qwen3", *counted, f"of {GPU_GB} GB"), rows)


# ---- the step


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer: one token per byte of text. Larger ids decode to nothing."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<|im_start|>": 0, "<|im_end|>": 1} | {char: n + 2 for n, char in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|im_end|>")
    fast.padding_side, fast.chat_template = "left", TEMPLATE
    return fast


def make_bank(pairs: int, text: int) -> SkillBank:
    """Items of about ``text`` characters, each of another length."""
    skills = [Skill.new(f"{n} s" + "k" * (text - n), origin=Origin.SEED) for n in range(pairs)]
    mistakes = [Mistake.new(f"{n} m" + "i" * (text - 2 * n), origin=Origin.SEED) for n in range(pairs)]
    return SkillBank(tuple(skills), tuple(mistakes), name="shapes")


def given_rollouts(completion: int, prompts: list[list[int]], *_: Any, **__: Any) -> tuple[list[list[int]], None]:
    """A replacement of TRL's generation: random ids, ending in the end token."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(300, VOCABULARY, (len(prompts), completion - 1), generator=generator).tolist()
    return [[*row, 1] for row in ids], None


def make_trainer(size: Size, shape: Shape, folder: str, *, layers: int | None = None, **settings: Any) -> SGSDTrainer:
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    model = Qwen3ForCausalLM(size.config(layers))
    torch.set_default_dtype(torch.float32)
    problem = "What is the sum of 12 and 34?"
    tokenizer = make_tokenizer()
    defaults = {
        "output_dir": folder,
        "retriever": "random",
        "num_teachers": shape.K,
        "max_completion_length": shape.completion,
        "max_tokens_per_chunk": shape.max_tokens_per_chunk,
        "support_threshold": 0.0,
        "per_device_train_batch_size": shape.B,
        "gradient_accumulation_steps": 1,
        "max_steps": 1,
        "bf16": True,
        "activation_checkpointing": True,
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
    }
    frame = 260  # characters of a teacher's prompt beside its pair
    trainer = SGSDTrainer(
        model=model,
        args=SGSDConfig(**defaults | settings),
        train_dataset=[Problem(id=f"p{n}", text=problem, answer="46") for n in range(shape.B)],
        processing_class=tokenizer,
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        bank=make_bank(shape.K, (shape.teacher_prompt - frame) // 2),
        peft_config=LoraConfig(**LORA),
    )
    trainer._generate_single_turn = partial(given_rollouts, shape.completion)
    trainer.remove_callback(PrinterCallback)
    return trainer


class Phases:
    """Prints seconds, and the peaks of resident memory and of live tensors, by phase."""

    def __init__(self) -> None:
        self.peak, self._live = 0, LiveBytes()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        reset, began = reset_peak(), time.perf_counter()
        self._live.most = self._live.now
        with self._live:
            yield
        seconds, peak = time.perf_counter() - began, peak_bytes(reset)
        self.peak = max(self.peak, peak)
        live = f"{self._live.most / GB:.2f} GB of it tensors made since the start"
        print(f"  {name:19} {seconds:7.1f} s, peak {peak / GB:.2f} GB, {live}", flush=True)

    def around(self, name: str, method: Any) -> Any:
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.phase(name):
                return method(*args, **kwargs)

        return timed


def step(size: Size, shape: Shape, layers: int | None) -> None:
    """One optimizer step of one micro-batch; prints phases with seconds and peaks."""
    phases, idle = Phases(), resident()
    with tempfile.TemporaryDirectory() as folder:
        with phases.phase("model and trainer"):
            trainer = make_trainer(size, shape, folder, layers=layers)
        before = [p.detach().clone() for p in trainer.model.parameters() if p.requires_grad]
        trainer._generate_and_score_completions = phases.around(
            "teachers' scores", trainer._generate_and_score_completions
        )
        trainer._compute_loss = phases.around("student's forward", trainer._compute_loss)
        trainer.accelerator.backward = phases.around("student's backward", trainer.accelerator.backward)
        trainer.create_optimizer()
        trainer.optimizer.step = phases.around("optimizer", trainer.optimizer.step)
        began = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - began
        trained = [p for p in trainer.model.parameters() if p.requires_grad]
        moved = sum(not torch.equal(a, b) for a, b in zip(before, trained, strict=True))
        log = next(entry for entry in trainer.state.log_history if "loss" in entry)
    print(f"  one step {seconds:.1f} s, peak {phases.peak / GB:.2f} GB, {idle / GB:.2f} GB of it before the model")
    # An adapter's B begins at 0, hence the first gradient of its A is 0: half of the matrices move.
    print(f"  loss {log['loss']:.4f}, gradient {log['grad_norm']:.4f}, {moved} of {len(trained)} matrices moved")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=list(SIZES), default="1.7B")
    parser.add_argument("--layers", type=int, help="number of decoder layers, to try the script")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--count", action="store_true", help="print the count alone")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    size, shape = SIZES[options.size], Shape()
    tile = GPU_TILE_LOGITS if options.count else 6 * 2**20  # a CPU's tile is smaller
    show_count(options.size, count(size, shape, layers=options.layers, tile_logits=tile, embedder=options.count))
    if options.count:
        show_sizes(shape)
    else:
        print(f"\nOne step, {options.threads} threads:")
        step(size, shape, options.layers)


if __name__ == "__main__":
    main()
