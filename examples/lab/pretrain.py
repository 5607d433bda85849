"""Pre-train the lab's models: a small Llama learns to follow a rule in its prompt, and to guess without one.

``probe`` measures what such a model can do before post-training.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import LlamaConfig, LlamaForCausalLM

from sgsd.engines.generation import TransformersSampler
from sgsd.engines.models import load_model, load_tokenizer
from sgsd.evaluation import Estimate, mean_estimate
from sgsd.examples.lab.experiment import BankShares, Worth, make_bank, questions
from sgsd.examples.lab.language import (
    ANSWER,
    END,
    MAX_COMPLETION,
    MISTAKE_TEXTS,
    RULE_NAMES,
    RULES,
    SKILL_TEXTS,
    SYMBOLS,
    make_tokenizer,
    mistake,
    skill,
)
from sgsd.prompts import PromptRenderer
from sgsd.retrieval import document
from sgsd.verifiers import Outcome, get_verifier

Ids = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Variant:
    """The settings of a lab model.

    Attributes:
        obedience: share of solutions that follow the rule in the prompt; the others follow another rule, at random.
        steps: optimizer steps.
        batch_size: solutions per step.
        learning_rate: peak of a cosine schedule with a short warm-up.
        seed: of weights and data.
    """

    obedience: float
    steps: int = 1000
    batch_size: int = 128
    learning_rate: float = 2e-3
    seed: int = 0


VARIANTS = {"sharp": Variant(obedience=1.0), "calibrated": Variant(obedience=0.6)}

# Shares of the kinds of prompts: plain; a skill and a mistake on the symbol; a skill and a mistake on other symbols; a
# mistake on the symbol; a reference solution; a reference answer.
_KINDS = {"plain": 0.18, "stated": 0.52, "elsewhere": 0.1, "warned": 0.06, "solution": 0.1, "answer": 0.04}
# Without a stated rule, a model guesses two rules more often than the others, which differ by symbol. Its guess thus
# depends on the symbol, as a language model's answer depends on the problem, and post-training can distinguish symbols.
_FAVOURITES, _FAVOURED = (3, 8), 0.2
_WARMUP = 50


def prior() -> NDArray[np.float64]:
    """``[symbols, rules]``: probability of each rule in solutions to plain prompts."""
    chances = np.full((len(SYMBOLS), len(RULE_NAMES)), (1 - 2 * _FAVOURED) / (len(RULE_NAMES) - 2))
    for symbol in range(len(SYMBOLS)):
        for offset in _FAVOURITES:
            chances[symbol, (3 * symbol + offset) % len(RULE_NAMES)] = _FAVOURED
    return chances


def make_model(seed: int, vocabulary: int) -> LlamaForCausalLM:
    """A Llama with 0.9 million parameters: 4 layers of width 128."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=128,
            tie_word_embeddings=True,
            attention_dropout=0.0,
        )
    )


