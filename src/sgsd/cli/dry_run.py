"""``sgsd train --dry_run``: build all parts of a run except the weights, with the functions that the run uses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml
from datasets import Dataset
from rich.console import Console
from rich.panel import Panel
from rich.text import Text
from trl import ModelConfig, get_peft_config

from sgsd import runfolder
from sgsd.bank import SkillBank
from sgsd.cli.console import standard_output
from sgsd.cli.doctor import renderer_for
from sgsd.cli.prepare import Parts, check_before_loading, prepare, resume_point
from sgsd.cli.settings import RunArguments, hub_or_cache
from sgsd.data.problems import Problem
from sgsd.engines.embedders import build_retriever
from sgsd.engines.generation import context_length
from sgsd.engines.models import check_buildable, end_of_completion_ids, load_configs, load_tokenizer
from sgsd.errors import in_one_line
from sgsd.prompts import PromptRenderer
from sgsd.retrieval import Retriever
from sgsd.scoring.teachers import TeacherPool, build_pool
from sgsd.trainers.config import OPSDConfig, SGSDConfig, VerifiedConfig, context_of
from sgsd.trainers.model import settle_generation_config
from sgsd.trainers.names import method_name
from sgsd.trainers.rehearsal import rehearsal_prompts
from sgsd.trainers.rewards import VerifierReward, check_reward
from sgsd.trainers.rows import prompt_of, skill_pairs, training_rows
from sgsd.trainers.signs import FIRST_PROBLEMS, check_teachers
from sgsd.trainers.tokens import check_batch, check_tokens, prompt_budget, sampling_budget, thinking_of
from sgsd.verifiers import Verifier, get_verifier


def dry_run(run: RunArguments, training: VerifiedConfig, model: ModelConfig, console: Console) -> None:
    """Print settings, data and one prompt of each kind.

    Raises:
        SGSDError: as the run would, for settings, data and model configuration.
    """
    runfolder.refuse_unwritable(Path(training.output_dir), "output_dir")
    resume_from = resume_point(run, training)
    parts = prepare(run, training, model, resume_from)
    check_before_loading(training, model, resume_from)
    with (
        get_verifier(training.verifier, **(training.verifier_options or {})) as verifier,
        in_one_line(),
        hub_or_cache(parts.name),
    ):
        checked = check_without_weights(parts, training, verifier)
        check_buildable(parts.name, checked.config, get_peft_config(model), **parts.options)
    config, tokenizer, built, rows = checked.config, checked.tokenizer, checked.built, checked.rows
    renderer, budget = built.renderer, built.budget

    out = standard_output()
    settings = parts.settings
    chosen = {name: value for name, value in settings.items() if value != _default(name, run, training, model)}
    out.print(yaml.safe_dump(chosen, allow_unicode=True) + f"# {len(settings) - len(chosen)} others have the defaults")
    for report in (parts.report, *parts.further):
        for line in report.lines():
            out.print(line)
    if parts.bank is not None:
        out.print(_about_bank(training, parts.bank))
    for title, ids in built.prompts(rows[0]).items():
        heading = Text(f"{title}: {len(ids)} tokens, {rows[0]['problem_id']}")
        out.print(Panel(Text(renderer.text(ids)), title=heading))
    lengths = [len(renderer.student_ids(prompt_of(row))) for row in rows]
    context = context_length(config)
    room = "the model's configuration names no limit of its context"
    if context is not None:
        room = f"at most {budget} fit beside a completion into the context of {context}"
    out.print(f"prompts: {min(lengths)} to {max(lengths)} tokens; {room}")
    thinking = thinking_of(tokenizer, renderer.student_kwargs)
    out.print(
        f"completions: at most {training.max_completion_length} tokens (max_completion_length); by its chat template "
        f"the model {'thinks' if thinking.thinks else 'does not think'}"
    )
    if checked.sampling is not None:
        out.print(checked.sampling)
    warnings = [thinking.warning(training.max_completion_length)]
    if isinstance(training, SGSDConfig):
        warnings.append(check_teachers(built.pools([rows[n] for n in range(min(FIRST_PROBLEMS, len(rows)))]), budget))
    for warning in filter(None, warnings):
        out.print(f"WARNING: {warning}")
    console.print(f"method: {method_name(settings)}")
    console.print("dry run: no weights were loaded, nothing was written")


def check_without_weights(
    parts: Parts, training: VerifiedConfig, verifier: Verifier, *, with_skills: bool = True
) -> Checked:
    """Check prompts, batch, token ids and verifier, as the trainer does once the weights are loaded.

    Args:
        parts, training: of the run.
        verifier: is called once, on made-up completions.
        with_skills: build the rows with ``skills_in_prompt``; BM25 chooses in place of an embedder.

    Raises:
        SGSDError: as the trainer would.
    """
    tokenizer = load_tokenizer(parts.name, **parts.reading)
    config, generation_config = load_configs(parts.name, **parts.reading)
    renderer = renderer_for(training, tokenizer, [*parts.problems, *(parts.eval_problems or ())])
    sampling = settle_generation_config(generation_config)
    budget = prompt_budget(config, training)
    built = _Built(training, renderer, parts.bank, budget)
    rows = built.rows(parts.problems, with_skills=with_skills)
    if parts.eval_problems is not None:
        training_rows(
            parts.eval_problems,
            renderer,
            max_prompt_length=budget,
            max_student_length=sampling_budget(training, budget),
            long_prompts=training.long_prompts,
        )
    if parts.rehearsed is not None:
        rehearsal_prompts(parts.rehearsed, tokenizer, training, budget)
    check_batch(len(rows), training)
    ends = end_of_completion_ids(SimpleNamespace(generation_config=generation_config), tokenizer)
    if not Path(parts.name, "adapter_config.json").is_file():  # an adapter may have more tokens than its base model
        check_tokens(config.get_text_config().vocab_size, tokenizer, ends)
    reward = VerifierReward(
        verifier,
        name=training.verifier,
        end_ids=ends,
        max_length=training.max_completion_length,
        truncated=training.truncated,
    )
    check_reward([reward], rows[0], tokenizer, ends[0])
    return Checked(tokenizer, config, sampling, built, rows)


def _default(name: str, *parts: Any) -> Any:
    """The default of a setting in its dataclass."""
    (item,) = {item.name: item for part in parts for item in fields(part) if item.name == name}.values()
    value = item.default_factory() if callable(item.default_factory) else item.default
    return value.value if isinstance(value, Enum) else value


def _about_bank(training: VerifiedConfig, bank: SkillBank) -> str:
    shown = training.num_teachers if isinstance(training, SGSDConfig) else training.skills_in_prompt_pairs
    context = context_of(vars(training), bank)
    most = bank.max_pairs if context == "pairs" else len(bank.items)
    what = "the whole document" if context == "document" else f"{min(shown, most)} {context} a rollout"
    sizes = f"{len(bank.skills)} skills, {len(bank.mistakes)} mistakes"
    found_by = training.retriever
    if found_by == "embedding":
        found_by += f", embedder {training.embedder} (BM25 in its place here: it is not loaded)"
    return f"bank {training.bank}: {sizes}, digest {bank.digest[:12]}; {what}\nretriever: {found_by}"


@dataclass(frozen=True)
class Checked:
    """What was checked without weights.

    Attributes:
        tokenizer, config: of the model.
        sampling: a line on the model's own sampling settings, if it has any.
        built: makes prompts.
        rows: of the training data.
    """

    tokenizer: Any
    config: Any
    sampling: str | None
    built: _Built
    rows: Dataset


@dataclass(frozen=True)
class _Built:
    """Rows and prompts of a run. BM25 replaces an embedding retriever, whose embedder is not loaded."""

    training: VerifiedConfig
    renderer: PromptRenderer
    bank: SkillBank | None
    budget: int

    @property
    def _retriever(self) -> Retriever:
        args = self.training
        name = "bm25" if args.retriever == "embedding" else args.retriever
        return build_retriever(name, embedder=None, seed=args.seed, item_text=args.retrieval_text)

    def rows(self, problems: list[Problem], *, with_skills: bool = True) -> Dataset:
        """The rows that the trainer makes of the problems."""
        args, skills, shown = self.training, None, {}
        if args.skills_in_prompt and with_skills:
            assert self.bank is not None
            context = context_of(vars(args), self.bank)
            skills = skill_pairs(problems, self._retriever, self.bank, args.skills_in_prompt_pairs, context)
        if isinstance(args, OPSDConfig):
            from sgsd.trainers.opsd import references

            shown = {"references": references(problems, args.reference)}
        return training_rows(
            problems,
            self.renderer,
            max_prompt_length=self.budget,
            max_student_length=sampling_budget(args, self.budget),
            skills=skills,
            long_prompts=args.long_prompts,
            **shown,
        )

    def pools(self, rows: Sequence[dict[str, Any]]) -> list[TeacherPool]:
        """The teachers of some rows. Only method sgsd has any."""
        assert self.bank is not None
        context = context_of(vars(self.training), self.bank)
        document = str(self.bank.metadata["document"]) if context == "document" else None
        K = 1 if document else vars(self.training)["num_teachers"]
        found = self._retriever.retrieve([row["problem"] for row in rows], self.bank, K, alone=context != "pairs")
        how: dict[str, Any] = {"num_teachers": K, "max_prompt_length": self.budget, "document": document}
        return [build_pool(prompt_of(row), one, self.renderer, **how) for row, one in zip(rows, found, strict=True)]

    def prompts(self, row: dict[str, Any]) -> dict[str, list[int]]:
        """The prompts of a row, by title."""
        args = self.training
        source = "random" if args.retriever == "random" else "BM25's first"
        title = f"student, with {source} pairs" if args.skills_in_prompt else "student"
        prompts = {title: self.renderer.student_ids(prompt_of(row))}
        if isinstance(args, SGSDConfig):
            (pool,) = self.pools([row])
            title = f"teacher, with {source} pair"
            if pool.too_long:
                title += f" ({pool.too_long} of {pool.too_long + len(pool.pairs)} pairs are too long)"
            if pool.prompts:
                prompts[title] = pool.prompts[0]
        if isinstance(args, OPSDConfig):
            prompts[f"teacher, with the {args.reference}"] = row["teacher_prompt"]
        return prompts
