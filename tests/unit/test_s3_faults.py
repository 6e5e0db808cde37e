"""S3 that disturbs: what comes is whole or an error, within stated times, and says what to do."""

import io
import random
import time
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import boto3
import numpy as np
import pyarrow as pa
import pytest
import urllib3.exceptions
from botocore.response import StreamingBody
from drawn_faces import face
from faulty_s3 import (
    DAMAGED,
    ENVIRONMENT,
    HANG,
    LOST,
    RESET,
    Fault,
    FaultyProxy,
    answered,
    cut_answer,
    cut_request,
    deaf_address,
    dripping,
    s3_server,
    shortened,
    slow,
)

from sdd_ray.errors import ConfigError, InputError, OutputError, StoreError
from sdd_ray.formats.folder import FolderSource
from sdd_ray.formats.images import ImageRejectedError
from sdd_ray.formats.items import Item
from sdd_ray.formats.reading import read_faces
from sdd_ray.store import s3, s3_client
from sdd_ray.store.dataset import read_parquet
from sdd_ray.store.location import Location
from sdd_ray.store.run import parquet_bytes

CONTENT = random.Random(0).randbytes(300_000)
OTHER = random.Random(1).randbytes(300_000)
WEB_PAGE = Fault("web page", body=b"<html><body>Sign in</body></html>")


@pytest.fixture(scope="module")
def upstream():
    with s3_server() as url:
        yield url


@pytest.fixture(scope="module")
def running(upstream):
    """A proxy that this process takes for S3; nobody waits long before trying again."""
    found = FaultyProxy(upstream)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**ENVIRONMENT, "AWS_ENDPOINT_URL": found.url}.items():
            patch.setenv(name, value)
        for name in ("AWS_REGION", "AWS_ENDPOINT_URL_S3", "AWS_MAX_ATTEMPTS", "AWS_PROFILE"):
            patch.delenv(name, raising=False)
        patch.setattr(s3_client, "_FIRST_WAIT", 0.002)
        s3_client.client.cache_clear()
        yield found
    s3_client.client.cache_clear()
    found.close()


@pytest.fixture
def proxy(running):
    """The proxy, without rules."""
    running.clear()
    return running


@pytest.fixture
def new_client(running):
    """For tests that change what the client is made of."""
    s3_client.client.cache_clear()
    yield
    s3_client.client.cache_clear()


@pytest.fixture
def impatient(new_client, monkeypatch):
    """Half a second without an answer is too long."""
    monkeypatch.setattr(s3_client, "SILENT_SECONDS", 0.5)
    monkeypatch.setattr(s3_client, "CONNECT_SECONDS", 0.5)


@pytest.fixture(scope="module")
def direct(upstream):
    """The server without the proxy."""
    keys = {name.lower(): value for name, value in ENVIRONMENT.items() if "KEY" in name}
    return boto3.client("s3", endpoint_url=upstream, region_name="us-east-1", **keys)


@pytest.fixture(scope="module")
def bucket(direct):
    direct.create_bucket(Bucket="bucket")
    return "bucket"


@pytest.fixture
def folder(proxy, bucket):
    """An empty folder."""
    return Location(f"s3://{bucket}/{uuid4().hex}")


@pytest.fixture
def file(folder, direct):
    """An object with CONTENT."""
    place = folder / "k.bin"
    bucket, key = s3_client.bucket_and_key(place.uri)
    direct.put_object(Bucket=bucket, Key=key, Body=CONTENT)
    return place


def stored(direct, place):
    """The content that the server has at a place, or None."""
    bucket, key = s3_client.bucket_and_key(place.uri)
    listed = direct.list_objects_v2(Bucket=bucket, Prefix=key).get("Contents", [])
    if key not in {found["Key"] for found in listed}:
        return None
    return direct.get_object(Bucket=bucket, Key=key)["Body"].read()


def through_open(place):
    with place.open() as stream:
        return stream.read()


WAYS = {
    "read_bytes": Location.read_bytes,
    "read_small": lambda place: place.read_small(1 << 20),
    "read_range": lambda place: place.read_range(0, len(CONTENT)),
    "open": through_open,
}
PASSING = {
    "503": answered(503),
    "500": answered(500),
    "408": answered(400, "RequestTimeout"),
    "reset": RESET,
    "closed": LOST,
    "cut": cut_answer(100_000),
    "cut at the start": cut_answer(0),
    "garbage": Fault("garbage", status=500, code="</Error>"),
}


