"""The MovieLens example, on a small data set in its format."""

import keras
import numpy as np
import pytest

from tests.benchmarks import sequences
from tests.docs import examples

pytestmark = pytest.mark.once


@pytest.fixture(scope="module")
def data():
    return examples.load("movielens_data")


@pytest.fixture(scope="module")
def movielens():
    return examples.load("movielens")


def write(folder, rows):
    """Writes (user, item, timestamp) rows in the format of u.data."""
    lines = [f"{user}\t{item}\t3\t{when}\n" for user, item, when in rows]
    (folder / "u.data").write_text("".join(lines))


@pytest.fixture
def folder(tmp_path):
    """Two groups of 20 users, who each rate 12 of their group's 20 items."""
    rng = np.random.default_rng(0)
    rows = []
    for user in range(1, 41):
        items = 1 + 20 * (user % 2) + rng.permutation(20)[:12]
        whens = rng.permutation(1000)[:12]
        rows += [(user, *row) for row in zip(items, whens)]
    write(tmp_path, rows)
    return tmp_path


def test_the_command_line_trains_evaluates_and_draws(
    movielens, folder, tmp_path, capsys
):
    picture = tmp_path / "recall.png"
    options = ["--epochs", "1", "--batch-size", "32", "--plot", str(picture)]
    results = movielens.main(["--data", str(folder), *options])
    titles = [movielens.RECIPES[r].title for r in movielens.DEFAULT_RECIPES]
    assert list(results) == ["popularity", *titles]
    out = capsys.readouterr().out
    assert "480 ratings of 40 users and 40 items" in out
    for title, (result,) in results.items():
        # The history tower may take twice as many.
        most = 2 if title == titles[-1] else int(title in titles)
        assert bool(most) <= result.epoch <= most
        assert 0 < result.ndcg < result.recall <= 1
        (line,) = (x for x in out.splitlines() if x.startswith(title))
        assert f"{result.recall:.3f}" in line and f"{result.ndcg:.3f}" in line
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["streaming", "mixed", "symmetric"])
def test_a_recipe_learns_the_two_groups(movielens, data, folder, name):
    split = data.split_last_two(data.load_ratings(folder))
    result = movielens.train(
        movielens.RECIPES[name], split, epochs=4, batch_size=32
    )
    assert 1 <= result.epoch <= 4 == len(result.validation)
    # Of their group's 20 items a user has not seen 9 or 10, so a model that
    # knows the groups finds all of them.
    assert result.recall > 0.95
    assert movielens.popularity(split).recall < 0.7


@pytest.fixture
def eagerly(monkeypatch):
    """Models train eagerly: to trace one takes longer than a few steps."""
    compile_ = keras.Model.compile

    def compile_eagerly(model, *args, **kwargs):
        compile_(model, *args, **{**kwargs, "run_eagerly": True})

    monkeypatch.setattr(keras.Model, "compile", compile_eagerly)


@pytest.mark.parametrize(
    "name",
    [
        "memory",
        "hardest",
        "learned",
        "unmasked",
        "uncorrected",
        "two_vectors",
    ],
)
def test_the_other_recipes_train(eagerly, movielens, data, folder, name):
    split = data.split_last_two(data.load_ratings(folder))
    # The hardest 100 must be fewer than the batch.
    result = movielens.train(
        movielens.RECIPES[name], split, epochs=1, batch_size=128
    )
    assert 0 < result.ndcg < result.recall <= 1


def test_training_stops_and_goes_back_to_the_best_epoch(
    movielens, data, folder, monkeypatch
):
    split = data.split_last_two(data.load_ratings(folder))
    monkeypatch.setattr(movielens, "PATIENCE", 2)
    towers = {}
    build = movielens.build

    def spy(*args):
        job = build(*args)
        towers["user, item"] = job.user_tower, job.item_tower
        return job

    monkeypatch.setattr(movielens, "build", spy)
    result = movielens.train(
        movielens.RECIPES["recipe"], split, epochs=30, batch_size=128
    )
    assert result.recall > 0.95
    assert len(result.validation) == result.epoch + 2 < 30
    # The towers are those of the best epoch, and give the figures again.
    validation, test, _ = movielens.evaluations(
        split, [np.arange(40)] * 2, np.arange(40), *towers["user, item"]
    )
    best = result.validation[result.epoch - 1]
    assert validation()["ndcg@10"] == pytest.approx(best)
    assert test()["ndcg@10"] == pytest.approx(result.ndcg)


def test_named_recipes_run_alone_and_seeds_have_a_deviation(
    movielens, folder, tmp_path, capsys
):
    options = ["--epochs", "1", "--batch-size", "32", "--recipe", "plain"]
    options += ["--seeds", "2", "--plot", str(tmp_path / "recall.png")]
    results = movielens.main(["--data", str(folder), *options])
    title = "dot product, temperature 1"
    assert list(results) == ["popularity", title]
    first, second = (run.recall for run in results[title])
    # Recalls of 40 users may agree by chance.
    assert len({run.ndcg for run in results[title]}) == 2
    mean, deviation = (first + second) / 2, abs(first - second) / 2**0.5
    out = capsys.readouterr().out
    assert f"{mean:.3f} +- {deviation:.3f}" in out


