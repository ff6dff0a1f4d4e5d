"""Block codec: compress and decompress the body of one record.

zstd frames carry their own checksum: without it a flipped bit decompresses to wrong bytes in silence.
Contexts are kept per thread, because one shared between threads crashes the process.
"""

from __future__ import annotations

import enum
import threading

import zstandard

DEFAULT_LEVEL = 3


class Codec(enum.IntEnum):
    """How a block's body is stored. Values are part of the format."""

    RAW = 0
    ZSTD = 1


class _Contexts(threading.local):
    def __init__(self) -> None:
        self.compressors: dict[int, zstandard.ZstdCompressor] = {}
        self.decompressor = zstandard.ZstdDecompressor()


_contexts = _Contexts()


def compress(data: bytes, level: int = DEFAULT_LEVEL) -> tuple[Codec, bytes]:
    """The smaller of the bytes as they are and a zstd frame at `level`."""
    compressor = _contexts.compressors.get(level)
    if compressor is None:
        compressor = zstandard.ZstdCompressor(level=level, write_checksum=True, write_content_size=True)
        _contexts.compressors[level] = compressor
    packed = compressor.compress(data)
    return (Codec.ZSTD, packed) if len(packed) < len(data) else (Codec.RAW, data)


def decompress(codec: int, body: bytes | memoryview, raw_bytes: int) -> bytes:
    """The `raw_bytes` bytes that were compressed. Raises `ValueError` when they do not come back."""
    if codec == Codec.RAW:
        data = bytes(body)
    elif codec == Codec.ZSTD:
        try:
            data = _contexts.decompressor.decompress(body, max_output_size=raw_bytes)
        except zstandard.ZstdError as exc:
            raise ValueError(str(exc)) from exc
    else:
        raise ValueError(f"unknown codec {codec}")
    if len(data) != raw_bytes:
        raise ValueError(f"block has {len(data)} bytes instead of {raw_bytes}")
    return data


def unpack(frame: bytes) -> bytes:
    """A zstd frame that tells its own size. Raises `zstandard.ZstdError`."""
    return _contexts.decompressor.decompress(frame)


def decompress_begin(codec: int, body: bytes | memoryview, upto: int) -> bytes:
    """The first `upto` of the bytes that were compressed, without the frame's own checksum, which stands at
    its end: what they are must be proved otherwise. Raises `ValueError` when they do not come back."""
    if codec == Codec.RAW:
        return bytes(body[:upto])
    if codec != Codec.ZSTD:
        raise ValueError(f"unknown codec {codec}")
    try:
        with zstandard.ZstdDecompressor().stream_reader(body) as reader:
            data = reader.read(upto)
    except zstandard.ZstdError as exc:
        raise ValueError(str(exc)) from exc
    if len(data) != upto:
        raise ValueError(f"block has {len(data)} bytes instead of {upto} or more")
    return data
