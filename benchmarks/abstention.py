"""How much early abstention saves, and what it misses: on simulated gaps, and on the traces of a run.

    python benchmarks/abstention.py [--rollouts 400] [--seed 0]
    python benchmarks/abstention.py --traces runs/x/traces.jsonl

A rollout has 8 teachers, one of them the scout. Shares are of all teachers' completion tokens and rows, the scout's
included. With the defaults agreement is good to ± 0.3 points at 64 tokens and ± 0.9 at 1024, the share of stances lost
to ± 2 and ± 5. Tables are in Markdown.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats

from sgsd.abstention import AbstentionRule

Array = NDArray[np.float64]
Decide = Callable[[Array, Array, int, float], NDArray[np.bool_]]
"""Clipped gaps ``[N, T]``, the scout's, tokens seen, error of this look → which teachers are stopped."""

CLIP, THETA, K = 3.0, 0.05, 8


# ---- rules


def scout(gaps: Array, scouts: Array, seen: int, error: float) -> NDArray[np.bool_]:
    """The package's rule."""
    N, T = gaps.shape
    looks = len(AbstentionRule().looks(T))
    rule = AbstentionRule(THETA, CLIP, error * looks)
    counted, lengths = torch.ones(N, T, dtype=torch.bool), torch.full((N,), T)
    return rule.look(torch.tensor(gaps), torch.tensor(scouts), counted, lengths, seen)[0].numpy()


def deterministic(gaps: Array, scouts: Array, seen: int, error: float) -> NDArray[np.bool_]:
    """No assumption at all: whatever comes, the support stays in the dead zone."""
    T = gaps.shape[1]
    return np.abs(gaps[:, :seen].sum(1)) + CLIP * (T - seen) <= THETA * T


def hoeffding(gaps: Array, scouts: Array, seen: int, error: float) -> NDArray[np.bool_]:
    """Hoeffding's inequality without replacement (Serfling 1974)."""
    T = gaps.shape[1]
    width = CLIP * math.sqrt(2 * (1 - (seen - 1) / T) * math.log(1 / error) / seen)
    return np.abs(gaps[:, :seen].mean(1)) + width <= THETA


def bernstein(gaps: Array, scouts: Array, seen: int, error: float) -> NDArray[np.bool_]:
    """Empirical Bernstein inequality without replacement (Bardenet and Maillard 2015, theorem 4.3)."""
    T, now = gaps.shape[1], gaps[:, :seen]
    rho = 1 - (seen - 1) / T if seen <= T / 2 else (1 - seen / T) * (1 + 1 / seen)
    log = math.log(5 / error)
    width = now.std(1) * math.sqrt(2 * rho * log / seen) + (7 / 3 + 3 / math.sqrt(2)) * 2 * CLIP * log / seen
    return np.abs(now.mean(1)) + width <= THETA


def own_variance(gaps: Array, scouts: Array, seen: int, error: float) -> NDArray[np.bool_]:
    """Student's t of the teacher's own gaps, finite population, no scout."""
    T, now = gaps.shape[1], gaps[:, :seen]
    deviation = now.std(1, ddof=1) * math.sqrt(1 / seen - 1 / T)
    return np.abs(now.mean(1)) + stats.t.isf(error, seen - 1) * deviation <= THETA


RULES: dict[str, Decide] = {
    "deterministic": deterministic,
    "Hoeffding": hoeffding,
    "empirical Bernstein": bernstein,
    "t, own variance": own_variance,
    "scout (ours)": scout,
}


# ---- gaps


def noise(rng: np.random.Generator, *shape: int, correlation: float = 0.2) -> Array:
    """Heavy-tailed (Student's t, 3 degrees of freedom), autocorrelated, of variance 1."""
    steps = rng.standard_t(3, shape) / math.sqrt(3)
    for t in range(1, shape[-1]):
        steps[..., t] = correlation * steps[..., t - 1] + math.sqrt(1 - correlation**2) * steps[..., t]
    return steps


