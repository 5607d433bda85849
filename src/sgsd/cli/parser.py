"""The parser of all commands. The flags of ``sgsd train`` come from TRL's dataclasses (see ``settings``).

Arguments are parsed before any framework is imported. An error is one line on standard error. The exit code is 2 for an
``SGSDError``, such as a wrong setting, and 1 for any other error; ``--debug`` shows its traceback.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from sgsd import __version__, examples
from sgsd.cli.flags import COLDEST, DTYPES, HOTTEST, MOST, SAMPLE_BATCHES, expand_home, with_underscores
from sgsd.display import make_libraries_visible, say
from sgsd.errors import ConfigError, SGSDError, did_you_mean

_EPILOG = """\
Presets for --config: internalize, bank, lab, correction-qwen3-1.7b, sgsd-qwen3-1.7b, sgsd-qwen3-4b, sgsd-qwen3-8b,
sgsd-upstream-qwen3-1.7b, grpo-qwen3-1.7b, opsd-qwen3-1.7b. Documentation: README.md, docs/."""

_RETRIEVERS = ("embedding", "bm25", "random")
_COLUMNS = "names of the columns, such as problem=question,answer=gold"
_BANK = "a bank file, a folder with bank.json, or a shipped bank as seed:NAME"
_MODEL = "hub name, folder, adapter, or local:NAME"
_INSTRUCTION = "text at the end of every prompt"
_JUDGE = "math, exact, choice, reasoning_gym, or a TRL reward function"
_BUILDS = {
    "build": "build a bank from a model's own rollouts: sample, verify, extract, merge; the same command resumes",
    "sample": "run the first stage of build: sample rollouts",
    "verify": "run the second stage of build: judge the rollouts",
    "extract": "run the third stage of build: have a model write skills and mistakes about the rollouts",
    "merge": "run the last stage of build: merge skills and mistakes into a bank, and drop those that leak problems",
}
_DEBUG_OPTIONS = ("underflow_overflow", "tpu_metrics_debug")  # of transformers
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


class Parser(argparse.ArgumentParser):
    """An ``ArgumentParser`` that raises ``ConfigError`` and accepts no abbreviated flags."""

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
    """A type for argparse: a number for which ``fits`` is true."""

    def read(text: str) -> Any:
        value = kind(text)
        if not fits(value):
            raise argparse.ArgumentTypeError(f"out of range: got {value}; expected {expected}")
        return value

    read.__name__ = kind.__name__  # argparse shows it in its errors
    return read


_count = _number(int, lambda value: value >= 1, "1 or more")
_seed = _number(int, lambda value: 0 <= value < 2**32, "0 to 2**32 - 1")
_natural = _number(int, lambda value: value >= 0, "0 or more")
_size = _number(int, lambda value: 1 <= value <= MOST, f"1 to {MOST:,}")
_above = _number(float, lambda value: COLDEST <= value <= HOTTEST, f"{COLDEST} to {HOTTEST}")
_temperature = _number(
    float, lambda value: value == 0 or COLDEST <= value <= HOTTEST, f"0 (greedy), or {COLDEST} to {HOTTEST}"
)
_share = _number(float, lambda value: 0 < value <= 1, "above 0, at most 1")


def _mapping(text: str) -> dict[str, Any]:
    from sgsd.validation import parse_json  # imports pydantic, which takes longer than the whole parser

    try:
        return parse_json(text, repr(text), ConfigError)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


# ---- commands


def build_parser(command: str | None = None) -> argparse.ArgumentParser:
    """The parser of all commands, without the flags of ``train``, ``demo`` and ``lab``.

    Args:
        command: the command that is called. The flags of ``sgsd bank build`` are added for ``bank`` only.
    """
    parser = Parser(
        prog="sgsd",
        description="Train language models by skill-conditioned gated self-distillation, and measure the result.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,  # the default breaks lines inside names
    )
    parser.add_argument("--version", action="version", version=f"sgsd {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")  # main removes it
    commands = parser.add_subparsers(dest="command", required=True, parser_class=Parser)

    def add(name: str, help: str) -> argparse.ArgumentParser:
        made = add_command(commands, name, help)
        made.set_defaults(module=name)
        return made

    def add_bare(name: str, help: str) -> None:  # the command parses its own flags
        commands.add_parser(name, help=help, add_help=False)

    add_bare("demo", "train SmolLM2-135M to follow a SKILL.md, on a CPU, in some 10 to 16 minutes")
    add_bare("train", "train a model with SGSD, GRPO or OPSD (--help all: with all settings of TRL)")
    _add_internalize(
        add("internalize", "train a model to do without a document (SKILL.md) in its prompt, and write a certificate")
    )
    _add_eval(add("eval", "measure the accuracy of a run, a model or an adapter; or judge stored responses again"))
    _add_doctor(add("doctor", "check before training whether a bank or a document will help"))

    compare = add("compare", "compare methods: accuracies with confidence intervals, paired differences")
    compare.add_argument(
        "runs", type=Path, nargs="+", metavar="RUN", help="run folders, folders of sgsd eval or internalize"
    )
    compare.add_argument("--baseline", help="label or folder of a row (default: Base if present, else the first row)")
    compare.add_argument("--checkpoint", type=int, help="step to compare all runs at (default: the last step of each)")
    forms = compare.add_mutually_exclusive_group()
    for flag, form in (("json", "JSON"), ("markdown", "Markdown"), ("latex", "LaTeX")):
        forms.add_argument(f"--{flag}", action="store_true", help=f"print {form}")

    contamination = add("contamination", "find test problems that the training data contains")
    for name in ("train", "test"):
        contamination.add_argument(f"--{name}", nargs="+", required=True, help="files, hub names, aime24 …")
        contamination.add_argument(f"--{name}_split", help="split (default: train, or the only one)")
        contamination.add_argument(f"--{name}_config", help="configuration of a hub data set")
        contamination.add_argument(f"--{name}_adapter", help="row format (default: found by its columns)")
        contamination.add_argument(f"--{name}_columns", help=_COLUMNS)
    contamination.add_argument("--n", type=int, default=12, help="length of a shared word n-gram that counts (12)")
    contamination.add_argument("--show", type=_natural, default=10, help="pairs to print (10)")
    contamination.add_argument("--json", action="store_true", help="print all pairs as JSON")

    report = add("report", "write one HTML page about runs: comparison, curves, teachers, rollouts, banks")
    report.add_argument("runs", type=Path, nargs="+", help="run folders, of several methods and seeds")
    report.add_argument("--output", type=Path, default=Path("report.html"), help="file to write (report.html)")

    add_bare("lab", "run controlled experiments with tiny models and hidden rules, in minutes; needs a checkout")
    bank = add("bank", "build, show, search, check, compare and rank skill banks")
    _add_bank(bank, is_chosen=command == "bank")
    return parser


def add_command(commands: Any, name: str, summary: str) -> argparse.ArgumentParser:
    """A command whose own help begins with its line in the list of commands."""
    return commands.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")


def _add_internalize(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("document", help="a Markdown file, a folder with SKILL.md, AGENTS.md or CLAUDE.md, or a bank")
    parser.add_argument("--model", required=True, help=_MODEL)
    parser.add_argument("--output", type=Path, required=True, help="folder to write; the same command resumes in it")
    tasks = parser.add_argument_group("tasks")
    tasks.add_argument("--tasks", required=True, help="problems with answers: a file, a hub name …")
    tasks.add_argument("--columns", help=f"{_COLUMNS}; for --held_out and --retain, too, if they have them")
    tasks.add_argument("--held_out", help="tasks to evaluate on (default: a third of --tasks, at most 200)")
    tasks.add_argument("--retain", help="problems that measure forgetting (default: generated sums)")
    training = parser.add_argument_group("training", "settings of the preset internalize; change them after --")
    training.add_argument("--baseline", choices=("grpo",), help="also train this method with the same rollout budget")
    training.add_argument("--baseline_learning_rate", type=float, help="of the baseline (default: that of the run)")
    training.add_argument("--seed", type=_seed, default=0, help="of the split and the training (0)")
    training.add_argument("--force", action="store_true", help="train even if the doctor advises against it")
    training.add_argument("settings", nargs="*", help="after --, flags of sgsd train, such as: -- --max_steps 100")


def _add_eval(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", help="run folder, checkpoint, adapter, hub name, or local:NAME")
    data = parser.add_argument_group("data")
    data.add_argument(
        "--dataset",
        help="file, hub name, reasoning_gym:TASK, or aime24, aime25, hmmt25, amc23, math500, gsm8k, minerva; separate "
        "several by commas (default: the run's eval_dataset)",
    )
    data.add_argument(
        "--lm_eval", metavar="TASKS", help="evaluate on tasks of lm-evaluation-harness instead: names or YAML files"
    )
    data.add_argument("--dataset_file", help="local file with the rows of a benchmark such as aime24")
    data.add_argument("--dataset_split", help="split (default: train, or the only one)")
    data.add_argument("--dataset_config", help="configuration of a hub data set")
    data.add_argument("--dataset_adapter", help="row format (default: found by its columns)")
    data.add_argument("--dataset_columns", "--columns", help=_COLUMNS)
    data.add_argument("--limit", type=int, help="most problems to read")
    sampling = parser.add_argument_group("sampling", "defaults: those of a benchmark such as aime24; else in brackets")
    sampling.add_argument("--samples", type=_size, help="samples per problem, the k of avg@k (1)")
    sampling.add_argument("--temperature", type=_temperature, help="sampling temperature; 0 is greedy (1.0)")
    sampling.add_argument("--top_p", type=_share, help="nucleus sampling; 1 is off (0.95)")
    sampling.add_argument("--top_k", type=_natural, help="top-k sampling; 0 is off (0)")
    sampling.add_argument("--max_completion_length", type=_count, help="most new tokens (the run's, else 1024)")
    sampling.add_argument("--seed", type=_seed, default=0, help="of the sampling (0)")
    prompts = parser.add_argument_group("prompts and verdicts", "defaults: those of the run; else in brackets")
    prompts.add_argument("--verifier", help=f"{_JUDGE} (math)")
    prompts.add_argument("--instruction", help=_INSTRUCTION)
    prompts.add_argument("--thinking", choices=("on", "off"), help="enable_thinking of the chat template")
    prompts.add_argument("--chat_template_kwargs", type=_mapping, help='JSON, such as {"enable_thinking": true}')
    prompts.add_argument(
        "--skills_in_prompt", action="store_true", help="show each problem the skill-mistake pairs retrieved for it"
    )
    prompts.add_argument("--bank", help="with --skills_in_prompt: a file, or seed:NAME")
    prompts.add_argument("--retriever", choices=_RETRIEVERS, help="with --skills_in_prompt (embedding)")
    prompts.add_argument("--embedder", help="with --skills_in_prompt: hub name, folder, or local:all-minilm-l6-v2")
    prompts.add_argument("--pairs", type=_count, help="with --skills_in_prompt: pairs to show (1)")
    engine = parser.add_argument_group("engine")
    engine.add_argument(
        "--engine", choices=tuple(SAMPLE_BATCHES), default="transformers", help="what samples (transformers)"
    )
    sizes = ", ".join(f"{size} for {name}" for name, size in SAMPLE_BATCHES.items())
    engine.add_argument("--batch_size", type=_count, help=f"samples to draw, judge and save at a time ({sizes})")
    engine.add_argument("--dtype", choices=DTYPES, help="of the weights (float32; auto for vllm)")
    engine.add_argument("--device", help="for engine transformers (the GPU if there is one)")
    engine.add_argument("--base_url", help="address of an OpenAI-compatible server, such as http://localhost:8000/v1")
    engine.add_argument("--served_model", help="name of the model on the server (default: that of the model)")
    engine.add_argument("--concurrency", type=int, help="parallel requests to the server (16)")
    engine.add_argument("--trust_remote_code", action="store_true", help="run code that comes with the model")
    output = parser.add_argument_group("output")
    output.add_argument(
        "--output", type=Path, help="folder for samples and summary (default for a run: its evaluations/DATASET)"
    )
    output.add_argument("--force", action="store_true", help="replace a different evaluation in that folder")
    output.add_argument("--json", action="store_true", help="print the summary as JSON")
    again = parser.add_argument_group("stored responses")
    again.add_argument(
        "--regrade", type=Path, help="judge the responses of an evaluation or a JSONL file again, without a model"
    )
    again.add_argument("--show", type=_natural, default=20, help="disagreements to print (20)")


def _add_doctor(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bank", help="a document (SKILL.md), its folder, a bank file, or a shipped bank as seed:NAME")
    parser.add_argument("--tasks", required=True, help="problems with answers: file, hub name, or reasoning_gym:TASK")
    parser.add_argument("--columns", help=_COLUMNS)
    parser.add_argument("--model", required=True, help=_MODEL)
    parser.add_argument("--verifier", default="math", help=f"{_JUDGE} (math)")
    parser.add_argument("--instruction", help=_INSTRUCTION)
    parser.add_argument("--max_completion_length", type=_count, default=1024, help="most new tokens (1024)")
    parser.add_argument("--temperature", type=_above, default=1.0, help="sampling temperature of the rollouts (1.0)")
    parser.add_argument("--rollouts", type=_size, default=120, help="rollouts to sample with the plain prompt (120)")
    parser.add_argument("--retriever", choices=_RETRIEVERS, default="embedding", help="how items are found (embedding)")
    parser.add_argument(
        "--embedder",
        default="Qwen/Qwen3-Embedding-0.6B",
        help="hub name, folder, or local:all-minilm-l6-v2 (Qwen/Qwen3-Embedding-0.6B)",
    )
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the weights (float32)")
    parser.add_argument("--seed", type=_seed, default=0, help="of the problems and the sampling (0)")
    parser.add_argument("--output", type=Path, help="folder in which to write doctor.json")
    parser.add_argument("--json", action="store_true", help="print all numbers as JSON")


def _add_bank(bank: argparse.ArgumentParser, *, is_chosen: bool) -> None:
    actions = bank.add_subparsers(dest="action", required=True, parser_class=Parser)

    add = partial(add_command, actions)
    show = add("show", "list the items of a bank")
    search = add("search", "show the skill-mistake pairs that are retrieved for a problem")
    check = add("check", "report odd items and items that leak problems; exit code 1 if there are any")
    diff = add("diff", "show the items that differ between two banks")
    imported = add("import", "convert a document (SKILL.md) or a bank of another format to a bank file")
    export = add("export", "convert a bank to the native or the common format, or to a SKILL.md")
    for action in (show, search, check, export):
        action.add_argument("bank", help=_BANK)
    search.add_argument("problem", help="text of the problem")
    search.add_argument("--retriever", default="bm25", help="embedding, bm25 or random (bm25)")
    search.add_argument("--embedder", default="local:all-minilm-l6-v2", help="(local:all-minilm-l6-v2)")
    search.add_argument("--k", type=int, default=8, help="pairs to show (8)")
    check.add_argument(
        "--problems", nargs="+", default=[], metavar="FILE", help="training problems: files, hub names …"
    )
    check.add_argument("--benchmark", nargs="+", default=[], metavar="NAME", help="test problems: aime24 …, or files")
    check.add_argument(
        "--memories", type=Path, help="rollouts that the items were written about (memories.jsonl beside the bank)"
    )
    check.add_argument("--n", type=int, default=13, help="length of a shared word n-gram that is a leak (13)")
    diff.add_argument("before", help=_BANK)
    diff.add_argument("after", help="the other bank, given in the same way")
    imported.add_argument(
        "source", help="SKILL.md or its folder; general_skills/common_mistakes JSON; a playbook of bullets; a bank"
    )
    for action in (imported, export):
        action.add_argument("target", type=Path, help="file to write")
        action.add_argument("--force", action="store_true", help="replace the target")
    export.add_argument("--format", choices=("native", "common", "skill-md"), default="common", help="(common)")
    ledger = add("ledger", "rank the items of a run by credit, which says how well they tell right from wrong")
    ledger.set_defaults(module="bank_ledger")
    ledger.add_argument("run", type=Path, help="folder of a run or of a checkpoint")
    ledger.add_argument("--bank", help="bank of the items (default: the banks in the run folder)")
    for action in (show, search, check, diff, imported, ledger):
        action.add_argument("--json", action="store_true", help="print JSON")
    builds = [add(name, help_text) for name, help_text in _BUILDS.items()]
    for action in builds if is_chosen else ():
        from sgsd.cli.bank_settings import add_flags  # imports pydantic, as above

        action.set_defaults(module="bank_build")
        add_flags(action)


def parse(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the arguments of a command.

    Raises:
        ConfigError: an unknown or unusable argument; it names the nearest known flag.
    """
    # argparse would give the arguments after -- to the first positional with room, which need not be ``settings``.
    own = list(arguments[: arguments.index("--")]) if "--" in arguments else list(arguments)
    options, unknown = parser.parse_known_args([with_underscores(argument) for argument in own])
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
            where += f"; flags of sgsd train go last, after two dashes: -- {unknown[0]}"
        raise ConfigError(
            f"unknown argument of {parser.prog}",
            got=unknown[0],
            remedy=did_you_mean(unknown[0].partition("=")[0], flags) or where,
        )
    return options