@pytest.mark.parametrize("fault", PASSING.values(), ids=PASSING)
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_read_that_fails_twice_is_whole(proxy, file, way, fault):
    proxy.add(fault, "GET", times=2)
    assert way(file) == CONTENT
    assert proxy.count() == 3
    assert proxy.count(fault.name) == 2


@pytest.mark.parametrize("do", [Location.read_bytes, Location.exists, Location.write_bytes])
def test_silent_server_is_asked_again(proxy, impatient, file, do):
    proxy.add(HANG, times=1)
    do(file, *([CONTENT] if do is Location.write_bytes else []))
    assert proxy.count("hang") == 1
    assert file.read_bytes() == CONTENT


@pytest.mark.parametrize("way", ["read_range", "open"])
def test_range_that_is_shorter_than_it_says_is_asked_for_again(proxy, file, way):
    """Arrow's file system returns whatever its memory held."""
    proxy.add(shortened(100_000), "GET", times=1)
    assert WAYS[way](file) == CONTENT
    assert proxy.count("shortened") == 1
    proxy.add(shortened(100_000), "GET")
    with pytest.raises(InputError, match=r"the last: asked for .* got 100,000"):
        WAYS[way](file)


def test_failure_of_encryption_within_a_body_is_asked_again(file, monkeypatch):
    read, broken = StreamingBody.read, ["once"]

    def fails_once(body, amount):
        if broken:
            raise urllib3.exceptions.SSLError(broken.pop())
        return read(body, amount)

    monkeypatch.setattr(StreamingBody, "read", fails_once)
    assert file.read_bytes() == CONTENT


def test_slow_answers_are_whole(proxy, file):
    proxy.add(slow(0.3), "GET", times=1)
    proxy.add(dripping(50_000, 0.05), "GET", times=1)
    assert [file.read_bytes() for _ in range(2)] == [CONTENT, CONTENT]
    assert proxy.count() == 2


def test_body_that_comes_too_slowly_is_given_up(proxy, impatient, file, monkeypatch):
    monkeypatch.setattr(s3_client, "SLOWEST_BYTES_PER_SECOND", 1 << 20)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    proxy.add(dripping(20_000, 0.3), "GET", "k.bin")
    with pytest.raises(InputError, match=r"only \d+,\d+ bytes came in time"):
        file.read_bytes()


WRITING = {
    "503": answered(503),
    "500": answered(500),
    "reset": RESET,
    "cut": cut_request(100_000),
    "answer lost": LOST,
    "changed on the way": DAMAGED,
}


@pytest.mark.parametrize("fault", WRITING.values(), ids=WRITING)
def test_write_that_fails_twice_is_whole(proxy, file, direct, fault):
    proxy.add(fault, "PUT", times=2)
    file.write_bytes(OTHER)
    assert stored(direct, file) == OTHER
    assert proxy.count(method="PUT") == 3
    assert proxy.count() == 3


@pytest.mark.parametrize("name", ["503", "reset", "cut", "changed on the way"])
def test_write_that_fails_for_ever_leaves_what_was_there(proxy, bucket, file, direct, name):
    proxy.add(WRITING[name], "PUT")
    for place, before in ((file, CONTENT), (Location(file.uri + "2"), None)):
        with pytest.raises(OutputError, match=r"cannot write s3://.*: 8 attempts in \d+ s failed"):
            place.write_bytes(OTHER)
        assert stored(direct, place) == before
    assert "Uploads" not in direct.list_multipart_uploads(Bucket=bucket)


def test_large_object_is_one_request(proxy, file):
    content = random.Random(2).randbytes(12 << 20)
    proxy.add(cut_request(8 << 20), "PUT", times=1)
    file.write_bytes(content)
    assert proxy.count() == 2
    assert file.read_bytes() == content


LOOKING = {
    "exists": (lambda place: place.exists(), True),
    "is_folder": (lambda place: (place / "..").is_folder(), False),
    "names": (lambda place: Location(place.uri.rpartition("/")[0]).names(), ["k.bin"]),
    "version": (lambda place: bool(place.version()), True),
}


@pytest.mark.parametrize("name", ["503", "reset", "closed"])
@pytest.mark.parametrize("way", LOOKING)
def test_looking_that_fails_twice_sees_what_is_there(proxy, file, way, name):
    look, seen = LOOKING[way]
    proxy.add(PASSING[name], times=2)
    assert look(file) == seen
    assert proxy.count(PASSING[name].name) == 2


LISTING_FAULTS = {"cut": cut_answer(200), "shortened": shortened(300), "web page": WEB_PAGE}


