"""What a lab model can do before any post-training: without a skill, and with one of each worth."""

from __future__ import annotations

from sgsd.engines.generation import TransformersSampler
from sgsd.engines.models import load_model, load_tokenizer
from sgsd.evaluation import Estimate, mean_estimate
from sgsd.lab.experiment import BankShares, Worth, make_bank, questions
from sgsd.lab.language import MAX_COMPLETION
from sgsd.prompts import PromptRenderer
from sgsd.retrieval import document
from sgsd.verifiers import Outcome, get_verifier


def probe(model_name: str, *, problems: int = 450, seed: int = 0) -> dict[str, Estimate]:
    """Accuracy at temperature 1 of the plain prompt, and of prompts with a helpful, misleading or irrelevant pair.

    Args:
        model_name: as for ``load_model``.
        problems: how many are asked, once each.
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
            renderer.teacher_ids(problem.text, *pairs[problem.text.split()[1], worth]) for problem in asked
        ]
    sampler = TransformersSampler(model, tokenizer, max_new_tokens=MAX_COMPLETION, batch_size=450)
    verifier = get_verifier("exact", workers=1)
    estimates: dict[str, Estimate] = {}
    for name, ids in prompts.items():
        rollouts = sampler.sample(ids, seed=seed)
        verdicts = verifier.verify_many([rollout.text for rollout in rollouts], [problem.answer for problem in asked])
        estimates[name] = mean_estimate([float(verdict.outcome is Outcome.CORRECT) for verdict in verdicts])
    return estimates
