"""What supports tell, and what guidance does, with a control teacher, on SmolLM2-135M before training.

See docs/evidence.md.

    python benchmarks/control_teacher.py

Rollouts of the training problems of ``house_rules.py`` are scored under their helpful pair, their misleading one and a
control. Printed for both kinds of pair: the mean support of successes and of failures; the area under the ROC curve of
successes against failures by support; and how far the stances tell them apart, p₊ + p₋ − 1 (``sgsd.bank.credit``).
Then, where an answer names the shelf, the probability of the true one, by teacher and guidance.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from statistics import mean
from typing import Any

import torch

import house_rules
from sgsd.bank.credit import separation
from sgsd.engines.embedders import build_retriever
from sgsd.engines.generation import TransformersSampler
from sgsd.engines.models import load_model, load_tokenizer
from sgsd.objectives import guided_logps, sgsd_loss
from sgsd.prompts import PromptRenderer, uncounted_token_ids
from sgsd.scoring.logprobs import score_completions
from sgsd.scoring.teachers import build_pool, control_prompt
from sgsd.verifiers import get_verifier

MODEL = "local:smollm2-135m-instruct"
KINDS = ("helpful", "misleading")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rollouts", type=int, default=8, help="of each problem")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--student", help="a run's folder: how probable the true shelf is to it, too")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    tokenizer, model = load_tokenizer(MODEL), load_model(MODEL).float().eval()
    renderer, bank = PromptRenderer(tokenizer, instruction=house_rules.INSTRUCTION), house_rules.bank()
    with tempfile.TemporaryDirectory() as folder:
        train, _ = house_rules.problems(Path(folder))
        rows = [json.loads(line) for line in train.read_text().splitlines() for _ in range(options.rollouts)]
    problems = [row["problem"] for row in rows]
    plain = [renderer.student_ids(problem) for problem in problems]
    sampler = TransformersSampler(model, tokenizer, max_new_tokens=16, temperature=0.8, top_p=0.95, batch_size=64)
    rollouts = sampler.sample(plain, seed=options.seed)
    verdicts = get_verifier("math").verify_many([rollout.text for rollout in rollouts], [row["answer"] for row in rows])
    outcome = torch.tensor([verdict.outcome.sign for verdict in verdicts])

    pools, controls = [], []
    limit = model.config.max_position_embeddings
    for problem, retrieval in zip(problems, build_retriever("bm25").retrieve(problems, bank, 2), strict=True):
        pools.append(build_pool(problem, retrieval, renderer, num_teachers=2, max_prompt_length=limit))
        controls.append(control_prompt(problem, pools[-1], bank, renderer, max_prompt_length=limit, seed=options.seed))
    completions = [list(rollout.completion_ids) for rollout in rollouts]
    prompts = [plain, *([pool.prompts[k] for pool in pools] for k in range(2)), controls]
    with torch.no_grad():
        student, *teachers, control = (score_completions(model, shown, completions) for shown in prompts)
    uncounted = torch.tensor(sorted(uncounted_token_ids(tokenizer)))
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(ids) for ids in completions], batch_first=True)
    mask = student.mask & ~torch.isin(ids, uncounted)
    kind = [[bank.metadata["worth"][pair.skill.id] for pair in pool.pairs] for pool in pools]
    print(f"{len(rows)} rollouts, {(outcome > 0).float().mean():.1%} right")
    for name, control_logps in (("plain prompt", None), ("control", control.logps)):
        result = sgsd_loss(
            student.logps,
            torch.stack([teacher.logps for teacher in teachers], 1),
            mask,
            outcome,
            torch.full((len(rows), 2), 0.5),
            control_logps=control_logps,
        )
        for which in KINDS:
            chosen = torch.tensor([[kind_k == which for kind_k in kinds] for kinds in kind])
            support, stance, verdict = (
                values[chosen].tolist()
                for values in (result.support, result.stance, outcome.unsqueeze(1).expand_as(chosen))
            )
            of = {sign: [s for s, v in zip(support, verdict, strict=True) if v == sign] for sign in (1, -1)}
            right = [mean(t == v for t, v in zip(stance, verdict, strict=True) if v == sign and t) for sign in (1, -1)]
            told = f"successes {mean(of[1]):+.3f}, failures {mean(of[-1]):+.3f}; area {separation(of[1], of[-1]):.2f}"
            stances = f"stances {sum(right) - 1:+.2f}, {mean(t != 0 for t in stance):.0%} with one"
            print(f"support against the {name}, {which} pairs: {told}; {stances}")
    firsts = range(0, len(rows), options.rollouts)
    shown = {"plain prompt": plain, "control": controls}
    shown |= {
        f"{which} pair": [pool.prompts[k[0] != which] for pool, k in zip(pools, kind, strict=True)] for which in KINDS
    }
    asked, prompts = [rows[n] for n in firsts], {who: [ids[n] for n in firsts] for who, ids in shown.items()}
    chances(model, tokenizer, asked, prompts)
    if options.student:
        trained = load_model(options.student).float().eval()
        chances(trained, tokenizer, asked, {f"plain prompt to {options.student}": prompts["plain prompt"]})


def chances(model: Any, tokenizer: Any, rows: list[dict[str, str]], prompts: dict[str, list[list[int]]]) -> None:
    """Print how probable the true shelf is, mean over rows, where an answer in the words of the question names it."""
    answers, places = [], []
    for row in rows:
        thing = row["problem"].removeprefix("What is the number of the shelf for a ").removesuffix("?")
        before = f"The number of the shelf for a {thing} is "
        ids = tokenizer(f"{before}{row['answer']}", add_special_tokens=False)["input_ids"]
        answers.append(ids)
        places.append(len(ids) - 1)
    at = torch.arange(len(rows)), torch.tensor(places)
    for who, shown in prompts.items():
        scores = score_completions(model, shown, answers, top_tokens=20)
        print(f"the true shelf under the {who}: {scores.logps[at].exp().mean():.2f}")
        if who.endswith("pair"):
            control = score_completions(model, prompts["control"], answers, others=scores.top_ids).other_logps
            truth = scores.top_ids[at] == torch.tensor([ids[-1] for ids in answers]).unsqueeze(1)
            for guidance in (1, 2, 4):
                guided = guided_logps(scores.top_logps, control, guidance=guidance, clip=3.0)[at]
                print(f"    guided, γ = {guidance}: {(guided.exp() * truth).sum(-1).mean():.2f}")


if __name__ == "__main__":
    main()
