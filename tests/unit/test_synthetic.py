"""Drawn faces: the same everywhere, alike within a person, worse with severity."""

import csv
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from scipy.stats import spearmanr

from sdd_ray.errors import ConfigError, InputError, OutputError
from sdd_ray.settings import DrawConfig
from sdd_ray.synthetic import people
from sdd_ray.synthetic.__main__ import run
from sdd_ray.synthetic.canvas import Pose, curve, hue, ramp, surface_depth
from sdd_ray.synthetic.degradations import DEGRADATIONS, degrade
from sdd_ray.synthetic.faces import draw_face
from sdd_ray.synthetic.samples import (
    SyntheticSet,
    draw,
    draw_sample,
    keys,
    parse,
    write_folder,
)

SPEC = SyntheticSet(seed=1, num_identities=3, images_per_identity=4)


def test_face_is_a_picture_and_is_drawn_alike_twice():
    face = draw_face(0, 3, 1)
    assert face.shape == (112, 112, 3)
    assert face.dtype == np.uint8
    assert face.std() > 20
    np.testing.assert_array_equal(face, draw_face(0, 3, 1))


def test_golden_face():
    # Made with numpy 2.4 and Pillow 13.0: the mean of each 28-pixel block of draw_face(0, 12, 0),
    # rounded. Another Pillow may move an edge by a pixel, which changes a mean by less than 3.
    golden = [[48, 47, 63, 98], [47, 64, 53, 79], [49, 64, 53, 66], [65, 69, 60, 67]]
    blocks = draw_face(0, 12, 0).reshape(4, 28, 4, 28, 3).mean(axis=(1, 3, 4))
    np.testing.assert_allclose(blocks, golden, atol=3)


@pytest.mark.parametrize("other", [(1, 3, 1), (0, 4, 1), (0, 3, 2)])
def test_every_part_of_the_key_counts(other):
    assert np.abs(draw_face(0, 3, 1).astype(int) - draw_face(*other)).mean() > 3


def test_people_fill_their_ranges():
    drawn = [people.draw_person(0, identity) for identity in range(300)]
    for name, (low, high) in people.PERSON_RANGES.items():
        values = np.array([getattr(person, name) for person in drawn])
        assert low <= values.min() < low + 0.05 * (high - low)
        assert high - 0.05 * (high - low) < values.max() <= high


def test_pictures_of_one_person_share_the_person_only():
    assert people.draw_person(0, 1) == people.draw_person(0, 1)
    assert people.draw_look(0, 1, 0) != people.draw_look(0, 1, 1)


def test_same_person_is_closer_than_another_in_shape():
    # Local contrast only: what is left when colour, light and exposure are divided out.
    shapes = np.array([[_shape_of(draw_face(0, i, j)) for j in range(3)] for i in range(20)])
    similarity = np.einsum("iak,jbk->ijab", shapes, shapes)
    mated = np.mean([similarity[i, i][np.triu_indices(3, 1)].mean() for i in range(20)])
    others = ~np.eye(20, dtype=bool)
    assert mated > similarity[others].mean() + 0.1


def test_mean_colour_does_not_give_the_person_away():
    colours = np.array(
        [[draw_face(0, i, j)[40:96, 36:76].mean(axis=(0, 1)) for j in range(4)] for i in range(30)]
    )
    distance = np.linalg.norm(colours[:, :1] - colours[:, 1][None, :], axis=2)
    nearest_is_self = (distance.argmin(axis=1) == np.arange(30)).mean()
    assert nearest_is_self < 0.4


def _shape_of(face):
    grey = Image.fromarray(face).convert("L").resize((28, 28), Image.Resampling.BOX)
    detail = np.asarray(grey, dtype=float)
    detail = np.concatenate([np.diff(detail, axis=0).ravel(), np.diff(detail, axis=1).ravel()])
    return detail / np.linalg.norm(detail)


def test_straight_pose_places_points_where_they_are():
    points = np.array([(-18.0, -20.0), (18.0, -20.0), (0.0, 20.0)])
    placed = Pose(0, 0, 0, 0, 0, 1).place(points, surface_depth(points))
    np.testing.assert_allclose(placed, points + np.array([56, 72]))


def test_turned_head_moves_its_outline_against_its_nose():
    pose = Pose(yaw=0.3, pitch=0, roll=0, shift_x=0, shift_y=0, scale=1)
    outline, nose = pose.place(np.zeros((1, 2)), 0.0), pose.place(np.zeros((1, 2)), 45.0)
    assert outline[0, 0] < 56 < nose[0, 0]


