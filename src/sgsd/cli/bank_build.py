"""``sgsd bank build | sample | verify | extract | merge``: from experience to a bank, in one folder."""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import transformers
from rich.console import Console
from rich.progress import Progress, TaskID
from rich.table import Table

from sgsd import __version__, runfolder
from sgsd.bank import build
from sgsd.bank.build import BANK, RESULTS, Stage
from sgsd.bank.manifest import MANIFEST, file_digest, make_manifest
from sgsd.bank.store import Store, open_store
from sgsd.cli.bank_engines import Engines
from sgsd.cli.bank_settings import BuildSettings, read_settings
from sgsd.cli.console import print_json, progress_bar, standard_error, standard_output
from sgsd.cli.eval_plan import weights_digest
from sgsd.cli.settings import ignore_deprecations, read_yaml, refuse_unwritable, resolve_config
from sgsd.data.curation import DataReport
from sgsd.data.problems import Problem
from sgsd.data.sources import load_problems
from sgsd.display import without_secrets
from sgsd.engines.budget import estimate
from sgsd.evaluation.presets import BENCHMARKS
from sgsd.prompts import BOXED_INSTRUCTION, PromptRenderer, refuse_long_prompts
from sgsd.verifiers import Outcome, get_verifier

_PACKAGES = ("torch", "transformers", "trl", "llguidance", "openai", "vllm", "math-verify", "sentence-transformers")


def build_bank(options: argparse.Namespace) -> int:
    """Run the stages that are asked for and not finished yet; say what the folder holds."""
    ignore_deprecations()
    transformers.utils.logging.disable_progress_bar()
    settings = _settings(options)
    stages = list(Stage) if options.action == "build" else [Stage(options.action)]
    output = Path(options.output)
    refuse_unwritable(output, "--output")
    console = standard_error()

    def say(line: str) -> None:
        console.print(line, soft_wrap=True)

    with open_store(output, RESULTS) as store:
        run = _Build(store, settings, console, say)
        run.stages(stages)
        manifest = run.manifest()
    if options.json:
        print_json(manifest)
    else:
        standard_output().print(summary_table(manifest))
    for line in warnings(manifest):
        say(line)
    say(f"bank: {output / BANK}" if "bank" in manifest else f"in {output}; go on with: {_next(manifest, options)}")
    return 0


