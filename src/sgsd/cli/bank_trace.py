"""``sgsd bank trace``: an item, what it was merged from, down to the rollouts it came from."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from rich.text import Text
from rich.tree import Tree
from typing_extensions import TypedDict

from sgsd import runfolder
from sgsd.bank import Item, SkillBank
from sgsd.bank.build import CANDIDATES, LINEAGE, MEMORIES
from sgsd.bank.items import descent
from sgsd.cli.bank_files import bank_file, load
from sgsd.cli.console import print_json, standard_output
from sgsd.errors import BankError
from sgsd.memories import Memory, read_memory
from sgsd.validation import validated


class _Candidate(TypedDict):
    id: str
    title: str
    text: str


_CANDIDATE = TypeAdapter(_Candidate)
_LINEAGE = TypeAdapter(dict[str, list[str]])
_UNTOLD = {"merged": "merged; what it said is not kept", "unknown": "not known here"}


@dataclass(frozen=True)
class Origins:
    """What the folder of a bank holds of its past: a build's files, or a run's; nothing where there are none.

    Attributes:
        folder: of the bank; ``None`` for a shipped one.
    """

    folder: Path | None

    @classmethod
    def of(cls, bank: str) -> Origins:
        """Of the bank that a command was given."""
        return cls(None if bank.startswith("seed:") else Path(bank_file(bank)).parent)

    def lineage(self) -> dict[str, Sequence[str]]:
        """Id → what it comes from directly, of every candidate and item of a build.

        Raises:
            SGSDError: the file is damaged.
        """
        file = self._file(LINEAGE)
        return validated(_LINEAGE, runfolder.read_json(file), str(file), BankError) if file else {}

    def candidates(self) -> Iterator[_Candidate]:
        """The rows of a build's candidates.

        Raises:
            DataError: the file is damaged.
        """
        file = self._file(CANDIDATES)
        for _, values in runfolder.read_lines(file, _CANDIDATE) if file else ():
            yield values

    def memories(self) -> Iterator[Memory]:
        """Of a build, and those that a run kept behind its online items."""
        file = self._file(MEMORIES)
        if file is not None:
            yield from read_memories(file)
        file = self._file(runfolder.MAINTENANCE)
        for where, check in runfolder.read_lines(file) if file else ():
            for values in check.get("memories_kept", ()):
                yield read_memory(values, where)

    def _file(self, name: str) -> Path | None:
        file = None if self.folder is None else self.folder / name
        return file if file is not None and file.is_file() else None


def read_memories(file: Path) -> Iterator[Memory]:
    """The memories of a JSONL file, one after the other.

    Raises:
        DataError: the file cannot be read, or a line is no memory.
    """
    for where, values in runfolder.read_lines(file):
        yield read_memory(values, where)


def trace(options: argparse.Namespace) -> int:
    """Print what an item comes from."""
    loaded = load(options.bank)
    item = loaded.get(options.item)
    origins = Origins.of(options.bank)
    parents = {item.id: item.parents for item in loaded.items if item.parents} | origins.lineage()
    steps = list(descent(item.id, parents))
    told = {id: {"id": id, "kind": "merged" if parents.get(id) else "unknown"} for id in {id for _, id in steps}}
    told |= _told({item.id, *told}, loaded, origins)
    root = _nested(item.id, steps, parents, told)
    if options.json:
        print_json(root)
        return 0
    console = standard_output()
    console.print(_tree(root))
    if not root["parents"]:
        console.print(Text(f"{item.id} has no parents: it was not merged or extracted, or that was not kept"))
    elif lost := len({id for _, id in steps if told[id]["kind"] == "unknown"}):
        files = f"neither {MEMORIES} nor {runfolder.MAINTENANCE} beside the bank tells of them"
        console.print(Text(f"\n{lost} not known here: {files}"))
    return 0


def _told(ids: set[str], bank: SkillBank, origins: Origins) -> dict[str, dict[str, Any]]:
    """What is known of the ids, of those that are. Memories pass by one after the other."""
    told: dict[str, dict[str, Any]] = {}
    for values in origins.candidates():
        if values["id"] in ids:
            told[values["id"]] = {"kind": "candidate", **values}
    told |= {item.id: _told_item(item) for item in bank.items if item.id in ids}
    for memory in origins.memories():
        if memory.id in ids:
            told[memory.id] = {
                "id": memory.id,
                "kind": "memory",
                "problem_id": memory.problem_id,
                "outcome": memory.outcome,
                "failure_mode": memory.failure_mode,
                "reason": memory.reason,
                "first_line": memory.steps[0] if memory.steps else "",
                "source": memory.source,
            }
    return told


def _told_item(item: Item) -> dict[str, Any]:
    kind = type(item).__name__.lower()
    return {"id": item.id, "kind": kind, "origin": str(item.origin), "title": item.title, "text": item.text}


def _nested(
    id: str,
    steps: Iterable[tuple[int, str]],
    parents: Mapping[str, Sequence[str]],
    told: Mapping[str, dict[str, Any]],
) -> dict[str, Any]:
    """Steps of a descent as a tree; what was followed before says so and has no parents again."""
    root: dict[str, Any] = {**told[id], "parents": []}
    open_nodes, followed = [root], {id}
    for depth, at in steps:
        del open_nodes[depth:]
        node: dict[str, Any] = {**told[at], "parents": []}
        if at in followed:
            node["repeated"] = True
        elif parents.get(at):
            followed.add(at)
        open_nodes[-1]["parents"].append(node)
        open_nodes.append(node)
    return root


def _tree(root: dict[str, Any]) -> Tree:
    tree = Tree(_label(root))
    waiting = [(root, tree)]
    while waiting:  # as deep as merging went; no recursion
        node, branch = waiting.pop()
        waiting += [(parent, branch.add(_label(parent))) for parent in node["parents"]]
    return tree


def _label(node: dict[str, Any]) -> Text:
    """One line: the id, and what is known of it."""
    label = Text(no_wrap=True, overflow="ellipsis")
    label.append(node["id"], style="bold")
    if node.get("repeated"):
        label.append("  (see above)", style="dim")
    if node["kind"] == "memory":
        failed = node["failure_mode"] is not None
        outcome = f"{node['outcome']} ({node['failure_mode']})" if failed else node["outcome"]
        label.append(f"  {node['problem_id']} {outcome}", style="red" if failed else "green")
        label.append(f"  {node['first_line']}", style="dim")
    elif node["kind"] in _UNTOLD:
        label.append(f"  {_UNTOLD[node['kind']]}", style="dim")
    else:
        label.append(f"  {node.get('origin', 'candidate')}", style="dim")
        label.append(f"  {node['title'] or node['text']}")
    return label