@pytest.mark.parametrize("fault", LISTING_FAULTS.values(), ids=LISTING_FAULTS)
def test_listing_is_whole_or_an_error(proxy, folder, fault):
    for name in "abc":
        (folder / name).write_bytes(b"x")
    proxy.add(fault, "GET", times=1)
    assert folder.names() == ["a", "b", "c"]
    proxy.clear()
    proxy.add(fault, "GET", "prefix=")
    with pytest.raises(InputError, match="cannot list the folder"):
        folder.names()


def test_listing_of_several_pages(proxy, folder, monkeypatch):
    monkeypatch.setattr(s3, "_NAMES_AT_ONCE", 2)
    for name in ("a", "b/1", "b/2", "c", "d/1", "é", "e f+%"):
        (folder / name).write_bytes(b"x")
    proxy.clear()
    proxy.add(answered(503), "GET", "continuation-token", times=1)
    assert folder.names() == ["a", "b", "c", "d", "e f+%", "é"]
    assert proxy.count("", "GET") == 3
    assert proxy.count("503") == 2
    proxy.clear()
    proxy.add(cut_answer(300), "GET", "continuation-token", times=1)
    below = ["a", "b/1", "b/2", "c", "d/1", "e f+%", "é"]
    assert list(folder.names_below()) == below
    assert proxy.count("cut_answer") == 3


def test_removing_under_faults(proxy, folder, monkeypatch):
    monkeypatch.setattr(s3, "_NAMES_AT_ONCE", 2)
    beside = Location(folder.uri + "2/x")
    for place in (folder / "a", folder / "b/c", folder / "b/d", folder / "e", beside):
        place.write_bytes(b"x")
    proxy.add(answered(503), "DELETE", times=2)
    proxy.add(LOST, "DELETE", "/a", times=1, skip=2)
    (folder / "a").remove()
    proxy.add(answered(503), "POST", times=1)
    proxy.add(answered(503), "GET", times=1)
    folder.remove_tree()
    assert proxy.count(method="POST") == 3  # two pages, one of them twice
    assert not folder.exists()
    assert beside.exists()


def test_object_that_cannot_be_removed_is_named(proxy, folder):
    (folder / "a").write_bytes(b"x")
    refusal = b"<DeleteResult><Error><Key>f/a</Key><Code>AccessDenied</Code></Error></DeleteResult>"
    proxy.add(Fault("refused", body=refusal), "POST")
    with pytest.raises(OutputError, match=rf"cannot remove {folder.uri}: .*f/a: AccessDenied"):
        folder.remove_tree()


# --- what is not asked again


FINAL = {
    "AccessDenied": (403, r"forbidden \(403 AccessDenied\)"),
    "NoSuchKey": (404, "nothing is there"),
    "NoSuchBucket": (404, "http://.* has no such bucket; check its name, AWS_ENDPOINT_URL and the"),
    "InvalidAccessKeyId": (403, r"credentials are not accepted \(403 .*check AWS_ACCESS_KEY_ID"),
    "SignatureDoesNotMatch": (403, r"credentials are not accepted \(403 .*AWS_SECRET_ACCESS_KEY"),
    "ExpiredToken": (400, r"credentials are not accepted \(400 .*AWS_SESSION_TOKEN"),
    "RequestTimeTooSkewed": (403, "and the clock"),
    "InvalidObjectState": (405, "405 InvalidObjectState: as told"),
}


@pytest.mark.parametrize("code", FINAL)
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_read_that_is_refused_says_why_at_once(proxy, file, way, code):
    status, message = FINAL[code]
    proxy.add(answered(status, code))
    with pytest.raises(InputError, match=f"cannot read {file.uri}: .*{message}"):
        way(file)
    assert proxy.count() == 1


@pytest.mark.parametrize("code", ["AccessDenied", "NoSuchBucket", "InvalidAccessKeyId"])
def test_write_that_is_refused_says_why_at_once(proxy, file, code):
    status, message = FINAL[code]
    proxy.add(answered(status, code))
    with pytest.raises(OutputError, match=f"cannot write {file.uri}: .*{message}"):
        file.write_bytes(OTHER)
    assert proxy.count() == 1


def test_forbidden_is_not_missing(proxy, file):
    proxy.add(answered(403))
    for look in (Location.exists, Location.is_folder, Location.names, Location.version):
        with pytest.raises(InputError, match=r"cannot .*forbidden \(403"):
            look(file)


def test_missing_bucket_is_no_missing_file(proxy):
    with pytest.raises(InputError, match=r"cannot look at s3://no-such-bucket/a: .*no such bucket"):
        Location("s3://no-such-bucket/a").exists()