class _Build:
    """One folder's build under its settings; data and engines are loaded when a stage needs them."""

    def __init__(self, store: Store, settings: BuildSettings, console: Console, say: Any) -> None:
        self._store = store
        self._settings = settings
        self._console = console
        self._say = say
        self._engines = Engines(settings)
        self._verifier = get_verifier(settings.verifier, **(settings.verifier_options or {}))
        self._problems, self._report = self._load_problems()
        self._hold()

    def stages(self, stages: Sequence[Stage]) -> None:
        left = [stage for stage in stages if not self._store.finished(stage)]
        # What could be refused at the end is refused at the beginning.
        embed = self._embed() if Stage.MERGE in left else None
        benchmarks = self._benchmarks() if Stage.MERGE in left else {}
        with progress_bar(self._console) as bar:
            screen = _Screen(bar)
            for stage in left:
                if stage is Stage.SAMPLE:
                    self._sample(screen)
                elif stage is Stage.VERIFY:
                    truncated = Outcome(self._settings.truncated)
                    build.verify(self._store, self._problems, self._verifier, truncated=truncated, progress=screen.show)
                elif stage is Stage.EXTRACT:
                    self._extract(screen)
                else:
                    self._merge(screen, embed, benchmarks)
                build.export(self._store)

    def manifest(self) -> dict[str, Any]:
        """The folder's manifest, written with the results of the finished stages."""
        build.export(self._store)
        settings = self._settings
        dataset = Path(str(settings.dataset))
        manifest = make_manifest(
            self._store,
            sgsd=__version__,
            versions={"python": platform.python_version(), **_versions()},
            config=without_secrets(asdict(settings)),
            inputs={
                "problems": len(self._problems),
                "problems_digest": _digest(self._problems),
                "rows": self._report.rows,
                "rows_dropped": self._report.counts,
                "dataset_file": file_digest(dataset),
                "weights": weights_digest(Path(str(settings.model_name_or_path))),
                "writer_weights": weights_digest(Path(str(settings.writer_model))),
            },
        )
        runfolder.write_json(self._store.folder / MANIFEST, manifest)
        return manifest

    def _load_problems(self) -> tuple[list[Problem], DataReport]:
        settings = self._settings
        problems, report = load_problems(
            str(settings.dataset),
            split=settings.dataset_split,
            config_name=settings.dataset_config,
            adapter=settings.dataset_adapter,
            columns=settings.dataset_columns,
            limit=settings.dataset_limit,
            readable=self._verifier.readable,
            seed=settings.seed,
        )
        self._say(report.summary())
        return problems, report

    def _hold(self) -> None:
        """Refuse a folder whose results come of other data, weights or settings."""
        dataset = f"{len(self._problems)} problems, SHA-256 {_digest(self._problems)[:16]}"
        if self._store.progress(Stage.SAMPLE) is not None:
            build.refuse_gone_problems(self._store, self._problems)
        own = {stage: self._settings.of_stage(stage) for stage in Stage}
        own[Stage.SAMPLE] |= {"dataset": dataset, **self._model("model_name_or_path")}
        own[Stage.SAMPLE]["instruction"] = self._instruction
        own[Stage.EXTRACT] |= self._model("writer_model")
        config = without_secrets(asdict(self._settings))
        self._store.hold({str(stage): values for stage, values in own.items()}, config)

    def _model(self, name: str) -> dict[str, Any]:
        """A folder is known by its weights, wherever it lies."""
        value = str(vars(self._settings)[name])
        weights = weights_digest(Path(value))
        return {name: value if weights is None else f"weights {weights[:16]}"}

    @property
    def _instruction(self) -> str:
        return BOXED_INSTRUCTION if self._settings.instruction is None else self._settings.instruction

    def _sample(self, screen: _Screen) -> None:
        settings = self._settings
        tokenizer = self._engines.tokenizer(str(settings.model_name_or_path))
        renderer = PromptRenderer(
            tokenizer, instruction=settings.instruction, chat_template_kwargs=settings.chat_template_kwargs
        )
        lengths = [len(renderer.student_ids(problem)) for problem in self._problems]
        context = self._engines.context()
        if context is not None:
            refuse_long_prompts(lengths, context - settings.max_completion_length)
        build.sample(
            self._store,
            self._problems,
            lambda problem: renderer.student_ids(problem),
            self._engines.sampler(room=max(lengths) + settings.max_completion_length, progress=screen.within),
            samples=settings.samples,
            chunk=settings.batch_size or 1,
            seed=settings.seed,
            progress=screen.show,
        )

    def _extract(self, screen: _Screen) -> None:
        settings = self._settings
        asked: dict[str, Any] = {
            "show_answer": bool(settings.show_answer),
            "max_items": settings.max_items,
            "seed": settings.seed,
        }
        requests = list(build.requests_left(self._store, **asked))
        cost = estimate(requests, price_in=settings.price_in, price_out=settings.price_out, attempts=settings.attempts)
        self._say(f"extraction will take {cost}")
        build.extract(
            self._store,
            self._engines.writer(spent=self._store.spent),
            attempts=settings.attempts,
            chunk=settings.writer_batch_size or 1,
            progress=screen.show,
            **asked,
        )

    def _merge(self, screen: _Screen, embed: Any, benchmarks: Mapping[str, Sequence[Problem]]) -> None:
        settings = self._settings
        build.merge_and_scan(
            self._store,
            self._engines.writer(spent=self._store.spent),
            self._problems,
            name=settings.name,
            metadata={"model": settings.model_name_or_path, "writer": settings.writer_model},
            group_size=settings.group_size,
            patience=settings.patience,
            embed=embed,
            attempts=settings.attempts,
            chunk=settings.writer_batch_size or 1,
            seed=settings.seed,
            benchmarks=benchmarks,
            n=settings.leak_words,
            progress=screen.show,
        )

    def _embed(self) -> Any:
        if self._settings.group_by == "order":
            return None
        from sgsd.engines.embedders import SentenceTransformerEmbedder

        return SentenceTransformerEmbedder(self._settings.embedder).embed

    def _benchmarks(self) -> dict[str, Sequence[Problem]]:
        loaded: dict[str, Sequence[Problem]] = {}
        for name in self._settings.benchmarks or ():
            known = BENCHMARKS.get(name) if not Path(name).exists() else None
            source, split, config = (name, None, None) if known is None else (known.hub, known.split, known.config)
            loaded[name] = load_problems(source, split=split, config_name=config)[0]
        return loaded


