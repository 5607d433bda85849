"""Every prompt text there is, and the way from a problem or a conversation to token ids.

A problem becomes one user message: the problem, the instruction. A prompt that a data set brings in full is kept as
TRL keeps it: a conversation goes through the chat template as it is, text (``RawText``) past it.

Privileged information has **one place**: the start of the last user message (of the text, where the prompt is text),
an empty line below it. So the plain prompt, the skill-conditioned one and the one with a reference differ in that block
alone, and a teacher's prompt ends as the student's does.
"""

from __future__ import annotations

import json
import re
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Any, Protocol, TypeAlias, cast

from sgsd.bank.formats import FORBIDS
from sgsd.bank.items import Item, Mistake, Skill
from sgsd.controls import KNOWN, disarmer
from sgsd.data.problems import Problem
from sgsd.errors import ConfigError, PromptError, check_choice

BOXED_INSTRUCTION = "Reason step by step, and put your final answer within \\boxed{}."
"""Default instruction; what the ``math`` verifier reads best."""

SKILL_PAIR = """\
Skill: {skill}
Common mistake: {mistake}"""

SKILL_BLOCK = f"""\
Experience from similar problems, to use where it applies:

{SKILL_PAIR}

Do not mention this experience in the answer."""
"""With one pair; several stand below one another, an empty line between them."""

RULES_BLOCK = """\
Rules to follow where they apply:

{rules}"""
"""With rules of a document, one or several, each a line; or with the whole document."""

Shown: TypeAlias = str | Sequence[Sequence[Item]]
"""What a prompt shows beside the problem: a document's text, or items in groups. A group is a skill and a mistake, or
one item alone, a rule; all groups are of one kind."""

REFERENCE_BLOCK = """\
A reference for this problem, to be worked out in your own words:

{reference}

Do not mention this reference in the answer."""

Messages: TypeAlias = list[dict[str, Any]]


class RawText(str):
    """A prompt that is text: tokenised as it is, without the chat template, as TRL does with text."""

    __slots__ = ()


Prompt: TypeAlias = Messages | RawText
"""What the student is given; what TRL takes in the column ``prompt``."""

Asked: TypeAlias = Problem | Prompt | str
"""What prompts are made of; a plain ``str`` is the text of a problem."""


