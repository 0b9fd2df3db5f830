"""Five ways or more to break each guarantee, each a small replacement of text that stands exactly once in the package.

The file is found by its text, so that moving code from one module to another breaks nothing here.
Where a piece of code is rewritten, its mutation is written anew: `python tests/mutations/run.py
--check` tells which no longer apply.
"""

from typing import NamedTuple


class Mutation(NamedTuple):
    """What is broken, and how: `old` becomes `new`."""

    guarantee: str
    what: str
    old: str
    new: str


# The files in which README.md says that a guarantee is tested, and the tests there.
TESTS = {
    "G1": (["test_build.py", "test_extraction.py"], "test_g1"),
    "G2": (["test_build.py"], "test_g2"),
    "G3": (["test_verification.py", "test_reading.py", "test_loader.py"], "test_g3"),
    "G4": (["test_build.py", "test_headers.py", "test_jpeg_scans.py"], "test_g4 or test_jpeg_scans"),
    "G5": (["test_loader.py"], "test_g5"),
    "G6": (["test_ordering.py", "test_training.py"], "test_g6"),
    "G7": (["test_augmentation.py", "test_training.py", "test_replaying.py"], "test_g7"),
    "G8": (["test_training.py"], "test_g8"),
    "G9": (["test_build.py", "test_groups.py"], "test_g9"),
    "G10": (["test_exporting.py"], "test_g10"),
    "G11": (["test_evaluation.py"], "test_g11"),
    "G12": (["test_features.py", "test_runs.py"], "test_g12"),
}


def _of(guarantee: str, *rows: tuple[str, str, str]) -> list[Mutation]:
    return [Mutation(guarantee, *row) for row in rows]