def test_roll_turns_about_the_centre():
    quarter = Pose(0, 0, np.pi / 2, 0, 0, 1)
    placed = quarter.place(np.array([(10.0, 0.0)]), 34.0)
    np.testing.assert_allclose(placed, [(56, 82)], atol=1e-9)


def test_curve_passes_through_its_points():
    knots = [(0.0, 0.0), (3.0, 1.0), (5.0, -2.0)]
    np.testing.assert_allclose(curve(knots)[::6], knots, atol=1e-12)
    np.testing.assert_allclose(curve(knots, closed=True)[::6], knots, atol=1e-12)


def test_ramp_and_hue_meet_their_ends():
    stops = ((0, 0, 0), (100, 50, 10), (200, 200, 200))
    assert [ramp(stops, share) for share in (0, 0.5, 1)] == list(stops)
    assert hue(0.0, 1.0, 1.0) == (255, 0, 0)
    assert hue(0.3, 0.5, 0.0) == (128, 128, 128)


@pytest.mark.parametrize("kind", DEGRADATIONS)
def test_severity_zero_changes_nothing(kind):
    face = draw_face(0, 2, 0)
    unchanged = degrade(face, kind, 0.0, np.random.default_rng(0))
    np.testing.assert_array_equal(unchanged, face)
    assert unchanged is not face


def test_more_pose_shows_less_of_the_face():
    columns = np.broadcast_to(np.arange(112, dtype=np.uint8)[None, :, None], (112, 112, 3))
    seen = [
        len(np.unique(degrade(columns, "pose", severity, np.random.default_rng(0))))
        for severity in np.linspace(0, 1, 6)
    ]
    assert np.all(np.diff(seen) < 0)


@pytest.mark.parametrize("kind", [kind for kind in DEGRADATIONS if kind != "pose"])
def test_more_severity_is_more_damage(kind):
    severities = np.linspace(0, 1, 6)
    damage = np.zeros(6)
    for identity in range(6):
        face = draw_face(0, identity, 0).astype(float)
        for step, severity in enumerate(severities):
            worse = degrade(face.astype(np.uint8), kind, severity, np.random.default_rng(identity))
            damage[step] += np.sqrt(np.square(worse - face).mean())
    assert np.all(np.diff(damage) > 0)
    assert damage[-1] / 6 > 20


@pytest.mark.parametrize("kind", DEGRADATIONS)
def test_small_severity_is_small_damage(kind):
    face = draw_face(0, 2, 0)
    least, most = (
        np.abs(degrade(face, kind, severity, np.random.default_rng(0)).astype(float) - face).mean()
        for severity in (0.02, 1.0)
    )
    assert least < 0.33 * most


@pytest.mark.parametrize("kind", DEGRADATIONS)
def test_damage_depends_on_the_generator_only(kind):
    face = draw_face(0, 2, 0)
    first, second = (degrade(face, kind, 0.5, np.random.default_rng(4)) for _ in range(2))
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("kind", DEGRADATIONS)
def test_damage_takes_other_sizes(kind):
    picture = np.arange(40 * 30 * 3, dtype=np.uint8).reshape(40, 30, 3)
    assert degrade(picture, kind, 1.0, np.random.default_rng(0)).shape == (40, 30, 3)


@pytest.mark.parametrize(
    ("image", "kind", "severity", "message"),
    [
        (np.zeros((8, 8), np.uint8), "blur", 0.5, r"expected \(H, W, 3\) uint8, got \(8, 8\)"),
        (np.zeros((8, 8, 3)), "blur", 0.5, "got .* float64"),
        (np.zeros((8, 8, 3), np.uint8), "blurr", 0.5, "expected one of blur, .*got 'blurr'"),
        (np.zeros((8, 8, 3), np.uint8), "blur", 1.5, r"severity in \[0, 1\], got 1.5"),
    ],
)
def test_degrade_names_what_is_wrong(image, kind, severity, message):
    with pytest.raises(ValueError, match=message):
        degrade(image, kind, severity, np.random.default_rng(0))


def test_sample_does_not_depend_on_the_size_of_the_set():
    larger = replace(SPEC, num_identities=900, images_per_identity=50, first_identity=0)
    for identity, index in keys(SPEC):
        small, large = draw_sample(SPEC, identity, index), draw_sample(larger, identity, index)
        np.testing.assert_array_equal(small.image, large.image)
        assert (small.image_id, small.severity) == (large.image_id, large.severity)


