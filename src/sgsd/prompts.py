"""All prompt texts, and the rendering of problems and conversations to token ids.

A problem becomes one user message: the problem, then the instruction. A data set's complete prompt is treated as in
TRL: a conversation goes through the chat template unchanged, text (``RawText``) is tokenised without it.

Privileged information is **one block** at the start of the last user message (of the text, where the prompt is text),
followed by an empty line. The plain prompt, the skill-conditioned one and the one with a reference differ only in this
block, and a teacher's prompt ends as the student's does.
"""

from __future__ import annotations

import json
import re
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Any, TypeAlias, cast

from sgsd.bank.formats import FORBIDS
from sgsd.bank.items import Item, Mistake, Skill
from sgsd.controls import TEMPLATE_ERRORS, THINK_TAGS, ChatTokenizer, controls_of, disarmer_of
from sgsd.data.problems import Problem
from sgsd.errors import ConfigError, PromptError, check_choice

BOXED_INSTRUCTION = "Reason step by step, and put your final answer within \\boxed{}."
"""The default instruction, for the ``math`` verifier."""

SKILL_PAIR = """\
Skill: {skill}
Common mistake: {mistake}"""

SKILL_BLOCK = f"""\
Experience from similar problems, to use where it applies:

{SKILL_PAIR}

Do not mention this experience in the answer."""
"""For one pair; several pairs follow one another, separated by empty lines."""

RULES_BLOCK = """\
Rules to follow where they apply:

{rules}"""
"""For rules of a document, one per line, or for the whole document."""

Shown: TypeAlias = str | Sequence[Sequence[Item]]
"""What a prompt shows beside the problem: the text of a document, or groups of items. All groups are pairs of a skill
and a mistake, or all are single items (rules)."""

REFERENCE_BLOCK = """\
A reference for this problem, to be worked out in your own words:

{reference}

Do not mention this reference in the answer."""

Messages: TypeAlias = list[dict[str, Any]]


class RawText(str):
    """A prompt that is text: tokenised without the chat template, as in TRL."""

    __slots__ = ()


Prompt: TypeAlias = Messages | RawText
"""A student's prompt, as in TRL's column ``prompt``."""

Asked: TypeAlias = Problem | Prompt | str
"""The source of a prompt; a plain ``str`` is the text of a problem."""


class Thinking(StrEnum):
    """The value of ``enable_thinking`` for chat templates that have this switch; others ignore it.

    ``off`` and ``on``: for student and teachers. ``template``: left to the template or ``chat_template_kwargs``.
    ``paper``: off for the student, on for teachers.
    """

    OFF = "off"
    ON = "on"
    TEMPLATE = "template"
    PAPER = "paper"


SWITCH = "enable_thinking"
_SWITCHES: dict[Thinking, tuple[bool, bool]] = {
    Thinking.OFF: (False, False),
    Thinking.ON: (True, True),
    Thinking.PAPER: (False, True),
}


