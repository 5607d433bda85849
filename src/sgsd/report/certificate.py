"""The certificate of ``sgsd internalize``: its JSON, page, table for the terminal and part of the model card.

A headline states the result. A change counts if its 95 % interval excludes 0. ``docs/certificate.md`` explains each
figure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter
from rich.table import Table
from rich.text import Text

from sgsd import runfolder
from sgsd.display import as_markdown, visible
from sgsd.report import html
from sgsd.report.tables import as_text, figure, percent, short
from sgsd.validation import validated

_MOST_CHARACTERS = 320  # of an answer on the page
_CARD_HEADING = "\n## Certificate\n"


def _ordered(ends: tuple[float, float]) -> tuple[float, float]:
    if ends[0] > ends[1]:
        raise ValueError("the lower end first")
    return ends


Interval = Annotated[tuple[float, float], AfterValidator(_ordered)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
Verdict = Literal["earned", "idle", "harmful", "unused"]


class _Part(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, validate_by_name=True, serialize_by_alias=True
    )


class Accuracy(_Part):
    accuracy: Share  # of tasks answered right
    ci95: Interval


class Difference(_Part):
    mean: float  # of two accuracies, paired by task
    ci95: Interval

    @property
    def sign(self) -> int:
        """1 or −1 where the interval leaves out 0, else 0."""
        return (self.ci95[0] > 0) - (self.ci95[1] < 0)


class Kept(_Part):
    share: float  # (after − before) / (with_document − before)
    ci95: Interval


class Document(_Part):
    name: str
    description: str | None = None
    file: str
    digest: str
    rules: Count
    tokens: Count


class Tasks(_Part):
    train: Count
    held_out: Annotated[int, Field(ge=1)]
    file: str


class Accuracies(_Part):
    """Accuracies on the held-out tasks; the prompt has the document only for ``with_document``."""

    before: Accuracy
    with_document: Accuracy | None = None
    after: Accuracy
    grpo: Accuracy | None = None


class Differences(_Part):
    """Differences of those accuracies; the names in JSON are ``after - before`` and so on."""

    after_before: Difference = Field(alias="after - before")
    after_with_document: Difference | None = Field(None, alias="after - with_document")
    with_document_before: Difference | None = Field(None, alias="with_document - before")
    after_grpo: Difference | None = Field(None, alias="after - grpo")
    grpo_before: Difference | None = Field(None, alias="grpo - before")


class Tokens(_Part):
    plain: float  # mean prompt tokens of a request
    with_document: float | None = None
    saved: float | None = None
    training: Count | None = None  # processed by training
    requests_to_pay: Count | None = None  # requests that save as many tokens as training processed


class Recited(_Part):
    """Shares of answers that repeat six words or more of the document."""

    before: Share | None = None
    with_document: Share | None = None
    after: Share | None = None


class Retention(_Part):
    """Accuracies on problems that the document does not concern."""

    name: str
    problems: Count
    before: Accuracy
    after: Accuracy
    difference: Difference


class Rule(_Part):
    id: str
    kind: Literal["skill", "mistake"]
    title: str = ""
    text: str
    source: str | None = None
    worth: float | None = None  # 2 · credit − 1, from −1 to 1
    ci95: Interval | None = None
    uses: Count
    verdict: Verdict


class Reply(_Part):
    text: str
    correct: bool | None = None  # None: the verifier was undecided


class Answer(_Part):
    """A held-out task and the answers to it."""

    problem: str
    answer: str
    before: Reply
    with_document: Reply | None = None
    after: Reply
    grpo: Reply | None = None


class Doctor(_Part):
    model_config = ConfigDict(extra="allow")
    verdict: str
    sentences: tuple[str, ...] = ()


class Training(_Part):
    steps: Count
    rollouts: Count
    seed: int
    settings: dict[str, Any] = {}


class Certificate(_Part):
    """The content of ``certificate.json``; a figure that was not measured is ``None``."""

    version: Literal[1]
    sgsd: str
    model: str
    document: Document
    method: str
    teachers: Literal["pairs", "rules", "document"]
    tasks: Tasks
    accuracy: Accuracies
    differences: Differences
    kept: Kept | None = None
    tokens: Tokens
    recited: Recited
    retention: Retention | None = None
    rules: tuple[Rule, ...]
    answers: tuple[Answer, ...]
    doctor: Doctor | None = None
    training: Training
    seconds: dict[str, float | None]


def read_certificate(path: str | Path) -> Certificate:
    """Read a certificate from a file, or from the folder of ``sgsd internalize``.

    Raises:
        DataError: it cannot be read, or a field is missing or wrong.
    """
    file = Path(path)
    if file.is_dir():
        file /= runfolder.CERTIFICATE
    return validated(TypeAdapter(Certificate), runfolder.read_json(file), str(file))


# ---- in words


_PROMPTED = {
    "pairs": "What teachers are shown of the bank",
    "rules": "What teachers are shown of the document",
    "document": "The document",
}
_GAINS = {
    "pairs": "its pairs gain in the prompt, as teachers are shown them,",
    "rules": "its rules gain in the prompt, as teachers are shown them,",
    "document": "the document gains in the prompt",
}


def headline(certificate: Certificate) -> str:
    """The sentence that states the result."""
    accuracy, differences, kept = certificate.accuracy, certificate.differences, certificate.kept
    said = (
        f"the model answers {_share(accuracy.after.accuracy)} of held-out tasks right without the document in its "
        f"prompt, {_share(accuracy.before.accuracy)} before"
    )
    if differences.after_before.sign < 0:
        return f"Training made it worse: {said}."
    if differences.after_before.sign == 0:
        return f"No gain is shown: {said}, a difference that may be chance."
    said = f"T{said[1:]}"
    if kept is None or differences.with_document_before is None or differences.with_document_before.sign <= 0:
        return f"{said}."
    part = "all" if kept.share >= 1 else _share(kept.share)
    return f"{said}; {part} of what {_GAINS[certificate.teachers]} is kept."


def remarks(certificate: Certificate) -> list[str]:
    """Sentences on the document in the prompt, GRPO, forgetting, and harmful rules."""
    accuracy, differences, retention = certificate.accuracy, certificate.differences, certificate.retention
    said: list[str] = []
    gained, helps = differences.after_before, differences.with_document_before
    if accuracy.with_document is not None and helps is not None:
        prompted = _PROMPTED[certificate.teachers]
        with_it = f"{_share(accuracy.with_document.accuracy)} right with it, {_share(accuracy.before.accuracy)} without"
        if helps.sign < 0:
            said.append(f"{prompted} in the prompt harms: {with_it}.")
        elif helps.sign == 0:
            said.append(f"{prompted} in the prompt shows no effect: {with_it}.")
        elif gained.sign <= 0:
            said.append(f"{prompted} in the prompt does help: {with_it}. Training did not gain that.")
    if accuracy.grpo is not None and differences.after_grpo is not None:
        came = f"GRPO, trained beside it without the document, answers {_share(accuracy.grpo.accuracy)} right"
        ends = {1: "", 0: ": as good, as far as these tasks tell", -1: ", which is better"}
        said.append(f"{came}{ends[differences.after_grpo.sign]}.")
    if retention is not None:
        before, after = _share(retention.before.accuracy), _share(retention.after.accuracy)
        came = f"{short(retention.name, 60)}, {after} right, {before} before"
        hidden = f"; a loss of up to {figure(-100 * retention.difference.ci95[0], '.1f')} points is not excluded"
        beginnings = {1: "Nothing was forgotten", 0: "No forgetting is shown", -1: "Something was forgotten"}
        sign = retention.difference.sign
        said.append(f"{beginnings[sign]}: {came}{'' if sign else hidden}.")
    if harmful := sum(rule.verdict == "harmful" for rule in certificate.rules):
        said.append(f"Rules of the document that harmed: {harmful} of {len(certificate.rules)}.")
    return said


def _share(share: float) -> str:
    """``88 %``; 0 and 100 % only if exact."""
    if 0 < share <= 0.005:
        return "under 1 %"
    return "over 99 %" if 0.995 <= share < 1 else figure(share, ".0%")


def _range(ends: tuple[float, float]) -> str:
    digits = 0 if ends[1] - ends[0] >= 0.01 else 1  # else all of 1,000 tasks right would be 100 to 100 %
    return f"{figure(100 * ends[0], f'.{digits}f')} to {figure(ends[1], f'.{digits}%')}"


def _signed(difference: float) -> str:
    return figure(100 * difference, "+.1f")


def _reach(difference: Difference) -> str:
    return f"{_signed(difference.ci95[0])} to {_signed(difference.ci95[1])}"


def _worth(rule: Rule) -> str:
    if rule.worth is None or rule.ci95 is None:
        return "–"
    worth, low, high = (figure(value, "+.2f") for value in (rule.worth, *rule.ci95))
    return f"{worth} ({low} to {high})"


_count = partial(figure, spec=",.0f")


def _to_pay(certificate: Certificate) -> str | None:
    """Requests until training has paid off; ``never`` without a shown gain; ``None`` if not measured."""
    if certificate.differences.after_before.sign <= 0:
        return "never"
    requests = certificate.tokens.requests_to_pay
    return None if requests is None else _count(requests)


def duration(seconds: float) -> str:
    """``45 s``, ``9 min 10 s``, ``1 h 5 min``."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


