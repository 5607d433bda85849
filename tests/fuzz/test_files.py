"""Every file that the package reads, with one of its values replaced by what nobody meant, and every command that reads
it: one line on standard error, or it works. A new kind of file is a line in ``KINDS``.

``SGSD_FUZZ_CASES`` sets how many cases there are, as in ``test_fuzz``: some 350, the same ones each time, by default;
20,000 and more, drawn anew, in ``make test-fuzz``.
"""

from __future__ import annotations

import io
import json
import logging
import os
import random
import re
import resource
import shutil
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sgsd.bank import SkillBank
from sgsd.cli import main
from sgsd.data.problems import Problem
from sgsd.memories import memory_of
from sgsd.verifiers import Outcome, Verdict, get_verifier

from ..conftest import make_model, make_tokenizer
from ..report.folders import write_run
from ..serving import Server
from .test_linear import TooSlowError, limited

CASES = int(os.environ.get("SGSD_FUZZ_CASES", "1200")) * 3 // 10
DRAW = random.Random(None if "SGSD_FUZZ_CASES" in os.environ else 0)
SECONDS, GIGABYTES = 10, 2
pytestmark = pytest.mark.slow
GONE = "gone"
HOSTILE = {
    "null": "null", "true": "true", "a number": "3", "zero": "0", "negative": "-1", "a fraction": "0.5", "text": '"x"',
    "no text": '""', "a list": "[]", "an object": "{}", "lists": '[[1], {"a": null}]', "huge": "1" + "0" * 30,
    "1e308": "1e308", "beyond": "1e999", "NaN": "NaN", "-Infinity": "-Infinity", "5,000 digits": "9" * 5_000,
    "deep": "[" * 100_000 + "]" * 100_000, "deep objects": '{"a":' * 900 + "1" + "}" * 900,
    "long": f'"{"x" * 1_000_000}"', "a surrogate": r'"\ud800"', "a path": '"../../../../etc/passwd"',
    "controls": r'"\u001b]0;x\u0007\r\u0000\u202e[/x]"', "a URL": '"https://u:p@127.0.0.1:9/x?api-key=k"', GONE: "",
}  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """Files, and the commands that read them.

    Attributes:
        files: in the folder of everything.
        commands: ``{}`` is the file, ``{0}`` its folder, ``OUT`` a new one.
        outputs: further folders that they may write to.
        foreign: transformers or PEFT read it: the command line's last net may answer for them.
    """

    files: tuple[str, ...]
    commands: tuple[str, ...]
    outputs: tuple[str, ...] = ()
    foreign: bool = False


DRY = (
    "train --dry_run --bf16 false --retriever bm25 --verifier exact --max_completion_length 8 --max_prompt_length 900 "
    "--per_device_train_batch_size 2 --gradient_accumulation_steps 1 --output_dir OUT"
)
TINY = "--verifier exact --max_completion_length 2 --limit 2 --batch_size 2"
OF_RUNS = (
    "report run --output OUT/page.html", "compare run other", "bank ledger run", "bank ledger run --json",
    "eval --regrade run/evaluations/sums", "eval --regrade run/evaluations/sums --output OUT --json",
    "bank check run/bank.json", "eval run --dataset rows.jsonl --output OUT " + TINY,
)  # fmt: skip
OF_BANKS = (
    "bank show {}", "bank show {} --json", "bank search {} 3+4?", "bank check {}", "bank diff {} bank/bank.json",
    "bank import {} OUT/b.json", "bank export {} OUT/b.json", "bank export {} OUT/SKILL.md --format skill-md",
    DRY + " --num_teachers 2 --bank {} --dataset rows.jsonl --model_name_or_path tiny",
)  # fmt: skip
OF_DATA = (
    DRY + " --num_teachers 2 --bank bank --dataset {} --model_name_or_path tiny",
    "contamination --train {} --test rows.jsonl",
    DRY + " --method grpo --num_generations 2 --dataset {} --model_name_or_path tiny", "bank check bank --problems {}",
    "contamination --train rows.jsonl --test {} --json", "eval tiny --output OUT --dataset {} " + TINY,
)  # fmt: skip
OF_MODELS = (
    DRY + " --num_teachers 2 --bank bank/bank.json --dataset rows.jsonl --model_name_or_path {0}",
    "eval {0} --output OUT --dataset rows.jsonl " + TINY,
)
KINDS = {
    "run": Kind(
        tuple(
            f"run/{name}"
            for name in (
                "run.json", "trainer_state.json", "ledger.json", "traces.jsonl", "bank-start.json",
                "bank.json", "maintenance.jsonl", "guard.json", "doctor.json", "certificate.json",
                "evaluations/sums/samples.jsonl", "evaluations/sums/summary.json",
            )
        ),
        OF_RUNS,
    ),
    "evaluation": Kind(
        ("evaluation/settings.json", "evaluation/samples.jsonl", "evaluation/summary.json"),
        (
            "eval tiny --output evaluation --dataset rows.jsonl " + TINY,
            "eval --regrade evaluation",
            "compare evaluation",
        ),
        ("evaluation",),
    ),
    "responses": Kind(("responses.jsonl",), ("eval --regrade responses.jsonl --verifier exact --json",)),
    "bank": Kind(("bank/bank.json", "common.json"), OF_BANKS),
    "origins": Kind(
        ("bank/memories.jsonl", "bank/candidates.jsonl", "bank/lineage.json"),
        (
            "bank check bank --memories bank/memories.jsonl",
            "bank check bank",
        ),
    ),
    "data": Kind(("rows.jsonl", "rows.json", "prompts.jsonl", "gsm8k.jsonl", "gym.jsonl"), OF_DATA),
    "settings": Kind(("settings.yaml",), (DRY + " --config settings.yaml",)),
    "model": Kind(
        ("tiny/config.json", "tiny/generation_config.json", "tiny/tokenizer_config.json"), OF_MODELS, foreign=True
    ),
    "adapter": Kind(("adapter/adapter_config.json",), OF_MODELS, foreign=True),
    "server": Kind(
        ("reply.json",), ("eval tiny --engine openai --base_url URL --output OUT --dataset rows.jsonl " + TINY,)
    ),
    "internalized": Kind(
        ("made/plan.json", "made/doctor.json", "made/run/run.json", "made/run/trainer_state.json",
         "made/run/ledger.json", "made/evaluations/before/summary.json", "made/evaluations/after/samples.jsonl",
         "made/evaluations/with_document/samples.jsonl"),
        ("internalize SKILL.md --tasks tasks.jsonl --model tiny --output made --force -- --max_completion_length 4 "
         "--max_steps 1 --dtype float32 --per_device_train_batch_size 4",),
        ("made",),
    ),
}  # fmt: skip

