"""Lists of images: the forms that training sets are handed on in, and lines that name no image."""

import pickle
import tracemalloc

import pyarrow as pa
import pytest
from pictures import NAMES, faces_in, faces_of, listed, write_pictures

from sdd_ray.errors import ConfigError, InputError
from sdd_ray.formats.images import ImageRejectedError
from sdd_ray.formats.items import Listing, from_table
from sdd_ray.formats.reading import read_face
from sdd_ray.formats.source import locate, open_source
from sdd_ray.settings import ListConfig, SourceConfig
from sdd_ray.store.location import Location

POINTS = tuple(float(n) for n in range(10))
TEN = " ".join(map(str, range(10)))


def list_source(path, rule=None, order="interleaved", **layout):
    options = {"list_file": ListConfig(**layout), "landmark_order": order}
    return open_source(SourceConfig(kind="list", path=str(path), identity=rule, **options))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture
def items_of(tmp_path):
    """List some lines; return (file, image_id, identity) of the items, rejects, and ignored."""

    def do(content, rule=None, **layout):
        content = content if isinstance(content, bytes) else content.encode()
        (tmp_path / "list").write_bytes(content)
        items, listing = listed(list_source(tmp_path / "list", rule, **layout))
        rejects = [(reject.image_id, reject.reason) for reject in listing.rejects]
        return [(i.file, i.image_id, i.identity) for i in items], rejects, listing.ignored_files

    return do


# Forms


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize(
    ("line", "layout"),
    [
        ("{path}\t{person}", {}),  # TFace
        ("7\t{person}\t{path}", {"columns": ("skip", "identity", "path")}),  # MXNet's .lst
        ("1\t{path}\t{person}\t0 1 2", {"columns": ("skip", "path", "identity")}),  # InsightFace
        ("{path},{person}", {}),
        ("{path};{person}", {"delimiter": "semicolon"}),
        ("{path} {person}", {}),
        ("x  {person}   {path} ", {"columns": ("skip", "identity", "path")}),
        ("{person} {path} " + TEN, {"columns": ("identity", "path", "landmarks")}),
        ('"{path}","{person}","a, b"', {"delimiter": "comma"}),
    ],
)
def test_same_as_the_folder(pictures, tmp_path, line, layout, end):
    lines = [line.format(path=name, person=name.split("/")[0]) + end for name in sorted(NAMES)]
    (tmp_path / "list.txt").write_text("".join(lines), newline="")
    found = faces_of(list_source(tmp_path / "list.txt", root=str(pictures), **layout))
    assert [face[:2] for face in found] == [face[:2] for face in faces_in(pictures)]
    if "landmarks" not in layout.get("columns", ()):
        assert found == faces_in(pictures)


@pytest.mark.parametrize("root", [None, "set"])
def test_paths_start_from_the_folder_of_the_list(pictures, tmp_path, monkeypatch, root):
    folder = write_pictures(tmp_path / "set")
    monkeypatch.chdir(tmp_path)
    (folder / "list").write_text("\n".join(sorted(NAMES)))
    source = list_source("set/list", "first_folder", columns=("path",), root=root)
    monkeypatch.chdir("/")
    assert faces_of(source) == faces_in(pictures)


def test_absolute_paths_and_paths_that_lead_up(pictures, tmp_path):
    (tmp_path / "list").write_text(f"{pictures}/{NAMES[0]}\n../{pictures.name}/{NAMES[0]}\n")
    root = pictures.parent / "elsewhere"
    root.mkdir(exist_ok=True)
    source = list_source(tmp_path / "list", "none", columns=("path",), root=str(root))
    (absolute, _, one), (relative, _, other) = faces_of(source)
    assert (absolute, relative) == (f"{pictures}/{NAMES[0]}", f"../{pictures.name}/{NAMES[0]}")
    assert one == other


def test_uris_on_s3(pictures, tmp_path, s3_bucket):
    for name in NAMES:
        Location(f"s3://{s3_bucket}/set/{name}").write_bytes((pictures / name).read_bytes())
    uris = [f"s3://{s3_bucket}/set/{name}" for name in sorted(NAMES)]
    (tmp_path / "list").write_text("\n".join(uris))
    found = faces_of(list_source(tmp_path / "list", "none", columns=("path",)))
    wanted = [pixels for _, _, pixels in faces_in(pictures)]
    assert found == [(uri, None, pixels) for uri, pixels in zip(uris, wanted, strict=True)]


def test_list_and_root_on_s3(pictures, s3_bucket):
    root = Location(f"s3://{s3_bucket}/set")
    for name in NAMES:
        (root / name).write_bytes((pictures / name).read_bytes())
    (root / "list").write_bytes("\n".join(sorted(NAMES)).encode())
    columns = ("path",)
    assert faces_of(list_source(f"{root.uri}/list", "first_folder", columns=columns)) == faces_in(
        pictures
    )


