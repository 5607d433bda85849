"""Run folders and evaluation folders, read for a comparison."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from sgsd import runfolder
from sgsd.errors import ConfigError
from sgsd.evaluation.run import Evaluation, read_summary

_FILE_KINDS = (".json", ".jsonl", ".parquet", ".csv", ".tsv")
# Settings that do not distinguish methods.
_INCIDENTAL = (
    *("seed", "data_seed", "output_dir", "logging_dir", "run_name", "resume", "resume_from_checkpoint", "dry_run"),
    *("report_to", "disable_tqdm", "push_to_hub", "project", "local_rank", "num_completions_to_print"),
)
# Prefixes of settings for logging, saving and uploading.
_INCIDENTAL_PREFIXES = ("log_", "logging_", "save_", "trace_", "hub_", "trackio_")
# Keys of summaries that distinguish evaluations of untrained models.
_UNTRAINED_SETTINGS = (
    *("model", "skills_in_prompt", "skills_in_prompt_pairs", "teacher_context", "bank", "retriever", "embedder"),
)
# Keys of summaries that must be equal in evaluations that are compared.
_CONDITIONS = (
    *("dataset", "dataset_split", "dataset_config", "verifier", "verifier_options", "instruction"),
    *("chat_template_kwargs", "thinking", "temperature", "top_p", "top_k", "min_p"),
    *("max_completion_length", "max_new_tokens"),
)


@dataclass(frozen=True)
class Scores:
    """One evaluation: its folder, its ``summary.json`` and its samples."""

    folder: Path
    summary: Mapping[str, Any]
    evaluation: Evaluation

    @cached_property
    def shares(self) -> Mapping[str, float]:
        """Problem id → share of the samples that are correct, in the order of the ids."""
        return dict(sorted(self.evaluation.accuracies.items()))

    @cached_property
    def asked(self) -> Mapping[str, tuple[str | None, str | None]]:
        """Problem id → text and reference answer, where the samples hold them."""
        firsts = {id: samples[0] for id, samples in self.evaluation.by_problem.items()}
        return {id: (first.problem, first.reference) for id, first in firsts.items() if first.problem is not None}

    def has_problems_of(self, other: Scores) -> bool:
        """Whether the ids are equal, and at least one text where both have texts: other sets may have the same ids."""
        known = self.asked.keys() & other.asked.keys()
        is_same = not known or any(self.asked[id] == other.asked[id] for id in known)
        return is_same and self.shares.keys() == other.shares.keys()

    @cached_property
    def conditions(self) -> Mapping[str, Any]:
        """What must be equal in evaluations that are compared, besides the problems. Empty options are ``None``."""
        told = {setting: pathless(self.summary.get(setting)) for setting in _CONDITIONS}
        if told["dataset"] is not None:
            told["dataset"] = Path(told["dataset"]).name
        same = {setting: None if value == {} else value for setting, value in told.items()}
        return {"samples per problem": self.evaluation.k, **same}

    @property
    def with_skills(self) -> bool:
        return bool(self.summary.get("skills_in_prompt"))


@dataclass(frozen=True, slots=True)
class Source:
    """What a setting names: a bank, data, or the folder of a model.

    Attributes:
        path: as it was given, with ``seed*`` for the seed.
        identity: digest of what was read, or the path from the first part that names the seed: such files are made
            for each seed.
    """

    path: str
    identity: str


@dataclass(frozen=True)
class Member:
    """One run, or the evaluations of an untrained model: the part of a row of the table with one seed.

    Attributes:
        folder: of the run, or of the evaluations.
        method: of training; ``base`` for an untrained model.
        model: the model before training.
        seed: of training, or of sampling for an untrained model.
        settings: the settings that distinguish it from other methods; see ``method_settings``.
        checkpoint: the step that was evaluated, if known.
        scores: name of the evaluation → its results.
        notes: the evaluations that were left out.
        sources: setting → what it named, where a digest was recorded.
    """

    folder: Path
    method: str
    model: str
    seed: int | None
    settings: Mapping[str, Any]
    checkpoint: int | None
    scores: Mapping[str, Scores]
    notes: tuple[str, ...] = ()
    sources: Mapping[str, Source] = field(default_factory=dict)

    @property
    def is_trained(self) -> bool:
        return self.method != "base"

    @property
    def with_skills(self) -> bool:
        """Whether skills were in the prompt: of the rollouts, or of an untrained model's evaluations."""
        return bool(self.settings.get("skills_in_prompt"))


def parts_of(folder: Path) -> list[Path]:
    """The evaluations in the output folder of ``sgsd internalize``; of any other folder, itself."""
    if runfolder.runs_of(folder) == [folder]:
        return [folder]
    return sorted(file.parent for file in folder.glob(f"{runfolder.EVALUATIONS}/*/{runfolder.SUMMARY}")) or [folder]


