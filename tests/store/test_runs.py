"""Sorted runs: what was written is found again, in order, and a damaged file never tells anything wrong.

What would break these: a row lost at the border of two blocks, a search that stops one row early, a filter
that denies what is there, a merge that drops or repeats a row, a byte that may change on the disk without
`ValueError` (the only error besides OSError that `Index` takes for damage and mends).
"""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from store.rows import FILTERED, PLACE_BYTES, Table
from store.runs import BLOCK_ROWS, MAGIC, Blocks, Run, RunWriter, merged

WIDTHS = {
    Table.CHUNK: 12 + PLACE_BYTES + 3,
    Table.CONTENT: 12 + PLACE_BYTES,
    Table.DELIVERY: 17 + PLACE_BYTES,
    Table.ID: 16,
    Table.TERM: 16,
    Table.TILE: 10 + 32,
    Table.BLOCK: 9 + PLACE_BYTES,
}
Tables = dict[int, list[bytes]]


def wrote(path: Path, tables: Tables, *, step: int = 100, expected: dict[int, int] | None = None) -> Path:
    """A run with these rows, handed over in lists of `step` rows."""
    filled = {table: rows for table, rows in tables.items() if rows}
    expected = expected or {table: len(rows) for table, rows in filled.items()}
    with RunWriter(path, filtered=FILTERED, expected=expected) as writer:
        for table in sorted(tables):
            rows = tables[table]
            writer.table(table, (rows[at : at + step] for at in range(0, len(rows), step)))
        assert writer.finish() == path.stat().st_size
        assert writer.rows == sum(map(len, tables.values()))
    return path


def opened(path: Path, number: int = 1) -> Run:
    return Run(path, number, Blocks())


def whole(run: Run, table: int, *, reverse: bool = False) -> list[bytes]:
    return list(run.range(table, b"", b"\xff" * 40, reverse=reverse))


def listed(blocks: Iterable[list[bytes]]) -> list[bytes]:
    return list(itertools.chain.from_iterable(blocks))


def in_blocks(rows: list[bytes], step: int = 7) -> Iterator[list[bytes]]:
    return iter([rows[at : at + step] for at in range(0, len(rows), step)])


def random_rows(count: int, width: int, seed: int = 1, *, spread: int = 256) -> list[bytes]:
    rng = random.Random(seed)
    return sorted({bytes(rng.randrange(spread) for _ in range(width)) for _ in range(count)})


