"""The skill bank: items, files, checks and the ledger. Submodules extract, merge and maintain items."""

from __future__ import annotations

from sgsd.bank.checks import Finding, FindingKind
from sgsd.bank.items import Item, Mistake, Origin, Skill
from sgsd.bank.ledger import ItemRecord, Ledger
from sgsd.bank.skills import BankDiff, SkillBank, seed_banks

__all__ = [
    "BankDiff",
    "Finding",
    "FindingKind",
    "Item",
    "ItemRecord",
    "Ledger",
    "Mistake",
    "Origin",
    "Skill",
    "SkillBank",
    "seed_banks",
]
