"""Every prompt text there is, and the way from messages to token ids.

A prompt is one user message: optional blocks of privileged information, the problem, the instruction. The kinds
differ in their blocks alone, so a teacher's prompt ends exactly as the student's does:

- plain: the student's, and every evaluation's;
- skill-conditioned: an SGSD teacher's, with one skill and one mistake; with ``skills_in_prompt`` a rollout's, with one
  pair or several;
- with reference: OPSD's teacher, with a reference solution or answer, below the skill block where there is one.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Any, Protocol

from sgsd.bank.skills import Mistake, Skill
from sgsd.controls import disarmer
from sgsd.errors import ConfigError, PromptError

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

REFERENCE_BLOCK = """\
A reference for this problem, to be worked out in your own words:

{reference}

Do not mention this reference in the answer."""

Messages = list[dict[str, str]]


class Thinking(StrEnum):
    """The one switch for chat templates with a thinking mode (``enable_thinking``).

    ``matched``: student and teachers alike, as the template's arguments say. ``paper``: student off, teachers on.
    """

    MATCHED = "matched"
    PAPER = "paper"


class ChatTokenizer(Protocol):
    """What a prompt needs of a tokenizer; every ``transformers`` tokenizer has it."""

    chat_template: Any

    def apply_chat_template(self, conversation: Any, **kwargs: Any) -> Any: ...

    def convert_ids_to_tokens(self, ids: Any) -> Any: ...

    def decode(self, token_ids: Any) -> Any: ...


def plain_messages(problem: str, instruction: str = BOXED_INSTRUCTION) -> Messages:
    """The student's prompt: problem and instruction. An empty instruction leaves the problem alone."""
    return _user_message(problem, instruction)


def skill_messages(
    problem: str, pairs: Sequence[tuple[Skill, Mistake]], instruction: str = BOXED_INSTRUCTION
) -> Messages:
    """A skill-conditioned prompt: one skill–mistake pair or several, then the plain prompt.

    Raises:
        PromptError: no pairs; the prompt would silently be the plain one.
    """
    return _user_message(_skill_block(pairs), problem, instruction)


def reference_messages(
    problem: str,
    reference: str,
    instruction: str = BOXED_INSTRUCTION,
    *,
    pairs: Sequence[tuple[Skill, Mistake]] = (),
) -> Messages:
    """OPSD's teacher prompt: a reference solution or answer, then the plain prompt; ``pairs`` add a skill block."""
    blocks = [_skill_block(pairs)] if pairs else []
    return _user_message(*blocks, REFERENCE_BLOCK.format(reference=reference), problem, instruction)


