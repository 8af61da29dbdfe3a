"""Models of scikit-learn: what they learn, that no image is predicted by a model that learned from it, and that the order of
rows changes nothing."""
import functools
import random

import cv2
import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from adverts.fusion import read_models
from adverts.simple import from_features, out_of_fold, tfidf, thumbnail
from adverts.split import Split
from engine.predictions import write_predictions
from inference.errors import UserError
from tests.helpers.opinions import CLASSES, make_split

WORDS = dict(zip(CLASSES, ("Ash tree SALE", "Birke im Angebot", "杉の木 セール", "кизил скидка")))


@pytest.fixture(scope="module")
def split():
    return make_split()


def label_of(row, split):
    return row.label or split.classes[int(row.file[-6:-4]) % len(split.classes)]


@pytest.fixture(scope="module")
def texts(split):
    """A few words of the class among random ones; 00 of each fold and role has no text."""
    rng, found = random.Random(0), {}
    for row in split.rows:
        noise = ["".join(rng.choices("abcdefgh ", k=12)) for _ in range(3)]
        empty = row.file.endswith("00.jpg")
        found[row.file] = ["", " "] if empty else [noise[0], WORDS[label_of(row, split)], *noise[1:]]
    return found


@pytest.fixture(scope="module")
def features(split):
    rng = np.random.default_rng(0)
    return {row.file: rng.normal(size=12) + 2 * (np.arange(12) % 4 == CLASSES.index(label_of(row, split)))
            for row in split.rows}


def as_model(split, features):
    return from_features("features", split, features)


def as_dict(predictions):
    return {name: (values.tolist(), fold) for name, values, fold in
            zip(predictions.ids, predictions.values, predictions.folds.tolist())}


def accuracy(predictions, split, role):
    rows = {row.file: row for row in split.rows if row.role == role}
    return np.mean([split.classes[z.argmax()] == rows[name].label for name, z in zip(predictions.ids, predictions.values)
                    if name in rows])


def test_words_of_any_script_are_learned(split, texts, tmp_path):
    found = tfidf(split, texts)
    assert accuracy(found, split, "train") == accuracy(found, split, "test") == 1
    assert set(found.ids) == {row.file for row in split.rows if not row.file.endswith("00.jpg")}  # no text: no prediction
    write_predictions(tmp_path / "tfidf.safetensors", dict(zip(found.ids, found.values)), found.kind, found.classes,
                      dict(zip(found.ids, found.folds.tolist())), found.about)
    model, = read_models([tmp_path / "tfidf.safetensors"], split)  # which refuses what is not out of fold
    assert model.kind == "text"


def test_texts_must_be_those_of_the_split(split, texts):
    with pytest.raises(UserError, match="the texts of 1 of 69 images are not there, such as test/03.jpg; run"):
        tfidf(split, {name: text for name, text in texts.items() if name != "test/03.jpg"})


def test_predictions_are_those_of_a_model_per_fold(split, features):
    """Fitted here once more, by hand. Unlabeled and test images: the mean of the folds' logits."""
    found = as_dict(as_model(split, features))
    assert found.keys() == features.keys()
    total = {}
    for fold in range(3):
        learned = sorted(row for row in split.rows if row.role == "train" and row.fold != fold)
        scaler = StandardScaler()
        x = scaler.fit_transform([features[row.file] for row in learned])
        model = LogisticRegression(C=8 / 12, max_iter=300).fit(x, [row.label for row in learned])
        for row in split.rows:
            z = model.decision_function(scaler.transform([features[row.file]]))[0]
            if row.fold == fold:
                np.testing.assert_allclose(found[row.file][0], z, atol=1e-6)
                assert found[row.file][1] == fold
            elif row.fold < 0:
                total[row.file] = total.get(row.file, 0) + z / 3
    for name, z in total.items():
        np.testing.assert_allclose(found[name][0], z, atol=1e-6)
        assert found[name][1] == -1


