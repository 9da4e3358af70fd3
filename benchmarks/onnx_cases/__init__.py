"""ONNX's own cases of single operators, through our compiler to TFLite and on LiteRT: ``python -m benchmarks.onnx_cases``."""
