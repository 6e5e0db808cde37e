"""Configurations are loaded strictly: precedence, all mistakes at once, help, exit status."""

import dataclasses
import importlib
import inspect
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from sdd_ray import settings
from sdd_ray.config import (
    EXECUTION_KEYS,
    describe_fields,
    digest_of,
    help_text,
    identity_of,
    known_keys,
    load_config,
    main,
    to_dict,
    write_yaml,
)
from sdd_ray.errors import ConfigError, InputError
from sdd_ray.settings import (
    EmbedConfig,
    EvaluateConfig,
    LabelConfig,
    ScoreConfig,
    TrainConfig,
    TuneConfig,
)

REPOSITORY = Path(__file__).resolve().parents[2]
CONFIG_FILES = sorted((REPOSITORY / "configs").glob("*.yaml"))
TREES = [
    kind
    for _, kind in inspect.getmembers(settings, dataclasses.is_dataclass)
    if kind.__module__.startswith(settings.__name__)
]
assert TREES, "no settings found: every check over them would pass unseen"
A = "{name: a, path: b}"
REQUIRED = {
    EmbedConfig: ["output=e"],
    LabelConfig: ["embeddings=e", "output=l"],
    TrainConfig: ["labels=l", "output=m"],
    TuneConfig: ["output=t", "train.labels=l", "train.output=m"],
    ScoreConfig: ["model=m", "output=q"],
    EvaluateConfig: ["embeddings=e", "output=v", "methods=[{name: a, path: b}]"],
    settings.AuditConfig: ["embeddings=e", "output=a"],
    settings.MeasureConfig: ["output=m"],
    settings.CalibrateConfig: ["model=m", "output=n", "evaluation=e"],
    settings.ExportConfig: ["model=m", "output=e"],
    settings.PlanConfig: ["images=5", "measured=[{path: e}]"],
    settings.DemoConfig: [],
}


def load(text: str, *overrides: str, schema=LabelConfig, folder: Path):
    file = folder / "config.yaml"
    file.write_text(text, encoding="utf-8")
    return load_config(schema, file, overrides)


def mistakes(*overrides: str, schema=EmbedConfig) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(schema, None, overrides)
    return str(caught.value)


def test_defaults_then_file_then_overrides(tmp_path):
    text = "embeddings: e\noutput: l\nmethod: sampled\nsampled: {rounds: 3, per_image: 5}\n"
    config = load(text, "sampled.rounds=4", folder=tmp_path)
    assert (config.method, config.sampled.rounds, config.sampled.per_image) == ("sampled", 4, 5)
    assert config.sampled.seed == LabelConfig(embeddings="e", output="l").sampled.seed
    assert load(text, folder=tmp_path).sampled.rounds == 3


def test_of_two_overrides_of_one_key_the_later_one_holds():
    config = load_config(EmbedConfig, None, ["output=a", "output=b"])
    assert config.output == "b"


def test_override_of_a_whole_group():
    config = load_config(LabelConfig, None, ["embeddings=e", "output=l", "exact={seed: 3}"])
    assert config.exact.seed == 3


def test_override_value_may_hold_an_equals_sign():
    assert load_config(EmbedConfig, None, ["output=s3://b/a=1"]).output == "s3://b/a=1"


def test_all_mistakes_are_reported_at_once_with_their_dotted_keys():
    text = mistakes(
        "source.synthetic.num_identities=0",
        "storage=float64",
        "resources.workers=many",
        "max_reject_share=1.5",
        "nonsense",
    )
    lines = [line.strip() for line in text.splitlines()[1:]]
    keys = {line.partition(": ")[0] for line in lines}
    assert keys == {
        "output",
        "source.synthetic.num_identities",
        "storage",
        "resources.workers",
        "max_reject_share",
        "'nonsense'",
    }
    assert "output: required, and not given" in lines


@pytest.mark.parametrize(
    ("key", "named", "right"),
    [
        ("outputs", "outputs", "output"),
        ("source.synthetic.sede", "source.synthetic.sede", "source.synthetic.seed"),
        ("resource.workers", "resource", "resources"),
        ("synthetic.seed", "synthetic", "source.synthetic"),
        ("recogniser.fliip", "recogniser.fliip", "recogniser.flip"),
    ],
)
def test_nearest_right_key_is_suggested(key, named, right):
    text = mistakes("output=e", f"{key}=1")
    assert text.splitlines()[1] == f"  {named}: no such key; did you mean {right}?"