_DID: dict[Verdict, str] = {
    "earned": "earned it",
    "idle": "idle",
    "harmful": "harmed",
    "unused": "never taught",
}


def _by_verdict(certificate: Certificate) -> dict[str, int]:
    """The number of rules by what they did."""
    counts = Counter(rule.verdict for rule in certificate.rules)
    return {did: counts[verdict] for verdict, did in _DID.items() if counts[verdict]}


def _clipped(text: str) -> str:
    """The text, or the beginning and the end of a long one; answers are at the end."""
    half = _MOST_CHARACTERS // 2
    return text if len(text) <= _MOST_CHARACTERS else f"{text[:half].rstrip()} […] {text[-half:].lstrip()}"


_SHOWN = {"pairs": "With its pairs", "rules": "With its rules", "document": "With the document"}
"""What ``with_document`` has in the prompt: what teachers are shown."""


def _measured(parts: _Part, teachers: str) -> list[tuple[str, str, Any]]:
    """(key, name, value) of the measured states, in the order of the page."""
    names = {"before": "Before", "with_document": _SHOWN[teachers], "grpo": "GRPO", "after": "After"}
    found = ((key, name, dict(parts).get(key)) for key, name in names.items())
    return [state for state in found if state[2] is not None]


# ---- the page, the table, the model card


