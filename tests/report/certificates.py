"""Certificates of a few numbers, as ``sgsd internalize`` writes them: no model is trained."""

from __future__ import annotations

from typing import Any

MATERIALS = ("clay", "copper", "cotton", "glass", "leather", "paper", "rubber", "steel", "tin", "wax", "wood", "wool")
VERDICTS = {"earned": (0.8, 0.62, 0.98), "idle": (0.05, -0.2, 0.3), "harmful": (-0.5, -0.8, -0.2), "unused": None}


def make_certificate(
    *,
    before: float = 0.21,
    with_document: float | None = 0.9,
    after: float = 0.88,
    grpo: float | None = 0.33,
    forgotten: float | None = 0.01,
    text: str = "",
) -> dict[str, Any]:
    """Of house rules and 72 held-out tasks, whose differences are known to 8 points.

    Args:
        before, with_document, after, grpo: accuracies; ``None`` was not measured.
        forgotten: share of the retention set that is lost; ``None`` was not measured.
        text: stands in every text that a user or a model writes.
    """
    states = {"before": before, "with_document": with_document, "after": after, "grpo": grpo}
    gain = None if with_document is None else with_document - before
    return {
        "version": 1,
        "sgsd": "0.1.0",
        "model": f"local:smollm2-135m-instruct{text}",
        "document": {"name": f"house-rules{text}", "description": f"Which shelf a thing belongs on.{text}"}
        | {"file": f"SKILL.md{text}", "digest": "ab" * 32, "rules": 12, "tokens": 431},
        "method": "correction, guided",
        "teachers": "rules",
        "tasks": {"train": 72, "held_out": 72, "file": f"problems.jsonl{text}"},
        "accuracy": {name: None if value is None else _accuracy(value) for name, value in states.items()},
        "differences": {
            f"{one} - {other}": _difference(states[one], states[other])
            for one, other in (
                *(("after", "before"), ("after", "with_document"), ("with_document", "before")),
                *(("after", "grpo"), ("grpo", "before")),
            )
        },
        "kept": None if gain is None or gain < 0.08 else _kept((after - before) / gain),
        "tokens": {"plain": 31.0, "with_document": 462.0, "saved": 431.0, "training": 1234567, "requests_to_pay": 2865},
        "recited": {"before": 0.0, "with_document": 0.1, "after": 0.4},
        "retention": None
        if forgotten is None
        else {"name": f"arithmetic{text}", "problems": 100, "before": _accuracy(0.4)}
        | {"after": _accuracy(0.4 - forgotten), "difference": _difference(0.4 - forgotten, 0.4)},
        "rules": [_rule(n, material, text) for n, material in enumerate(MATERIALS)],
        "answers": [_answer(n, material, grpo is not None, text) for n, material in enumerate(MATERIALS[:10])],
        "doctor": {"verdict": "go", "sentences": [f"The document helps in the prompt.{text}"], "success_rate": 0.21},
        "training": {"steps": 50, "rollouts": 800, "seed": 0}
        | {"settings": {"learning_rate": 1e-4, "teacher_guidance": 2.0, "note": text or None}},
        "seconds": {"doctor": 80.0, "training": 550.0, "evaluations": 95.5, "grpo": None, "total": 3905.2},
    }


def _accuracy(share: float) -> dict[str, Any]:
    return {"accuracy": share, "ci95": [max(share - 0.09, 0), min(share + 0.07, 1)]}


def _difference(one: float | None, other: float | None) -> dict[str, Any] | None:
    if one is None or other is None:
        return None
    return {"mean": one - other, "ci95": [one - other - 0.08, one - other + 0.08]}


def _kept(share: float) -> dict[str, Any]:
    return {"share": share, "ci95": [share - 0.07, share + 0.06]}


def _rule(n: int, material: str, text: str) -> dict[str, Any]:
    verdict = list(VERDICTS)[n % 4]
    worth = VERDICTS[verdict]
    return {
        "id": f"s-{n}",
        "kind": ("skill", "mistake")[n % 2],
        "title": f"Shelves{text}" if n % 3 == 0 else "",
        "text": f"Everything made of {material} belongs on shelf {n % 3 + 1}.{text}",
        "source": f"SKILL.md:{n + 5}{text}",
        "worth": worth and worth[0],
        "ci95": worth and worth[1:],
        "uses": 40 if worth else 0,
        "verdict": verdict,
    }


def _answer(n: int, material: str, grpo: bool, text: str) -> dict[str, Any]:
    right = {"text": f"House rules: everything made of {material} belongs on shelf {n % 3 + 1}.{text}", "correct": True}
    wrong = {"text": f"The shelf for a {material} thing is number {n + 7}.{text}", "correct": None if n == 3 else False}
    return {
        "problem": f"What is the number of the shelf for a {material} thing?{text}",
        "answer": f"{n % 3 + 1}{text}",
        "before": wrong,
        "with_document": right,
        "after": wrong if n == 5 else right,
        "grpo": wrong if grpo else None,
    }