class PromptRenderer:
    """Messages → token ids, through the chat template and in one step, so that no second BOS can appear.

    Args:
        tokenizer: one with a chat template.
        instruction: ends every user message.
        thinking: see ``Thinking``.
        chat_template_kwargs: further arguments of the template, the same for students and teachers.

    Raises:
        ConfigError: if the tokenizer has no chat template.
    """

    def __init__(
        self,
        tokenizer: ChatTokenizer,
        *,
        instruction: str = BOXED_INSTRUCTION,
        thinking: Thinking | str = Thinking.MATCHED,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        if not tokenizer.chat_template:
            raise ConfigError(
                "tokenizer without a chat template",
                got=getattr(tokenizer, "name_or_path", None) or type(tokenizer).__name__,
                expected="an instruction-tuned model, whose tokenizer defines chat_template",
                remedy="choose one, or set tokenizer.chat_template",
            )
        self.tokenizer = tokenizer
        self.instruction = instruction
        self.thinking = Thinking(thinking)
        shared = dict(chat_template_kwargs or {})
        paper = self.thinking is Thinking.PAPER
        self.student_kwargs = {**shared, "enable_thinking": False} if paper else shared
        self.teacher_kwargs = {**shared, "enable_thinking": True} if paper else shared
        controls = _controls(tokenizer)
        self._disarmed = disarmer([*controls.values(), *_template_words(tokenizer)])
        self._controls = controls
        self._own: dict[str, Counter[int]] = {}

    def student_messages(self, problem: str) -> Messages:
        """The plain prompt's messages; control tokens inside the problem are disarmed."""
        return plain_messages(self._disarmed(problem), self.instruction)

    def student_ids(self, problem: str) -> list[int]:
        """The plain prompt's token ids, generation prompt included."""
        return self._ids(self.student_messages(problem), self.student_kwargs)

    def teacher_ids(self, problem: str, skill: Skill, mistake: Mistake) -> list[int]:
        """A skill-conditioned prompt's token ids; control tokens inside problem, skill and mistake are disarmed."""
        return self._ids(self.skilled_messages(problem, [(skill, mistake)]), self.teacher_kwargs)

    def skilled_messages(self, problem: str, pairs: Sequence[tuple[Skill, Mistake]]) -> Messages:
        """A skill-conditioned prompt's messages, disarmed likewise: a teacher's, or a rollout's with skills in it."""
        return self._with_instruction(skill_messages(problem, pairs, ""))

    def skilled_ids(self, problem: str, pairs: Sequence[tuple[Skill, Mistake]]) -> list[int]:
        """The token ids of a *rollout's* skill-conditioned prompt; the template's arguments are the student's."""
        return self._ids(self.skilled_messages(problem, pairs), self.student_kwargs)

    def reference_ids(self, problem: str, reference: str, pairs: Sequence[tuple[Skill, Mistake]] = ()) -> list[int]:
        """The token ids of OPSD's teacher prompt; control tokens inside the reference are disarmed too."""
        messages = reference_messages(problem, reference, "", pairs=pairs)
        return self._ids(self._with_instruction(messages), self.teacher_kwargs)

    def text(self, ids: Sequence[int]) -> str:
        """Token ids back as the text the model sees, special tokens included."""
        return self.tokenizer.decode(ids)

    def _ids(self, messages: Messages, template_kwargs: Mapping[str, Any]) -> list[int]:
        ids = _templated(self.tokenizer, messages, template_kwargs)
        self._refuse_foreign_controls(ids, template_kwargs)
        return ids

    def _refuse_foreign_controls(self, ids: Sequence[int], template_kwargs: Mapping[str, Any]) -> None:
        """Every control in a prompt is the template's or the instruction's own; disarming left no other behind."""
        key = repr(sorted(template_kwargs.items()))
        if key not in self._own:
            bare = _templated(self.tokenizer, _user_message("x", self.instruction), template_kwargs)
            self._own[key] = Counter(token_id for token_id in bare if token_id in self._controls)
        foreign = Counter(token_id for token_id in ids if token_id in self._controls)
        foreign.subtract(self._own[key])
        for token_id, count in foreign.items():
            if count:
                raise PromptError(
                    "the problem, a skill or a mistake would change the prompt's turns",
                    got=f"{abs(count)} {self._controls[token_id]!r} too {'many' if count > 0 else 'few'}",
                    remedy="take the control token out of the text",
                )

    def _with_instruction(self, messages: Messages) -> Messages:
        return _user_message(self._disarmed(messages[0]["content"]), self.instruction)


def message_ids(tokenizer: ChatTokenizer, messages: Messages, **template_kwargs: Any) -> list[int]:
    """Any messages → token ids, generation prompt included; controls inside their contents are disarmed."""
    disarmed = disarmer([*_controls(tokenizer).values(), *_template_words(tokenizer)])
    safe = [{**message, "content": disarmed(message["content"])} for message in messages]
    return _templated(tokenizer, safe, template_kwargs)


def refuse_long_prompts(lengths: Iterable[int], limit: int, what: str = "plain prompts") -> None:
    """Refuse prompts over a limit, with counts; they are never cut.

    Args:
        lengths: token counts.
        limit: the most tokens a prompt may have.
        what: named in the message.

    Raises:
        PromptError: if any is longer.
    """
    counts = list(lengths)
    too_long = [length for length in counts if length > limit]
    if too_long:
        raise PromptError(
            f"{len(too_long)} of {len(counts)} {what} are too long",
            got=f"up to {max(too_long)} tokens",
            expected=f"at most {limit}",
            remedy="shorten them, filter the data, or leave fewer tokens to the completion (max_completion_length)",
        )


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
    return _joined(skill.title, skill.text, f"When to use it: {skill.when}" if skill.when else "")


def describe_mistake(mistake: Mistake) -> str:
    """A mistake as one paragraph: title, text, how to avoid it."""
    return _joined(mistake.title, mistake.text, f"How to avoid it: {mistake.avoid}" if mistake.avoid else "")


def _skill_block(pairs: Sequence[tuple[Skill, Mistake]]) -> str:
    if not pairs:
        raise PromptError("no skill–mistake pairs to show", expected="at least one")
    shown = [
        SKILL_PAIR.format(skill=describe_skill(skill), mistake=describe_mistake(mistake)) for skill, mistake in pairs
    ]
    return SKILL_BLOCK.replace(SKILL_PAIR, "\n\n".join(shown))


def _joined(title: str, text: str, rest: str) -> str:
    head = f"{title}: {text}" if title and text and title != text else title or text
    return " ".join(part for part in (head, rest) if part)


def _templated(tokenizer: ChatTokenizer, messages: Messages, template_kwargs: Mapping[str, Any]) -> list[int]:
    encoded = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, **template_kwargs
    )
    return list(encoded["input_ids"])


def _user_message(*parts: str) -> Messages:
    return [{"role": "user", "content": "\n\n".join(part for part in parts if part)}]


_THINK_TAGS = ("<think>", "</think>")


def _control_tokens(tokenizer: Any) -> list[tuple[int, str]]:
    """Added tokens that are special, and think tags, special or not."""
    added = {token_id: (str(token), bool(token.special)) for token_id, token in tokenizer.added_tokens_decoder.items()}
    special = {int(token_id) for token_id in tokenizer.all_special_ids}
    return [(i, text) for i, (text, is_special) in added.items() if is_special or i in special or text in _THINK_TAGS]


# How templates without control tokens mark a turn.
_ROLE_WORD = re.compile(r"(?:#{2,3} ?)?(?:USER|ASSISTANT|SYSTEM|Human|User|Assistant|System|Instruction|Response) ?:")


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


def _template_words(tokenizer: Any) -> list[str]:
    return _ROLE_WORD.findall(str(tokenizer.chat_template))