def test_no_credentials_are_an_error_within_seconds(proxy, new_client, file, monkeypatch, tmp_path):
    """Even where the address of a machine's role never answers."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_EC2_METADATA_DISABLED"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_METADATA_SERVICE_NUM_ATTEMPTS", "1")
    with deaf_address() as url:
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", url)
        start = time.monotonic()
        with pytest.raises(InputError, match="no AWS credentials were found; set AWS_ACCESS_KEY"):
            file.read_bytes()
        assert time.monotonic() - start < 10
    assert proxy.count() == 0


def test_role_of_a_machine_is_asked_for_again(proxy, new_client, file, monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_EC2_METADATA_DISABLED"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", proxy.url)
    proxy.add(answered(503), target="/latest/", times=1)
    assert file.read_bytes() == CONTENT
    assert proxy.count("503") > 0


def test_endpoint_and_attempts_must_make_sense(proxy, new_client, file, monkeypatch):
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "many")
    with pytest.raises(ConfigError, match=r"AWS_MAX_ATTEMPTS: expected a number of .* got many"):
        file.read_bytes()
    monkeypatch.delenv("AWS_MAX_ATTEMPTS")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "localhost:9000")
    with pytest.raises(InputError, match="localhost:9000; AWS_ENDPOINT_URL is to be http://host"):
        file.read_bytes()


@pytest.mark.parametrize("name", ["AWS_REGION", "AWS_DEFAULT_REGION"])
def test_region_comes_from_the_environment(new_client, monkeypatch, name):
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    monkeypatch.setenv(name, "eu-central-1")
    assert s3_client.client().meta.region_name == "eu-central-1"


def test_bucket_of_a_named_host_is_part_of_the_path(proxy, new_client, file, monkeypatch):
    """Stores of one's own rarely have a name for every bucket."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url.replace("127.0.0.1", "localhost"))
    assert file.read_bytes() == CONTENT


# --- a store that stays away


AWAY = {"503": answered(503), "reset": RESET, "closed": LOST, "silent": HANG}


@pytest.mark.parametrize("fault", AWAY.values(), ids=AWAY)
def test_store_that_stays_away_is_an_error_of_its_own(proxy, impatient, file, monkeypatch, fault):
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    proxy.add(fault)
    message = rf"{proxy.url} does not answer; 2 attempts in \d+ s failed, .*check the network"
    ways = (Location.read_bytes, Location.exists, Location.names, lambda p: p.write_bytes(b""))
    for do in ways[:: 3 if fault is HANG else 1]:
        start = time.monotonic()
        with pytest.raises(StoreError, match=message):
            do(file)
        assert time.monotonic() - start < 10
    assert proxy.count() == 3 * (2 if fault is HANG else 4)  # with one about the store itself


