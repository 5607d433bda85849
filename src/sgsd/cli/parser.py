"""The command line: every command and its flags but for ``train``'s, which are TRL's own dataclasses (``settings``).

Arguments are parsed before any framework is imported. What the user got wrong is one line on standard error and exit
code 2, anything else that goes wrong one line and 1; ``--debug`` shows where it came from.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import math
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from sgsd import __version__, examples
from sgsd.cli.flags import SAMPLE_BATCHES, at_home, spelled
from sgsd.display import say
from sgsd.errors import ConfigError, SGSDError, did_you_mean

_EPILOG = """\
Presets for --config: internalize, bank, lab, correction-qwen3-1.7b, sgsd-qwen3-1.7b, sgsd-qwen3-4b, sgsd-qwen3-8b,
sgsd-upstream-qwen3-1.7b, grpo-qwen3-1.7b, opsd-qwen3-1.7b. Documentation: README.md, docs/."""

_DTYPES = ("auto", "bfloat16", "float16", "float32")
_RETRIEVERS = ("embedding", "bm25", "random")
_COLUMNS = "which column is what: problem=question,answer=gold"
_BANK = "a bank file, a folder with bank.json, or a shipped bank as seed:NAME"
_MODEL = "hub name, folder, adapter, or local:NAME"
_BUILDS = {
    "build": "a bank from a model's own rollouts: sample, verify, extract, merge; goes on where it was cut off",
    "sample": "the first stage of build alone: rollouts",
    "verify": "the second: rollouts to memories",
    "extract": "the third: memories to candidates",
    "merge": "the last: candidates to a bank without leaks",
}
_DEBUG_OPTIONS = ("underflow_overflow", "tpu_metrics_debug")  # of transformers
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


class Parser(argparse.ArgumentParser):
    """Flags are spelled out, and an error is a ``ConfigError``."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, allow_abbrev=False)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            choices = [str(choice) for choice in action.choices]
            raise ConfigError(
                f"unknown {'/'.join(action.option_strings) or action.dest}",
                got=repr(value),
                expected=", ".join(choices),
                remedy=did_you_mean(str(value), choices) or f"see {self.prog} --help",
            )

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message, remedy=f"see {self.prog} --help")


# ---- values of flags


def _number(kind: type[int] | type[float], fits: Callable[[Any], bool], expected: str) -> Callable[[str], Any]:
    """A type for argparse: a number in a range."""

    def read(text: str) -> Any:
        value = kind(text)
        if not fits(value):
            raise argparse.ArgumentTypeError(f"out of range: got {value}; expected {expected}")
        return value

    read.__name__ = kind.__name__  # which argparse tells
    return read


_count = _number(int, lambda value: value >= 1, "1 or more")
_natural = _number(int, lambda value: value >= 0, "0 or more")
_temperature = _number(float, lambda value: 0 <= value < math.inf, "0 (greedy) or more")
_share = _number(float, lambda value: 0 < value <= 1, "above 0, at most 1")


def _mapping(text: str) -> dict[str, Any]:
    from sgsd.validation import parse_json  # with pydantic, which takes longer than the rest of the command line

    try:
        return parse_json(text, repr(text), ConfigError)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


# ---- commands


