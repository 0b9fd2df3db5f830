"""Files of exported models (SavedModel, .pb, TFLite, ONNX): writing, checking, opening."""
