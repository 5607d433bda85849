"""Nothing of ours runs what a file says, and no text of a bank becomes a path."""

from __future__ import annotations

import ast
import inspect
import json
import os
from pathlib import Path

import pytest
import torch
import transformers.trainer
import transformers.trainer_utils

from sgsd.bank import SkillBank
from sgsd.cli import main
from sgsd.data.problems import Problem
from sgsd.errors import CheckpointError

from .conftest import ROOT
from .trainers.tiny import forget_files, make_trainer

SOURCES = sorted((ROOT / "src").rglob("*.py"))
FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
FORBIDDEN_CALLS = {
    "eval", "exec", "compile", "os.system", "os.popen", "yaml.load", "yaml.unsafe_load", "yaml.full_load",
    "pd.read_pickle", "np.load", "sympy.sympify", "sympy.parse_expr",
}  # fmt: skip


def name_of(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{name_of(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


def offences(source: str) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] in FORBIDDEN_MODULES]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in FORBIDDEN_MODULES:
            found.append(str(node.module))
        elif isinstance(node, ast.Call):
            name = name_of(node.func)
            keywords = {k.arg: k.value for k in node.keywords}
            unsafe = name == "np.load" and "allow_pickle" not in keywords
            if name in FORBIDDEN_CALLS and not unsafe:
                found.append(name)
            if name == "torch.load" and ast.unparse(keywords.get("weights_only", ast.Constant(None))) != "True":
                found.append(name)
            if "shell" in keywords:
                found.append(f"{name} with shell")
    return found


def test_the_package_neither_unpickles_nor_evaluates_text():
    assert len(SOURCES) > 50
    assert {str(file): found for file in SOURCES if (found := offences(file.read_text()))} == {}


@pytest.mark.parametrize(
    "source",
    [
        "import pickle", "from pickle import loads", "import dill as d", "eval('1')", "torch.load(f)", "exec(x)",
        "torch.load(f, weights_only=False)", "yaml.load(f)", "subprocess.run(x, shell=True)",
        "np.load(f, allow_pickle=1)",
    ],
)  # fmt: skip
def test_the_check_finds_what_it_looks_for(source):
    assert offences(source)


def torch_loads(module) -> list[str]:
    """The values of ``weights_only`` in a module's calls of ``torch.load``."""
    calls = [node for node in ast.walk(ast.parse(inspect.getsource(module))) if isinstance(node, ast.Call)]
    return [
        next((ast.unparse(k.value) for k in call.keywords if k.arg == "weights_only"), "not given")
        for call in calls
        if name_of(call.func) == "torch.load"
    ]


def test_transformers_unpickles_weights_and_numbers_alone_from_a_checkpoint():
    for module in (transformers.trainer, transformers.trainer_utils):
        assert "torch.load" in inspect.getsource(module)
        assert set(torch_loads(module)) <= {"True"}, module
    assert len(torch_loads(transformers.trainer)) >= 8


class Payload:
    """Runs a command where it is unpickled without ``weights_only``."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_a_checkpoint_that_holds_code_does_not_run_it(tmp_path, name):
    settings = {"stub": True, "save_strategy": "steps", "save_steps": 1}
    make_trainer(tmp_path / "run", **settings).train()
    checkpoint = tmp_path / "run" / "checkpoint-1"
    torch.save({"state": Payload(f"touch {tmp_path / 'escaped'}")}, checkpoint / name)
    resumed = make_trainer(tmp_path / "run", max_steps=2, **settings)
    with pytest.raises(CheckpointError, match=f"cut short or changed: got .*{name}, "):
        resumed.train(resume_from_checkpoint=True)

    forget_files(checkpoint)  # code of the right size
    with pytest.raises(Exception, match="Weights only load failed"):
        resumed.train(resume_from_checkpoint=True)
    assert not (tmp_path / "escaped").exists()
    torch.load(checkpoint / name, weights_only=False)
    assert (tmp_path / "escaped").exists()  # it would have run


# ---- paths

TRAVERSALS = (
    "../../../escaped",
    "/tmp/sgsd-escaped",
    "..\\..\\escaped",
    "a/b/../../../escaped",
    "con:\\x",
    "~/x",
    "$HOME/x",
)


@pytest.fixture
def hostile_bank(tmp_path) -> Path:
    """A bank whose every name, id and parent is a path that leads out of the folder."""
    items = [
        {"id": name, "title": name, "text": f"Look at {n}.", "origin": "online", "parents": list(TRAVERSALS)}
        for n, name in enumerate(TRAVERSALS)
    ]
    document = {
        "schema_version": 1,
        "name": "../../../escaped",
        "metadata": {"path": "../../../escaped"},
        "skills": [item | {"when": "../x"} for item in items],
        "mistakes": [item | {"id": f"m{item['id']}", "avoid": "../x"} for item in items],
    }
    inside = tmp_path / "deep" / "deeper" / "inside"
    inside.mkdir(parents=True)
    (inside / "bank.json").write_text(json.dumps(document))
    return inside


def everything_under(folder: Path) -> set[Path]:
    return {file for file in folder.rglob("*") if file.is_file()}


@pytest.fixture
def nothing_outside(tmp_path, hostile_bank, monkeypatch):
    """Fails the test if a file appears anywhere but in the folder that the command works in."""
    monkeypatch.chdir(hostile_bank)
    before = everything_under(tmp_path)
    yield
    appeared = everything_under(tmp_path) - before
    assert {file for file in appeared if hostile_bank not in file.parents} == set()
    assert not [file for file in appeared if "escaped" in file.name]
    assert not Path("/tmp/sgsd-escaped").exists()


@pytest.mark.usefixtures("nothing_outside")
def test_a_bank_is_saved_where_it_was_asked_whatever_its_ids(hostile_bank):
    bank = SkillBank.load(hostile_bank / "bank.json")
    assert bank.skills[0].id == TRAVERSALS[0]
    bank.save(hostile_bank / "again.json")
    assert SkillBank.load(hostile_bank / "again.json") == bank


@pytest.mark.usefixtures("nothing_outside")
@pytest.mark.parametrize(
    "arguments",
    [
        "bank show bank.json --json",
        "bank check bank.json",
        "bank search bank.json 3+4? --retriever bm25",
        "bank import bank.json store.json",
        "bank export bank.json exported.json --format common",
        "bank export bank.json exported.json --format native",
        "bank diff bank.json bank.json",
    ],
)
def test_no_bank_command_takes_an_id_for_a_path(arguments, capsys):
    assert main(arguments.split()) in (0, 1, 2)
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.usefixtures("nothing_outside")
def test_nor_does_a_run_that_records_every_item_and_its_report(hostile_bank, capsys):
    problems = [Problem(id=name, text=f"{n} + 1?", answer=str(n + 1)) for n, name in enumerate(TRAVERSALS)]
    trainer = make_trainer(
        hostile_bank / "run",
        bank=SkillBank.load(hostile_bank / "bank.json"),
        problems=problems,
        stub=True,
        max_steps=2,
        save_strategy="steps",
        save_steps=1,
        trace_steps=1,
    )
    trainer.train()
    assert {"ledger.json", "traces.jsonl"} <= {file.name for file in (hostile_bank / "run").iterdir()}
    assert main(["bank", "ledger", "run", "--bank", "bank.json"]) in (0, 2)
    assert "Traceback" not in capsys.readouterr().err
