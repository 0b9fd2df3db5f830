"""Other people's models: wrapped they say what they said, and what does not fit is refused before it can mislead."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfpipe.exporting.wrapping import wrap
from tfpipe.networks import arithmetic

pytestmark = pytest.mark.tf

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 12, 12, 3), dtype=np.uint8)
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


def test_wrapped_it_reports_what_it_said():
    plain = network()
    wrapped = wrap(plain, class_names=NAMES)
    with arithmetic.exact(), tf.device("/CPU:0"):
        np.testing.assert_array_equal(wrapped.predict(IMAGES), plain(IMAGES.astype(np.float32), training=False))
        expected = plain(IMAGES / np.float32(127.5) - 1)
    assert wrapped.class_names == NAMES
    scaled = wrap(plain, class_names=NAMES, preprocessing="tf")
    np.testing.assert_allclose(scaled.predict(IMAGES), expected, atol=1e-6)
    assert abs(scaled.predict(IMAGES) - wrapped.predict(IMAGES)).max() > 0.01


def test_dropout_is_off_even_in_training():
    wrapped = wrap(network(), class_names=NAMES)
    np.testing.assert_array_equal(wrapped.model(IMAGES, training=True), wrapped.model(IMAGES, training=False))


def test_features_are_what_goes_into_the_last_dense_layer():
    plain = network()
    found = wrap(plain, class_names=NAMES).network(IMAGES)
    pooled = keras.Model(plain.inputs, plain.layers[2].output)(IMAGES.astype(np.float32), training=False)
    np.testing.assert_allclose(found["features"], pooled, atol=1e-4)
    assert found["probabilities"].shape == (3, 3)


def test_a_model_that_is_not_a_graph_has_no_features_and_answers_all_the_same():
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.inner = network()

        def call(self, values, training=None):
            return self.inner(values, training=training)

    wrapped = wrap(Own(), class_names=NAMES, image_size=(12, 12))
    assert not wrapped.has_features
    np.testing.assert_array_equal(wrapped.predict(IMAGES), network()(IMAGES.astype(np.float32), training=False))


def test_logits_become_probabilities_and_one_sigmoid_two_of_them():
    logits = wrap(network(None), class_names=NAMES, outputs="logits", preprocessing="unit")
    np.testing.assert_allclose(logits.predict(IMAGES).sum(axis=1), 1, atol=1e-6)
    plain = network("sigmoid", 1)
    found = wrap(plain, class_names=("no", "yes"), preprocessing="unit").predict(IMAGES)
    yes = np.asarray(plain(IMAGES / np.float32(255), training=False))
    np.testing.assert_allclose(found, np.concatenate([1 - yes, yes], axis=1), atol=1e-6)


def test_one_logit_is_that_of_the_second_class():
    plain = network(None, 1)
    found = wrap(plain, class_names=("no", "yes"), outputs="logits", preprocessing="unit").predict(IMAGES)
    yes = 1 / (1 + np.exp(-np.asarray(plain(IMAGES / np.float32(255), training=False), np.float64)))
    np.testing.assert_allclose(found, np.concatenate([1 - yes, yes], axis=1), atol=1e-6)


@pytest.mark.parametrize("inside", [lambda model: model, lambda model: keras.Sequential([keras.Input((12, 12, 3)), model])])
def test_what_a_layer_without_activation_reports_is_not_guessed(inside):
    # For noise it is between 0 and 1, like a probability; for an image it need not be.
    plain = network(None, 1)
    plain.layers[-1].set_weights([np.zeros((4, 1)), np.full(1, 0.5)])
    with pytest.raises(ValueError, match="has no activation; give outputs=logits if a sigmoid is missing"):
        wrap(inside(plain), class_names=("no", "yes"))
    assert wrap(inside(plain), class_names=("no", "yes"), outputs="sigmoid").predict(IMAGES)[0, 1] == 0.5


def with_behind(layer, last, columns):
    """The network as a graph, with something behind its last layer."""
    plain = network(last, columns)
    return keras.Model(plain.inputs, layer(plain.outputs[0]))


CAST = keras.layers.Activation("linear", dtype="float32")  # as mixed precision ends


@pytest.mark.parametrize("layer", [CAST, keras.layers.Identity(), keras.layers.Flatten(), keras.layers.Dropout(0.5)])
def test_what_passes_numbers_on_hides_nothing(layer):
    for last, columns, names in (("sigmoid", 1, NAMES[:2]), ("softmax", 3, NAMES)):
        plain = with_behind(layer, last, columns)
        assert wrap(plain, class_names=names, preprocessing="unit").predict(IMAGES).shape == (3, len(names))
    with pytest.raises(ValueError, match="has no activation; give outputs=logits if a sigmoid"):
        wrap(with_behind(layer, None, 1), class_names=NAMES[:2])
    with pytest.raises(ValueError, match="probabilities already, of a sigmoid"):
        wrap(with_behind(layer, "sigmoid", 1), class_names=NAMES[:2], outputs="logits")


def test_one_column_of_which_nothing_tells_what_it_is_has_to_be_named():
    scaled = with_behind(keras.layers.Rescaling(0.1), None, 1)
    with pytest.raises(ValueError, match="give outputs=sigmoid or outputs=logits"):
        wrap(scaled, class_names=NAMES[:2])
    assert wrap(scaled, class_names=NAMES[:2], outputs="logits").predict(IMAGES).shape == (3, 2)
    by_operation = with_behind(keras.ops.sigmoid, None, 1)
    assert wrap(by_operation, class_names=NAMES[:2]).predict(IMAGES).shape == (3, 2)


def test_an_activation_that_is_used_twice_counts_where_it_is_last():
    softmax = keras.layers.Activation("softmax")
    given = keras.Input((12, 12, 3))
    attended = softmax(keras.layers.Dense(3)(keras.layers.GlobalAveragePooling2D()(given)))
    twice = keras.Model(given, softmax(keras.layers.Dense(3)(attended)))
    assert wrap(twice, class_names=NAMES).predict(IMAGES).shape == (3, 3)


@pytest.mark.parametrize("names", [{"dog": 1, "cat": 0, "小 猫": 2}, set(NAMES), dict.fromkeys(NAMES).keys(), 3])
def test_names_without_an_order_are_refused(names):
    with pytest.raises(ValueError, match="class_names must be different names of classes"):
        wrap(network(), class_names=names)


@pytest.mark.parametrize("names", [np.array(NAMES), (name for name in NAMES), list(NAMES)], ids=["array", "generator", "list"])
def test_names_in_any_kind_of_list_are_plain_texts(names):
    found = wrap(network(), class_names=names).class_names
    assert found == NAMES
    assert {type(name) for name in found} == {str}


def test_what_was_wrapped_is_saved_and_loaded(tmp_path):
    from tfpipe.formats import opening

    wrapped = wrap(network("sigmoid", 1), class_names=("no", "yes"), preprocessing="unit", resize="pad")
    wrapped.model.save(tmp_path / "model.keras")
    again = opening.load(tmp_path / "model.keras")
    assert (again.sha256, again.class_names, again.resize) == (wrapped.sha256, ("no", "yes"), "pad")
    np.testing.assert_array_equal(again.predict(IMAGES), wrapped.predict(IMAGES))


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (lambda: network(), {"class_names": NAMES[:2]}, "outputs of shape .* for 2 class names"),
        (lambda: network(), {"class_names": ("a", "a", "b")}, "different names"),
        (lambda: network(None), {"class_names": NAMES}, "no activation; give outputs=logits if a softmax is missing"),
        (lambda: network(None), {"class_names": NAMES, "outputs": "probabilities"}, "give outputs=logits"),
        (lambda: network(None, 1), {"class_names": NAMES[:2], "outputs": "sigmoid"}, "give outputs=logits"),
        (lambda: network(None, 1), {"class_names": NAMES, "outputs": "logits"}, "outputs of shape .* for 3 class names"),
        (lambda: network("sigmoid"), {"class_names": NAMES, "preprocessing": "unit"}, "not probabilities"),
        (lambda: network(), {"class_names": NAMES, "image_size": (13, 12)}, "but it takes"),
        (lambda: network(channels=1), {"class_names": NAMES}, "preprocessing must be grey"),
        (lambda: network(), {"class_names": NAMES, "preprocessing": "grey"}, "preprocessing must be one of colour"),
        (lambda: network(), {"class_names": NAMES, "resize": "squash"}, "resize must be one of"),
        (lambda: network(size=None), {"class_names": NAMES}, "give image_size"),
    ],
)
def test_what_does_not_fit_is_refused(model, options, message):
    with pytest.raises(ValueError, match=message):
        wrap(model(), **options)


def several(outputs=2, inputs=1):
    given = [keras.Input((12, 12, 3), name=f"image_{index}") for index in range(inputs)]
    pooled = keras.layers.GlobalAveragePooling2D()(sum(given) if inputs > 1 else given[0])
    heads = [keras.layers.Dense(3, activation="softmax", name=name)(pooled) for name in ("colour", "species")[:outputs]]
    return keras.Model(given, heads)


class Subclassed(keras.Model):
    """Gives whatever is made of its probabilities."""

    def __init__(self, make):
        super().__init__()
        self.dense, self.make = keras.layers.Dense(3, activation="softmax"), make

    def call(self, values):
        return self.make(self.dense(keras.ops.mean(values, axis=(1, 2))))


class Spoiled(keras.layers.Layer):
    """NaN for the brightest."""

    def call(self, values):
        return keras.ops.where(keras.ops.min(values, axis=(1, 2, 3), keepdims=True) > 250, float("nan"), 1.0) * values


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (lambda: several(2), {}, r"has 2 outputs \(colour, species\)"),
        (lambda: several(1, 2), {}, r"has 2 inputs \(image_0, image_1\)"),
        (lambda: Subclassed(lambda p: {"a": p, "b": p}), {"image_size": (12, 12)}, r"one tensor .* gives a, b"),
        (lambda: Subclassed(lambda p: [p, p]), {"image_size": (12, 12)}, r"one tensor .* gives list"),
        (lambda: network(), {"outputs": "logits", "preprocessing": "unit"}, "are probabilities already"),
        (lambda: network(), {"outputs": "softmax"}, "outputs must be one of"),
        (lambda: network(), {"outputs": "sigmoid"}, "as outputs=sigmoid"),
        (lambda: network(), {"preprocessing": "imagenet"}, "preprocessing must be one of"),
        (lambda: network("sigmoid"), {"preprocessing": "unit"}, "one label per image"),
        (lambda: keras.Sequential([keras.Input((12, 12, 3)), Spoiled(), network()]), {}, r"noise \[nan, nan, nan\]\); the wei"),
        (lambda: network(), {"class_names": "abc"}, "different names of classes .*'abc'"),
        *[
            (
                lambda: network(),
                {"class_names": ["a", bad, "c"]},
                "must be (different names|texts that are not empty, of one li)",
            )
            for bad in ("", " ", "a\nb", "\u2028", "\udcff", 5, "\0")
        ],
    ],
)
def test_what_would_mislead_is_refused(model, options, message):
    with pytest.raises(ValueError, match=message):
        wrap(model(), **{"class_names": NAMES, **options})


def test_a_list_of_one_output_is_that_output():
    np.testing.assert_allclose(wrap(several(1), class_names=NAMES).predict(IMAGES).sum(axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_answers_in_float32(policy):
    keras.mixed_precision.set_global_policy(policy)
    try:
        model = network()
    finally:
        keras.mixed_precision.set_global_policy("float32")
    wrapped = wrap(model, class_names=NAMES, preprocessing="unit")
    np.testing.assert_allclose(wrapped.predict(IMAGES).sum(axis=1), 1, atol=1e-2)
    assert {name: values.dtype.name for name, values in wrapped.answer(IMAGES).items()} == {
        "probabilities": "float32",
        "features": "float32",
    }


def test_any_size_is_fixed_by_image_size():
    assert wrap(network(size=None), class_names=NAMES, image_size=(12, 12)).image_size == (12, 12)
