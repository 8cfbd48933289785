"""Which reader knows the packets of a codec."""

from tcar.data.pictures import Av1, Mpeg2, Mpeg4, OneEach, Pictures, Vp8, Vp9
from tcar.data.slices import H264, Hevc

_READERS = {"vp8": Vp8, "vp9": Vp9, "av1": Av1, "h264": H264, "hevc": Hevc}
_READERS |= {"mpeg1video": Mpeg2, "mpeg2video": Mpeg2, "mpeg4": Mpeg4}
_WHOLE = ("dnxhd", "dvvideo", "ffv1", "ffvhuff", "huffyuv", "mjpeg", "png", "prores", "rawvideo")
_READERS |= dict.fromkeys(_WHOLE, OneEach)
_READERS |= dict.fromkeys(("flv", "h263", "msmpeg4", "msmpeg4v1", "msmpeg4v2", "wmv1", "wmv2"), OneEach)


def pictures_of(codec: str, extradata: bytes | None) -> Pictures:
    """The reader of the packets of a codec, by the name of its decoder in libav."""
    return _READERS.get(codec, Pictures)(extradata)
