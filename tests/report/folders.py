"""Run folders in the format that runs leave, made of a few numbers: no model is trained."""

from __future__ import annotations

import json
import random
from dataclasses import asdict
from pathlib import Path

from sgsd.bank import Ledger, Mistake, Origin, Skill, SkillBank
from sgsd.evaluation.run import Sample
from sgsd.trainers.record import SUPPORT_EDGES

HOSTILE = "</script><img src=x onerror=alert(1)> {{ 7 * 7 }} & \u2028 \"quoted\" 'so'"
PROBLEMS = 20


def make_bank(*, hostile: bool = False) -> SkillBank:
    skills = [Skill.new(f"Check the sign of step {n}.", title=f"Signs {n}", origin=Origin.SEED) for n in range(3)]
    mistakes = [Mistake.new(f"Losing term {n}.", avoid="Count the terms.", origin=Origin.SEED) for n in range(3)]
    if hostile:
        skills.append(Skill.new(HOSTILE, title=HOSTILE, when=HOSTILE, origin=Origin.SEED))
        mistakes.append(Mistake.new(HOSTILE, title=HOSTILE, avoid=HOSTILE, origin=Origin.SEED))
    worth = {item.id: ("helpful", "misleading")[n % 2] for n, item in enumerate([*skills, *mistakes])}
    return SkillBank(tuple(skills), tuple(mistakes), name="tiny", metadata={"worth": worth})


def write_run(
    folder: Path,
    *,
    method: str = "sgsd",
    seed: int = 0,
    steps: int = 30,
    accuracy: float = 0.5,
    hostile: bool = False,
    tokens: int = 14,
    **settings,
) -> Path:
    """A finished run, with an evaluation, and for SGSD a ledger, supports, traces and a bank that changed."""
    draw = random.Random(f"{method} {seed} {accuracy}")
    folder.mkdir(parents=True)
    chosen = {"method": method, "seed": seed, "output_dir": str(folder), "learning_rate": 1e-4, "report_to": ["none"]}
    chosen |= {"model_name_or_path": "tiny", "skills_in_prompt": False, "max_steps": steps} | settings
    _json(
        folder / "run.json",
        {
            "sgsd": "0.1.0",
            "python": "3.11.7",
            "versions": {"torch": "2.13.0", "trl": "1.16.0"},
            "bank_digest": "ab" * 32,
            "data": {"source": "sums.jsonl", "rows": 30, "kept": 28},
            "settings": chosen,
        },
    )
    _json(folder / "trainer_state.json", {"global_step": steps, "log_history": _history(draw, method, steps, accuracy)})
    _evaluation(folder / "evaluations" / "sums", draw, accuracy, steps)
    if method == "sgsd":
        _teachers(folder, draw, steps, hostile, tokens)
    return folder


def _history(draw: random.Random, method: str, steps: int, accuracy: float) -> list[dict]:
    history = []
    for step in range(1, steps + 1):
        progress = step / steps
        entry = {
            "step": step,
            "success_rate": min(1.0, max(0.0, accuracy * progress + draw.uniform(-0.05, 0.05))),
            "entropy": 1.5 - progress / 2,
            "grad_norm": draw.uniform(0.1, 0.2),
            "completions/mean_length": 40 + 10 * progress,
        }
        if method == "sgsd":
            positive, negative = 0.2 + 0.3 * progress, 0.1
            entry |= {
                "sgsd/polarity/positive_share": positive,
                "sgsd/polarity/negative_share": negative,
                "sgsd/polarity/neutral_share": 1 - positive - negative,
                "sgsd/active_share": positive + negative,
            }
        history.append(entry)
    for step in range(0, steps + 1, 10):
        value = 0.2 + (accuracy - 0.2) * step / steps
        bounds = {"eval_accuracy_low": value - 0.05, "eval_accuracy_high": value + 0.05}
        history.append({"step": step, "eval_accuracy": value, **bounds})
    return history


