"""The hash tree over a stream's facts: RFC 6962 (and 9162), with BLAKE3 in place of SHA-256. Pure.

A leaf's hash is the fact's leaf as it stands in the chain, BLAKE3(00 || fact); a node is
BLAKE3(01 || left || right). Hashes are asked for by *tiles*, as in C2SP tlog-tiles: a hash of level n stands
for a complete subtree of 256 to the power of n leaves, so level 0 are the leaves. Whoever has the hashes of
all levels (`store.tree`), or nothing but leaves, gets roots and proofs from the same few functions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from blake3 import blake3

HASH_BYTES = 32
TILE_BITS = 8
TILE = 1 << TILE_BITS
EMPTY = blake3(b"").digest()
"""the root of a tree without leaves"""

Hashes = Callable[[int, int, int], Sequence[bytes]]
"""(level, first, count) -> so many hashes of a level from number `first` on, within one tile"""


def node(left: bytes, right: bytes) -> bytes:
    """The hash over two subtrees."""
    return blake3(b"\x01" + left + right).digest()


def fold(hashes: Sequence[bytes]) -> bytes:
    """The root over hashes whose number is a power of two."""
    while len(hashes) > 1:
        hashes = [node(left, right) for left, right in zip(hashes[::2], hashes[1::2], strict=True)]
    return hashes[0]


def of_leaves(leaves: Sequence[bytes]) -> Hashes:
    """The hashes where nothing but the leaves is known."""

    def hashes(level: int, first: int, count: int) -> list[bytes]:
        size = TILE**level
        return [fold(leaves[at * size : (at + 1) * size]) for at in range(first, first + count)]

    return hashes


def root(size: int, hashes: Hashes) -> bytes:
    """The root of the tree over the first `size` leaves."""
    return _subtree(0, size, hashes) if size else EMPTY


def _subtree(begin: int, end: int, hashes: Hashes) -> bytes:
    """The root over the leaves from `begin` up to `end`; `begin` is a multiple of the power of two above."""
    size = end - begin
    half = _half(size)
    if size != half * 2 and size != 1:
        return node(_subtree(begin, begin + half, hashes), _subtree(begin + half, end, hashes))
    height = size.bit_length() - 1
    level = height // TILE_BITS
    return fold(hashes(level, begin >> (TILE_BITS * level), 1 << (height % TILE_BITS)))


def _half(size: int) -> int:
    """The largest power of two below `size`."""
    return 1 << (size - 1).bit_length() - 1 if size > 1 else 0


def inclusion(number: int, size: int, hashes: Hashes) -> list[bytes]:
    """The audit path of leaf `number` in the tree over the first `size` leaves (RFC 6962 2.1.1)."""
    if not 0 <= number < size:
        raise ValueError(f"there is no leaf {number} in a tree of {size}")
    path: list[bytes] = []
    begin, end = 0, size
    while end - begin > 1:
        middle = begin + _half(end - begin)
        if number < middle:
            path.append(_subtree(middle, end, hashes))
            end = middle
        else:
            path.append(_subtree(begin, middle, hashes))
            begin = middle
    return path[::-1]


def consistency(old: int, new: int, hashes: Hashes) -> list[bytes]:
    """What proves that the tree of `old` leaves is the begin of that of `new` (RFC 6962 2.1.2)."""
    if not 0 <= old <= new:
        raise ValueError(f"a tree of {old} leaves cannot be the begin of one of {new}")
    if old in {0, new}:
        return []
    path: list[bytes] = []
    begin, end = 0, new
    while end != old:
        middle = begin + _half(end - begin)
        if old <= middle:
            path.append(_subtree(middle, end, hashes))
            end = middle
        else:
            path.append(_subtree(begin, middle, hashes))
            begin = middle
    if begin:  # else it is the old root itself, which the verifier has
        path.append(_subtree(begin, end, hashes))
    return path[::-1]


def includes(leaf: bytes, number: int, size: int, path: Sequence[bytes], root_hash: bytes) -> bool:
    """Whether an audit path proves a leaf at its place in the tree of that root (RFC 9162 2.1.3.2)."""
    if not 0 <= number < size:
        return False
    at, last, found = number, size - 1, leaf
    for other in path:
        if last == 0:
            return False
        if at & 1 or at == last:
            found = node(other, found)
            while not at & 1 and at:
                at, last = at >> 1, last >> 1
        else:
            found = node(found, other)
        at, last = at >> 1, last >> 1
    return last == 0 and found == root_hash


def continues(old: int, new: int, old_root: bytes, new_root: bytes, path: Sequence[bytes]) -> bool:
    """Whether a path proves that the tree of `new_root` begins with that of `old_root` (RFC 9162 2.1.4.2)."""
    if not 0 <= old <= new:
        return False
    if old == new:
        return not path and old_root == new_root
    if old == 0:
        return not path and old_root == EMPTY
    steps = list(path) if old & (old - 1) else [old_root, *path]
    if not steps:
        return False
    at, last = old - 1, new - 1
    while at & 1:
        at, last = at >> 1, last >> 1
    was = is_ = steps[0]
    for other in steps[1:]:
        if last == 0:
            return False
        if at & 1 or at == last:
            was, is_ = node(other, was), node(other, is_)
            while not at & 1 and at:
                at, last = at >> 1, last >> 1
        else:
            is_ = node(is_, other)
        at, last = at >> 1, last >> 1
    return last == 0 and was == old_root and is_ == new_root


class Growing:
    """A tree that takes leaf after leaf, and holds as many hashes as its size has binary digits."""

    def __init__(self) -> None:
        self.size = 0
        self._hashes: list[bytes] = []

    def add(self, leaf: bytes) -> None:
        """One more leaf."""
        found, below = leaf, self.size
        while below & 1:
            found, below = node(self._hashes.pop(), found), below >> 1
        self._hashes.append(found)
        self.size += 1

    def root(self) -> bytes:
        """The root over what it has."""
        if not self._hashes:
            return EMPTY
        *others, found = self._hashes
        for left in reversed(others):
            found = node(left, found)
        return found
