"""The tree against RFC 6962 as it is written down: the recursive definitions, over leaves alone.

What would break these: a wrong half at sizes beside powers of two, tiles that are asked for across their
edge, a verifier that takes a path that is too long, too short, or of another leaf.
"""

from __future__ import annotations

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from store import merkle
from store.merkle import EMPTY, TILE, Growing, consistency, continues, fold, includes, inclusion, node, root

LEAVES = [blake3(b"\0" + n.to_bytes(4, "big")).digest() for n in range(1200)]


def half(size: int) -> int:
    found = 1
    while found * 2 < size:
        found *= 2
    return found


def mth(leaves: list[bytes]) -> bytes:
    """RFC 6962 2.1"""
    if not leaves:
        return blake3(b"").digest()
    if len(leaves) == 1:
        return leaves[0]
    k = half(len(leaves))
    return blake3(b"\x01" + mth(leaves[:k]) + mth(leaves[k:])).digest()


def path_of(m: int, leaves: list[bytes]) -> list[bytes]:
    """RFC 6962 2.1.1"""
    if len(leaves) == 1:
        return []
    k = half(len(leaves))
    if m < k:
        return [*path_of(m, leaves[:k]), mth(leaves[k:])]
    return [*path_of(m - k, leaves[k:]), mth(leaves[:k])]


def proof_of(m: int, leaves: list[bytes], *, whole: bool = True) -> list[bytes]:
    """RFC 6962 2.1.2"""
    if m == len(leaves):
        return [] if whole else [mth(leaves)]
    k = half(len(leaves))
    if m <= k:
        return [*proof_of(m, leaves[:k], whole=whole), mth(leaves[k:])]
    return [*proof_of(m - k, leaves[k:], whole=False), mth(leaves[:k])]


def tiled(leaves: list[bytes]) -> merkle.Hashes:
    """Complete subtrees alone, and never across the edge of a tile: what an index has."""

    def hashes(level: int, first: int, count: int) -> list[bytes]:
        assert first // TILE == (first + count - 1) // TILE
        size = TILE**level
        assert (first + count) * size <= len(leaves)
        return [mth(leaves[n * size : (n + 1) * size]) for n in range(first, first + count)]

    return hashes


def test_golden() -> None:
    """The vectors stand in FORMAT.md's terms: another program must come to the same."""
    leaves = [blake3(b"\0" + fact).digest() for fact in (b"", b"a", b"bc", b"def")]
    roots = [root(n, tiled(leaves[:n])).hex() for n in range(5)]
    assert roots == GOLDEN
    assert [h.hex() for h in inclusion(1, 3, tiled(leaves[:3]))] == [leaves[0].hex(), leaves[2].hex()]


GOLDEN = [
    "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262",
    "2d3adedff11b61f14c886e35afa036736dcd87a74d27b5c1510225d0f592e213",
    "0534a70d51d9bf8f3d11b2903957ba32a64bcd98efb0a7061d59f5deca90a117",
    "6c1399c1321234bbb2939d4a2f6cbe7eb22dc0b2ea78e4e3c3f7238c4ba1612c",
    "c01f87174a603110f1ca870db12595f694ff5eb8b31de68dfcbfc79dd56137bf",
]


@pytest.mark.parametrize("size", [*range(18), 255, 256, 257, 511, 512, 513, 600, 1024, 1100])
def test_roots_and_proofs_are_those_of_the_rfc(size: int) -> None:
    leaves = LEAVES[:size]
    hashes = tiled(leaves)
    assert root(size, hashes) == mth(leaves)
    growing = Growing()
    for leaf in leaves:
        growing.add(leaf)
    assert (growing.size, growing.root()) == (size, mth(leaves))
    for number in {n for n in (0, 1, size // 3, 255, 256, size - 2, size - 1) if 0 <= n < size}:
        path = inclusion(number, size, hashes)
        assert path == path_of(number, leaves)
        assert includes(leaves[number], number, size, path, mth(leaves))
    for old in {n for n in (0, 1, 2, size // 3, 255, 256, 512, size - 1, size) if 0 <= n <= size}:
        path = consistency(old, size, hashes)
        if old:
            assert path == proof_of(old, leaves)
        assert continues(old, size, mth(leaves[:old]), mth(leaves), path)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_nothing_else_verifies(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 70))
    number = data.draw(st.integers(0, size - 1))
    hashes, top = tiled(LEAVES[:size]), mth(LEAVES[:size])
    path = inclusion(number, size, hashes)
    assert includes(LEAVES[number], number, size, path, top)
    other = data.draw(st.integers(0, size + 3))
    if other != number:
        assert not includes(LEAVES[number], other, size, path, top)
        assert not includes(LEAVES[other], number, size, path, top)
    assert not includes(LEAVES[number], number, size, [*path, LEAVES[0]], top)
    assert not includes(LEAVES[number], number, size, path, blake3(top).digest())
    if path:
        assert not includes(LEAVES[number], number, size, path[:-1], top)
        at = data.draw(st.integers(0, len(path) - 1))
        assert not includes(LEAVES[number], number, size, [*path[:at], LEAVES[99], *path[at + 1 :]], top)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_no_other_history_continues(data: st.DataObject) -> None:
    new = data.draw(st.integers(1, 70))
    old = data.draw(st.integers(1, new))
    path = consistency(old, new, tiled(LEAVES[:new]))
    was, is_ = mth(LEAVES[:old]), mth(LEAVES[:new])
    assert continues(old, new, was, is_, path)
    at = data.draw(st.integers(0, old - 1))
    altered = [*LEAVES[:at], LEAVES[1000], *LEAVES[at + 1 : old]]
    assert not continues(old, new, mth(altered), is_, path)
    assert not continues(old, new, mth(altered), is_, consistency(old, new, tiled(LEAVES[:new])))
    assert not continues(old, new, was, is_, [*path, LEAVES[0]])
    if path:
        assert not continues(old, new, was, is_, path[1:])
        assert not continues(old, new, was, is_, path[:-1])
    if old < new:
        assert not continues(new, old, is_, was, path)


def test_fold_and_the_rest() -> None:
    assert fold(LEAVES[:4]) == node(node(LEAVES[0], LEAVES[1]), node(LEAVES[2], LEAVES[3])) == mth(LEAVES[:4])
    assert root(0, tiled([])) == EMPTY
    assert root(700, merkle.of_leaves(LEAVES)) == mth(LEAVES[:700])
    with pytest.raises(ValueError, match="no leaf 3"):
        inclusion(3, 3, tiled(LEAVES[:3]))
    with pytest.raises(ValueError, match="cannot be the begin"):
        consistency(4, 3, tiled(LEAVES[:3]))