def _evaluation(folder: Path, draw: random.Random, accuracy: float, steps: int) -> None:
    outcomes = ["correct" if draw.random() < accuracy else "incorrect" for _ in range(PROBLEMS)]
    samples = [
        Sample(
            problem_id=f"p{n}",
            sample=0,
            completion="…",
            tokens=3,
            stop_reason="stop",
            outcome=outcome,
            reason=None,
            extracted="1",
        )
        for n, outcome in enumerate(outcomes)
    ]
    folder.mkdir(parents=True)
    (folder / "samples.jsonl").write_text("".join(json.dumps(asdict(sample)) + "\n" for sample in samples))
    mean = outcomes.count("correct") / PROBLEMS
    about = {"step": steps, "dataset": "sums.jsonl", "verifier": "exact", "temperature": 1.0, "max_new_tokens": 8}
    _json(folder / "summary.json", {**about, "problems": PROBLEMS, "samples_per_problem": 1, "accuracy": mean})


def _teachers(folder: Path, draw: random.Random, steps: int, hostile: bool, tokens: int) -> None:
    start = make_bank(hostile=hostile)
    new = Skill.new("Estimate first.", title="Estimates", origin=Origin.ONLINE)
    end = start.without([start.mistakes[1].id]).with_items([new])
    start.save(folder / "bank-start.json")
    end.save(folder / "bank.json")
    pairs = list(zip(start.skills, start.mistakes, strict=True))
    ledger = Ledger()
    supports: list[dict] = [{"edges": list(SUPPORT_EDGES)}]
    for step in range(1, steps + 1):
        outcome = draw.choice([1, -1])
        support = [draw.gauss(0.1 * outcome, 0.2) for _ in pairs]
        stance = [0 if abs(value) <= 0.05 else 1 if value > 0 else -1 for value in support]
        ids = [[(skill.id, mistake.id) for skill, mistake in pairs]]
        ledger = ledger.credited(ids, support=[support], stance=[stance], outcome=[outcome], problems=[0])
        bins = len(SUPPORT_EDGES) + 1
        counts = {name: [0] * bins for name in ("success", "failure", "undecided")}
        for value in support:
            counts["success" if outcome > 0 else "failure"][sum(value > edge for edge in SUPPORT_EDGES)] += 1
        supports.append({"step": step, **counts})
    (folder / "ledger.json").write_text(ledger.to_json())
    _lines(folder / "supports.jsonl", supports)
    traces = [
        _trace(draw, step, outcome, pairs, hostile, tokens)
        for step in range(1, steps + 1, 10)
        for outcome in ("success", "failure")
    ]
    _lines(folder / "traces.jsonl", traces)


def _trace(draw: random.Random, step: int, outcome: str, pairs: list, hostile: bool, tokens: int) -> dict:
    pieces = [f" word{n}" for n in range(tokens - 3)] + ["\n", "", "<|im_end|>"]
    if hostile:
        pieces[1] = HOSTILE
    return {
        "step": step,
        "problem_id": "p1",
        "problem": HOSTILE if hostile else "What is 1 + 1?",
        "answer": HOSTILE if hostile else "2",
        "outcome": outcome,
        "tokens": pieces,
        "counted": [1] * (tokens - 1) + [0],
        "student_logps": [round(draw.uniform(-3, 0), 3) for _ in pieces],
        "teachers": [
            {
                "skill": skill.id,
                "mistake": mistake.id,
                "weight": 0.25,
                "support": 0.2 if n == 0 else -0.2,
                "stance": 1 if n == 0 else -1,
                "polarity": (1 if n == 0 else -1) * (1 if outcome == "success" else -1),
                # The first teacher supports every token, the others suppress them.
                "gaps": [round(draw.uniform(0.05, 2) * (1 if n == 0 else -1), 3) for _ in pieces],
            }
            for n, (skill, mistake) in enumerate(pairs)
        ],
    }


def _json(file: Path, document: dict) -> None:
    file.write_text(json.dumps(document, indent=2), encoding="utf-8")


def _lines(file: Path, documents: list[dict]) -> None:
    file.write_text(
        "".join(json.dumps(document, ensure_ascii=False) + "\n" for document in documents), encoding="utf-8"
    )
