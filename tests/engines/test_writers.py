"""Writers: whatever the weights are, what comes out fits the schema."""

from __future__ import annotations

import json

import jsonschema

from sgsd.bank.writing import WriteRequest
from sgsd.engines.writers import TransformersWriter

SCHEMA = {
    "type": "object",
    "properties": {"title": {"type": "string", "minLength": 1, "maxLength": 12}},
    "required": ["title"],
    "additionalProperties": False,
}
OTHER = {"type": "array", "items": {"type": "integer", "minimum": 1, "maximum": 9}, "minItems": 2, "maxItems": 4}


def request(seed, schema=SCHEMA, text="Write."):
    return WriteRequest(f"key-{seed}", [{"role": "user", "content": text}], schema, 200, seed)


def test_random_weights_write_what_fits_each_requests_own_schema(model, tokenizer):
    requests = [request(0), request(1, OTHER, "Write numbers, please."), request(2), request(3, OTHER)]
    for temperature in (0.0, 1.0):
        written = TransformersWriter(model, tokenizer, temperature=temperature, batch_size=3).write(requests)
        assert [answer.key for answer in written] == [asked.key for asked in requests]
        for asked, answer in zip(requests, written, strict=True):
            jsonschema.validate(json.loads(answer.text), asked.schema)


def test_the_text_depends_on_the_seed_and_not_on_the_batch(model, tokenizer):
    requests = [request(seed, text="x" * (1 + seed)) for seed in range(4)]
    alone, together = (
        [w.text for w in TransformersWriter(model, tokenizer, temperature=1.0, batch_size=size).write(requests)]
        for size in (1, 4)
    )
    assert alone == together
    assert len(set(alone)) > 1