def write_page(certificate: Certificate, output: str | Path) -> Path:
    """Write the page: one HTML file without scripts.

    Returns:
        ``output`` as a path.

    Raises:
        ConfigError: the page is larger than ``html.MOST_BYTES`` or cannot be written.
    """
    environment = html.environment()
    filters = (as_text, _clipped, duration, _measured, _range, _reach, _share, short, _signed, _worth)
    environment.filters |= {one.__name__.strip("_"): one for one in filters} | {"count": _count, "percent": percent}
    style = html.own_text(environment, "page.css", "certificate.css")
    order = list(_DID)
    page = environment.get_template("certificate.html").render(
        certificate=certificate,
        with_shown=_SHOWN[certificate.teachers],
        headline=headline(certificate),
        remarks=remarks(certificate),
        to_pay=_to_pay(certificate),
        rules=sorted(certificate.rules, key=lambda rule: (order.index(rule.verdict), -(rule.worth or 0))),
        by_verdict=", ".join(f"{count} {did}" for did, count in _by_verdict(certificate).items()),
        style=style,
        hash=html.digest(style),
    )
    return html.write(Path(output), page, "the certificate's page")


def certificate_table(certificate: Certificate) -> Table:
    """The main figures as a table for the terminal."""
    notes = Text(visible("\n".join(remarks(certificate))))
    table = Table(title=Text(headline(certificate), "bold"), title_justify="left", title_style="", caption=notes)
    table.caption_justify, table.caption_style = "left", ""
    for name in ("", "figure", "95 % interval"):
        table.add_column(name, justify="right" if name else "left")
    for section in _figures(certificate):
        table.add_section()
        for row in section:
            table.add_row(*(Text(visible(cell)) for cell in row))
    return table


def add_to_card(certificate: Certificate, folder: Path) -> None:
    """Write the certificate into the model card of a folder, and to ``certificate.json`` beside it.

    Args:
        certificate: replaces one that is there.
        folder: of the model and its ``README.md``.
    """
    file = folder / "README.md"
    card = runfolder.read_text(file) if file.is_file() else ""
    rows = [row for section in _figures(certificate) for row in section]
    parts = [
        card.partition(_CARD_HEADING)[0].rstrip(),
        _CARD_HEADING.strip(),
        as_markdown(headline(certificate)),
        "| | figure | 95 % interval |\n|---|---:|---:|\n"
        + "\n".join(f"| {' | '.join(map(as_markdown, row))} |" for row in rows),
        *map(as_markdown, remarks(certificate)),
        f"Measured on {certificate.tasks.held_out:,} held-out tasks; all figures are in "
        f"[{runfolder.CERTIFICATE}]({runfolder.CERTIFICATE}).\n",
    ]
    runfolder.write_json(folder / runfolder.CERTIFICATE, certificate.model_dump(mode="json"))
    runfolder.write_text(file, "\n\n".join(parts))


def _figures(certificate: Certificate) -> Iterator[list[tuple[str, str, str]]]:
    """(name, figure, interval) of the measured figures, in sections."""
    yield [
        (f"{name}, tasks right", percent(accuracy.accuracy), _range(accuracy.ci95))
        for _, name, accuracy in _measured(certificate.accuracy, certificate.teachers)
    ]
    rest: list[tuple[str, str, str]] = []
    if (kept := certificate.kept) is not None:
        rest.append(("Gain in the prompt kept", percent(kept.share), _range(kept.ci95)))
    rest.append(("Prompt tokens saved a request", _count(certificate.tokens.saved), ""))
    rest.append(("Requests until training has paid", _to_pay(certificate) or "–", ""))
    rest.append(("Answers that recite the document", percent(certificate.recited.after), ""))
    if (retention := certificate.retention) is not None:
        name, difference = f"Points of {short(retention.name, 40)}", retention.difference
        rest.append((name, _signed(difference.mean), _reach(difference)))
    yield rest
    yield [(f"Rules: {did}", str(count), "") for did, count in _by_verdict(certificate).items()]