class Thinking(StrEnum):
    """Whether chat templates with a thinking switch (``enable_thinking``) think; others ignore it.

    ``off`` and ``on``: student and teachers alike. ``template``: as the template has it, or ``chat_template_kwargs``.
    ``paper``: student off, teachers on.
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
    """The template's arguments for the student and for teachers, with ``given`` among both.

    Raises:
        ConfigError: no such value, or ``given`` says otherwise.
    """
    if thinking == "matched":
        raise ConfigError("thinking: matched is now called template", got="matched", expected=", ".join(Thinking))
    check_choice("thinking", str(thinking), tuple(map(str, Thinking)))
    chosen = Thinking(thinking)
    if chosen is Thinking.TEMPLATE:
        return dict(given), dict(given)
    student, teacher = _SWITCHES[chosen]
    if SWITCH in given and (given[SWITCH], given[SWITCH]) != (student, teacher):
        raise ConfigError(
            f"{SWITCH} is said twice",
            got=f"thinking {chosen} and chat_template_kwargs {json.dumps({SWITCH: given[SWITCH]})}",
            expected="one of them",
            remedy="set thinking to on or off, and leave it out of chat_template_kwargs",
        )
    return {**given, SWITCH: student}, {**given, SWITCH: teacher}


class ChatTokenizer(Protocol):
    """What a prompt needs of a tokenizer; every ``transformers`` tokenizer has it."""

    chat_template: Any

    def __call__(self, text: Any) -> Any: ...

    def apply_chat_template(self, conversation: Any, **kwargs: Any) -> Any: ...

    def convert_ids_to_tokens(self, ids: Any) -> Any: ...

    def decode(self, token_ids: Any) -> Any: ...


def with_block(prompt: Prompt, block: str) -> Prompt:
    """The prompt with a block and an empty line at the start of its last user message, or of its text.

    Raises:
        PromptError: a conversation without a user message.
    """
    if isinstance(prompt, RawText):
        return RawText(f"{block}\n\n{prompt}")
    place = _last_user(prompt)
    message = prompt[place]
    return [*prompt[:place], {**message, "content": _below(block, str(message["content"]))}, *prompt[place + 1 :]]


class PromptRenderer:
    """Prompts → token ids, through the chat template and in one step, so that no second BOS can appear.

    Every method takes a ``Problem``, the text of a problem, or a prompt (a conversation, or ``RawText``).

    Control tokens in data are broken by a space, so that no text opens or closes a turn or a thought. Left as they are:
    think tags in system and assistant messages, whose authors may well speak of them; the instruction; and text
    prompts, whose author wrote the turns too, if there are any.

    Args:
        tokenizer: one with a chat template.
        instruction: ends every problem. ``None``: ``BOXED_INSTRUCTION``, and prompts that the data set brings in full
            have none; a text ends those as well, an empty one leaves it out everywhere.
        thinking: see ``Thinking``.
        chat_template_kwargs: further arguments of the template, the same for students and teachers.
        text_only: every prompt is ``RawText``, which needs no chat template.

    Raises:
        ConfigError: if the tokenizer has no chat template; thinking that cannot be used.
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
                "tokenizer without a chat template",
                got=getattr(tokenizer, "name_or_path", None) or type(tokenizer).__name__,
                expected="an instruction-tuned model, whose tokenizer defines chat_template",
                remedy="choose one, or set tokenizer.chat_template",
            )
        self.tokenizer = tokenizer
        self.instruction = BOXED_INSTRUCTION if instruction is None else instruction
        self._prompt_instruction = instruction or ""
        self.student_kwargs, self.teacher_kwargs = thinking_kwargs(thinking, chat_template_kwargs or {})
        self._controls = _controls(tokenizer)
        self._disarmed = _disarmer_of(tokenizer)
        self._own: dict[str, Counter[int]] = {}

    # ---- what is asked

    def student_messages(self, asked: Asked) -> Prompt:
        """The plain prompt: what TRL takes in the column ``prompt``. Controls in it are disarmed.

        Raises:
            PromptError: a conversation without a user message.
        """
        if isinstance(asked, Problem):
            if isinstance(asked.prompt, str):
                return RawText(_below(asked.prompt, self._prompt_instruction))
            if asked.prompt is not None:
                messages = self._safe(asked.prompt)
                last = messages[_last_user(messages)]
                last["content"] = _below(last["content"], self._prompt_instruction)
                return messages
            asked = asked.text
        if isinstance(asked, RawText):
            return asked
        if isinstance(asked, str):
            return _user_message(self._disarmed(asked), self.instruction)
        return self._safe(asked)

    def skilled_messages(self, asked: Asked, shown: Shown) -> Prompt:
        """A skill-conditioned prompt: a teacher's, or a rollout's with skills in it.

        Raises:
            PromptError: nothing is shown; the prompt would silently be the plain one.
        """
        return with_block(self.student_messages(asked), self._disarmed(_shown_block(shown)))

    def reference_prompt(self, asked: Asked, reference: str, shown: Shown = ()) -> Prompt:
        """OPSD's teacher prompt: a reference solution or answer, below a skill block where something is shown."""
        block = _below(_shown_block(shown) if shown else "", REFERENCE_BLOCK.format(reference=reference))
        return with_block(self.student_messages(asked), self._disarmed(block))

    # ---- token ids, generation prompt included

    def student_ids(self, asked: Asked) -> list[int]:
        """The plain prompt's token ids."""
        return self._ids(self.student_messages(asked), self.student_kwargs)

    def teacher_ids(self, asked: Asked, shown: Shown) -> list[int]:
        """A skill-conditioned prompt's token ids; the template's arguments are the teachers'."""
        return self._ids(self.skilled_messages(asked, shown), self.teacher_kwargs)

    def skilled_ids(self, asked: Asked, shown: Shown) -> list[int]:
        """The token ids of a *rollout's* skill-conditioned prompt; the template's arguments are the student's."""
        return self._ids(self.skilled_messages(asked, shown), self.student_kwargs)

    def reference_ids(self, asked: Asked, reference: str, shown: Shown = ()) -> list[int]:
        """The token ids of OPSD's teacher prompt."""
        return self._ids(self.reference_prompt(asked, reference, shown), self.teacher_kwargs)

    def text(self, ids: Sequence[int]) -> str:
        """Token ids back as the text the model sees, special tokens included."""
        return self.tokenizer.decode(ids)

    # ---- prompts made safe

    def _safe(self, messages: Sequence[Mapping[str, Any]]) -> Messages:
        safe = [self._disarmed_message(message) for message in messages]
        place = _last_user(safe)
        content = str(messages[place]["content"])
        if own := self._own_instruction(content):  # of a prompt made before; the instruction's own words stay
            safe[place]["content"] = self._disarmed(content.removesuffix(own)) + own
        return safe

    def _own_instruction(self, content: str) -> str:
        """The instruction, where a prompt ends with it."""
        return self.instruction if content == self.instruction or content.endswith(f"\n\n{self.instruction}") else ""

    def _disarmed_message(self, message: Mapping[str, Any]) -> dict[str, Any]:
        own = self._disarmed_but_thoughts if message["role"] in _TRUSTED_WITH_THOUGHTS else self._disarmed
        return {name: value if name == "role" else mapped(value, own) for name, value in message.items()}

    def _disarmed_but_thoughts(self, text: str) -> str:
        return "".join(part if part in _THINK_TAGS else self._disarmed(part) for part in _THINK_TAG.split(text))

    def _ids(self, prompt: Prompt, template_kwargs: Mapping[str, Any]) -> list[int]:
        if isinstance(prompt, RawText):
            return list(self.tokenizer(str(prompt))["input_ids"])
        ids = _templated(self.tokenizer, prompt, template_kwargs)
        self._refuse_foreign_controls(ids, prompt, template_kwargs)
        return ids

    def _refuse_foreign_controls(
        self, ids: Sequence[int], messages: Messages, template_kwargs: Mapping[str, Any]
    ) -> None:
        """Every control in a prompt is the template's or the instruction's own; disarming left no other behind."""
        bare = [self._bare(message) for message in messages]
        key = json.dumps([bare, sorted(template_kwargs.items())], default=repr)
        if key not in self._own:
            self._own[key] = self._counted(_templated(self.tokenizer, bare, template_kwargs))
        foreign = self._counted(ids)
        foreign.subtract(self._own[key])
        thoughts = any(
            message["role"] in _TRUSTED_WITH_THOUGHTS and _THINK_TAG.search(str(message["content"]))
            for message in messages
        )
        for token_id, count in foreign.items():
            if count and not (thoughts and self._controls[token_id] in _THINK_TAGS):
                raise PromptError(
                    "the problem, a skill or a mistake would change the prompt's turns",
                    got=f"{abs(count)} {self._controls[token_id]!r} too {'many' if count > 0 else 'few'}",
                    remedy="take the control token out of the text",
                )

    def _counted(self, ids: Sequence[int]) -> Counter[int]:
        return Counter(token_id for token_id in ids if token_id in self._controls)

    def _bare(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """The message with an x for whatever was said, and the instruction if it ends with it."""
        content = str(message["content"])
        own = self._own_instruction(content) if message["role"] == "user" else ""
        return {**message, "content": _below("x", own) if content else ""}


def end_of_turn_ids(tokenizer: ChatTokenizer) -> list[int]:
    """The control token with which the chat template ends an assistant's turn, as a list of one; empty without one.

    Found by rendering a conversation: the last control that stands behind the assistant's words both at the end and
    before a further turn. Templates that end the two differently (GPT-OSS) are taken at the conversation's end; those
    that mark the next turn's beginning alone (GLM-4) are ended by that mark.
    """
    mark = "xmarkx"
    turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": mark}]
    controls = _controls(tokenizer)
    tails: list[list[str]] = []
    for messages in (turns, [*turns, {"role": "user", "content": "x"}]):
        text = str(tokenizer.apply_chat_template(messages, tokenize=False))
        tails.append(_controls_of(text.rpartition(mark)[2], controls.values()) if mark in text else [])
    last, followed = tails
    ids = {text: token_id for token_id, text in controls.items()}
    shared = [ours for ours, theirs in zip(last, followed, strict=False) if ours == theirs]
    found = shared[-1:] if shared and last[0] == shared[0] else (last or followed)[:1]
    return [ids[text] for text in found]


def _controls_of(text: str, controls: Iterable[str]) -> list[str]:
    longest_first = sorted(controls, key=len, reverse=True)
    return re.findall("|".join(map(re.escape, longest_first)), text) if longest_first else []


def message_ids(tokenizer: ChatTokenizer, messages: Messages, **template_kwargs: Any) -> list[int]:
    """Any messages → token ids, generation prompt included; controls inside their contents are disarmed."""
    disarmed = _disarmer_of(tokenizer)
    safe = [{**message, "content": disarmed(message["content"])} for message in messages]
    return _templated(tokenizer, safe, template_kwargs)


def refuse_long_prompts(
    lengths: Iterable[int], limit: int, what: str = "plain prompts", ids: Sequence[str] | None = None
) -> None:
    """Refuse prompts of more than ``limit`` tokens, with counts and the first ``ids``; they are never cut.

    Raises:
        PromptError: if any is longer.
    """
    counts = list(lengths)
    too_long = [place for place, length in enumerate(counts) if length > limit]
    if too_long:
        named = f" ({listed([ids[place] for place in too_long])})" if ids is not None else ""
        raise PromptError(
            f"{len(too_long)} of {len(counts)} {what} are too long",
            got=f"up to {max(counts)} tokens{named}",
            expected=f"at most {limit}",
            remedy="shorten them, leave fewer tokens to the completion (max_completion_length), or long_prompts: drop",
        )


def listed(ids: Sequence[str]) -> str:
    """The first ids, and how many more."""
    more = f" and {len(ids) - LISTED_IDS} more" if len(ids) > LISTED_IDS else ""
    return ", ".join(ids[:LISTED_IDS]) + more


LISTED_IDS = 5


def uncounted_token_ids(tokenizer: ChatTokenizer) -> frozenset[int]:
    """Ids the objective does not count (method.md, step 7): special and chat-template tokens, think tags, newlines.

    A newline token is one that decodes to line breaks and nothing else.
    """
    ids = {token_id for token_id, _ in _control_tokens(tokenizer)}
    for token_id in range(len(tokenizer)):  # pyright: ignore[reportArgumentType]
        text = tokenizer.decode([token_id])
        if text and not text.strip("\r\n"):
            ids.add(token_id)
    return frozenset(ids)


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
    """A mistake that reads as advice is named as a mistake."""
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
    return RULES_BLOCK.format(rules="\n".join(f"- {_rule(item)}" for group in shown for item in group))


def user_turn_ids(
    tokenizer: ChatTokenizer, *, start: str = "", end: str = "", **template_kwargs: Any
) -> tuple[list[int], list[int]]:
    """What stands before a user's words in a conversation's first turn, and behind them up to the answer's beginning.

    Found by rendering two turns that differ in one word, each between the words ``start`` and ``end``.
    """
    one, other = (
        message_ids(tokenizer, _user_message(f"{start} {word}".strip(), end), **template_kwargs)
        for word in ("Yes", "Maybe")
    )
    before = shared_start(one, other)
    behind = shared_start(one[before:][::-1], other[before:][::-1])
    return one[:before], one[len(one) - behind :]


def shared_start(one: Sequence[int], other: Sequence[int]) -> int:
    """With how many equal token ids two sequences begin."""
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


# What a template's program raises, of arguments that it cannot use or by itself.
_OF_TEMPLATES = (TypeError, ValueError, AttributeError, LookupError, ArithmeticError, RecursionError)


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
    except _OF_TEMPLATES as error:
        said = " ".join(str(error).split())
        raise ConfigError(
            "the chat template cannot be rendered",
            got=f"chat_template_kwargs {dict(template_kwargs)} ({said})" if template_kwargs else said,
            expected="arguments that the template takes" if template_kwargs else None,
        ) from error
    return list(encoded["input_ids"])


def _user_message(*parts: str) -> Messages:
    return [{"role": "user", "content": _below(*parts)}]


def _below(*parts: str) -> str:
    return "\n\n".join(part for part in parts if part)


def _last_user(messages: Sequence[Mapping[str, Any]]) -> int:
    place = next((n for n in reversed(range(len(messages))) if messages[n]["role"] == "user"), None)
    if place is None:
        raise PromptError("the prompt has no user message", got=f"{len(messages)} messages of other roles")
    return place


def mapped(value: Any, change: Callable[[str], str]) -> Any:
    """Every text inside a JSON-like value changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {name: mapped(part, change) for name, part in cast("Mapping[str, Any]", value).items()}
    if isinstance(value, list | tuple | deque):
        return [mapped(part, change) for part in cast("Sequence[Any]", value)]
    return value


_THINK_TAGS = ("<think>", "</think>")
_THINK_TAG = re.compile(r"(</?think>)")
_TRUSTED_WITH_THOUGHTS = ("system", "developer", "assistant")


def _control_tokens(tokenizer: Any) -> list[tuple[int, str]]:
    """Added tokens that are special, and think tags, special or not."""
    added = {token_id: (str(token), bool(token.special)) for token_id, token in tokenizer.added_tokens_decoder.items()}
    special = {int(token_id) for token_id in tokenizer.all_special_ids}
    return [(i, text) for i, (text, is_special) in added.items() if is_special or i in special or text in _THINK_TAGS]


def _controls(tokenizer: Any) -> dict[int, str]:
    """Ids and texts of the tokens that no content may make: special ones, think tags, and added ones in brackets that
    the template writes though they are not special. Not the unknown token: it stands for any rare character.
    """
    template = str(tokenizer.chat_template)
    controls = dict(_control_tokens(tokenizer))
    for token_id, token in tokenizer.added_tokens_decoder.items():
        text = str(token)
        if text[:1] in "<[" and text[-1:] in ">]" and text in template:
            controls[token_id] = text
    return {
        token_id: text for token_id, text in controls.items() if len(text) > 1 and token_id != tokenizer.unk_token_id
    }


def _disarmer_of(tokenizer: ChatTokenizer) -> Callable[[str], str]:
    controls = _controls(tokenizer).values()
    return disarmer(controls, _turn_marks(tokenizer, controls))


_TAG = re.compile(r"(</?[^<>\s]{1,38}>|\[/?[^\[\]\s]{1,38}\])")
_LONGEST_MARK = 40  # characters; longer lines are the template's own advice to the model


def _turn_marks(tokenizer: Any, controls: Iterable[str]) -> set[str]:
    """What the chat template writes between messages, where that is text alone: ``### Assistant``, ``USER:``.

    Found by rendering conversations whose contents are known. Where every turn is opened by a control, words beside it
    (``<|im_start|>user``) open none by themselves; the end token closes turns alone.
    """
    from jinja2 import TemplateError

    turns = [{"role": role, "content": f"xmark{n}x"} for n, role in enumerate(("system", "user", "assistant", "user"))]
    ways: list[str] = []
    for messages in (turns, turns[1:], turns[1:2], [*turns[1:3], {"role": "tool", "content": "xmark9x"}]):
        try:
            text = str(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))
        except (TemplateError, *_OF_TEMPLATES):  # roles that the template refuses
            continue
        ways += re.split(r"(?i:xmark\dx)", text)
    control = re.compile("|".join([*map(re.escape, sorted(controls, key=len, reverse=True)), KNOWN.pattern]))
    openings = [way.rpartition(tokenizer.eos_token)[2] if tokenizer.eos_token else way for way in ways]
    if not any(way.strip() and not control.search(way) for way in openings):
        return set()
    lines = [line.strip() for way in ways for line in control.sub("\n", way).splitlines()]
    # A line may hold several: </user><assistant>, <eot>Assistant:
    parts = [part.strip() for line in lines for part in _TAG.split(line)]
    return {mark for mark in (*lines, *parts) if 1 < len(mark) <= _LONGEST_MARK}
