"""No command sends a terminal what it found in a text: escapes, bells, titles, carriage returns, reversed letters."""

from __future__ import annotations

import json
import logging
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sgsd.bank import Mistake, Origin, Skill, SkillBank
from sgsd.cli import main
from sgsd.display import keep_secret, logger, public_url, without_secrets
from sgsd.errors import SGSDError

from ..report.folders import write_run
from ..serving import serving

H = "\x1b[31m\x1b]0;PWNED\x07\rFAKE\x08\x9b2J\u202eabc\u2066\u2028z"
B = "\u202eabc\u2066\u061cz"  # what a bank may hold of it
STEERING = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]|\rFAKE"
)

TINY = "--verifier exact --max_completion_length 2"
SLOW_FLAGS = "--verifier exact --bf16 false --report_to none --disable_tqdm true --retriever bm25 --num_teachers 1"


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_folder) -> Path:
    """Everything that commands read, with steering characters in every text, key and name."""
    here = tmp_path_factory.mktemp("hostile")
    skills = [Skill(f"s{n}", f"T {B}", f"Add {n} {B}", f"W {B}", Origin.ONLINE) for n in range(2)]
    mistakes = [Mistake(f"m{n}", B, f"Lose {n} {B}", B, Origin.ONLINE) for n in range(2)]
    bank = SkillBank(tuple(skills), tuple(mistakes), name=B, metadata={B: B, "ignored_keys": [B]})
    bank.save(here / "bank.json")
    SkillBank(tuple(skills[:1]), (Mistake("m0", "x", B, "", Origin.SEED),), name=B).save(here / f"b{H}.json")
    (here / "ids.json").write_text((here / "bank.json").read_text().replace('"s0"', json.dumps(f"s0{H}")))
    rows = [
        {"id": f"p{n}{H}", "problem": f"What is {n} + 1? {H} {'words of a problem ' * 4}", "answer": f"{n + 1}", H: H}
        for n in range(4)
    ]
    for name in ("data.jsonl", f"d{H}.jsonl"):
        (here / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    (here / "columns.jsonl").write_text(json.dumps({f"question{H}": "1 + 1?", H: "2"}) + "\n")
    (here / "broken.jsonl").write_text(f'{{"problem": "{H}\n')
    (here / "config.yaml").write_text(json.dumps({f"max_steps{H}": 1}))
    (here / "value.yaml").write_text(json.dumps({"max_steps": H}))
    responses = [{"response": f"It is 3. {H}", "answer": f"{n}{H}", "correct": True, "id": H} for n in range(3)]
    (here / "responses.jsonl").write_text("".join(json.dumps(row) + "\n" for row in responses))
    (here / "rules.md").write_text(f"# {H}\n\n- Always add first {H}.\n- Never guess {H}.\n")
    for seed, name in enumerate(("one", f"two{H}")):
        run = write_run(here / name, seed=seed, instruction=f"{H}{seed}", model_name_or_path=H, objective=H)
        bank.save(run / "bank.json")
        record = json.loads((run / "run.json").read_text())
        (run / "run.json").write_text(json.dumps(record | {"data": {"source": H, "rows": 1, "kept": 1}}))
        summary = run / "evaluations" / "sums" / "summary.json"
        summary.write_text(json.dumps(json.loads(summary.read_text()) | {"dataset": f"sums{H}.jsonl", "verifier": H}))
        ledger = json.loads((run / "ledger.json").read_text())
        ledger["items"] = {f"{id}{H}": record for id, record in ledger["items"].items()}
        (run / "ledger.json").write_text(json.dumps(ledger))
    model = here / f"model{H}"
    shutil.copytree(tiny_folder, model)
    return here


# Of each the arguments by lines, ``H`` for the characters; exit codes do not matter.
COMMANDS = """
bank show bank.json
bank show bank.json --json
bank show bH.json
bank show noneH.json
bank show broken.jsonl
bank show rules.md
bank show ids.json
bank search bank.json whatHis
bank search bank.json what --json
bank search bank.json what --retriever H
bank check bank.json
bank check bank.json --problems data.jsonl
bank check bank.json --problems dH.jsonl --json
bank check bank.json --benchmark noneH
bank diff bank.json bH.json
bank diff bank.json bH.json --json
bank import bank.json newH.json
bank import bank.json newH.json
bank import bH.json other.json --json
bank export bank.json outH.json --format skill-md
bank ledger one
bank ledger one --json
bank ledger twoH
bank ledger noneH
bank build --dataset noneH --output buildH --model_name_or_path noneH
bank build --output buildH --config config.yaml
bank build --dataset data.jsonl --output build --samples H
bank H
contamination --train data.jsonl --test data.jsonl
contamination --train data.jsonl --test dH.jsonl --json
contamination --train data.jsonl --test columns.jsonl
contamination --train broken.jsonl --test data.jsonl
contamination --train data.jsonl --test data.jsonl --test_columns problem=H
compare one twoH
compare one twoH --json
compare one twoH --markdown
compare one twoH --latex
compare one --baseline H
compare noneH
report one twoH --output reportH.html
report noneH
eval --regrade one/evaluations/sums --verifier exact
eval --regrade responses.jsonl --verifier exact
eval --regrade responses.jsonl --verifier exact --json --output judgedH
eval --regrade responses.jsonl --verifier H
eval --regrade noneH
eval modelH --dataset dH.jsonl --verifier exact --max_completion_length 2 --output evaluationH
eval modelH --dataset columns.jsonl
eval modelH --dataset data.jsonl --engine openai --base_url SERVER --output served
eval modelH --dataset data.jsonl --engine openai --base_url http://H
eval noneH --dataset data.jsonl
eval modelH --dataset data.jsonl --chat_template_kwargs H
doctor bank.json --tasks data.jsonl --model modelH --verifier exact --rollouts 4 --max_completion_length 2 \
--retriever bm25
doctor noneH --tasks data.jsonl --model modelH
doctor rules.md --tasks noneH --model modelH
internalize rules.md --tasks noneH --model modelH --output inside
internalize noneH --tasks data.jsonl --model modelH --output insideH
train --dataset dH.jsonl --bank bH.json --model_name_or_path modelH --output_dir dryH --instruction H --dry_run SLOW
train --dataset dH.jsonl --bank bank.json --model_name_or_path modelH --output_dir runH --max_steps 1 \
--logging_steps 1 --log_completions true --max_completion_length 2 \
--per_device_train_batch_size 2 --gradient_accumulation_steps 1 SLOW
train --dataset noneH --model_name_or_path modelH --output_dir x
train --config config.yaml --output_dir x
train --config value.yaml --output_dir x
train --config noneH.yaml --output_dir x
train --H 1 --output_dir x
train --method H --output_dir x
lab run --variant H
lab table noneH
lab H
demo --H
H
--H
""".strip().split("\n")


@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_sends_a_terminal_what_it_read(folder, command, capfd, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    refusal = {"content": {"error": {"message": H}}, "status": 400}
    with serving(lambda body, attempt: refusal) as server:
        words = command.replace("SLOW", SLOW_FLAGS).replace("SERVER", server.url).split()
        arguments = [word.replace("H", H) for word in words]
        capfd.readouterr()
        try:
            code = main(arguments)
        except SystemExit as exit:
            code = exit.code
    shown = "".join(capfd.readouterr())
    assert code in (0, 1, 2), shown
    assert STEERING.search(shown) is None, ascii(shown)
    assert "Traceback" not in shown


def test_a_message_and_a_log_are_visible_text(caplog, capfd):
    error = SGSDError(f"what {H}", got=H, expected=H, remedy=H)
    logger("sgsd.tests").warning("%s and %s", H, error)
    for text in (str(error), caplog.records[-1].getMessage()):
        assert text.isprintable()
        assert text.count("⟨U+001B⟩") >= 2
    assert len(str(SGSDError("what", got="x" * 10**6))) < 3_000
    assert logging.getLogger("sgsd.tests").filters == logger("sgsd.tests").filters


def test_what_other_libraries_log_of_a_file_is_visible(folder, tiny_folder, tmp_path, capfd):
    model = shutil.copytree(tiny_folder, tmp_path / "model")
    weights = load_file(model / "model.safetensors")
    save_file(weights | {f"model.{H}": torch.zeros(1)}, model / "model.safetensors", metadata={"format": "pt"})
    adapter = {"peft_type": "LORA", "target_modules": ["q_proj"], H: 1, "base_model_name_or_path": str(model)}
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(adapter))
    shutil.copy(tiny_folder / "model.safetensors", tmp_path / "adapter" / "adapter_model.safetensors")
    tell = logging.StreamHandler()  # pytest takes over those of transformers
    logging.getLogger("transformers").addHandler(tell)
    try:
        for name in ("model", "adapter"):
            main(["eval", str(tmp_path / name), "--dataset", str(folder / "data.jsonl"), *TINY.split()])
    finally:
        logging.getLogger("transformers").removeHandler(tell)
    shown = "".join(capfd.readouterr())
    assert "model.⟨U+001B⟩" in shown
    assert STEERING.search(shown) is None, ascii(shown)


def test_json_reads_back_as_it_was(sgsd, folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert SkillBank.from_json(sgsd("bank", "show", "bank.json", "--json").out) == SkillBank.load("bank.json")


@pytest.mark.parametrize(
    "settings",
    [
        {"maintenance_writer_url": "http://u:sesame@h/v1"},
        {"maintenance_writer_url": "http://h/v1?api-key=sesame"},
        {"eval_dataset": "https://u:sesame@h/x.jsonl", "dataset": "https://h/x.jsonl?sig=sesame"},
        {"hub_token": ["sesame"]},
        {"hub_token": 5, "model_name_or_path": "HTTPS://u:sesame@h"},
    ],
)
def test_no_error_shows_what_a_setting_holds_of_secrets(sgsd, tmp_path, settings):
    (tmp_path / "run.yaml").write_text(json.dumps(settings))
    result = sgsd("train", "--config", tmp_path / "run.yaml", "--output_dir", tmp_path / "run", "--dry_run")
    assert (result.code, "sesame" in result.out + result.err) == (2, False), result.err


@pytest.mark.parametrize(
    ("url", "public"),
    [
        ("http://u:sesame@h:8/v1?k=sesame#sesame", "http://h:8/v1"),
        ("u:sesame@h:80", "u:h:80"),
        ("h:80/v1?k=sesame", "h:80/v1"),
        ("http:\\\\u:sesame@h", "http:///h"),
        ("//u:sesame@h/", "//h/"),
        ("HTTP://u:sesame@h", "http://h"),
    ],
)
def test_a_url_is_shown_and_recorded_without_its_secrets(url, public):
    assert public_url(url) == public
    assert without_secrets({"base_url": url}) == {"base_url": public}
    assert "sesame" not in str(SGSDError("what", got=f"a server {url if '://' in url else public}"))


def test_what_is_no_secret_stays_in_an_error():
    for text in ("reasoning_gym:sums?size=5&seed=1", "http://localhost:8000/v1", "a@b", "$x?y@z://"):
        assert text in str(SGSDError("what", got=text))


def test_a_secret_is_masked_in_whatever_is_shown(sgsd, tmp_path):
    keep_secret("sesame-open")
    assert "(key)" in sgsd("bank", "show", tmp_path / "sesame-open.json").error
