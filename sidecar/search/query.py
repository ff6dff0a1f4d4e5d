"""From what a person types to an FTS5 expression that cannot be wrong.

    invoice march          both words, anywhere
    "annual report"        a phrase
    annu*                  whatever begins so; also the last word of a phrase
    -draft -"old one"      not that
    subject:invoice        in one place alone: subject, address, file, body

Each piece is handed to FTS5 as a string, so nothing in it has a meaning there; an address or a name with
punctuation in it becomes a phrase of its words. Pieces without a letter or digit are left out.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from sidecar.search.text import fold

MOST_TERMS = 100
_MOST_CHARACTERS = 10_000
_PLACES = {"subject": "subject", "address": "people", "file": "files", "body": "body"}
_TERM = re.compile(
    r'(?P<minus>-?)(?:(?P<place>subject|address|file|body):)?(?:"(?P<phrase>[^"]*)"?|(?P<word>[^\s"]+))(?P<star>\*?)',
    re.IGNORECASE,
)


_FILTERS = frozenset(
    {"to", "from", "since", "until", "leg", "status", "queue-id", "message-id", "as-of", "limit"}
)
_PREFIXED = re.compile(r"([A-Za-z][A-Za-z-]*):(?!//)(.*)", re.DOTALL)


class QueryError(ValueError):
    """What was typed asks for nothing that could be found."""


@dataclass(frozen=True, slots=True)
class Term:
    """One thing to look for: `words`, folded, that follow on each other."""

    words: str
    place: str = ""
    """a column; anywhere without"""
    prefix: bool = False
    negative: bool = False

    @property
    def expression(self) -> str:
        """As FTS5 has it."""
        quoted = self.words.replace('"', " ")
        return f'{f"{self.place} : " if self.place else ""}"{quoted}"{" *" if self.prefix else ""}'


def parse(typed: str) -> tuple[Term, ...]:
    """The terms. Raises `QueryError`."""
    # Controls, and bytes that are no UTF-8, separate words.
    typed = re.sub(r"[\x00-\x1f\x7f]", " ", typed.encode("utf-8", "replace").decode())
    if len(typed) > _MOST_CHARACTERS:
        raise QueryError(f"that is more than {_MOST_CHARACTERS} characters")
    terms = []
    for found in _TERM.finditer(typed):
        words = found["phrase"] if found["phrase"] is not None else found["word"]
        star = found["star"] == "*" or words.endswith("*")
        words = fold(words).strip()
        if any(character.isalnum() for character in words):
            terms.append(
                Term(words, _PLACES.get((found["place"] or "").lower(), ""), star, found["minus"] == "-")
            )
    if len(terms) > MOST_TERMS:
        raise QueryError(f"those are more than {MOST_TERMS} words")
    if not any(not term.negative for term in terms):
        raise QueryError("say at least one word that is to be there: a letter or a digit must be in it")
    return tuple(terms)


def remarks(typed: str) -> list[str]:
    """What in a query means less than whoever typed it may think, a sentence each. Raises nothing."""
    told = []
    for found in _TERM.finditer(typed):
        word = found["word"] or ""
        is_quoted = found["phrase"] is not None
        if "*" in (found["phrase"] if is_quoted else word).rstrip("*"):
            told.append(f"{found[0]}: * counts at the end of a word alone")
        prefixed = None if is_quoted or found["place"] else _PREFIXED.fullmatch(word)
        if prefixed is None or not (prefixed[2] or typed[found.end() : found.end() + 1] == '"'):
            continue
        prefix = prefixed[1].lower()
        if prefix in _FILTERS:
            told.append(f"{prefix}: is a filter: --{prefix}; here it is looked for as a word")
        else:
            told.append(f"{prefix}: is no place ({', '.join(_PLACES)}), and looked for as a word")
    if typed.count('"') % 2:
        told.append("a quote has no end: the phrase goes on to the end")
    return told


def expression(terms: tuple[Term, ...]) -> str:
    """What FTS5 is asked."""
    wanted = " AND ".join(term.expression for term in terms if not term.negative)
    unwanted = "".join(f" NOT {term.expression}" for term in terms if term.negative)
    return f"({wanted}){unwanted}"
