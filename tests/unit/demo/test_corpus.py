"""The corpus is real, unique, bounded and the same on every call."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from compass.demo.corpus import MAX_TEXT, documented, module_summaries, read_corpus

Corpus = list[dict[str, Any]]
Package = Callable[..., Path]


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return read_corpus()


@pytest.fixture
def package(tmp_path: Path) -> Package:
    """A folder of modules, written by name."""

    def write(**sources: str) -> Path:
        for name, source in sources.items():
            path = tmp_path.joinpath(*name.split("__", 1)).with_suffix(".py")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(source)
        return tmp_path

    return write


def test_this_machine_has_a_corpus(corpus: Corpus) -> None:
    """Any installation that can run Compass yields at least 5,000 chunks, the same whenever it is read."""
    assert len(read_corpus()) == len(corpus) >= 5_000


def test_keys_and_texts_are_unique(corpus: Corpus) -> None:
    """No (file_id, chunk_index) and no text comes twice."""
    assert len({(c["file_id"], c["chunk_index"]) for c in corpus}) == len(corpus)
    assert len({c["text"] for c in corpus}) == len(corpus)


def test_indices_count_from_zero_without_gaps(corpus: Corpus) -> None:
    """The chunks of a module are numbered 0, 1, 2 and so on."""
    seen: dict[str, int] = {}
    for chunk in corpus:
        assert chunk["chunk_index"] == seen.get(chunk["file_id"], 0)
        seen[chunk["file_id"]] = chunk["chunk_index"] + 1


def test_metadata_has_the_types_of_the_interface(corpus: Corpus) -> None:
    """Each chunk says its module, package, kind, qualified name and length."""
    for chunk in corpus:
        metadata = chunk["metadata"]
        assert {k: type(v) for k, v in metadata.items()} == {
            "module": str,
            "package": str,
            "kind": str,
            "name": str,
            "length": int,
        }
        assert metadata["kind"] in ("module", "class", "function")
        assert metadata["module"] == chunk["file_id"]
        assert chunk["text"].startswith(metadata["name"] + "\n")
        assert len(chunk["text"]) <= MAX_TEXT


def test_nothing_tells_where_the_installation_is(corpus: Corpus) -> None:
    """No text is the path of a file, and no name holds a separator."""
    assert not [c for c in corpus if "/" in c["file_id"] or "/" in c["metadata"]["name"]]


def test_a_smaller_corpus_is_a_prefix_of_a_larger_one(corpus: Corpus) -> None:
    """The order is fixed: the limit only cuts."""
    assert read_corpus(700) == corpus[:700]


def test_docstrings_are_found_by_their_qualified_names(package: Package) -> None:
    """Modules, classes, methods and coroutines each give a chunk, in the order of the file."""
    root = package(
        shop__order='''"""Orders and what becomes of them."""
class Order:
    """One order, as the customer sees it."""
    async def ship(self):
        """Hand the order to the carrier."""
def total(): "Sum of everything that was ordered."
'''
    )
    chunks = read_corpus(roots=[root])
    assert [(c["metadata"]["name"], c["metadata"]["kind"]) for c in chunks] == [
        ("shop.order", "module"),
        ("shop.order.Order", "class"),
        ("shop.order.Order.ship", "function"),
        ("shop.order.total", "function"),
    ]
    assert {c["metadata"]["package"] for c in chunks} == {"shop"}


def test_a_docstring_that_comes_twice_is_taken_once(package: Package) -> None:
    """Copied docstrings would make two hits out of one."""
    text = '"""The very same words stand in both."""'
    assert [c["file_id"] for c in read_corpus(roots=[package(a=text, b=text)])] == ["a"]


def test_tests_are_skipped(package: Package) -> None:
    """Test modules and test packages are no documentation."""
    text = '"""A docstring of a test, number {}."""'
    root = package(tests__helper=text.format(1), test_a=text.format(2), real=text.format(3))
    assert [c["file_id"] for c in read_corpus(roots=[root])] == ["real"]


def test_a_package_has_the_name_of_its_folder(package: Package) -> None:
    """`__init__` is no part of a module's name."""
    root = package(shop____init__='"""Everything that the shop sells."""')
    assert [c["file_id"] for c in read_corpus(roots=[root])] == ["shop"]


@pytest.mark.parametrize("source", [b"def (", b"\x00", b"print 'old'", b"\xff\xfe\xff"])
def test_what_cannot_be_parsed_is_passed_over(source: bytes) -> None:
    """A file for another Python, or none at all, yields nothing and raises nothing."""
    assert list(documented(source)) == []


def test_long_docstrings_are_cut_between_words(package: Package) -> None:
    """The text is bounded; the metadata keep the true length."""
    root = package(long=f'"""{"word " * 1000}end"""')
    [chunk] = read_corpus(roots=[root])
    assert chunk["text"].endswith("word")
    assert len(chunk["text"]) <= MAX_TEXT
    assert chunk["metadata"]["length"] == 5003


def test_summaries_are_first_lines_of_modules(package: Package) -> None:
    """What is asked is what a module says of itself, without its name."""
    root = package(shop='"""Everything that the shop sells.\n\nMore."""\ndef f(): "Not a module, so never asked."')
    assert module_summaries(read_corpus(roots=[root])) == ["Everything that the shop sells."]
