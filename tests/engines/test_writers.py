"""Writers: whatever the weights are, what comes out fits the schema."""

from __future__ import annotations

import json

import jsonschema
import pytest
from transformers import BloomConfig, BloomForCausalLM

from sgsd.bank.writing import WriteRequest
from sgsd.engines.writers import TransformersWriter
from sgsd.errors import ConfigError

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


def test_what_the_context_cuts_is_an_error_and_the_others_are_written(model, tokenizer):
    context = model.config.max_position_embeddings

    def lasting(seed, room):
        """A request that leaves ``room`` tokens to a text of 17 at least."""
        asked = request(seed, {"const": "x" * 15})
        length = len(tokenizer.apply_chat_template(asked.messages, add_generation_prompt=True)["input_ids"])
        return request(seed, {"const": "x" * 15}, text="Write." + "x" * (context - room - length))

    requests = [request(0), lasting(1, 0), lasting(2, 10), lasting(3, 18)]
    written = TransformersWriter(model, tokenizer, batch_size=4).write(requests)
    assert [answer.key for answer in written] == ["key-0", "key-1", "key-2", "key-3"]
    for answer, room in zip(written[1:3], (0, 10), strict=True):
        assert answer.text is None
        assert answer.error == f"the context of {context} ended after a prompt of {context - room} and {room} tokens"
        assert (answer.prompt_tokens, answer.completion_tokens) == (context - room, room)
    jsonschema.validate(json.loads(written[0].text), SCHEMA)
    assert json.loads(written[3].text) == "x" * 15
    assert TransformersWriter(model, tokenizer, batch_size=1).write(requests) == written
    (alone,) = TransformersWriter(model, tokenizer).write([requests[1]])
    assert alone.text is None


def test_a_model_without_a_limit_of_its_context_writes(tokenizer):
    config = BloomConfig(vocab_size=264, hidden_size=8, n_layer=1, n_head=2, eos_token_id=1, pad_token_id=1)
    (written,) = TransformersWriter(BloomForCausalLM(config).eval(), tokenizer).write([request(0, text="x" * 3000)])
    jsonschema.validate(json.loads(written.text), SCHEMA)


def test_a_tokenizer_that_is_not_known_to_hold_to_a_schema_is_refused(model):
    class Slow:
        eos_token_id = 1
        chat_template = None

    with pytest.raises(ConfigError, match=r"got Slow: .*; expected a fast tokenizer of transformers"):
        TransformersWriter(model, Slow())
