"""TFRecord files without TensorFlow, which takes longer to import than many conversions take.

Reference:
    https://www.tensorflow.org/tutorials/load_data/tfrecord (the framing of a record).
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterable
from pathlib import Path

import google_crc32c

_FLUSH_BYTES = 2**20
_GZIP = 16 + zlib.MAX_WBITS


def write_tfrecord(path: Path, messages: Iterable[bytes], compression: str) -> tuple[int, str]:
    """Writes messages as the records of one file.

    Args:
        path: The file.
        messages: Each becomes a record.
        compression: "none" or "gzip".

    Returns:
        Size of the file, and its SHA-256 in hexadecimal.

    Example:
        >>> import tempfile
        >>> write_tfrecord(Path(tempfile.mkdtemp()) / "one", [b"a"], "none")[0]
        17
    """
    squeeze = zlib.compressobj(wbits=_GZIP) if compression == "gzip" else None
    digest, size = hashlib.sha256(), 0
    heads: dict[int, bytes] = {}
    pieces: list[bytes] = []
    waiting = 0
    with open(path, "wb") as file:

        def write(block: bytes) -> None:
            nonlocal size
            digest.update(block)
            size += file.write(block)

        for message in messages:
            length = len(message)
            head = heads.get(length)
            if head is None:
                head = length.to_bytes(8, "little")
                head = heads[length] = head + checksum(head)
            pieces += (head, message, checksum(message))
            waiting += length
            if waiting >= _FLUSH_BYTES:
                block = b"".join(pieces)
                write(squeeze.compress(block) if squeeze else block)
                pieces.clear()
                waiting = 0
        block = b"".join(pieces)
        write(squeeze.compress(block) + squeeze.flush() if squeeze else block)
    return size, digest.hexdigest()


def checksum(content: bytes) -> bytes:
    """CRC-32C, rotated and shifted, so that the checksum of a checksum is not a special number."""
    crc = google_crc32c.value(content)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8 & 0xFFFFFFFF).to_bytes(4, "little")
