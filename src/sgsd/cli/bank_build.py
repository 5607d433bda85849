"""``sgsd bank build | sample | verify | extract | merge``: build a bank from a model's rollouts, in one folder."""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import itertools
import json
import platform
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import transformers
from rich.console import Console
from rich.table import Table

from sgsd import __version__, runfolder
from sgsd.bank import build
from sgsd.bank.build import BANK, RESULTS, Stage
from sgsd.bank.manifest import MANIFEST, file_digest, make_manifest
from sgsd.bank.store import Store, open_store
from sgsd.bank.writing import Writer
from sgsd.cli.bank_settings import BuildSettings, read_settings
from sgsd.cli.console import Bars, print_json, progress_bar, standard_error, standard_output, table
from sgsd.cli.contamination import load_all
from sgsd.cli.engines import Engines, refuse_missing_package
from sgsd.cli.settings import ignore_deprecations, read_yaml, resolve_config
from sgsd.data.problems import Problem
from sgsd.data.sources import load_problems
from sgsd.display import without_secrets
from sgsd.engines.models import weights_digest
from sgsd.prompts import BOXED_INSTRUCTION, PromptRenderer, refuse_long_prompts
from sgsd.verifiers import Outcome, get_verifier

_PACKAGES = ("torch", "transformers", "trl", "llguidance", "openai", "vllm", "math-verify", "sentence-transformers")


def run(options: argparse.Namespace) -> int:
    """Run the requested stages that are not finished yet, and print a summary of the folder."""
    ignore_deprecations()
    transformers.utils.logging.disable_progress_bar()
    settings = _settings(options)
    stages = list(Stage) if options.action == "build" else [Stage(options.action)]
    output = Path(options.output)
    runfolder.refuse_unwritable(output, "--output")
    console = standard_error()
    with open_store(output, RESULTS) as store:
        work = _Build(store, settings, console)
        work.make(stages)
        manifest = work.manifest()
    if options.json:
        print_json(manifest)
    else:
        standard_output().print(_summary(manifest))
    for kind, outcome in (("skills", "correct"), ("mistakes", "incorrect")):
        if "bank" in manifest and not manifest["bank"][kind]:
            why = f"{manifest['memories'][outcome]} memories are {outcome}"
            said = f"warning: the bank has no {kind} ({why}); a teacher needs a skill and a mistake"
            console.print(said, soft_wrap=True)
    left = [stage for stage in Stage if stage not in manifest["finished"]]
    if "bank" in manifest:
        console.print(f"bank: {output / BANK}", soft_wrap=True)
    else:
        names = ("config", "output", *(item.name for item in fields(BuildSettings)))
        given = [(f"--{name}", str(vars(options)[name])) for name in names if vars(options)[name] is not None]
        then = shlex.join(["sgsd", "bank", left[0], *itertools.chain(*given)])
        console.print(f"in {output}; continue with: {then}", soft_wrap=True)
    return 0