# ---- a folder of everything, made once


def write(file: Path, *documents: Any) -> None:
    """JSON lines; of one document a JSON file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(one) + "\n" for one in documents))


def make_everything(world: Path) -> str:
    """The files of ``KINDS`` but ``made``; returns the id of an item in their banks."""
    from peft import LoraConfig, get_peft_model

    for method, name in (("sgsd", "run"), ("grpo", "other")):
        write_run(world / name, method=method, steps=3, model_name_or_path="tiny", verifier="exact")
    bank = SkillBank.load(world / "run" / "bank.json")
    shutil.copytree(world / "run", world / "bank", ignore=lambda *_: {"evaluations", "run.json", "traces.jsonl"})
    write(world / "common.json", json.loads(bank.to_common_json()))
    problem = Problem("sum-1", "What is 1 + 1?", "2")
    memory = memory_of(problem, "It is 3.", Verdict(Outcome.INCORRECT), truncated=False, source="run")
    assert memory is not None
    for folder in ("run", "bank"):
        write(world / folder / "maintenance.jsonl", {"step": 1, "memories_kept": [memory.as_dict()], "items": []})
    write(world / "bank" / "memories.jsonl", memory.as_dict(), memory.as_dict() | {"id": "memory-2"})
    item = bank.skills[0]
    candidate = {"id": "candidate-1", "kind": "skill", "title": "Sums", "text": "Add.", "parents": [memory.id]}
    write(world / "bank" / "candidates.jsonl", candidate, candidate | {"id": "candidate-2"})
    write(world / "run" / "guard.json", {"step": 3, "reason": "entropy is nan", "metrics": {"entropy": None}})
    write(world / "bank" / "lineage.json", {item.id: ["candidate-1"], "candidate-1": [memory.id]})
    rows = [{"id": f"sum-{n}", "problem": f"What is {n} + 1?", "answer": str(n + 1), "note": [n]} for n in range(8)]
    write(world / "rows.jsonl", *rows)
    (world / "rows.json").write_text(json.dumps(rows))
    talk = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is 1 + 1?"}]
    truth = {"reward_model": {"ground_truth": "2", "style": "rule"}, "extra_info": {"index": "1"}, "data_source": "d"}
    write(world / "prompts.jsonl", {"prompt": talk, **truth}, {"prompt": talk[1:], **truth})
    write(world / "gsm8k.jsonl", *({"question": f"{n} + 1?", "answer": f"It is.\n#### {n + 1}"} for n in range(2)))
    metadata = {"source_dataset": "basic_arithmetic", "difficulty": {"num_terms": [2, 2]}}
    write(
        world / "gym.jsonl", *({"question": f"{n} + 1 =", "answer": f"{n + 1}", "metadata": metadata} for n in (1, 2))
    )
    responses = ({"response": f"It is {n}.", "answer": "2", "correct": n == 2, "id": str(n)} for n in range(3))
    write(world / "responses.jsonl", *responses)
    settings = {"model_name_or_path": "tiny", "dataset": "rows.jsonl", "bank": "bank/bank.json", "max_steps": 2}
    settings |= {"learning_rate": 1e-4, "use_peft": True, "lora_r": 4, "report_to": ["none"], "num_teachers": 2}
    settings |= {"chat_template_kwargs": {"x": True}}
    (world / "settings.yaml").write_text(json.dumps(settings))  # which is YAML, too
    model = make_model()
    model.save_pretrained(world / "tiny")
    make_tokenizer().save_pretrained(world / "tiny")
    shutil.copytree(world / "tiny", world / "run", dirs_exist_ok=True)
    samples = world / "run" / "evaluations" / "sums" / "samples.jsonl"
    told = {"problem": "What is 1 + 1?", "reference": "2"}
    write(samples, *(json.loads(line) | told for line in samples.read_text().splitlines()))
    get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(world / "adapter")
    adapter = json.loads((world / "adapter" / "adapter_config.json").read_text())
    write(world / "adapter" / "adapter_config.json", adapter | {"base_model_name_or_path": "tiny"})
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "2"}, "text": "2"}
    about = {"id": "x", "object": "chat.completion", "created": 1, "model": "tiny"}
    write(world / "reply.json", {**about, "choices": [choice | {"logprobs": None}], "usage": usage})
    tasks = [{"problem": f"Shelf of {n}?", "answer": str(n % 3)} for n in range(9)]
    write(world / "tasks.jsonl", *tasks)
    (world / "SKILL.md").write_text("# Shelves\n\n- Clay is on shelf 1.\n- Never put tin on shelf 2.\n")
    return item.id


class World:
    """A folder that is the same before each case, and a server that answers with a file in it."""

    def __init__(self, folder: Path) -> None:
        self.root, self.kept = folder / "world", folder / "kept"
        self.root.mkdir()
        make_everything(self.root)
        self.server = Server(lambda body, attempt: {"content": (self.root / "reply.json").read_bytes()})
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def finish(self) -> None:
        """The parts that commands make, and a reply that fits what is asked."""
        self.run(KINDS["server"].commands[0])
        reply = json.loads((self.root / "reply.json").read_text())
        reply["usage"]["prompt_tokens"] = len(self.server.bodies[0]["prompt"])
        write(self.root / "reply.json", reply)
        for name in ("evaluation", "internalized"):
            code, _, err = self.run(KINDS[name].commands[0])
            assert code == 0, err
        for name in ("doctor.json", "certificate.json"):
            shutil.copy(self.root / "made" / name, self.root / "run" / name)
        shutil.rmtree(self.root / "out", ignore_errors=True)
        shutil.copytree(self.root, self.kept)
        self.files = self.snapshot()

    def snapshot(self) -> dict[str, tuple[int, int]]:
        return {
            str(file.relative_to(self.root)): (file.lstat().st_size, file.lstat().st_mtime_ns)
            for file in self.root.rglob("*")
            if not file.is_dir()
        }

    def run(self, command: str) -> tuple[int, str, str]:
        """Exit code, standard output, standard error, of streams as strict as a terminal's."""
        words = {"OUT": "out", "URL": self.server.url}
        arguments = [re.sub("OUT|URL", lambda word: words[word[0]], one) for one in command.split()]
        streams = [io.TextIOWrapper(io.BytesIO(), "utf-8", errors) for errors in ("strict", "backslashreplace")]
        before = sys.stdout, sys.stderr
        sys.stdout, sys.stderr = streams
        try:
            code = main(arguments)
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 1
        finally:
            sys.stdout, sys.stderr = before
        for stream in streams:
            stream.flush()
        out, err = (stream.buffer.getvalue().decode() for stream in streams)
        return code, out, err

    def restore(self, outputs: tuple[str, ...]) -> list[str]:
        """The files outside ``out`` and ``outputs`` that a command changed; all are as they were again."""
        now = self.snapshot()
        changed = [name for name in {*now, *self.files} if now.get(name) != self.files.get(name)]
        for name in changed:
            if name in self.files:
                (self.root / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(self.kept / name, self.root / name)
            else:
                (self.root / name).unlink()
        shutil.rmtree(self.root / "out", ignore_errors=True)
        return [name for name in changed if not name.startswith(tuple(f"{folder}/" for folder in ("out", *outputs)))]


@contextmanager
def limited_memory() -> Iterator[None]:
    """Within, no more than ``GIGABYTES`` beyond what there is."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + GIGABYTES * 2**30, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


# ---- the cases


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where the values of a document are; of a list the first and the last."""
    yield path
    keys = (
        [*value]
        if isinstance(value, dict)
        else sorted({0, len(value) - 1})
        if isinstance(value, list) and value
        else []
    )
    for key in keys:
        yield from places(value[key], (*path, key))


def replaced(document: Any, path: tuple[Any, ...], by: str) -> str:
    """The document's JSON with one value replaced by a text, or left out."""
    if not path:
        return by
    copy = json.loads(json.dumps(document))
    inner = copy
    for key in path[:-1]:
        inner = inner[key]
    if not by:
        del inner[path[-1]]
        return json.dumps(copy)
    inner[path[-1]] = "@@"
    return json.dumps(copy).replace('"@@"', by, 1)


def command_on(command: str, file: str) -> str:
    return command.format(file.split("/")[0] if "{0}" in command else file)


def cases(world: World, kind: Kind) -> list[tuple[str, int, tuple[Any, ...], str, str]]:
    """(file, line, place of the value, name of what replaces it, command)."""
    found = []
    for file in kind.files:
        lines = (world.kept / file).read_text().splitlines()
        if not file.endswith("l") or file.endswith("yaml"):
            lines = ["\n".join(lines)]
        for number in sorted({0, len(lines) - 1}):
            for path in places(json.loads(lines[number])):
                found += [
                    (file, number, path, name, command_on(command, file))
                    for name in HOSTILE
                    for command in kind.commands
                ]
    return found


CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\x80-\x9f\u202a-\u202e\u2066-\u2069]")