def test_no_server_at_all(proxy, new_client, file, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(StoreError, match=r"http://127.0.0.1:1 does not answer; 8 attempts"):
        file.read_bytes()


def test_server_that_does_not_accept(impatient, file, monkeypatch):
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    with deaf_address() as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        start = time.monotonic()
        with pytest.raises(StoreError, match="Connect timeout"):
            file.read_bytes()
        assert time.monotonic() - start < 10


def test_time_is_bounded_whatever_the_number_of_attempts(proxy, impatient, file, monkeypatch):
    monkeypatch.setattr(s3_client, "GIVE_UP_SECONDS", 1.2)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1000")
    proxy.add(HANG)
    with pytest.raises(StoreError, match="3 attempts in"):
        file.read_bytes()


def test_one_object_that_cannot_be_had_is_no_fault_of_the_store(proxy, file):
    proxy.add(answered(500), "GET", "k.bin")
    with pytest.raises(InputError, match=r"8 attempts .*500 Internal.*; the store answers other"):
        file.read_bytes()


def test_images_are_set_aside_but_not_for_a_store_that_is_away(proxy, folder):
    source = FolderSource(folder, "first_folder", ("png",))
    names = [f"p/{n}.png" for n in range(3)]
    pixels = face(0, 0)
    for name in names:
        content = io.BytesIO()
        pixels.save(content, "PNG")
        (source.root / name).write_bytes(content.getvalue())
    proxy.clear()
    rule = proxy.add(answered(503), "GET", "p/1")
    items = [Item(name) for name in [*names, "p/none.png"]]
    with ThreadPoolExecutor(2) as threads:
        found = list(read_faces(source, items, threads))
        np.testing.assert_array_equal(found[0].pixels, np.asarray(pixels))
        np.testing.assert_array_equal(found[2].pixels, np.asarray(pixels))
        assert isinstance(found[1], InputError)
        assert isinstance(found[3], InputError)
        rule.target = ""
        with pytest.raises(StoreError, match="does not answer"):
            list(read_faces(source, items, threads))


# --- objects that are replaced, and objects of every size


def test_object_replaced_by_another_while_it_is_open(proxy, file, direct, monkeypatch):
    monkeypatch.setattr(s3, "_AHEAD_BYTES", 1000)
    stream = file.open()
    assert stream.read_at(1000, 0) == CONTENT[:1000]
    file.write_bytes(OTHER)
    with pytest.raises(InputError, match=f"cannot read {file.uri}: it was replaced by another"):
        stream.read_at(1000, 5000)
    assert through_open(file) == OTHER


def test_range_is_of_the_object_that_is_there_now(file):
    assert file.read_range(10, 5) == CONTENT[10:15]
    file.write_bytes(OTHER)
    assert file.read_range(10, 5) == OTHER[10:15]
    file.write_bytes(OTHER[:12])
    for offset in (10, 12, 500):
        with pytest.raises(InputError, match=r"expected 5 bytes at .*shorter than its index says"):
            file.read_range(offset, 5)
    assert file.read_range(12, 0) == b""


def test_version_changes_with_the_content(file):
    before = file.version()
    assert file.version() == before
    file.write_bytes(OTHER)
    assert file.version() != before


@pytest.mark.parametrize("size", [0, 1, 1000, 1001, 2500])
def test_open_file_reads_as_any_file_does(file, monkeypatch, size):
    monkeypatch.setattr(s3, "_AHEAD_BYTES", 1000)
    content, draw = CONTENT[:size], random.Random(size)
    file.write_bytes(content)
    oracle = io.BytesIO(content)
    with file.open() as stream:
        assert stream.size() == size
        for _ in range(60):
            offset, length = draw.randrange(size + 3), draw.choice((0, 1, 7, 900, 1500, 5000))
            assert stream.read_at(length, offset) == content[offset : offset + length]
            assert stream.seek(offset) == oracle.seek(offset)
            assert [stream.read(length), stream.tell()] == [oracle.read(length), oracle.tell()]


def test_empty_object(file):
    file.write_bytes(b"")
    assert [way(file) for way in (Location.read_bytes, through_open)] == [b"", b""]
    assert file.read_small(0) == b""
    assert file.exists()


def test_parquet_columns_through_faults(proxy, folder, monkeypatch):
    monkeypatch.setattr(s3, "_AHEAD_BYTES", 30_000)
    draw = np.random.default_rng(0)
    table = pa.table({name: draw.normal(size=20_000) for name in "abc"})
    place = folder / "t.parquet"
    place.write_bytes(parquet_bytes(table))
    proxy.clear()
    for fault in (answered(503), cut_answer(20_000), RESET, shortened(20_000)):
        proxy.add(fault, "GET", times=1)
    assert read_parquet(place, ["c", "a"]).equals(table.select(["c", "a"]))
    assert proxy.count("", "GET") >= 2
    proxy.add(answered(403), "GET", skip=1)
    with pytest.raises(InputError, match=f"cannot read {place.uri}: forbidden"):
        read_parquet(place)


# --- few requests, many at a time


def test_small_object_is_one_request(proxy, file):
    assert file.read_small(len(CONTENT)) == CONTENT
    assert file.read_small(len(CONTENT) - 1) == len(CONTENT)
    assert through_open(file) == CONTENT
    assert proxy.count() == proxy.count(method="GET") == 3


def test_object_too_large_for_an_image_is_not_received(proxy, file, monkeypatch):
    monkeypatch.setattr("sdd_ray.formats.folder.MAX_FILE_BYTES", 1000)
    source = FolderSource(Location(file.uri.rpartition("/")[0]), "none", ("bin",))
    found = source.fetch([Item("k.bin")])[0]
    assert isinstance(found, ImageRejectedError)
    assert str(found) == "too_large: a file of 300,000 bytes"


def test_threads_read_at_the_same_time(proxy, file):
    proxy.add(slow(0.1), "GET")
    file.read_range(0, 1)  # connect, look for credentials
    start = time.monotonic()
    with ThreadPoolExecutor(16) as threads:
        found = list(threads.map(lambda n: file.read_range(n * 100, 100), range(64)))
    assert time.monotonic() - start < 64 * 0.1 / 2
    assert b"".join(found) == CONTENT[:6400]


def test_folder_has_one_key_however_it_is_written():
    assert Location("s3://b/a/").key() == Location("s3://b/a").key()
