"""The policy as writer of its own bank's new items."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from accelerate import DistributedType

from sgsd.bank.writing import WriteRequest, Written
from sgsd.engines.generation import TransformersSampler
from sgsd.errors import ConfigError
from sgsd.prompts import message_ids


class PolicyWriter:
    """The policy writes, in process.

    Args:
        model: unwrapped.
        tokenizer: its own, with a chat template.
    """

    name = "policy"

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self._model = model
        self._tokenizer = tokenizer

    def write(self, requests: Sequence[WriteRequest]) -> list[Written]:
        """See ``Writer.write``. Requests of one call share its longest length limit."""
        context = self._model.config.get_text_config().max_position_embeddings
        prompts = [message_ids(self._tokenizer, request.messages) for request in requests]
        written = [
            Written(request.key, None, f"a prompt of {len(prompt)} tokens leaves no room", len(prompt), 0)
            for request, prompt in zip(requests, prompts, strict=True)
        ]
        fitting = [index for index, prompt in enumerate(prompts) if len(prompt) < context]
        if not fitting:
            return written
        room = context - max(len(prompts[index]) for index in fitting)
        sampler = TransformersSampler(
            self._model,
            self._tokenizer,
            max_new_tokens=min(room, max(requests[index].max_tokens for index in fitting)),
            batch_size=len(fitting),
        )
        rollouts = sampler.sample([prompts[index] for index in fitting], seed=requests[fitting[0]].seed)
        for index, rollout in zip(fitting, rollouts, strict=True):
            tokens = len(rollout.completion_ids)
            written[index] = Written(requests[index].key, rollout.text, None, len(prompts[index]), tokens)
        return written


def refuse_partitioned_policy(accelerator: Any, *, frequency: int) -> None:
    """One process cannot generate alone with a model that is spread over all.

    Raises:
        ConfigError: the policy is to write under DeepSpeed ZeRO-3 or FSDP.
    """
    plugin = accelerator.state.deepspeed_plugin
    zero3 = plugin is not None and plugin.zero_stage == 3
    if zero3 or accelerator.distributed_type is DistributedType.FSDP:
        raise ConfigError(
            f"the policy cannot write new items under {'DeepSpeed ZeRO-3' if zero3 else 'FSDP'}",
            got=f"maintenance_frequency {frequency}",
            expected="a writer of its own: SGSDTrainer(writer=...)",
            remedy="no process holds the whole model there",
        )
