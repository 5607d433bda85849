"""Multiple choice: a right answer names exactly one option, the reference's."""

from __future__ import annotations

import re

from sgsd.verifiers import phrases, spans
from sgsd.verifiers.extract import NO_ANSWER, extract_choice, leading_option
from sgsd.verifiers.spans import letters_of, option
from sgsd.verifiers.tidy import tidy
from sgsd.verifiers.verdict import UNREADABLE, Grader, Outcome, Verdict

_REASON = re.compile(r"(?:because|since|as|whereas|while|although)\b|因", re.IGNORECASE)
_CLAUSE = re.compile(
    r"[,;?!。，；？！\n]|\.(?= |$)|\b(?=(?:rather than|instead of|so|therefore|hence|because|since|as)\b)|(?=因为|因為)"
    r"|\b(?=(?:whereas|while|although)\b)|\bbut\b",
    re.IGNORECASE,
)
# In a reason: "although it is B", "while the right one is B", "because B".
_OTHER_AFTER_ALL = re.compile(
    r"(?:it is|(?:answer|option|one) is) \(?[A-Z](?![A-Za-z])|\A\w+ \(?[A-Z]\)?\W*\Z", re.IGNORECASE
)
_ALL_BUT = re.compile(
    r"\b(?:any|all|every|no)[a-z]{0,6}(?: [a-z]{1,12})? but\b"
    r"|(?<!\w)!(?-i:[A-Z])(?!\w)",
    re.IGNORECASE,
)
_PERHAPS = re.compile(r"\b(?:maybe|perhaps|possibly|(?:could|might) be)\b", re.IGNORECASE)
_NEGATION_AFTER = re.compile("아니|아닙|ではな|じゃな|değil|नहीं")
_HEDGED = re.compile(r"\b(?:not (?:quite |entirely )?(?:sure|certain)|unsure|uncertain|undecided)\b", re.IGNORECASE)
# A letter inside a larger expression or phrase (a complement, a neighbour) names no option.
_CHANGED = re.compile(
    r"\\(?:overline|bar|sim|neg|lnot|[dt]?frac|sqrt|x?cancel|st|sout)(?![A-Za-z])"
    r"(?:\[[^\[\]]{0,9}\])? ?(?:\{[^{}A-Z]{0,40}\} ?)?\{?[^{}A-Z]{0,40}[A-Z]|[~¬]\(?[A-Z](?!\w)"
    r"|\b[A-Z](?:[\^_]|-\d| ?\+ ?\d| (?:minus|plus) )"
    r"|<(?:s|del|strike)>|\b\d[A-Z]\b|\b(?:before|after|next to|preceding|following|precedes|follows)"
    r" (?:the )?(?:letter |option )?\(?[A-Z](?!\w)"
)
# A letter that is part of a name in the text of an option: "C) Vitamin D", "(A) Hepatitis B".
_NAME = re.compile(
    r"(\A\W{0,9}(?:text\{)?\(?[A-Z](?:[).:,*]\W{0,3}| - )(?:(?!(?:or|and)\b)[a-z]{1,15} ){0,3}"
    r"(?:vitamin|hepatitis|influenza|type|group|class|plan"
    r"|phase|protein|factor|team|company|country|city|model|schedule|immunoglobulin) )[A-Z](?![a-z])",
    re.IGNORECASE,
)
# An option whose text names options: "D. Both A and B", "D) A and C only", "D, all of the above (A, B, and C)".
_OF_OPTIONS = re.compile(
    r"(\A\W{0,9}\(?[A-Z](?:\)|[.:,])) (?:(?:both|either|neither) \(?[A-Z]\)? (?:and|or|nor) \(?[A-Z]\)?"
    r"|\(?[A-Z]\)? (?:and|or) \(?[A-Z]\)? only|(?:all|none) of the above \([^()]{0,60}\))\W*\Z",
    re.IGNORECASE,
)
_REFUSED = re.compile(
    r"\b(?:not|never|neither|nor|cannot|except|besides|apart from|aside from|without|unlike|rather than|instead of"
    r"|other than|opposite|(?:exclud|eliminat|reject|discard)\w{0,3}|avoid"
    r"|distractors?|rul(?:e|es|ed|ing)|wrong|incorrect|false|out|skip|drop|remove|dismiss|ignore|by no means"
    r"|hardly|less likely|nope|too \w+|least|unlikely|impossible|doubt\w{0,3}|fails?)\b"
    r"|\bif\b|[❌✗✘]|\bnon-|不|错|ない|排除|除了|以外|\b(?:trap|mistake|save (?=\(?[A-Z]\b))|está mal"
    r"|\b(?:many|some|most|people|others|someone|readers?|students?) (?:would|might|may|could|say|think|choose"
    r"|pick)\b"
    r"|\b(?:contradicts?|inconsistent|any of|unless|my first|wanted to)\b"
    r"|(?<!\w)(?:no|ni)(?: (?:la |es )?\(?[A-Z]\b|\Z)|非|除く|違う|제외|loại|исключ|ausgeschlossen|scheidet"
    r"|(?<!\w)(?:descart|exclu|j['’]exclu|esclus)|(?<!\w)(?:außer|ausser|salvo|excepto|exceto|menos|sauf|tranne"
    r"|кроме|hariç|behalve|oprócz|utom|kecuali|trừ)(?!\w)",
    re.IGNORECASE,
)


