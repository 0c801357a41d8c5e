"""The gradient loop and the pre-training steps."""
