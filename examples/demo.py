"""Train SmolLM2-135M to follow a SKILL.md without it in the prompt, on a CPU in minutes, and GRPO for comparison.

    sgsd demo                  # or make demo, or python examples/demo.py
    sgsd demo --output runs/other --seed 1 -- --max_steps 100

The document says on which shelf a household keeps things of each material, which no model can know. Held-out questions
name other things of the same materials. The demo calls ``sgsd internalize``; docs/demo.md has the figures.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from sgsd import runfolder
from sgsd.cli.console import standard_output
from sgsd.cli.parser import Parser, parse
from sgsd.errors import ConfigError

MODEL = "local:smollm2-135m-instruct"
THINGS = {
    "clay": "pot brick tile jug bowl pipe vase plate figure whistle bead oven",
    "copper": "pipe coin wire kettle pan bell ring plate pot tube nail sheet",
    "cotton": "shirt sock sheet towel scarf bag curtain rope cap dress glove pillowcase",
    "glass": "bottle jar vase bowl plate cup lens marble window mirror pitcher lid",
    "leather": "belt shoe wallet glove strap boot saddle purse jacket collar pouch cap",
    "paper": "bag envelope map poster ticket napkin towel straw lantern calendar folder booklet",
    "plastic": "cup fork bag straw comb toy chair bucket tray hanger ruler funnel",
    "rubber": "tyre boot ball glove hose mat ring duck seal stopper band sole",
    "steel": "spoon nail screw chain bolt wire knife pan hook bucket pipe spring",
    "wax": "candle seal crayon figure apple fruit tablet block cup doll pearl melt",
    "wooden": "spoon chair box ruler pencil ladder crate toy shelf frame stick handle",
    "wool": "sock sweater hat blanket glove scarf coat rug cap mitten carpet shawl",
}
SHELVES = 3
OTHER_SUMS = 64
GRPO_LEARNING_RATE = 2e-4
SETTINGS = [
    *("--instruction", "Finish with the number of the shelf.", "--max_completion_length", "16"),
    *("--temperature", "0.5"),  # at 0.8 one rollout in five is cut off
    *("--learning_rate", "2e-3", "--max_steps", "90", "--per_device_train_batch_size", "8"),  # for a model this small
    *("--rehearsal_weight", "1", "--rehearsal_texts", "32"),
    *("--lora_target_modules", "gate_proj", "up_proj", "down_proj"),
]


def truth() -> dict[str, int]:
    """The shelf of each material; each shelf has four materials."""
    materials = random.Random(0).sample(list(THINGS), len(THINGS))
    return {material: place % SHELVES + 1 for place, material in enumerate(materials)}


def rule(material: str, shelf: int) -> str:
    """The rule on a material. It uses the words of the tasks, by which BM25 retrieves it."""
    return f"Everything {'wooden' if material == 'wooden' else f'made of {material}'} belongs on shelf {shelf}."


def document() -> str:
    """The SKILL.md."""
    rules = (f"- {rule(material, shelf)}" for material, shelf in truth().items())
    head = "---\nname: house-rules\ndescription: On which shelf things belong.\n---\n\n# House rules\n\n"
    return head + "\n".join(rules) + "\n"


def tasks() -> dict[str, list[dict[str, str]]]:
    """Tasks for ``train`` and ``held-out``: each has six of the twelve things of each material."""
    draw, shelves = random.Random(1), truth()
    parts: dict[str, list[dict[str, str]]] = {"train": [], "held-out": []}
    for material, named in THINGS.items():
        things = named.split()
        draw.shuffle(things)
        for place, thing in enumerate(things):
            asked = f"What is the number of the shelf for a {material} {thing}?"
            part = "train" if place < len(things) // 2 else "held-out"
            parts[part].append({"problem": asked, "answer": str(shelves[material])})
    for rows in parts.values():
        draw.shuffle(rows)
    return parts


def other_sums() -> list[str]:
    """Prompts for ``--rehearsal_dataset``: sums that are not in the certificate's retention set."""
    from sgsd.cli.internalize import SUMS_INSTRUCTION, retention_sums

    retained = {problem.text for problem in retention_sums()}
    every = (f"What is {a} + {b}?" for a in range(2, 21) for b in range(2, 21))
    others = [text for text in every if text not in retained]
    random.Random(2).shuffle(others)
    return [f"{text}\n\n{SUMS_INSTRUCTION}" for text in others[:OTHER_SUMS]]


