"""The language of the lab: symbols, rules, problems, solutions, skills, mistakes, and a tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sgsd.bank import Mistake, Origin, Skill
from sgsd.prompts import REFERENCE_BLOCK, SKILL_BLOCK

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SYMBOLS = ("@", "#", "$", "%", "&", "*", "+", "~", "^")
RULES: dict[str, Callable[[int, int], int]] = {
    "sum": lambda a, b: (a + b) % 10,
    "difference": lambda a, b: (a - b) % 10,
    "product": lambda a, b: (a * b) % 10,
    "twice": lambda a, b: (2 * a + b) % 10,
    "max": max,
    "min": min,
    "first": lambda a, b: a,
    "last": lambda a, b: b,
    "next": lambda a, b: (a + b + 1) % 10,
    "triple": lambda a, b: (a + 3 * b) % 10,
}
"""The rules by name: functions of two digits to a digit."""

RULE_NAMES = tuple(RULES)

# Five words each, so that all prompts with a pair have the same length.
SKILL_TEXTS = (
    "{symbol} stands for rule {rule}",
    "read {symbol} always as {rule}",
    "the sign {symbol} means {rule}",
    "compute {symbol} here by {rule}",
    "for {symbol} take rule {rule}",
    "use {symbol} exactly like {rule}",
    "{symbol} is one with {rule}",
    "treat every {symbol} as {rule}",
)
MISTAKE_TEXTS = (
    "{symbol} taken wrongly for {rule}",
    "reading {symbol} falsely as {rule}",
    "the slip {symbol} for {rule}",
    "confusing {symbol} here with {rule}",
    "never use {symbol} as {rule}",
    "{symbol} is not rule {rule}",
    "avoid to see {symbol} {rule}",
    "mistaking any {symbol} for {rule}",
)
ANSWER = "Answer:"
END = "<end>"
MAX_COMPLETION = 16  # a solution has 15 tokens

_TEMPLATE = (
    "{% for message in messages %}<user> {{ message['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)


@dataclass(frozen=True, slots=True)
class Question:
    """A problem such as ``3 @ 5 @ 2``: a symbol and three digits, computed from the left."""

    symbol: str
    digits: tuple[int, int, int]

    @property
    def text(self) -> str:
        """The text of the problem."""
        a, b, c = self.digits
        return f"{a} {self.symbol} {b} {self.symbol} {c}"

    def answer(self, rule: str) -> int:
        """The result under a rule."""
        a, b, c = self.digits
        return RULES[rule](RULES[rule](a, b), c)

    def solution(self, rule: str) -> str:
        """``sum 3 5 = 8 ; sum 8 2 = 0 ; Answer: 0``: the rule's name, then the work."""
        a, b, c = self.digits
        between = RULES[rule](a, b)
        result = self.answer(rule)
        return f"{rule} {a} {b} = {between} ; {rule} {between} {c} = {result} ; {ANSWER} {result}"


def skill(symbol: str, rule: str, wording: int = 0) -> Skill:
    """A skill that states a rule, in one of ``SKILL_TEXTS``."""
    return Skill.new(SKILL_TEXTS[wording].format(symbol=symbol, rule=rule), origin=Origin.SEED)


def mistake(symbol: str, rule: str, wording: int = 0) -> Mistake:
    """A mistake that warns of a rule, in one of ``MISTAKE_TEXTS``."""
    return Mistake.new(MISTAKE_TEXTS[wording].format(symbol=symbol, rule=rule), origin=Origin.SEED)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with one token per word, and one per fixed sentence of a prompt with skills."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = [str(digit) for digit in range(10)] + list(SYMBOLS) + list(RULE_NAMES) + ["=", ";", ANSWER]
    for text in (*SKILL_TEXTS, *MISTAKE_TEXTS):
        words += [word for word in text.split() if not word.startswith("{")]
    vocabulary = {word: index for index, word in enumerate(dict.fromkeys(["<unknown>", END, "<user>", *words]))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unknown>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([END, "<user>", "<assistant>"])
    lines = (SKILL_BLOCK + "\n" + REFERENCE_BLOCK).splitlines()
    sentences = [sentence for line in lines if (sentence := line.partition("{")[0].strip())]
    tokenizer.add_tokens([AddedToken(sentence, normalized=False) for sentence in sentences])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unknown>",
        eos_token=END,
        pad_token=END,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    fast.add_special_tokens({"additional_special_tokens": ["<user>", "<assistant>"]})
    fast.chat_template = _TEMPLATE
    return fast
