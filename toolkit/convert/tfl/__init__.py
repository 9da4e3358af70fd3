"""A compiler from ONNX to TFLite: the graph is read, typed and folded, given layouts, lowered operator by operator, cleaned and written."""
