"""The LiteRT backend's own parts: what happens to a `.tflite` file before and after the vendor's tools."""
