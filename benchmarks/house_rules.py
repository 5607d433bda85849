"""House rules: which shelf a thing belongs on, by its material; no model can know, and a skill says it in one line.

Training and held-out problems name different things of the same twelve materials. A helpful pair states the true
shelf of a material and warns of another; a misleading pair states that other one and warns of the true one.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

from sgsd.bank import Mistake, Origin, Skill, SkillBank

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
INSTRUCTION = "Finish with the number of the shelf."


def truth() -> dict[str, int]:
    """Material → its shelf; four materials a shelf."""
    materials = random.Random(0).sample(list(THINGS), len(THINGS))
    return {material: place % SHELVES + 1 for place, material in enumerate(materials)}


def problems(folder: Path) -> tuple[Path, Path]:
    """``(train, test)`` files: of each material six things to train on, and the six others."""
    draw, shelves = random.Random(1), truth()
    parts: dict[str, list[dict[str, str]]] = {"train": [], "test": []}
    for material, named in THINGS.items():
        things = named.split()
        draw.shuffle(things)
        for place, thing in enumerate(things):
            row = {
                "problem": f"What is the number of the shelf for a {material} {thing}?",
                "answer": str(shelves[material]),
            }
            parts["train" if place < len(things) // 2 else "test"].append(row)
    for rows in parts.values():
        draw.shuffle(rows)
    return save(folder, **parts)


def save(folder: Path, *, train: list[dict[str, str]], test: list[dict[str, str]]) -> tuple[Path, Path]:
    """``(train, test)`` files of rows."""
    folder.mkdir(parents=True, exist_ok=True)
    files = folder / "train.jsonl", folder / "test.jsonl"
    for file, rows in zip(files, (train, test), strict=True):
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return files


def bank(*, helpful: bool = True, misleading: bool = True) -> SkillBank:
    """A pair of each kind a material; ``worth`` in its metadata says which item is which, for ``sgsd bank ledger``."""
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