def thinking_kwargs(thinking: Thinking | str, given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The chat template's arguments ``(student's, teachers')``; both contain ``given``.

    Raises:
        ConfigError: an unknown value of ``thinking``, or ``given`` contradicts it.
    """
    check_choice("thinking", str(thinking), tuple(map(str, Thinking)))
    chosen = Thinking(thinking)
    if chosen is Thinking.TEMPLATE:
        return dict(given), dict(given)
    student, teacher = _SWITCHES[chosen]
    if SWITCH in given and (given[SWITCH], given[SWITCH]) != (student, teacher):
        raise ConfigError(
            f"{SWITCH} is set twice",
            got=f"thinking {chosen} and chat_template_kwargs {json.dumps({SWITCH: given[SWITCH]})}",
            expected="one of them",
            remedy=f"set thinking to on or off, and leave {SWITCH} out of chat_template_kwargs",
        )
    return {**given, SWITCH: student}, {**given, SWITCH: teacher}


def with_block(prompt: Prompt, block: str) -> Prompt:
    """The prompt with a block and an empty line at the start of its last user message, or of its text.

    Raises:
        PromptError: the conversation has no user message.
    """
    if isinstance(prompt, RawText):
        return RawText(f"{block}\n\n{prompt}")
    place = _last_user(prompt)
    message = prompt[place]
    return [*prompt[:place], {**message, "content": _joined(block, str(message["content"]))}, *prompt[place + 1 :]]


class PromptRenderer:
    """Prompts → token ids. The chat template tokenises in one step, so that there is no second BOS.

    Every method takes a ``Problem``, the text of a problem, or a prompt (a conversation, or ``RawText``).

    Control tokens in data are broken by a space, so that data cannot open or close a turn or a thought. Exceptions are
    think tags in system and assistant messages, the instruction, and text prompts, whose authors write their own turns.

    Args:
        tokenizer: a tokenizer with a chat template.
        instruction: ends every problem. ``None``: problems end with ``BOXED_INSTRUCTION``, complete prompts of the data
            set with none. A text ends both; an empty text ends neither.
        thinking: see ``Thinking``.
        chat_template_kwargs: further arguments of the template, for student and teachers.
        text_only: every prompt is ``RawText``, which needs no chat template.

    Raises:
        ConfigError: the tokenizer has no chat template, or ``thinking`` cannot be used.
    """

    def __init__(
        self,
        tokenizer: ChatTokenizer,
        *,
        instruction: str | None = None,
        thinking: Thinking | str = Thinking.TEMPLATE,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        text_only: bool = False,
    ) -> None:
        if not tokenizer.chat_template and not text_only:
            raise ConfigError(
                "the tokenizer has no chat template",
                got=getattr(tokenizer, "name_or_path", None) or type(tokenizer).__name__,
                expected="an instruction-tuned model, whose tokenizer defines chat_template",
                remedy="choose another model, or set tokenizer.chat_template",
            )
        self.tokenizer = tokenizer
        self.instruction = BOXED_INSTRUCTION if instruction is None else instruction
        self._prompt_instruction = instruction or ""
        self.student_kwargs, self.teacher_kwargs = thinking_kwargs(thinking, chat_template_kwargs or {})
        self._controls = controls_of(tokenizer)
        self._disarmed = disarmer_of(tokenizer)
        self._template_controls: dict[str, Counter[int]] = {}

    # ---- prompts

    def student_messages(self, asked: Asked) -> Prompt:
        """The plain prompt, as in TRL's column ``prompt``, with control tokens broken.

        Raises:
            PromptError: the conversation has no user message.
        """
        if isinstance(asked, Problem):
            if isinstance(asked.prompt, str):
                return RawText(_joined(asked.prompt, self._prompt_instruction))
            if asked.prompt is not None:
                messages = self._safe(asked.prompt)
                last = messages[_last_user(messages)]
                last["content"] = _joined(last["content"], self._prompt_instruction)
                return messages
            asked = asked.text
        if isinstance(asked, RawText):
            return asked
        if isinstance(asked, str):
            return _user_message(self._disarmed(asked), self.instruction)
        return self._safe(asked)

    def skilled_messages(self, asked: Asked, shown: Shown) -> Prompt:
        """A skill-conditioned prompt, of a teacher or of a rollout with ``skills_in_prompt``.

        Raises:
            PromptError: ``shown`` is empty, so the prompt would be the plain one.
        """
        return with_block(self.student_messages(asked), self._disarmed(_shown_block(shown)))

    def reference_prompt(self, asked: Asked, reference: str, shown: Shown = ()) -> Prompt:
        """OPSD's teacher prompt: a skill block if ``shown`` is not empty, then a reference solution or answer."""
        block = _joined(_shown_block(shown) if shown else "", REFERENCE_BLOCK.format(reference=reference))
        return with_block(self.student_messages(asked), self._disarmed(block))

    # ---- token ids, generation prompt included

    def student_ids(self, asked: Asked) -> list[int]:
        """Token ids of the plain prompt."""
        return self._ids(self.student_messages(asked), self.student_kwargs)

    def teacher_ids(self, asked: Asked, shown: Shown) -> list[int]:
        """Token ids of a skill-conditioned prompt, with the teachers' template arguments."""
        return self._ids(self.skilled_messages(asked, shown), self.teacher_kwargs)

    def skilled_ids(self, asked: Asked, shown: Shown) -> list[int]:
        """Token ids of a skill-conditioned prompt, with the student's template arguments."""
        return self._ids(self.skilled_messages(asked, shown), self.student_kwargs)

    def reference_ids(self, asked: Asked, reference: str, shown: Shown = ()) -> list[int]:
        """Token ids of OPSD's teacher prompt, with the teachers' template arguments."""
        return self._ids(self.reference_prompt(asked, reference, shown), self.teacher_kwargs)

    def text(self, ids: Sequence[int]) -> str:
        """Token ids → text, special tokens included."""
        return self.tokenizer.decode(ids)

    # ---- control tokens in data

    def _safe(self, messages: Sequence[Mapping[str, Any]]) -> Messages:
        safe = [self._disarmed_message(message) for message in messages]
        place = _last_user(safe)
        content = str(messages[place]["content"])
        if ending := self._instruction_of(content):  # of an earlier rendering; it stays unchanged
            safe[place]["content"] = self._disarmed(content.removesuffix(ending)) + ending
        return safe

    def _instruction_of(self, content: str) -> str:
        """The instruction if the content ends with it, else an empty text."""
        return self.instruction if content == self.instruction or content.endswith(f"\n\n{self.instruction}") else ""

    def _disarmed_message(self, message: Mapping[str, Any]) -> dict[str, Any]:
        change = self._disarmed_but_think_tags if message["role"] in _MAY_WRITE_THINK_TAGS else self._disarmed
        return {name: value if name == "role" else mapped(value, change) for name, value in message.items()}

    def _disarmed_but_think_tags(self, text: str) -> str:
        return "".join(part if part in THINK_TAGS else self._disarmed(part) for part in _THINK_TAG.split(text))

    def _ids(self, prompt: Prompt, template_kwargs: Mapping[str, Any]) -> list[int]:
        if isinstance(prompt, RawText):
            return list(self.tokenizer(str(prompt))["input_ids"])
        ids = _templated(self.tokenizer, prompt, template_kwargs)
        self._refuse_foreign_controls(ids, prompt, template_kwargs)
        return ids

    def _refuse_foreign_controls(
        self, ids: Sequence[int], messages: Messages, template_kwargs: Mapping[str, Any]
    ) -> None:
        """Check that all control tokens in a prompt come from the template or the instruction.

        Raises:
            PromptError: their counts differ from those of the same messages with placeholder contents.
        """
        placeholders = [self._placeholder(message) for message in messages]
        key = json.dumps([placeholders, sorted(template_kwargs.items())], default=repr)
        if key not in self._template_controls:
            rendered = _templated(self.tokenizer, placeholders, template_kwargs)
            self._template_controls[key] = self._control_counts(rendered)
        foreign = self._control_counts(ids)
        foreign.subtract(self._template_controls[key])
        think_tags = any(
            message["role"] in _MAY_WRITE_THINK_TAGS and _THINK_TAG.search(str(message["content"]))
            for message in messages
        )
        for token_id, count in foreign.items():
            if count and not (think_tags and self._controls[token_id] in THINK_TAGS):
                raise PromptError(
                    "the problem, a skill or a mistake would change the prompt's turns",
                    got=f"{abs(count)} {self._controls[token_id]!r} too {'many' if count > 0 else 'few'}",
                    remedy="take the control token out of the text",
                )

    def _control_counts(self, ids: Sequence[int]) -> Counter[int]:
        return Counter(token_id for token_id in ids if token_id in self._controls)

    def _placeholder(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """The message with content "x", and the instruction if the content ends with it."""
        content = str(message["content"])
        ending = self._instruction_of(content) if message["role"] == "user" else ""
        return {**message, "content": _joined("x", ending) if content else ""}


def message_ids(tokenizer: ChatTokenizer, messages: Messages, **template_kwargs: Any) -> list[int]:
    """Messages → token ids, generation prompt included; control tokens in their contents are broken by a space."""
    disarmed = disarmer_of(tokenizer)
    safe = [{**message, "content": disarmed(message["content"])} for message in messages]
    return _templated(tokenizer, safe, template_kwargs)


def refuse_long_prompts(
    lengths: Iterable[int], limit: int, what: str = "plain prompts", ids: Sequence[str] | None = None
) -> None:
    """Refuse prompts of more than ``limit`` tokens. Prompts are never truncated.

    Raises:
        PromptError: some are longer; with their number and the first of ``ids``.
    """
    counts = list(lengths)
    too_long = [place for place, length in enumerate(counts) if length > limit]
    if too_long:
        named = f" ({listed([ids[place] for place in too_long])})" if ids is not None else ""
        raise PromptError(
            f"{len(too_long)} of {len(counts)} {what} are too long",
            got=f"up to {max(counts)} tokens{named}",
            expected=f"at most {max(limit, 0)}",
            remedy="shorten them, leave fewer tokens to the completion (max_completion_length), or long_prompts: drop",
        )


def listed(ids: Sequence[str]) -> str:
    """The first ids, and the number of the others."""
    more = f" and {len(ids) - LISTED_IDS} more" if len(ids) > LISTED_IDS else ""
    return ", ".join(ids[:LISTED_IDS]) + more


LISTED_IDS = 5


def describe_skill(skill: Skill) -> str:
    """A skill as one paragraph: title, text, when to use it."""
    return _described(skill, "When to use it")


def describe_mistake(mistake: Mistake) -> str:
    """A mistake as one paragraph: title, text, how to avoid it."""
    return _described(mistake, "How to avoid it")


def _described(item: Item, note: str) -> str:
    head = f"{item.title}: {item.text}" if item.title and item.title != item.text else item.text
    return f"{head} {note}: {item.note}" if item.note else head


def _rule(item: Item) -> str:
    """The item as a paragraph. A mistake not worded as a prohibition gets the label "Common mistake"."""
    if isinstance(item, Skill):
        return describe_skill(item)
    return f"{'' if FORBIDS.match(item.text) else 'Common mistake: '}{describe_mistake(item)}"


def _shown_block(shown: Shown) -> str:
    if not shown:
        raise PromptError("no skills to show", expected="at least one")
    if isinstance(shown, str):
        return RULES_BLOCK.format(rules=shown)
    if any(len(group) > 1 for group in shown):
        pairs = [
            SKILL_PAIR.format(skill=describe_skill(group[0]), mistake=describe_mistake(group[1]))
            for group in cast("Sequence[tuple[Skill, Mistake]]", shown)
        ]
        return SKILL_BLOCK.replace(SKILL_PAIR, "\n\n".join(pairs))
    rules = (re.sub(r"\n(?!\n)", "\n  ", _rule(item)) for group in shown for item in group)
    return RULES_BLOCK.format(rules="\n".join(f"- {rule}" for rule in rules))


def user_turn_ids(
    tokenizer: ChatTokenizer, *, start: str = "", end: str = "", **template_kwargs: Any
) -> tuple[list[int], list[int]]:
    """Token ids before and after a user's content in a conversation's first turn, up to the start of the answer.

    They are found by rendering two turns that differ in one word between the texts ``start`` and ``end``, which are
    part of the ids.
    """
    one, other = (
        message_ids(tokenizer, _user_message(f"{start} {word}".strip(), end), **template_kwargs)
        for word in ("Yes", "Maybe")
    )
    before = shared_start(one, other)
    after = shared_start(one[before:][::-1], other[before:][::-1])
    return one[:before], one[len(one) - after :]


def shared_start(one: Sequence[int], other: Sequence[int]) -> int:
    """The length of the common prefix of two sequences of token ids."""
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _templated(tokenizer: ChatTokenizer, messages: Messages, template_kwargs: Mapping[str, Any]) -> list[int]:
    from jinja2 import TemplateError

    try:
        encoded = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True, **template_kwargs
        )
    except TemplateError as error:
        raise PromptError(
            "the model's chat template refuses the conversation",
            got=f"{error} (roles: {', '.join(str(message['role']) for message in messages)})",
            remedy="change the messages, or the template",
        ) from error
    except TEMPLATE_ERRORS as error:
        message = " ".join(str(error).split())
        raise ConfigError(
            "the chat template cannot be rendered",
            got=f"chat_template_kwargs {dict(template_kwargs)} ({message})" if template_kwargs else message,
            expected="arguments that the template takes" if template_kwargs else None,
        ) from error
    return list(encoded["input_ids"])


def _user_message(*parts: str) -> Messages:
    return [{"role": "user", "content": _joined(*parts)}]


def _joined(*parts: str) -> str:
    return "\n\n".join(part for part in parts if part)


def _last_user(messages: Sequence[Mapping[str, Any]]) -> int:
    place = next((n for n in reversed(range(len(messages))) if messages[n]["role"] == "user"), None)
    if place is None:
        raise PromptError("the prompt has no user message", got=f"{len(messages)} messages of other roles")
    return place


def mapped(value: Any, change: Callable[[str], str]) -> Any:
    """A JSON-like value with ``change`` applied to each text in it."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {name: mapped(part, change) for name, part in cast("Mapping[str, Any]", value).items()}
    if isinstance(value, list | tuple | deque):
        return [mapped(part, change) for part in cast("Sequence[Any]", value)]
    return value


_THINK_TAG = re.compile(r"(</?think>)")
_MAY_WRITE_THINK_TAGS = ("system", "developer", "assistant")