def test_no_suggestion_where_nothing_is_near():
    assert "zzzzzz: no such key\n" in mistakes("output=e", "zzzzzz=1") + "\n"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("images_per_shard=true", "images_per_shard: input should be a valid integer (got true)"),
        ("images_per_shard=2.5", "images_per_shard"),
        ("images_per_shard='7'", 'images_per_shard: input should be a valid integer (got "7")'),
        ("images_per_shard=0", "images_per_shard: input should be greater than 0 (got 0)"),
        ("output=3", "output: input should be a valid string (got 3)"),
        ("output=''", "output"),
        ("output=null", "output"),
        ("max_reject_share=true", "max_reject_share: input should be a valid number (got true)"),
        ("max_reject_share=-0.1", "max_reject_share"),
        ("recogniser.flip=1", "recogniser.flip: input should be a valid boolean (got 1)"),
        ("recogniser.flip='yes'", "recogniser.flip"),
        ("recogniser.preprocessing.mean=[1, 2]", "recogniser.preprocessing.mean"),
        ("recogniser.preprocessing.std=[1, 2, 0]", "recogniser.preprocessing.std.2"),
        ("source.extensions=jpg", "source.extensions"),
        ("ray=5", "ray"),
        ("ray=null", "ray"),
    ],
)
def test_wrong_types_are_refused_strictly(override, expected):
    text = mistakes("output=e", override) if "output" not in override else mistakes(override)
    assert expected in text
    assert len(text.splitlines()) == 2


@pytest.mark.parametrize(
    ("text", "value"), [("1e-4", 1e-4), ("1E-4", 1e-4), ("2e3", 2000.0), ("1.5e+2", 150), ("3", 3)]
)
def test_exponents_are_numbers_without_a_decimal_point(text, value):
    config = load_config(
        TrainConfig, None, ["labels=l", "output=m", f"optimiser.learning_rate={text}"]
    )
    assert config.optimiser.learning_rate == pytest.approx(value)


def test_text_that_only_looks_like_a_number_can_be_quoted():
    assert load_config(EmbedConfig, None, ["output='1e4'"]).output == "1e4"


@pytest.mark.parametrize("text", [".nan", ".inf", "2020-01-01", "[1, .nan]"])
def test_what_json_cannot_hold_is_refused(text):
    with pytest.raises(ConfigError, match="not plain data"):
        load_config(EmbedConfig, None, ["output=e", f"max_reject_share={text}"])


def test_key_given_twice_in_the_file(tmp_path):
    with pytest.raises(ConfigError, match="key 'output' is given twice"):
        load("embeddings: e\noutput: a\noutput: b\n", folder=tmp_path)
    with pytest.raises(ConfigError, match="key 'seed' is given twice"):
        load("embeddings: e\noutput: a\nexact:\n  seed: 1\n  seed: 2\n", folder=tmp_path)


@pytest.mark.parametrize("text", ["- a\n- b\n", "just text", "3"])
def test_file_that_is_no_mapping(text, tmp_path):
    with pytest.raises(ConfigError, match=r"expected keys and values, got (list|str|int)"):
        load(text, folder=tmp_path)


def test_empty_file_is_the_defaults(tmp_path):
    config = load("# nothing\n", "embeddings=e", "output=l", folder=tmp_path)
    assert config == LabelConfig(embeddings="e", output="l")


def test_file_that_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read the configuration .*missing\.yaml"):
        load_config(EmbedConfig, tmp_path / "missing.yaml")
    with pytest.raises(ConfigError, match="cannot read the configuration"):
        load_config(EmbedConfig, tmp_path)
    (tmp_path / "latin.yaml").write_bytes("output: é".encode("latin-1"))
    with pytest.raises(ConfigError, match="cannot read the configuration"):
        load_config(EmbedConfig, tmp_path / "latin.yaml")


def test_file_that_is_no_yaml(tmp_path):
    with pytest.raises(ConfigError, match="is not YAML"):
        load("output: [", folder=tmp_path)


def test_yaml_cannot_build_objects(tmp_path):
    with pytest.raises(ConfigError, match="is not YAML"):
        load("output: !!python/object/apply:os.getcwd []", folder=tmp_path)


@pytest.mark.parametrize("text", ["output", "=x", ""])
def test_override_without_key_or_equals_sign(text):
    assert f"{text!r}: expected dotted.key=value" in mistakes("output=e", text)


def test_override_below_a_value():
    assert "output.deeper: output holds a value, not keys" in mistakes(
        "output=e", "output.deeper=1"
    )


def test_override_below_what_a_file_has_as_null(tmp_path):
    file = tmp_path / "score.yaml"
    file.write_text("model: m\noutput: q\nbest: null\n")
    config = load_config(ScoreConfig, str(file), ["best.count=3"])
    assert config.best.count == 3