def simulated(
    rng: np.random.Generator, rollouts: int, T: int, *, deviation: float, common: float, active: float = 0.2
) -> Array:
    """``[rollouts, K, T]`` clipped gaps whose supports are drawn: most lie in the dead zone, the others beyond it.

    Most tokens are sure and have small gaps, some are not; all teachers have theirs at the same tokens, and share a
    part of them.

    Args:
        rng: draws.
        rollouts: how many.
        T: tokens of each.
        deviation: of the gaps of a teacher, in nats.
        common: share of their variance that all teachers of a rollout have in common.
        active: probability that a teacher takes a stance.
    """
    scale = 0.1 + np.minimum(1.5, np.exp(1.8 * noise(rng, rollouts, 1, T, correlation=0.4) - 1.5))
    own, shared = noise(rng, rollouts, K, T), noise(rng, rollouts, 1, T)
    gaps = deviation * scale / np.sqrt((scale**2).mean()) * (math.sqrt(common) * shared + math.sqrt(1 - common) * own)
    inside = rng.normal(0, 0.02, (rollouts, K)).clip(-THETA, THETA)
    beyond = rng.choice([-1, 1], (rollouts, K)) * (THETA + rng.exponential(0.05, (rollouts, K)))
    support = np.where(rng.random((rollouts, K)) < active, beyond, inside)
    for _ in range(5):  # the clip moves the mean a little
        gaps += (support - gaps.clip(-CLIP, CLIP).mean(-1))[..., None] * scale / scale.mean(-1, keepdims=True)
    return gaps.clip(-CLIP, CLIP)


def barely_active(rng: np.random.Generator, kind: str, rollouts: int, T: int) -> Array:
    """``[rollouts, 2, T]``: a scout, and a teacher whose support is just beyond the dead zone.

    All orders of the tokens are equally likely, so the bound's first assumption holds; the second one is on trial.
    """
    shape = (rollouts, 2, T)
    if kind.startswith("normal"):
        gaps = float(kind.split()[1]) * rng.standard_normal(shape)
    elif kind.startswith("t3"):
        gaps = float(kind.split()[1]) * rng.standard_t(3, shape) / math.sqrt(3)
    elif kind == "four of five are 0":
        gaps = 0.35 * rng.standard_normal(shape) * (rng.random(shape) < 0.2)
    else:
        rare, size = {"one in ten is 0.5": (0.1, 0.5), "one in twenty is 1": (0.05, 1.0)}[kind]
        gaps = np.zeros(shape)
        gaps[..., : max(1, round(rare * T))] = size
        gaps *= 1.01 * THETA / gaps.mean(-1, keepdims=True)
        return rng.permuted(gaps, axis=-1)
    gaps = gaps.clip(-CLIP, CLIP)
    return gaps + 1.01 * THETA - gaps.mean(-1, keepdims=True)


