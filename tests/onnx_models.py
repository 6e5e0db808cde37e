"""ONNX files written by hand, byte by byte, because the package `onnx` is not needed otherwise.

Source of the field numbers: onnx.proto, ModelProto, GraphProto, NodeProto, TensorProto,
ValueInfoProto.
"""

FLOAT, UINT8, INT64, FLOAT16 = 1, 2, 7, 10


def varint(number):
    groups = []
    while number > 127:
        groups.append(number & 127 | 128)
        number >>= 7
    return bytes([*groups, number])


def field(number, value):
    """Return one field of a protobuf message: an integer, or text, bytes or a message."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    body = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(body)) + body


def tensor_info(name, shape, element_type=FLOAT):
    """Return a ValueInfoProto; a shape of None is not known."""
    sizes = (field(2, size) if isinstance(size, str) else field(1, size) for size in shape or ())
    dimensions = b"".join(field(1, size) for size in sizes)
    kind = field(1, element_type) + (b"" if shape is None else field(2, dimensions))
    return field(1, name) + field(2, field(1, kind))


def node(kind, sources, targets, *attributes):
    parts = [*(field(1, s) for s in sources), *(field(2, t) for t in targets), field(4, kind)]
    return b"".join([*parts, *(field(5, a) for a in attributes)])


def integer(name, value):
    return field(1, name) + field(3, value) + field(20, 2)


def integers(name, values):
    return field(1, name) + b"".join(field(8, value) for value in values) + field(20, 7)


def graph_attribute(name, graph):
    return field(1, name) + field(6, graph) + field(20, 5)


def constant(name, values, element_type=FLOAT):
    """Return a one-dimensional TensorProto with its values in it."""
    return (
        field(1, len(values)) + field(2, element_type) + field(8, name) + field(9, values.tobytes())
    )


def external(name, size, location):
    """Return a one-dimensional float TensorProto whose values are in another file."""
    place = field(1, "location") + field(2, location)
    return field(1, size) + field(2, FLOAT) + field(8, name) + field(13, place) + field(14, 1)


def graph(nodes, inputs=(), outputs=(), tensors=()):
    parts = [field(1, n) for n in nodes] + [field(2, "graph")] + [field(5, t) for t in tensors]
    parts += [field(11, i) for i in inputs] + [field(12, o) for o in outputs]
    return b"".join(parts)


def model(*parts, **named):
    """Return a ModelProto of IR version 8, operators of version 13."""
    content = graph(*parts, **named)
    return field(1, 8) + field(7, content) + field(8, field(1, "") + field(2, 13))


def channel_means(
    shape=("N", 3, 112, 112),
    *,
    name="data",
    element_type=FLOAT,
    channels_last=None,
    extra_outputs=(),
    nodes=(),
):
    """Return a model whose output `embedding` is the mean of each channel of an image.

    The input may have its channels first or last and be of any type; `nodes` come after, and what
    they make can be in `extra_outputs`, (name, shape) that are listed before the embedding.
    """
    steps = [node("Cast", [name], ["values"], integer("to", FLOAT))]
    if (shape[1] != 3 and shape[-1] == 3) if channels_last is None else channels_last:
        steps.append(node("Transpose", ["values"], ["first"], integers("perm", [0, 3, 1, 2])))
    else:
        steps.append(node("Identity", ["values"], ["first"]))
    steps += [node("GlobalAveragePool", ["first"], ["pooled"])]
    steps += [node("Flatten", ["pooled"], ["embedding"]), *nodes]
    outputs = [tensor_info(*output) for output in extra_outputs]
    outputs.append(tensor_info("embedding", None))
    return model(steps, inputs=[tensor_info(name, shape, element_type)], outputs=outputs)
