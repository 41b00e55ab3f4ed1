"""Templates: what of a chunk is embedded, and nothing but the chunk's values."""

from __future__ import annotations

from typing import Any

import pytest

from compass.domain.space import Space, SpaceConfig
from compass.domain.template import check_template, fields_of, render
from compass.errors import InvalidRequestError

VALUES = {
    "text": "the text",
    "file_id": "f.md",
    "chunk_index": 2,
    "doc_type": "chunk",
    "page": None,
    "group_id": None,
}


@pytest.mark.parametrize(
    ("template", "metadata", "expected"),
    [
        ("{text}", {}, "the text"),
        ("{title}\n{text}", {"title": "A title"}, "A title\nthe text"),
        ("{title}\n{text}", {}, "\nthe text"),
        ("{tags}: {text}", {"tags": ["a", "b"]}, "a, b: the text"),
        ("{n} {x} {yes} {text}", {"n": 3, "x": 1.5, "yes": True}, "3 1.5 true the text"),
        ("{{{text}}}", {}, "{the text}"),
        ("{text} {text}", {"text": "of the metadata"}, "the text the text"),
        ("{page}{group_id}{chunk_index} {text}", {}, "2 the text"),
        ("{title}{text}", {"title": "{text} {0.__class__}"}, "{text} {0.__class__}the text"),
        ("{a key with spaces}{text}", {"a key with spaces": "v"}, "vthe text"),
    ],
)
def test_fields_are_filled_in(template: str, metadata: dict[str, Any], expected: str) -> None:
    """Built-in fields win, what is missing is empty, and what a value holds is never read as a template."""
    assert render(check_template(template), VALUES, metadata) == expected


@pytest.mark.parametrize(
    "template",
    [
        "",
        "no field",
        "{title}",
        "{text",
        "text}",
        "{text!r}",
        "{text:>10}",
        "{text.__class__}",
        "{text[0]}",
        "{}{text}",
    ],
)
def test_templates_that_are_refused(template: str) -> None:
    """Half a brace, a format, an attribute, an index, or no {text}: the message says which template."""
    with pytest.raises(InvalidRequestError, match="template") as error:
        check_template(template)
    assert error.value.fields["errors"][0]["field"] == "template"


def test_fields_of_a_template() -> None:
    """In their order, as often as they are named."""
    assert fields_of("{a} {{b}} {text}{a}") == ("a", "text", "a")


def test_a_space_reads_queries_and_documents_by_its_prompts() -> None:
    """A prompt stands before each; without any the text is what it is."""
    plain, config = SpaceConfig(4, "m"), SpaceConfig(4, "m", query_prompt="q: ", document_prompt="d: ")
    assert (plain.query_text("x"), plain.document_text(VALUES, {})) == ("x", "the text")
    assert (config.query_text("x"), config.document_text(VALUES, {})) == ("q: x", "d: the text")


def test_a_space_of_an_older_version_has_no_template() -> None:
    """A record without the new fields reads as before."""
    space = Space("s-1", "s", SpaceConfig(4, "m"), "active", 0.0)
    stored = space.to_json()
    for name in ("template", "query_prompt", "document_prompt", "truncate", "dimensions"):
        del stored["config"][name]
    assert Space.from_json(stored) == space


def test_dimensions_are_those_of_the_space() -> None:
    """Asking the endpoint for another number could never fit."""
    assert SpaceConfig(4, "m", dimensions=4).dimensions == 4
    with pytest.raises(InvalidRequestError, match="dimensions"):
        SpaceConfig(4, "m", dimensions=8)