MUTATIONS = [
    *_of(
        "G1",
        (
            "a byte is added to what is read",
            "return read_bytes(path)",
            'return read_bytes(path) + b"\\n"',
        ),
        (
            "a byte is added to what is stored",
            "tfrecord.frame(schema.encode(record))",
            'tfrecord.frame(schema.encode(dataclasses.replace(record, encoded=record.encoded + b"\\0")))',
        ),
        (
            "extraction loses the last byte",
            "temporary.write_bytes(record.encoded)",
            "temporary.write_bytes(record.encoded[:-1])",
        ),
        (
            "extraction changes names",
            "target = self._root / PurePosixPath(record.filename)",
            "target = self._root / PurePosixPath(record.filename.replace(' ', '_'))",
        ),
        (
            "records get the name of another",
            "iif(filename = '', key ||",
            "iif(filename != '', key ||",
        ),
    ),
    *_of(
        "G2",
        ("records stand as they were listed", "UPDATE inputs SET rank = record_order(key)", "UPDATE inputs SET rank = rowid"),
        (
            "the seed is of no effect on the order",
            'state.register("record_order", options.seed, "order")',
            'state.register("record_order", 0, "order")',
        ),
        (
            "shards follow each other as they were finished",
            "return {task.file: shards[task.file] for task in tasks}",
            "return shards",
        ),
        (
            "the manifest's digest of the inputs follows their listing",
            "{content}{optional} FROM inputs ORDER BY key",
            "{content}{optional} FROM inputs ORDER BY rowid",
        ),
        (
            "the manifest tells the time",
            "seed=self.options.seed,\n            class_names=decided.class_names,",
            "seed=time.time_ns(),\n            class_names=decided.class_names,",
        ),
    ),
    *_of(
        "G3",
        (
            "data are not compared with their CRC",
            "if masked_crc32c(data) != data_crc:",
            "if False:",
        ),
        (
            "a record that is not the catalog's is read",
            'if int.from_bytes(footer, "little") != crc32c:',
            "if not isinstance(crc32c, int):",
        ),
        ("damaged data are read", "if not content.endswith(footer):", "if not content:"),
        (
            "a longer shard is read",
            "if size == shard.num_bytes:",
            "if size >= shard.num_bytes:",
        ),
        (
            "a shard that is not listed is passed over",
            "if name.startswith(prefix) and name not in known)",
            "if name.startswith(f'{prefix}x') and name not in known)",
        ),
    ),
    *_of(
        "G4",
        (
            "a bad input does not stop a build",
            'if rejected and options.on_error == "fail":',
            'if len(rejected) > 99 and options.on_error == "fail":',
        ),
        (
            "a file without an end is taken",
            '            if found is None:\n                message = f"no end',
            "            if found is None and self.num_scans:\n                return self._header()\n"
            '            if found is None:\n                message = f"no end',
        ),
        (
            "scans that end too early pass",
            "if bits.position > bits.num_bits:",
            "if bits.position > 2 * bits.num_bits + 2000:",
        ),
        (
            "codes that no table has pass",
            '            raise ScanDamage(error.what, f", in unit {bits.unit:,} of {total:,}") from None',
            "            return",
        ),
        (
            "data that are not decoded are not told from those that are",
            "header = headers.read_header(data, max_pixels=task.max_pixels, decode=task.decode)",
            "header = headers.read_header(data, max_pixels=task.max_pixels, decode=False)",
        ),
    ),
    *_of(
        "G5",
        (
            "the last batch is left out",
            "return -(-(longest if self.equal_steps else self._stop - self._start) // self.batch_size)",
            "return (longest if self.equal_steps else self._stop - self._start) // self.batch_size",
        ),
        (
            "readers overlap by a record",
            "return self.num_rows * (self.shard[0] + 1) // self.shard[1]",
            "return min(self.num_rows * (self.shard[0] + 1) // self.shard[1] + 1, self.num_rows)",
        ),
        (
            "the first record of each later reader is lost",
            "return self.num_rows * self.shard[0] // self.shard[1]",
            "return self.num_rows * self.shard[0] // self.shard[1] + (self.shard[0] > 0)",
        ),
        (
            "rows that fill up a batch count",
            "indices = self._start + within\n            return epochs, tf.where(indices < self._stop, indices, BLANK)",
            "indices = self._start + within\n            return epochs, tf.minimum(indices, self._stop - 1)",
        ),
        (
            "a row that is lost is passed over",
            'wrong = tf.not_equal(columns["row"], expected)',
            'wrong = tf.not_equal(columns["row"], columns["row"])',
        ),
    ),
    *_of(
        "G6",
        (
            "every epoch has the order of the first",
            'return _shuffled(indices, self.num_rows, self.seed, "epoch", epochs), epochs',
            'return _shuffled(indices, self.num_rows, self.seed, "epoch", epochs * 0), epochs',
        ),
        (
            "the seed is of no effect",
            "return draw_words(parts, seeds.derive(seed, purpose), epochs, 3)",
            "return draw_words(parts, seeds.derive(0, purpose), epochs, 3)",
        ),
        (
            "seed and epoch are added",
            "return draw_words(parts, seeds.derive(seed, purpose), epochs, 3)",
            "return draw_words(parts, seeds.derive(0, purpose), epochs + seed, 3)",
        ),
        (
            "records are drawn, not permuted",
            "return tf.raw_ops.RandomIndexShuffle(index=indices, seed=words, max_index=tf.cast(sizes, tf.int64) - 1, rounds=4)",
            "return tf.cast(words[:, 0], tf.int64) % tf.cast(sizes, tf.int64) + 0 * indices",
        ),
        (
            "records are moved round, not shuffled",
            "return tf.raw_ops.RandomIndexShuffle(index=indices, seed=words, max_index=tf.cast(sizes, tf.int64) - 1, rounds=4)",
            "return (indices + tf.cast(words[:, 0], tf.int64)) % tf.cast(sizes, tf.int64)",
        ),
    ),
    *_of(
        "G7",
        (
            "an image's numbers depend on its place in the batch",
            "state = _mix(state + _bits(keys))",
            "state = _mix(state + _bits(keys) + _bits(tf.range(tf.size(keys, tf.int64))))",
        ),
        (
            "the epoch is of no effect",
            "state = _mix(_mix(_word(_GAMMA) + _word(seed)) + _bits(epochs))",
            "state = _mix(_mix(_word(_GAMMA) + _word(seed)) + _bits(epochs * 0))",
        ),
        (
            "seed and epoch are added",
            "state = _mix(_mix(_word(_GAMMA) + _word(seed)) + _bits(epochs))",
            "state = _mix(_mix(_word(_GAMMA)) + _word(seed) + _bits(epochs))",
        ),
        (
            "the key is of no effect",
            "keys = hash_keys(features[schema.KEY])",
            "keys = 0 * hash_keys(features[schema.KEY])",
        ),
        (
            "what is mixed does not depend on the step",
            'words = tf.bitcast(draw_words(steps, seeds.derive(seed, "beta"), epochs, 4)[0], tf.int32)',
            'words = tf.bitcast(draw_words(steps * 0, seeds.derive(seed, "beta"), epochs, 4)[0], tf.int32)',
        ),
    ),
    *_of(
        "G8",
        (
            "a run goes on a step too late",
            "itertools.chain([self._first_row], ",
            "itertools.chain([self._first_row + schedule.rows_per_step * (self._first_row > 0)], ",
        ),
        (
            "the epoch to begin with is of no effect",
            "itertools.chain([self._first_row], ",
            "itertools.chain([self._first_row % per_epoch], ",
        ),
        (
            "the epoch after a partial one begins in its middle",
            "next_epoch = self._first_row - self._first_row % per_epoch + per_epoch",
            "next_epoch = self._first_row + per_epoch",
        ),
        (
            "every iterator begins with the first epoch",
            "itertools.count(next_epoch, per_epoch)",
            "itertools.repeat(self._first_row)",
        ),
        (
            "what is mixed depends on where a run began",
            'return self._mixed(columns["row"], row, self.imaging.augmentation) if mixes else row',
            'return self._mixed(columns["row"] - columns["start"], row, self.imaging.augmentation) if mixes else row',
        ),
    ),
    *_of(
        "G9",
        (
            "copies are cut one by one",
            "        _cut(state, options)\n    elif",
            "        _cut(state, options)\n"
            '        state.execute("UPDATE inputs SET split = ? WHERE rowid % 7 = 0", (min(options.splits),))\n    elif',
        ),
        ("leaks are passed over", "if leaks and not options.allow_leaks:", "if leaks and options.allow_leaks is None:"),
        (
            "leaks are not noted",
            "return Plan(class_names, conflicts, leaks, grouped, decided)",
            "return Plan(class_names, conflicts, [], grouped, decided)",
        ),
        (
            "conflicting labels are passed over",
            'if conflicts and options.on_conflict == "fail":',
            'if conflicts and options.on_conflict == "refuse":',
        ),
        (
            "leaks into splits without labels are passed over",
            'leaks = _groups(state, "split", "")',
            'leaks = _groups(state, "split", "AND label >= 0")',
        ),
        ("groups with equal bytes are not joined", "parents[other] = homes[0]", "parents[other] = other"),
        (
            "groups across given splits are passed over",
            "if (torn := groups.torn(state)) and not options.allow_leaks:",
            "if (torn := groups.torn(state)) and options.allow_leaks is None:",
        ),
        ("a group in two splits is not found", "if torn != noted:", "if torn < noted:"),
        (
            "an image of each group is put elsewhere",
            '" WHERE homes.name = inputs.group_name AND inputs.reason IS NULL AND inputs.split IS NULL"',
            '" WHERE homes.name = inputs.group_name AND inputs.rowid % 5 AND inputs.split IS NULL"',
        ),
    ),
    *_of(
        "G10",
        (
            "an export resizes in another way",
            "return decode_batch(image_bytes, size, resize, specification",
            'return decode_batch(image_bytes, size, "stretch" if resize == "crop" else "crop", specification',
        ),
        (
            "orientation is left out of an export",
            "return decode_batch(image_bytes, size, resize, specification.max_pixels, specification.samples)",
            "image, valid = decode_batch(image_bytes, size, resize, specification.max_pixels, specification.samples)\n"
            "    return tf.reverse(image, [2]), valid",
        ),
        (
            "probabilities of an export are rounded",
            "    everything = {**outputs,",
            '    outputs = {**outputs, "probabilities": tf.round(outputs["probabilities"] * 1e3) / 1e3}\n'
            "    everything = {**outputs,",
        ),
        (
            "an export that differs is kept",
            "bad = sorted((row for row in rows if not row.is_good), key=",
            "bad = sorted((row for row in rows[:0] if not row.is_good), key=",
        ),
        (
            "stages are named from the last on",
            'first, rest = bad[0], f"; {exactly(',
            'first, rest = bad[-1], f"; {exactly(',
        ),
    ),
    *_of(
        "G11",
        (
            "ids are not compared with the catalog",
            "if all(seen == expected for seen, expected in pairs):",
            "if any(seen == expected for seen, expected in pairs):",
        ),
        (
            "ids are compared whatever their order",
            "if all(seen == expected for seen, expected in pairs):",
            "if len({seen for seen, _ in pairs} ^ {row.key for row in read_catalog(directory, split=split)}) == 0:",
        ),
        (
            "the receipt tells what was promised, not what was seen",
            'seen = {"records_seen": len(table.keys), "ids_sha256": hash_names(table.keys)}',
            'seen = {"records_seen": len(table.keys), "ids_sha256": hash_names(sorted(table.keys))}',
        ),
        (
            "the last row of each batch is lost",
            'return Predictions(keys, filenames, labels[batch["label"].numpy()], probabilities, self.predictor.class_names)',
            'found = labels[batch["label"].numpy()][: len(keys) - (len(keys) > 1)]\n'
            "        count = len(found)\n"
            "        names = self.predictor.class_names\n"
            "        return Predictions(keys[:count], filenames[:count], found, probabilities[:count], names)",
        ),
        (
            "a label is the next one's",
            "labels = np.array([columns[name] for name in manifest.class_names])",
            "labels = np.roll([columns[name] for name in manifest.class_names], 1)",
        ),
    ),
    *_of(
        "G12",
        (
            "frozen layers run as in training",
            "return self.network(values, training=False if self.inference else training)",
            "return self.network(values, training=training)",
        ),
        ("differences are not told", "if not difference <= allowed:", "if difference > 1e9 * allowed:"),
        (
            "features are those of images without preprocessing",
            "lambda images: network(preprocessing(images), training=False), input_signature=signature",
            "lambda images: network(preprocessing(images) * 0.5, training=False), input_signature=signature",
        ),
        (
            "another shape passes",
            'if found.shape != reference.shape:\n        difference = float("inf")',
            "if found.shape != reference.shape:\n        difference = 0.0",
        ),
        (
            "features that are all zero pass",
            "elif not reference.any():",
            "elif reference.size == 0:",
        ),
    ),
]
