"""Run by test_vllm_rollouts.py where vLLM is installed: three steps on the rollouts of vLLM in this process, on a CPU.

Arguments: a folder, and ``keep`` to have vLLM's CPU layers keep their weights. Without it they pack them for oneDNN as
they load and drop what TRL would write the policy's new weights to.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path

os.environ |= {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}
sys.path.insert(0, str(Path(__file__).parents[3]))
warnings.filterwarnings("ignore")

import torch  # noqa: E402
import vllm.model_executor.layers.utils as layers  # noqa: E402
from tests.conftest import make_model, make_tokenizer  # noqa: E402
from tests.trainers.tiny import make_trainer  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402


def plain_linear(layer, remove_weight) -> None:
    layer.cpu_linear = torch.nn.functional.linear


def main() -> None:
    folder = Path(sys.argv[1])
    if "keep" in sys.argv[2:]:
        layers.dispatch_cpu_unquantized_gemm = plain_linear
    make_model(hidden_size=128).save_pretrained(folder / "model")  # heads of 32: vLLM's kernels want that many
    make_tokenizer().save_pretrained(folder / "model")
    trainer = make_trainer(
        folder / "run",
        model=AutoModelForCausalLM.from_pretrained(folder / "model"),
        use_vllm=True,
        vllm_mode="colocate",
        vllm_max_model_length=1024,
        vllm_importance_sampling_correction=True,
        vllm_importance_sampling_mode="token_truncate",
        objective="correction",
        teacher_trust="equal",
        grpo_weight=1.0,
        num_generations=2,
        learning_rate=0.05,
        lr_scheduler_type="constant",
        max_steps=3,
        temperature=1.0,
        top_p=1.0,
        top_k=0,
    )
    print("the engine has started", flush=True)
    trainer.train()
    (folder / "logs.json").write_text(json.dumps(trainer.state.log_history))


if __name__ == "__main__":
    main()
