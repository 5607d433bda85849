"""An experiment on house rules: the shelf of a thing by its material, which no model can know and a skill states.

    python examples/house_rules.py --methods base grpo guided --steps 130   # half an hour per run and core

Training and held-out problems name different things of the same twelve materials. A helpful pair states the true
shelf of a material and warns of another; a misleading pair states that other shelf and warns of the true one. The bank
has both. Held-out problems are answered greedily with the plain prompt after training. A finished run is not repeated.
docs/evidence.md has the figures.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sgsd.bank import Mistake, Origin, Skill, SkillBank
from sgsd.examples.demo import MODEL, SHELVES, truth, write

PROMPT = ["--instruction", "Finish with the number of the shelf.", "--max_completion_length", "16"]
# Full fine-tuning in float32, as for the figures in docs/evidence.md.
SETTINGS = (
    "--dtype float32 --bf16 false --gradient_checkpointing false --learning_rate 2e-5 --lr_scheduler_type constant "
    "--max_grad_norm 1 --num_generations 4 --per_device_train_batch_size 16 --temperature 0.8 --top_p 0.95 --top_k 0 "
    "--save_steps 1000 --report_to none --disable_tqdm true"
)
_RULES = "--bank DATA/half.json --num_teachers 2 --retriever bm25"
_WORTH = f"{_RULES} --objective correction --teacher frozen --grpo_weight 1 --teacher_trust worth --sgsd_weight 2"
_CONTROL = f"{_WORTH} --support_baseline control"
METHODS = {
    "base": "",
    "grpo": "--method grpo",
    "sgsd": f"{_RULES} --teacher live --grpo_weight 0",
    "worth": _WORTH,
    "worth-control": _CONTROL,
    "worth-control-misleading": f"{_CONTROL} --bank DATA/misleading.json",
    "guided": f"{_CONTROL} --teacher_guidance 2",
    "cautious": f"{_CONTROL} --teacher_guidance 2 --teacher_trust cautious",
    "guided-alone": f"{_CONTROL} --teacher_guidance 2 --grpo_weight 0",
}
"""Flags of ``sgsd train`` by method; the base model is only evaluated."""


def bank(*, helpful: bool = True, misleading: bool = True) -> SkillBank:
    """A bank with a pair of each kind per material. Its metadata names the kinds for ``sgsd bank ledger``."""
    draw, skills, mistakes, worth = random.Random(2), [], [], {}
    for material, shelf in truth().items():
        other = draw.choice([number for number in range(1, SHELVES + 1) if number != shelf])
        pairs = [("helpful", shelf, other)] * helpful + [("misleading", other, shelf)] * misleading
        for kind, said, warned in pairs:
            thing = f"a {material} thing"
            skill = Skill.new(
                f"Everything made of {material.replace('wooden', 'wood')} belongs on shelf {said}.",
                title=f"{material.capitalize()} things",
                when=f"When {thing} is put away.",
                origin=Origin.SEED,
            )
            mistake = Mistake.new(
                f"Putting {thing} on shelf {warned}.",
                avoid=f"Remember that {thing} belongs on shelf {said}.",
                origin=Origin.SEED,
            )
            skills.append(skill)
            mistakes.append(mistake)
            worth |= {skill.id: kind, mistake.id: kind}
    return SkillBank(tuple(skills), tuple(mistakes), name="house-rules", metadata={"worth": worth})


def commands(name: str, seed: int, steps: int, folder: Path) -> list[list[str]]:
    """The arguments of the ``sgsd`` commands that train and evaluate a run."""
    output, data = folder / f"{name}-seed{seed}", folder / "data"
    measure = ["eval", "--dataset", f"{data}/held-out.jsonl", "--temperature", "0", "--batch_size", "50"]
    if name == "base":
        off = ["--chat_template_kwargs", '{"enable_thinking": false}']  # as in training
        return [[*measure, *PROMPT, *off, MODEL, "--output", str(output)]]
    train = ["train", "--model_name_or_path", MODEL, "--dataset", f"{data}/train.jsonl", "--output_dir", str(output)]
    train += ["--max_steps", str(steps), "--seed", str(seed), *SETTINGS.split(), *PROMPT]
    train += [word.replace("DATA", str(data)) for word in METHODS[name].split()]
    return [train, [*measure, str(output)]]


def make(name: str, seed: int, options: argparse.Namespace) -> str:
    """Make one run, unless its ``.done`` file exists; returns a line to print."""
    done = options.output / f"{name}-seed{seed}.done"
    if not done.exists():
        env = os.environ | {"OMP_NUM_THREADS": str(options.threads)}
        for arguments in commands(name, seed, options.steps, options.output):
            called = [sys.executable, "-m", "sgsd.cli", *arguments]
            finished = subprocess.run(called, capture_output=True, text=True, check=False, env=env)
            if finished.returncode:
                return f"{name} seed {seed}: {(finished.stderr.strip() or 'failed').splitlines()[-1]}"
        done.write_text("")
    return f"{name} seed {seed}: done"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=["base", "grpo", "guided"])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=80, help="optimizer steps of 16 rollouts")
    parser.add_argument("--output", type=Path, default=Path("runs/house-rules"))
    parser.add_argument("--workers", type=int, default=2, help="parallel runs")
    parser.add_argument("--threads", type=int, default=1, help="threads per run")
    options = parser.parse_args()
    data = options.output / "data"
    write(data)
    for name, made in (("half", bank()), ("misleading", bank(helpful=False)), ("helpful", bank(misleading=False))):
        made.save(data / f"{name}.json")
    wanted = [(name, seed) for seed in range(options.seeds) for name in options.methods if name != "base" or seed == 0]
    with ThreadPoolExecutor(options.workers) as pool:
        for said in pool.map(lambda which: make(*which, options), wanted):
            print(said, flush=True)
    runs = sorted(mark.with_suffix("") for mark in options.output.glob("*-seed*.done"))
    return subprocess.run([sys.executable, "-m", "sgsd.cli", "compare", *map(str, runs)], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
