"""Documents of rules (SKILL.md, AGENTS.md, playbooks of bullets) as banks, and banks as documents.

A document is Markdown, with YAML between two lines ``---`` at its start where it says its name and description. Every
rule in it becomes an item: a paragraph, an entry of a list, a row of a table, with the code block that follows it. What
a rule forbids ("never …", or anything below a heading such as "Common mistakes") becomes a mistake, anything else a
skill. An item's title is the path of headings above it, so that an entry reads alone. No rule is cut.

The bank's metadata say where each item came from (``sources``: id → ``file:line``) and hold the document's whole text
(``document``). Markdown files that a document links to and that lie in its folder belong to it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from markdown_it import MarkdownIt
from markdown_it.tree import SyntaxTreeNode

from sgsd import runfolder
from sgsd.bank.formats import FORBIDS, OF_MISTAKES
from sgsd.bank.skills import Item, Mistake, Origin, Skill, SkillBank
from sgsd.errors import BankError
from sgsd.validation import parse_yaml

NAMES = ("SKILL.md", "AGENTS.md", "CLAUDE.md")
"""The document of a folder: the first of these that is there."""
MAX_BYTES = 1 << 20
_HEADER = re.compile(r"---[ \t]*\n(.*?\n)??---[ \t]*(?:\n|$)", re.DOTALL)
_NOTE = re.compile(r"(When|Avoid): (.*)", re.DOTALL)
# The bullets of ACE's playbooks: [str-00003] helpful=4 harmful=1 :: text
_COUNTED = re.compile(r"\[([\w-]+)\]\s*((?:\w+=\d+\s*)*)::\s*(.*)", re.DOTALL)


_JOINT = " › "
_MISTAKES = "Common mistakes"
"""The heading below which everything is a mistake; no part of a title."""


@dataclass(frozen=True, slots=True)
class _Rule:
    """What a block says.

    Attributes:
        path: the headings above it, and what a list's lead-in says.
        text: of the rule, with its code.
        notes: ``When`` and ``Avoid`` of the rule.
        place: file and line.
    """

    path: tuple[str, ...]
    text: str
    notes: Mapping[str, str]
    place: str


def load_bank(source: str | os.PathLike[str]) -> SkillBank:
    """A bank by name: a bank file, a document, a folder that holds either, or a shipped bank as ``seed:NAME``.

    Raises:
        BankError: it is none of these.
    """
    path = Path(source)
    if path.is_dir():
        is_bank = (path / runfolder.BANK).is_file() or _main(path) is None
        return SkillBank.load(path / runfolder.BANK) if is_bank else read_document(path)
    if path.suffix.lower() in (".md", ".markdown", ".txt"):
        return read_document(path)
    return SkillBank.load(source)


def read_document(path: Path) -> SkillBank:
    """A document, and what it links to in its folder, as a bank of one item a rule.

    Args:
        path: a Markdown file, or a folder with one of ``NAMES`` in it.

    Raises:
        BankError: it cannot be read, is larger than 1 MiB in all, holds no rule, its header is no YAML mapping, or the
            folder's document is a link out of it.
    """
    main = _main(path) if path.is_dir() else path
    if main is None:
        raise BankError("no document in the folder", got=str(path), expected=" or ".join(NAMES))
    root = main.parent.resolve()
    if path.is_dir() and not main.resolve().is_relative_to(root):
        raise BankError("the folder's document lies elsewhere", got=f"{main}, a link", expected=f"a file in {path}")
    text = _text(main, MAX_BYTES)
    header, body, line = _split(text, str(main))
    files = [main.name]
    rules: list[_Rule] = []
    left = MAX_BYTES - len(text.encode())
    waiting = [(main.name, _tree(body), line, root)]
    while waiting:
        name, tree, start, folder = waiting.pop(0)
        rules += _Walk(name, start).blocks(tree.children, ())
        for file in _linked(tree, folder):
            within = file.is_relative_to(root) and file.is_file() and file != main.resolve()
            if within and (linked := file.relative_to(root).as_posix()) not in files:
                text = _text(file, left)
                left -= len(text.encode())
                _, inner, start = _split(text, linked)
                files.append(linked)
                waiting.append((linked, _tree(inner), start, file.parent))
    items: dict[str, Item] = {}
    sources: dict[str, str] = {}
    for rule in rules:
        item = _item(rule)
        items.setdefault(item.id, item)
        sources.setdefault(item.id, rule.place)
    if not items:
        raise BankError("the document holds no rule", got=str(path), expected="paragraphs, lists or tables")
    metadata = {
        "description": _said(header, "description"),
        "files": files,
        "sources": sources,
        "document": body.strip(),
    }
    said = {key: value for key, value in metadata.items() if value}
    return SkillBank(name=_said(header, "name") or root.name, metadata=said).with_items(items.values())


def write_document(bank: SkillBank) -> str:
    """A bank as a document: ``read_document`` reads the same items back."""
    header = ["---", f"name: {_quoted(bank.name or 'skills')}"]
    if description := bank.metadata.get("description"):
        header.append(f"description: {_quoted(str(description))}")
    lines = [*header, "---", ""]
    sections: dict[tuple[bool, str], list[Item]] = {}
    for item in bank.items:
        is_told = isinstance(item, Skill) or _is_mistake(item.title, item.text)
        sections.setdefault((not is_told, item.title), []).append(item)
    last = False
    for needs_heading, title in sorted(sections, key=lambda section: (section[0], section[1] != "")):
        if needs_heading and not last:
            lines += [f"# {_MISTAKES}", ""]
        last = needs_heading
        # A sixth level holds the rest.
        headings = title.split(_JOINT, 5 - needs_heading) if title else []
        for depth, heading in enumerate(headings, 1 + needs_heading):
            lines += [f"{'#' * depth} {heading}", ""]
        lines += [line for item in sections[needs_heading, title] for line in _bullet(item)]
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


# ---- reading


def _main(folder: Path) -> Path | None:
    return next((folder / name for name in NAMES if (folder / name).is_file()), None)


def _text(file: Path, most: int) -> str:
    try:
        if (size := file.stat().st_size) > most:
            raise BankError(
                "the document is too large", got=f"{file}, {size:,} bytes", expected=f"{MAX_BYTES:,} in all"
            )
        return file.read_text(encoding="utf-8-sig").replace("\r\n", "\n")
    except (OSError, UnicodeDecodeError) as error:
        raise BankError("the document cannot be read", got=f"{file} ({error})") from error


def _split(text: str, where: str) -> tuple[dict[str, object], str, int]:
    """(header, body, lines before the body)."""
    found = _HEADER.match(text)
    if found is None:
        return {}, text, 0
    header = parse_yaml(found[1] or "", where, BankError)
    return header, text[found.end() :], text.count("\n", 0, found.end())


def _said(header: Mapping[str, object], key: str) -> str:
    value = header.get(key)
    return " ".join(value.split()) if isinstance(value, str) else ""


def _tree(body: str) -> SyntaxTreeNode:
    return SyntaxTreeNode(MarkdownIt("commonmark").enable("table").parse(body))


def _linked(tree: SyntaxTreeNode, folder: Path) -> Iterator[Path]:
    """The Markdown files that a document in this folder links to, wherever they lie."""
    for node in tree.walk():
        target = urlsplit(str(node.attrs.get("href", ""))) if node.type == "link" else None
        if target and not target.scheme and not target.netloc and target.path.lower().endswith(".md"):
            yield (folder / unquote(target.path)).resolve()


class _Walk:
    """From the blocks of a document to its rules."""

    def __init__(self, file: str, offset: int) -> None:
        self._file = file
        self._offset = offset

    def blocks(self, nodes: Sequence[SyntaxTreeNode], path: tuple[str, ...]) -> Iterator[_Rule]:
        """The rules of blocks that stand below one another.

        Args:
            nodes: the blocks.
            path: of headings and lead-ins above them.
        """
        headings: list[tuple[int, str]] = []
        lead: tuple[str, str] | None = None  # a paragraph that waits for its list, table or code, and its place
        for node in nodes:
            above = (*path, *(text for _, text in headings))
            if node.type in ("fence", "code_block"):
                text = _fenced(node)
                yield _Rule(above, f"{lead[0]}\n\n{text}" if lead else text, {}, lead[1] if lead else self._place(node))
                lead = None
                continue
            if lead is not None:
                is_lead_in = node.type in ("bullet_list", "ordered_list", "table") and lead[0].endswith(":")
                if is_lead_in:
                    above = (*above, " ".join(lead[0].split()).rstrip(":"))
                else:
                    yield from _counted(above, *lead)
                lead = None
            if node.type == "heading":
                level, text = int(node.tag[1:]), _prose(node)
                headings = [(other, one) for other, one in headings if other < level] + (
                    [(level, text)] if text else []
                )
            elif node.type == "paragraph":
                lead = (node.children[0].content, self._place(node))
            elif node.type in ("bullet_list", "ordered_list"):
                for entry in node.children:
                    yield from self._entry(entry, above)
            elif node.type == "table":
                yield from self._table(node, above)
            elif node.type == "blockquote":
                yield from self.blocks(node.children, above)
        if lead is not None:
            yield from _counted((*path, *(text for _, text in headings)), *lead)

    def _entry(self, entry: SyntaxTreeNode, path: tuple[str, ...]) -> Iterator[_Rule]:
        """The rule of a list's entry, and those of the lists in it."""
        own = [node for node in entry.children if node.type in ("paragraph", "fence", "code_block")]
        inner = [node for node in entry.children if node.type in ("bullet_list", "ordered_list")]
        text = "\n\n".join(_prose(node) if node.type == "paragraph" else _fenced(node) for node in own)
        notes: dict[str, str] = {}
        rules: list[_Rule] = []
        for below in inner:
            for one in below.children:
                said = _NOTE.fullmatch(_prose(one.children[0])) if one.children else None
                if said and len(one.children) == 1:
                    notes[said[1]] = said[2]
                else:
                    rules += self._entry(one, (*path, " ".join(text.split()).rstrip(":")) if text else path)
        if text and not (rules and text.endswith(":")):
            yield _Rule(path, text, notes, self._place(entry))
        yield from rules
        yield from self.blocks([node for node in entry.children if node not in (*own, *inner)], path)

    def _table(self, table: SyntaxTreeNode, path: tuple[str, ...]) -> Iterator[_Rule]:
        rows = [row for part in table.children for row in part.children]
        names = [_prose(cell) for cell in rows[0].children]
        for row in rows[1:]:
            cells = [_prose(cell) for cell in row.children]
            said = [f"{name}: {cell}" if name else cell for name, cell in zip(names, cells, strict=False) if cell]
            if said:
                yield _Rule(path, "; ".join(said), {}, self._place(row))

    def _place(self, node: SyntaxTreeNode) -> str:
        return f"{self._file}:{node.map[0] + 1 + self._offset}" if node.map else self._file


