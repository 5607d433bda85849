from __future__ import annotations

import pytest
import torch

from sgsd.bank import Mistake, Skill, SkillBank
from sgsd.bank.documents import read_document
from sgsd.prompts import PromptRenderer
from sgsd.retrieval import Pair, Retrieval
from sgsd.scoring.logprobs import Scores
from sgsd.scoring.teachers import (
    TeacherPool,
    build_pool,
    control_prompt,
    control_scores,
    from_batch,
    teacher_scores,
    teachers_to_run,
    to_batch,
)


def pair(n, length=1):
    return Pair(Skill.new(f"s{n} " + "x" * length, origin="seed"), Mistake.new(f"m{n}", origin="seed"), 0.5)


@pytest.fixture
def renderer(tokenizer):
    return PromptRenderer(tokenizer, instruction="Go.")


def pool_of(pairs, weights, renderer, K=4, limit=10_000):
    return build_pool(
        "2 + 2?", Retrieval(tuple(pairs), tuple(weights)), renderer, num_teachers=K, max_prompt_length=limit
    )


def test_pairs_become_prompts_in_order_with_their_weights(renderer):
    pairs = [pair(n) for n in range(4)]
    pool = pool_of(pairs, [0.4, 0.3, 0.2, 0.1], renderer)
    assert list(pool.prompts) == [renderer.teacher_ids("2 + 2?", [p.items]) for p in pairs]
    assert pool.weights == pytest.approx((0.4, 0.3, 0.2, 0.1))
    assert pool.pairs == tuple(pairs)
    assert pool.too_long == 0


@pytest.mark.parametrize("count", [0, 1, 3])
def test_missing_teachers_are_not_made_up(renderer, count):
    pool = pool_of([pair(n) for n in range(count)], [1 / count] * count if count else [], renderer)
    assert len(pool.prompts) == len(pool.weights) == len(pool.pairs) == count
    assert sum(pool.weights) == pytest.approx(1 if count else 0)
    assert pool.too_long == 0


def test_more_pairs_than_teachers_are_cut_and_weighed_anew(renderer):
    pairs = [pair(n) for n in range(6)]
    pool = pool_of(pairs, [0.3, 0.3, 0.1, 0.1, 0.1, 0.1], renderer, K=3)
    assert pool.pairs == tuple(pairs[:3])
    assert pool.weights == pytest.approx((3 / 7, 3 / 7, 1 / 7))


def test_a_pair_that_does_not_fit_is_left_out_counted_and_its_weight_shared(renderer):
    pairs = [pair(0), pair(1, 500), pair(2), pair(3, 500)]
    limit = len(renderer.teacher_ids("2 + 2?", [pairs[0].items]))
    pool = pool_of(pairs, [0.4, 0.3, 0.2, 0.1], renderer, limit=limit)
    assert pool.pairs == (pairs[0], pairs[2])
    assert pool.weights == pytest.approx((2 / 3, 1 / 3))
    assert pool.too_long == 2
    assert list(pool.prompts) == [renderer.teacher_ids("2 + 2?", [p.items]) for p in (pairs[0], pairs[2])]


def test_weights_that_are_0_where_the_best_pair_does_not_fit_are_equal(renderer):
    pairs = [pair(0, 500), pair(1), pair(2)]
    limit = len(renderer.teacher_ids("2 + 2?", [pairs[1].items]))
    assert pool_of(pairs, [1.0, 0.0, 0.0], renderer, limit=limit).weights == (0.5, 0.5)


def test_a_control_shows_a_pair_that_no_teacher_has_drawn_anew_for_every_seed(renderer):
    pairs = [pair(n) for n in range(6)]
    bank = SkillBank(tuple(p.skill for p in pairs), tuple(p.mistake for p in pairs))
    pool = pool_of(pairs[:2], [0.5, 0.5], renderer)
    others = {
        tuple(renderer.teacher_ids("2 + 2?", [(skill, mistake)]))
        for skill in bank.skills[2:]
        for mistake in bank.mistakes[2:]
    }
    drawn = [
        tuple(control_prompt("2 + 2?", pool, bank, renderer, max_prompt_length=10_000, seed=seed))
        for seed in range(200)
    ]
    assert set(drawn) == others
    assert drawn[0] == tuple(control_prompt("2 + 2?", pool, bank, renderer, max_prompt_length=10_000, seed=0))


