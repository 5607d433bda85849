"""Sampling and writing with vLLM: what it is asked, and how its answers are read. A stand-in takes vLLM's place."""

from __future__ import annotations

import importlib.machinery
import json
import sys
from types import ModuleType, SimpleNamespace

import pytest

from sgsd.bank.writing import WriteRequest, Written
from sgsd.engines.vllm_offline import VLLMSampler, VLLMWriter
from sgsd.errors import ConfigError
from sgsd.rollouts import StopReason, completion_seed

END = 1
PROMPTS = [[5, 6, 7], [8], [9, 10]]


class LLM:
    """Answers with ``answers[prompt[0]]``, (ids, finish_reason), and keeps what it was asked."""

    started: dict
    asked: SimpleNamespace
    answers: dict
    refusal: Exception | None = None

    def __init__(self, **options):
        if LLM.refusal is not None:
            raise LLM.refusal
        LLM.started = options
        self.model_config = SimpleNamespace(max_model_len=1000)

    def generate(self, prompts, sampling_params, *, use_tqdm, lora_request):
        LLM.asked = SimpleNamespace(prompts=prompts, params=sampling_params, lora=lora_request)
        if use_tqdm:
            for _ in use_tqdm(prompts, desc="Rendering prompts"):
                pass
            bar = use_tqdm(total=len(prompts), desc="Processed prompts", dynamic_ncols=True, postfix="0 toks/s")
            for _ in prompts:
                bar.update(1)
            assert bar.n == len(prompts)
            assert bar.format_dict["elapsed"] >= 0
            bar.close()
        answers = [LLM.answers.get(prompt["prompt_token_ids"][0], ((70, END), "stop")) for prompt in prompts]
        return [
            SimpleNamespace(outputs=[SimpleNamespace(token_ids=list(ids), finish_reason=reason)])
            for ids, reason in answers
        ]


@pytest.fixture(autouse=True)
def _stand_in(monkeypatch):
    modules = {name: ModuleType(name) for name in ("vllm", "vllm.lora", "vllm.lora.request", "vllm.sampling_params")}
    modules["vllm"].LLM = LLM
    modules["vllm"].SamplingParams = lambda **options: options
    modules["vllm.sampling_params"].StructuredOutputsParams = lambda **options: options
    modules["vllm.lora.request"].LoRARequest = lambda *arguments: arguments
    for name, module in modules.items():
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        monkeypatch.setitem(sys.modules, name, module)
    LLM.answers, LLM.refusal = {}, None


@pytest.fixture
def adapter(tmp_path, tiny_folder):
    def write(**settings):
        content = {"base_model_name_or_path": str(tiny_folder), "r": 12} | settings
        (tmp_path / "adapter_config.json").write_text(json.dumps(content))
        return str(tmp_path)

    return write


def test_vllm_is_asked_for_ids_with_a_seed_each_and_nothing_but_what_was_set(tokenizer, tiny_folder):
    draw = VLLMSampler(
        str(tiny_folder), tokenizer, max_new_tokens=9, temperature=0.6, top_p=0.9, top_k=20, dtype="float32"
    )
    draw.sample(PROMPTS, seed=4)
    assert LLM.started == {"model": str(tiny_folder), "dtype": "float32"}
    assert LLM.asked.prompts == [{"prompt_token_ids": prompt} for prompt in PROMPTS]
    assert LLM.asked.params == [
        {
            "max_tokens": 9,
            "temperature": 0.6,
            "top_p": 0.9,
            "top_k": 20,
            "stop_token_ids": [END],
            "detokenize": False,
            "seed": completion_seed(4, index),
        }
        for index in range(3)
    ]
    assert LLM.asked.lora is None


def test_answers_become_rollouts(tokenizer, tiny_folder):
    LLM.answers = {5: ((70, 71, END), "stop"), 8: ((72, 73, 74), "length")}
    ended, cut = VLLMSampler(str(tiny_folder), tokenizer, max_new_tokens=3).sample(PROMPTS[:2], seed=0)
    assert (ended.prompt_ids, ended.completion_ids) == ((5, 6, 7), (70, 71, END))
    assert (ended.text, ended.stop_reason) == (tokenizer.decode([70, 71]), StopReason.END)
    assert (cut.completion_ids, cut.stop_reason) == ((72, 73, 74), StopReason.LENGTH)
    assert not ended.retokenised


def test_other_settings_share_the_engine(tokenizer, tiny_folder):
    first = VLLMSampler(str(tiny_folder), tokenizer, max_new_tokens=3, temperature=0.6)
    LLM.refusal = RuntimeError("a second engine")
    other = first.with_sampling(max_new_tokens=5, top_p=0.9)
    other.sample(PROMPTS, seed=0)
    assert {(params["max_tokens"], params["temperature"], params["top_p"]) for params in LLM.asked.params} == {
        (5, 1.0, 0.9)
    }
    first.sample(PROMPTS, seed=0)
    assert {(params["max_tokens"], params["temperature"]) for params in LLM.asked.params} == {(3, 0.6)}


def test_progress_counts_prompts(tokenizer, tiny_folder, capsys):
    counts: list[int] = []
    VLLMSampler(str(tiny_folder), tokenizer, max_new_tokens=3, progress=counts.append).sample(PROMPTS, seed=0)
    assert counts == [1, 2, 3]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("rank", "room"), [(1, 1), (8, 8), (12, 16), (300, 320)])