class Corpus:
    """Batches of prompts with solutions, as token ids.

    Prompts have the form that trainers give them: the package's ``PromptRenderer`` renders each wording once, with
    placeholder digits, symbols and rules, which each batch replaces.
    """

    def __init__(self, tokenizer: Any) -> None:
        def ids(words: tuple[str, ...]) -> Ids:
            return np.array(tokenizer.convert_tokens_to_ids(list(words)))

        renderer = PromptRenderer(tokenizer, instruction="")
        self._digits = ids(tuple(map(str, range(10))))
        self._symbols, self._rules = ids(SYMBOLS), ids(RULE_NAMES)
        self._marks = ids((";", "=", ANSWER, END))
        question = f"0 {SYMBOLS[0]} 1 {SYMBOLS[0]} 2"
        solution = f"{RULE_NAMES[2]} 0 1 = 3 ; {RULE_NAMES[2]} 3 2 = 4 ; {ANSWER} 4"
        conditioned = [
            renderer.teacher_ids(
                question, [(skill(SYMBOLS[1], RULE_NAMES[0], g), mistake(SYMBOLS[2], RULE_NAMES[1], e))]
            )
            for g in range(len(SKILL_TEXTS))
            for e in range(len(MISTAKE_TEXTS))
        ]
        others = [
            renderer.student_ids(question),
            renderer.reference_ids(question, solution),
            renderer.reference_ids(question, "4"),
        ]
        self._wordings = len(conditioned)
        self.prompt_length = max(map(len, [*conditioned, *others]))
        self._prompts = np.full((self._wordings + len(others), self.prompt_length), self._marks[3])
        self._prompt_masks = np.zeros_like(self._prompts)
        for row, prompt in enumerate([*conditioned, *others]):
            self._prompts[row, -len(prompt) :] = prompt
            self._prompt_masks[row, -len(prompt) :] = 1
        self._prior_sums = prior().cumsum(1)[:, :-1]
        table = [[RULES[name](a, b) for b in range(10)] for name in RULE_NAMES for a in range(10)]
        self._table = np.array(table).reshape(len(RULE_NAMES), 10, 10)

    def batch(self, draw: np.random.Generator, size: int, obedience: float) -> tuple[Ids, Ids]:
        """Token ids and attention mask, ``[size, P + 15]``. The mask is 0 on the padding left of short prompts."""
        kind = draw.choice(len(_KINDS), size=size, p=list(_KINDS.values()))
        plain, stated, elsewhere, warned, with_solution, with_answer = (kind == n for n in range(len(_KINDS)))
        symbol = draw.integers(len(SYMBOLS), size=size)
        other = (symbol + draw.integers(1, len(SYMBOLS), size=(2, size))) % len(SYMBOLS)
        guess = (self._prior_sums[symbol] < draw.random((size, 1))).sum(1)
        follows = stated | with_solution | with_answer
        rule = np.where(follows, draw.integers(len(RULE_NAMES), size=size), guess)
        slip = (rule + draw.integers(1, len(RULE_NAMES), size=size)) % len(RULE_NAMES)
        said = np.where(stated, rule, draw.integers(len(RULE_NAMES), size=size))
        skill_symbol = np.where(elsewhere | warned, other[0], symbol)
        mistake_symbol = np.where(elsewhere, other[1], symbol)
        # A solution that does not follow the stated rule uses any other rule except the one of the mistake.
        astray = follows & (draw.random(size) >= obedience)
        detour = draw.integers(len(RULE_NAMES) - 2, size=size)
        low, high = np.minimum(rule, slip), np.maximum(rule, slip)
        detour += detour >= low
        detour += detour >= high
        used = np.where(astray, detour, rule)

        rows = draw.integers(self._wordings, size=size)
        for offset, which in enumerate((plain, with_solution, with_answer)):
            rows[which] = self._wordings + offset
        skeletons = self._prompts[rows]
        a, b, c = digits = draw.integers(10, size=(3, size))
        reference_between = self._table[rule, a, b]
        filled = (
            (self._rules[0], self._rules[said]),
            (self._rules[1], self._rules[slip]),
            (self._rules[2], self._rules[rule]),
            (self._symbols[1], self._symbols[skill_symbol]),
            (self._symbols[2], self._symbols[mistake_symbol]),
            (self._symbols[0], self._symbols[symbol]),
            *((self._digits[place], self._digits[digits[place]]) for place in range(3)),
            (self._digits[3], self._digits[reference_between]),
            (self._digits[4], self._digits[self._table[rule, reference_between, c]]),
        )
        prompts = skeletons.copy()
        for mark, value in filled:
            prompts = np.where(skeletons == mark, value[:, None], prompts)

        between = self._table[used, a, b]
        result = self._table[used, between, c]
        semicolon, equals, answer, end = (np.full(size, mark) for mark in self._marks)
        name, digit = self._rules[used], self._digits
        solution = [name, digit[a], digit[b], equals, digit[between], semicolon]
        solution += [name, digit[between], digit[c], equals, digit[result], semicolon, answer, digit[result], end]
        ids = np.concatenate([prompts, np.stack(solution, axis=1)], axis=1)
        mask = np.concatenate([self._prompt_masks[rows], np.ones_like(ids[:, self.prompt_length :])], axis=1)
        return ids, mask


