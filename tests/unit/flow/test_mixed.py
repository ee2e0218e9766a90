from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.core.errors import BudgetError, ConfigError
from edgekit.flow.mixed import Choice, choose_mixed, keep_order

PRECISIONS = ("eight", "four", "two")


@st.composite
def offers(draw):
    """Some layers, each in some of the precisions."""
    found = []
    for layer in range(draw(st.integers(1, 6))):
        for precision in draw(st.sets(st.sampled_from(PRECISIONS), min_size=1)):
            loss = draw(st.integers(0, 40)) / 100
            noise = draw(st.floats(0, 2))
            found.append(Choice(f"layer{layer}", precision, loss, draw(st.integers(-10, 1000)), noise))
    return found


def total(choices, chosen):
    """Loss and bytes saved of what was chosen."""
    taken = [choice for choice in choices if chosen[choice.layer] == choice.precision]
    return sum(choice.loss for choice in taken), sum(choice.bytes_saved for choice in taken)


@given(offers(), st.floats(0, 1))
def test_the_loss_stays_within_the_budget(choices, budget):
    chosen = choose_mixed(choices, max_loss=budget)
    assert chosen.keys() == {choice.layer for choice in choices}
    loss, saved = total(choices, chosen)
    assert loss <= budget + 1e-6
    assert saved >= 0


@given(offers(), st.floats(0, 1), st.floats(0, 1))
def test_a_larger_budget_never_saves_less(choices, one, other):
    narrow, wide = sorted((one, other))
    saved = [total(choices, choose_mixed(choices, max_loss=budget))[1] for budget in (narrow, wide)]
    assert saved[0] <= saved[1]


@given(offers(), st.integers(0, 3000))
def test_so_many_bytes_are_saved_as_were_asked_for_or_it_is_said_that_they_cannot(choices, wanted):
    most = {}
    for choice in choices:
        most[choice.layer] = max(most.get(choice.layer, 0), choice.bytes_saved)
    if sum(most.values()) < wanted:
        with pytest.raises(BudgetError, match="at most"):
            choose_mixed(choices, min_bytes_saved=wanted)
    else:
        assert total(choices, choose_mixed(choices, min_bytes_saved=wanted))[1] >= wanted


@given(offers())
def test_a_precision_that_another_one_beats_in_both_is_never_chosen(choices):
    chosen = choose_mixed(choices, max_loss=10.0)
    for choice in choices:
        if chosen[choice.layer] == choice.precision:
            rivals = [
                other for other in choices if other.layer == choice.layer and other.bytes_saved > choice.bytes_saved
            ]
            assert not any(other.weight < choice.weight for other in rivals)


def test_the_cheapest_saving_comes_first():
    choices = [Choice("a", "eight", 0.02, 100), Choice("b", "eight", 0.01, 1000), Choice("c", "eight", 0.5, 10)]
    assert choose_mixed(choices, max_loss=0.01) == {"a": "float32", "b": "eight", "c": "float32"}
    assert choose_mixed(choices, max_loss=0.03) == {"a": "eight", "b": "eight", "c": "float32"}
    assert keep_order(choices) == ["c", "a", "b"]


def test_where_no_answer_changes_the_noise_decides():
    choices = [Choice("loud", "eight", 0.0, 100, 0.1), Choice("quiet", "eight", 0.0, 100, 0.001)]
    assert choose_mixed(choices, min_bytes_saved=100) == {"loud": "float32", "quiet": "eight"}
    assert keep_order(choices) == ["loud", "quiet"]


@pytest.mark.parametrize("budgets", [{}, {"max_loss": 0.1, "min_bytes_saved": 3}])
def test_one_budget_is_needed_and_no_more(budgets):
    with pytest.raises(ConfigError, match="one of the two"):
        choose_mixed([], **budgets)
