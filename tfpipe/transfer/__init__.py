"""Transfer: backbones, the classifier, its training and its evaluation. TensorFlow and Keras."""
