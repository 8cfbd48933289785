"""Name the action in a video, with calibrated probabilities."""

import argparse

from tcar.models.opening import DEFAULT_MODEL, FULL_SIZE
from tcar.serve.predict import predict

EXAMPLE = "tcar predict my_clip.mp4"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The video, and the model that reads it."""
    parser.add_argument("video", help="a video file")
    parser.add_argument("--model", help=f'folder of a saved model, or "full" (default: {DEFAULT_MODEL})')
    parser.add_argument("--top", type=int, default=5, help="how many classes to show")
    parser.add_argument("--as-stored", dest="upright", action="store_false", help="do not turn a phone's video upright")
    for role in FULL_SIZE:
        parser.add_argument(f"--{role}-checkpoint", help=f"weights of the {role} stream")


def run(asked: argparse.Namespace) -> int:
    """Print the prediction."""
    print(predict(**vars(asked)))
    return 0
