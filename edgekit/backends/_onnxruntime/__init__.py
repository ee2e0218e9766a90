"""The parts of the backend onnxruntime."""