def test_an_adapter_folder_brings_its_base_and_room_for_its_rank(tokenizer, tiny_folder, adapter, rank, room):
    folder = adapter(r=rank)
    VLLMSampler(folder, tokenizer, max_new_tokens=3).sample(PROMPTS, seed=0)
    assert LLM.started == {"model": str(tiny_folder), "enable_lora": True, "max_lora_rank": room}
    assert LLM.asked.lora == ("adapter", 1, folder)


def test_an_adapter_may_be_given_beside_its_base(tokenizer, tiny_folder, adapter):
    folder = adapter(rank_pattern={"q_proj": 40})
    VLLMSampler(str(tiny_folder), tokenizer, max_new_tokens=3, adapter=folder).sample(PROMPTS, seed=0)
    assert LLM.started == {"model": str(tiny_folder), "enable_lora": True, "max_lora_rank": 64}
    assert LLM.asked.lora == ("adapter", 1, folder)


def test_what_vllm_cannot_load_is_refused(tokenizer, tiny_folder, adapter, tmp_path):
    tiny, nowhere, file = str(tiny_folder), str(tmp_path / "nowhere"), tmp_path / "model.gguf"
    file.touch()
    for name, message, options in (
        (tiny, "no LoRA adapter", {"adapter": nowhere}),
        (adapter(), "two adapters", {"adapter": adapter()}),
        (nowhere, "no such model folder", {}),
        (str(file), "GGUF", {}),
        (adapter(r=600), "rank is too large", {}),
    ):
        with pytest.raises(ConfigError, match=message):
            VLLMSampler(name, tokenizer, max_new_tokens=3, **options)


@pytest.mark.parametrize(("answer", "message"), [(((70, 71), "length"), "max_model_len"), (((70,), "abort"), "abort")])
def test_a_completion_cut_for_want_of_context_or_broken_off_is_an_error(tokenizer, tiny_folder, answer, message):
    LLM.answers = {5: answer}
    with pytest.raises(ConfigError, match=message):
        VLLMSampler(str(tiny_folder), tokenizer, max_new_tokens=3).sample(PROMPTS, seed=0)


def test_vllms_refusal_to_start_is_one_line(tokenizer, tiny_folder):
    LLM.refusal = RuntimeError("\nEngine core initialization failed.\nSee above")
    with pytest.raises(ConfigError, match="Engine core initialization failed") as info:
        VLLMSampler(str(tiny_folder), tokenizer, max_new_tokens=3)
    assert "\n" not in str(info.value)


def test_a_missing_vllm_is_named(tokenizer, tiny_folder, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'sgsd\[vllm\]'"):
        VLLMSampler(str(tiny_folder), tokenizer, max_new_tokens=3)


def asked_for(key, text, max_tokens=20):
    return WriteRequest(key, [{"role": "user", "content": text}], {"title": key}, max_tokens, 7)


def test_a_writer_shares_the_samplers_engine_and_holds_each_request_to_its_schema(tokenizer, adapter):
    folder = adapter()
    sampler = VLLMSampler(folder, tokenizer, max_new_tokens=3)
    LLM.refusal = RuntimeError("a second engine")
    writer = VLLMWriter(sampler.engine, tokenizer, name="vllm tiny", temperature=0.4)
    requests = [asked_for("a", "One"), asked_for("b", "x" * 2000), asked_for("c", "Two", 30)]
    prompts = [
        tokenizer.apply_chat_template(request.messages, add_generation_prompt=True)["input_ids"] for request in requests
    ]
    long = len(prompts[1])
    ids = tokenizer.encode("{}", add_special_tokens=False)
    LLM.answers = {prompts[0][0]: ((*ids, END), "stop")}
    written = writer.write(requests)
    assert written == [
        Written("a", "{}", None, len(prompts[0]), 3),
        Written("b", None, f"the context of 1000 ended after a prompt of {long} and 0 tokens", long, 0),
        Written("c", "{}", None, len(prompts[2]), 3),
    ]
    assert [prompt["prompt_token_ids"] for prompt in LLM.asked.prompts] == [prompts[0], prompts[2]]
    assert LLM.asked.lora == ("adapter", 1, folder)
    common = {"temperature": 0.4, "top_p": 1.0, "top_k": 0, "stop_token_ids": [END], "detokenize": False, "seed": 7}
    assert LLM.asked.params == [
        common | {"max_tokens": length, "structured_outputs": {"json": {"title": key}}}
        for key, length in (("a", 20), ("c", 30))
    ]
    assert writer.name == "vllm tiny"


@pytest.mark.parametrize(
    ("reason", "max_tokens", "text", "error"),
    [
        ("abort", 1, None, "vLLM aborted the text: finish_reason 'abort'"),
        ("length", 1, "{", None),
        ("length", 2, None, "and 1 tokens"),
    ],
)
def test_a_text_cut_by_its_limit_is_handed_on_and_else_an_error(
    tokenizer, tiny_folder, reason, max_tokens, text, error
):
    LLM.answers = dict.fromkeys(range(300), (tokenizer.encode("{", add_special_tokens=False), reason))
    writer = VLLMWriter(VLLMSampler(str(tiny_folder), tokenizer, max_new_tokens=3).engine, tokenizer)
    (written,) = writer.write([asked_for("a", "One", max_tokens)])
    assert written.text == text
    assert (error is None) == (written.error is None)
    assert written.error is None or error in written.error