def test_override_that_is_no_yaml():
    assert "storage: '[' is not a YAML value" in mistakes("output=e", "storage=[")


@pytest.mark.parametrize(
    ("schema", "overrides", "expected"),
    [
        (EmbedConfig, ["output=e", "source.kind=folder"], "source.path"),
        (EmbedConfig, ["output=e", "recogniser.kind=onnx"], "recogniser.path"),
        (
            TrainConfig,
            ["labels=l", "output=m", "recogniser={kind: onnx, path: a.onnx}"],
            "cannot be trained further",
        ),
        (
            TuneConfig,
            [*REQUIRED[TuneConfig], "space={x: {kind: uniform, low: 2, high: 1}}"],
            "needs low < high",
        ),
        (
            TuneConfig,
            [*REQUIRED[TuneConfig], "space={x: {kind: log_uniform, low: 0, high: 1}}"],
            "low > 0",
        ),
        (TuneConfig, [*REQUIRED[TuneConfig], "space={x: {kind: choice}}"], "needs values"),
        *(
            (EvaluateConfig, ["embeddings=e", "output=v", *words], expected)
            for words, expected in [
                ([f"methods=[{A}, {A}]"], "methods need names of their own"),
                (["methods=[{name: random, path: b}]"], "and not `random`; got ['random']"),
                (
                    [
                        f"methods=[{A}]",
                        "pair_quality=mean",
                        "discarded=comparisons",
                        "groups.path=g.csv",
                    ],
                    "groups need pair_quality=minimum, got mean",
                ),
                ([f"methods=[{A}]", "fmr=[]"], "fmr: tuple should have at least 1 item"),
                ([f"methods=[{A}]", "fmr=[0.1, 0.1]"], "fmr names a rate twice, got [0.1, 0.1]"),
                ([f"methods=[{A}]", "discard_fractions=[]"], "discard_fractions: tuple should"),
                ([f"methods=[{A}]", "discard_fractions=[0.2, 0.1]"], "must increase, got [0.2"),
                ([f"methods=[{A}]", "discard_fractions=[0.1, 0.1]"], "must increase, got [0.1"),
                ([f"methods=[{A}]", "discard_fractions=[0, 1]"], "discard_fractions.1: input"),
            ]
        ),
    ],
)
def test_options_that_do_not_fit_together(schema, overrides, expected):
    assert expected in mistakes(*overrides, schema=schema)


@pytest.mark.parametrize("schema", REQUIRED, ids=lambda s: s.__name__)
def test_resolved_tree_reads_back_equal(schema, tmp_path):
    config = load_config(schema, None, REQUIRED[schema])
    tree = to_dict(config)
    assert json.loads(json.dumps(tree)) == tree
    for text in (json.dumps(tree), write_yaml(tree)):
        assert load(text, schema=schema, folder=tmp_path) == config


def test_execution_keys_are_no_part_of_the_identity():
    here = load_config(LabelConfig, None, ["embeddings=e", "output=l"])
    there = load_config(
        LabelConfig,
        None,
        ["embeddings=e", "output=x", "ray.num_cpus=3", "resources.workers=9"],
    )
    other = load_config(LabelConfig, None, ["embeddings=e", "output=l", "exact.seed=1"])
    assert identity_of(here) == identity_of(there)
    assert identity_of(here) != identity_of(other)
    assert not EXECUTION_KEYS & set(identity_of(here))


def test_digest_ignores_the_order_of_keys():
    assert digest_of({"a": 1, "b": {"c": 2, "d": 3}}) == digest_of({"b": {"d": 3, "c": 2}, "a": 1})
    assert digest_of({"a": 1}) != digest_of({"a": 2})


def test_trees_are_frozen():
    config = load_config(EmbedConfig, None, ["output=e"])
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.output = "x"


@pytest.mark.parametrize("tree", TREES, ids=lambda t: t.__name__)
def test_every_option_is_documented(tree):
    assert tree.__doc__
    undocumented = [
        name
        for name, info in tree.__pydantic_fields__.items()
        if not info.description and not dataclasses.is_dataclass(info.annotation)
    ]
    assert undocumented == []


@pytest.mark.parametrize("schema", REQUIRED, ids=lambda s: s.__name__)
def test_help_prints_every_option_with_its_text(schema):
    text = help_text(schema, "python -m sdd_ray.x")
    assert text.startswith("usage: python -m sdd_ray.x --config FILE")
    assert "\n " not in text.partition("Keys (default)")[0]
    for key, kind, default, description in describe_fields(schema):
        assert f"  {key}: {kind}{default}\n" in text
        assert description
        assert all(line in text for line in description.splitlines())


