"""Writers for tests: what they say is a function of what they are asked."""

from __future__ import annotations

import json
import re

from sgsd.bank.writing import FIELDS, Written

ITEM = dict.fromkeys((name for names in FIELDS.values() for name in names), "")


def reply(kind, *items, **extra):
    """The text of a reply with these (title, text, note) in it."""
    return json.dumps({"items": [dict(zip(FIELDS[kind], item, strict=True)) | extra for item in items]})


class FunctionWriter:
    """Answers ``function(request)``: a text, or ``None`` for a failure."""

    name = "function"

    def __init__(self, function):
        self.function = function
        self.requests = []

    def write(self, requests):
        self.requests += requests
        texts = [self.function(request) for request in requests]
        return [
            Written(request.key, text, None if text is not None else "no luck", 10, 5)
            for request, text in zip(requests, texts, strict=True)
        ]


def listed(request):
    """The titles of the candidates that a merge request lists, by number."""
    return re.findall(r"^\d+\. (.*?):", request.messages[-1]["content"], re.MULTILINE)


def kind_asked(request):
    return "skill" if "principle" in json.dumps(request.schema) else "mistake"
