"""GRPO's advantage, scaled token by token by the teachers: the verifier-signed path of RLSD (arXiv 2604.03128) and
RLCSD (arXiv 2606.11709).

The verifier decides the sign of the update, through the rollout's advantage A_b within its group. The teachers decide
its size at each token: a token that they find likelier than the student does gets a larger update where the advantage
is positive, and a smaller one where it is negative.

    log p̄_T(y_t) = log Σ_k w_k p_{T,k}(y_t) / Σ_k w_k,  λ = Σ_k w_k = max_k τ_k,  w by (8)             (9)
    e_t = log p̄_T(y_t) − log p_S(y_t)       RLSD,  or  log p̄_T(y_t) − log p_{T,0}(y_t)       RLCSD     (10)
    m_t = 1 − λ + λ clip(exp(sign(A_b) e_t), 1 − ε, 1 + ε)                                              (11)
    L_b = −mean_t A_b m_t ρ_t,  ρ_t = p_S(y_t) / sg p_S(y_t)                                            (12)

sg is the stop-gradient; e_t and m_t carry no gradient either. Since ρ_t = 1, the gradient is GRPO's times m_t at each
token. m_t is in [1 − ε, 1 + ε], so A_b m_t always has A_b's sign.

(11) is RLSD's, with trust in place of its schedule for λ: without trust, the loss is plain GRPO. RLCSD compares
teachers with wrong solutions under the same prompt; here they are compared with the control teacher, whose skill and
mistake are of other problems, so that the effect of any skill prompt on style cancels. RLCSD adds a squashed e_t to the
advantage; here the advantage is multiplied. There is no importance sampling for several updates on the same rollouts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sgsd.objectives.base import Metrics, Needs, Rollouts, Settings, StudentScores, TeacherScores, required, total
from sgsd.objectives.correction import trusted_weights


@dataclass(frozen=True)
class Reweight:
    """Objective ``reweight``: equations (9) to (12).

    Attributes:
        contrast: e_t compares teachers with the control teacher, as in RLCSD; otherwise with the student, as in RLSD.
        bound: ε, between 0 and 1; 0.2 in RLSD.
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
        return Needs(control=self.contrast, groups=True, by_trust=True, unscored=True)

    def loss(self, student: StudentScores, teachers: TeacherScores, rollouts: Rollouts) -> tuple[Tensor, Metrics]:
        teachers, mask = teachers.read(), rollouts.mask
        dtype = torch.promote_types(student.logps.dtype, torch.float32)
        logps = torch.where(mask, student.logps.to(dtype), 0.0)
        advantages = required(rollouts.advantages, "GRPO's advantages", self.name).to(dtype)
        advantages = torch.where(rollouts.outcome != 0, advantages, 0.0).unsqueeze(1)

        weights = trusted_weights(teachers.weights.to(dtype), teachers.trust.to(dtype))
        strength = weights.sum(1, keepdim=True)  # λ, [B, 1]
        read = mask & (strength > 0)
        shares = weights.unsqueeze(-1)
        weighted = torch.where(shares > 0, teachers.logps.to(dtype) + shares.log(), -torch.inf)
        mixture = weighted.logsumexp(1) - strength.log()  # (9)
        reference = logps.detach()
        if self.contrast:
            reference = required(teachers.control_logps, "a control teacher", self.name)
        gap = torch.where(read, mixture - reference, 0.0)  # (10)
        evidence = (advantages.sign() * gap).exp()
        scale = 1 - strength + strength * evidence.clamp(1 - self.bound, 1 + self.bound)  # (11)
        tokens = advantages * scale * (logps - logps.detach()).exp()
        rows = -torch.where(mask, tokens, 0.0).sum(1) / mask.sum(1).clamp(min=1)  # (12)

        updated = read & (advantages != 0)
        return rows, {
            "trust": total(strength, teachers.scored.any(1, keepdim=True)),
            "reweight/gap": total(gap, updated),
            "reweight/scale": total(scale, updated),
            "reweight/clipped_share": total((evidence - 1).abs() > self.bound, updated),
        }