@pytest.mark.parametrize(("count", "limit"), [(2, 10_000), (3, 60)])
def test_where_there_is_no_other_pair_or_it_does_not_fit_there_is_no_control_prompt(renderer, count, limit):
    """A9: the caller counts it, and takes the plain prompt."""
    pairs = [pair(0), pair(1), pair(2, 500)][:count]
    bank = SkillBank(tuple(p.skill for p in pairs), tuple(p.mistake for p in pairs))
    pool = pool_of(pairs[:2], [0.5, 0.5], renderer)
    assert control_prompt("2 + 2?", pool, bank, renderer, max_prompt_length=limit, seed=0) is None


def drawn_controls(pool, bank, renderer):
    return [
        tuple(control_prompt("2 + 2?", pool, bank, renderer, max_prompt_length=10_000, seed=str(seed)))
        for seed in range(80)
    ]


def test_a_rule_teaches_alone_and_its_control_is_any_other_rule(renderer):
    """Also the only prohibition of a document has a control."""
    bank = SkillBank(tuple(pair(n).skill for n in range(3)), (pair(0).mistake,))
    for taught in (Pair(bank.skills[0], None, None), Pair(None, bank.mistakes[0], None)):
        pool = pool_of([taught], [1.0], renderer)
        assert pool.prompts == (renderer.teacher_ids("2 + 2?", [taught.items]),)
        others = {tuple(renderer.teacher_ids("2 + 2?", [(item,)])) for item in bank.items if item not in taught.items}
        assert set(drawn_controls(pool, bank, renderer)) == others


def test_the_draw_of_a_control_among_rules_of_one_kind_is_pinned(renderer):
    skills = tuple(pair(n).skill for n in range(4))
    pool = pool_of([Pair(skills[1], None, None)], [1.0], renderer)
    prompts = [tuple(renderer.teacher_ids("2 + 2?", [(skill,)])) for skill in skills]
    drawn = drawn_controls(pool, SkillBank(skills), renderer)
    assert "".join(str(prompts.index(one)) for one in drawn[:20]) == "23232232302220002023"


def test_a_documents_control_is_the_document_without_the_pairs_rule(renderer, tmp_path):
    file = tmp_path / "SKILL.md"
    file.write_text("# Rules\n\n- Add first.\n- Never divide.\n- Say please.\n", encoding="utf-8")
    bank = read_document(file)
    document = bank.metadata["document"]
    pool = build_pool(
        "2 + 2?",
        Retrieval((Pair(None, bank.mistakes[0], None),), (1.0,)),
        renderer,
        num_teachers=1,
        max_prompt_length=10_000,
        document=document,
    )
    assert pool.prompts == (renderer.teacher_ids("2 + 2?", document),)
    control = control_prompt("2 + 2?", pool, bank, renderer, max_prompt_length=10_000, seed="0", document=document)
    assert control == renderer.teacher_ids("2 + 2?", "# Rules\n\n- Add first.\n- Say please.")


# ---- which teachers are run, and their scores in a batch


def pools_of(*counts: int) -> list[TeacherPool]:
    return [TeacherPool(([5],) * n, (1 / max(1, n),) * n, tuple(pair(k) for k in range(n)), 0) for n in counts]


def asked(**settings):
    pools, outcomes, trust = pools_of(2, 2, 1, 0), [1, -1, 0, 1], [[1.0, 0.0], [0.0, 0.5], [1.0], []]
    options = {"read": {-1, 1}, "by_trust": False, "whole": [False] * 4} | settings
    return teachers_to_run(pools, outcomes, trust, **options)


def test_all_teachers_are_run_on_decided_rollouts_that_the_loss_reads():
    assert asked() == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert asked(read={-1}) == [(1, 0), (1, 1)]
    assert asked(read=set()) == []


def test_teachers_without_trust_are_not_run_where_the_loss_does_not_read_them():
    assert asked(by_trust=True) == [(0, 0), (1, 1)]
    assert asked(by_trust=True, read={-1}) == [(1, 1)]


