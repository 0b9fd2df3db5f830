"""Files of exported models: SavedModel, frozen graph, TFLite, ONNX, Keras; written, checked and opened."""
