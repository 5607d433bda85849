"""Models, samplers, writers and embedders of transformers, vLLM, OpenAI-compatible servers, sentence-transformers."""
