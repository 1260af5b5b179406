"""Image files that are cut, odd, corrupt or too large."""

import io
import zlib

import domains
import numpy as np
from bad_inputs_case import Case, encoded, on_folder, write_images
from PIL import Image


def _chunk(name, content):
    check = zlib.crc32(name + content)
    return (
        len(content).to_bytes(4, "big")
        + name
        + content
        + check.to_bytes(4, "big")
    )


def flat_png(width, height):
    """Returns a black gray PNG of any size, in a few KB."""
    packer = zlib.compressobj(9)
    row, packed = bytes(width + 1), []
    for _ in range(height):
        packed.append(packer.compress(row))
    packed.append(packer.flush())
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    return (
        b"\x89PNG\r\n\x1a\n"
        + _chunk(b"IHDR", header + bytes([8, 0, 0, 0, 0]))
        + _chunk(b"IDAT", b"".join(packed))
        + _chunk(b"IEND", b"")
    )


def deep_png(array):
    """Returns a PNG of 16 bits a channel, in colour and maybe with alpha."""
    height, width, channels = array.shape
    rows = (array.astype(">u2") * 257).reshape(height, -1)
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    kind = {3: 2, 4: 6}[channels]
    content = b"".join(b"\0" + row.tobytes() for row in rows)
    return (
        b"\x89PNG\r\n\x1a\n"
        + _chunk(b"IHDR", header + bytes([16, kind, 0, 0, 0]))
        + _chunk(b"IDAT", zlib.compress(content))
        + _chunk(b"IEND", b"")
    )


def lying_png(width, height):
    """Returns a PNG whose header promises more pixels than there are."""
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    return (
        b"\x89PNG\r\n\x1a\n"
        + _chunk(b"IHDR", header + bytes([8, 2, 0, 0, 0]))
        + _chunk(b"IDAT", zlib.compress(bytes(100)))
        + _chunk(b"IEND", b"")
    )


def _patched(content, position, replacement):
    end = position + len(replacement)
    return content[:position] + replacement + content[end:]


def _frames(kind, **options):
    frames = [Image.fromarray(domains.photograph(i, 24, 30)) for i in range(3)]
    file = io.BytesIO()
    frames[0].save(
        file, kind, save_all=True, append_images=frames[1:], **options
    )
    return file.getvalue()


def image_case(name, content, ends="sentence", bindings=()):
    """Returns a case of one bad image file among good ones."""

    def make(directory):
        bad = content() if callable(content) else content
        write_images(directory, bad, name)
        return on_folder(directory, *bindings)

    says = name if ends != "well" else ""
    label = f"{name} {' '.join(bindings)}".strip()
    return Case("image", label, make, ends, says)


