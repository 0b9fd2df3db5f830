"""From the bytes of files to the pixels that a model sees, inside a graph that can be saved.

    images, valid = decode_batch(image_bytes, (224, 224), "stretch", max_pixels)    # uint8 [B, 224, 224, 3], bool [B]

Pixels are those of evaluation: the same functions make them. Nothing but TensorFlow's own operations is used, so the graph runs
from a SavedModel or a frozen GraphDef where tfpipe is not installed. A truncated file is bad: the decoder is not asked to
mend it, for that loops for ever on the three bytes ff d8 ff.
"""

from __future__ import annotations

import tensorflow as tf

from tfpipe.images import decoding, graph_headers, headers
from tfpipe.images.decoding import Resize
from tfpipe.images.placement import on_cpu
from tfpipe.records.samples import USUAL, Samples

# Not AUTOTUNE, which means all cores: a picture takes 3.5 bytes per pixel while it is decoded, a progressive JPEG up to 9, so
# each that is decoded beside others can cost 1.6 GB at the default limit. A server decodes several requests at once anyway.
_PARALLEL_CALLS = 2


def decode_one(
    encoded: tf.Tensor, image_size: tuple[int, int], resize: Resize, max_pixels: int, samples: Samples = USUAL
) -> tf.Tensor:
    """Decodes one file as evaluation does, turned upright by its own orientation and resized.

    Args:
        encoded: string [], the bytes of a JPEG or PNG file.
        image_size: (height, width) of the result.
        resize: how the picture is brought to that size, see `tfpipe.images.decoding.resize_image`.
        max_pixels: height times width above which nothing is decoded.
        samples: what becomes of 16 bits and of alpha.

    Returns:
        uint8 [height, width, 3], RGB, 0..255.

    Raises:
        tf.errors.InvalidArgumentError: the bytes cannot be decoded or are refused.
    """
    header = graph_headers.read_header(encoded)
    accepted = header.readable & (header.height * header.width <= min(max_pixels, headers.TENSORFLOW_MAX_PIXELS))
    # Not an assertion: nothing but the data ties the decoder to the check, so no pruning of a graph can part them.
    decodable = tf.cond(accepted, lambda: encoded, lambda: tf.constant(b""))
    image = decoding.decode_image(decodable, header.orientation, samples)
    return decoding.resize_image(image, image_size, resize)


@on_cpu
def decode_batch(
    encoded: tf.Tensor, image_size: tuple[int, int], resize: Resize, max_pixels: int, samples: Samples = USUAL
) -> tuple[tf.Tensor, tf.Tensor]:
    """Decodes a batch of files, each as `decode_one` does; a bad one does not touch the others, and nothing is raised.

    Memory is that of the result, twice, and of two pictures being decoded: at most 9 bytes times `max_pixels` each, or up to
    16 where a PNG's 16 bits or alpha are not taken as usual, see `tfpipe.images.stored`.

    Args:
        encoded: string [B].
        image_size: see `decode_one`.
        resize: see `decode_one`.
        max_pixels: see `decode_one`.
        samples: see `decode_one`.

    Returns:
        uint8 [B, height, width, 3], zeros for bad files, and bool [B], whether the file is a picture.
    """
    count = tf.size(encoded, tf.int64)

    def decode(index: tf.Tensor, one: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return index, decode_one(one, image_size, resize, max_pixels, samples)

    data = tf.data.Dataset.from_tensor_slices(encoded).enumerate()
    decode = tf.autograph.experimental.do_not_convert(decode)  # there is nothing to convert; looking for it takes seconds
    data = data.map(decode, num_parallel_calls=_PARALLEL_CALLS, deterministic=True).ignore_errors()
    # A last element that is always there, for there is no batch of nothing.
    data = data.concatenate(tf.data.Dataset.from_tensors((count, tf.zeros([*image_size, 3], tf.uint8))))
    indices, pictures = data.batch(count + 1).get_single_element()
    shape = tf.concat([[count + 1], tf.constant([*image_size, 3], tf.int64)], 0)
    pictures = tf.scatter_nd(indices[:, tf.newaxis], pictures, shape)[:-1]
    valid = tf.scatter_nd(indices[:, tf.newaxis], tf.ones_like(indices, tf.bool), [count + 1])[:-1]
    return tf.ensure_shape(pictures, [None, *image_size, 3]), valid
