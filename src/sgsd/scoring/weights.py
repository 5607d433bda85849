"""The teachers' weights: the policy's current ones, its initial ones, or a copy that follows the policy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import DistributedType
from torch import nn

from sgsd.errors import CheckpointError, ConfigError

TEACHERS = ("live", "frozen", "ema", "periodic")


class TeacherWeights:
    """The weights that teachers score with.

    ``live``: the policy's current weights. ``frozen``: its initial weights. ``ema``: an exponential moving average of
    its weights. ``periodic``: a copy renewed every ``sync_steps`` steps. Only trainable parameters are copied (with
    LoRA, the adapter's); they replace the policy's while teachers score. The average is kept in float32, since an
    update of 1 % can round to zero in bfloat16. A frozen teacher of a new adapter needs no copy: the adapter is
    disabled.

    Args:
        model: the policy, unwrapped, before training.
        kind: one of ``TEACHERS``.
        adapter_off: disable the adapter in place of a frozen copy; see ``trainers.model.is_initial_without_adapter``.
        ema_decay, sync_steps: see ``DistillationConfig``.
    """

    def __init__(
        self, model: nn.Module, kind: str, *, adapter_off: bool = False, ema_decay: float = 0.99, sync_steps: int = 25
    ) -> None:
        self.kind = kind
        self._model = model
        self._ema_decay = ema_decay
        self._sync_steps = sync_steps
        self._adapter_off = kind == "frozen" and adapter_off
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        copied = self._parameters if kind != "live" and not self._adapter_off else []
        dtype = torch.float32 if kind == "ema" else None
        self._held = [parameter.detach().to(dtype=dtype, copy=True) for parameter in copied]

    @property
    def saved(self) -> bool:
        """Whether checkpoints contain these weights; a frozen teacher is copied again from the initial policy."""
        return self.kind in ("ema", "periodic")

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Context in which the policy's module has the teachers' weights, and no dropout.

        Autocast keeps the casts of a parameter, whatever its data; so its cache is cleared at both changes of weights.
        """
        training = self._model.training
        self._model.eval()
        own = [parameter.data for parameter in self._parameters] if self._held else []
        try:
            if self._adapter_off:
                with self._model.disable_adapter():  # pyright: ignore[reportCallIssue]
                    yield
                return
            for parameter, held in zip(self._parameters, self._held, strict=False):
                parameter.data = held.to(parameter)
            if self._held:
                torch.clear_autocast_cache()
            yield
        finally:
            for parameter, data in zip(self._parameters, own, strict=False):
                parameter.data = data
            if self._held:
                torch.clear_autocast_cache()
            self._model.train(training)

    def after_optimizer_step(self, step: int) -> None:
        """Update the copy: every step for ``ema``, every ``sync_steps`` steps for ``periodic``."""
        if self.kind == "ema":
            for held, parameter in zip(self._held, self._parameters, strict=True):
                held.lerp_(parameter.detach().to(held), 1 - self._ema_decay)
        elif self.kind == "periodic" and step % self._sync_steps == 0:
            for held, parameter in zip(self._held, self._parameters, strict=True):
                held.copy_(parameter.detach())

    def state_dict(self) -> dict[str, Any]:
        """The copies, named by position among the trainable parameters."""
        return {f"{index:05d}": held for index, held in enumerate(self._held)}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Load saved copies.

        Raises:
            CheckpointError: their number or shapes do not fit this model.
        """
        own = self.state_dict()
        if {name: held.shape for name, held in own.items()} != {name: held.shape for name, held in saved.items()}:
            raise CheckpointError(
                "the checkpoint's teacher weights do not fit the model", got=f"{len(saved)} tensors", expected=len(own)
            )
        for name, held in own.items():
            held.copy_(saved[name])


def partitioned_by(accelerator: Any) -> str | None:
    """The name of what partitions the parameters over processes, DeepSpeed ZeRO-3 or FSDP; ``None`` if nothing does."""
    plugin = accelerator.state.deepspeed_plugin
    if plugin is not None and plugin.zero_stage == 3:
        return "DeepSpeed ZeRO-3"
    return "FSDP" if accelerator.distributed_type == DistributedType.FSDP else None


def refuse_partitioned_copies(kind: str, accelerator: Any, *, needs_copy: bool) -> None:
    """Refuse copied teacher weights under DeepSpeed ZeRO-3 and FSDP, which partition the parameters.

    Under FSDP, replacing ``parameter.data`` would have no effect: a frozen teacher would be a live one.

    Raises:
        ConfigError: the teacher needs a copy, under ZeRO-3 or FSDP.
    """
    partitioned = partitioned_by(accelerator)
    if needs_copy and partitioned:
        raise ConfigError(
            f"teacher '{kind}' does not work under {partitioned}",
            expected="teacher live, or frozen with a new LoRA adapter",
            remedy="or use DDP or ZeRO-2",
        )