def truncated_images():
    """Yields files of each format cut off at many places."""
    array = domains.photograph(1, 40, 30)
    files = {
        "cut.jpg": encoded(array, "JPEG"),
        "cut_progressive.jpg": encoded(array, "JPEG", progressive=True),
        "cut.png": encoded(array),
        "cut.gif": encoded(array, "GIF"),
        "cut.bmp": encoded(array, "BMP"),
    }
    for name, content in files.items():
        stem, suffix = name.split(".")
        for percent in (0, 1, 5, 20, 50, 80, 99):
            yield image_case(
                f"{stem}_{percent}.{suffix}",
                content[: len(content) * percent // 100],
                # The end of a file can be mere padding, or a trailer.
                "either" if percent == 99 else "sentence",
            )


def odd_images():
    """Yields whole files of unusual kinds."""
    array = domains.photograph(2, 26, 34)
    gray, deep = array[..., 0], array[..., 0].astype(np.uint16) * 257
    alpha = np.dstack([array, gray])
    exif = Image.Exif()
    exif[0x0112] = 6
    files = {
        "cmyk.jpg": encoded(array, "JPEG", "CMYK"),
        "gray.jpg": encoded(gray, "JPEG"),
        "progressive.jpg": encoded(array, "JPEG", progressive=True),
        "rotated.jpg": encoded(array, "JPEG", exif=exif),
        "deep.png": encoded(deep),
        "deep_color.png": deep_png(array),
        "deep_alpha.png": deep_png(alpha),
        "palette.png": encoded(array, mode="P"),
        "one_bit.png": encoded(array, mode="1"),
        "alpha.png": encoded(alpha),
        "gray_alpha.png": encoded(array, mode="LA"),
        "animated.gif": _frames("GIF"),
        "animated.png": _frames("PNG"),
        "really_a_png.jpg": encoded(array),
        "really_a_jpeg.png": encoded(array, "JPEG"),
        "really_a_gif.jpg": encoded(array, "GIF"),
        "really_a_bmp.jpg": encoded(array, "BMP"),
        "alpha.bmp": encoded(alpha, "BMP"),
        "gray.bmp": encoded(gray, "BMP"),
        "palette.bmp": encoded(array, "BMP", "P"),
        "one_pixel.png": encoded(array[:1, :1]),
        "one_pixel.jpg": encoded(array[:1, :1], "JPEG"),
        "one_pixel.gif": encoded(array[:1, :1], "GIF"),
        "thin.png": encoded(array[:, :1]),
        "no_suffix": encoded(array),
    }
    decodable = {"alpha.bmp", "palette.bmp", "gray_alpha.png", "one_bit.png"}
    for name, content in files.items():
        yield image_case(
            name, content, "either" if name in decodable else "well"
        )
    others = {
        "tiff.tif": encoded(array, "TIFF"),
        "webp.webp": encoded(array, "WEBP"),
        "webp.jpg": encoded(array, "WEBP"),
        "animated.webp": _frames("WEBP"),
        "icon.ico": encoded(array, "ICO"),
        "portable.ppm": encoded(array, "PPM"),
        "text.png": b"not an image\n",
        "text.jpg": "nicht wahr \N{PILE OF POO}".encode(),
        "page.png": b"<html><body>404</body></html>",
        "empty.png": b"",
        "empty.jpg": b"",
        "one_byte.png": b"\x89",
        "zeros.jpg": bytes(1000),
        "noise.png": np.random.RandomState(0).bytes(2000),
        "noise.jpg": b"\xff\xd8\xff" + np.random.RandomState(1).bytes(2000),
        "noise.gif": b"GIF89a" + np.random.RandomState(2).bytes(2000),
        "noise.bmp": b"BM" + np.random.RandomState(3).bytes(2000),
        "archive.png": b"PK\x03\x04" + bytes(200),
        "pointer.jpg": b"version https://git-lfs.github.com/spec/v1\n",
    }
    for name, content in others.items():
        yield image_case(name, content)
    for name in ("text.png", "empty.jpg", "noise.bmp"):
        skip = "load.on_damaged = 'skip'"
        yield image_case(name, others[name], "well", [skip])


def corrupt_headers():
    """Yields files in which a few bytes are wrong."""
    array = domains.photograph(3, 30, 30)
    png, jpeg = encoded(array), encoded(array, "JPEG")
    gif, bmp = encoded(array, "GIF"), encoded(array, "BMP")
    most = b"\xff\xff\xff\x7f"
    files = {
        "width_0.png": lying_png(0, 10),
        "height_0.png": lying_png(10, 0),
        "color_type.png": _patched(png, 25, b"\x07"),
        "depth.png": _patched(png, 24, b"\x03"),
        "checksum.png": _patched(png, 29, b"\0\0\0\0"),
        "signature.png": _patched(png, 1, b"GNP"),
        "data.png": _patched(png, 60, bytes(40)),
        "signature.jpg": _patched(jpeg, 0, b"\0\0"),
        "tables.jpg": _patched(jpeg, 30, bytes(200)),
        "signature.gif": _patched(gif, 0, b"GIG"),
        "offset.bmp": _patched(bmp, 10, most),
        "width_large.bmp": _patched(bmp, 18, most),
        "height_large.bmp": _patched(bmp, 22, most),
        "height_least.bmp": _patched(bmp, 22, b"\0\0\0\x80"),
        "bits.bmp": _patched(bmp, 28, b"\x07\0"),
        "width_0.bmp": _patched(bmp, 18, bytes(4)),
    }
    for name, content in files.items():
        yield image_case(name, content, "either")


def large_images():
    """Yields images that would not fit into memory, or nearly."""
    bound = 2**31 - 1
    files = {
        "bomb_20000.png": lambda: flat_png(20_000, 20_000),
        "bomb_60000.png": lambda: lying_png(60_000, 60_000),
        "bomb_most.png": lambda: lying_png(bound, bound),
        "bomb_wide.png": lambda: lying_png(bound, 1),
        "bomb_thin.png": lambda: flat_png(1, 20_000),
        "bomb_flat.png": lambda: flat_png(60_000, 1),
        "bomb_thin.jpg": lambda: encoded(
            np.zeros((60_000, 1), np.uint8), "JPEG", "L"
        ),
        "bomb.gif": lambda: _patched(
            encoded(np.zeros((9, 9), np.uint8), "GIF", "L"), 6, b"\xff" * 4
        ),
        "bomb_lying.jpg": lambda: _sized_jpeg(65_000, 65_000),
        "bomb.bmp": lambda: _patched(
            encoded(np.zeros((9, 9), np.uint8), "BMP", "L"),
            18,
            (40_000).to_bytes(4, "little") * 2,
        ),
    }
    for name, content in files.items():
        yield image_case(name, content)
        encode = ["load.keep = 'encoded'"]
        yield image_case(name, content, bindings=encode)
    large = "large_4000.png"
    yield image_case(large, lambda: flat_png(4_000, 4_000), "well")


def _sized_jpeg(width, height):
    content = encoded(domains.photograph(1, 16, 16), "JPEG")
    frame = content.index(b"\xff\xc0") + 5
    sides = height.to_bytes(2, "big") + width.to_bytes(2, "big")
    return _patched(content, frame, sides)
