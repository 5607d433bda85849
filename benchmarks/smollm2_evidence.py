"""SmolLM2-135M on word problems: base, GRPO, SGSD as published, both corrections, equal rollouts (docs/evidence.md).

    python benchmarks/smollm2_evidence.py asdiv.jsonl

The file's short problems with a whole number up to 20 for an answer, shuffled with seed 0, are split: 200 are held out,
each asked once, greedily: an easy choice, so that the model is right at times. Every method trains on the others from
the same prompts; the plain prompt is asked at the end. Runs that are there already are not made again. What is
compared, and the commands, go to ``results/smollm2/``.
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
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OUTPUT = Path("runs/smollm2")
MODEL = "local:smollm2-135m-instruct"
TEACHERS = {"bank": "seed:arithmetic-word-problems", "num_teachers": 2, "embedder": "local:all-minilm-l6-v2"}
CORRECTION = {"objective": "correction", "teacher": "frozen", "grpo_weight": 1}
METHODS = {
    "grpo": {"method": "grpo"},
    "sgsd": TEACHERS | {"teacher": "live", "grpo_weight": 0},
    "correction": TEACHERS | CORRECTION | {"teacher_trust": "ledger"},
    "worth": TEACHERS | CORRECTION | {"teacher_trust": "worth", "sgsd_weight": 2},
}
SETTINGS = {
    "model_name_or_path": MODEL,
    "dtype": "float32",
    "bf16": "false",
    "gradient_checkpointing": "false",
    "learning_rate": 2e-5,
    "lr_scheduler_type": "constant",
    "max_grad_norm": 1,
    "temperature": 0.6,
    "top_p": 0.95,
    "num_generations": 4,
    "save_steps": 1000,
    "report_to": "none",
    "disable_tqdm": "true",
}
"""The preset ``demo``'s, for every method, but for temperature (0.8 there) and top-k (here the default 20, there 0)."""


def split(file: Path, folder: Path, *, held_out: int) -> tuple[Path, Path]:
    """``(train, test)`` files of short problems whose answer is a whole number up to 20."""
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if re.fullmatch(r"1?\d|20", row["answer"]) and len(row["problem"]) <= 140]
    random.Random(0).shuffle(rows)
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in (("test", rows[:held_out]), ("train", rows[held_out:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part), encoding="utf-8")
    return folder / "train.jsonl", folder / "test.jsonl"


def commands(name: str, seed: int, options: argparse.Namespace, train: Path, test: Path) -> list[list[str]]:
    """What makes and evaluates a run; the base model is only evaluated."""
    output = options.output / f"{name}-seed{seed}"
    prompt = ["--instruction", options.instruction, "--max_completion_length", str(options.tokens)]
    measure = ["sgsd", "eval", "--dataset", str(test), "--temperature", "0", "--batch_size", "50"]
    if name == "base":
        return [[*measure, *prompt, MODEL, "--output", str(output)]]
    settings = SETTINGS | METHODS[name]
    settings |= {"max_steps": options.steps, "per_device_train_batch_size": options.rollouts}
    settings |= {"seed": seed, "output_dir": output}
    flags = [part for key, value in settings.items() for part in (f"--{key}", str(value))]
    made = ["sgsd", "train", "--dataset", str(train), *flags, *prompt]
    return [made, [*measure, str(output)]]


def make(name: str, seed: int, options: argparse.Namespace, train: Path, test: Path) -> str:
    done = options.output / f"{name}-seed{seed}.done"
    if done.exists():
        return f"{name} seed {seed}: there already"
    said = ""
    for command in commands(name, seed, options, train, test):
        called = [sys.executable, "-m", "sgsd.cli", *command[1:]]
        env = os.environ | {"OMP_NUM_THREADS": str(options.threads)}
        finished = subprocess.run(called, capture_output=True, text=True, check=False, env=env)
        if finished.returncode:
            return f"{name} seed {seed}: {(finished.stderr.strip() or 'failed').splitlines()[-1]}"
        said = finished.stdout
    done.write_text("")
    return f"{name} seed {seed}:\n{said}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path, help="JSON lines with problem and answer")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--results", default="comparison", help="name of the file in results/smollm2")
    parser.add_argument("--methods", nargs="+", choices=["base", *METHODS], default=["base", *METHODS])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rollouts", type=int, default=8, help="a step")
    parser.add_argument("--tokens", type=int, default=48, help="new ones")
    parser.add_argument("--instruction", default="Answer with one number and nothing else.")
    parser.add_argument("--held_out", type=int, default=200, help="problems that are asked")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1, help="a worker's")
    options = parser.parse_args()
    train, test = split(options.dataset, options.output / "data", held_out=options.held_out)
    wanted = [(name, seed) for seed in range(options.seeds) for name in options.methods if name != "base" or seed == 0]
    with ThreadPoolExecutor(options.workers) as pool:
        for said in pool.map(lambda which: make(*which, options, train, test), wanted):
            print(said, flush=True)
    runs = sorted(path for path in options.output.glob("*-seed*") if path.is_dir())
    compare = [sys.executable, "-m", "sgsd.cli", "compare", *map(str, runs)]
    table, page = (
        subprocess.run([*compare, flag], capture_output=True, text=True, check=True).stdout
        for flag in ("--json", "--markdown")
    )
    kept = {
        "commands": [shlex.join(command) for which in wanted for command in commands(*which, options, train, test)],
        "success_rates": {path.name: success_rates(path) for path in runs if (path / "trainer_state.json").exists()},
        "compared": json.loads(table),
    }
    results = ROOT / "results" / "smollm2"
    results.mkdir(parents=True, exist_ok=True)
    text = json.dumps(kept, indent=1).replace(str(options.output), str(OUTPUT))
    (results / f"{options.results}.json").write_text(text + "\n")
    print(page)


def success_rates(run: Path) -> list[float]:
    """Of the rollouts in training: means over the steps between two log entries."""
    log = json.loads((run / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    return [entry["success_rate"] for entry in log if "success_rate" in entry]


if __name__ == "__main__":
    main()
