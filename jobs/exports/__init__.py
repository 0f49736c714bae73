"""A trained model as a file: ONNX, safetensors or Python, and its provenance."""