def _prose(node: SyntaxTreeNode) -> str:
    """A block's text on one line, its marks kept."""
    return " ".join(child.content for child in node.children if child.type == "inline").replace("\n", " ").strip()


def _fenced(node: SyntaxTreeNode) -> str:
    fence = node.markup if node.type == "fence" else "```"
    return f"{fence}{node.info.strip()}\n{node.content.rstrip()}\n{fence}"


def _counted(path: tuple[str, ...], text: str, place: str) -> Iterator[_Rule]:
    """The rule of a paragraph, or one a line where the lines are a playbook's."""
    lines = text.split("\n")
    counted = [_COUNTED.fullmatch(line.strip()) for line in lines]
    if not all(counted):
        yield _Rule(path, " ".join(text.split()), {}, place)
        return
    file, _, first = place.rpartition(":")
    for number, one in enumerate(counted):
        if one is not None:
            yield _Rule(path, one[3].strip(), {}, f"{file}:{int(first) + number}")


def _is_mistake(title: str, text: str) -> bool:
    return bool(FORBIDS.match(text) or OF_MISTAKES.search(title))


def _item(rule: _Rule) -> Item:
    told = rule.path[:1] == (_MISTAKES,)
    title = _JOINT.join(rule.path[told:])
    if told or _is_mistake(title, rule.text):
        return Mistake.new(rule.text, title=title, avoid=rule.notes.get("Avoid", ""), origin=Origin.SEED)
    return Skill.new(rule.text, title=title, when=rule.notes.get("When", ""), origin=Origin.SEED)


# ---- writing


def _quoted(text: str) -> str:
    return json.dumps(" ".join(text.split()), ensure_ascii=False)


def _bullet(item: Item) -> list[str]:
    first, *rest = item.text.split("\n")
    lines = [f"- {first}", *(f"  {line}".rstrip() for line in rest)]
    if item.note:
        note = " ".join(item.note.split())
        lines += ["", f"  - {'When' if isinstance(item, Skill) else 'Avoid'}: {note}"]
    return lines


def without_items(bank: SkillBank, ids: Iterable[str]) -> str:
    """The document's text without some items."""
    raise NotImplementedError
