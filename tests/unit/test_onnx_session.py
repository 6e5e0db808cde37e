"""ONNX files: any input that an image can be, any output, and what strangers' files can hold."""

import sys
import threading

import numpy as np
import onnx_models
import pytest
from onnx_models import FLOAT16, INT64, UINT8, channel_means, external, model, node, tensor_info

from sdd_ray.core.preprocess import PRESETS, Preprocessing
from sdd_ray.errors import ConfigError, InputError, ResourceError, WeightsError
from sdd_ray.store.onnx_files import external_files, onnx_digest
from sdd_ray.store.onnx_session import OnnxOptions, OnnxSession
from sdd_ray.store.recogniser import RecogniserSpec, load_recogniser, weights_digest
from sdd_ray.store.weights import digest

onnxruntime = pytest.importorskip("onnxruntime")

NAMES = {1: "float32", FLOAT16: "float16", UINT8: "uint8"}


@pytest.fixture
def load(tmp_path):
    """Return a function that loads the content of an ONNX file."""

    def load_content(content, device="cpu", **options):
        path = tmp_path / "w.onnx"
        path.write_bytes(content)
        return load_recogniser(RecogniserSpec("onnx", str(path), **options), device=device)

    return load_content


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (7, 112, 112, 3), dtype=np.uint8)


@pytest.mark.parametrize("batch", [1, 4, 7, 20, "N"])
@pytest.mark.parametrize("name", ["data", "input.1"])
def test_any_batch_size_gives_every_row(load, images, batch, name):
    recogniser = load(
        channel_means((batch, 3, 112, 112), name=name), preprocessing=PRESETS["imagenet"]
    )
    assert recogniser.embedding_size == 3
    expected = PRESETS["imagenet"].apply(images).mean((2, 3))
    np.testing.assert_allclose(recogniser.embed(images), expected, atol=1e-5)
    many = list(recogniser.embed_many([images[:2], images[:0], images[2:]]))
    assert [len(rows) for rows in many] == [2, 0, 5]
    np.testing.assert_allclose(np.concatenate(many), expected, atol=1e-5)


@pytest.mark.parametrize("element_type", NAMES)
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("batch", [4, "N"])
def test_layout_and_type_are_found(load, images, layout, element_type, batch):
    shape = (batch, 3, 112, 96) if layout == "nchw" else (batch, 112, 96, 3)
    preprocessing = Preprocessing(
        width=96, channel_order="bgr", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)
    )
    recogniser = load(channel_means(shape, element_type=element_type), preprocessing=preprocessing)
    expected = images[:, :, 8:104, ::-1].mean((1, 2))
    np.testing.assert_allclose(recogniser.embed(images), expected, rtol=1e-5)
    described = recogniser.describe()
    assert (described["layout"], described["input_type"]) == (layout, NAMES[element_type])


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_a_shape_that_does_not_say_the_layout_needs_the_option(load, images, layout):
    content = channel_means(("N", "a", "b", "c"), channels_last=layout == "nhwc")
    with pytest.raises(WeightsError, match=r"\['N', .*recogniser\.layout=nchw or nhwc says which"):
        load(content)
    recogniser = load(content, layout=layout)
    expected = Preprocessing().apply(images).mean((2, 3))
    np.testing.assert_allclose(recogniser.embed(images), expected, atol=1e-5)
    assert recogniser.describe()["layout"] == layout


def test_uint8_input_wants_raw_pixels(load):
    content = channel_means(element_type=UINT8)
    with pytest.raises(ConfigError, match=r"expected recogniser\.preprocessing\.preset=raw"):
        load(content)
    assert load(content, preprocessing=PRESETS["raw"]).embedding_size == 3


def test_flip_averages_with_the_mirror_image(load, images):
    # A convolution whose weights differ from left to right, on windows of odd margins.
    kernel = np.random.default_rng(1).normal(size=(4, 3, 112, 95)).astype(np.float32)
    weights = onnx_models.constant("kernel", kernel.ravel())
    shape = onnx_models.constant("shape", np.int64(kernel.shape), INT64)
    steps = [
        node("Reshape", ["kernel", "shape"], ["filters"]),
        node("Conv", ["data", "filters"], ["map"]),
        node("Flatten", ["map"], ["embedding"]),
    ]
    content = model(
        steps,
        [tensor_info("data", (3, 3, 112, 95))],
        [tensor_info("embedding", None)],
        [weights, shape],
    )
    narrow = Preprocessing(width=95)
    plain = load(content, preprocessing=narrow)
    mirrored = plain.embed(images[:, :, ::-1])
    expected = (plain.embed(images) + mirrored) / 2
    assert not np.allclose(plain.embed(images), mirrored)
    both = load(content, preprocessing=narrow, flip=True)
    np.testing.assert_allclose(both.embed(images), expected, rtol=1e-4, atol=1e-3)
    assert both.describe() == {**plain.describe(), "flip": True}


