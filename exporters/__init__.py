"""From trained factors to files: `.atmc`, self-decoding ONNX, dense safetensors. Knows no attack."""
