"""Exporting: a trained model as files, the proof that they say what it says, and their readers.

    exporter        the order of it all; the folder appears when all is there
    sourcing        which model, and pictures of its data; `wrapping` takes other programs' models, `rounding` is --half
    formats         who writes each format:
                    signatures of the SavedModel; freezing and graph_names for .pb; tflite_*, onnx_files
    pixels          a file's bytes -> pixels, in the graph: headers (JPEG, PNG, EXIF), then evaluation's decoder and resize
    parity          the same pictures (specimens) through every file, asked by parity_process without tfpipe
    model_card      and results, markdown: what people read
    artefacts       loads any of the files again as a predictor; requests: bodies for TensorFlow Serving

What every file carries about itself is in `specifications`; `seals` find damage in those without a checksum of their own.
"""
