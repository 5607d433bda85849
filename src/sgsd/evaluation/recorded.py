"""Run folders and evaluation folders → what a comparison needs of them, and nothing that was trained on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from sgsd import runfolder
from sgsd.errors import ConfigError
from sgsd.evaluation.run import Evaluation, read_summary
from sgsd.trainers.names import method_name

_FILE_KINDS = (".json", ".jsonl", ".parquet", ".csv")
# Settings that make no two runs different methods.
_INCIDENTAL = (
    *("seed", "data_seed", "output_dir", "logging_dir", "run_name", "resume", "resume_from_checkpoint", "dry_run"),
    *("report_to", "disable_tqdm", "push_to_hub", "project", "local_rank", "num_completions_to_print"),
)
# So begin those that choose what a run logs, saves and uploads.
_INCIDENTAL_STARTS = ("log_", "logging_", "save_", "trace_", "hub_", "trackio_")
# What tells two evaluations of models without training apart, as their summaries name it.
_BASE_ESSENCE = (
    *("model", "skills_in_prompt", "skills_in_prompt_pairs", "teacher_context", "bank", "retriever", "embedder"),
)
# What two evaluations must share to be compared, as their summaries name it.
_CONDITIONS = (
    *("dataset", "dataset_split", "dataset_config", "verifier", "verifier_options", "instruction"),
    *("chat_template_kwargs", "thinking", "temperature", "top_p", "top_k", "min_p"),
    *("max_completion_length", "max_new_tokens"),
)


@dataclass(frozen=True)
class Scores:
    """One evaluation folder: where it is, its ``summary.json``, its samples."""

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

    @cached_property
    def conditions(self) -> Mapping[str, Any]:
        """What must be the same to compare, beside the problems; a data set is its file's name, no options are none."""
        told = {setting: pathless(self.summary.get(setting)) for setting in _CONDITIONS}
        if told["dataset"] is not None:
            told["dataset"] = Path(told["dataset"]).name
        same = {setting: None if value == {} else value for setting, value in told.items()}
        return {"samples per problem": self.evaluation.k, **same}

    def is_comparable(self, other: Scores) -> bool:
        """The same problems under the same conditions."""
        return self.shares.keys() == other.shares.keys() and self.conditions == other.conditions

    @property
    def with_skills(self) -> bool:
        return bool(self.summary.get("skills_in_prompt"))


@dataclass(frozen=True)
class Member:
    """One run, or one model's evaluations: what a row of the table has for one seed.

    Attributes:
        folder: of the run, or of the evaluations.
        method: of training; ``base`` without any.
        model: the model it began with.
        skills: whether skills were in the prompt: of the rollouts, or of the evaluations without training.
        seed: of training, or of sampling without any.
        essence: what it shares with the same method under another seed, on another machine.
        checkpoint: the step that was evaluated, if known.
        scores: name of the evaluation → what came out.
        notes: what a reader should know.
        start: whether it is a run's evaluation of the model it began with.
    """

    folder: Path
    method: str
    model: str
    skills: bool
    seed: int | None
    essence: Mapping[str, Any]
    checkpoint: int | None
    scores: Mapping[str, Scores]
    notes: tuple[str, ...] = ()
    start: bool = False

    @property
    def name(self) -> str:
        """The method as tables name it."""
        return method_name({**self.essence, "method": self.method, "skills_in_prompt": self.skills})


def read_members(folder: Path, checkpoint: int | None) -> list[Member]:
    """Read a run folder, an evaluation folder, or a folder of evaluation folders.

    An evaluation folder whose model is a run that is still where it was is that run's. Where a run was evaluated on the
    same problems before its first step too, that evaluation is of the model it began with: a member of its own.

    Args:
        folder: any of these.
        checkpoint: the step to take of a run; ``None`` for the final one.

    Raises:
        ConfigError: it is none of these, or there is no evaluation of that step.
        DataError: an evaluation cannot be read.
    """
    if (folder / runfolder.RUN).is_file():
        return _of_run(folder, checkpoint)
    if (folder / runfolder.SUMMARY).is_file():
        scores = _scores(folder)
        dataset = scores.summary.get("dataset")
        found = {Path(str(dataset)).stem if dataset else folder.name: scores}
    else:
        found = _evaluations(folder / runfolder.EVALUATIONS) or _evaluations(folder)
    if not found:
        raise ConfigError(
            "neither a run nor an evaluation",
            got=str(folder),
            expected="run.json in it, which sgsd train writes, or summary.json, which sgsd eval writes",
        )
    models = sorted({str(scores.summary.get("model")) for scores in found.values()})
    if len(models) > 1:
        raise ConfigError("evaluations of several models in one folder", got=f"{folder}: {', '.join(models)}")
    model, first = Path(models[0]), next(iter(found.values()))
    above = first.folder.resolve().parents  # RUN[/checkpoint-N]/evaluations/NAME
    homes = (model, model.parent, above[1], above[2])
    run = next((home for home in homes if (home / runfolder.RUN).is_file()), None)
    if run is not None:
        return [_of_run_elsewhere(run, found, checkpoint)]
    if model.name.startswith("checkpoint-") or any(scores.summary.get("trained_by") for scores in found.values()):
        raise ConfigError(  # as Base, a trained model would be compared with itself
            "an evaluation of a trained model whose run is gone",
            got=f"{folder}, of {model}",
            expected="the run's folder where it was",
            remedy="name the run's folder, with the evaluation in its evaluations/",
        )
    if first.summary.get("model") is None:
        raise ConfigError(
            "an evaluation that does not say of which model it is",
            got=str(first.folder / runfolder.SUMMARY),
            expected="model in it, as sgsd eval writes",
        )
    asked = {name: pathless(first.summary.get(name)) for name in _BASE_ESSENCE}
    return [Member(folder, "base", models[0], first.with_skills, first.summary.get("seed"), asked, None, found)]