def read_member(folder: Path, checkpoint: int | None) -> Member:
    """Read a run folder, an evaluation folder, or a folder of evaluation folders.

    An evaluation of a trained model belongs to its run, if the run is still in its folder.

    Args:
        folder: any of these.
        checkpoint: the step of a run; ``None`` for the final one.

    Raises:
        ConfigError: the folder is none of these, or has no evaluation of that step.
        DataError: an evaluation cannot be read.
    """
    if not folder.is_dir():
        raise ConfigError("no such folder", got=str(folder), expected="one of sgsd train or sgsd eval")
    if (folder / runfolder.RUN).is_file():
        return _of_run(folder, checkpoint)
    if (folder / runfolder.SUMMARY).is_file():
        scores = _scores(folder)
        dataset = Path(str(scores.summary.get("dataset") or folder.name))
        found = {dataset.stem if dataset.suffix in _FILE_KINDS else dataset.name: scores}
    else:
        found = _evaluations(folder / runfolder.EVALUATIONS) or _evaluations(folder)
    if not found:
        expected = f"{runfolder.RUN} of sgsd train or {runfolder.SUMMARY} of sgsd eval in it"
        raise ConfigError("neither a run nor an evaluation", got=str(folder), expected=expected)
    models = {scores.summary.get("model") for scores in found.values()}
    if len(models) > 1 or None in models:
        told = ", ".join(sorted(map(str, models)))
        raise ConfigError("evaluations of several models, or of none", got=f"{folder}: {told}", expected="one model")
    model, first = Path(str(models.pop())), next(iter(found.values()))
    above = runfolder.real(first.folder).parents  # RUN[/checkpoint-N]/evaluations/NAME
    is_trained = any(scores.summary.get("trained_by") for scores in found.values())
    homes = (model, model.parent)
    if is_trained:  # else it is of an untrained model, wherever it lies
        homes += (*above[1:3], above[1] / model.name)  # the last: internalize's
    run = next((home for home in homes if (home / runfolder.RUN).is_file()), None)
    if run is not None:
        return _of_run(run, checkpoint, found)
    if is_trained or model.name.startswith("checkpoint-"):
        raise ConfigError(  # it would count as an untrained model
            "an evaluation of a trained model whose run is missing",
            got=f"{folder}, of {model}",
            expected="the run's folder where it was",
            remedy="name the run's folder, with the evaluation in its evaluations/",
        )
    asked = {name: pathless(first.summary.get(name)) for name in _UNTRAINED_SETTINGS}
    name, seed = str(first.summary["model"]), first.summary.get("seed")
    sources = _sources({"model": (name, first.summary.get("weights"))})
    return Member(folder, "base", name, seed, asked, None, found, sources=sources)