def test_help_speaks_plainly_of_types():
    text = help_text(EmbedConfig, "x")
    assert "output: text (required)" in text
    assert 'storage: one of float32, float16 ("float32")' in text
    assert "resources.workers: integer or null (null)" in text
    assert "source.extensions: list of text" in text
    assert "recogniser.flip: true or false (false)" in text


def test_help_shows_the_keys_of_groups_that_may_be_null():
    text = help_text(EvaluateConfig, "x")
    assert "  groups: the keys below, or null (null)\n" in text
    assert '  groups.column: text ("group")\n' in text
    assert "  comparisons.pairs.path: text (required)\n" in text
    assert "  report.faces.synthetic.seed: integer (7)\n" in text


def test_known_keys_hold_options_and_groups():
    keys = known_keys(EmbedConfig)
    assert {"output", "source", "source.synthetic", "source.synthetic.seed"} <= set(keys)
    assert len(keys) == len(set(keys))
    assert len(known_keys(EvaluateConfig)) == len(set(known_keys(EvaluateConfig)))


def test_main_returns_exit_statuses(capsys):
    def done(config):
        ran.append(config.output)

    def broken(config):
        raise InputError("nothing there")

    def stopped(config):
        raise KeyboardInterrupt

    ran = []
    assert main(EmbedConfig, done, ["output=e"]) == 0
    assert ran == ["e"]
    assert main(EmbedConfig, broken, ["output=e"]) == 1
    assert capsys.readouterr().err.endswith(": nothing there\n")
    assert main(EmbedConfig, stopped, ["output=e"]) == 130
    assert main(EmbedConfig, done, ["outptu=e"]) == 2
    assert main(EmbedConfig, done, ["--config"]) == 2
    assert main(EmbedConfig, done, ["--verbose", "output=e"]) == 2
    assert "--verbose: no such option" in capsys.readouterr().err
    assert main(EmbedConfig, done, ["--help"]) == 0
    assert "images_per_shard" in capsys.readouterr().out
    assert ran == ["e"]


@pytest.mark.parametrize("form", [["--config", "{}"], ["--config={}"]])
def test_both_forms_of_the_file_option(form, tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("output: e\n")
    seen = []
    assert main(EmbedConfig, seen.append, [word.format(file) for word in form]) == 0
    assert seen[0].output == "e"


def test_wrong_command_line_ends_at_once_without_a_traceback():
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "sdd_ray.score", "--config", "missing.yaml"],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        check=False,
    )
    spent_s = time.perf_counter() - started
    assert done.returncode == 2
    assert done.stderr.startswith("python -m sdd_ray.score: cannot read the configuration missing")
    assert "Traceback" not in done.stderr
    # Under a second on an idle machine; Ray or torch alone would cost several on a busy one.
    assert spent_s < 5


def test_wrong_configuration_is_reported_before_ray_or_torch_is_imported():
    code = (
        "import sys; from sdd_ray.score import run, ScoreConfig; from sdd_ray.config import main;"
        "status = main(ScoreConfig, run, ['modle=x']);"
        "late = {'ray', 'torch', 'pyarrow', 'boto3', 'numpy', 'scipy'} & set(sys.modules);"
        "print(status, sorted(late))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=True
    )
    assert done.stdout == "2 []\n"
    assert "modle: no such key; did you mean model?" in done.stderr


@pytest.mark.parametrize("file", CONFIG_FILES, ids=lambda f: f.name)
def test_shipped_configurations_are_right(file):
    tree = yaml.safe_load(file.read_text())
    # A training set's file is named <command>_<set>.yaml.
    command = file.stem.partition("_")[0]
    module = importlib.import_module(f"sdd_ray.{command}")
    config = load_config(getattr(settings, f"{command.title()}Config"), file)
    assert callable(module.run)
    assert to_dict(config).keys() >= tree.keys()


def test_tables_may_be_of_any_fractions():
    words = [*REQUIRED[EvaluateConfig], "discard_fractions=[0.02, 0.12, 0.335]"]
    assert load_config(EvaluateConfig, None, words).discard_fractions == (0.02, 0.12, 0.335)


def test_a_wrong_item_is_one_mistake():
    """Without it the list is empty, which is no mistake of the user's."""
    words = ["embeddings=e", "output=o", "methods=[{name: m, path: q, seedz: [a]}]"]
    with pytest.raises(ConfigError) as found:
        load_config(EvaluateConfig, None, words)
    assert str(found.value).splitlines()[1:] == ["  methods.0.seedz: no such key"]
    with pytest.raises(ConfigError, match="methods: tuple should have at least 1 item"):
        load_config(EvaluateConfig, None, [*words[:2], "methods=[]"])
