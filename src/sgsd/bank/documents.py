"""Conversion of documents of rules (SKILL.md, AGENTS.md, playbooks) to banks, and of banks to documents.

A document is Markdown, with optional YAML front matter for its name and description. Each rule becomes one item;
``docs/bank.md`` says which block becomes what. The bank's metadata hold where each item came from (``sources``: id →
``file:line``, in document order) and the document's text (``document``).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import cast
from urllib.parse import unquote, urlsplit

from markdown_it import MarkdownIt
from markdown_it.rules_block import StateBlock
from markdown_it.tree import SyntaxTreeNode

from sgsd import runfolder
from sgsd.bank.formats import FORBIDS, lists_mistakes
from sgsd.bank.items import Item, Mistake, Origin, Skill, refuse_control_characters
from sgsd.bank.skills import SkillBank
from sgsd.errors import BankError
from sgsd.validation import parse_yaml

NAMES = ("SKILL.md", "AGENTS.md", "CLAUDE.md")
"""The document of a folder: the first of these that exists."""
MAX_BYTES = 1 << 20
MAX_LINES = 20_000
_HEADER = re.compile(r"---[ \t]*\n(.*?\n)??---[ \t]*(?:\n|$)", re.DOTALL)
_ALLOWS = re.compile(r"[\W_]*?(?:[✅✓✔]|(?:correct|right|good)[*_ ]*(?:[:：(\n>]|$))", re.IGNORECASE)
"""Matches the beginning of a rule that is a skill even below a heading of mistakes."""
_SENTENCE = re.compile(r"[.!?…。！？]['\"”’*_`)\]]*$")
_NOTE = re.compile(r"(When|Avoid): (.*)", re.DOTALL)
_TASK = re.compile(r"\[[ xX]\]\s+")
# The bullets of ACE's playbooks: [str-00003] helpful=4 harmful=1 :: text
_ACE_BULLET = re.compile(r"\[[\w-]+\]\s*(?:\w+=\d+\s+)*::\s*")
_TAG = re.compile(r"<(/?)([a-zA-Z][\w-]*)(?:\s[^<>]*)?>(?:([^<>]*)</summary>)?\s*$")
# Layout tags, which do not describe their content.
_LAYOUT = {"a", "br", "center", "details", "div", "hr", "img", "p", "picture", "section", "source", "span", "summary"}
_LEADS = re.compile(r"[:：][*_ ]*$")
_STARTS = re.compile(r"\s*(?:[-+*|>#•◦▪●‣]|\d+[.)])")
"""Matches a line that starts a new block after any line."""
# What starts another kind of block at the beginning of a line.
_MARK = re.compile(r"\A(\d*)(>|(?:[-+*.)]|#+)(?=\s|\Z))")
# An entry of an ordered list, not numbered 1.
_LATER = re.compile(r"\s*(?!1[.)])\d+[.)]")
# The sign of an entry in a plain-text list.
_SIGN = re.compile(r"^([ \t>]*)[•◦▪●‣](?=[ \t])", re.MULTILINE)
# A link, or an import as Claude Code has it: @docs/rules.md
_LINK = re.compile(r"\]\(\s*(?:<([^<>\n]*)>|([^\s()]+))|(?<!\S)@([\w./-]+\.md)(?!\w)")
# Text that is not a rule: an entry of a table of contents, an import alone.
_NO_RULE = re.compile(r"(?:[\d.\s]*\[([^\]\n]*)\]\(#[^()\s]*\)(?:\s*[—–-]([^.\n]{0,40}))?|@[\w./-]+)\Z")
_NUMBER = re.compile(r"\A(?:\d{1,4}[.)]){1,6}\d{0,4}\s+")
"""Matches the number of a heading: "1. ", "2.3 "."""
_INSTRUCTS = re.compile(
    # A sentence; a word of duty; a verb that is seldom a noun; one that may be a noun, before an article or the like.
    r"(?!(?:how|why|what)\b)(?:.*[.!。！]['\"”’*_`)\]]*\Z|.*\b(?:must|should|shall)\s+\S"
    r"|[\W_]*(?:(?:please|always|never|don['’]?t|do[ *_]+not|make sure|ensure|keep|prefer|avoid|use(?! cases?\b)|add"
    r"|put|ask|give|take|tell|say|be|let|write|create|choose|remove|delete|include|verify|validate|handle|explain|treat"
    r"|provide|update|follow|apply|respect|stop)[*_]*\s+\S"
    r"|(?:run|read|test|check|log|build|call|store|pass|return|commit|push|name|set|format|document|review|report|plan"
    r"|start|release|comment|state|list|show|answer|limit|cache|catch|close|open|load|save|sort|split)[*_]*\s+"
    r"(?:the|an?|all|each|every|any|no|your|only|it|them|nothing|everything|before|after|by|with|without|at|in|to|as)\b"
    r"|不要|不得|切勿|[请請]|禁止|必[须須]|[务務]必))",
    re.IGNORECASE | re.DOTALL,
)
"""Matches a heading that is a rule, not the title of a section."""
_DEFINITION = re.compile(r"\s*\[[^\]]+\]:")
_LONG = 120
"""A list entry with more characters is not a title of the list nested in it."""
_LISTS = ("bullet_list", "ordered_list")
_CODE = ("fence", "code_block")

_JOINT = " › "
_MISTAKES = "Common mistakes"
"""The heading below which every rule is a mistake; not part of a title."""


@dataclass(frozen=True, slots=True)
class _Head:
    """Something above rules: a heading, the sentence that introduces a list, the header of a table."""

    text: str  # its part of the rules' titles, may be empty
    lines: tuple[int, int]  # first line, and the line after the last one, counted from 0
    forbids: bool = False  # whether it introduces what is forbidden ("Never:")


@dataclass(frozen=True)
class _Rule:
    """One rule of a document."""

    heads: tuple[_Head, ...]  # from the outermost to the innermost
    text: str  # with its code
    lines: tuple[int, int]  # as of a head
    note: str = ""  # the text after "When: " or "Avoid: " in a nested list

    @cached_property
    def item(self) -> Item:
        """The rule as an item, with the id of its content."""
        path = [head.text for head in self.heads if head.text]
        below_mistakes = path[:1] == [_MISTAKES]
        title = _JOINT.join(path[below_mistakes:])
        forbids = below_mistakes or any(head.forbids for head in self.heads)
        if (forbids and not _ALLOWS.match(self.text)) or _is_mistake(title, self.text):
            return Mistake.new(self.text, title=title, avoid=self.note, origin=Origin.SEED)
        return Skill.new(self.text, title=title, when=self.note, origin=Origin.SEED)


def load_bank(source: str | os.PathLike[str]) -> SkillBank:
    """Load a bank: a bank file, a document, a folder with either, or a shipped bank as ``seed:NAME``.

    Raises:
        BankError: the source is none of these.
    """
    path = Path(source)
    if not os.fspath(source):
        raise BankError("no such bank", got="''", expected="a file, a folder, or a shipped bank as seed:NAME")
    if is_document(path):
        return read_document(path)
    return SkillBank.load(path / runfolder.BANK if os.path.isdir(path) else source)


def is_document(path: Path) -> bool:
    """Whether ``load_bank`` reads a path as a document: a text file, or a folder with one and without a bank."""
    if os.path.isdir(path):
        return not (path / runfolder.BANK).is_file() and _main(path) is not None
    return path.suffix.lower() in (".md", ".markdown", ".txt")


def read_document(path: Path) -> SkillBank:
    """Read a document, and the Markdown files in its folder that it links to, as a bank with one item per rule.

    Args:
        path: a Markdown file, or a folder with one of ``NAMES`` in it.

    Raises:
        BankError: the document cannot be read, has more than 1 MiB or 20,000 lines with its linked files, holds no rule
            or a control character, its front matter is not a YAML mapping, or the folder's document is a symbolic link
            to a file outside the folder.
    """
    return _read(path)[0]


def lines_without_item(path: Path) -> list[str]:
    """The lines of a document, and of its linked files, that became no item and no part of a title: ``file:line text``.

    Blank lines, comments, tags, rulers and link definitions do not count.

    Raises:
        BankError: as ``read_document``.
    """
    return _read(path)[1]


def _read(path: Path) -> tuple[SkillBank, list[str]]:
    main = _main(path) if path.is_dir() else path
    if main is None:
        raise BankError("no document in the folder", got=str(path), expected=" or ".join(NAMES))
    root = runfolder.real(main.parent)
    if path.is_dir() and not runfolder.real(main).is_relative_to(root):
        raise BankError("the folder's document lies elsewhere", got=f"{main}, a link", expected=f"a file in {path}")
    header, document, files = dict[str, object](), "", list[str]()
    items: dict[str, Item] = {}
    places: dict[str, str] = {}
    lost: list[str] = []
    size, lines = 0, 0
    waiting, known = [(main.name, main)], {runfolder.real(main)}
    while waiting:
        name, file = waiting.pop(0)
        text = runfolder.read_text(file, BankError, most=MAX_BYTES).replace("\r\n", "\n").replace("\r", "\n")
        refuse_control_characters(text, str(file))
        size, lines = size + len(text.encode()), lines + text.count("\n")
        if size > MAX_BYTES or lines > MAX_LINES:
            expected = f"{MAX_BYTES >> 20} MiB and {MAX_LINES:,} lines in all"
            raise BankError("the document is too large", got=str(file), expected=expected)
        front_matter, body, above = _split(text)
        if not files:
            header, document = parse_yaml(front_matter, str(main), BankError), body
        rules, links, idle = _parsed(body)
        lost += [f"{name}:{above + number + 1} {' '.join(line.split())}" for number, line in idle]
        for rule in rules:
            untitled = bool(files) and not any(head.text for head in rule.heads)
            item = (replace(rule, heads=(_Head(Path(name).stem, (0, 0)),)) if untitled else rule).item
            items.setdefault(item.id, item)
            places.setdefault(item.id, f"{name}:{above + rule.lines[0] + 1}")
        files.append(name)
        for linked in _linked(links, file.parent):
            if linked not in known and linked.is_relative_to(root):
                known.add(linked)
                waiting.append((linked.relative_to(root).as_posix(), linked))
    if not items:
        raise BankError("the document holds no rule", got=str(path), expected="paragraphs, lists or tables")
    metadata = {"description": _field(header, "description"), "files": files, "sources": places, "document": document}
    kept = {key: value for key, value in metadata.items() if value}
    return SkillBank(name=_field(header, "name") or root.name, metadata=kept).with_items(items.values()), lost


def sources(bank: SkillBank) -> dict[str, str]:
    """Item id → ``file:line``, for the items that were read from a document, in document order."""
    found = bank.metadata.get("sources")
    return {id: str(place) for id, place in cast(dict[str, object], found).items()} if isinstance(found, dict) else {}


def without_items(bank: SkillBank, ids: Collection[str]) -> str:
    """The text of a bank's document without the blocks of these items; everything else stays unchanged.

    A whole block is removed: a list entry with its content, a table row, a paragraph with its code. Headings,
    introductory sentences and table headers that no rule is left below are removed too. Items of linked files, and
    items that were added later, are not in the text and are ignored.

    Args:
        bank: with ``metadata["document"]``, as ``read_document`` reads it.
        ids: ids of the items to leave out.

    Raises:
        BankError: the bank has no document, or the document lacks an item that ``sources`` places in it.
    """
    document, gone = bank.metadata.get("document"), set(ids)
    if not isinstance(document, str):
        raise BankError(
            "the bank has no document", got=repr(bank.name), expected="a bank read from SKILL.md or the like"
        )
    rules = _parsed(document)[0]
    dropped = [rule for rule in rules if rule.item.id in gone]
    lost = gone - {rule.item.id for rule in dropped}
    main = str(next(iter(cast(list[str], bank.metadata.get("files", []))), ""))
    if wrong := [id for id, place in sources(bank).items() if id in lost and place.startswith(f"{main}:")]:
        raise BankError("the document has no such item", got=repr(wrong[0]), remedy="import the document again")
    heads = {head.lines for rule in rules if rule.item.id not in gone for head in rule.heads}
    blocks = [rule.lines for rule in dropped]
    blocks += [head.lines for rule in dropped for head in rule.heads if head.lines not in heads]
    lines = document.split("\n")
    out = {number for block in blocks for number in range(*block)}
    out -= {number for number in out if _blank(lines[number]) and number + 1 not in out}
    # Last lines of paragraphs: a list goes on below them only if it begins with 1.
    paragraphs = {end - 1 for _, end in heads}
    paragraphs |= {rule.lines[1] - 1 for rule in rules if not _STARTS.match(lines[rule.lines[0]])}
    kept: list[str] = []
    last, is_after = -1, False  # the number of the last line kept; whether a block was left out since
    for number, line in enumerate(lines):
        if number in out:
            is_after = True
        elif _blank(line):
            is_doubled = is_after and (not kept or _blank(kept[-1]))
            if not is_doubled:
                kept.append(line)
        else:
            # A blank line, if the removed block kept two blocks apart.
            joins = not (_STARTS.match(line) or _ACE_BULLET.match(line)) or (last in paragraphs and _LATER.match(line))
            if is_after and kept and not _blank(kept[-1]) and joins:
                kept.append("")
            kept.append(line)
            last, is_after = number, False
    return "\n".join(kept).rstrip() if gone else document


def write_document(bank: SkillBank) -> str:
    """A bank as Markdown; ``read_document`` restores its items but ``changed_items``, and for a bank from a document
    their order.
    """
    lines = ["---", f"name: {_quoted(bank.name or 'skills')}"]
    if description := bank.metadata.get("description"):
        lines.append(f"description: {_quoted(str(description))}")
    lines += ["---", ""]
    places = {id: place for place, id in enumerate(sources(bank))}
    paths: dict[str, tuple[str, ...]] = {}
    sections: dict[tuple[str, ...], int] = {}
    for item in bank.items:
        # A heading marks mistakes that neither title nor text reveal. The sixth level holds the rest of the path.
        above = [_MISTAKES] if isinstance(item, Mistake) and not _is_mistake(item.title, item.text) else []
        titles = item.title.split(_JOINT, 5 - len(above)) if item.title else []
        paths[item.id] = (*above, *titles)
        sections.setdefault(paths[item.id], len(sections))

    def order(item: Item) -> tuple[int, bool, bool, int]:
        path = paths[item.id]
        return places.get(item.id, len(places)), path != (), path[:1] == (_MISTAKES,), sections[path]

    last: tuple[str, ...] = ()
    for item in sorted(bank.items, key=order):
        path = paths[item.id]
        if path != last:
            pairs = zip((*last, None), (*path, None), strict=False)
            begin = next((depth for depth, (old, new) in enumerate(pairs) if old != new), 0)
            begin = max(0, min(begin, len(path) - 1))
            if lines[-1]:
                lines.append("")
            # An empty heading ends the sections above it.
            for depth, heading in enumerate(path[begin:] or ("",), begin + 1):
                lines += [f"{'#' * depth} {heading}".rstrip(), ""]
            last = path
        lines += _bullet(item)
    return "\n".join(lines).rstrip() + "\n"


def changed_items(bank: SkillBank, text: str) -> list[str]:
    """Ids of the items that ``read_document`` would not find in the text of ``write_document``, up to white space.

    Markdown has no way to write some texts as one rule: a list, a line ``---``, a code block that does not end.
    """
    rules = _parsed(_split(text)[1])[0]
    found = {_content(rule.item) for rule in rules}
    return [item.id for item in bank.items if _content(item) not in found]


# ---- reading


def _content(item: Item) -> tuple[str, ...]:
    return type(item).__name__, *(" ".join(part.split()) for part in (item.title, item.text, item.note))


def _main(folder: Path) -> Path | None:
    return next((folder / name for name in NAMES if (folder / name).is_file()), None)


def _split(text: str) -> tuple[str, str, int]:
    """(header, body, lines before the body)."""
    found = _HEADER.match(text)
    body = text[found.end() :] if found else text
    document = re.sub(r"\A(?:[ \t]*\n)+", "", body)
    return (found[1] or "") if found else "", document.rstrip(), text.count("\n", 0, len(text) - len(document))


def _field(header: Mapping[str, object], key: str) -> str:
    value = header.get(key)
    return " ".join(value.split()) if isinstance(value, str) else ""


def _html(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    """markdown-it's rule for HTML: a comment, or a line with a single tag. All other HTML is text."""
    line = _line(state, start)
    is_comment = line.startswith("<!--") and ("-->" not in line or line.rstrip().endswith("-->"))
    if state.is_code_block(start) or not (is_comment or _TAG.match(line)):
        return False
    last = start
    if is_comment:
        while last + 1 < end and "-->" not in _line(state, last):
            last += 1
    if not silent:
        state.line = last + 1
        token = state.push("html_block", "", 0)
        token.map, token.content = [start, last + 1], line
        behind = _line(state, last).partition("-->")[2].strip() if is_comment else ""
        is_text = not (_TAG.match(behind) or (behind.startswith("<!--") and behind.endswith("-->")))
        token.markup = _MARK.sub(r"\1\\\2", behind) if is_text else ""  # the text behind the comment
    return True


