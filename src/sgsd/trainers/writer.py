"""Who writes new items during online maintenance: a writer that was given, a server, or the policy itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from accelerate import DistributedType

from sgsd.bank.writing import Writer
from sgsd.engines.writers import TransformersWriter
from sgsd.errors import ConfigError
from sgsd.trainers.config import SGSDConfig

if TYPE_CHECKING:
    from sgsd.engines.server_writer import ServerWriter

AT_ONCE = 16
"""Requests that the policy takes together: a batch of generation."""


def served_writer(args: SGSDConfig) -> ServerWriter | None:
    """The server that the settings name, if they name one.

    A request may take a quarter of the update's time, so that one that hangs is repeated before the time is over.

    Raises:
        ConfigError: the package openai is missing, the address is none, or there is no key for a remote server.
    """
    if args.maintenance_writer_url is None or args.maintenance_writer_model is None:
        return None
    from sgsd.engines.server_writer import ServerWriter

    return ServerWriter(
        args.maintenance_writer_model,
        base_url=args.maintenance_writer_url,
        timeout=min(600.0, args.maintenance_timeout / 4),
        retries=2,
    )


def policy_writer(policy: Any, tokenizer: Any, args: SGSDConfig, accelerator: Any) -> Writer:
    """The policy as its own bank's writer, held to the schema and without thoughts before the text.

    Args:
        policy: unwrapped.
        tokenizer: its own, with a chat template.
        args: the run's settings.
        accelerator: the trainer's.

    Raises:
        ConfigError: no process holds the whole policy; the tokenizer is none of the fast ones.
    """
    refuse_partitioned_policy(accelerator, frequency=args.maintenance_frequency)
    return TransformersWriter(
        policy,
        tokenizer,
        name="policy",
        batch_size=AT_ONCE,
        chat_template_kwargs={**(args.chat_template_kwargs or {}), "enable_thinking": False},
    )


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
            expected="a writer of its own: maintenance_writer_url, or SGSDTrainer(writer=...)",
            remedy="no process holds the whole model there",
        )