# ---- running a command


def keep_freed_memory() -> None:
    """Make glibc's allocator keep freed memory instead of returning it to the system.

    Sampling on a CPU spends a sixth of its time on returning and requesting pages. Nothing is changed if the user has
    set a ``MALLOC_`` variable.
    """
    if sys.platform != "linux" or any(name.startswith("MALLOC_") for name in os.environ):
        return
    with suppress(AttributeError):  # other C libraries have no mallopt
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, 32 * 2**20)  # the maximum; setting it also stops its dynamic adjustment
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    # Torch reads this when it is loaded. If other processes are busy, spinning threads are 5 to 10 times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    keep_freed_memory()
    make_libraries_visible()
    arguments = [expand_home(argument) for argument in (sys.argv[1:] if arguments is None else arguments)]
    arguments, debug = _without_debug(arguments)
    try:
        return _run(arguments)
    except BrokenPipeError:  # the reader of a pipe, such as head, has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        say("sgsd: interrupted", error=True)
        return 130
    except Exception as error:  # noqa: BLE001 - users see no traceback unless they ask for it
        if debug:
            traceback.print_exc()
        is_known = isinstance(error, SGSDError)
        say(f"sgsd: error: {error if is_known else _in_one_line(error)}", error=True)
        return 2 if is_known else 1


def _without_debug(arguments: list[str]) -> tuple[list[str], bool]:
    """The arguments without ``--debug``, and whether it was there. ``--debug VALUE`` is a setting of transformers."""
    follow = [*arguments[1:], ""]
    kept = [one for one, next in zip(arguments, follow, strict=False) if one != "--debug" or next in _DEBUG_OPTIONS]
    return kept, len(kept) < len(arguments)


def _in_one_line(error: Exception) -> str:
    """The message of the operating system, or the type and place of an unexpected error, for a bug report."""
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
