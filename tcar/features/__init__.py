"""The feature store: the tokens of a frozen stream for every clip, computed once and kept on disk.

    tcar plan params/ssv2.yaml                 bytes and hours, before anything starts
    tcar extract params/ssv2.yaml              both streams of a run, or what is missing of them
    torchrun --nproc-per-node 2 -m tcar extract params/ssv2.yaml
    tcar extract params/ssv2.yaml --remake     also what other code made, which is deleted
    tcar verify runs/ssv2/features/STORE       every byte read again

`extraction` fills stores, `making` is a store while it is filled, `batches` the work on one batch of clips, `views`
which frames a stream sees, `ranks` the processes that share the work, `outdated` the guard against stores of other
code; `store` reads what is complete, `packing` knows how a token is kept.
"""

from tcar.features.extraction import extract
from tcar.features.packing import FeatureError, unpacked
from tcar.features.settings import ExtractionSettings, TokenSpec
from tcar.features.store import FeatureStore, verify

__all__ = ["ExtractionSettings", "FeatureError", "FeatureStore", "TokenSpec", "extract", "unpacked", "verify"]
