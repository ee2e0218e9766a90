"""Quantization of OpenVINO models: what NNCF does, and what edgekit does better or NNCF lacks."""
