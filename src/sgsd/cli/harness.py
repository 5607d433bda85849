"""``sgsd eval --lm_eval``: evaluate a model with EleutherAI's lm-evaluation-harness."""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from yaml import YAMLError

from sgsd.cli.console import print_json, standard_error, standard_output
from sgsd.cli.eval import engines_of
from sgsd.cli.eval_plan import check_flags, output_of, read_model_run, refuse_idle_flags, renderer_of
from sgsd.cli.settings import ignore_deprecations
from sgsd.errors import ConfigError, did_you_mean, in_one_line
from sgsd.trainers.tokens import thinking_of

_NAME = "lm-eval"
_FLAGS = (
    *("command", "module", "model", "lm_eval", "limit", "thinking", "chat_template_kwargs", "engine", "batch_size"),
    *("dtype", "device", "trust_remote_code", "output", "json"),
)
_BATCH_SIZE = 8


def run(options: argparse.Namespace) -> int:
    """Run the tasks in ``--lm_eval``, print the harness's table and save its JSON.

    The model is loaded as for ``sgsd eval``, with its adapter, and prompted with the run's chat template.
    """
    refuse_idle_flags(options, _FLAGS, "with --lm_eval: tasks define their prompts")
    if options.engine != "transformers":
        raise ConfigError(f"--engine {options.engine} with --lm_eval", remedy="for servers use the command lm_eval")
    if importlib.util.find_spec("lm_eval") is None:
        raise ConfigError("the package lm-eval is not installed", remedy="run: pip install 'sgsd[lm-eval]'")
    from lm_eval import simple_evaluate
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
    from lm_eval.utils import make_table

    ignore_deprecations()
    record = read_model_run(options)
    check_flags(options)
    tasks = [name.strip() for name in options.lm_eval.split(",")]
    manager = TaskManager()
    for task in tasks:
        if task not in manager.all_tasks and not Path(task).is_file():
            remedy = did_you_mean(task, manager.all_tasks) or "list them: lm_eval ls tasks"
            raise ConfigError("no such task of lm-eval, and no file", got=task, remedy=remedy)
    engines = engines_of(options)
    tokenizer = engines.tokenizer()
    template = renderer_of(tokenizer, options, record, None).student_kwargs
    output = output_of(_NAME, options, skilled=False, several=False)
    tracker = EvaluationTracker(output_path=None if output is None else str(output / "results.json"))
    with in_one_line("lm-eval cannot run these tasks"):
        model: Any = HFLM(
            pretrained=engines.weights(),
            tokenizer=tokenizer,
            batch_size=options.batch_size or _BATCH_SIZE,
            chat_template_args=template,
            think_end_token="</think>" if thinking_of(tokenizer, template).thinks else None,
        )
        try:
            results: Any = simple_evaluate(
                model,
                model_args={"pretrained": options.model},  # the name in the results
                tasks=tasks,
                task_manager=manager,
                limit=options.limit,
                apply_chat_template=tokenizer.chat_template is not None,
                log_samples=False,
                evaluation_tracker=tracker,
            )
        except OSError as error:
            raise ConfigError("a task's data cannot be read", got=" ".join(str(error).split())) from error
        except (YAMLError, TemplateError) as error:
            raise ConfigError("lm-eval cannot run these tasks", got=" ".join(str(error).split())) from error
    tracker.save_results_aggregated(results)
    if options.json:
        print_json(results["results"])
    else:
        for column in ("results", "groups"):
            if results.get(column):
                standard_output().print(make_table(results, column), soft_wrap=True)
    where = "results not saved: pass --output FOLDER to save them" if output is None else f"results saved to {output}"
    standard_error().print(where, soft_wrap=True)
    return 0
