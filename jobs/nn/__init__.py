"""A multilayer perceptron from scratch; imports only NumPy, so it can be read alone."""
