"""The tokenizer reads and writes any text, and knows the words of the trade."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aegis_backbones.questions import COLUMNS, ROWS
from aegis_backbones.scenes import ALL_SHAPES
from aegis_backbones.tokenizer import train_tokenizer
from aegis_envs.objects import COLOURS

TOKENIZER = train_tokenizer()


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60))
def test_any_text_survives_the_round_trip(text):
    ids = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    assert TOKENIZER.unk_token_id not in ids or "<unk>" in text
    assert TOKENIZER.decode(ids, clean_up_tokenization_spaces=False) == text


@pytest.mark.parametrize("word", [*COLOURS, *ALL_SHAPES, *COLUMNS, *ROWS, "above", "below", "yes", "no", *"012345"])
def test_answers_are_single_tokens(word):
    assert len(TOKENIZER(word, add_special_tokens=False)["input_ids"]) == 1


@pytest.mark.parametrize(
    "text", ["push the blue cube onto the green disc", "Is the red ball above the yellow cylinder?"]
)
def test_instructions_and_questions_have_one_token_a_word(text):
    words = len(text.replace("?", " ?").split())
    assert len(TOKENIZER(text, add_special_tokens=False)["input_ids"]) == words


def test_training_the_tokenizer_twice_gives_the_same_tokenizer():
    assert train_tokenizer().get_vocab() == TOKENIZER.get_vocab()


def test_a_prompt_has_type_zero_and_its_answer_type_one():
    encoded = TOKENIZER("red?", text_pair="yes", return_token_type_ids=True)
    assert encoded["token_type_ids"] == [0] * (len(encoded["input_ids"]) - 1) + [1]
