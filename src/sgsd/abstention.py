"""Early abstention: stop scoring a teacher once its support can hardly leave the dead zone any more.

Support and stance are those of ``objectives.sgsd``, equations (2) and (3): a mean S of clipped gaps over the counted
tokens of a rollout, and no stance where |S| ≤ θ. Most retrieved pairs take none, and that shows early.

One teacher of each rollout, the scout, is scored in full. The others are looked at after n, 2n, 4n, … tokens of the
completion. Teachers of one rollout move together, so a teacher's support is predicted from its own gaps x_t so far and
from the scout's z_t, which are known to the end:

    S^ = x̄ + b (Z − z̄),   b = (Σ (z − z̄)(x − x̄) + λ) / (Σ (z − z̄)² + λ)                             (A1)
    e² = s² (((T − m)/T)² (1/m + r/(T − m)) + (Z − z̄)² / (Σ (z − z̄)² + λ))                           (A2)

with sums and means x̄, z̄ over the m counted tokens seen, Z the scout's mean over all T, s² the residual variance, and
r ≥ 1 how much more the scout's gaps vary in the part not seen yet. It is the regression estimator of sampling without
replacement; the prior weights λ of slope 1 and s₀² of the residual variance keep a silent beginning from being taken
for certainty. A teacher is stopped at a look if

    |S^| + q e ≤ θ,   q the (1 − ε/J) quantile of Student's t, J the looks at this completion          (A3)

**The bound.** A teacher with S > θ (or S < −θ) is stopped at a look only if S lies above (below) a one-sided bound of
level 1 − ε/J. So of the teachers that would take a stance at most a share ε is stopped, over all looks, if the order
of a rollout's tokens is exchangeable and the residuals' means are near normal; of all teachers, at most ε times the
share that takes a stance. ``benchmarks/abstention.py`` shows how far gaps that are neither hold to it: a few large
gaps of one sign that come late, or very rarely, break it. Without any assumption, |Σ x| + c (T − m) ≤ θ T settles a
teacher, too; with ε = 0 nothing else does.

Whether a teacher is stopped depends on its rollout, its own gaps and the scout's, never on its neighbours in a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn

from sgsd.forwards import forward_logps, forward_prompts, padded
from sgsd.scoring import Scores, chunk_rows

_SLOPE_WEIGHT = 1.0  # λ, in squared nats: slope 1 counts as much as scout's gaps of this sum of squares
_PRIOR_TOKENS, _PRIOR_VARIANCE = 8, 0.01  # s₀², in squared nats, counts as much as this many tokens
_FEWEST_TOKENS = 8  # counted tokens before an estimate decides
_INSIDE = 0.99  # of the dead zone: a stopped teacher's support stays in it, however it is rounded


@dataclass(frozen=True, slots=True)
class AbstentionRule:
    """When a teacher is stopped (see the module).

    Attributes:
        threshold: θ, dead zone of the support, in nats per token.
        clip: c, in nats.
        error: ε, the largest share of teachers with a stance that may be stopped; 0 leaves the bound that always holds.
        first_look: completion tokens before the first look; each later one comes at twice as many.
    """

    threshold: float = 0.05
    clip: float = 3.0
    error: float = 0.1
    first_look: int = 32

    def looks(self, length: int) -> list[int]:
        """After how many tokens a completion of ``length`` tokens is looked at; never after its last."""
        looks: list[int] = []
        while (at := self.first_look << len(looks)) < length:
            looks.append(at)
        return looks

    def look(
        self, gaps: Tensor, scout_gaps: Tensor, counted: Tensor, lengths: Tensor, seen: int
    ) -> tuple[Tensor, Tensor]:
        """Which teachers are stopped at a look, and their supports by what was seen.

        Args:
            gaps: ``[N, T]``, in nats; what stands from ``seen`` on is never read.
            scout_gaps: ``[N, T]``, the gaps of each rollout's scout.
            counted: ``[N, T]``, bool, the tokens of the support.
            lengths: ``[N]``, tokens of each completion, which its looks go by.
            seen: completion tokens scored so far.

        Returns:
            ``[N]``, bool, False where nothing counts and where the completion has ended; ``[N]``, the estimates
            (A1), held inside the dead zone.
        """
        now = counted & (torch.arange(counted.shape[1], device=counted.device) < seen)
        m, total = now.sum(1), counted.sum(1)
        x = torch.where(now, _upcast(gaps), 0.0).clamp(-self.clip, self.clip)
        z = torch.where(counted, _upcast(scout_gaps), 0.0).clamp(-self.clip, self.clip)
        certain = x.sum(1).abs() + self.clip * (total - m) <= self.threshold * total
        goes_on = (total > 0) & (lengths > seen)
        estimate, deviation, degrees = predicted_support(x, z, now, counted)
        inside = estimate.clamp(-_INSIDE * self.threshold, _INSIDE * self.threshold)
        if not self.error:
            return certain & goes_on, inside
        level = self.error / np.array([max(1, len(self.looks(int(length)))) for length in lengths.tolist()])
        quantile = torch.as_tensor(stats.t.isf(level, degrees.cpu().numpy()), dtype=x.dtype, device=x.device)
        likely = (m >= _FEWEST_TOKENS) & (estimate.abs() + quantile * deviation <= self.threshold)
        return (certain | likely) & goes_on, inside


def predicted_support(x: Tensor, z: Tensor, now: Tensor, counted: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A teacher's support, and how sure that is, equations (A1) and (A2).

    Args:
        x: ``[N, T]``, clipped gaps of the teacher, 0 where ``now`` is False.
        z: ``[N, T]``, clipped gaps of the scout, 0 where ``counted`` is False.
        now: ``[N, T]``, bool, counted tokens that have been scored.
        counted: ``[N, T]``, bool, all counted tokens.

    Returns:
        Estimate, its deviation and the degrees of freedom, each ``[N]``; without meaning where fewer than two tokens
        have been scored.
    """
    m, total = now.sum(1).to(x.dtype), counted.sum(1).to(x.dtype)
    rest = total - m
    m, total = m.clamp(min=1), total.clamp(min=1)
    x_mean, z_mean, z_total = x.sum(1) / m, (z * now).sum(1) / m, z.sum(1) / total
    dx = torch.where(now, x - x_mean.unsqueeze(1), 0.0)
    dz = torch.where(now, z - z_mean.unsqueeze(1), 0.0)
    spread = dz.square().sum(1)
    slope = ((dx * dz).sum(1) + _SLOPE_WEIGHT) / (spread + _SLOPE_WEIGHT)
    residual = (dx - slope.unsqueeze(1) * dz).square().sum(1) + _SLOPE_WEIGHT * (slope - 1).square()
    degrees = (m - 2).clamp(min=0) + _PRIOR_TOKENS
    variance = (residual + _PRIOR_TOKENS * _PRIOR_VARIANCE) / degrees
    later = torch.where(counted & ~now, z - z_total.unsqueeze(1), 0.0).square().sum(1) / rest.clamp(min=1)
    unevenness = ((later + _PRIOR_VARIANCE) / (spread / m + _PRIOR_VARIANCE)).clamp(min=1)
    sampling = rest / total.square() * (rest / m + unevenness)
    leverage = (z_total - z_mean).square() / (spread + _SLOPE_WEIGHT)
    return x_mean + slope * (z_total - z_mean), (variance * (sampling + leverage)).sqrt(), degrees


