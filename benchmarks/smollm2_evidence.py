"""SmolLM2-135M on a task: base, GRPO, SGSD as published, the correction, equal rollouts (docs/evidence.md).

    python benchmarks/smollm2_evidence.py word-problems --dataset asdiv.jsonl
    python benchmarks/smollm2_evidence.py house-rules

*word-problems*: the file's short problems with a whole number up to 20 for an answer, shuffled with seed 0, are split:
200 are held out. An easy choice, so that the model is right at times; the bank is a general one. *house-rules*: see
``house_rules.py``; half of the bank misleads. Every method trains from the same prompts; the held-out ones are asked
once, greedily, by the plain prompt, at the end. Runs that are there already are not made again. What is compared, and
the commands, go to ``results/smollm2/``.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import house_rules

ROOT = Path(__file__).resolve().parent.parent
RUNS = Path("runs")
MODEL = "local:smollm2-135m-instruct"
PUBLISHED = {"teacher": "live", "grpo_weight": 0}
CORRECTION = {"objective": "correction", "teacher": "frozen", "grpo_weight": 1}
WORTH = CORRECTION | {"teacher_trust": "worth", "sgsd_weight": 2}
CONTROL = {"support_baseline": "control"}
GUIDANCE = {"teacher_guidance": 2}
GENERAL = {"bank": "seed:arithmetic-word-problems", "num_teachers": 2, "embedder": "local:all-minilm-l6-v2"}
RULES = {"bank": "BANK/half.json", "num_teachers": 2, "retriever": "bm25"}


@dataclass(frozen=True)
class Task:
    """What is asked, for how long it is trained, and the methods' own settings."""

    instruction: str
    tokens: int
    steps: int
    rollouts: int
    seeds: int
    sampling: dict[str, Any]
    methods: dict[str, dict[str, Any]]


TASKS = {
    "word-problems": Task(
        instruction="Answer with one number and nothing else.",
        tokens=48,
        steps=60,
        rollouts=8,
        seeds=2,
        sampling={"temperature": 0.6, "top_p": 0.95},
        methods={
            "grpo": {"method": "grpo"},
            "sgsd": GENERAL | PUBLISHED,
            "correction": GENERAL | CORRECTION | {"teacher_trust": "ledger"},
            "worth": GENERAL | WORTH,
        },
    ),
    "house-rules": Task(
        instruction=house_rules.INSTRUCTION,
        tokens=16,
        steps=80,
        rollouts=16,
        seeds=2,
        sampling={"temperature": 0.8, "top_p": 0.95, "top_k": 0},
        methods={
            "grpo": {"method": "grpo"},
            "worth-control": RULES | WORTH | CONTROL,
            "guided": RULES | WORTH | CONTROL | GUIDANCE,
            "guided-alone": RULES | WORTH | CONTROL | GUIDANCE | {"grpo_weight": 0},
            "worth": RULES | WORTH,
            "sgsd": RULES | PUBLISHED,
            "worth-control-misleading": RULES | WORTH | CONTROL | {"bank": "BANK/misleading.json"},
        },
    ),
}
SETTINGS = {
    "model_name_or_path": MODEL,
    "dtype": "float32",
    "bf16": "false",
    "gradient_checkpointing": "false",
    "learning_rate": 2e-5,
    "lr_scheduler_type": "constant",
    "max_grad_norm": 1,
    "num_generations": 4,
    "save_steps": 1000,
    "report_to": "none",
    "disable_tqdm": "true",
}
"""The preset ``demo``'s."""


def word_problems(file: Path, folder: Path, *, held_out: int = 200) -> None:
    """Train and test files of short problems whose answer is a whole number up to 20."""
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if re.fullmatch(r"1?\d|20", row["answer"]) and len(row["problem"]) <= 140]
    random.Random(0).shuffle(rows)
    house_rules.save(folder, train=rows[held_out:], test=rows[:held_out])


def commands(task: Task, name: str, seed: int, folder: Path) -> list[list[str]]:
    """What makes and evaluates a run; the base model is only evaluated."""
    output = folder / f"{name}-seed{seed}"
    prompt = ["--instruction", task.instruction, "--max_completion_length", str(task.tokens)]
    measure = ["sgsd", "eval", "--dataset", f"{folder}/data/test.jsonl", "--temperature", "0", "--batch_size", "50"]
    if name == "base":
        return [[*measure, *prompt, MODEL, "--output", str(output)]]
    settings = SETTINGS | task.sampling | task.methods[name]
    settings |= {"max_steps": task.steps, "per_device_train_batch_size": task.rollouts}
    settings |= {"seed": seed, "output_dir": output}
    flags = [part for key, value in settings.items() for part in (f"--{key}", str(value))]
    made = ["sgsd", "train", "--dataset", f"{folder}/data/train.jsonl", *flags, *prompt]
    return [[part.replace("BANK/", f"{folder}/data/") for part in made], [*measure, str(output)]]