@pytest.mark.parametrize("model", ["tfidf", "features"])
def test_no_image_is_predicted_by_a_model_that_learned_from_it(split, texts, features, model):
    """Other labels in fold 1 leave the predictions of fold 1 as they are, and change all others; labels of test images
    change nothing."""
    make = functools.partial(tfidf, texts=texts) if model == "tfidf" else functools.partial(as_model, features=features)
    turned = [row._replace(label=CLASSES[-1 - CLASSES.index(row.label)]) if row.fold == 1 else row for row in split.rows]
    blind = [row._replace(label="") if row.role == "test" else row for row in split.rows]
    one, two, three = (as_dict(make(Split(rows))) for rows in (split.rows, turned, blind))
    assert one == three
    for row in split.rows:
        if row.file in one:
            assert (one[row.file] == two[row.file]) == (row.fold == 1)


@pytest.mark.parametrize("model", ["tfidf", "features"])
def test_the_order_of_rows_changes_nothing(split, texts, features, model):
    rng = random.Random(1)
    make = functools.partial(tfidf, texts=texts) if model == "tfidf" else functools.partial(as_model, features=features)
    assert as_dict(make(split)) == as_dict(make(Split(rng.sample(split.rows, len(split.rows)))))


def test_thumbnails_tell_colors_apart_and_broken_images_are_listed(split, tmp_path):
    rng = np.random.default_rng(0)
    for row in split.rows:
        path = tmp_path / row.file
        path.parent.mkdir(exist_ok=True, parents=True)
        image = rng.integers(0, 99, (40, 30, 3)).astype(np.uint8)
        image[:, :, :2] += np.uint8(120) * np.array(divmod(CLASSES.index(label_of(row, split)), 2), np.uint8)
        assert cv2.imwrite(str(path), image)
    for name in ("train/103.jpg", "test/05.jpg"):
        (tmp_path / name).write_bytes(b"no image")
    found = thumbnail(split, tmp_path)
    assert accuracy(found, split, "train") == accuracy(found, split, "test") == 1
    assert found.about["unreadable"] == ["test/05.jpg", "train/103.jpg"]
    assert not set(found.about["unreadable"]) & set(found.ids) and len(found.ids) == len(split.rows) - 2
    assert found.about["input"] == "image" and found.about["split"] == split.digest()


def test_a_wrong_folder_of_images_is_told(split, tmp_path):
    with pytest.raises(UserError, match="none of the 69 images.* can be used; the first: .*file not found; check"):
        thumbnail(split, tmp_path)


def test_two_classes():
    """scikit-learn gives one number for two classes."""
    split = make_split(classes=CLASSES[:2])
    seen = {row.file: np.array([CLASSES.index(row.label or "ash"), 1.0]) for row in split.rows}
    found = as_model(split, seen)
    assert found.values.shape == (len(split.rows), 2)
    assert accuracy(found, split, "train") == accuracy(found, split, "test") == 1


def test_a_class_of_one_fold_alone_is_never_the_most_likely_there(split, features):
    rows = [row for row in split.rows if not (row.role == "train" and row.label == "birch" and row.fold != 1)]
    found = as_dict(as_model(Split(rows), features))
    for row in rows:
        z = found[row.file][0]
        assert np.isfinite(z).all() and (row.fold != 1 or z[1] == min(z))


def test_nothing_to_learn_from_is_one_line(split, features):
    only = {row.file: features[row.file] for row in split.rows if row.fold == 1 or row.label == "ash"}
    with pytest.raises(UserError, match="features: without fold 1 there are not two classes to learn from"):
        out_of_fold("features", "image", split, only, lambda: make_pipeline(StandardScaler(), LogisticRegression()))
    with pytest.raises(UserError, match="tfidf: cannot learn without fold 0 .*terms"):
        tfidf(split, {row.file: [chr(0x4e00 + n)] for n, row in enumerate(split.rows)})  # no character comes twice


def test_texts_are_seen_as_character_ngrams(split, texts):
    """A misread letter changes some n-grams, and not all: such a word is still known."""
    misread = {name: [segment.replace("Birke", "B1rke").replace("SALE", "SA1E") for segment in segments]
               if name.startswith("test/") else segments for name, segments in texts.items()}
    assert accuracy(tfidf(split, misread), split, "test") == 1
    whole = TfidfVectorizer().fit(["Birke im Angebot"]).transform(["B1rke"])
    assert whole.nnz == 0  # by words it would be unknown