def build_parser(command: str | None = None) -> argparse.ArgumentParser:
    """The parser of everything but ``train``'s own flags.

    Args:
        command: the one that is called; ``bank`` alone brings the flags of its builds.
    """
    parser = Parser(
        prog="sgsd",
        description="Skill-conditioned gated self-distillation.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,  # the default breaks lines inside names
    )
    parser.add_argument("--version", action="version", version=f"sgsd {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")  # read by main
    commands = parser.add_subparsers(dest="command", required=True, parser_class=Parser)

    def add(name: str, help: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=help)
        made.set_defaults(module=name)
        return made

    # Examples have flags of their own, as train has.
    commands.add_parser("demo", help="a SKILL.md into SmolLM2-135M on this CPU, in minutes", add_help=False)
    commands.add_parser(
        "train", help="train with SGSD or another method (flags: sgsd train --help; all: --help all)", add_help=False
    )
    _add_internalize(
        add("internalize", "a document of rules (SKILL.md) into the weights, measured, with a certificate")
    )
    _add_eval(add("eval", "accuracy of a run, a model or an adapter; or stored responses again"))
    _add_doctor(add("doctor", "says before training whether a bank or document will help"))

    compare = add("compare", "methods side by side, with intervals and paired differences")
    compare.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folders, or folders of sgsd eval")
    compare.add_argument("--baseline", help="a row's label or folder (default: Base if it is there, else the first)")
    compare.add_argument("--checkpoint", type=int, help="step to compare all runs at (default: each one's final one)")
    forms = compare.add_mutually_exclusive_group()
    for form in ("json", "markdown", "latex"):
        forms.add_argument(f"--{form}", action="store_true", help=f"print {form}")

    contamination = add("contamination", "test problems that the training data holds")
    for name in ("train", "test"):
        contamination.add_argument(f"--{name}", nargs="+", required=True, help="files, hub names, aime24 …")
        for choice in ("split", "config", "adapter"):
            contamination.add_argument(f"--{name}_{choice}")
        contamination.add_argument(f"--{name}_columns", help=_COLUMNS)
    contamination.add_argument("--n", type=int, default=12, help="words in a row that make an overlap")
    contamination.add_argument("--show", type=_natural, default=10, help="pairs to print")
    contamination.add_argument("--json", action="store_true", help="print all pairs as JSON")

    report = add("report", "one HTML page of runs: comparison, curves, teachers, rollouts, banks")
    report.add_argument("runs", type=Path, nargs="+", help="run folders, of several methods and seeds")
    report.add_argument("--output", type=Path, default=Path("report.html"), help="file to write")

    lab = "the controlled benchmark of a checkout: hidden rules, a bank of known worth, minutes"
    commands.add_parser("lab", help=lab, add_help=False)
    bank = add("bank", "skill banks: build, show, search, check, compare, rank")
    _add_bank(bank, is_chosen=command == "bank")
    return parser