def test_keys_of_their_own(items_of):
    columns = ("image_id", "path", "identity")
    lines = "k1 a b.jpg 7\nk2\tc.jpg\t8\n"
    assert items_of(lines, columns=columns, delimiter="space")[0] == [
        ("a b.jpg", "k1", "7"),
        ("c.jpg", "k2", "8"),
    ]
    assert items_of("k1,a,7\n,b,8\nk3,,9\n", columns=columns)[1] == [
        ("line 2", "bad_line"),
        ("line 3", "bad_line"),
    ]


@pytest.mark.parametrize(
    ("line", "columns"),
    [
        (f"a b.jpg {TEN}", ("path", "landmarks")),
        (f"{TEN} a b.jpg", ("landmarks", "path")),
        (f"p {TEN} a b.jpg", ("skip", "landmarks", "path")),
        ("a b.jpg," + TEN.replace(" ", ","), ("path", "landmarks")),
        ("a b.jpg\t" + TEN.replace(" ", "\t") + "\t0.9\tx", ("path", "landmarks")),
    ],
)
def test_landmarks(tmp_path, line, columns):
    (tmp_path / "list").write_text(line)
    [item] = listed(list_source(tmp_path / "list", "none", columns=columns))[0]
    assert (item.file, item.landmarks) == ("a b.jpg", POINTS)


def test_insightface_list_with_boxes_and_landmarks(tmp_path):
    # aligned, path, label, box, and x of all five points before their y.
    split = [*POINTS[::2], *POINTS[1::2]]
    line = "\t".join(map(str, [0, "m/a.jpg", 7, 10, 11, 90, 91, *split]))
    (tmp_path / "list").write_text(line + "\n")
    columns = ("skip", "path", "identity", "skip", "skip", "skip", "skip", "landmarks")
    for order, points in (("split", POINTS), ("interleaved", tuple(split))):
        [item] = listed(list_source(tmp_path / "list", order=order, columns=columns))[0]
        assert (item.file, item.identity, item.landmarks) == ("m/a.jpg", "7", points)


@pytest.mark.parametrize(
    ("content", "delimiter", "files"),
    [
        ("a,b c\t1\nd,e f\t2", None, ["a,b c", "d,e f"]),  # a tab comes first
        ("a b,1\nc d,2", None, ["a b", "c d"]),
        ("a b 1\nc,d 2", None, ["a b", "c,d"]),
        ("a\tb,1\nc\td,2", "comma", ["a\tb", "c\td"]),
        ("a,b 1\nc\td 2", "space", ["a,b", "c\td"]),
        ('"a ""b"", c";1\n"d\n', "semicolon", ['a "b", c']),
        ('"a"\t1\nb"\t2', "tab", ['"a"', 'b"']),  # tabs need no quotes
    ],
)
def test_what_is_between_columns(items_of, content, delimiter, files):
    assert [file for file, *_ in items_of(content, delimiter=delimiter)[0]] == files


def test_blank_lines_comments_header_and_mark(items_of):
    content = "\ufeffpath,person\n#x,1\n\n  \na,1\r\n #b,2\n#c,3"
    found, rejects, ignored = items_of(content, header=True)
    assert found == [("a", "a", "1"), ("#b", "#b", "2"), ("#c", "#c", "3")]
    assert (rejects, ignored) == ([], 3)
    assert [file for file, *_ in items_of(content)[0]] == ["path", "#x", "a", "#b", "#c"]
    assert items_of("# one\n\n#two\n#c,3\na,1\n#d,2")[::2] == (
        [("a", "a", "1"), ("#d", "#d", "2")],
        4,
    )
    assert items_of("# path,person\na,1\n", header=True)[::2] == ([("a", "a", "1")], 0)
    assert items_of("", header=True) == ([], [], 0)


# Persons


@pytest.mark.parametrize(
    ("path", "first", "parent"),
    [
        ("a/b/1.jpg", "a", "a/b"),
        ("./a/b/1.jpg", "a", "a/b"),
        ("1.jpg", None, None),
        ("./1.jpg", None, None),
        ("/data/a/1.jpg", None, "/data/a"),
        ("../set/a/1.jpg", None, "../set/a"),
        ("s3://bucket/a/1.jpg", None, "s3://bucket/a"),
    ],
)
def test_persons_in_paths(items_of, path, first, parent):
    for rule, person in (("first_folder", first), ("parent_folder", parent)):
        found, rejects, _ = items_of(path, rule, columns=("path",))
        assert found == ([] if person is None else [(path, path, person)])
        assert rejects == ([(path, "no_identity")] if person is None else [])


def test_persons_in_keys(items_of):
    columns = ("path", "image_id")
    assert items_of("x/1.jpg,a/1", "first_folder", columns=columns)[0] == [("x/1.jpg", "a/1", "a")]


def test_lines_without_a_person(items_of):
    found, rejects, _ = items_of("a.jpg\t1\nb.jpg\t \nc.jpg\t\n")
    assert found == [("a.jpg", "a.jpg", "1")]
    assert rejects == [("b.jpg", "no_identity"), ("c.jpg", "no_identity")]
    assert len(items_of("a.jpg\t1\nb.jpg\t \n", "none")[0]) == 2


def test_columns_must_name_persons_if_they_are_wanted(items_of):
    with pytest.raises(ConfigError, match=r"name no identity, but source\.identity=label"):
        items_of("a.jpg", columns=("path",))


