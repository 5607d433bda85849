"""Run folders and evaluation folders → what a comparison needs of them, and nothing that was trained on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
_BASE_ESSENCE = ("model", "skills_in_prompt", "skills_in_prompt_pairs", "bank", "retriever", "embedder")


@dataclass(frozen=True)
class Scores:
    """One evaluation folder.

    Attributes:
        folder: where it is.
        summary: its ``summary.json``.
        shares: problem id → share of the samples that are correct.
        asked: problem id → text and reference answer, where the samples hold them.
        k: samples of each problem.
    """

    folder: Path
    summary: Mapping[str, Any]
    shares: Mapping[str, float]
    asked: Mapping[str, tuple[str, str | None]]
    k: int


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
    return [_of_evaluations(folder, checkpoint)]


def _of_evaluations(folder: Path, checkpoint: int | None) -> Member:
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
    models = {str(scores.summary.get("model")) for scores in found.values()}
    if len(models) > 1:
        raise ConfigError("evaluations of several models in one folder", got=f"{folder}: {', '.join(sorted(models))}")
    model = models.pop()
    first = next(iter(found.values()))
    above = (
        first.folder.resolve().parents[1],
        first.folder.resolve().parents[2],
    )  # RUN[/checkpoint-N]/evaluations/NAME
    homes = (Path(model), Path(model).parent, *above)
    run = next((home for home in homes if (home / runfolder.RUN).is_file()), None)
    if run is not None:
        return _of_run_elsewhere(folder, run, found, checkpoint)
    if Path(model).name.startswith("checkpoint-") or any(scores.summary.get("trained_by") for scores in found.values()):
        raise ConfigError(  # as Base, a trained model would be compared with itself
            "an evaluation of a trained model whose run is gone",
            got=f"{folder}, of {model}",
            expected="the run's folder where it was",
            remedy="name the run's folder, with the evaluation in its evaluations/",
        )
    summary = first.summary
    if summary.get("model") is None:
        raise ConfigError(
            "an evaluation that does not say of which model it is",
            got=str(first.folder / runfolder.SUMMARY),
            expected="model in it, as sgsd eval writes",
        )
    asked = {name: pathless(summary.get(name)) for name in _BASE_ESSENCE}
    skills = bool(summary.get("skills_in_prompt"))
    return Member(folder, "base", model, skills, summary.get("seed"), asked, None, found)


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
    final = _final_step(folder)
    wanted = final if checkpoint is None else checkpoint
    places = (folder / f"checkpoint-{wanted}" / runfolder.EVALUATIONS, folder / runfolder.EVALUATIONS)
    found = [(name, scores) for place in places for name, scores in _evaluations(place).items()]
    now = [(name, scores) for name, scores in found if _step(scores, final) == wanted]
    kept = {name: scores for name, scores in now if not scores.summary.get("skills_in_prompt")}
    if not kept:
        raise ConfigError(
            f"no evaluation of {'the final checkpoint' if checkpoint is None else f'checkpoint {checkpoint}'}",
            got=f"{folder} with {_only(now, found)}",
            expected=str(folder / runfolder.EVALUATIONS / "NAME"),
            remedy="sgsd eval with --output writes one",
        )
    before = [scores for _, scores in found if wanted and _step(scores, final) == 0]
    starts = {
        name: scores
        for scores in before
        if not scores.summary.get("skills_in_prompt")
        for name, other in kept.items()
        if scores.shares.keys() == other.shares.keys()
    }
    other_steps = [
        f"{scores.folder} is of step {step}, not of step {wanted}, and is left out."
        for _, scores in found
        if (step := _step(scores, final)) != wanted and not any(scores is start for start in starts.values())
    ]
    with_skills = [
        f"{scores.folder} shows skills in the prompt, and is left out. Named by its own folder it is taken."
        for _, scores in now
        if scores.summary.get("skills_in_prompt")
    ]
    if len(kept) == 1 and starts:  # neither "before" nor "after" names both
        ((name, scores),) = kept.items()
        name = Path(str(scores.summary.get("dataset") or name)).stem
        kept, starts = {name: scores}, dict.fromkeys([name], *starts.values())
    run = _trained(folder, kept, wanted, (*other_steps, *with_skills))
    return [_start(run, starts), run] if starts else [run]


def _start(run: Member, scores: Mapping[str, Scores]) -> Member:
    """The model that a run began with, by the run's own evaluations."""
    first = next(iter(scores.values()))
    asked = {"model": pathless(run.model)}
    return Member(first.folder, "base", run.model, False, first.summary.get("seed"), asked, None, scores, start=True)


def _only(now: Sequence[object], found: Sequence[object]) -> str:
    if not found:
        return "no evaluations"
    return "evaluations with skills in the prompt alone" if now else "evaluations of other steps"


def _of_run_elsewhere(folder: Path, run: Path, found: Mapping[str, Scores], checkpoint: int | None) -> Member:
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
    return _trained(run, found, wanted, ())


def _trained(folder: Path, scores: Mapping[str, Scores], checkpoint: int | None, notes: tuple[str, ...]) -> Member:
    record = runfolder.read_json(folder / runfolder.RUN)
    settings = record.get("settings")
    if not isinstance(settings, dict):
        raise ConfigError("the run's record cannot be read", got=str(folder / runfolder.RUN), expected="its settings")
    seed = settings.get("seed")
    method, model = str(settings.get("method", "sgsd")), str(settings.get("model_name_or_path", "?"))
    skills = bool(settings.get("skills_in_prompt"))
    return Member(folder, method, model, skills, seed, essence(settings), checkpoint, scores, notes)


def _final_step(run: Path) -> int | None:
    """The last optimizer step of a run; ``None`` if it left no log."""
    state = run / runfolder.STATE
    return runfolder.read_json(state).get("global_step") if state.is_file() else None


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
    shares = evaluation.accuracies
    if summary.get("problems", len(shares)) != len(shares):
        raise ConfigError(
            "an evaluation's samples do not fit its summary",
            got=f"{folder} with samples of {len(shares)} problems",
            expected=f"{summary['problems']} problems",
        )
    asked = {
        id: (samples[0].problem, samples[0].reference)
        for id, samples in evaluation.by_problem.items()
        if samples[0].problem is not None
    }
    return Scores(folder, summary, shares, asked, evaluation.k)