@pytest.mark.parametrize("count", [1, 2, BLOCK_ROWS - 1, BLOCK_ROWS, BLOCK_ROWS + 1, 3 * BLOCK_ROWS, 1700])
def test_all_tables_and_widths(tmp_path: Path, count: int) -> None:
    tables: Tables = {table: random_rows(count, width, table) for table, width in WIDTHS.items()}
    run = opened(wrote(tmp_path / "run", tables))
    assert run.tables() == sorted(map(int, Table))
    assert run.rows == sum(map(len, tables.values()))
    for table, rows in tables.items():
        assert run.count(table) == len(rows)
        assert listed(run.blocks(table)) == rows
        assert whole(run, table) == rows
        assert whole(run, table, reverse=True) == rows[::-1]
        for row in (*rows[:: max(1, count // 40)], rows[-1]):
            assert run.find(table, row) == [row]
            assert run.find(table, row[:12]) == [row]


def test_what_is_not_there(tmp_path: Path) -> None:
    rows = random_rows(1500, 25)
    run = opened(wrote(tmp_path / "run", {Table.CHUNK: rows}))
    present = set(rows)
    for row in random_rows(3000, 25, 2):
        assert (run.find(Table.CHUNK, row) == []) == (row not in present)
    assert run.find(Table.CHUNK, b"\0" * 12) == []
    assert run.find(Table.CHUNK, b"\xff" * 12) == []
    assert run.find(Table.TERM, b"\0" * 8) == []
    assert whole(run, Table.TERM) == []
    assert listed(run.blocks(Table.TERM)) == []
    assert run.count(Table.TERM) == 0


def test_nothing_at_all(tmp_path: Path) -> None:
    run = opened(wrote(tmp_path / "run", {Table.CHUNK: []}))
    assert (run.rows, run.tables()) == (0, [])
    assert run.find(Table.CHUNK, b"x" * 12) == []


def test_one_prefix_over_several_blocks(tmp_path: Path) -> None:
    """As the TERM rows of a busy recipient: begins in the middle of a block, ends in another's."""
    rows = sorted(
        [b"a" * 8 + n.to_bytes(8, "big") for n in range(700)]
        + [b"b" * 8 + n.to_bytes(8, "big") for n in range(2000)]
        + [b"c" * 8 + n.to_bytes(8, "big") for n in range(BLOCK_ROWS * 6 - 2700)]
    )
    run = opened(wrote(tmp_path / "run", {Table.TERM: rows}))
    for letter in (b"a", b"b", b"c"):
        assert run.find(Table.TERM, letter * 8) == [row for row in rows if row.startswith(letter)]
    assert run.find(Table.TERM, b"") == rows
    assert run.find(Table.TERM, b"bbbbbbbc") == []


def test_borders_of_a_range(tmp_path: Path) -> None:
    """Every pair of borders around the first and last rows of blocks, both ways: [low, high)."""
    rows = [(2 * n).to_bytes(16, "big") for n in range(3 * BLOCK_ROWS + 5)]
    run = opened(wrote(tmp_path / "run", {Table.ID: rows}))
    around = {0, len(rows) - 1, *(BLOCK_ROWS * n + d for n in (1, 2, 3) for d in (-1, 0, 1))}
    borders = [(2 * n + d).to_bytes(16, "big") for n in sorted(around) for d in (0, 1)]
    borders += [b"", b"\xff" * 16]
    for low, high in itertools.product(borders, repeat=2):
        wanted = [row for row in rows if low <= row < high]
        assert list(run.range(Table.ID, low, high, reverse=False)) == wanted
        assert list(run.range(Table.ID, low, high, reverse=True)) == wanted[::-1]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_as_a_sorted_list_would_answer(tmp_path: Path, data: st.DataObject) -> None:
    """Few different bytes, so that prefixes are shared; any number of rows around the size of a block."""
    seed, count = data.draw(st.integers(0, 1 << 30)), data.draw(st.integers(1, 2 * BLOCK_ROWS + 3))
    rows = random_rows(count, 9, seed, spread=data.draw(st.sampled_from([2, 3, 17, 256])))
    run = opened(wrote(tmp_path / "run", {Table.TERM: rows}, step=data.draw(st.integers(1, 900))))
    keys = st.one_of(st.sampled_from(rows), st.binary(max_size=9))
    for _ in range(8):
        low, high = data.draw(keys), data.draw(keys)
        prefix = low[: data.draw(st.integers(0, 9))]
        assert run.find(Table.TERM, prefix) == [row for row in rows if row.startswith(prefix)]
        within = [row for row in rows if low <= row < high]
        assert list(run.range(Table.TERM, low, high, reverse=False)) == within
        assert list(run.range(Table.TERM, low, high, reverse=True)) == within[::-1]


@pytest.mark.parametrize("expected", [None, 0, 10, 1_000_000])
def test_filters_never_deny_what_is_there(tmp_path: Path, expected: int | None) -> None:
    """Whatever was expected: too few rows make a filter that lets much through, and nothing worse."""
    rows = random_rows(4000, 25)
    guess = None if expected is None else {int(Table.CHUNK): expected}
    run = opened(wrote(tmp_path / "run", {Table.CHUNK: rows}, expected=guess))
    assert [row for row in rows if run.find(Table.CHUNK, row[:12]) != [row]] == []


def test_filters_keep_most_look_ups_from_reading(tmp_path: Path) -> None:
    run = opened(wrote(tmp_path / "run", {Table.CHUNK: random_rows(4000, 25)}))
    read: list[int] = []
    load = run._load
    run._load = lambda table, number: (read.append(number), load(table, number))[1]  # type: ignore[method-assign]
    cold = [run.find(Table.CHUNK, row[:12]) for row in random_rows(2000, 25, 9)]
    assert cold.count([]) == len(cold)
    assert len(read) < 0.05 * len(cold)


# -- merging


def test_merged_has_each_row_once(tmp_path: Path) -> None:
    rows = random_rows(3000, 16)
    rng = random.Random(3)
    parts = [sorted(rng.sample(rows, 1200)) for _ in range(5)]
    found = listed(
        merged([in_blocks(part, step) for part, step in zip(parts, (1, 7, 512, 513, 5000), strict=True)])
    )
    assert found == sorted(set().union(*parts))


def test_merged_of_nothing_and_of_one() -> None:
    assert listed(merged([])) == []
    assert listed(merged([iter([]), iter([])])) == []
    rows = random_rows(50, 16)
    assert listed(merged([in_blocks(rows)])) == rows
    assert listed(merged([iter([]), in_blocks(rows)])) == rows
    assert listed(merged([in_blocks(rows), in_blocks(rows), in_blocks(rows, 50)])) == rows


def test_merged_keeps_what_it_is_told_to() -> None:
    rows = random_rows(900, 16)
    seen: list[bytes] = []

    def keep(some: list[bytes]) -> list[bytes]:
        seen.extend(some)
        return [row for row in some if row[0] % 3]

    assert listed(merged([in_blocks(rows[::2]), in_blocks(rows[1::2], 11)], keep)) == [
        row for row in rows if row[0] % 3
    ]
    assert seen == rows, "each row is asked about once, in order"


def test_merged_of_what_was_kept() -> None:
    """A source that gives an empty list in between, as `keep` makes them, is not at its end."""
    rows = [bytes([n]) * 16 for n in range(60)]
    thinned = merged([in_blocks(rows, 5)], lambda some: [row for row in some if not 10 <= row[0] < 30])
    assert listed(merged([thinned])) == [row for row in rows if not 10 <= row[0] < 30]


@settings(max_examples=80, deadline=None)
@given(st.lists(st.lists(st.binary(min_size=3, max_size=3), max_size=60), max_size=6), st.integers(1, 20))
def test_merged_as_sorting_would(parts: list[list[bytes]], step: int) -> None:
    sources = [in_blocks(sorted(set(part)), step) for part in parts]
    assert listed(merged(sources)) == sorted(set().union(*parts))


def test_runs_merged_into_a_run(tmp_path: Path) -> None:
    rows = random_rows(4000, 25)
    runs = [opened(wrote(tmp_path / f"{n}", {Table.CHUNK: rows[n::4]}), n) for n in range(4)]
    with RunWriter(tmp_path / "all", filtered=FILTERED, expected={int(Table.CHUNK): len(rows)}) as writer:
        writer.table(Table.CHUNK, merged([run.blocks(Table.CHUNK) for run in runs]))
        writer.finish()
    assert whole(opened(tmp_path / "all"), Table.CHUNK) == rows


# -- the file


def test_a_writer_that_fails_leaves_nothing(tmp_path: Path) -> None:
    class BreakError(Exception):
        pass

    def rows() -> Iterator[list[bytes]]:
        yield random_rows(600, 16)
        raise BreakError

    with pytest.raises(BreakError), RunWriter(tmp_path / "run", filtered=FILTERED, expected={}) as writer:
        writer.table(Table.ID, rows())
    assert list(tmp_path.iterdir()) == []


def test_open_runs_outlive_their_file(tmp_path: Path) -> None:
    rows = random_rows(2000, 16)
    run = opened(wrote(tmp_path / "run", {Table.ID: rows}))
    run.path.unlink()
    assert whole(run, Table.ID) == rows


def test_many_threads_read_one_run(tmp_path: Path) -> None:
    """With a cache that is always too small."""
    rows = random_rows(5000, 25)
    run = Run(wrote(tmp_path / "run", {Table.CHUNK: rows}), 1, Blocks(2))
    wrong: list[object] = []

    def read(seed: int) -> None:
        try:
            some = random.Random(seed).sample(rows, 300)
            wrong.extend(row for row in some if run.find(Table.CHUNK, row[:12]) != [row])
        except BaseException as exc:  # noqa: BLE001 - whatever it is must fail the test
            wrong.append(exc)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def answers(path: Path, tables: Tables) -> str:
    """What a run file makes of all there is to ask: "right", "ValueError", or what else it was."""
    try:
        run = opened(path)
        for table, rows in tables.items():
            told = (
                run.count(table) == len(rows),
                listed(run.blocks(table)) == rows,
                whole(run, table) == rows,
                all(run.find(table, row) == [row] for row in rows),
            )
            if not all(told):
                return f"wrong rows of table {table}: {told}"
    except (ValueError, OSError) as exc:
        return type(exc).__name__ if isinstance(exc, OSError) else "ValueError"
    except Exception as exc:  # noqa: BLE001 - what it is is the answer
        return f"{type(exc).__name__}: {exc}"
    return "right"


SMALL: list[Tables] = [
    {Table.CHUNK: random_rows(30, 25), Table.ID: random_rows(9, 16), Table.TERM: random_rows(100, 16)},
    {Table.ID: [bytes(15) + bytes([n]) for n in range(40)]},  # packs to next to nothing
]


@pytest.mark.parametrize("number", range(len(SMALL)))
def test_a_changed_byte_anywhere_tells_nothing_wrong(tmp_path: Path, number: int) -> None:
    """Each bit of each byte, and 0 and 255: right rows, or ValueError."""
    tables = SMALL[number]
    path = wrote(tmp_path / "run", tables)
    data = path.read_bytes()
    changed = tmp_path / "changed"
    wrong: dict[str, list[str]] = {}
    for offset, byte in enumerate(data):
        for value in sorted({0, 255, *(byte ^ 1 << bit for bit in range(8))} - {byte}):
            changed.write_bytes(data[:offset] + bytes([value]) + data[offset + 1 :])
            told = answers(changed, tables)
            if told not in {"right", "ValueError"}:
                wrong.setdefault(told, []).append(f"{offset}={value}")
    assert wrong == {}, f"of {len(data)} bytes"


def test_a_file_cut_short_anywhere_is_refused(tmp_path: Path) -> None:
    path = wrote(tmp_path / "run", SMALL[0])
    data = path.read_bytes()
    cut = tmp_path / "cut"
    for size in range(len(data)):
        cut.write_bytes(data[:size])
        with pytest.raises(ValueError):  # noqa: PT011 - any words will do
            opened(cut)
    assert data.startswith(MAGIC)


def test_bytes_behind_the_end_are_refused(tmp_path: Path) -> None:
    path = wrote(tmp_path / "run", SMALL[0])
    path.write_bytes(path.read_bytes() + b"\0" * 40)
    with pytest.raises(ValueError, match="damaged or cut short"):
        opened(path)


def test_a_block_of_another_run_is_refused(tmp_path: Path) -> None:
    """Whole and sound, but not of this file: as after a write that went astray."""
    first, second = ([bytes([n]) + bytes(14) + bytes([m]) for m in range(250)] for n in (1, 2))
    paths = [wrote(tmp_path / f"{n}", {Table.ID: rows}) for n, rows in enumerate((first, second))]
    runs = [opened(path) for path in paths]
    spans = [(run._tables[Table.ID].start, run._tables[Table.ID].ends[0]) for run in runs]
    if spans[0] != spans[1]:
        pytest.skip("the blocks are of different lengths")
    data = bytearray(paths[0].read_bytes())
    data[slice(*spans[0])] = paths[1].read_bytes()[slice(*spans[1])]
    paths[0].write_bytes(data)
    assert answers(paths[0], {Table.ID: first}) == "ValueError"