def on_a_gpu(recogniser, monkeypatch):
    """Take the road of a GPU on a CPU."""
    assert not recogniser._is_cuda
    monkeypatch.setattr(recogniser, "_is_cuda", True)
    return recogniser


@pytest.mark.parametrize("flip", [False, True])
def test_a_gpu_gets_what_a_cpu_gets(load, images, monkeypatch, flip):
    recogniser = load(channel_means(), flip=flip)
    batches = [images[:2], images[:0], images[2:3], images[3:]]
    expected = [recogniser.embed(batch) for batch in batches]
    found = list(on_a_gpu(recogniser, monkeypatch).embed_many(iter(batches)))
    for rows, same in zip(found, expected, strict=True):
        np.testing.assert_array_equal(rows, same)
    assert list(recogniser.embed_many([])) == []


def test_a_gpu_works_while_the_next_batch_is_made_ready(load, images, monkeypatch):
    recogniser = on_a_gpu(load(channel_means()), monkeypatch)
    run, make_inputs = recogniser._session.run, recogniser._inputs
    running = threading.Semaphore(0)
    taken = []

    def inputs(batch):
        taken.append(len(batch))
        if len(taken) > 1:  # from the second on: only while the network runs
            assert running.acquire(timeout=10)
            made.release()
        return make_inputs(batch)

    made = threading.Semaphore(0)

    def runs(values):
        if len(values) < 3:
            running.release()
            assert made.acquire(timeout=10)
        return run(values)

    monkeypatch.setattr(recogniser, "_inputs", inputs)
    monkeypatch.setattr(recogniser._session, "run", runs)
    found = recogniser.embed_many(images[:n] for n in (1, 2, 3))
    assert [len(rows) for rows in found] == taken == [1, 2, 3]


def test_errors_ahead_of_a_gpu_come_in_their_place(load, images, monkeypatch):
    recogniser = on_a_gpu(load(channel_means()), monkeypatch)
    found = recogniser.embed_many([images[:2], images[:, :50], images])
    assert len(next(found)) == 2
    with pytest.raises(ValueError, match="at least 112 x 112 pixels"):
        next(found)

    def broken():
        yield images
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="disk is gone"):
        list(recogniser.embed_many(broken()))


def test_embedding_ahead_may_be_given_up(load, images, monkeypatch):
    recogniser = on_a_gpu(load(channel_means()), monkeypatch)
    before = threading.active_count()
    found = recogniser.embed_many([images] * 4)
    next(found)
    assert threading.active_count() == before + 1
    found.close()
    assert threading.active_count() == before
    assert len(recogniser.embed(images)) == 7


NORM = [node("ReduceL2", ["embedding"], ["norm"], onnx_models.integers("axes", [1]))]


@pytest.mark.parametrize(
    ("extra", "chosen", "expected"),
    [
        ([("pooled", None)], None, "embedding"),
        ([("norm", None)], None, "norm"),
        ([("norm", None)], "embedding", "embedding"),
        ([("values", None), ("first", None)], "embedding", "embedding"),
        ([("pooled", None)], "pooled", "pooled"),  # (N, 3, 1, 1)
    ],
)
def test_output_is_the_first_of_rank_two_or_the_one_named(load, images, extra, chosen, expected):
    recogniser = load(channel_means(extra_outputs=extra, nodes=NORM), output=chosen)
    assert recogniser.describe()["output"] == expected
    means = Preprocessing().apply(images).mean((2, 3))
    values = np.linalg.norm(means, axis=1, keepdims=True) if expected == "norm" else means
    np.testing.assert_allclose(recogniser.embed(images), values, atol=1e-5)