def _add_internalize(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("document", help="a Markdown file, a folder with SKILL.md, AGENTS.md or CLAUDE.md, or a bank")
    parser.add_argument("--model", required=True, help=_MODEL)
    parser.add_argument("--output", type=Path, required=True, help="folder; the same call goes on in it")
    asked = parser.add_argument_group("tasks")
    asked.add_argument("--tasks", required=True, help="problems with answers: a file, a hub name …")
    asked.add_argument("--columns", help=_COLUMNS)
    asked.add_argument("--held_out", help="problems to measure with (every third task, at most 200)")
    asked.add_argument("--retain", help="problems that show what was forgotten (sums)")
    taught = parser.add_argument_group("training", "the preset internalize; its settings as flags behind --")
    taught.add_argument("--baseline", choices=("grpo",), help="the same budget beside it")
    taught.add_argument("--baseline_learning_rate", type=float, help="its own (the run's)")
    taught.add_argument("--seed", type=int, default=0)
    taught.add_argument("--force", action="store_true", help="train although the doctor says no")
    taught.add_argument("settings", nargs="*", help="after --, flags of sgsd train, such as: -- --max_steps 100")


def _add_eval(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", help="run folder, checkpoint, adapter, hub name, or local:NAME")
    data = parser.add_argument_group("data")
    data.add_argument(
        "--dataset",
        help="file, hub name, reasoning_gym:TASK, or aime24, aime25, hmmt25, amc23, math500, gsm8k, minerva; several "
        "with commas (the run's eval_dataset)",
    )
    data.add_argument("--lm_eval", metavar="TASKS", help="tasks of lm-evaluation-harness by name or YAML file, instead")
    data.add_argument("--dataset_file", help="file in place of the hub, for a data set known by name")
    for choice in ("split", "config", "adapter"):
        data.add_argument(f"--dataset_{choice}")
    data.add_argument("--dataset_columns", "--columns", help=_COLUMNS)
    data.add_argument("--limit", type=int, help="problems at most")
    sampling = parser.add_argument_group("sampling", "defaults: those of the data set known by name, else these")
    sampling.add_argument("--samples", type=_count, help="k of avg@k (1)")
    sampling.add_argument("--temperature", type=_temperature, help="0 is greedy (1.0)")
    sampling.add_argument("--top_p", type=_share, help="(0.95)")
    sampling.add_argument("--top_k", type=_natural, help="0 is off (0)")
    sampling.add_argument("--max_completion_length", type=_count, help="new tokens (the run's, else 1024)")
    sampling.add_argument("--seed", type=int, default=0)
    prompts = parser.add_argument_group("prompts and verdicts", "defaults: the run's")
    prompts.add_argument("--verifier", help="(math)")
    prompts.add_argument("--instruction", help="ends every prompt")
    prompts.add_argument("--thinking", choices=("on", "off"), help="the chat template's enable_thinking")
    prompts.add_argument("--chat_template_kwargs", type=_mapping, help='JSON, such as {"enable_thinking": true}')
    prompts.add_argument("--skills_in_prompt", action="store_true", help="show each problem's best pairs of the bank")
    prompts.add_argument("--bank", help="with --skills_in_prompt: a file, or seed:NAME")
    prompts.add_argument("--retriever", choices=_RETRIEVERS)
    prompts.add_argument("--embedder", help="hub name, folder, or local:all-minilm-l6-v2")
    prompts.add_argument("--pairs", type=_count, help="pairs to show (1)")
    engine = parser.add_argument_group("engine")
    engine.add_argument("--engine", choices=tuple(SAMPLE_BATCHES), default="transformers")
    engine.add_argument("--batch_size", type=_count, help="samples drawn, judged and kept at a time (32, 512, 256)")
    engine.add_argument("--dtype", choices=_DTYPES, help="(float32; auto for vllm)")
    engine.add_argument("--device", help="of transformers (the GPU if there is one)")
    engine.add_argument("--base_url", help="of an OpenAI-compatible server, such as http://localhost:8000/v1")
    engine.add_argument("--served_model", help="the server's name for the model (the model)")
    engine.add_argument("--concurrency", type=int, help="requests to the server at a time (16)")
    engine.add_argument("--trust_remote_code", action="store_true", help="run code that comes with the model")
    output = parser.add_argument_group("output")
    output.add_argument(
        "--output", type=Path, help="folder for samples and summary (default for a run: its evaluations/DATASET)"
    )
    output.add_argument("--force", action="store_true", help="discard another evaluation in that folder")
    output.add_argument("--json", action="store_true", help="print the summary as JSON")
    again = parser.add_argument_group("stored responses")
    again.add_argument("--regrade", type=Path, help="judge an evaluation or a JSONL of responses again; no model")
    again.add_argument("--show", type=_natural, default=20, help="disagreements to print (20)")


def _add_doctor(parser: argparse.ArgumentParser) -> None:
    above = _number(float, lambda value: 0 < value < math.inf, "above 0")
    parser.add_argument("bank", help="a document (SKILL.md), its folder, a bank file, or a shipped bank as seed:NAME")
    parser.add_argument("--tasks", required=True, help="problems with answers: file, hub name, or reasoning_gym:TASK")
    parser.add_argument("--columns", help=_COLUMNS)
    parser.add_argument("--model", required=True, help=_MODEL)
    parser.add_argument("--verifier", default="math", help="(math)")
    parser.add_argument("--instruction", help="ends every prompt")
    parser.add_argument("--max_completion_length", type=_count, default=1024, help="new tokens of a rollout (1024)")
    parser.add_argument("--temperature", type=above, default=1.0, help="of rollouts (1.0)")
    parser.add_argument("--rollouts", type=int, default=120, help="of the plain prompt (120)")
    parser.add_argument("--retriever", choices=_RETRIEVERS, default="embedding")
    parser.add_argument("--embedder", default="Qwen/Qwen3-Embedding-0.6B", help="or local:all-minilm-l6-v2")
    parser.add_argument("--dtype", choices=_DTYPES, default="float32")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="folder for doctor.json")
    parser.add_argument("--json", action="store_true", help="print all numbers as JSON")


def _add_bank(bank: argparse.ArgumentParser, *, is_chosen: bool) -> None:
    actions = bank.add_subparsers(dest="action", required=True, parser_class=Parser)
    show = actions.add_parser("show", help="list a bank's items")
    search = actions.add_parser("search", help="the pairs a problem would get")
    check = actions.add_parser("check", help="report what is odd or gives problems away; exit code 1 if anything does")
    diff = actions.add_parser("diff", help="what one bank has and another has not")
    imported = actions.add_parser("import", help="a document (SKILL.md) or a bank of another format as a bank file")
    export = actions.add_parser("export", help="write a bank in the native or the common format, or as SKILL.md")
    for action in (show, search, check, export):
        action.add_argument("bank", help=_BANK)
    search.add_argument("problem", help="the problem's text")
    search.add_argument("--retriever", default="bm25", help="embedding, bm25 or random")
    search.add_argument("--embedder", default="local:all-minilm-l6-v2")
    search.add_argument("--k", type=int, default=8)
    check.add_argument(
        "--problems", nargs="+", default=[], metavar="FILE", help="training problems: files, hub names …"
    )
    check.add_argument("--benchmark", nargs="+", default=[], metavar="NAME", help="test problems: aime24 …, or files")
    check.add_argument("--memories", type=Path, help="what the items came from (memories.jsonl beside the bank)")
    check.add_argument("--n", type=int, default=13, help="words in a row that give a problem away (13)")
    diff.add_argument("before", help=_BANK)
    diff.add_argument("after", help="likewise")
    imported.add_argument(
        "source", help=f"{_BANK}; SKILL.md or its folder, general_skills/common_mistakes JSON, playbooks of bullets"
    )
    for action in (imported, export):
        action.add_argument("target", type=Path, help="file to write")
        action.add_argument("--force", action="store_true", help="replace the target")
    export.add_argument("--format", choices=("native", "common", "skill-md"), default="common", help="(common)")
    ledger = actions.add_parser("ledger", help="what a run's items were worth: the ranking by credit")
    ledger.set_defaults(module="bank_ledger")
    ledger.add_argument("run", type=Path, help="a run's folder, or a checkpoint's")
    ledger.add_argument("--bank", help="where the items are from, if the run has none (its banks)")
    for action in (show, search, check, diff, imported, ledger):
        action.add_argument("--json", action="store_true", help="print JSON")
    builds = [actions.add_parser(name, help=help_text) for name, help_text in _BUILDS.items()]
    for action in builds if is_chosen else ():
        from sgsd.cli.bank_settings import add_flags  # with pydantic, as above

        action.set_defaults(module="bank_build")
        add_flags(action)


def parse(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> argparse.Namespace:
    """The options of a command; a misspelt flag is answered with the nearest one."""
    # argparse hands what follows -- to the first positional that still takes something, and that may be another one.
    own = list(arguments[: arguments.index("--")]) if "--" in arguments else list(arguments)
    options, unknown = parser.parse_known_args([spelled(argument) for argument in own])
    if "settings" in options:
        options.settings = [*options.settings, *arguments[len(own) + 1 :]]
    else:
        unknown += arguments[len(own) :]
    if unknown:
        while below := [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]:
            parser = below[0].choices[vars(options)[below[0].dest]]
        flags = [flag for action in parser._actions for flag in action.option_strings]
        where = f"see {parser.prog} --help"
        if "settings" in options:
            where += f"; flags of sgsd train stand at the end, behind two dashes: -- {unknown[0]}"
        raise ConfigError(
            f"unknown argument of {parser.prog}",
            got=unknown[0],
            remedy=did_you_mean(unknown[0].partition("=")[0], flags) or where,
        )
    return options


# ---- running one


def keep_freed_memory() -> None:
    """Have glibc's allocator keep what tensors free, where it would give it back and ask for it again, page by page.

    That is a sixth of sampling on a CPU. A user's own ``MALLOC_`` variables hold.
    """
    if sys.platform != "linux" or any(name.startswith("MALLOC_") for name in os.environ):
        return
    with suppress(AttributeError):  # of another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, 32 * 2**20)  # the most it takes; given, it no longer moves
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    # Read when torch is loaded: beside another busy process threads that wait by spinning are 5 to 10 times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    keep_freed_memory()
    arguments = [at_home(argument) for argument in (sys.argv[1:] if arguments is None else arguments)]
    arguments, debug = _without_debug(arguments)
    try:
        return _run(arguments)
    except BrokenPipeError:  # the reader of a pipe, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        say("sgsd: interrupted", error=True)
        return 130
    except Exception as error:  # noqa: BLE001 - the last net: no user is answered by a traceback
        if debug:
            traceback.print_exc()
        is_known = isinstance(error, SGSDError)
        say(f"sgsd: error: {error if is_known else _in_one_line(error)}", error=True)
        return 2 if is_known else 1


def _without_debug(arguments: list[str]) -> tuple[list[str], bool]:
    """The arguments without ``--debug``, and whether it was among them; transformers has a setting of this name."""
    follow = [*arguments[1:], ""]
    kept = [one for one, next in zip(arguments, follow, strict=False) if one != "--debug" or next in _DEBUG_OPTIONS]
    return kept, len(kept) < len(arguments)


def _in_one_line(error: Exception) -> str:
    """What the system refused in its words; anything else by its name and place, which is for a bug report."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    place = traceback.extract_tb(error.__traceback__)[-1]
    said = " ".join(str(error).split())[:300]
    where = f"{Path(place.filename).name}:{place.lineno}"
    return f"unexpected {type(error).__name__} at {where}: {said}; --debug shows the traceback"


def _run(arguments: list[str]) -> int:
    command = next(iter(arguments), None)
    if command == "train":
        from sgsd.cli.train import train

        return train(arguments[1:])
    if command in examples.COMMANDS:
        return examples.run(command, arguments[1:])
    options = parse(build_parser(command), arguments)
    module = options.module
    if module == "eval" and options.regrade is not None:
        module = "regrade"
    elif module == "eval" and options.lm_eval is not None:
        module = "harness"
    return importlib.import_module(f"sgsd.cli.{module}").run(options)
