"""Heat maps by Grad-CAM (Selvaraju et al. 2017, https://arxiv.org/abs/1610.02391).

heat = explain(classifier, images, class_indices)     # float32 [B, h, w], 0..1
image = overlay(images[0], heat[0])                 # uint8 [H, W, 3]
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from tfpipe.images.placement import on_cpu
from tfpipe.models.classifiers import Classifier
from tfpipe.networks import arithmetic

_STRENGTH = 0.65  # of the colour where the heat is 1

Array = np.ndarray[Any, Any]


@arithmetic.exact()
def explain(classifier: Classifier, images: Any, class_indices: Any) -> Array:
    """Returns how much each place of the feature map supports a class: float32 [B, h, w], 0..1.

    Each channel of the map is weighted with the mean gradient of the class's logit over its places;
    the positive part of the weighted sum is divided by its maximum. It is all zeros where no place
    supports the class, and where the network or its gradients are not finite. Of classes in an
    order, it is how much a place speaks for a higher class, whatever class is explained.

    Args:
        classifier: with any trunk and head; the map is the input of its head.
        images: uint8 [B, H, W, 3].
        class_indices: int [B], the class to explain for each image.
    """
    features = classifier.trunk(images, training=False)
    with tf.GradientTape() as tape:
        tape.watch(features)
        logits = classifier.head(features, training=False)
        single = logits.shape[-1] == 1 < len(classifier.class_names)
        scores = logits[:, 0] if single else tf.gather(logits, tf.cast(class_indices, tf.int32), batch_dims=1)
    gradients = tape.gradient(scores, features)  # of the sum, in which each image has a term of its own
    weights = tf.reduce_mean(gradients, axis=(1, 2), keepdims=True)
    heat = tf.nn.relu(tf.reduce_sum(weights * features, axis=-1))
    heated: Array = tf.math.divide_no_nan(heat, tf.reduce_max(heat, axis=(1, 2), keepdims=True)).numpy()
    heated[~np.isfinite(heated).all(axis=(1, 2))] = 0
    return heated


@on_cpu
def overlay(image: Array, heat: Array) -> Array:
    """Returns an image, uint8 [H, W, 3], coloured by heat, float32 [h, w], 0 (none) to 1."""
    from matplotlib import colormaps

    smooth = tf.image.resize(heat[..., np.newaxis], image.shape[:2], method="bilinear").numpy().clip(0, 1)
    colours = colormaps["turbo"](smooth[..., 0])[..., :3] * 255
    share = _STRENGTH * smooth
    blended: Array = np.rint(image * (1 - share) + colours * share).astype(np.uint8)
    return blended