OTHERS = [("values", None)]


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (
            channel_means(),
            {"output": "emb"},
            r"expected an output emb, got embedding .*; recogniser\.output names",
        ),
        (
            channel_means(extra_outputs=OTHERS).replace(b"Flatten", b"Sigmoid"),
            {},
            r"expected an output of the shape \(N, E\), got values .*; recogniser\.output names",
        ),
        (
            channel_means(extra_outputs=OTHERS),
            {"output": "values"},
            r"expected \(1, E\) .*values, got the shape \(1, 3, 112, 112\)",
        ),
        (
            channel_means().replace(b"Flatten", b"Squeeze"),
            {},
            r"expected \(1, E\) embeddings in the output embedding, got the shape \(3,\)",
        ),
        (
            channel_means((1, 3, 112, 96)),
            {},
            r"112 x 96 pixels, but recogniser\.preprocessing makes them 112 x 112",
        ),
        (channel_means((1, 112, 96, 3)), {}, "takes images of 112 x 96 pixels"),
        (channel_means((1, 3, "h", 96)), {}, "takes images of h x 96 pixels"),
        (channel_means((1, 1, 112, 112)), {}, r"expected an input of \(N, 3, height, width\)"),
        (channel_means((1, 3, 112, 3)), {}, r"recogniser\.layout=nchw or nhwc"),
        (channel_means(), {"layout": "nhwc"}, r"does not go with recogniser\.layout=nhwc"),
        (channel_means((1, 3, 112)), {}, r"got data \[1, 3, 112\]"),
        (channel_means(element_type=INT64), {}, r"tensor\(float\), .*, got data tensor\(int64\)"),
    ],
)
def test_other_networks_are_refused(load, content, options, message):
    with pytest.raises(WeightsError, match=message):
        load(content, **options)


def test_several_inputs_are_refused(load):
    steps = [node("Add", ["a", "b"], ["y"])]
    inputs = [tensor_info(name, (1, 3, 112, 112)) for name in "ab"]
    with pytest.raises(WeightsError, match=r"one input .*, got a tensor\(float\), b tensor"):
        load(model(steps, inputs, [tensor_info("y", None)]))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot load it"),
        (b"this is text and no ONNX file\n" * 9, "not an ONNX file, or damaged"),
        (b"\x08" + b"\xff" * 30, "not an ONNX file, or damaged: a number at byte 1 does not end"),
        (channel_means()[:-9], "not an ONNX file, or damaged"),
        (channel_means()[:60], "not an ONNX file, or damaged: a field ends at byte"),
        (channel_means().replace(b"GlobalAveragePool", b"GlobalImaginePool"), "cannot load it"),
    ],
)
def test_damaged_files_are_refused(load, content, message):
    with pytest.raises(WeightsError, match=rf"w\.onnx: .*{message}"):
        load(content)


def test_changed_bytes_never_raise_another_kind_of_error(tmp_path):
    content = np.frombuffer(channel_means(nodes=NORM), np.uint8)
    path = tmp_path / "w.onnx"
    refused = 0
    for seed in range(300):
        rng = np.random.default_rng(seed)
        changed = content.copy()
        changed[rng.integers(0, content.size, 3)] = rng.integers(0, 256, 3)
        path.write_bytes(changed.tobytes())
        try:
            external_files(path)
        except WeightsError:
            refused += 1
    assert 30 < refused < 300


def test_error_while_it_runs_names_the_file(tmp_path):
    (tmp_path / "w.onnx").write_bytes(channel_means((1, 3, 112, 112)))
    session = OnnxSession(tmp_path / "w.onnx", OnnxOptions())
    with pytest.raises(WeightsError, match=r"w\.onnx: onnxruntime cannot run it"):
        session.run(np.zeros((1, 3, 50, 50), np.float32))


@pytest.mark.parametrize(
    "message",
    [
        "Failed to allocate memory for requested buffer of size 822083584",
        "CUDA failure 2: out of memory ; GPU=0",
        "CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED",
    ],
)
def test_a_gpu_that_is_too_small_is_named(load, images, monkeypatch, message):
    class Full:
        def run(self, *_):
            raise RuntimeError(message)

    recogniser = load(channel_means())
    monkeypatch.setattr(recogniser._session, "_session", Full())
    with pytest.raises(ResourceError, match=r"suffice for 7 images at once; lower batch_size"):
        recogniser.embed(images)