def test_whole_pools_are_run_whatever_the_loss_reads_but_never_on_the_undecided():
    whole = [True, False, True, True]
    assert asked(by_trust=True, read={-1}, whole=whole) == [(0, 0), (0, 1), (1, 1)]


def scores_of(n: int, t: int, top: int = 0, others: int = 0) -> Scores:
    logps = torch.arange(1.0, n * t + 1).view(n, t)
    each = lambda M, of: logps.unsqueeze(-1) * 100 + torch.arange(M, dtype=of)  # noqa: E731
    return Scores(
        logps, logps > 0, None, each(top, torch.float32).long(), each(top, torch.float32), each(others, torch.float32)
    )


@pytest.mark.parametrize("top", [0, 3])
def test_scores_stand_at_their_rollout_and_teacher_and_the_rest_is_marked_as_not_scored(top):
    K, T, places = 3, 4, [(0, 1), (1, 0), (1, 1)]
    scores = scores_of(3, 2, top)
    teachers = teacher_scores(
        pools_of(2, 2, 0), [[0.5, 0.25], [1.0, 0.0], []], places, scores, num_teachers=K, length=T
    )
    assert teachers.logps.shape == (3, K, T)
    for b in range(3):
        for k in range(K):
            run = (b, k) in places
            assert teachers.scored[b, k] == run
            expected = torch.zeros(T)
            if run:
                expected[:2] = scores.logps[places.index((b, k))]
            assert torch.equal(teachers.logps[b, k], expected)
            if top and run:
                assert torch.equal(teachers.top_ids[b, k, :2], scores.top_ids[places.index((b, k))])
                assert torch.equal(teachers.top_logps[b, k, :2], scores.top_logps[places.index((b, k))])
    assert teachers.weights.tolist() == [[0.5, 0.5, 0], [0.5, 0.5, 0], [0, 0, 0]]
    assert teachers.trust.tolist() == [[0.5, 0.25, 1], [1, 0, 1], [1, 1, 1]]
    assert (teachers.top_ids is None) == (teachers.top_logps is None) == (not top)


def test_no_scores_at_all_are_a_batch_of_which_nothing_is_scored():
    scores = Scores.of_nothing(torch.device("cpu"), top_tokens=2)
    teachers = teacher_scores(pools_of(1, 0), [[1.0], []], [], scores, num_teachers=2, length=3)
    assert not teachers.scored.any()
    assert teachers.logps.shape == (2, 2, 3)
    assert teachers.top_ids.shape == teachers.top_logps.shape == (2, 2, 3, 2)


def test_a_controls_scores_of_the_teachers_tokens_stand_at_the_teacher_whose_tokens_they_are():
    B, K, T, M, t = 3, 2, 4, 3, 2
    teachers = teacher_scores(
        pools_of(2, 2, 2), [[1.0] * 2] * B, [(0, 0)], scores_of(1, t, M), num_teachers=K, length=T
    )
    scores = scores_of(2, t, others=K * M)
    control = control_scores(teachers, [2, 0], scores)
    assert control["control_logps"].shape == (B, T)
    assert control["control_top_logps"].shape == (B, K, T, M)
    for n, row in enumerate([2, 0]):
        assert torch.equal(control["control_logps"][row, :t], scores.logps[n])
        for k in range(K):
            others = scores.other_logps[n, :, k * M : (k + 1) * M]
            assert torch.equal(control["control_top_logps"][row, k, :t], others)
    assert not control["control_logps"][1].any()
    plain = teacher_scores(pools_of(1), [[1.0]], [(0, 0)], scores_of(1, t), num_teachers=1, length=T)
    assert set(control_scores(plain, [0], scores_of(1, t))) == {"control_logps"}


@pytest.mark.parametrize("top", [0, 3])
def test_scores_pass_through_a_batch_with_others(top):
    teachers = teacher_scores(pools_of(1, 1), [[1.0]] * 2, [(1, 0)], scores_of(1, 2, top), num_teachers=2, length=2)
    again = from_batch({"completion_ids": torch.zeros(2, 2)} | to_batch(teachers))
    for name, values in vars(teachers).items():
        assert (getattr(again, name) is None) if values is None else torch.equal(getattr(again, name), values), name
