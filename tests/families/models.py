"""One tiny model of random weights of each family, made from its configuration: nothing is downloaded.

Vocabulary and special tokens are those of ``tests/conftest.py``'s tokenizer. Every model is a few layers of width 32,
with all kinds of layers its family has; what scales or caps logits, attention or embeddings is set, and set to bite;
windows are shorter than the tests' prompts. Weights are large: two logits differ by nats, and an error shows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
import transformers
from transformers import LlamaForCausalLM, PreTrainedModel

VOCABULARY = 264
EOS = 1
LONGROPE_SWITCH = 40  # tokens; a row longer than this takes the other factors, from its first token on
NTK_SWITCH = 40


@dataclass(frozen=True)
class Family:
    """How to make a model of one family.

    Attributes:
        architecture: its causal class in ``transformers``.
        config: its configuration's class there.
        settings: of the configuration, on top of ``COMMON``; ``None`` leaves one of these out.
        experts: whether it routes tokens to experts, and TRL adds the router's loss.
        rounds: whether rounding in bfloat16 changes scores by little: no router, and a forward in that type.
        lora: target modules; PEFT refuses some of all linear layers of Mamba's.
    """

    architecture: str
    config: str
    settings: dict[str, Any] = field(default_factory=dict)
    experts: bool = False
    rounds: bool = True
    lora: str = "all-linear"


COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "initializer_range": 0.3,
    "eos_token_id": EOS,
    "bos_token_id": None,
}
HEAD = {"head_dim": 8}
WINDOWS = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8}
CAPS = {"query_pre_attn_scalar": 8, "final_logit_softcapping": 3.0, "attn_logit_softcapping": 2.0}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "router_aux_loss_coef": 0.1}
DELTA = {  # Qwen's gated delta rule
    "num_hidden_layers": 3,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
MAMBA = {
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_n_groups": 1,
    "mamba_d_state": 16,
    "mamba_d_conv": 4,
    "mamba_expand": 2,
    "mamba_chunk_size": 16,
}
LORA_BESIDE_MAMBA = r".*\.(q_proj|k_proj|v_proj|o_proj|up_proj|down_proj|in_proj)"
GRANITE = {"embedding_multiplier": 3.0, "residual_multiplier": 0.7, "attention_multiplier": 0.3}
GRANITE_4 = (
    MAMBA
    | GRANITE
    | {
        "logits_scaling": 8.0,
        "layer_types": ["mamba", "attention"],
        "shared_intermediate_size": 32,
        "position_embedding_type": "rope",
    }
)

FAMILIES: dict[str, Family] = {
    "llama": Family("LlamaForCausalLM", "LlamaConfig"),
    "qwen2": Family("Qwen2ForCausalLM", "Qwen2Config", {"tie_word_embeddings": True}),
    "qwen3": Family("Qwen3ForCausalLM", "Qwen3Config", HEAD),
    "qwen3-moe": Family("Qwen3MoeForCausalLM", "Qwen3MoeConfig", HEAD | EXPERTS, experts=True, rounds=False),
    "qwen3.5": Family("Qwen3_5ForCausalLM", "Qwen3_5TextConfig", HEAD | DELTA),
    "qwen3-next": Family(
        "Qwen3NextForCausalLM",
        "Qwen3NextConfig",
        HEAD | DELTA | EXPERTS | {"shared_expert_intermediate_size": 16},
        experts=True,
        rounds=False,
    ),
    "mistral": Family("MistralForCausalLM", "MistralConfig", HEAD | {"sliding_window": 28}),
    "gemma-2": Family("Gemma2ForCausalLM", "Gemma2Config", HEAD | WINDOWS | CAPS),
    "gemma-3": Family("Gemma3ForCausalLM", "Gemma3TextConfig", HEAD | WINDOWS | CAPS),
    "gemma-4": Family(
        "Gemma4ForCausalLM",
        "Gemma4TextConfig",
        HEAD
        | WINDOWS
        | {
            "num_hidden_layers": 4,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "num_kv_shared_layers": 2,
            "final_logit_softcapping": 3.0,
            "vocab_size_per_layer_input": VOCABULARY,
            "hidden_size_per_layer_input": 8,
        },
    ),
    "granite": Family("GraniteForCausalLM", "GraniteConfig", GRANITE | {"logits_scaling": 8.0}),
    "granite-4": Family(
        "GraniteMoeHybridForCausalLM",
        "GraniteMoeHybridConfig",
        GRANITE_4 | {"num_local_experts": 4, "num_experts_per_tok": 2, "router_aux_loss_coef": 0.1},
        experts=True,
        rounds=False,
    ),
    "granite-4-dense": Family(
        "GraniteMoeHybridForCausalLM",
        "GraniteMoeHybridConfig",
        GRANITE_4 | {"num_local_experts": 0, "num_experts_per_tok": 0},
    ),
    "cohere-2": Family("Cohere2ForCausalLM", "Cohere2Config", WINDOWS | {"logit_scale": 0.25}),
    "phi-3": Family(
        "Phi3ForCausalLM",
        "Phi3Config",
        {
            "original_max_position_embeddings": LONGROPE_SWITCH,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "short_factor": [1.0, 1.1, 1.2, 1.3],
                "long_factor": [1.5, 3.0, 6.0, 12.0],
                "original_max_position_embeddings": LONGROPE_SWITCH,
            },
        },
    ),
    "olmo-2": Family("Olmo2ForCausalLM", "Olmo2Config"),
    "smollm3": Family("SmolLM3ForCausalLM", "SmolLM3Config", {"no_rope_layers": [1, 0], "use_sliding_window": False}),
    "gpt-oss": Family(
        "GptOssForCausalLM",
        "GptOssConfig",
        HEAD
        | WINDOWS
        | {
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "intermediate_size": 32,
            "router_aux_loss_coef": 0.1,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 256,
            },
        },
        experts=True,
        rounds=False,
    ),
    "deepseek-v3": Family(
        "DeepseekV3ForCausalLM",
        "DeepseekV3Config",
        {
            "num_key_value_heads": 4,
            "moe_intermediate_size": 16,
            "n_routed_experts": 4,
            "n_group": 2,
            "topk_group": 1,
            "num_experts_per_tok": 2,
            "first_k_dense_replace": 1,
            "kv_lora_rank": 16,
            "q_lora_rank": 16,
            "qk_rope_head_dim": 4,
            "qk_nope_head_dim": 8,
            "v_head_dim": 8,
            "num_mtp_layers": 0,
        },
    ),
    "falcon-h1": Family(
        "FalconH1ForCausalLM",
        "FalconH1Config",
        MAMBA
        | {
            "mamba_d_ssm": 64,
            "lm_head_multiplier": 0.4,
            "embedding_multiplier": 2.0,
            "key_multiplier": 0.5,
            "attention_out_multiplier": 0.8,
            "ssm_out_multiplier": 0.7,
        },
        lora=LORA_BESIDE_MAMBA,
    ),
    "lfm2": Family(
        "Lfm2ForCausalLM",
        "Lfm2Config",
        {"layer_types": ["conv", "full_attention", "conv"], "num_hidden_layers": 3, "block_auto_adjust_ff_dim": False},
    ),
}
"""The families that must train."""

ODD: dict[str, Family] = {
    "cohere": Family("CohereForCausalLM", "CohereConfig", {"logit_scale": 0.25}),
    "gemma-3n": Family(
        "Gemma3nForCausalLM",
        "Gemma3nTextConfig",
        HEAD
        | WINDOWS
        | {
            "num_hidden_layers": 4,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "num_kv_shared_layers": 2,
            "final_logit_softcapping": 3.0,
            "vocab_size_per_layer_input": VOCABULARY,
            "hidden_size_per_layer_input": 8,
            "laurel_rank": 8,
            "activation_sparsity_pattern": [0.5, 0.5, 0.0, 0.0],
        },
    ),
    "llama-4": Family(
        "Llama4ForConditionalGeneration",
        "Llama4Config",
        dict.fromkeys([*COMMON, "pad_token_id"])
        | {
            "text_config": COMMON
            | HEAD
            | {
                "intermediate_size_mlp": 64,
                "num_local_experts": 4,
                "num_experts_per_tok": 1,
                "attention_chunk_size": 8,
                "no_rope_layers": [1, 0],
                "floor_scale": 16,
                "attn_scale": 0.5,
                "pad_token_id": EOS,
            },
            "vision_config": {
                "hidden_size": 32,
                "intermediate_size": 128,
                "num_hidden_layers": 1,
                "num_attention_heads": 4,
                "image_size": 28,
                "patch_size": 14,
                "projector_input_dim": 32,
                "projector_output_dim": 32,
                "vision_output_dim": 32,
            },
            "image_token_index": VOCABULARY - 1,
        },
        rounds=False,
        lora=r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|up_proj|down_proj)",
    ),
    "minicpm3": Family(
        "MiniCPM3ForCausalLM",
        "MiniCPM3Config",
        {
            "num_key_value_heads": 4,
            "kv_lora_rank": 16,
            "q_lora_rank": 16,
            "qk_nope_head_dim": 8,
            "qk_rope_head_dim": 4,
            "v_head_dim": 8,
            "dim_model_base": 8,
            "scale_emb": 3,
        },
    ),
    "recurrent-gemma": Family(
        "RecurrentGemmaForCausalLM",
        "RecurrentGemmaConfig",
        {
            "num_hidden_layers": 3,
            "lru_width": 32,
            "attention_window_size": 8,
            "logits_soft_cap": 12.0,
            "w_init_variance_scale": 4.0,
            "max_position_embeddings": None,
        },
    ),
    "nemotron-h": Family(
        "NemotronHForCausalLM",
        "NemotronHConfig",
        HEAD
        | {
            "num_hidden_layers": None,
            "layers_block_type": ["mamba", "attention", "moe"],
            "ssm_state_size": 16,
            "mamba_num_heads": 8,
            "mamba_head_dim": 8,
            "n_groups": 1,
            "chunk_size": 16,
            "n_routed_experts": 4,
            "moe_intermediate_size": 16,
            "moe_shared_expert_intermediate_size": 16,
        },
        lora=LORA_BESIDE_MAMBA,
    ),
    "bamba": Family(
        "BambaForCausalLM",
        "BambaConfig",
        MAMBA | {"attn_layer_indices": [1], "z_loss_coefficient": 0.1},
    ),
    "jamba": Family(
        "JambaForCausalLM",
        "JambaConfig",
        {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "router_aux_loss_coef": 0.1,
        },
        experts=True,
        rounds=False,
    ),
    "mamba-2": Family(
        "Mamba2ForCausalLM",
        "Mamba2Config",
        {
            "num_heads": 8,
            "head_dim": 8,
            "state_size": 16,
            "n_groups": 1,
            "chunk_size": 16,
            "intermediate_size": None,
            "num_attention_heads": None,
            "num_key_value_heads": None,
            "max_position_embeddings": None,
        },
        lora=LORA_BESIDE_MAMBA,
    ),
    "bloom": Family(
        "BloomForCausalLM",
        "BloomConfig",
        {
            "n_head": 4,
            "n_layer": 2,
            "intermediate_size": None,
            "num_attention_heads": None,
            "num_key_value_heads": None,
            "num_hidden_layers": None,
            "max_position_embeddings": None,
        },
    ),
    "opt": Family(
        "OPTForCausalLM",
        "OPTConfig",
        {
            "ffn_dim": 64,
            "word_embed_proj_dim": 16,
            "do_layer_norm_before": False,
            "dropout": 0.0,
            "init_std": 0.3,
            "intermediate_size": None,
            "num_key_value_heads": None,
        },
    ),
    "gpt-2": Family(
        "GPT2LMHeadModel",
        "GPT2Config",
        {
            "resid_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "attn_pdrop": 0.0,
            "intermediate_size": None,
            "num_key_value_heads": None,
        },
    ),
    "llama-ntk": Family(
        "LlamaForCausalLM",
        "LlamaConfig",
        {
            "max_position_embeddings": NTK_SWITCH,
            "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0},
        },
    ),
}
"""Heads, positions and states of other kinds, where mistakes hide."""


def make(
    name: str,
    *,
    dtype: torch.dtype = torch.float32,
    pad_id: int | None = EOS,
    seed: int = 0,
    implementation: Mapping[str, str] = MappingProxyType({}),
    **overrides: Any,
) -> PreTrainedModel:
    """A model of the family, in evaluation mode, of one seed's weights in every dtype.

    Args:
        pad_id: ``pad_token_id``; 0 makes the embedding of token 0 zero in most families.
        implementation: of ``attn_implementation`` and ``experts_implementation``, where not the default.
        overrides: of the configuration.
    """
    family = (FAMILIES | ODD)[name]
    settings = {"pad_token_id": pad_id} | COMMON | family.settings | overrides
    leave_out = {
        key for key, value in settings.items() if value is None and key not in ("bos_token_id", "pad_token_id")
    }
    config = getattr(transformers, family.config)(**{key: settings[key] for key in settings.keys() - leave_out})
    torch.manual_seed(seed)
    model = getattr(transformers, family.architecture)._from_config(config, dtype=dtype, **implementation)
    for part, weight in model.named_parameters():
        if part.endswith("linear_attn.A_log"):  # a state that lasts: as they are made, it is gone after a token
            torch.nn.init.uniform_(weight, -3, 0)
    return model.eval()


class SwallowsKeep(LlamaForCausalLM):
    """A model of older remote code: it takes any keyword, and gives the logits of all positions whatever is asked."""

    def forward(self, input_ids=None, attention_mask=None, position_ids=None, past_key_values=None, **kwargs):
        kwargs.pop("logits_to_keep", None)
        return super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            **kwargs,
        )


def make_swallowing(seed: int = 0) -> PreTrainedModel:
    """A ``SwallowsKeep`` of random weights."""
    torch.manual_seed(seed)
    return SwallowsKeep(transformers.LlamaConfig(**COMMON, pad_token_id=EOS)).eval()