def make(task: Task, name: str, seed: int, folder: Path, threads: int) -> str:
    done = folder / f"{name}-seed{seed}.done"
    if done.exists():
        return f"{name} seed {seed}: there already"
    said = ""
    for command in commands(task, name, seed, folder):
        called = [sys.executable, "-m", "sgsd.cli", *command[1:]]
        env = os.environ | {"OMP_NUM_THREADS": str(threads)}
        finished = subprocess.run(called, capture_output=True, text=True, check=False, env=env)
        if finished.returncode:
            return f"{name} seed {seed}: {(finished.stderr.strip() or 'failed').splitlines()[-1]}"
        said = finished.stdout
    done.write_text("")
    return f"{name} seed {seed}:\n{said}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--dataset", type=Path, help="of word-problems: JSON lines with problem and answer")
    parser.add_argument("--output", type=Path, help=f"default: {RUNS}/smollm2-TASK")
    parser.add_argument("--results", help="name of the file in results/smollm2, default: the task's")
    parser.add_argument("--methods", nargs="+", help="default: all of the task's, and base")
    parser.add_argument("--seeds", type=int, help="default: the task's")
    parser.add_argument("--steps", type=int, help="default: the task's")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1, help="a worker's")
    options = parser.parse_args()
    task, shown = TASKS[options.task], RUNS / f"smollm2-{options.task}"
    task = replace(task, steps=options.steps or task.steps)
    folder = options.output or shown
    methods, seeds = options.methods or ["base", *task.methods], options.seeds or task.seeds
    if unknown := set(methods) - {"base", *task.methods}:
        parser.error(f"unknown methods {sorted(unknown)}; {options.task} has base, {', '.join(task.methods)}")
    if options.task == "house-rules":
        house_rules.problems(folder / "data")
        house_rules.bank().save(folder / "data" / "half.json")
        house_rules.bank(helpful=False).save(folder / "data" / "misleading.json")
        house_rules.bank(misleading=False).save(folder / "data" / "helpful.json")
    elif options.dataset:
        word_problems(options.dataset, folder / "data")
    else:
        parser.error("word-problems needs --dataset")
    wanted = [(name, seed) for seed in range(seeds) for name in methods if name != "base" or seed == 0]
    with ThreadPoolExecutor(options.workers) as pool:
        for said in pool.map(lambda which: make(task, *which, folder, options.threads), wanted):
            print(said, flush=True)
    runs = sorted(path for path in folder.glob("*-seed*") if path.with_name(f"{path.name}.done").exists())
    made = [(name, int(seed)) for name, seed in (path.name.rsplit("-seed", 1) for path in runs)]
    trained = [path for path in runs if (path / "trainer_state.json").exists()]
    taught = [path for path in trained if (path / "ledger.json").exists()]
    kept = {
        "commands": [shlex.join(command) for which in made for command in commands(task, *which, folder)],
        "success_rates": {path.name: logged(path, "success_rate") for path in trained},
        "trust": {path.name: trust for path in taught if (trust := logged(path, "sgsd/trust"))},
        "separation": {path.name: asked("bank", "ledger", path, "--json")["separation"] for path in taught},
        "compared": asked("compare", *runs, "--json"),
    }
    results = ROOT / "results" / "smollm2"
    results.mkdir(parents=True, exist_ok=True)
    text = json.dumps(kept, indent=1).replace(str(folder), str(shown))
    (results / f"{options.results or options.task}.json").write_text(text + "\n")
    print(sgsd("compare", *runs, "--markdown"))


def sgsd(*arguments: str | Path) -> str:
    called = [sys.executable, "-m", "sgsd.cli", *map(str, arguments)]
    return subprocess.run(called, capture_output=True, text=True, check=True).stdout


def asked(*arguments: str | Path) -> Any:
    return json.loads(sgsd(*arguments))


def logged(run: Path, metric: str) -> list[float]:
    """Of the rollouts in training: means over the steps between two log entries."""
    log = json.loads((run / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    return [entry[metric] for entry in log if metric in entry]


if __name__ == "__main__":
    main()
