"""Small video files for the tests, each frame of which carries its own number."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

BITS, BLOCK = 6, 16


def numbered_frame(number: int, width: int = 160, height: int = 120) -> np.ndarray:
    """A moving texture whose upper left blocks spell the number of the frame in black and white."""
    texture = np.random.default_rng(7).integers(0, 256, (height // 8, width // 8, 3))
    image = np.roll(texture.repeat(8, 0).repeat(8, 1), 3 * number, axis=1).astype(np.uint8)
    for bit in range(BITS):
        image[:BLOCK, BLOCK * bit : BLOCK * (bit + 1)] = 255 * (number >> bit & 1)
    return image


def read_number(image: np.ndarray) -> int:
    """The number a decoded frame spells."""
    middles = [image[BLOCK // 2, BLOCK * bit + BLOCK // 2].mean() > 127 for bit in range(BITS)]
    return sum(int(on) << bit for bit, on in enumerate(middles))


def write_video(
    path: Path,
    frames: int = 31,
    *,
    codec: str = "libvpx-vp9",
    rate: int = 12,
    width: int = 160,
    height: int = 120,
    times: list[int] | None = None,
    rotation: int = 0,
    flips: dict[str, bool] | None = None,
    aspect: Fraction | None = None,
    pixels: str = "yuv420p",
    muxer: dict[str, str] | None = None,
    comment: str = "",
    attachment: bytes = b"",
    **options: str,
) -> Path:
    """Encode numbered frames; `times` gives each frame's time in units of one frame, for a variable rate.

    rotation: degrees a player is told to turn the picture by, against the clock; flips: how to mirror it then. aspect:
    width of a pixel over its height. pixels: with "yuva420p" noise is transparent. muxer: options of the container,
    which may hold a comment and a file attached as well.
    """
    noise = np.random.default_rng(0)
    with av.open(str(path), "w", options=muxer or {}) as container:
        container.metadata.update({"comment": comment} if comment else {})
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = width, height, pixels
        if attachment:
            container.add_attachment("font.ttf", "application/x-truetype-font", attachment)
        stream.options = options or ({"crf": "30", "cpu-used": "8"} if codec == "libvpx-vp9" else {})
        if rotation or flips:
            stream.set_display_rotation(rotation, **(flips or {}))
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        for number in range(frames):
            image = numbered_frame(number, width, height)
            if pixels == "yuva420p":
                image = np.dstack([image, noise.integers(0, 256, (height, width), np.uint8)])
            frame = av.VideoFrame.from_ndarray(image, format="rgba" if image.shape[2] == 4 else "rgb24")
            frame = frame.reformat(format=pixels)
            frame.pts, frame.time_base = times[number] if times else number, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def copy_packets(source: Path, target: Path, change: Callable[[int, bytes], bytes | None]) -> Path:
    """Copy a video packet by packet, each as `change` of its number and bytes makes it, or left out for None."""
    with av.open(str(source)) as read, av.open(str(target), "w") as written:
        stream = read.streams.video[0]
        copy = written.add_stream_from_template(stream)
        for number, packet in enumerate(packet for packet in read.demux(stream) if packet.size):
            if (content := change(number, bytes(packet))) is not None:
                changed = av.Packet(content)
                changed.pts, changed.dts, changed.time_base = packet.pts, packet.dts, packet.time_base
                changed.duration, changed.is_keyframe, changed.stream = packet.duration, packet.is_keyframe, copy
                written.mux(changed)
    return target


def decode(path: Path) -> list[np.ndarray]:
    """What a player shows: every frame, decoded by libav's own decoder from first to last."""
    with av.open(f"file:{path}") as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(container.streams.best("video"))]


def write_audio(path: Path) -> Path:
    """One second of a tone and no picture."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libopus", rate=48000)
        tone = np.sin(np.arange(48000, dtype=np.float32) * 0.05)[None]
        frame = av.AudioFrame.from_ndarray(tone, format="flt", layout="mono")
        frame.sample_rate = 48000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_broken(folder: Path) -> dict[str, Path]:
    """One file of every kind of damage, under the reason it must be given."""
    whole = write_video(folder / "whole.webm").read_bytes()
    with av.open(str(folder / "whole.webm")) as container:
        packet = bytes([packet for packet in container.demux(video=0) if packet.size][15])
    damaged = bytearray(whole)
    damaged[whole.index(packet)] = 0xFF  # a frame of VP9 begins with the bits 10
    swapped, at = bytearray(whole), whole.index(packet)
    swapped[at - 3 : at - 1] = (0xFFFF & int.from_bytes(whole[at - 3 : at - 1], "big") - 500).to_bytes(2, "big")
    contents = {
        "empty": b"",
        "truncated": whole[: len(whole) // 2],
        "not a video": b"these are words\n" * 500,
        "undecodable": bytes(damaged),
        "out of order": bytes(swapped),
    }
    paths = {"missing": folder / "missing.webm", "no video stream": write_audio(folder / "audio.webm")}
    for reason, content in contents.items():
        paths[reason] = folder / f"{reason.replace(' ', '_')}.webm"
        paths[reason].write_bytes(content)
    return paths