def test_uniform_items_come_with_the_probability_of_a_mixture(movielens):
    frequency = np.array([0.5, 0.5, 0.0, 0.0])
    layer = movielens.WithUniformItems(2000, frequency, seed=0)
    ids, probability = map(
        keras.ops.convert_to_numpy, layer(np.zeros(1000, "int32"))
    )
    assert ids.shape == (3000,) and not ids[:1000].any()
    # 1000 rows of frequency 0.5 and 2000 of 1/4: 1000 in 3000; without the
    # rows 500 in 3000.
    expected = np.where(ids < 2, 1 / 3, 1 / 6)
    np.testing.assert_allclose(probability, expected, rtol=1e-6)
    drawn = np.bincount(ids[1000:], minlength=4)
    assert len(drawn) == 4 and abs(drawn - 500).max() < 100  # 5 deviations
    again = keras.ops.convert_to_numpy(layer(np.zeros(1000, "int32"))[0])
    assert (again != ids).any()


def test_an_unknown_recipe_lists_the_known(movielens, capsys):
    with pytest.raises(SystemExit):
        movielens.main(["--recipe", "unheard"])
    assert "rotation" in capsys.readouterr().err


def test_split_holds_out_the_last_two_by_time(data):
    ratings = np.array(
        [
            [7, 30, 5],  # user 7: items 10, 30, 20, 40 by time
            [9, 10, 2],  # user 9: items 40, then 10, 30, 20 at one second
            [7, 10, 1],
            [9, 30, 2],
            [7, 40, 9],
            [9, 40, 1],
            [9, 20, 2],
            [7, 20, 6],
        ]
    )
    split = data.split_last_two(ratings)
    ids = np.array([10, 20, 30, 40])
    assert ids[split.validation].tolist() == [20, 30]
    # Ties are broken by line, not by id.
    assert ids[split.test].tolist() == [40, 20]
    pairs = zip(split.users, ids[split.items])
    assert sorted(pairs) == [(0, 10), (0, 30), (1, 10), (1, 40)]
    assert (split.num_users, split.num_items) == (2, 4)
    # Item 20 is held out of both users' rows: held-out rows count not.
    np.testing.assert_array_equal(split.probability, [0.5, 0, 0.25, 0.25])


def test_training_rows_carry_the_probability_of_their_item(
    movielens, data, folder, monkeypatch
):
    seen = {}

    def full_batches(rows, *args, **kwargs):
        seen.update(rows)
        raise StopIteration

    monkeypatch.setattr(movielens.inbatch_neg, "full_batches", full_batches)
    split = data.split_last_two(data.load_ratings(folder))
    with pytest.raises(StopIteration):
        movielens.train(movielens.RECIPES["plain"], split)
    for item, probability in zip(seen["item_id"], seen["probability"]):
        count = sum(item == other for other in split.items)
        assert probability == pytest.approx(count / len(split.items))
    assert len(seen["item_id"]) == 40 * 12 - 2 * 40


@pytest.mark.parametrize(
    "rows, message",
    [
        ([[1, 1, 1], [1, 2, 2]], "three ratings"),
        ([[1, 1, 1], [1, 1, 2], [1, 2, 3]], "twice"),
    ],
)
def test_split_refuses_what_it_cannot_hold_out(data, rows, message):
    with pytest.raises(ValueError, match=message):
        data.split_last_two(np.array(rows))


def test_a_collapsed_model_has_no_recall(movielens, data, folder):
    split = data.split_last_two(data.load_ratings(folder))
    vectors = np.ones((40, 8))
    for evaluation in movielens.evaluations(split, [vectors] * 2, vectors):
        found = evaluation()
        assert found["recall@10"] == found["ndcg@10"] == 0.0


def test_seen_items_are_listed_by_user(movielens, data):
    split = data.Split(
        users=np.array([1, 0, 1]),
        items=np.array([3, 2, 0]),
        validation=np.array([0, 1]),
        test=np.array([1, 2]),
        num_items=4,
    )
    assert split.seen == [[2], [3, 0]]


def test_validation_items_are_candidates_until_the_test(movielens, data):
    # User 0: item 0 to train, 1 to validate, 2 to test; 3..13 unseen.
    split = data.Split(
        users=np.array([0]),
        items=np.array([0]),
        validation=np.array([1]),
        test=np.array([2]),
        num_items=14,
    )
    # In the order 0, 1, 3..10, 2, 11...: ahead of 1 is only the seen 0;
    # ahead of 2 are 3..10, and 1 if it were not seen by then.
    order = [0, 1, *range(3, 11), 2, 11, 12, 13]
    scores = np.empty(14)
    scores[order] = -np.arange(14)

    def figures():
        evaluations = movielens.evaluations(
            split, [np.ones((1, 1))] * 2, scores[:, None]
        )[:2]
        return [
            (found["recall@10"], found["ndcg@10"])
            for found in (evaluation() for evaluation in evaluations)
        ]

    validation, test = figures()
    assert validation == (1.0, 1.0)
    assert test == (1.0, pytest.approx(1 / np.log2(8 + 2)))
    # The test item is a candidate among others while validating.
    scores[2] = 1.0
    validation, test = figures()
    assert validation == (1.0, pytest.approx(1 / np.log2(1 + 2)))
    assert test == (1.0, 1.0)


