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


def test_a_request_beyond_the_context_is_an_error_and_the_others_are_written(model, tokenizer):
    room = model.config.max_position_embeddings - 200
    long, exact = request(1, text="x" * room), request(2, text="x" * (room - len("user") - 200))
    lengths = [
        len(tokenizer.apply_chat_template(r.messages, add_generation_prompt=True)["input_ids"]) for r in (long, exact)
    ]
    assert lengths[1] + 200 <= model.config.max_position_embeddings < lengths[0] + 200
    written = TransformersWriter(model, tokenizer, batch_size=3).write([request(0), long, exact])
    assert [answer.key for answer in written] == ["key-0", "key-1", "key-2"]
    assert written[1].text is None
    assert written[1].error == f"a prompt of {lengths[0]} tokens and 200 to write exceed the context of 1024"
    assert (written[1].prompt_tokens, written[1].completion_tokens) == (lengths[0], 0)
    for answer in (written[0], written[2]):
        jsonschema.validate(json.loads(answer.text), SCHEMA)
    (alone,) = TransformersWriter(model, tokenizer).write([long])
    assert alone.text is None
