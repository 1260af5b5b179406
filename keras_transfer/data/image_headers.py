"""What an image file says of itself before its first pixel is decoded.

A file of a few KB can hold more pixels than there is memory for, and some hold
what TensorFlow would decode as something else. Nothing here raises an error for
what a file holds.
"""

import dataclasses
import struct

# Rows of blue, green and red, as nearly all BMPs of 32 bits have them.
_USUAL_MASKS = struct.pack("<3I", 0xFF0000, 0xFF00, 0xFF)
# Frames of an animation are all unpacked, a byte a pixel, though one is used.
_MOST_FRAMES = 2
_ORIENTATION = 0x0112


@dataclasses.dataclass(frozen=True)
class Header:
    """What a file claims to be.

    Attributes:
        height: in pixels; 0 if it is not known.
        width: likewise.
        problem: words for what cannot be decoded; "" if nothing speaks
            against it.
        is_turned: whether EXIF wants the image turned or mirrored.
        is_deep: whether it has 16 bits a channel.
    """

    height: int = 0
    width: int = 0
    problem: str = ""
    is_turned: bool = False
    is_deep: bool = False


def read_header(content, max_pixels):
    """Returns the `Header` of a JPEG, PNG, GIF or BMP; an empty one of others.

    Args:
        content: bytes, the whole file.
        max_pixels: how many pixels are decoded at most.
    """
    readers = {
        b"\xff\xd8": lambda: _jpeg(content),
        b"\x89P": lambda: _png(content),
        b"GI": lambda: _gif(content, max_pixels),
        b"BM": lambda: _bmp(content),
    }
    try:
        return readers.get(content[:2], Header)()
    except (struct.error, IndexError):
        return Header()  # It is cut short.


def _png(content):
    width, height, depth = struct.unpack_from(">IIB", content, 16)
    is_turned, position = False, 8
    while position + 8 <= len(content):
        length, kind = struct.unpack_from(">I4s", content, position)
        if kind == b"IDAT":
            break
        if kind == b"eXIf":
            is_turned = _is_turned(content[position + 8 :][:length])
        position += 12 + length
    return Header(height, width, is_turned=is_turned, is_deep=depth == 16)


def _jpeg(content):
    found, position = Header(), 2
    try:
        while content[position] == 0xFF:
            marker, length = struct.unpack_from(">BH", content, position + 1)
            if marker == 0xFF:  # Filling.
                position += 1
                continue
            if marker == 0xDA:  # Pixels follow.
                break
            body = content[position + 4 : position + 2 + length]
            # Frames of all kinds; the others in this range are tables.
            if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
                height, width = struct.unpack_from(">HH", body, 1)
                found = dataclasses.replace(found, height=height, width=width)
            if marker == 0xE1 and body.startswith(b"Exif\0\0"):
                turned = _is_turned(body[6:])
                found = dataclasses.replace(found, is_turned=turned)
            position += 2 + length
    except (struct.error, IndexError):
        pass
    return found


def _is_turned(exif):
    """Returns whether the orientation in EXIF data is another than upright."""
    try:
        order = {b"II": "<", b"MM": ">"}[exif[:2]]
        (start,) = struct.unpack_from(f"{order}I", exif, 4)
        (count,) = struct.unpack_from(f"{order}H", exif, start)
        for position in range(start + 2, start + 2 + 12 * count, 12):
            tag, _, _, value = struct.unpack_from(
                f"{order}HHIH", exif, position
            )
            if tag == _ORIENTATION:
                return 2 <= value <= 8
    except (KeyError, struct.error):
        pass
    return False


def _gif(content, max_pixels):
    width, height, flags = struct.unpack_from("<HHB", content, 6)
    problem, total = "", 0
    for frame_width, frame_height in _frames(content, 13 + _colours(flags)):
        total += frame_width * frame_height
        if frame_width * frame_height > max_pixels:
            problem = f"a GIF with a frame of {frame_width} x {frame_height}"
    if not problem and total > _MOST_FRAMES * max_pixels:
        problem = f"a GIF whose frames have {total:,} pixels in all"
    return Header(height, width, problem)


def _frames(content, position):
    """Yields (width, height) of a GIF's frames, as far as they can be read."""
    try:
        while content[position] in b"!,":
            if content[position] == ord("!"):
                position += 2
            else:
                yield struct.unpack_from("<HH", content, position + 5)
                position += 11 + _colours(content[position + 9])
            while content[position]:
                position += 1 + content[position]
            position += 1
    except (struct.error, IndexError):
        return


def _colours(flags):
    """Returns the bytes of a GIF's table of colours."""
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _bmp(content):
    size, width, height, _, bits, compression = struct.unpack_from(
        "<IiiHHI", content, 14
    )
    plain = compression == 0 and bits in (8, 24, 32)
    masked = (compression, bits) == (3, 32) and (content[54:66] == _USUAL_MASKS)
    if size < 40:
        return Header(problem="a BMP of an old kind")
    if not plain and not masked:
        return Header(
            problem=f"a BMP of {bits} bits a pixel, compression {compression}"
        )
    # Rows from top to bottom are told by a negative height.
    return Header(abs(height), max(width, 0))