def _without_formula(piece: spans.Value) -> str:
    """Mathematics that is no option (``$A = \\pi r^2$``) left out."""
    text = tidy(piece.text)
    return " " if re.search(r"[=<>^+_\\]", text.replace(r"\text", "")) and r"\text" not in text else f" {piece.text} "


def affirmed(statement: str) -> list[str]:
    """The distinct options that a statement affirms. Options that it excludes, asks about or gives as a reason do not
    count."""
    named: list[str] = []
    statement = _NAME.sub(r"\1", spans.change_mathematics(statement, _without_formula))
    statement = _OF_OPTIONS.sub(r"\1", re.sub(r",? as (?:well as|is)\b", " and", statement))
    if _ALL_BUT.search(statement):
        return named
    start = 0
    for mark in [*_CLAUSE.finditer(statement), None]:
        clause = " ".join(statement[start : mark.start() if mark else len(statement)].split())
        asked = mark is not None and mark[0] in ("?", "？")
        start = mark.end() if mark else start
        hedge = _HEDGED.search(clause)
        if hedge and letters_of(clause[hedge.end() :]):
            return []
        denial = phrases.NOT.search(clause)
        if denial and letters_of(clause[denial.end() :]):
            # "B and not A"; where the negation follows the option: "A가 아니라 B"
            after = _NEGATION_AFTER.match(denial[0]) is not None
            clause, denial = clause[denial.end() :] if after else clause[: denial.start()], None
        if phrases.TAKEN_BACK.match(clause + ","):
            named = []
        elif _REASON.match(clause):
            if named and ((mark and letters_of(statement[start:])) or not _OTHER_AFTER_ALL.search(clause)):
                break
            named += letters_of(clause) if named else []
        elif _PERHAPS.search(clause) and not named:
            continue
        elif not (asked or denial or _REFUSED.search(clause) or _CHANGED.search(clause)):
            named += letters_of(clause)
    return list(dict.fromkeys(named))


def why_unreadable(answer: str) -> str | None:
    """The reason if a reference names no option, or several; ``None`` if it names one."""
    return UNREADABLE.reason if option(answer) is None else None


def make_grader() -> Grader:
    """A grader: correct if the extracted answer affirms exactly one option, the reference's."""

    def grade(completion: str, answer: str) -> Verdict:
        expected = option(answer)
        if expected is None:
            return UNREADABLE
        found = extract_choice(completion)
        if found.text is None:
            return Verdict(Outcome.INCORRECT, found.reason or NO_ANSWER)
        named = affirmed(found.text) or affirmed(leading_option(completion) or "")
        if len(named) == 1:
            return Verdict(Outcome.CORRECT if named[0] == expected else Outcome.INCORRECT, None, named[0])
        return Verdict(Outcome.INCORRECT, "several answers" if named else NO_ANSWER, found.text[:200])

    return grade
