from __future__ import annotations

import pytest

from sgsd.bank import Mistake, Skill, SkillBank
from sgsd.prompts import PromptRenderer
from sgsd.retrieval import Pair, Retrieval
from sgsd.scoring.teachers import build_pool, control_prompt


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
    assert list(pool.prompts) == [renderer.teacher_ids("2 + 2?", p.skill, p.mistake) for p in pairs]
    assert pool.weights == pytest.approx((0.4, 0.3, 0.2, 0.1))
    assert pool.pairs == tuple(pairs)
    assert pool.too_long == 0


@pytest.mark.parametrize("count", [0, 1, 3])
def test_missing_teachers_are_the_plain_prompt_with_weight_zero(renderer, count):
    pool = pool_of([pair(n) for n in range(count)], [1 / count] * count if count else [], renderer)
    assert len(pool.prompts) == len(pool.weights) == 4
    assert list(pool.prompts[count:]) == [renderer.student_ids("2 + 2?")] * (4 - count)
    assert pool.weights[count:] == (0.0,) * (4 - count)
    assert sum(pool.weights) == pytest.approx(1 if count else 0)
    assert len(pool.pairs) == count
    assert pool.too_long == 0


def test_more_pairs_than_teachers_are_cut_and_weighed_anew(renderer):
    pairs = [pair(n) for n in range(6)]
    pool = pool_of(pairs, [0.3, 0.3, 0.1, 0.1, 0.1, 0.1], renderer, K=3)
    assert pool.pairs == tuple(pairs[:3])
    assert pool.weights == pytest.approx((3 / 7, 3 / 7, 1 / 7))


def test_a_pair_that_does_not_fit_is_left_out_counted_and_its_weight_shared(renderer):
    pairs = [pair(0), pair(1, 500), pair(2), pair(3, 500)]
    limit = len(renderer.teacher_ids("2 + 2?", pairs[0].skill, pairs[0].mistake))
    pool = pool_of(pairs, [0.4, 0.3, 0.2, 0.1], renderer, limit=limit)
    assert pool.pairs == (pairs[0], pairs[2])
    assert pool.weights == pytest.approx((2 / 3, 1 / 3, 0, 0))
    assert pool.too_long == 2
    assert list(pool.prompts[:2]) == [renderer.teacher_ids("2 + 2?", p.skill, p.mistake) for p in (pairs[0], pairs[2])]
    assert max(map(len, pool.prompts)) <= limit  # whole prompts, never cut ones


def test_one_token_over_is_too_long(renderer):
    length = len(renderer.teacher_ids("2 + 2?", pair(0).skill, pair(0).mistake))
    assert pool_of([pair(0)], [1.0], renderer, limit=length).too_long == 0
    assert pool_of([pair(0)], [1.0], renderer, limit=length - 1).too_long == 1


def test_where_no_pair_fits_all_teachers_are_padding(renderer):
    pool = pool_of([pair(0, 500)], [1.0], renderer, limit=200)
    assert pool.weights == (0.0,) * 4
    assert pool.pairs == ()
    assert pool.too_long == 1


def test_a_control_shows_a_pair_that_no_teacher_has_drawn_anew_for_every_seed(renderer):
    pairs = [pair(n) for n in range(6)]
    bank = SkillBank(tuple(p.skill for p in pairs), tuple(p.mistake for p in pairs))
    pool = pool_of(pairs[:2], [0.5, 0.5], renderer)
    others = {
        tuple(renderer.teacher_ids("2 + 2?", skill, mistake))
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
def test_where_there_is_no_other_pair_or_it_does_not_fit_the_control_is_the_plain_prompt(renderer, count, limit):
    pairs = [pair(0), pair(1), pair(2, 500)][:count]
    bank = SkillBank(tuple(p.skill for p in pairs), tuple(p.mistake for p in pairs))
    pool = pool_of(pairs[:2], [0.5, 0.5], renderer)
    assert control_prompt("2 + 2?", pool, bank, renderer, max_prompt_length=limit, seed=0) == renderer.student_ids(
        "2 + 2?"
    )