@pytest.fixture
def two_users(data):
    """User 0 has the items 4 to 8 by time, user 1 the items 2 and 0."""
    return data.Split(
        users=np.array([0, 0, 0, 0, 0, 1, 1]),
        items=np.array([4, 5, 6, 7, 8, 2, 0]),
        validation=np.array([1, 3]),
        test=np.array([2, 1]),
        num_items=9,
    )


def test_windows_hold_what_was_read_and_what_came_next(two_users):
    history = examples.load("movielens_history")
    rows = history.windows(two_users, 3)
    # From 1 on; cut from the end; padding last.
    assert rows["history"].tolist() == [[6, 7, 8], [5, 0, 0], [3, 0, 0]]
    assert rows["item_id"].tolist() == [[7, 8, 9], [6, 0, 0], [1, 0, 0]]
    assert rows["user_id"].tolist() == [0, 0, 1]
    seventh = np.float32(1 / 7)
    assert rows["probability"][1].tolist() == [seventh, 0, 0]
    validation, test = history.latest(two_users, 3)
    assert validation.tolist() == [[7, 8, 9], [3, 1, 0]]
    assert test.tolist() == [[8, 9, 2], [3, 1, 4]]


def test_a_position_reads_only_itself_and_those_before():
    history = examples.load("movielens_history")
    tower, item_tower = history.towers(9, length=4, dimensions=8)
    query_tower = history.last_position(tower)
    rows = np.array([[3, 1, 4, 1], [3, 1, 0, 0], [3, 1, 5, 9]])
    whole = keras.ops.convert_to_numpy(tower(rows))
    np.testing.assert_allclose(whole[0, :2], whole[2, :2], atol=1e-6)
    assert abs(whole[0, 2] - whole[2, 2]).max() > 1e-3
    last = keras.ops.convert_to_numpy(query_tower(rows))
    np.testing.assert_allclose(last[1], whole[0, 1], atol=1e-6)
    np.testing.assert_allclose(last[0], whole[0, 3], atol=1e-6)
    for vectors in (last, keras.ops.convert_to_numpy(item_tower(rows))):
        np.testing.assert_allclose(
            np.linalg.norm(vectors, axis=-1), 1.0, atol=1e-3
        )


def test_a_markov_chain_counts_what_came_next():
    counts = sequences.transitions([[0, 1, 0, 1], np.array([1, 2])], 3)
    assert counts.tolist() == [[0, 2, 0], [1, 0, 1], [0, 0, 0]]
    popularity = np.array([0.5, 0.25, 0.25])
    found = sequences.mixed(counts, popularity, 2.0)
    # (counts + 2 popularity) / (sum of the counts + 2)
    np.testing.assert_allclose(found[0], [1 / 4, 2.5 / 4, 0.5 / 4])
    np.testing.assert_allclose(found[2], popularity)


def test_users_whose_last_times_are_equal_are_left_out(movielens, data):
    rows = [[u, 10 * u + k, k] for u in (0, 1) for k in range(4)]
    rows[7][2] = 2  # the last two of user 1
    split = data.split_last_two(np.array(rows))
    assert split.tied.tolist() == [False, True]
    # The test item of user 0 alone has a score.
    vectors = [np.eye(2)] * 2
    scores = np.zeros((split.num_items, 2))
    scores[split.test[0], 0] = 1.0
    evaluations = movielens.evaluations(split, vectors, scores)[1:]
    everyone, untied = map(movielens.figures, evaluations)
    assert untied == [1.0, 1.0] and everyone[1] < 1.0


def test_a_folder_without_data_is_named(data, tmp_path):
    with pytest.raises(SystemExit, match="u.data is missing.*--data"):
        data.load_ratings(tmp_path)


def test_another_format_is_named(data, tmp_path):
    (tmp_path / "u.data").write_text("user\titem\trating\twhen\n")
    with pytest.raises(SystemExit, match="not in the format of u.data"):
        data.load_ratings(tmp_path)


def test_without_any_source_one_line_says_what_to_do(
    data, tmp_path, monkeypatch
):
    def unreachable(*args, **kwargs):
        raise OSError("no\nnetwork")

    monkeypatch.setenv("INBATCH_NEG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(data.keras.utils, "get_file", unreachable)
    monkeypatch.setattr(data.subprocess, "run", unreachable)
    with pytest.raises(SystemExit) as caught:
        data.load_ratings()
    message = str(caught.value)
    assert "--data" in message and data.URL in message
    assert "\n" not in message
    assert not (tmp_path / "cache" / "u.data").exists()


def test_a_cache_of_other_data_is_refused(data, folder, monkeypatch):
    monkeypatch.setenv("INBATCH_NEG_CACHE", str(folder))
    with pytest.raises(SystemExit, match="not MovieLens-100K"):
        data.load_ratings()
