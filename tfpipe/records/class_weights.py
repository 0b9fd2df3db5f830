"""Class weights: factors of the classes in a loss, so that rare ones count as much as common ones.

model.fit(data, class_weight=class_weights("shards/", "train"))
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from tfpipe.common import arguments
from tfpipe.records import manifest as manifests


@arguments.renamed(directory="data")
def class_weights(data: str | os.PathLike[str], split: str, class_names: Sequence[str] | None = None) -> dict[int, float]:
    """Returns a weight per label, for `class_weight` of Keras' `fit`, from the manifest.

    N / (C * n_c) for a class with n_c of the N records of C classes: all classes have the same
    total weight, and the mean weight of a record is 1. This is scikit-learn's "balanced" (King and
    Zeng: Logistic Regression in Rare Events Data, Political Analysis 9, 2001). It replaces
    `dataset(balanced=True)`, and cannot be combined with it, nor, in Keras, with sample weights
    (`equal_steps`).

    Of several labels an image: the number of records without a class, divided by that of those with
    it, for `pos_weight` of `tf.nn.weighted_cross_entropy_with_logits`.

    Args:
        data: the data set's folder.
        split: the one to train on.
        class_names: those that `dataset` is given, labelled by their place in this list. Default:
            all, as in the manifest.

    Raises:
        FileNotFoundError: there is no data set.
        ValueError: there is no such split or class, the split has no labels or numbers for labels, or there are no
            records of a class.
        DataError: the manifest was changed or damaged.

    >>> class_weights("shards/", "train")     # 750 cats, 250 dogs
    {0: 0.6666666666666666, 1: 2.0}
    """
    manifest = manifests.load(data)
    known = manifest.split(split)
    if manifest.task == manifests.REGRESSION:
        raise ValueError(f"{os.fspath(data)}: images have numbers and no classes, so no class weights")
    if not known.labelled:
        raise ValueError(f"{os.fspath(data)}: split {split!r} has no labels, so no class weights")
    names = manifest.class_names if class_names is None else arguments.class_places(class_names, manifest.class_names)
    counts = [known.class_counts[name] for name in names]
    if known.unknown_counts is not None:
        others = [known.num_records - count - known.unknown_counts[name] for name, count in zip(names, counts, strict=True)]
    else:
        others = counts
    empty = [name for name, count in zip(names, map(min, counts, others), strict=True) if not count]
    if empty:
        raise ValueError(
            f"{os.fspath(data)}: split {split!r} has no records of: {', '.join(empty)}; a class without records has no"
            " weight (leave it out of class_names)"
        )
    if known.unknown_counts is not None:
        return {label: other / count for label, (other, count) in enumerate(zip(others, counts, strict=True))}
    return {label: sum(counts) / (len(counts) * count) for label, count in enumerate(counts)}