def wrong(world: World, kind: Kind, case: tuple[str, int, tuple[Any, ...], str, str]) -> list[str]:
    """What a case does that it must not."""
    file, number, path, name, command = case
    target = world.root / file
    lines = target.read_text().splitlines()
    whole = not file.endswith(".jsonl")
    lines = ["\n".join(lines)] if whole else lines
    lines[number] = replaced(json.loads(lines[number]), path, HOSTILE[name])
    given = "\n".join(lines) + "\n"
    target.write_text(given)
    found: list[str] = []
    began = time.monotonic()
    try:
        with limited_memory(), limited(SECONDS):
            code, out, err = world.run(command)
    except TooSlowError:
        found.append("it hangs")
    except Exception as error:  # noqa: BLE001 - any is a finding
        trace = error.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        where = f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}" if trace else "?"
        found.append(f"{type(error).__name__} at {where}")
    else:
        said = [line for line in err.splitlines() if line.startswith("sgsd: ")]
        if missed := re.search(r"unexpected \w+ at [\w.]+:\d+", err):
            found += [] if kind.foreign else [f"the last net: {missed[0]}"]
        elif code not in (0, 1, 2) or (code == 2 and len(said) != 1):
            found.append(f"exit code {code}, {err[-140:]!r}")
        elif code == 2 and not err.rstrip().endswith(said[0].rstrip()):
            found.append(f"more than one line: {err[-140:]!r}")
        if controls := CONTROLS.search(out + err):
            found.append(f"{controls[0]!r} is printed")
    if time.monotonic() - began > 12 * SECONDS:
        found.append("it waits")
    if file.split("/")[0] not in kind.outputs and target.read_text() != given:
        found.append("it changes the file")
    shutil.copy2(world.kept / file, target)
    if changed := world.restore(kind.outputs):
        found.append(f"it changes {', '.join(sorted(changed)[:3])}")
    return found


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("everything")
    made = World(folder)
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture
def quiet(world, monkeypatch):
    """The commands run in the folder; what they log, or leave behind in this process, goes with the test."""
    monkeypatch.chdir(world.root)
    for name in ("OPENAI_API_KEY", "HF_TOKEN"):
        monkeypatch.setenv(name, "sk-of-the-test")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        level = logging.root.level
        yield
        logging.root.setLevel(level)


def of(world: World, name: str) -> Kind:
    """A kind of file, once there is one of each."""
    if not world.kept.exists():
        get_verifier("exact").warm_up()
        world.finish()
    return KINDS[name]


@pytest.mark.timeout(600)
@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("name", KINDS)
def test_every_command_works_on_the_files_as_they_are(world, name):
    kind = of(world, name)
    for command in {command_on(command, file) for command in kind.commands for file in kind.files}:
        code, _, err = world.run(command)
        assert code == (command.startswith("bank check")), (command, err)  # there is always something odd
        assert world.restore(kind.outputs) == []


@pytest.mark.timeout(600 + CASES)
@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("name", KINDS)
def test_no_value_of_a_file_brings_a_command_down(world, name):
    kind = of(world, name)
    every = cases(world, kind)
    found: dict[str, str] = {}
    for case in DRAW.sample(every, min(len(every), CASES // len(KINDS))):
        for what in wrong(world, kind, case):
            file, line, path, value, command = case
            found.setdefault(f"{command.split()[0]}: {what}", f"{file}:{line + 1} {path} = {value}: sgsd {command}")
    assert found == {}