def method_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a run that distinguish its method from others, whatever its seed and machine."""
    seed = settings.get("seed")
    return {
        name: pathless(value, seed)
        for name, value in settings.items()
        if name not in _INCIDENTAL and not name.startswith(_INCIDENTAL_PREFIXES)
    }


def pathless(value: Any, seed: int | None = None) -> Any:
    """A setting whatever the seed and machine: a path without its folders, and ``seed*`` for the seed."""
    if not isinstance(value, str):
        return value
    is_file = value.startswith((".", "/", "~")) or Path(value).suffix in _FILE_KINDS
    return (Path(value).name if is_file else value).replace(f"seed{seed}", "seed*")


def sources_of(record: Mapping[str, Any]) -> dict[str, Source]:
    """The bank, data and model of a run, where its ``run.json`` has their digests."""
    settings, data = record["settings"], record.get("data") or {}
    found = {
        "bank": (settings.get("bank"), record.get("bank_digest")),
        "dataset": (settings.get("dataset"), data.get("digest")),
        "model_name_or_path": (settings.get("model_name_or_path"), record.get("model_digest")),
    }
    return _sources(found, settings.get("seed"))


def told_apart(settings: Sequence[Mapping[str, Any]], sources: Sequence[Mapping[str, Source]]) -> list[dict[str, Any]]:
    """The settings of each method; sources of one name that differ get the parts of their paths that distinguish them.

    Args:
        settings: of each; see ``method_settings``.
        sources: of each; see ``sources_of``. Settings without a source stay as they are.
    """
    told = [dict(own) for own in settings]
    alike: dict[str, list[int]] = {}
    for place, own in enumerate(settings):
        alike.setdefault(settings_key(own), []).append(place)
    for places in alike.values():
        for name in dict.fromkeys(name for place in places for name in sources[place]):
            of_runs = {place: sources[place][name] for place in places if name in sources[place]}
            paths = {source.identity: source.path for source in reversed(of_runs.values())}  # the first of each
            if len(paths) < 2:
                continue
            tails = dict(zip(paths, distinct_tails(list(paths.values())), strict=True))
            for place, source in of_runs.items():
                tail = tails[source.identity]
                is_one = list(tails.values()).count(tail) == 1
                told[place][name] = tail if is_one else f"{tail} ({source.identity[:12]})"
    return told


def settings_key(settings: Mapping[str, Any]) -> str:
    """A text that is equal for equal settings; one that is missing, as in runs of earlier versions, equals ``None``."""
    return json.dumps({name: own for name, own in settings.items() if own is not None}, sort_keys=True, default=str)


def _sources(named: Mapping[str, tuple[Any, Any]], seed: int | None = None) -> dict[str, Source]:
    found: dict[str, Source] = {}
    for name, (path, digest) in named.items():
        if isinstance(path, str) and isinstance(digest, str):
            path = path.replace(f"seed{seed}", "seed*")
            parts = Path(path).parts
            of_seed = next((at for at, part in enumerate(parts) if "seed*" in part), None)
            found[name] = Source(path, digest if of_seed is None else str(Path(*parts[of_seed:])))
    return found


def distinct_tails(paths: Sequence[str]) -> list[str]:
    """The last parts of each path: as few as distinguish it from all others, or the last one if nothing does."""
    parts = [Path(path).parts for path in paths]
    longest = max(map(len, parts), default=0)
    tails: list[str] = []
    for own in parts:
        sizes = (n for n in range(1, longest + 1) if [other[-n:] for other in parts].count(own[-n:]) == 1)
        tails.append(str(Path(*own[-next(sizes, 1) :])))
    return tails


def _of_run(folder: Path, checkpoint: int | None, elsewhere: Mapping[str, Scores] | None = None) -> Member:
    """A run with its evaluations of one step, or with those from ``elsewhere``. Notes name evaluations left out."""
    final = final_step(folder)
    wanted = final if checkpoint is None else checkpoint
    within = [_evaluations(place / runfolder.EVALUATIONS) for place in (folder / f"checkpoint-{wanted}", folder)]
    kept: dict[str, Scores] = {}
    notes: list[str] = []
    for name, scores in [one for place in ([elsewhere] if elsewhere else within) for one in place.items()]:
        if (step := _step(scores, final)) != wanted:
            notes.append(f"{scores.folder} is of step {step}, not of step {wanted}, and is left out.")
        elif not elsewhere and _is_of_the_base(scores, folder):
            notes.append(f"{scores.folder} is of the model before training, and is left out.")
        elif scores.with_skills and not elsewhere:
            named = "Name its own folder to include it."
            notes.append(f"{scores.folder} shows skills in the prompt, and is left out. {named}")
        else:
            kept[name] = scores
    if not kept:
        raise ConfigError(
            f"no evaluation of {'the final checkpoint' if checkpoint is None else f'checkpoint {checkpoint}'}",
            got=notes[0].removesuffix(".") if notes else f"none in {folder}",
            remedy="sgsd eval makes one; --checkpoint N compares all runs at step N",
        )
    record = runfolder.read_json(folder / runfolder.RUN, runfolder.RUN_RECORD)
    settings = record["settings"]
    method, model = settings.get("method", "sgsd"), settings.get("model_name_or_path") or "?"
    told, sources = method_settings(settings), sources_of(record)
    return Member(folder, method, model, settings.get("seed"), told, wanted, kept, tuple(notes), sources)


def _is_of_the_base(scores: Scores, run: Path) -> bool:
    """Whether an evaluation in a run's folder is of the model that the run trained, before training."""
    base = runfolder.read_json(run / runfolder.RUN, runfolder.RUN_RECORD)["settings"].get("model_name_or_path")
    return not scores.summary.get("trained_by") and base is not None and scores.summary.get("model") == base


def final_step(run: Path) -> int | None:
    """The last optimizer step of a run, or that of a checkpoint; ``None`` if it left no log."""
    state = run / runfolder.STATE
    return runfolder.read_json(state, runfolder.TRAINER_STATE).get("global_step") if state.is_file() else None


def _step(scores: Scores, final: int | None) -> int | None:
    """The optimizer step of an evaluation: by its summary, else by its model's or folder's name, else the final one."""
    step = scores.summary.get("step")
    if isinstance(step, int):
        return step
    for name in (Path(str(scores.summary.get("model"))).name, scores.folder.parent.parent.name):
        start, _, number = name.rpartition("-")
        if start == "checkpoint" and number.isdigit():
            return int(number)
    return final


def _evaluations(folder: Path) -> dict[str, Scores]:
    return {file.parent.name: _scores(file.parent) for file in sorted(folder.glob(f"*/{runfolder.SUMMARY}"))}


def _scores(folder: Path) -> Scores:
    return Scores(folder, read_summary(folder), Evaluation.load(folder))