def essence(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What a run's settings share with those of the same method under another seed, on another machine."""
    seed = settings.get("seed")
    return {
        name: pathless(value, seed)
        for name, value in settings.items()
        if name not in _INCIDENTAL and not name.startswith(_INCIDENTAL_STARTS)
    }


def pathless(value: Any, seed: int | None = None) -> Any:
    """A setting as it would be on another machine and with another seed: files by their names."""
    if not isinstance(value, str):
        return value
    is_file = value.startswith((".", "/", "~")) or Path(value).suffix in _FILE_KINDS
    return (Path(value).name if is_file else value).replace(f"seed{seed}", "seed*")


def _of_run(folder: Path, checkpoint: int | None) -> list[Member]:
    """The run, after the model it began with where the run evaluated that too."""
    final = _final_step(folder)
    wanted = final if checkpoint is None else checkpoint
    places = (folder / f"checkpoint-{wanted}" / runfolder.EVALUATIONS, folder / runfolder.EVALUATIONS)
    found = [(name, scores, _step(scores, final)) for place in places for name, scores in _evaluations(place).items()]
    kept = {name: scores for name, scores, step in found if step == wanted and not scores.with_skills}
    if not kept:
        skilled = any(step == wanted for _, _, step in found)
        others = "evaluations with skills in the prompt alone" if skilled else "evaluations of other steps"
        raise ConfigError(
            f"no evaluation of {'the final checkpoint' if checkpoint is None else f'checkpoint {checkpoint}'}",
            got=f"{folder} with {others if found else 'no evaluations'}",
            expected=str(folder / runfolder.EVALUATIONS / "NAME"),
            remedy="sgsd eval with --output writes one",
        )
    starts = {
        name: scores
        for _, scores, step in found
        if wanted and step == 0 and not scores.with_skills
        for name, other in kept.items()
        if scores.shares.keys() == other.shares.keys()
    }
    notes = [
        f"{scores.folder} is of step {step}, not of step {wanted}, and is left out."
        for _, scores, step in found
        if step != wanted and not any(scores is start for start in starts.values())
    ]
    notes += [
        f"{scores.folder} shows skills in the prompt, and is left out. Named by its own folder it is taken."
        for _, scores, step in found
        if step == wanted and scores.with_skills
    ]
    if len(kept) == 1 and starts:  # neither "before" nor "after" names both
        ((name, scores),) = kept.items()
        name = Path(str(scores.summary.get("dataset") or name)).stem
        kept, starts = {name: scores}, dict.fromkeys([name], *starts.values())
    run = _trained(folder, kept, wanted, notes)
    if not starts:
        return [run]
    first, asked = next(iter(starts.values())), {"model": pathless(run.model)}
    seed = first.summary.get("seed")
    return [Member(first.folder, "base", run.model, False, seed, asked, None, starts, start=True), run]


def _of_run_elsewhere(run: Path, found: Mapping[str, Scores], checkpoint: int | None) -> Member:
    final = _final_step(run)
    wanted = final if checkpoint is None else checkpoint
    for scores in found.values():
        step = _step(scores, final)
        if step != wanted:
            raise ConfigError(
                "an evaluation of another checkpoint",
                got=f"{scores.folder}, of step {step}",
                expected=f"step {wanted}, {'the final one' if checkpoint is None else 'as declared'}",
                remedy=f"--checkpoint {step} compares all runs at that step",
            )
    return _trained(run, found, wanted)


def _trained(folder: Path, scores: Mapping[str, Scores], checkpoint: int | None, notes: Sequence[str] = ()) -> Member:
    settings = runfolder.read_json(folder / runfolder.RUN, runfolder.RUN_RECORD)["settings"]
    method, model = settings.get("method", "sgsd"), settings.get("model_name_or_path") or "?"
    skills, seed = bool(settings.get("skills_in_prompt")), settings.get("seed")
    return Member(folder, method, model, skills, seed, essence(settings), checkpoint, scores, tuple(notes))


def _final_step(run: Path) -> int | None:
    """The last optimizer step of a run; ``None`` if it left no log."""
    state = run / runfolder.STATE
    return runfolder.read_json(state, runfolder.TRAINER_STATE).get("global_step") if state.is_file() else None


def _step(scores: Scores, final: int | None) -> int | None:
    """The optimizer step an evaluation is of: as it says, as its model's or folder's name says, else the final one."""
    step = scores.summary.get("step")
    if isinstance(step, int):
        return step
    if scores.folder.name == "before" and (scores.folder.parent / "after").is_dir():
        return 0  # a demo's, from when it did not say
    for name in (Path(str(scores.summary.get("model"))).name, scores.folder.parent.parent.name):
        start, _, number = name.rpartition("-")
        if start == "checkpoint" and number.isdigit():
            return int(number)
    return final


def _evaluations(folder: Path) -> dict[str, Scores]:
    return {file.parent.name: _scores(file.parent) for file in sorted(folder.glob(f"*/{runfolder.SUMMARY}"))}


def _scores(folder: Path) -> Scores:
    summary, evaluation = read_summary(folder), Evaluation.load(folder)
    found = len(evaluation.by_problem)
    if summary.get("problems", found) != found:
        raise ConfigError(
            "an evaluation's samples do not fit its summary",
            got=f"{folder} with samples of {found} problems",
            expected=f"{summary['problems']} problems",
        )
    return Scores(folder, summary, evaluation)
