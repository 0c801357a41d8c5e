"""Tuned tasks in other programs' formats: PEFT, ONNX and the Hugging Face hub's layout."""
