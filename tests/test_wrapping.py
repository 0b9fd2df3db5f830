"""Other people's models: wrapped they say what they said, and what does not fit is refused before it can mislead."""

import keras
import numpy as np
import pytest

from tfpipe.exporting.wrapping import wrap

pytestmark = pytest.mark.tf

PICTURES = np.random.default_rng(0).integers(0, 256, (3, 12, 12, 3), dtype=np.uint8)
NAMES = ("cat", "dog", "小 猫")


def network(last="softmax", columns=3, channels=3, size=12):
    """Dropout and BatchNorm inside, and features before the last layer."""
    keras.utils.set_random_seed(1)
    return keras.Sequential(
        [
            keras.layers.Input((size, size, channels)),
            keras.layers.Conv2D(4, 3, activation="relu"),
            keras.layers.BatchNormalization(),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dropout(0.5),
            keras.layers.Dense(columns, activation=last, kernel_initializer=keras.initializers.RandomNormal(stddev=3.0)),
        ]
    )


def test_wrapped_it_says_what_it_said():
    plain = network()
    wrapped = wrap(plain, class_names=NAMES)
    np.testing.assert_array_equal(wrapped.predict(PICTURES), plain(PICTURES.astype(np.float32), training=False))
    assert wrapped.class_names == NAMES
    scaled = wrap(plain, class_names=NAMES, preprocessing="tf")
    np.testing.assert_allclose(scaled.predict(PICTURES), plain(PICTURES / np.float32(127.5) - 1), atol=1e-6)
    assert abs(scaled.predict(PICTURES) - wrapped.predict(PICTURES)).max() > 0.01


def test_dropout_is_off_even_in_training():
    wrapped = wrap(network(), class_names=NAMES)
    np.testing.assert_array_equal(wrapped.model(PICTURES, training=True), wrapped.model(PICTURES, training=False))


def test_features_are_what_goes_into_the_last_dense_layer():
    plain = network()
    found = wrap(plain, class_names=NAMES).network(PICTURES)
    pooled = keras.Model(plain.inputs, plain.layers[2].output)(PICTURES.astype(np.float32), training=False)
    np.testing.assert_allclose(found["features"], pooled, atol=1e-4)
    assert found["probabilities"].shape == (3, 3)


def test_a_model_that_is_no_graph_has_no_features_and_answers_all_the_same():
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.inner = network()

        def call(self, values, training=None):
            return self.inner(values, training=training)

    wrapped = wrap(Own(), class_names=NAMES, image_size=(12, 12))
    assert not wrapped.has_features
    np.testing.assert_array_equal(wrapped.predict(PICTURES), network()(PICTURES.astype(np.float32), training=False))


def test_logits_become_probabilities_and_one_sigmoid_two_of_them():
    logits = wrap(network(None), class_names=NAMES, outputs="logits", preprocessing="unit")
    np.testing.assert_allclose(logits.predict(PICTURES).sum(axis=1), 1, atol=1e-6)
    plain = network("sigmoid", 1)
    found = wrap(plain, class_names=("no", "yes"), preprocessing="unit").predict(PICTURES)
    yes = np.asarray(plain(PICTURES / np.float32(255), training=False))
    np.testing.assert_allclose(found, np.concatenate([1 - yes, yes], axis=1), atol=1e-6)


def test_what_was_wrapped_is_saved_and_loaded(tmp_path):
    from tfpipe.exporting import artefacts

    wrapped = wrap(network("sigmoid", 1), class_names=("no", "yes"), preprocessing="unit", resize="pad")
    wrapped.model.save(tmp_path / "model.keras")
    again = artefacts.load(tmp_path / "model.keras")
    assert (again.sha256, again.class_names, again.resize) == (wrapped.sha256, ("no", "yes"), "pad")
    np.testing.assert_array_equal(again.predict(PICTURES), wrapped.predict(PICTURES))


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (lambda: network(), {"class_names": NAMES[:2]}, "outputs of shape .* for 2 class names"),
        (lambda: network(), {"class_names": ("a", "a", "b")}, "different names"),
        (lambda: network(None), {"class_names": NAMES}, "say outputs=logits"),
        (lambda: network("sigmoid"), {"class_names": NAMES, "preprocessing": "unit"}, "no probabilities"),
        (lambda: network(), {"class_names": NAMES, "image_size": (13, 12)}, "but it takes"),
        (lambda: network(channels=1), {"class_names": NAMES}, "preprocessing must be grey"),
        (lambda: network(), {"class_names": NAMES, "preprocessing": "grey"}, "preprocessing must be one of colour"),
        (lambda: network(), {"class_names": NAMES, "resize": "squash"}, "resize must be one of"),
        (lambda: network(size=None), {"class_names": NAMES}, "say image_size"),
    ],
)
def test_what_does_not_fit_is_refused(model, options, message):
    with pytest.raises(ValueError, match=message):
        wrap(model(), **options)


def test_any_size_is_fixed_by_image_size():
    assert wrap(network(size=None), class_names=NAMES, image_size=(12, 12)).image_size == (12, 12)
