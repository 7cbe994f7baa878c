"""PDFs and PNGs made by hand, so that tests need no other library to write them."""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Callable, Sequence

import pytest

# The padding of passwords in PDF's standard security handler (ISO 32000-1, algorithm 2).
_PASSWORD_PADDING = bytes.fromhex("28BF4E5E4E758A4164004E56FFFA01082E2E00B6D0683E802F0CA9FE6453697A")
_FILE_ID = b"0123456789abcdef"

PdfMaker = Callable[..., bytes]
PngMaker = Callable[..., bytes]


@pytest.fixture(scope="session")
def make_pdf() -> PdfMaker:
    """Return a function that writes a PDF of blank pages, sizes in points."""
    return _pdf


@pytest.fixture(scope="session")
def make_png() -> PngMaker:
    """Return a function that writes a black one-bit PNG of any size."""
    return _png


def _pdf(sizes: Sequence[tuple[float, float]], *, rotate: int = 0, encrypted: str | None = None) -> bytes:
    """Write a PDF; `encrypted` is "password" for one that asks for it, "open" for one that does not."""
    count = len(sizes)
    kids = " ".join(f"{3 + index} 0 R" for index in range(count))
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {count} >>".encode(),
    ]
    for width, height in sizes:
        page = f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 {width} {height}] /Rotate {rotate} >>"
        objects.append(page.encode())
    trailer = f"/Size {len(objects) + 1 + (encrypted is not None)} /Root 1 0 R".encode()
    if encrypted is not None:
        owner = bytes(range(32))
        permissions = -4
        # An entry that no password leads to, or the one that the empty password leads to.
        key = hashlib.md5(
            _PASSWORD_PADDING + owner + struct.pack("<i", permissions) + _FILE_ID, usedforsecurity=False
        ).digest()[:5]
        user = bytes(32) if encrypted == "password" else _rc4(key, _PASSWORD_PADDING)
        secrets = f"/P {permissions} /O <{owner.hex()}> /U <{user.hex()}>"
        objects.append(f"<< /Filter /Standard /V 1 /R 2 {secrets} >>".encode())
        identity = f"/Encrypt {len(objects)} 0 R /ID [<{_FILE_ID.hex()}> <{_FILE_ID.hex()}>]"
        trailer += b" " + identity.encode()
    body = bytearray(b"%PDF-1.4\n")
    offsets: list[int] = []
    for number, content in enumerate(objects, start=1):
        offsets.append(len(body))
        body += b"%d 0 obj\n%s\nendobj\n" % (number, content)
    start = len(body)
    body += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    body += b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    body += b"trailer\n<< %s >>\nstartxref\n%d\n%%%%EOF\n" % (trailer, start)
    return bytes(body)


def _rc4(key: bytes, data: bytes) -> bytes:
    state = list(range(256))
    j = 0
    for i in range(256):
        j = (j + state[i] + key[i % len(key)]) % 256
        state[i], state[j] = state[j], state[i]
    out = bytearray()
    i = j = 0
    for byte in data:
        i = (i + 1) % 256
        j = (j + state[i]) % 256
        state[i], state[j] = state[j], state[i]
        out.append(byte ^ state[(state[i] + state[j]) % 256])
    return bytes(out)


def _png(width: int, height: int, *, exif_after_pixels: bytes = b"") -> bytes:
    row = bytes(1 + (width + 7) // 8)  # filter type 0, then the pixels
    packer = zlib.compressobj(1)
    pixels = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)), (b"IDAT", pixels)]
    if exif_after_pixels:
        chunks.append((b"eXIf", exif_after_pixels))
    chunks.append((b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
