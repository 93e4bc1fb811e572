"""MP3 frames, as far as finding the byte where a moment begins takes: ffmpeg only guesses it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

_BITRATES: Final = {
    # (MPEG-1?, layer): kbit/s by index
    (True, 1): (0, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_RATES: Final = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}
# Frames decoded and thrown away before the wanted one: they fill the bit reservoir and the filter bank.
PREROLL_FRAMES: Final = 12

ReadAt = Callable[[int, int], bytes]


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame's header: its length in bytes, its samples, its rate in Hz, its bitrate in bit/s."""

    length: int
    samples: int
    rate: int
    bitrate: int


@dataclass(frozen=True, slots=True)
class Place:
    """A frame in a file: `byte` where it begins, `sample` (at the file's rate) that it decodes to first."""

    byte: int
    sample: int


def parse_frame(head: bytes) -> Frame | None:
    """The frame whose header is the first four bytes of `head`; None where it is none."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return None
    version, layer = head[1] >> 3 & 3, 4 - (head[1] >> 1 & 3)
    bitrate_index, rate_index, padding = head[2] >> 4, head[2] >> 2 & 3, head[2] >> 1 & 1
    if version == 1 or layer == 4 or bitrate_index in {0, 15} or rate_index == 3:
        return None
    first = version == 3
    bitrate = _BITRATES[first, layer][bitrate_index] * 1000
    rate = _RATES[version][rate_index]
    if layer == 1:
        return Frame((12 * bitrate // rate + padding) * 4, 384, rate, bitrate)
    samples = 1152 if first or layer == 2 else 576
    return Frame(samples // 8 * bitrate // rate + padding, samples, rate, bitrate)


def id3_length(head: bytes) -> int:
    """How many bytes the ID3v2 tag at the start of `head` (10 bytes suffice) takes; 0 without one."""
    if len(head) < 10 or head[:3] != b"ID3":
        return 0
    size = (head[6] & 127) << 21 | (head[7] & 127) << 14 | (head[8] & 127) << 7 | head[9] & 127
    return size + (20 if head[5] & 0x10 else 10)


def find_frame(read_at: ReadAt, start: int, *, reach: int = 8192) -> int | None:
    """The first byte from `start` on where three frames follow each other; None within `reach` bytes."""
    data = read_fully(read_at, start, reach + 8192)
    for offset in range(min(reach, len(data))):
        if data[offset] == 0xFF and _chain(data, offset):
            return start + offset
    return None


def _chain(data: bytes, offset: int) -> bool:
    for _ in range(3):
        frame = parse_frame(data[offset : offset + 4])
        if frame is None:
            return False
        offset += frame.length
    return True


def read_fully(read_at: ReadAt, start: int, count: int) -> bytes:
    """`count` bytes from `start` on, fewer only at the end."""
    data = b""
    while len(data) < count:
        more = read_at(start + len(data), count - len(data))
        if not more:
            break
        data += more
    return data


def _vbr_tag(frame_bytes: bytes) -> bytes | None:
    """What the first frame says: `Info` (constant bitrate), `Xing` or `VBRI` (variable); None: plain sound."""
    for tag in (b"Info", b"Xing", b"VBRI"):
        if tag in frame_bytes[:64]:
            return tag
    return None


def locate(read_at: ReadAt, size: int | None, sample: int, delay: int, *, scan: bool) -> Place | None:
    """The frame to begin decoding at so that `sample` (at the file's rate) comes out after the preroll.

    `delay`: samples of encoder delay the decoder drops at the file's start. `scan` walks all frames from the start,
    exact for any file: for cheap reads. Without it the place is computed: exact at constant bitrate, near at a variable
    one. None where the file gives no hold.
    """
    first = find_frame(read_at, id3_length(read_at(0, 10)))
    if first is None:
        return None
    header = parse_frame(read_fully(read_at, first, 4))
    if header is None:
        return None
    tag = _vbr_tag(read_fully(read_at, first, 192))
    begin = first + header.length if tag else first
    wanted = max((sample + delay) // header.samples - PREROLL_FRAMES, 0)
    if wanted == 0:
        return Place(begin, -delay)
    if scan:
        return _walk(read_at, begin, wanted, header.samples, delay)
    sound = parse_frame(read_fully(read_at, begin, 4)) or header
    exact_length = sound.samples / 8 * sound.bitrate / sound.rate
    if tag in {b"Xing", b"VBRI"} and size is not None:
        frames = _frames_in(read_fully(read_at, first, 192), tag)
        if frames:
            exact_length = (size - begin) / frames
    # One byte early: where padding is spent differently, the wanted frame must not just have been missed.
    found = find_frame(read_at, begin + max(round(wanted * exact_length) - 2, 0))
    if found is None:
        return None
    return Place(found, round((found - begin) / exact_length) * header.samples - delay)


def _frames_in(frame_bytes: bytes, tag: bytes | None) -> int:
    at = frame_bytes.find(tag or b"")
    if tag == b"Xing" and frame_bytes[at + 7] & 1:
        return int.from_bytes(frame_bytes[at + 8 : at + 12])
    if tag == b"VBRI":
        return int.from_bytes(frame_bytes[at + 14 : at + 18])
    return 0


def _walk(read_at: ReadAt, begin: int, wanted: int, samples: int, delay: int) -> Place | None:
    at, index = begin, 0
    block, block_at = b"", begin
    while index < wanted:
        if not block_at <= at <= block_at + len(block) - 4:
            block, block_at = read_fully(read_at, at, 65536), at
        frame = parse_frame(block[at - block_at : at - block_at + 4])
        if frame is None:
            return None
        at += frame.length
        index += 1
    return Place(at, wanted * samples - delay)