@dataclass(frozen=True)
class AbstainedScores(Scores):
    """Scores of N completions as far as they were scored: ``mask`` is True there, and nowhere else.

    Attributes:
        stopped: ``[N]``, bool, the teachers that were stopped: they are to take no stance.
        estimate: ``[N]``, float32, their supports (A1), in nats per token; 0 for the others.
    """

    stopped: Tensor
    estimate: Tensor


@torch.no_grad()
def score_until_settled(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    student_logps: Tensor,
    scout_logps: Tensor,
    counted: Tensor,
    rule: AbstentionRule,
    *,
    width: int,
    temperature: float = 1.0,
    max_tokens_per_chunk: int = 8192,
    with_entropy: bool = False,
    min_chunks: int = 1,
) -> AbstainedScores:
    """``scoring.score_completions`` in segments between the rule's looks; rows that are settled leave their chunk.

    A chunk makes one forward of its prompts and one a segment, which continues the cache of the rows still running.
    How many these are follows from ``width`` and the number of chunks alone: where all rows have ended, one goes on
    with tokens that nobody reads, so all ranks of a sharded model make the same forwards.

    Args:
        model, prompts, completions, temperature, max_tokens_per_chunk, with_entropy, min_chunks: see
            ``scoring.score_completions``; the model keeps a key-value cache.
        student_logps, scout_logps: ``[N, T]``, the same completions under the student and under each one's scout.
        counted: ``[N, T]``, bool, the tokens of the support.
        rule: who is stopped, and when.
        width: the longest completion of all ranks.

    Raises:
        ValueError: if counts do not fit, or a completion is longer than ``width``.
    """
    N, T = student_logps.shape
    if not len(prompts) == len(completions) == N or max(map(len, completions)) > width:
        raise ValueError(
            f"one prompt and completion a row, of at most {width} tokens: got {N} rows of logps, {len(prompts)} "
            f"prompts, {len(completions)} completions, the longest {max(map(len, completions), default=0)}"
        )
    device = student_logps.device
    ends = [*rule.looks(width), width]
    # Filler for the row that goes on where all have ended.
    ids, within = padded([*completions, [0] * (T + len(ends) + 1)], "right", device)
    lengths = torch.tensor([len(completion) for completion in completions], device=device)
    logps, entropy, mask = (torch.zeros(ids.shape, device=device, dtype=dtype) for dtype in (None, None, torch.bool))
    stopped, estimate = torch.zeros(N, dtype=torch.bool, device=device), torch.zeros(N, device=device)

    def note(rows: Tensor, start: int, columns: Tensor) -> None:
        """``[n, t, C]`` of the tokens from ``start`` on."""
        part = slice(start, start + columns.shape[1])
        logps[rows, part] = columns[..., 0].float()
        mask[rows, part] = within[rows, part].bool()
        if with_entropy:
            entropy[rows, part] = columns[..., 1].float()

    targets = ids.unsqueeze(-1)
    asked = {"temperatures": [temperature], "with_entropy": with_entropy}
    forward = partial(forward_logps, model, asked=asked)
    for chunk in chunk_rows(prompts, completions, max_tokens_per_chunk, min_chunks):
        rows = torch.tensor(chunk, device=device)
        live = torch.ones_like(rows, dtype=torch.bool)
        first, cache, attended = forward_prompts(
            forward, [prompts[n] for n in chunk], targets[rows, :1], within[rows, :1]
        )
        position = attended.sum(1, keepdim=True)
        note(rows, 0, first)
        scored = 1
        for end in ends:
            # The inputs end one token before those they predict.
            longest = int(lengths[rows[live]].max()) if live.any() else 0
            inputs = slice(scored - 1, max(scored, min(end, longest) - 1))
            predicted = slice(inputs.start + 1, inputs.stop + 1)
            attended = torch.cat([attended, within[rows, inputs]], dim=1)
            columns, _ = forward(
                targets[rows, predicted],
                within[rows, predicted],
                lambda kept: kept,
                input_ids=ids[rows, inputs],
                attention_mask=attended,
                position_ids=position + torch.arange(inputs.start, inputs.stop, device=device),
                past_key_values=cache,
                logits_to_keep=inputs.stop - inputs.start,
                use_cache=True,
            )
            note(rows[live], scored, columns[live])
            scored = predicted.stop
            if end == ends[-1]:
                break
            gaps, scout_gaps = (other[rows, :T] - student_logps[rows] for other in (logps, scout_logps))
            settled, supports = rule.look(gaps, scout_gaps, counted[rows], lengths[rows], scored)
            settled &= live
            stopped[rows[settled]], estimate[rows[settled]] = True, supports[settled].float()
            live &= ~settled & (lengths[rows] > scored)
            kept = live.nonzero().squeeze(1) if live.any() else torch.zeros(1, dtype=torch.long, device=device)
            if len(kept) < len(rows):
                cache.batch_select_indices(kept)
                rows, live, attended, position = rows[kept], live[kept], attended[kept], position[kept]
    return AbstainedScores(
        logps=logps[:N, :T].masked_fill(~mask[:N, :T], 0.0),
        mask=mask[:N, :T],
        entropy=entropy[:N, :T].masked_fill(~mask[:N, :T], 0.0) if with_entropy else None,
        top_ids=ids.new_zeros(N, T, 0),
        top_logps=logps.new_zeros(N, T, 0),
        other_logps=logps.new_zeros(N, T, 0),
        stopped=stopped,
        estimate=estimate,
    )


def _upcast(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
