"""GRPO's advantage, its size per token by the teachers: the verifier-signed path of RLSD (arXiv 2604.03128) and RLCSD
(arXiv 2606.11709).

Whether a rollout is pulled up or pushed down is the verifier's say: the sign of its advantage A_b among the rollouts of
its prompt. Which of its tokens matter is the teachers': a token that they find likelier than the student does is
credited more in a success and blamed less in a failure.

    log p̄_T(y_t) = log Σ_k w_k p_{T,k}(y_t) / Σ_k w_k,  λ = Σ_k w_k = max_k τ_k,  w by (8)             (9)
    e_t = log p̄_T(y_t) − log p_S(y_t)       RLSD,  or  log p̄_T(y_t) − log p_{T,0}(y_t)       RLCSD     (10)
    m_t = 1 − λ + λ clip(exp(sign(A_b) e_t), 1 − ε, 1 + ε)                                              (11)
    L_b = −mean_t A_b m_t ρ_t,  ρ_t = p_S(y_t) / sg p_S(y_t)                                            (12)

sg is a constant of that value, and so are e_t and m_t: on the rollouts of the policy itself ρ_t = 1, and the gradient
is GRPO's with m_t at each token. m_t is in [1 − ε, 1 + ε], so A_b m_t has A_b's sign, whatever the teachers say.

(11) is RLSD's, with trust in the place of its schedule for λ: nobody trusted, plain GRPO. RLCSD's contrast e_t is
against wrong solutions under the same prompt; here it is against the control teacher, whose skill and mistake are of
other problems: what any such prompt does to style cancels. RLCSD adds a squashed e_t to the advantage, where this
multiplies. Successive updates on the same rollouts are not corrected for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sgsd.objectives.base import Metrics, Needs, Rollouts, Settings, StudentScores, TeacherScores, given, total
from sgsd.objectives.correction import trusted_weights


@dataclass(frozen=True)
class Reweight:
    """Objective ``reweight``: equations (9) to (12).

    Attributes:
        contrast: e_t against the control teacher, as in RLCSD, and not against the student, as in RLSD.
        bound: ε, between 0 and 1; RLSD's is 0.2.
    """

    contrast: bool = False
    bound: float = 0.2
    name: ClassVar[str] = "reweight"

    def __post_init__(self) -> None:
        if not 0 < self.bound < 1:
            raise ValueError(f"bound must be between 0 and 1: got {self.bound}")

    @classmethod
    def from_config(cls, args: Settings) -> Reweight:
        return cls(contrast=args.support_baseline == "control")

    @property
    def needs(self) -> Needs:
        return Needs(control=self.contrast, groups=True, by_trust=True)

    def loss(self, student: StudentScores, teachers: TeacherScores, rollouts: Rollouts) -> tuple[Tensor, Metrics]:
        teachers, mask = teachers.read(), rollouts.mask
        dtype = torch.promote_types(student.logps.dtype, torch.float32)
        logps = torch.where(mask, student.logps.to(dtype), 0.0)
        advantages = given(rollouts.advantages, "GRPO's advantages", self.name).to(dtype)
        advantages = torch.where(rollouts.outcome != 0, advantages, 0.0).unsqueeze(1)

        weights = trusted_weights(teachers.weights.to(dtype), teachers.trust.to(dtype))
        strength = weights.sum(1, keepdim=True)  # λ, [B, 1]
        read = mask & (strength > 0)
        shares = weights.unsqueeze(-1)
        of_teachers = torch.where(shares > 0, teachers.logps.to(dtype) + shares.log(), -torch.inf)
        mixed = of_teachers.logsumexp(1) - strength.log()  # (9)
        against = given(teachers.control_logps, "a control teacher", self.name) if self.contrast else logps.detach()
        gap = torch.where(read, mixed - against, 0.0)  # (10)
        evidence = (advantages.sign() * gap).exp()
        scale = 1 - strength + strength * evidence.clamp(1 - self.bound, 1 + self.bound)  # (11)
        tokens = advantages * scale * (logps - logps.detach()).exp()
        rows = -torch.where(mask, tokens, 0.0).sum(1) / mask.sum(1).clamp(min=1)  # (12)

        moved = read & (advantages != 0)
        return rows, {
            "trust": total(strength, teachers.scored.any(1, keepdim=True)),
            "reweight/gap": total(gap, moved),
            "reweight/scale": total(scale, moved),
            "reweight/clipped_share": total((evidence - 1).abs() > self.bound, moved),
        }
