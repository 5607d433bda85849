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

from dataclasses import dataclass

import numpy as np
import torch
from scipy import stats
from torch import Tensor

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


def _upcast(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