def write(folder: Path) -> tuple[Path, Path, Path]:
    """Write ``SKILL.md``, ``train.jsonl``, ``held-out.jsonl`` and ``other-sums.jsonl``; returns the first three.

    Raises:
        ConfigError: one of them exists with other content.
    """
    rows = tasks() | {"other-sums": [{"problem": text} for text in other_sums()]}
    texts = {"SKILL.md": document()}
    texts |= {f"{name}.jsonl": "".join(json.dumps(row) + "\n" for row in own) for name, own in rows.items()}
    for name, text in texts.items():
        if os.path.lexists(folder / name) and runfolder.read_text(folder / name, ConfigError) != text:
            remedy = "move it, or choose another --output"
            raise ConfigError("the demo would replace a file", got=str(folder / name), remedy=remedy)
    for name, text in texts.items():
        runfolder.write_text(folder / name, text)
    return folder / "SKILL.md", folder / "train.jsonl", folder / "held-out.jsonl"


def make_parser() -> argparse.ArgumentParser:
    """The demo's flags."""
    about = "Train SmolLM2-135M to follow a SKILL.md without it in the prompt, on a CPU in some 10 to 16 minutes."
    parser = Parser(prog="sgsd demo", description=about)
    parser.add_argument(
        "--output", type=Path, default=Path("runs/demo"), help="folder to write; replaces a finished demo (runs/demo)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the training (0)")
    parser.add_argument("--no_grpo", action="store_true", help="do not train GRPO for comparison")
    parser.add_argument("settings", nargs="*", help="after --, flags of sgsd train, such as: -- --max_steps 100")
    return parser


def main(arguments: Sequence[str]) -> int:
    """Run the demo: print the certificate and write ``summary.json``. Returns the exit code."""
    options = parse(make_parser(), arguments)
    for name, value in (
        ("HF_HUB_OFFLINE", "1"),  # the demo's model is installed with the package
        ("HF_HUB_DISABLE_TELEMETRY", "1"),
        ("TQDM_DISABLE", "1"),
    ):
        os.environ.setdefault(name, value)
    console, output, began = standard_output(), options.output, time.perf_counter()
    if output.name in ("", ".."):
        raise ConfigError("--output has no name, which the folder of the demo's data needs", got=str(output))
    finished = output / runfolder.SUMMARY
    if finished.is_file():
        if not runfolder.read_json(finished).get("demo"):
            raise ConfigError("the output folder is not that of a demo", got=str(output))
        shutil.rmtree(output)
    console.print("sgsd demo: SmolLM2-135M-Instruct learns the rules of a SKILL.md on this CPU", style="bold")

    import transformers

    from sgsd.cli.internalize import internalize
    from sgsd.report.certificate import certificate_table

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    skill, train, held_out = write(output.with_name(f"{output.name}-data"))
    certificate = internalize(
        skill,
        tasks=train,
        held_out=held_out,
        model=MODEL,
        output=output,
        baseline=None if options.no_grpo else "grpo",
        baseline_learning_rate=None if options.no_grpo else GRPO_LEARNING_RATE,
        seed=options.seed,
        settings=[*SETTINGS, *options.settings],
        console=console,
    )
    made = certificate.model_dump(mode="json")
    seconds = round(time.perf_counter() - began, 1)
    summary = {"demo": True, **made["accuracy"], "differences": made["differences"], "seconds": seconds}
    runfolder.write_json(finished, summary)
    console.print(certificate_table(certificate))
    for line in (
        f"certificate:          {output / 'certificate.html'}",
        f"the document:         {skill}",
        f"evaluate it again:    sgsd eval {output / 'run'}",
    ):
        console.print(line, soft_wrap=True)
    return 0


if __name__ == "__main__":
    from sgsd.cli import main as sgsd

    sys.exit(sgsd(["demo", *sys.argv[1:]]))