def test_image_id_leads_back_to_the_picture():
    sample = draw_sample(SPEC, 2, 3)
    assert sample.image_id == "synthetic/1/000002/0003"
    assert parse(sample.image_id) == (1, 2, 3)
    np.testing.assert_array_equal(draw(SPEC, sample.image_id).image, sample.image)


@pytest.mark.parametrize(
    "image_id", ["synthetic/1/2/3", "other/1/000002/0003", "synthetic/1/000002/0003.png", ""]
)
def test_foreign_image_id_is_refused(image_id):
    with pytest.raises(InputError, match="expected an image_id like"):
        parse(image_id)


@pytest.mark.parametrize(
    "image_id", ["synthetic/2/000002/0003", "synthetic/1/000003/0000", "synthetic/1/000000/0004"]
)
def test_image_id_outside_the_set_is_refused(image_id):
    with pytest.raises(InputError, match="expected an image_id of SyntheticSet"):
        draw(SPEC, image_id)


def test_severities_are_even_and_kinds_all_occur(monkeypatch):
    monkeypatch.setattr(
        "sdd_ray.synthetic.samples.draw_face", lambda *_: np.zeros((16, 16, 3), np.uint8)
    )
    spec = SyntheticSet(seed=0, num_identities=100, images_per_identity=20)
    drawn = [draw_sample(spec, *key) for key in keys(spec)]
    kinds = [sample.kind for sample in drawn]
    severities = np.array([sample.severity for sample in drawn])
    assert set(kinds) == {*DEGRADATIONS, "none"}
    assert all((sample.kind == "none") == (sample.severity == 0) for sample in drawn)
    assert (severities > 0).mean() == pytest.approx(0.6, abs=0.04)
    counts, _ = np.histogram(severities[severities > 0], bins=10, range=(0, 1))
    assert counts.min() > 0.7 * counts.mean()
    numbers = [DEGRADATIONS.index(kind) if kind != "none" else -1 for kind in kinds]
    damaged = severities > 0
    assert abs(spearmanr(np.array(numbers)[damaged], severities[damaged]).statistic) < 0.1


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_share_at_its_ends(share):
    spec = replace(SPEC, degraded_share=share)
    assert {draw_sample(spec, *key).severity > 0 for key in keys(spec)} == {bool(share)}


def test_set_reports_every_wrong_value():
    with pytest.raises(ConfigError) as caught:
        SyntheticSet(seed=-1, num_identities=0, images_per_identity=1, degraded_share=1.5)
    message = str(caught.value)
    assert "seed must be at least 0, got -1" in message
    assert "num_identities must be at least 1, got 0" in message
    assert "degraded_share must lie in [0, 1], got 1.5" in message


def test_written_folder_equals_the_set(tmp_path):
    write_folder(SPEC, tmp_path / "faces")
    with (tmp_path / "faces" / "severity.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["image_id"] for row in rows] == [f"{i:06d}/{j:04d}.png" for i, j in keys(SPEC)]
    for row, key in zip(rows, keys(SPEC), strict=True):
        sample = draw_sample(SPEC, *key)
        with Image.open(tmp_path / "faces" / row["image_id"]) as written:
            np.testing.assert_array_equal(np.asarray(written), sample.image)
        assert (row["identity"], row["kind"]) == (sample.identity, sample.kind)
        assert float(row["severity"]) == sample.severity
    assert [path.name for path in tmp_path.iterdir()] == ["faces"]


@pytest.mark.parametrize("output", ["s3://bucket/faces", "file:///faces"])
def test_faces_are_not_drawn_into_a_folder_named_like_a_store(tmp_path, monkeypatch, output):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OutputError, match=f"output={output}: .* local folder only"):
        run(DrawConfig(output=output))
    assert not any(tmp_path.iterdir())


def test_existing_folder_is_left_alone(tmp_path):
    (tmp_path / "kept").write_text("mine")
    with pytest.raises(OutputError, match="exists"):
        write_folder(SPEC, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_failed_writing_leaves_nothing(tmp_path, monkeypatch):
    def full_disk(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full_disk)
    with pytest.raises(OutputError, match="No space left"):
        write_folder(SPEC, tmp_path / "faces")
    assert list(tmp_path.iterdir()) == []
