"""Real text that any machine has: the docstrings of the standard library and of the installed packages.

Nothing is imported and nothing downloaded; the sources are parsed. The order is fixed by the names of the
files, so the same installation gives the same chunks.
"""

from __future__ import annotations

import ast
import os
import sysconfig
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

DEFAULT_CHUNKS = 6_000
MAX_TEXT = 1_200  # characters
MIN_DOC = 20  # characters; shorter ones say nothing ("Return self.")
MAX_SOURCE_BYTES = 400_000  # a larger file is generated code

# Tests, copies of other packages, and applications that a library's reader does not search for.
_SKIPPED_FOLDERS = {
    *("test", "tests", "testing", "idlelib", "lib2to3", "turtledemo"),
    *("site-packages", "dist-packages", "__pycache__", "_vendor", "_bundled"),
}
_Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True)
class Documented:
    """One docstring and where it stands. `name` is qualified within its module, empty for the module's own."""

    kind: str
    name: str
    doc: str


def read_corpus(limit: int = DEFAULT_CHUNKS, roots: Sequence[Path] | None = None) -> list[dict[str, Any]]:
    """At most `limit` chunks as `POST /collections/{c}/ingest` takes them; no text and no key comes twice.

    Args:
        limit: How many chunks; the standard library comes first, then the packages by name.
        roots: Folders of modules to read instead of this interpreter's own.

    Returns:
        Dicts with file_id (the module's name), chunk_index, text (qualified name and docstring) and
        metadata {module, package, kind, name, length}.
    """
    return list(islice(_chunks(roots if roots is not None else _installed()), limit))


def module_summaries(chunks: Iterable[dict[str, Any]]) -> list[str]:
    """The first line of each module's docstring, in order: what somebody might ask for."""
    docs = (c["text"].partition("\n")[2] for c in chunks if c["metadata"]["kind"] == "module")
    return [line for doc in docs if len(line := doc.partition("\n")[0].strip()) >= MIN_DOC]


def documented(source: bytes) -> Iterator[Documented]:
    """The docstrings of one source file, from the top; nothing if this Python cannot parse it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # bad escapes in other people's strings
            tree = ast.parse(source)
    except (SyntaxError, ValueError):  # a template, or written for another Python
        return
    yield from _walk(tree, "module", "")


def _walk(node: _Documented, kind: str, name: str) -> Iterator[Documented]:
    doc = ast.get_docstring(node)
    if doc and len(doc) >= MIN_DOC:
        yield Documented(kind, name, doc)
    if kind == "function":
        return
    for child in node.body:
        if isinstance(child, ast.ClassDef):
            yield from _walk(child, "class", f"{name}.{child.name}".lstrip("."))
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _walk(child, "function", f"{name}.{child.name}".lstrip("."))


def _chunks(roots: Sequence[Path]) -> Iterator[dict[str, Any]]:
    modules: set[str] = set()
    docs: set[str] = set()
    for root in roots:
        for path in _sources(root):
            module = _module_name(path.relative_to(root))
            if module in modules:
                continue
            modules.add(module)
            index = 0
            for found in documented(path.read_bytes()):
                if (doc := found.doc[:MAX_TEXT]) not in docs:
                    docs.add(doc)
                    yield _chunk(module, index, found)
                    index += 1


def _chunk(module: str, index: int, found: Documented) -> dict[str, Any]:
    qualified = f"{module}.{found.name}".rstrip(".")
    return {
        "file_id": module,
        "chunk_index": index,
        "text": _bounded(f"{qualified}\n{found.doc}"),
        "metadata": {
            "module": module,
            "package": module.partition(".")[0],
            "kind": found.kind,
            "name": qualified,
            "length": len(found.doc),
        },
    }


def _bounded(text: str) -> str:
    # A lone surrogate, possible in a Python literal, is not in JSON's reach.
    clean = text.encode("utf-8", "replace").decode("utf-8")
    return clean if len(clean) <= MAX_TEXT else clean[:MAX_TEXT].rpartition(" ")[0] or clean[:MAX_TEXT]


def _installed() -> list[Path]:
    names = ("stdlib", "purelib", "platlib")
    return [Path(p) for p in dict.fromkeys(sysconfig.get_path(n) for n in names)]


def _sources(root: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(f for f in folders if f not in _SKIPPED_FOLDERS and f.isidentifier())
        for file in sorted(files):
            path = Path(folder, file)
            if _worth_reading(file) and path.stat().st_size <= MAX_SOURCE_BYTES:
                yield path


def _worth_reading(file: str) -> bool:
    stem, dot, suffix = file.rpartition(".")
    is_test = stem.startswith("test_") or stem.endswith("_test") or stem == "conftest"
    return bool(dot) and suffix == "py" and not is_test and stem.isidentifier()


def _module_name(relative: Path) -> str:
    parts = relative.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)
