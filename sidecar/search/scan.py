"""Finding words without an index: in subjects and addresses, as the store has them on record.

For sealed stores, where no index may lie, and where none is wanted. As slow as reading every record.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from sidecar.readable import header_text, text
from sidecar.search.query import Term
from sidecar.search.text import fold
from store.records import Delivery

_WORD = re.compile(r"[^\W_]+")


def matches(terms: Sequence[Term], delivery: Delivery) -> bool:
    """Whether all that is wanted is there, and nothing that is not."""
    addresses = (delivery.envelope.sender, *(one.address for one in delivery.envelope.recipients))
    places = {
        "subject": _words(header_text(delivery.subject)),
        "people": _words(" ".join([header_text(delivery.header_from), *map(text, addresses)])),
    }
    return all(
        term.negative
        != any(_has(words, term) for place, words in places.items() if term.place in ("", place))
        for term in terms
    )


def _words(told: str) -> list[str]:
    """As FTS5's tokenizer has them: accents dropped."""
    apart = unicodedata.normalize("NFD", fold(told))
    return _WORD.findall("".join(sign for sign in apart if not unicodedata.combining(sign)))


def _has(words: list[str], term: Term) -> bool:
    wanted = _words(term.words)
    if not term.prefix:
        return any(words[at : at + len(wanted)] == wanted for at in range(len(words) - len(wanted) + 1))
    *begin, last = wanted
    return any(
        words[at : at + len(begin)] == begin and words[at + len(begin)].startswith(last)
        for at in range(len(words) - len(begin))
    )
