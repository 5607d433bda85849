"""Ranking, pairing and weighting, against plain loops and by properties."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sgsd import retrieval
from sgsd.bank import Mistake, Origin, Skill, SkillBank
from sgsd.errors import ConfigError
from sgsd.retrieval import BM25Retriever, EmbeddingRetriever, RandomRetriever, Retriever, document


class TableEmbedder:
    """Vectors by text: given ones, or pseudo-random ones of the text alone. Records every call."""

    def __init__(self, table: dict[str, Sequence[float]] | None = None, name: str = "table", width: int = 5) -> None:
        self.name = name
        self.table = table or {}
        self.width = width
        self.calls: list[list[str]] = []

    def vector(self, text: str) -> NDArray[np.float32]:
        if text in self.table:
            raw = np.array(self.table[text], dtype=np.float64)
        else:
            seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])
            raw = np.random.default_rng(seed).normal(size=self.width)
        return (raw / np.linalg.norm(raw)).astype(np.float32)

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self.calls.append(list(texts))
        return np.stack([self.vector(text) for text in texts])

    @property
    def embedded(self) -> list[str]:
        return [text for call in self.calls for text in call]


def make_bank(skills: int, mistakes: int) -> SkillBank:
    return SkillBank(
        tuple(Skill(f"s{i}", f"title {i}", f"do thing {i}", f"when {i}") for i in range(skills)),
        tuple(Mistake(f"m{i}", f"slip {i}", f"wrong thing {i}", f"avoid {i}") for i in range(mistakes)),
    )


BANK = make_bank(6, 4)
QUERIES = ["What is asked?", "How many are left?", "Find the remainder."]
RETRIEVERS: list[Callable[[], Retriever]] = [
    lambda: EmbeddingRetriever(TableEmbedder()),
    BM25Retriever,
    lambda: RandomRetriever(seed=3),
]


def ids(retriever: Retriever, query: str, bank: SkillBank = BANK, k: int = 3) -> list[tuple[str, str]]:
    (got,) = retriever.retrieve([query], bank, k)
    return [(pair.skill.id, pair.mistake.id) for pair in got.pairs]


class TestEveryRetriever:
    @pytest.mark.parametrize("make", RETRIEVERS)
    @pytest.mark.parametrize("bank", [BANK, make_bank(3, 0), make_bank(0, 2)])
    def test_items_alone_are_ranked_in_one_list(self, make: Callable[[], Retriever], bank: SkillBank) -> None:
        for k in (1, 3, 100):
            for got in make().retrieve(QUERIES, bank, k, alone=True):
                items = [item for pair in got.pairs for item in pair.items]
                assert len(items) == len(got.pairs) == min(k, len(bank.items))
                assert set(items) <= set(bank.items)
                assert len(set(items)) == len(items)
                assert sum(got.weights) == pytest.approx(1)
                scores = [pair.similarity for pair in got.pairs if pair.similarity is not None]
                assert scores == sorted(scores, reverse=True)

    @pytest.mark.parametrize("make", RETRIEVERS)
    def test_there_is_one_retrieval_per_query_in_order_whatever_the_other_queries(
        self, make: Callable[[], Retriever]
    ) -> None:
        alone = [make().retrieve([query], BANK, 3)[0] for query in QUERIES]
        for order in itertools.permutations(range(3)):
            assert make().retrieve([QUERIES[i] for i in order], BANK, 3) == [alone[i] for i in order]
        assert make().retrieve([QUERIES[0]] * 2, BANK, 3) == [alone[0]] * 2

    @pytest.mark.parametrize("make", RETRIEVERS)
    @given(k=st.integers(1, 9), skills=st.integers(0, 5), mistakes=st.integers(0, 5))
    @settings(max_examples=25, deadline=None)
    def test_k_is_capped_weights_sum_to_one_and_no_item_comes_twice(
        self, make: Callable[[], Retriever], k: int, skills: int, mistakes: int
    ) -> None:
        for got in make().retrieve(QUERIES, make_bank(skills, mistakes), k):
            count = min(k, skills, mistakes)
            assert len(got.pairs) == len(got.weights) == count
            assert len({pair.skill.id for pair in got.pairs}) == count
            assert len({pair.mistake.id for pair in got.pairs}) == count
            assert all(weight > 0 for weight in got.weights)
            if count:
                assert math.isclose(sum(got.weights), 1.0, rel_tol=1e-12)

    @pytest.mark.parametrize("make", RETRIEVERS)
    def test_no_queries_give_no_retrievals_and_k_below_one_is_refused(self, make: Callable[[], Retriever]) -> None:
        assert make().retrieve([], BANK, 3) == []
        with pytest.raises(ConfigError, match="got 0; expected at least 1"):
            make().retrieve(QUERIES, BANK, 0)


class TestEmbedding:
    def test_it_equals_a_plain_loop_over_the_definition(self) -> None:
        embedder, temperature, k = TableEmbedder(), 0.5, 3
        for query, got in zip(
            QUERIES, EmbeddingRetriever(embedder, temperature=temperature).retrieve(QUERIES, BANK, k), strict=True
        ):

            def cosine(text: str, query: str = query) -> float:
                return sum(
                    float(a) * float(b) for a, b in zip(embedder.vector(query), embedder.vector(text), strict=True)
                )

            skills = sorted(BANK.skills, key=lambda skill: -cosine(document(skill)))[:k]
            mistakes = sorted(BANK.mistakes, key=lambda mistake: -cosine(document(mistake)))[:k]
            means = [(cosine(document(s)) + cosine(document(m))) / 2 for s, m in zip(skills, mistakes, strict=True)]
            total = sum(math.exp(mean / temperature) for mean in means)
            assert [(p.skill, p.mistake) for p in got.pairs] == list(zip(skills, mistakes, strict=True))
            assert [p.similarity for p in got.pairs] == pytest.approx(means, abs=1e-12)
            assert got.weights == pytest.approx([math.exp(mean / temperature) / total for mean in means], abs=1e-12)

    def test_ties_go_to_the_item_that_comes_first_in_the_bank(self) -> None:
        # Enough items for an unstable sort to show, with ids against bank order.
        bank = SkillBank(
            tuple(Skill(f"s{40 - i}", "", f"s{i}") for i in range(40)),
            tuple(Mistake(f"m{40 - i}", "", f"m{i}") for i in range(40)),
        )
        table = {item.text: [0.6, 0.8] for item in bank.items} | {"q": [1.0, 0.0], "s7": [1.0, 0.0]}
        (got,) = EmbeddingRetriever(TableEmbedder(table)).retrieve(["q"], bank, 40)
        assert [p.skill for p in got.pairs] == [bank.skills[7], *bank.skills[:7], *bank.skills[8:]]
        assert [p.mistake for p in got.pairs] == list(bank.mistakes)

    def test_differences_as_small_as_the_noise_of_batching_are_ties(self) -> None:
        table = {
            "q": [1.0, 0.0],
            "x": [0.6, 0.8],
            "y": [0.6000003, 0.7999998],
            "z": [0.60001, 0.79999],
            "m": [1.0, 0.0],
        }
        bank = SkillBank(
            tuple(Skill(text, "", text) for text in "xyz"), tuple(Mistake(f"m{i}", "m", f"{i}") for i in "abc")
        )
        embedder = TableEmbedder(table | {f"m\n{i}": [1.0, 0.0] for i in "abc"})
        assert embedder.vector("y")[0] > embedder.vector("x")[0]
        (got,) = EmbeddingRetriever(embedder).retrieve(["q"], bank, 3)
        assert [p.skill.id for p in got.pairs] == ["z", "x", "y"]

    def test_each_text_is_embedded_once_in_one_call_a_batch(self) -> None:
        embedder = TableEmbedder()
        retriever = EmbeddingRetriever(embedder)
        for _ in range(3):
            retriever.retrieve([*QUERIES, QUERIES[0]], BANK, 2)
        assert len(embedder.calls) == 1
        assert sorted(embedder.embedded) == sorted([*QUERIES, *map(document, BANK.items)])

    def test_a_changed_bank_embeds_its_new_items_only(self) -> None:
        embedder = TableEmbedder()
        retriever = EmbeddingRetriever(embedder)
        retriever.retrieve(QUERIES, BANK, 2)
        new = Mistake.new("new slip", origin=Origin.ONLINE)
        retriever.retrieve(QUERIES, BANK.without(["s0"]).with_items([new]), 2)
        assert embedder.calls[1:] == [["new slip"]]

    def test_the_problem_that_was_used_longest_ago_is_forgotten_and_no_item(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for most, embedded in ((1, ["a", "b", "a", "c", "a"]), (2, ["a", "b", "c"])):
            monkeypatch.setattr(retrieval, "MOST_PROBLEMS", most)
            embedder = TableEmbedder()
            retriever = EmbeddingRetriever(embedder)
            for query in ["a", "b", "a", "c", "a"]:
                assert len(retriever.retrieve([query], BANK, 2)) == 1
            assert [text for text in embedder.embedded if len(text) == 1] == embedded
            assert len(embedder.embedded) == len(embedded) + len(BANK.items)
            assert retriever.retrieve(QUERIES, BANK, 3) == EmbeddingRetriever(TableEmbedder()).retrieve(
                QUERIES, BANK, 3
            )

    def test_a_problem_that_reads_like_an_item_is_embedded_once(self) -> None:
        embedder = TableEmbedder()
        retriever = EmbeddingRetriever(embedder)
        for _ in range(2):
            (got,) = retriever.retrieve([document(BANK.skills[2])], BANK, 1)
            assert got.pairs[0].skill is BANK.skills[2]
        assert embedder.embedded.count(document(BANK.skills[2])) == 1

    def test_the_prompt_goes_before_queries_alone(self) -> None:
        embedder = TableEmbedder()
        EmbeddingRetriever(embedder, query_prompt="Query: ").retrieve(["x"], BANK, 1)
        assert embedder.embedded == ["Query: x", *map(document, BANK.items)]

    def test_an_item_is_embedded_as_title_text_and_when(self) -> None:
        assert document(BANK.skills[0]) == "title 0\ndo thing 0\nwhen 0"
        assert document(BANK.mistakes[0]) == "slip 0\nwrong thing 0"
        assert document(Skill("a", "", "text")) == "text"

    def test_the_full_text_of_a_mistake_says_how_to_avoid_it_too(self) -> None:
        embedder = TableEmbedder()
        EmbeddingRetriever(embedder, item_text="full").retrieve(["x"], BANK, 1)
        assert "slip 0\nwrong thing 0\navoid 0" in embedder.embedded
        assert "title 0\ndo thing 0\nwhen 0" in embedder.embedded

    def test_bm25_searches_the_full_text_where_it_is_asked_to(self) -> None:
        bank = SkillBank((Skill("s", "", "x"),), (Mistake("far", "a", "b", "c"), Mistake("near", "a", "b", "carry")))
        found = {
            text: BM25Retriever(item_text=text).retrieve(["carry"], bank, 1)[0].pairs[0].mistake.id
            for text in ("topic", "full")
        }
        assert found == {"topic": "far", "full": "near"}

    def test_an_unknown_item_text_is_refused(self) -> None:
        with pytest.raises(ConfigError, match="item_text"):
            EmbeddingRetriever(TableEmbedder(), item_text="all")

    def test_an_empty_bank_embeds_nothing(self) -> None:
        embedder = TableEmbedder()
        (got,) = EmbeddingRetriever(embedder).retrieve(["x"], make_bank(3, 0), 2)
        assert (got.pairs, got.weights, embedder.calls) == ((), (), [])

    @pytest.mark.parametrize("temperature", [0.0, -1.0, math.inf, math.nan])
    def test_a_temperature_out_of_range_is_refused(self, temperature: float) -> None:
        with pytest.raises(ConfigError, match="temperature is out of range"):
            EmbeddingRetriever(TableEmbedder(), temperature=temperature)

    @pytest.mark.parametrize(
        ("rows", "message"),
        [
            (np.ones((13, 4)), "length 2"),
            (np.full((13, 4), np.nan), "length nan"),
            (np.zeros((13, 4)), "length 0"),
            (np.ones((12, 1)), r"shape \(12, 1\)"),
            (np.ones(13), "shape"),
        ],
    )
    def test_an_embedder_without_one_unit_row_a_text_is_named(self, rows: NDArray[np.float64], message: str) -> None:
        embedder = TableEmbedder()
        embedder.embed = lambda texts: rows.astype(np.float32)
        with pytest.raises(ConfigError, match=f"embedder 'table' returned.*{message}"):
            EmbeddingRetriever(embedder).retrieve(QUERIES, BANK, 2)


class TestBM25:
    BANK = SkillBank(
        (
            Skill("s0", "", "Percent of what base"),
            Skill("s1", "", "Remainder modulo seven"),
            Skill("s2", "", "余数与整除"),
        ),
        (
            Mistake("m0", "", "Ignores the remainder"),
            Mistake("m1", "", "Wrong percent base"),
            Mistake("m2", "", "Slip"),
        ),
    )

    def test_items_that_share_rare_words_come_first_and_weights_are_uniform(self) -> None:
        (got,) = BM25Retriever().retrieve(["Find the REMAINDER modulo 7"], self.BANK, 3)
        assert [(p.skill.id, p.mistake.id) for p in got.pairs] == [("s1", "m0"), ("s0", "m1"), ("s2", "m2")]
        assert got.weights == (1 / 3,) * 3
        assert [p.similarity for p in got.pairs] == [None] * 3

    def test_scores_equal_the_published_formula(self) -> None:
        (scores,) = BM25Retriever()._scores(["percent"], self.BANK, False)
        # Lucene: idf · tf / (tf + k1 (1 - b + b · length / mean length)), idf = ln(1 + (N - n + 0.5) / (n + 0.5)).
        idf = math.log(1 + (3 - 1 + 0.5) / (1 + 0.5))
        skill = idf / (1 + 1.5 * (0.25 + 0.75 * 4 / ((4 + 3 + 5) / 3)))
        mistake = idf / (1 + 1.5 * (0.25 + 0.75 * 3 / ((3 + 3 + 1) / 3)))
        assert scores == pytest.approx([skill, 0, 0, 0, mistake, 0], rel=1e-5)

    def test_rules_alone_are_scored_by_one_index_whatever_their_kind(self) -> None:
        """In an index of its own, each word of the only prohibition would be common, and worth little."""
        greets = [Skill(f"s{n}", "", f"Always greet customer number {n} politely") for n in range(19)]
        refund = "Never refund a voucher without approval."
        last = Skill("s19", "", "Round amounts up.")
        query = "May I refund a voucher without approval if the amounts match?"
        scored = []
        for bank in (
            SkillBank((*greets, last), (Mistake("r", "", refund),)),
            SkillBank((*greets, last, Skill("r", "", refund))),
        ):
            (got,) = BM25Retriever().retrieve([query], bank, 2, alone=True)
            assert [item.id for pair in got.pairs for item in pair.items] == ["r", "s19"]
            (scores,) = BM25Retriever()._scores([query], bank, True)
            scored.append(scores.tolist())
        assert scored[0] == scored[1]

    def test_an_index_of_rules_does_not_serve_pairs(self) -> None:
        retriever = BM25Retriever()
        for alone in (False, True, False):
            ((fresh,), (scores,)) = (
                each._scores(["percent"], self.BANK, alone) for each in (BM25Retriever(), retriever)
            )
            assert scores.tolist() == fresh.tolist()

    def test_chinese_is_matched_character_by_character(self) -> None:
        assert ids(BM25Retriever(), "求这个数的余数", self.BANK, 1)[0][0] == "s2"

    def test_without_a_common_word_the_bank_order_holds(self) -> None:
        for query in ["zebra", "", "!?"]:
            assert ids(BM25Retriever(), query, self.BANK) == [("s0", "m0"), ("s1", "m1"), ("s2", "m2")]

    def test_items_without_words_are_no_trouble(self) -> None:
        assert ids(BM25Retriever(), "x", SkillBank((Skill("a", "", "!"),), (Mistake("b", "", "?"),))) == [("a", "b")]

    def test_a_changed_bank_is_indexed_anew(self) -> None:
        retriever = BM25Retriever()
        assert ids(retriever, "zebra", self.BANK, 1) == [("s0", "m0")]
        grown = self.BANK.with_items([Skill("s3", "", "Zebra"), Mistake("m3", "", "zebra")])
        assert ids(retriever, "zebra", grown, 1) == [("s3", "m3")]


class TestRandom:
    def test_the_draw_is_pinned(self) -> None:
        assert ids(RandomRetriever(seed=0), "q") == [("s5", "m2"), ("s0", "m3"), ("s1", "m1")]

    def test_the_order_of_the_bank_does_not_matter_and_an_added_item_reshuffles_nothing(self) -> None:
        turned = SkillBank(BANK.skills[::-1], BANK.mistakes[::-1])
        assert ids(RandomRetriever(), "q") == ids(RandomRetriever(), "q", turned)
        grown = BANK.with_items([Skill("new", "", "new")])
        before = [skill for skill, _ in ids(RandomRetriever(), "q", k=4)]
        after = [skill for skill, _ in ids(RandomRetriever(), "q", grown, k=4) if skill != "new"]
        assert before[: len(after)] == after