class _Screen:
    """One bar a stage."""

    def __init__(self, bar: Progress) -> None:
        self._bar = bar
        self._tasks: dict[Stage, TaskID] = {}
        self._done = 0

    def show(self, stage: Stage, done: int, total: int) -> None:
        """So much of a stage is done."""
        self._done = done
        if stage not in self._tasks:
            self._tasks[stage] = self._bar.add_task(stage, total=total, completed=done)
        self._bar.update(self._tasks[stage], completed=done, total=total)

    def within(self, done: int) -> None:
        """So many of the batch of rollouts under way."""
        self._bar.update(self._tasks[Stage.SAMPLE], completed=self._done + done)


def summary_table(manifest: Mapping[str, Any]) -> Table:
    """The manifest's numbers, by what they are of."""
    table = Table()
    table.add_column("of")
    table.add_column("")
    table.add_column("count", justify="right")
    for part in ("rollouts", "memories", "extraction", "merge", "bank", "tokens"):
        for name, count in _numbers(manifest.get(part, {})):
            table.add_row(part, name.replace("_", " "), f"{count:,}")
    return table


def _numbers(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, int]]:
    """(path, number) of every number of a document; a layer of the merge is called by its kind."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{before}{name}: ")
        elif isinstance(value, list):
            for number, layer in enumerate(value, 1):
                yield from _numbers(layer, f"{before}layer {number}, {layer['kind']}s: ")
        elif isinstance(value, int):
            yield f"{before}{name}", value


def warnings(manifest: Mapping[str, Any]) -> list[str]:
    """What a person should know before training with the bank."""
    found: list[str] = []
    for kind, outcome in (("skills", "correct"), ("mistakes", "incorrect")):
        if "bank" in manifest and not manifest["bank"][kind]:
            why = f"{manifest['memories'][outcome]} memories are {outcome}"
            found.append(f"warning: the bank has no {kind} ({why}); a teacher is made of a skill and a mistake")
    return found


def _next(manifest: Mapping[str, Any], options: argparse.Namespace) -> str:
    left = next(stage for stage in Stage if stage not in manifest["finished"])
    return f"sgsd bank {left} --config {options.config} --output {options.output}"


def _settings(options: argparse.Namespace) -> BuildSettings:
    flags = {item.name: vars(options)[item.name] for item in fields(BuildSettings)}
    if options.config is None:
        return read_settings({}, "", flags)
    path = resolve_config(options.config)
    return read_settings(read_yaml(path), str(path), flags)


def _versions() -> dict[str, str]:
    found: dict[str, str] = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _digest(problems: Sequence[Problem]) -> str:
    digest = hashlib.sha256()
    for problem in problems:
        digest.update(json.dumps([problem.id, problem.text, problem.answer, problem.key]).encode())
    return digest.hexdigest()