def pretrain(
    variant: Variant, output: Path, *, progress: Callable[[int, float], None] = lambda step, loss: None
) -> dict[str, Any]:
    """Train a lab model, and save it in bfloat16 with its tokenizer and ``lab.json``, which has settings and loss.

    Args:
        variant: settings of the model.
        output: folder to write.
        progress: called with the step and its loss in nats per token.

    Returns:
        The content of ``lab.json``.
    """
    began = time.perf_counter()
    tokenizer = make_tokenizer()
    corpus = Corpus(tokenizer)
    model = make_model(variant.seed, len(tokenizer)).train()
    model.generation_config.eos_token_id = model.config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = model.config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.bos_token_id = model.config.bos_token_id = None
    optimizer = torch.optim.AdamW(model.parameters(), lr=variant.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / _WARMUP, 0.5 * (1 + np.cos(np.pi * min(1.0, step / variant.steps)))),
    )
    draw = np.random.default_rng(variant.seed)
    loss = torch.zeros(())
    for step in range(variant.steps):
        ids, mask = (torch.from_numpy(part) for part in corpus.batch(draw, variant.batch_size, variant.obedience))
        logits = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=(mask.cumsum(1) - 1).clamp(min=0),
            logits_to_keep=ids.shape[1] - corpus.prompt_length + 1,
            use_cache=False,
        ).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, corpus.prompt_length :].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        progress(step + 1, loss.item())
    model.eval().to(torch.bfloat16).save_pretrained(output)
    tokenizer.save_pretrained(output)
    made = {"variant": asdict(variant), "loss": loss.item(), "seconds": round(time.perf_counter() - began, 1)}
    (output / "lab.json").write_text(json.dumps(made, indent=2) + "\n", encoding="utf-8")
    return made


def probe(model_name: str, *, problems: int = 450, seed: int = 0) -> dict[str, Estimate]:
    """Accuracy at temperature 1 with the plain prompt, and with a helpful, misleading or irrelevant pair in the prompt.

    Args:
        model_name: as for ``load_model``.
        problems: number of problems; each is asked once.
        seed: of problems, bank and sampling.
    """
    model, tokenizer = load_model(model_name), load_tokenizer(model_name)
    renderer = PromptRenderer(tokenizer, instruction="")
    asked = questions(problems, seed=seed, prefix="probe")
    made = make_bank(BankShares(helpful=1, misleading=1, irrelevant=1), seed=seed)
    pairs = {
        (made.topics[document(skill)][0], made.worth[skill.id]): (skill, mistake)
        for skill, mistake in zip(made.bank.skills, made.bank.mistakes, strict=True)
    }
    prompts = {"plain": [renderer.student_ids(problem.text) for problem in asked]}
    for worth in Worth:
        prompts[f"{worth} skill"] = [
            renderer.teacher_ids(problem.text, [pairs[problem.text.split()[1], worth]]) for problem in asked
        ]
    sampler = TransformersSampler(model, tokenizer, max_new_tokens=MAX_COMPLETION, batch_size=450)
    verifier = get_verifier("exact", workers=1)
    estimates: dict[str, Estimate] = {}
    for name, ids in prompts.items():
        rollouts = sampler.sample(ids, seed=seed)
        verdicts = verifier.verify_many([rollout.text for rollout in rollouts], [problem.answer for problem in asked])
        estimates[name] = mean_estimate([float(verdict.outcome is Outcome.CORRECT) for verdict in verdicts])
    return estimates
