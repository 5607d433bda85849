"""Thoughts are never judged, whatever marks they stand between."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sgsd.trainers.rewards import VerifierReward
from sgsd.verifiers import Verdict, extract_answer, get_verifier
from sgsd.verifiers.math import grade_math
from sgsd.verifiers.thinking import CompletionText, answer_part

from ..conftest import make_tokenizer
from ..test_chat_templates import FILES, tokenizer_of

THOUGHT, ANSWER = r"First guess \boxed{17}? No.", r"The sum is \boxed{19}."
MARKS = [
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<Thought>", "</Thought>"),
    ("<reasoning>\n", "\n</reasoning>\n"),
    ("<seed:think>", "</seed:think>"),
    ("<longcat_think>", "</longcat_think>"),
    ('<think effort="low">', "</think>"),
    ("[THINK]", "[/THINK]"),
    ("◁think▷", "◁/think▷"),
    ("<|START_THINKING|>", "<|END_THINKING|><|START_RESPONSE|>"),
    ("<|begin_of_thought|>", "<|end_of_thought|><|begin_of_solution|>"),
    ("[BEGIN_THINK]", "[END_THINK]"),
    ("<think_begin>", "<think_end>"),
    ("<|reasoning_thinking_start|>", "<|reasoning_thinking_end|>"),
    ("<think_never_used_51bce0c7>", "</think_never_used_51bce0c7>"),
    ("<cot>", "</cot>"),
    ("Here are my reasoning steps:\n", "\n[BEGIN FINAL RESPONSE]\n"),
    ("<|inner_prefix|>", "<|inner_suffix|>"),
    ("<|think|>", "<|end|><|begin|>assistant<|content|>"),
    ("<|channel>thought\n", "<channel|>"),
    ("<unused94>thought\n", "<unused95>"),
    ("Here is my thought process:\n", "\nHere is my response:\n"),
    ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
    ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final <|constrain|>json<|message|>"),
    ("analysis", "assistantfinal"),
    (" to=self<|message|>", "<|eom|><|start|>assistant to=user<|message|>"),
    (" to=self", "assistant to=user"),
]


@pytest.mark.parametrize(("opening", "closing"), MARKS)
def test_only_what_follows_the_thoughts_counts(opening: str, closing: str):
    assert extract_answer(f"{opening}{THOUGHT}{closing}{ANSWER}").text == "19"
    assert extract_answer(f"{THOUGHT}{closing}{ANSWER}").text == "19"  # the prompt opened them
    assert extract_answer(f"{opening}{THOUGHT}{closing}I give up.").text != "17"
    for unclosed in (opening + THOUGHT, f"{opening}{THOUGHT}{closing}{ANSWER}{opening.lstrip()}{THOUGHT}"):
        if opening not in ("analysis", " to=self") or unclosed == opening + THOUGHT:  # marks at the beginning alone
            assert (extract_answer(unclosed).text, extract_answer(unclosed).reason) == (None, "unclosed think tag")


@pytest.mark.parametrize(
    "text",
    [
        "Analysis: 5 + 14 = 19",
        "analysis of the sum: 19",
        "Finally, 19",
        "final answer: 19",
        "We have 5 < 19 and [19].",
        "It is <b>19</b>",
    ],
)
def test_without_marks_all_of_it_counts(text: str):
    assert answer_part(text) == text


def test_thoughts_that_name_other_marks_end_at_their_own():
    said = "<think>I shall use <reasoning> and </reasoning>, and not [THINK] and [/THINK].</think>19"
    assert answer_part(said) == "19"
    assert answer_part("<think>I shall use <reasoning> and </reasoning>") is None
    assert answer_part("Then I use <answer> and <reasoning> tags.</think>\n<reasoning>9</reasoning>19") == "19"


@pytest.mark.parametrize("name", FILES)
def test_through_every_template_of_trl(name: str):
    tokenizer = tokenizer_of(name)
    asked = [{"role": "user", "content": "5 + 14?"}]
    thoughts = dict.fromkeys(("reasoning_content", "reasoning", "thinking"), THOUGHT)
    said = [*asked, {"role": "assistant", "content": ANSWER, **thoughts}]
    whole = tokenizer.apply_chat_template(said, tokenize=False)
    prompt = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    while not whole.startswith(prompt):
        prompt = prompt[: prompt.rindex("<")]
    prompt_ids, completion_ids = (
        tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, whole.removeprefix(prompt))
    )
    text = CompletionText(tokenizer).after(prompt_ids, completion_ids)
    assert extract_answer(text).text == "19"
    thinking, found, _ = whole.removeprefix(prompt).partition(THOUGHT)
    if found:
        completion_ids = tokenizer(thinking + found, add_special_tokens=False)["input_ids"]
        assert extract_answer(CompletionText(tokenizer).after(prompt_ids, completion_ids)).text is None


def special_tokenizer(*marks: str):
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": list(marks)})
    return tokenizer


@pytest.mark.parametrize(
    ("opening", "closing"), [("<think>", "</think>"), ("[THINK]", "[/THINK]"), ("<|channel>", "<channel|>")]
)
def test_marks_that_are_special_tokens_reach_the_verifier(opening: str, closing: str):
    tokenizer = special_tokenizer(opening, closing)
    inside = f"thought\n{THOUGHT}" if opening == "<|channel>" else THOUGHT
    ids = tokenizer(f"{opening}{inside}{closing}{ANSWER}<|im_end|>", add_special_tokens=False)["input_ids"]
    lost = tokenizer.decode(ids, skip_special_tokens=True)
    assert closing not in lost
    text = CompletionText(tokenizer)(ids)
    assert answer_part(text) == ANSWER
    assert "<|im_end|>" not in text
    assert THOUGHT in text


def test_text_without_such_tokens_is_decoded_as_ever():
    tokenizer = make_tokenizer()
    ids = tokenizer(f"<think>{THOUGHT}</think>{ANSWER}<|im_end|>", add_special_tokens=False)["input_ids"]
    assert CompletionText(tokenizer)(ids) == tokenizer.decode(ids, skip_special_tokens=True)


def test_a_completion_that_never_ends_the_thoughts_its_prompt_opened_has_no_answer():
    tokenizer = make_tokenizer()
    ids = tokenizer(THOUGHT, add_special_tokens=False)["input_ids"]
    prompt = tokenizer("5 + 14?<think>\n", add_special_tokens=False)["input_ids"]
    text = CompletionText(tokenizer).after(prompt, ids)
    assert (text.endswith(THOUGHT), extract_answer(text).text) == (True, None)
    closed = tokenizer(f"{THOUGHT}</think>{ANSWER}", add_special_tokens=False)["input_ids"]
    assert CompletionText(tokenizer).after(prompt, closed) == f"{THOUGHT}</think>{ANSWER}"


class _Kept:
    """Keeps what it is given to judge."""

    texts: list[str]

    def verify_many(self, completions, answers) -> list[Verdict]:
        self.texts = list(completions)
        return [grade_math(completion, answer) for completion, answer in zip(completions, answers, strict=True)]


def test_the_trainers_reward_judges_what_follows_the_thoughts():
    tokenizer = special_tokenizer("<think>", "</think>")
    ids = tokenizer(f"<think>{THOUGHT}</think>{ANSWER}", add_special_tokens=False)["input_ids"]
    end = tokenizer.eos_token_id
    verifier = _Kept()
    reward = VerifierReward(
        verifier,
        name="math",
        end_ids={end},
        max_length=99,
        truncated="incorrect",
        text=CompletionText(tokenizer),
        prompt_end="<think>",
    )
    unended = tokenizer(THOUGHT, add_special_tokens=False)["input_ids"]
    lost = [[{"role": "assistant", "content": f"{THOUGHT}{ANSWER}"}], [{"role": "assistant", "content": THOUGHT}]]
    prompts = [[{"role": "user", "content": "5 + 14?"}]] * 2
    rewards = reward(
        prompts=prompts, completions=lost, completion_ids=[[*ids, end], [*unended, end]], answer=["19", "17"]
    )
    assert rewards == [1.0, 0.0]
    assert verifier.texts[1].startswith("<think>")


@pytest.mark.parametrize(("opening", "closing"), [("<think>", "</think>"), ("[THINK]", "[/THINK]")])
def test_a_verifiers_reward_for_a_tokenizer_keeps_the_marks_that_trl_drops(opening: str, closing: str):
    """Seen before the mend, with ``reward``: the thoughts are judged, and the right answer is incorrect."""
    tokenizer = special_tokenizer(opening, closing)
    ids = [
        tokenizer(f"{opening}{THOUGHT}{closing}{said}<|im_end|>", add_special_tokens=False)["input_ids"]
        for said in (ANSWER, "It is 17.")
    ]
    given = {"completions": tokenizer.batch_decode(ids, skip_special_tokens=True), "completion_ids": ids}
    with get_verifier("math", workers=1) as verifier:
        assert verifier.reward_for(tokenizer)(**given, answer=["19", "19"]) == [1.0, 0.0]
        assert verifier.reward(**given, answer=["19", "19"]) == [0.0, 0.0]


def test_known_bug_cases(shared_data: Path):
    rows = [json.loads(line) for line in (shared_data / "bugcases" / "think-markers.jsonl").read_text().splitlines()]
    assert [grade_math(row["response"], row["answer"]).outcome.sign for row in rows] == [1] * len(rows)