class TestExternalData:
    """Weights in files beside the model."""

    @pytest.fixture
    def write(self, tmp_path):
        """Return a function that writes a model which adds a bias from another file."""
        folder = tmp_path / "models"
        folder.mkdir()
        (tmp_path / "secret").write_bytes(np.float32([7, 8, 9]).tobytes())

        def write_model(location, nested=False):
            tensors = [external("bias", 3, location)]
            if nested:  # in the tensor of a branch of a branch
                value = field_of_constant(tensors[0])
                for _ in range(2):
                    branch = onnx_models.graph([value], outputs=[tensor_info("bias", (3,))])
                    attribute = onnx_models.graph_attribute("then_branch", branch)
                    value = node("If", ["yes"], ["bias"], attribute)
                steps, tensors = [value], []
            else:
                steps = []
            steps += [
                node("GlobalAveragePool", ["data"], ["pooled"]),
                node("Flatten", ["pooled"], ["means"]),
                node("Add", ["means", "bias"], ["embedding"]),
            ]
            inputs = [tensor_info("data", ("N", 3, 112, 112))]
            outputs = [tensor_info("embedding", None)]
            (folder / "w.onnx").write_bytes(model(steps, inputs, outputs, tensors))
            return folder / "w.onnx"

        def field_of_constant(tensor):
            attribute = onnx_models.field(1, "value") + onnx_models.field(5, tensor)
            return node("Constant", [], ["bias"], attribute + onnx_models.field(20, 4))

        return write_model

    def test_they_are_read_and_are_part_of_the_digest(self, write, images):
        path = write("bias.data")
        data = path.parent / "bias.data"
        digests = set()
        for bias in (np.float32([1, 2, 3]), np.float32([1, 2, 4])):
            data.write_bytes(bias.tobytes())
            spec = RecogniserSpec("onnx", str(path))
            recogniser = load_recogniser(spec)
            expected = Preprocessing().apply(images).mean((2, 3)) + bias
            np.testing.assert_allclose(recogniser.embed(images), expected, atol=1e-5)
            assert recogniser.describe()["weights_sha256"] == weights_digest(spec)
            digests.add(weights_digest(spec))
        assert len(digests) == 2
        assert digest(path) not in digests
        assert external_files(path) == [data]

    def test_a_file_without_them_has_its_own_digest(self, tmp_path):
        (tmp_path / "w.onnx").write_bytes(channel_means())
        assert onnx_digest(tmp_path / "w.onnx") == digest(tmp_path / "w.onnx")

    @pytest.mark.parametrize("nested", [False, True])
    @pytest.mark.parametrize(
        "location", ["../secret", "sub/../../secret", "/etc/hostname", "link", "/dev/zero"]
    )
    def test_a_path_out_of_the_folder_is_refused(self, write, location, nested):
        """Onnxruntime 1.19 would read it, so the check must not be left to onnxruntime."""
        path = write(location, nested)
        (path.parent / "link").symlink_to(path.parent.parent / "secret")
        with pytest.raises(WeightsError, match=r"refused; expected weights in the folder"):
            load_recogniser(RecogniserSpec("onnx", str(path)))
        with pytest.raises(WeightsError, match="refused"):
            weights_digest(RecogniserSpec("onnx", str(path)))

    @pytest.mark.parametrize("location", ["bias.data", "a\0b", "x" * 5000])
    def test_missing_files_are_named(self, write, location):
        with pytest.raises(WeightsError, match=r"w\.onnx: its weights .*(bias\.data|x00|xxx)"):
            load_recogniser(RecogniserSpec("onnx", str(write(location))))

    def test_models_that_are_links_into_a_store_are_read(self, write, tmp_path):
        """As Hugging Face's cache keeps them: both files are links to another folder."""
        path = write("bias.data")
        (path.parent / "bias.data").write_bytes(np.float32([1, 2, 3]).tobytes())
        snapshot = tmp_path / "snapshot"
        snapshot.mkdir()
        for name in ("w.onnx", "bias.data"):
            (snapshot / name).symlink_to(path.parent / name)
        spec = RecogniserSpec("onnx", str(snapshot / "w.onnx"))
        assert weights_digest(spec) == weights_digest(RecogniserSpec("onnx", str(path)))
        assert load_recogniser(spec).embedding_size == 3


def test_missing_file_is_named():
    for use in (load_recogniser, weights_digest):
        with pytest.raises(InputError, match=r"nowhere\.onnx"):
            use(RecogniserSpec("onnx", "nowhere.onnx"))


def test_a_missing_gpu_is_no_cpu(load, monkeypatch):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(ResourceError, match=r"CUDAExecutionProvider, got one with \['CPU"):
        load(channel_means(), device="cuda")


def test_a_gpu_that_does_not_start_is_no_cpu(load, monkeypatch):
    # onnxruntime goes on with the CPU when the libraries of CUDA are missing.
    class FallenBack:
        def __init__(self, *args, **kwargs):
            pass

        def get_providers(self):
            return ["CPUExecutionProvider"]

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", FallenBack)
    with pytest.raises(ResourceError, match="could not start CUDAExecutionProvider"):
        load(channel_means(), device="cuda")


def test_missing_onnxruntime_names_the_extra(load, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ResourceError, match=r"pip install 'sdd-ray\[onnx\]'"):
        load(channel_means())