class _Build:
    """The build in one folder. Engines are loaded when a stage needs them."""

    def __init__(self, store: Store, settings: BuildSettings, console: Console) -> None:
        self._store = store
        self._settings = settings
        self._console = console
        for engine in (settings.engine, str(settings.writer_engine)):
            refuse_missing_package(engine)
        limits = {name: vars(settings)[name] for name in ("concurrency", "timeout", "retries")}
        self._engines = Engines(
            settings.engine,
            settings.model_name_or_path,
            dtype=settings.dtype,
            device=settings.device,
            trust_remote_code=settings.trust_remote_code,
            server={"base_url": settings.base_url, **limits},
            served_model=settings.served_model,
        )
        self._verifier = get_verifier(settings.verifier, **(settings.verifier_options or {}))
        self._problems, self._report = load_problems(
            settings.dataset,
            split=settings.dataset_split,
            config_name=settings.dataset_config,
            adapter=settings.dataset_adapter,
            columns=settings.dataset_columns,
            limit=settings.dataset_limit,
            readable=self._verifier.readable,
            seed=settings.seed,
        )
        console.print(self._report.summary(), soft_wrap=True)
        if store.progress(Stage.SAMPLE) is not None:
            build.refuse_changed_problems(store, self._problems)
        store.check_settings(self._depends_on(), without_secrets(asdict(settings)))

    def make(self, stages: Sequence[Stage]) -> None:
        """Run those of the stages that are not finished yet."""
        left = [stage for stage in stages if not self._store.finished(stage)]
        # Make what later stages need first, so that errors appear before the long stages.
        embed = self._embed() if Stage.MERGE in left else None
        names = (self._settings.benchmarks or ()) if Stage.MERGE in left else ()
        benchmarks = {name: load_all(name, self._console) for name in names}
        writes = {Stage.EXTRACT, Stage.MERGE} & {*left}
        # vLLM holds any model to a schema, and would take the memory of the engine that samples.
        if writes and left[0] not in writes and self._settings.writer_engine != "vllm":
            self._writer()
        with progress_bar(self._console) as bar:
            bars = Bars(bar)
            for stage in left:
                match stage:
                    case Stage.SAMPLE:
                        self._sample(bars)
                    case Stage.VERIFY:
                        truncated = Outcome(self._settings.truncated)
                        build.verify(
                            self._store, self._problems, self._verifier, truncated=truncated, progress=bars.show
                        )
                    case Stage.EXTRACT:
                        self._extract(bars)
                    case Stage.MERGE:
                        self._merge(bars, embed, benchmarks)
                build.export(self._store)

    def manifest(self) -> dict[str, Any]:
        """Write the results of the finished stages and the manifest; returns the manifest."""
        build.export(self._store)
        settings = self._settings
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
                "dataset_file": file_digest(Path(settings.dataset)),
                "weights": weights_digest(Path(settings.model_name_or_path)),
                "writer_weights": weights_digest(Path(str(settings.writer_model))),
            },
        )
        runfolder.write_json(self._store.folder / MANIFEST, manifest)
        return manifest

    def _depends_on(self) -> dict[str, dict[str, Any]]:
        """The settings and data on which the results of each stage depend. A folder of weights counts by its digest."""

        def model(name: str) -> dict[str, Any]:
            value = str(vars(self._settings)[name])
            weights = weights_digest(Path(value))
            return {name: value if weights is None else f"weights {weights[:16]}"}

        instruction = self._settings.instruction
        own = {str(stage): self._settings.of_stage(stage) for stage in Stage}
        own[Stage.SAMPLE] |= {
            "dataset": f"{len(self._problems)} problems, SHA-256 {_digest(self._problems)[:16]}",
            **model("model_name_or_path"),
            "instruction": BOXED_INSTRUCTION if instruction is None else instruction,
        }
        own[Stage.EXTRACT] |= model("writer_model")
        return own

    def _sample(self, bars: Bars) -> None:
        settings = self._settings
        renderer = PromptRenderer(
            self._engines.tokenizer(),
            instruction=settings.instruction,
            chat_template_kwargs=settings.chat_template_kwargs,
        )
        lengths = [len(renderer.student_ids(problem)) for problem in self._problems]
        context = self._engines.context()
        if context is not None:
            refuse_long_prompts(lengths, context - settings.max_completion_length)
        sampling = {name: vars(settings)[name] for name in ("temperature", "top_p", "top_k")}
        # A vLLM engine that also writes needs the model's whole context.
        writes = settings.writer_engine == "vllm" and settings.writer_model == settings.model_name_or_path
        sampler = self._engines.sampler(
            {"max_new_tokens": settings.max_completion_length, **sampling},
            batch_size=settings.batch_size or 1,
            max_length=None if writes else max(lengths) + settings.max_completion_length,
            progress=bars.within,
        )
        build.sample(
            self._store,
            self._problems,
            renderer.student_ids,
            sampler,
            samples=settings.samples,
            chunk=settings.batch_size or 1,
            seed=settings.seed,
            progress=bars.show,
        )

    def _writer(self) -> Writer:
        settings = self._settings
        return self._engines.writer(
            str(settings.writer_engine),
            str(settings.writer_model),
            base_url=settings.writer_base_url,
            batch_size=settings.writer_batch_size or 1,
            options={
                "temperature": settings.writer_temperature,
                "chat_template_kwargs": settings.writer_chat_template_kwargs,
            },
        )

    def _extract(self, bars: Bars) -> None:
        settings = self._settings
        asked: dict[str, Any] = {
            "show_answer": bool(settings.show_answer),
            "max_items": settings.max_items,
            "seed": settings.seed,
        }
        requests = list(build.requests_left(self._store, **asked))
        prompts = sum(-(-len(message["content"]) // 4) for request in requests for message in request.messages)
        self._console.print(
            f"extraction will take {len(requests):,} requests: {prompts:,} prompt tokens (one per four characters), at "
            f"most {sum(request.max_tokens for request in requests):,} completion tokens; up to {settings.attempts} "
            "times that where replies do not fit",
            soft_wrap=True,
        )
        build.extract(
            self._store,
            self._writer(),
            attempts=settings.attempts,
            chunk=settings.writer_batch_size or 1,
            progress=bars.show,
            **asked,
        )

    def _merge(self, bars: Bars, embed: Callable[..., Any] | None, benchmarks: Mapping[str, Sequence[Problem]]) -> None:
        settings = self._settings
        build.merge_and_scan(
            self._store,
            self._writer(),
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
            progress=bars.show,
        )

    def _embed(self) -> Callable[..., Any] | None:
        if self._settings.group_by == "order":
            return None
        from sgsd.engines.embedders import SentenceTransformerEmbedder

        return SentenceTransformerEmbedder(self._settings.embedder).embed


def _summary(manifest: Mapping[str, Any]) -> Table:
    """The counts in the manifest as a table."""
    listing = table("", "of", "", "count", right=("count",))
    for part in ("rollouts", "memories", "extraction", "merge", "bank", "tokens"):
        for name, count in _numbers(manifest.get(part, {})):
            listing.add_row(part, name.replace("_", " "), f"{count:,}")
    return listing


def _numbers(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, int]]:
    """(path, number) of every number in nested values. Layers of the merge are named by number and kind."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{before}{name}: ")
        elif isinstance(value, list):
            for number, layer in enumerate(value, 1):
                yield from _numbers(layer, f"{before}layer {number}, {layer['kind']}s: ")
        elif isinstance(value, int):
            yield f"{before}{name}", value


def _settings(options: argparse.Namespace) -> BuildSettings:
    flags = {item.name: vars(options)[item.name] for item in fields(BuildSettings)}
    if options.config is None:
        return read_settings({}, "", flags)
    path = resolve_config(options.config)
    return read_settings(read_yaml(path), str(path), flags)


def _versions() -> dict[str, str]:
    installed = {found.name: found.version for found in importlib.metadata.distributions()}
    return {name: installed[name] for name in _PACKAGES if name in installed}


def _digest(problems: Iterable[Problem]) -> str:
    digest = hashlib.sha256()
    for problem in problems:
        asked = [problem.id, problem.text, problem.answer, problem.key, problem.prompt, problem.reward_columns]
        digest.update(json.dumps(asked, default=str).encode())
    return digest.hexdigest()
