"""Run folders in the format that runs leave, made of a few numbers: no model is trained."""

from __future__ import annotations

import json
import random
from pathlib import Path

from sgsd.bank import Ledger, Mistake, Origin, Skill, SkillBank

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
    chosen = {"method": method, "seed": seed, "output_dir": str(folder), "learning_rate": 1e-4, "report_to": ["none"]}
    chosen |= {"model_name_or_path": "tiny", "skills_in_prompt": False, "max_steps": steps} | settings
    record = {"sgsd": "0.1.0", "python": "3.11.7", "versions": {"torch": "2.13.0"}, "bank_digest": "ab" * 32}
    _write(folder / "run.json", record | {"data": {"source": "sums.jsonl", "rows": 30, "kept": 28}, "settings": chosen})
    history = [_step(draw, method, step, step / steps, accuracy) for step in range(1, steps + 1)]
    for step in range(0, steps + 1, 10):
        value = 0.2 + (accuracy - 0.2) * step / steps
        bounds = {"eval_accuracy_low": value - 0.05, "eval_accuracy_high": value + 0.05}
        history.append({"step": step, "eval_accuracy": value, **bounds})
    _write(folder / "trainer_state.json", {"global_step": steps, "log_history": history})
    evaluation = folder / "evaluations" / "sums"
    outcomes = ["correct" if draw.random() < accuracy else "incorrect" for _ in range(PROBLEMS)]
    sample = {"sample": 0, "completion": "…", "tokens": 3, "stop_reason": "stop", "reason": None, "extracted": "1"}
    _write(
        evaluation / "samples.jsonl",
        *({"problem_id": f"p{n}", "outcome": outcome, **sample} for n, outcome in enumerate(outcomes)),
    )
    about = {"step": steps, "dataset": "sums.jsonl", "verifier": "exact", "temperature": 1.0, "max_new_tokens": 8}
    mean = outcomes.count("correct") / PROBLEMS
    _write(evaluation / "summary.json", {**about, "problems": PROBLEMS, "samples_per_problem": 1, "accuracy": mean})
    if method == "sgsd":
        _teachers(folder, draw, steps, hostile, tokens)
    return folder


def _step(draw: random.Random, method: str, step: int, progress: float, accuracy: float) -> dict:
    shares = {"positive": 0.2 + 0.3 * progress, "negative": 0.1, "neutral": 0.7 - 0.3 * progress}
    of_teachers = {f"sgsd/polarity/{name}_share": share for name, share in shares.items()}
    return {
        "step": step,
        "success_rate": min(1.0, max(0.0, accuracy * progress + draw.uniform(-0.05, 0.05))),
        "entropy": 1.5 - progress / 2,
        "grad_norm": draw.uniform(0.1, 0.2),
        "completions/mean_length": 40 + 10 * progress,
        **(of_teachers | {"sgsd/active_share": 1 - shares["neutral"]} if method == "sgsd" else {}),
    }


def _teachers(folder: Path, draw: random.Random, steps: int, hostile: bool, tokens: int) -> None:
    start = make_bank(hostile=hostile)
    new = Skill.new("Estimate first.", title="Estimates", origin=Origin.ONLINE)
    start.save(folder / "bank-start.json")
    start.without([start.mistakes[1].id]).with_items([new]).save(folder / "bank.json")
    pairs = [(skill.id, mistake.id) for skill, mistake in zip(start.skills, start.mistakes, strict=True)]
    ledger = Ledger()
    for _ in range(steps):
        outcome = draw.choice([1, -1])
        support = [draw.gauss(0.1 * outcome, 0.2) for _ in pairs]
        stance = [0 if abs(value) <= 0.05 else 1 if value > 0 else -1 for value in support]
        ledger = ledger.credited([pairs], support=[support], stance=[stance], outcome=[outcome], problems=[0])
    (folder / "ledger.json").write_text(ledger.to_json())
    pieces = [" word0", HOSTILE if hostile else " word1", *(f" word{n}" for n in range(2, tokens - 3))]
    pieces += ["\n", "", "<|im_end|>"]
    about = {"problem_id": "p1", "problem": HOSTILE if hostile else "What is 1 + 1?", "answer": "2", "tokens": pieces}
    traces = [
        {
            "step": step,
            "outcome": outcome,
            **about,
            "counted": [1] * (tokens - 1) + [0],
            "student_logps": [round(draw.uniform(-3, 0), 3) for _ in pieces],
            # The first teacher supports every token, the others suppress them.
            "teachers": [
                {
                    "skill": skill,
                    "mistake": mistake,
                    "weight": 0.25,
                    "support": 0.2 * sign,
                    "stance": sign,
                    "polarity": sign * (1 if outcome == "success" else -1),
                    "gaps": [round(draw.uniform(0.05, 2) * sign, 3) for _ in pieces],
                }
                for sign, (skill, mistake) in zip([1] + [-1] * (len(pairs) - 1), pairs, strict=True)
            ],
        }
        for step in range(1, steps + 1, 10)
        for outcome in ("success", "failure")
    ]
    _write(folder / "traces.jsonl", *traces)


def _write(file: Path, *documents: dict) -> None:
    """JSON lines; of one document a JSON file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in documents), encoding="utf-8")