def late(rng: np.random.Generator, rollouts: int, T: int) -> Array:
    """``[rollouts, K, T]``: near silence, and the last twentieth of the tokens decides, in most teachers alike."""
    answer = np.arange(T) >= T - max(1, T // 20)
    height = np.where(rng.random((rollouts, K, 1)) < 0.2, rng.normal(1.5, 0.3, (rollouts, K, 1)), 0.2)
    return (0.05 * noise(rng, rollouts, K, T) + answer * height).clip(-CLIP, CLIP)


def traced(file: Path) -> list[tuple[Array, int]]:
    """Counted clipped gaps ``[K, T]`` of each rollout that a run kept token by token, and its completion's length."""
    rollouts: list[tuple[Array, int]] = []
    for line in file.read_text(encoding="utf-8").splitlines():
        trace = json.loads(line)
        counted = np.array(trace["counted"], dtype=bool)
        gaps = np.array([teacher["gaps"] for teacher in trace["teachers"]])[:, counted]
        if gaps.shape[1] and len(gaps) > 1:
            rollouts.append((gaps.clip(-CLIP, CLIP), len(counted)))
    return rollouts


# ---- what a rule does


def stopped_at(decide: Decide, gaps: Array, scouts: Array, error: float, first: int = 32) -> NDArray[np.int64]:
    """Tokens scored of each row of ``[N, T]``; T where it was not stopped. ``error`` is spent over all looks."""
    N, T = gaps.shape
    looks = AbstentionRule(first_look=first).looks(T)
    stopped = np.full(N, T)
    for seen in looks:
        running = stopped == T
        stopped[running & decide(gaps, scouts, seen, error / len(looks))] = seen
    return stopped


def tally(decide: Decide, rollouts: Sequence[Array], error: float) -> tuple[float, float, float, float]:
    """Shares of tokens saved, of rows whose stance agrees, of stances lost; rows with a stance; scouts included."""
    saved = tokens = agree = rows = lost = active = 0
    for gaps in rollouts:
        others = gaps[1:]
        stopped = stopped_at(decide, others, np.broadcast_to(gaps[:1], others.shape), error)
        stance = np.abs(gaps.mean(1)) > THETA
        wrong = int((stance[1:] & (stopped < others.shape[1])).sum())
        saved += int((others.shape[1] - stopped).sum())
        tokens += gaps.size
        agree += len(gaps) - wrong
        rows += len(gaps)
        lost += wrong
        active += int(stance[1:].sum())
    return saved / tokens, agree / rows, lost / max(active, 1), active / rows


def percent(*shares: float) -> list[str]:
    return [f"{100 * share:.1f}" for share in shares]


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print one Markdown table."""
    print(f"\n### {title}\n\n| {' | '.join(header)} |\n|{'---|' * len(header)}")
    for row in rows:
        print(f"| {' | '.join(row)} |")


COLUMNS = ["tokens saved", "stances agree", "bound on stances lost", "stances lost"]


def simulations(rollouts: int, seed: int) -> None:
    """Print what the rules do on simulated gaps."""
    rng = np.random.default_rng(seed)
    gaps = {
        (deviation, common, T): list(simulated(rng, max(rollouts * 64 // T, 50), T, deviation=deviation, common=common))
        for deviation, common in ((0.15, 0.8), (0.3, 0.8), (0.15, 0.5))
        for T in (64, 128, 256, 512, 1024)
    }
    rows = [
        [name, str(T), *percent(saved, agree, error, lost)]
        for name, decide in RULES.items()
        for T in (64, 128, 256, 512, 1024)
        for error in (0.1,)
        for saved, agree, lost, _ in [tally(decide, gaps[0.15, 0.8, T], error)]
    ]
    table("Rules, in %: gaps of 0.15 nats, 80 % in common; 20 % of the teachers active", ["rule", "T", *COLUMNS], rows)
    rows = [
        [f"{deviation:g}", f"{100 * common:.0f}", str(T), *percent(saved, agree, error, lost)]
        for (deviation, common, T), cases in gaps.items()
        for error in (0.05, 0.1, 0.2)
        for saved, agree, lost, _ in [tally(scout, cases, error)]
    ]
    table("The package's rule, in %", ["deviation", "in common", "T", *COLUMNS], rows)
    kinds = (
        *("normal 0.1", "normal 0.15", "normal 0.3", "t3 0.15", "four of five are 0"),
        *("one in ten is 0.5", "one in twenty is 1"),
    )
    rows = []
    for kind in kinds:
        for T in (128, 512):
            worst = barely_active(rng, kind, 10 * rollouts, T)
            shares = [
                float((stopped_at(decide, worst[:, 1], worst[:, 0], 0.1) < T).mean())
                for decide in (own_variance, scout)
            ]
            rows.append([kind, str(T), *percent(0.1, *shares)])
    header = ["gaps, in random order", "T", "bound", "t, own variance", "scout (ours)"]
    table("Teachers whose support is 1 % beyond the dead zone: stances lost, in %", header, rows)
    rows = [
        [name, str(T), *percent(saved, agree, 0.1, lost)]
        for T in (128, 512)
        for cases in [list(late(rng, rollouts // 2, T))]
        for name, decide in list(RULES.items())[-2:]
        for saved, agree, lost, _ in [tally(decide, cases, 0.1)]
    ]
    table("Where order matters: the last twentieth of the tokens decides, in %", ["rule", "T", *COLUMNS], rows)


def of_run(file: Path) -> None:
    """Print what the rules would have done on a run's traced rollouts."""
    rollouts = traced(file)
    lengths = [length for _, length in rollouts]
    rows = []
    active = 0.0
    for name, decide in RULES.items():
        for error in (0.05, 0.1, 0.2):
            saved, agree, lost, active = tally(decide, [gaps for gaps, _ in rollouts], error)
            rows.append([name, *percent(saved, agree, error, lost)])
    deviation = np.mean([gaps.std(1).mean() for gaps, _ in rollouts])
    common = np.mean([np.corrcoef(gaps)[np.triu_indices(len(gaps), 1)].mean() for gaps, _ in rollouts])
    title = (
        f"{len(rollouts)} rollouts of {min(lengths)} to {max(lengths)} tokens (mean {np.mean(lengths):.0f}), "
        f"{100 * active:.0f} % of the teachers active, gaps of {deviation:.2f} nats, correlation {common:.2f}; in %"
    )
    table(title, ["rule", *COLUMNS], rows)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rollouts", type=int, default=400, help="of 64 tokens; fewer where they are longer")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--traces", type=Path, help="traces.jsonl of a run, in place of simulations")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.traces is None:
        simulations(options.rollouts, options.seed)
    else:
        of_run(options.traces)


if __name__ == "__main__":
    main()