def _ace_bullet(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    """markdown-it's rule for playbook bullets: each one ends the block above it and is a paragraph."""
    return silent and bool(_ACE_BULLET.match(_line(state, start)))


def _line(state: StateBlock, number: int) -> str:
    return state.src[state.bMarks[number] + state.tShift[number] : state.eMarks[number]]


# Inline markup is not parsed: texts are kept as they are written.
_MARKDOWN = MarkdownIt("commonmark").enable("table").disable("inline")
_MARKDOWN.block.ruler.at("html_block", _html, {"alt": ["paragraph", "reference", "blockquote"]})
_MARKDOWN.block.ruler.before("paragraph", "ace_bullet", _ace_bullet, {"alt": ["paragraph", "reference", "blockquote"]})


@lru_cache(maxsize=4)
def _parsed(body: str) -> tuple[tuple[_Rule, ...], tuple[str, ...], tuple[tuple[int, str], ...]]:
    """The rules and the link targets of a document, and its lines that are neither rule nor title, counted from 0."""
    found: dict[str, dict[str, dict[str, str]]] = {}
    signed = body
    if _SIGN.search(body):  # outside of code
        blocks = [token.map for token in _MARKDOWN.parse(body) if token.type in _CODE and token.map]
        code = {number for first, end in blocks for number in range(first, end)}
        signed = "\n".join(line if n in code else _SIGN.sub(r"\1-", line) for n, line in enumerate(body.split("\n")))
    tree = SyntaxTreeNode(_MARKDOWN.parse(signed, found))
    links = [
        link[1] or link[2] or link[3]
        for node in tree.walk()
        if node.type == "inline"
        for link in _LINK.finditer(node.content)
    ]
    links += [reference["href"] for reference in found.get("references", {}).values()]
    plain = (replace(rule, text=_plain(rule.text)) for rule in _blocks(tree.children, ()))
    rules = tuple(rule for rule in plain if rule.text and not _is_contents(rule.text))
    used = [rule.lines for rule in rules] + [head.lines for rule in rules for head in rule.heads]
    used += [_lines(node) for node in tree.walk() if node.type == "html_block"]
    seen = {number for block in {*used} for number in range(*block)}
    idle = (
        (number, line)
        for number, line in enumerate(body.split("\n"))
        if number not in seen and re.search(r"\w", line) and not _DEFINITION.match(line)
    )
    return rules, tuple(links), tuple(idle)


def _is_contents(text: str) -> bool:
    """Whether a text is an import alone or an entry of a table of contents: not a linked rule with its reason."""
    found = _NO_RULE.match(text)
    return found is not None and not (len((found[2] or "").split()) > 2 and _INSTRUCTS.match(found[1]))


def _linked(links: Iterable[str], folder: Path) -> Iterator[Path]:
    """The existing Markdown files that these links of a document in ``folder`` point to."""
    for link in links:
        # A link may be no URL, or an impossible file name.
        with suppress(ValueError, OSError):
            target = urlsplit(link)
            if not target.scheme and not target.netloc and target.path.lower().endswith(".md"):
                file = runfolder.real(folder / unquote(target.path))
                if file.is_file():
                    yield file


def _blocks(nodes: Sequence[SyntaxTreeNode], above: tuple[_Head, ...]) -> Iterator[_Rule]:
    """The rules in a sequence of sibling blocks."""
    headings: list[tuple[int, _Head]] = []
    tags: list[tuple[str, _Head]] = []  # with the name of the tag that ends it
    bare: SyntaxTreeNode | None = None  # the heading above, with no block below it
    intro: tuple[_Head, ...] = ()  # paragraphs that end in a colon, before another paragraph
    lead: SyntaxTreeNode | None = None  # the paragraph or last entry above, which may introduce the block at hand
    for node in (*nodes, None):
        heads = (*above, *(head for _, head in headings), *(head for _, head in tags), *intro)
        if lead is not None:
            text = _prose(lead)
            if node is not None and (node.type in _CODE or (node.type == "blockquote" and _LEADS.search(text))):
                yield _Rule(heads, _markdown([lead, node]), (_lines(lead)[0], _lines(node)[1]))
                lead, intro = None, ()
                continue
            outer, intro = intro, ()
            if node is not None and node.type in (*_LISTS, "table") and not _SENTENCE.search(text):
                heads = (*heads, _Head(_label(text), _lines(lead), forbids=_leads_into_mistakes(text)))
            elif node is not None and node.type == "paragraph" and _LEADS.search(text) and not _ACE_BULLET.match(text):
                intro = (*outer, _Head(_label(text), _lines(lead)))
            else:
                yield _Rule(heads, text, _lines(lead))
            lead = None
        if bare is not None and (node is None or (node.type == "heading" and node.tag <= bare.tag)):
            text = _MARK.sub(r"\1\\\2", _NUMBER.sub("", _prose(bare), count=1))
            if _INSTRUCTS.match(text):
                yield _Rule((*above, *(head for _, head in headings[:-1])), text, _lines(bare))
        if node is None:
            return
        if node.type not in ("html_block", "hr"):
            bare = node if node.type == "heading" else None
        if node.type == "heading":
            level = int(node.tag[1:])
            headings = [(other, one) for other, one in headings if other < level]
            headings.append((level, _Head(_label(_prose(node)), _lines(node))))
            tags = []
        elif node.type == "html_block":
            tag = _TAG.match(node.content)
            if node.markup:
                yield _Rule(heads, node.markup, _lines(node))
            elif tag and tag[1]:
                tags = [one for one in tags if one[0] != tag[2]]
            elif tag and tag[3]:
                tags.append(("details", _Head(_label(tag[3].strip()), _lines(node))))
            elif tag and tag[2].lower() not in _LAYOUT:
                tags.append((tag[2], _Head(tag[2], (0, 0))))
        elif node.type == "paragraph":
            lead = node
        elif node.type in _CODE:
            yield _Rule(heads, _fenced(node), _lines(node))
        elif node.type in _LISTS:
            *entries, last = node.children
            for entry in entries:
                yield from _entry(entry, heads)
            if [child.type for child in last.children] == ["paragraph"] and _LEADS.search(_prose(last.children[0])):
                # What follows "1. Python:" need not be indented.
                lead, intro = last.children[0], heads[len(above) + len(headings) + len(tags) :]
            else:
                yield from _entry(last, heads)
        elif node.type == "table":
            yield from _rows(node, heads)
        elif node.type == "blockquote":
            yield from _blocks(node.children, heads)


def _entry(entry: SyntaxTreeNode, above: tuple[_Head, ...]) -> Iterator[_Rule]:
    """The rule of a list entry, or the rules of its nested list if its text only introduces that list."""
    nodes = entry.children
    if not nodes:
        return
    inner = nodes[-1].children[-1] if len(nodes) > 1 and nodes[-1].type == "bullet_list" else None
    note = _NOTE.fullmatch(_prose(inner.children[0])) if inner is not None and len(inner.children) == 1 else None
    if note is not None and (text := _markdown(nodes, inner)):
        rule = _Rule(above, text, _lines(entry), note[2])
        if isinstance(rule.item, Mistake) == (note[1] == "Avoid"):
            yield rule
            return
    text = _prose(nodes[0])
    leads = len(nodes) > 1 and nodes[1].type in (*_LISTS, "table") and len(text) <= _LONG and not _SENTENCE.search(text)
    if nodes[0].type in _LISTS:
        yield from _blocks(nodes, above)
    elif nodes[0].type == "paragraph" and leads:
        yield from _blocks(nodes, (*above, _Head("", _lines(nodes[0]))))
    else:
        yield _Rule(above, _markdown(nodes), _lines(entry))


def _rows(table: SyntaxTreeNode, above: tuple[_Head, ...]) -> Iterator[_Rule]:
    head, *rows = [row for part in table.children for row in part.children]
    names = [_prose(name).rstrip(":") for name in head.children]
    for row in rows:
        cells = zip(names, map(_prose, row.children), strict=False)
        if text := "; ".join(f"{name}: {cell}" if name else cell for name, cell in cells if cell):
            text = _MARK.sub(r"\1\\\2", text)
            yield _Rule((*above, _Head("", (_lines(table)[0], _lines(rows[0])[0]))), text, _lines(row))


def _lines(node: SyntaxTreeNode) -> tuple[int, int]:
    return node.map or (0, 0)


def _leads_into_mistakes(text: str) -> bool:
    """Whether the text is one sentence that introduces what is forbidden: "Never do this:"."""
    return bool(FORBIDS.match(text) and _LEADS.search(text) and not re.search(r"[.!?:：。]\s", text))


def _label(text: str) -> str:
    """A heading or introductory sentence as part of a title."""
    text = _plain(text)
    is_balanced = text.count("**") % 2 == 0
    return (text.replace("**", "") if is_balanced else text).rstrip(":： ").strip()


def _plain(text: str) -> str:
    """The text of a rule without a task's checkbox or a playbook's counters."""
    for mark in (_TASK, _ACE_BULLET):
        if found := mark.match(text):
            text = _MARK.sub(r"\1\\\2", text[found.end() :])
    return text


def _markdown(nodes: Iterable[SyntaxTreeNode], without: SyntaxTreeNode | None = None) -> str:
    """Blocks as normalised Markdown: paragraphs on one line, lists without blank lines and ``without`` this entry."""
    blocks: list[str] = []
    for node in nodes:
        match node.type:
            case "paragraph":
                blocks.append(_prose(node))
            case "heading":
                blocks.append(f"{'#' * int(node.tag[1:])} {_prose(node)}")
            case "fence" | "code_block":
                blocks.append(_fenced(node))
            case "bullet_list" | "ordered_list":
                marks = [(f"{one.info}{one.markup} ", one) for one in node.children if one is not without]
                blocks.append(
                    "\n".join(_as_entry(_markdown(one.children), mark) for mark, one in marks if one.children)
                )
            case "blockquote":
                blocks.append("\n".join(f"> {line}".rstrip() for line in _markdown(node.children).split("\n")))
            case "table":
                rows = [
                    [_prose(cell).replace("|", "\\|") for cell in row.children]
                    for part in node.children
                    for row in part.children
                ]
                rows.insert(1, ["---"] * len(rows[0]))
                blocks.append("\n".join(f"| {' | '.join(row)} |" for row in rows))
            case _:
                blocks.append(node.markup if node.type == "html_block" else "")
    return "\n\n".join(block for block in blocks if block)


def _as_entry(text: str, mark: str) -> str:
    """A text as a list entry, its later lines indented."""
    first, *rest = text.split("\n")
    return "\n".join([mark + first, *(" " * len(mark) + line if line else "" for line in rest)])


def _prose(node: SyntaxTreeNode) -> str:
    """The text of a block on one line, with its inline markup."""
    text = " ".join(child.content for child in node.children if child.type == "inline")
    return " ".join(line.strip(" \t") for line in text.split("\n")).strip()


def _fenced(node: SyntaxTreeNode) -> str:
    fence = node.markup
    if node.type == "code_block":
        fence = "`" * max([3, *(len(run) + 1 for run in re.findall("`{3,}", node.content))])
    return f"{fence}{node.info.strip()}\n{node.content.rstrip()}\n{fence}"


def _is_mistake(title: str, text: str) -> bool:
    if _ALLOWS.match(text):
        return False
    return bool(FORBIDS.match(text)) or any(map(lists_mistakes, title.split(_JOINT)))


# ---- writing


def _quoted(text: str) -> str:
    return json.dumps(" ".join(text.split()), ensure_ascii=False)


def _bullet(item: Item) -> list[str]:
    lines = [_as_entry(item.text, "- ")]
    if item.note:
        note = " ".join(item.note.split())
        lines += ["", f"  - {'When' if isinstance(item, Skill) else 'Avoid'}: {note}"]
    return lines


def _blank(line: str) -> bool:
    return not line.strip(" \t>")
