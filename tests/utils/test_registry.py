"""Registries: names in any case, the nearest known name, functions named as text."""

import math

import pytest

from input_pipeline import AUGMENTATIONS, SOURCES
from metrics import MEASURES
from models import NETWORKS
from objective import LOSSES, OPTIMIZERS
from utils.errors import UserError
from utils.registry import find_name, load_function, suggest

NAMES = ["SGD", "AdamW"]


def test_a_name_is_found_in_any_case():
    assert [find_name(text, NAMES, "optimizer") for text in ("sgd", "ADAMW")] == NAMES


@pytest.mark.parametrize(("text", "near"), [("Adam", "AdamW"), ("sdg", "SGD")])
def test_the_nearest_name_is_suggested(text, near):
    with pytest.raises(UserError) as refusal:
        find_name(text, NAMES, "optimizer")
    expected = f"unknown optimizer {text!r} (did you mean {near}?): use one of SGD, AdamW"
    assert str(refusal.value) == expected


def test_nothing_is_suggested_where_nothing_is_near():
    assert suggest("zzz", NAMES) == ""
    with pytest.raises(UserError, match=r"^unknown optimizer 'zzz': use one of SGD, AdamW$"):
        find_name("zzz", NAMES, "optimizer")


def test_a_function_is_imported_by_its_text():
    assert load_function("math:sqrt") is math.sqrt


FUNCTIONS = [network.builder for network in NETWORKS.values()]
FUNCTIONS += [source.reader for source in SOURCES.values()]
FUNCTIONS += [
    entry.function for table in (LOSSES, OPTIMIZERS, MEASURES) for entry in table.values()
]


@pytest.mark.parametrize("function", sorted(set(FUNCTIONS)))
def test_every_entry_names_a_function(function):
    assert callable(load_function(function))


@pytest.mark.parametrize("table", [AUGMENTATIONS, SOURCES, NETWORKS, LOSSES, OPTIMIZERS])
def test_names_differ_in_more_than_their_case(table):
    assert len({name.lower() for name in table}) == len(table)
