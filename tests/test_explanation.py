"""Grad-CAM: heat is where a class's logit comes from, whatever the head."""

import numpy as np
import pytest
from report_fixtures import POOLINGS, make_classifier

from tfpipe.models.explanation import explain, overlay
from tfpipe.networks import arithmetic

pytestmark = pytest.mark.tf

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)
CLASSES = np.array([0, 2, 1])


@pytest.mark.parametrize("pooling", POOLINGS)
def test_heat_has_the_shape_of_the_map_and_is_between_0_and_1(pooling):
    heat = explain(make_classifier("abc", pooling=pooling), IMAGES, CLASSES)
    assert heat.shape == (3, 4, 4)
    assert heat.dtype == np.float32
    assert heat.min() >= 0
    assert {float(peak) for peak in heat.max(axis=(1, 2))} <= {0.0, 1.0}
    assert heat.max() == 1


@pytest.mark.parametrize("pooling", POOLINGS)
def test_other_logits_and_other_images_do_not_matter(pooling):
    classifier = make_classifier("abc", pooling=pooling)
    before = explain(classifier, IMAGES, CLASSES)
    kernel, bias = classifier.model.get_layer("logits").get_weights()
    alone = explain(classifier, IMAGES[1:2], CLASSES[1:2])
    np.testing.assert_allclose(alone[0], before[1], atol=1e-5)
    changed = kernel.copy()
    changed[:, 1] *= -3
    classifier.model.get_layer("logits").set_weights([changed, bias + np.array([0, 5, -7])])
    after = explain(classifier, IMAGES, CLASSES)
    np.testing.assert_allclose(after[:2], before[:2], atol=1e-5)
    assert not np.allclose(after[2], before[2])


def test_heat_is_where_the_features_of_the_class_are():
    # The network answers to brightness alone; an image is dark but for one place of the map.
    classifier = make_classifier("ab", pooling="average")
    convolution = classifier.model.get_layer("frozen").network.layers[-1]
    kernel, bias = convolution.get_weights()
    only_centre = np.zeros_like(kernel)
    only_centre[2, 2] = 1
    convolution.set_weights([only_centre, bias * 0])
    _, offset = classifier.model.get_layer("logits").get_weights()
    classifier.model.get_layer("logits").set_weights([np.stack([np.ones(8), -np.ones(8)], 1), offset])
    image = np.zeros((1, 16, 16, 3), np.uint8)
    image[0, 4:8, 12:16] = 200
    heat = explain(classifier, np.repeat(image, 2, axis=0), [0, 1])
    assert np.argwhere(heat[0]).tolist() == [[1, 3]]
    assert not heat[1].any()  # nothing speaks for the other class


def test_a_head_that_looks_at_one_place_gets_its_channels_from_there():
    classifier = make_classifier("ab", pooling="flatten")
    kernel, bias = classifier.model.get_layer("logits").get_weights()
    place = np.zeros((4, 4, 8, 2), np.float32)
    place[2, 1, 5, 0] = 1  # one place, one channel
    classifier.model.get_layer("logits").set_weights([place.reshape(kernel.shape), bias])
    with arithmetic.exact():
        features = classifier.trunk(IMAGES).numpy()[..., 5]
    peaks = features.max(axis=(1, 2), keepdims=True)
    assert peaks.any()
    expected = features / np.where(peaks > 0, peaks, 1)
    np.testing.assert_allclose(explain(classifier, IMAGES, [0, 0, 0]), expected, atol=1e-5)


def test_overlay_colours_what_is_hot_and_leaves_the_rest():
    heat = np.zeros((4, 4), np.float32)
    heat[0, 0] = 1
    shown = overlay(IMAGES[0], heat)
    assert shown.shape == (16, 16, 3)
    assert shown.dtype == np.uint8
    assert np.array_equal(shown[8:, 8:], IMAGES[0, 8:, 8:])
    assert not np.array_equal(shown[:2, :2], IMAGES[0, :2, :2])
    assert shown[0, 0, 0] > shown[0, 0, 2]  # red
    assert np.array_equal(overlay(IMAGES[0], heat * 0), IMAGES[0])