@pytest.mark.parametrize(
    "columns", [(), ("identity",), ("path", "path"), ("path", "identity", "identity")]
)
def test_columns_must_make_sense(items_of, columns):
    with pytest.raises(ConfigError, match="expected one path, and the others once at most"):
        items_of("a.jpg", columns=columns)


# Lines that name no image


@pytest.mark.parametrize(
    ("line", "columns"),
    [
        ("b.jpg", ("path", "identity")),
        ("b.jpg\t7", ("path", "identity", "landmarks")),
        ("\t7", ("path", "identity")),
        ("b\0.jpg\t7", ("path", "identity")),
        ("b.jpg\t" + TEN.replace(" ", "\t").replace("9", "x"), ("path", "landmarks")),
        ("b.jpg\t" + TEN.replace(" ", "\t").replace("9", "nan"), ("path", "landmarks")),
        ("b.jpg\t" + TEN.replace(" ", "\t").replace("9", "-inf"), ("path", "landmarks")),
        ("b.jpg\t" + "\t".join("123456789"), ("path", "landmarks")),
        ("b" * 70_000 + "\t7", ("path", "identity")),
    ],
)
def test_bad_line(items_of, line, columns):
    good = "a.jpg\t" + "\t".join("1" * 11)
    found, rejects, _ = items_of(f"{good}\n\n{line}\n{good}\n", "none", columns=columns)
    assert [file for file, *_ in found] == ["a.jpg", "a.jpg"]
    assert rejects == [("line 3", "bad_line")]


def test_quotes_that_do_not_close(items_of):
    found, rejects, _ = items_of('a,1\nb"\r"c,2\nd,3\n')
    assert [file for file, *_ in found] == ["a", "d"]
    assert rejects == [("line 2", "bad_line")]


def test_line_that_is_no_text(items_of):
    found, rejects, _ = items_of(b"\xff.jpg\t1\n\xc3\xa4.jpg\t2\n")
    assert [file for file, *_ in found] == ["ä.jpg"]
    assert rejects == [("line 1", "unreadable_name")]


@pytest.mark.parametrize("kind", ["utf-16", "utf-16-be", "utf-32"])
def test_list_in_another_encoding(items_of, kind):
    with pytest.raises(InputError, match="expected UTF-8, got UTF-16"):
        items_of(("\ufeff" * (kind == "utf-16-be") + "a.jpg\t1\n").encode(kind))


@pytest.mark.parametrize(
    "uri", ["http://a/b.jpg", "https://a/b", "gs://a/b", "file:///a", "S3://a/b"]
)
def test_other_schemes(tmp_path, uri):
    (tmp_path / "list").write_text(f"a.jpg\t1\n{uri}\t2\ns3://a/b\t3\n")
    items, listing = listed(list_source(tmp_path / "list"))
    assert [item.image_id for item in items] == ["a.jpg", "s3://a/b"]
    [reject] = listing.rejects
    assert (reject.image_id, reject.reason) == (uri, "unsupported_uri")
    assert "expected a path or an s3:// URI" in reject.detail


def test_list_that_is_not_there(tmp_path):
    for place in (tmp_path / "gone", tmp_path):
        with pytest.raises(InputError, match=f"cannot read {place}"):
            listed(list_source(place))


# Reading


def test_image_is_found_by_its_key_or_not(pictures, tmp_path):
    (tmp_path / "list").write_text(f"k1\t{NAMES[0]}\nk2\tgone.jpg\n")
    columns = ("image_id", "path")
    source = list_source(tmp_path / "list", "none", columns=columns, root=str(pictures))
    there, lost, gone = from_table(locate(source, pa.chunked_array([["k1", "k2", "k3"]])))
    wanted = {name: pixels for name, _, pixels in faces_in(pictures)}
    assert read_face(source, there).tobytes() == wanted[NAMES[0]]
    with pytest.raises(InputError, match=r"cannot read .*gone\.jpg"):
        read_face(source, lost)
    with pytest.raises(InputError, match="holds no image 'k3'"):
        read_face(source, gone)


def test_file_too_large_for_a_face(tmp_path):
    with (tmp_path / "a.jpg").open("wb") as stream:
        stream.truncate((64 << 20) + 1)
    (tmp_path / "list").write_text("a.jpg\t1\n")
    source = list_source(tmp_path / "list")
    with pytest.raises(ImageRejectedError, match="too_large"):
        read_face(source, listed(source)[0][0])


def test_source_travels(tmp_path):
    source = list_source(tmp_path / "list", root="s3://bucket/a")
    copy = pickle.loads(pickle.dumps(source))  # noqa: S301 - ours
    assert copy == source
    assert len(pickle.dumps(source)) < 1000


@pytest.mark.parametrize("content", [b"a.jpg\t1\n" * 500_000, b"x" * 16_000_000])
def test_lists_are_streamed(tmp_path, content):
    (tmp_path / "list").write_bytes(content)
    items = list_source(tmp_path / "list").items(Listing())
    tracemalloc.start()
    for _ in zip(range(1000), items, strict=False):
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 << 20
