"""TFRecord files with an index, written by the specification."""

import struct


def crc32c(data):
    """Return CRC-32C by polynomial division, bit by bit."""
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return value ^ 0xFFFFFFFF


def masked(data):
    value = crc32c(data)
    return struct.pack("<I", (((value >> 15) | (value << 17)) + 0xA282EAD8) % 2**32)


def varint(value):
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def field(number, content):
    return varint(number << 3 | 2) + varint(len(content)) + content


def feature(name, *values):
    return field(1, field(1, name) + field(2, field(1, b"".join(field(1, v) for v in values))))


INT64_LABEL = field(1, field(1, b"label") + field(2, field(3, field(1, varint(300)))))


def example(image, name=b"image"):
    return field(1, INT64_LABEL + feature(name, image))


def framed(data):
    length = struct.pack("<Q", len(data))
    return length + masked(length) + data + masked(data)


def write(folder, name, shards):
    """Write shards of (label, image) and return the lines of their index."""
    (folder / name).mkdir(parents=True, exist_ok=True)
    lines = []
    for shard, images in enumerate(shards):
        content = b""
        for label, image in images:
            lines.append(f"{name}\t{shard}\t{len(content)}\t{label}\n")
            content += framed(example(image))
        (folder / name / f"{name}-{shard:05d}.tfrecord").write_bytes(content)
    return lines
